"""Figures on a page: their words, what saves them, and the renderer of each place that opens a notebook."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from dphrl_lite import figures
from dphrl_lite.figures import page, rollouts, style
from dphrl_lite.lab import estimators, toys, worlds

REPOSITORY = Path(__file__).resolve().parents[2]


def words(figure):
    return figures.alt_text(figure.to_dict())


def test_alt_text_says_title_axes_and_where_each_curve_goes():
    figure = go.Figure(layout={"title": {"text": "<b>Pass@k</b> rises &amp; falls"}})
    figure.add_scatter(x=[1, 2, 4], y=[0.25, 0.5, 0.75], name="grpo", mode="lines")
    figure.add_scatter(x=[1, 2], y=[9, 9], showlegend=False)  # a band: no name, no words
    figure.update_layout(xaxis_title="k", yaxis_title="solved")
    assert words(figure) == "Pass@k rises & falls. x axis: k. y axis: solved. grpo: from 0.25 to 0.75."


@pytest.mark.parametrize("sideways", [False, True])
def test_alt_text_says_the_bars_and_points_by_their_labels(sideways):
    along = {"x": [3.0, float("nan")], "y": ["a", "b"]} if sideways else {"x": ["a", "b"], "y": [3.0, float("nan")]}
    figure = go.Figure().add_bar(name="D_pef", **along).add_scatter(name="exact", mode="markers", **along)
    assert words(figure) == "Figure without a title. D_pef: a 3, b –. exact: a 3, b –."


def test_alt_text_reads_a_table_and_names_the_ends_of_a_flow():
    rows = pd.DataFrame({"name": ["<i>Ada</i>", None], "n": [1, 2]})
    told = words(figures.query_results([("gold", rows)], figures.verdict("same", True)))
    assert "gold: 2 rows" in told and "Table of name, n; <i>Ada</i>, 1; " in told
    flow = words(figures.solved_flow(pd.Series({"keep": 3.0, "forget": 1.0, "gain": 2.0, "never": 4.0}), 2))
    assert "Flows between base: solved, 4.0" in flow


def test_alt_text_stays_short_however_much_is_drawn():
    figure = go.Figure([go.Scatter(x=[0, 1], y=[0, i], name=f"run {i}") for i in range(200)])
    assert "run 15: from 0 to 15. and 184 more." in words(figure)


def test_what_a_reader_keeps_in_a_figure_stays():
    assert page.described({"layout": {"meta": ["mine"]}})["layout"]["meta"] == ["mine"]
    assert page.described({"layout": {"meta": {"mine": 1}}})["layout"]["meta"]["mine"] == 1


def test_a_page_of_its_own_holds_everything_and_asks_no_other_machine(tmp_path):
    figure = figures.gallery(["forward_kl"], toys.Modes())
    before = figure.to_dict()
    html = figures.to_html(figure)
    assert figure.to_dict() == before
    assert "forward KL: covers both modes" in html
    assert "Download plot as an SVG" in html and "toImageButtonOptions" in html and '"showSendToCloud": false' in html
    assert 'src="http' not in html and "plotly.js v" in html
    assert len(figures.to_html(figure, include_plotlyjs=False, full_html=False)) < 60_000


# what each place sets, and what a figure has to become there
PLACES = {
    "JupyterLab": ({}, "ipykernel.zmqshell", "application/vnd.plotly.v1+json"),
    "VS Code": ({"VSCODE_PID": "1"}, "ipykernel.zmqshell", "application/vnd.plotly.v1+json"),
    "Colab": ({"COLAB_NOTEBOOK_ID": "1"}, "google.colab._shell", "text/html"),
}
SHOW = """
from IPython.core.interactiveshell import InteractiveShell
class ZMQInteractiveShell(InteractiveShell):
    pass
ZMQInteractiveShell.__module__ = {module!r}
ZMQInteractiveShell.instance()
from dphrl_lite import figures
from dphrl_lite.widgets import Live
import plotly.graph_objects as go
(kind, bundle), = go.Figure(layout={{"title": {{"text": "Hello"}}}})._repr_mimebundle_().items()
print(kind, "Hello." in str(bundle), "'scale': 2" in str(bundle) or '"scale": 2' in str(bundle))
print("dphrlPage" in str(bundle), len(str(bundle)) < 20_000)
"""


@pytest.mark.parametrize("place", PLACES)
def test_figures_and_widgets_are_ready_wherever_a_notebook_is_opened(place, tmp_path):
    marks, module, kind = PLACES[place]
    unset = ("VSCODE_PID", "COLAB_NOTEBOOK_ID", "PLOTLY_RENDERER")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | marks
    expected = [f"{kind} True True", "False True"]
    if place == "Colab":  # each output is a page of its own, which needs the script; and anywidget has to be let in
        package = tmp_path / "google/colab"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "output.py").write_text("def enable_custom_widget_manager():\n    print('enabled')\n")
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
        expected = ["enabled", f"{kind} True True", "True True"]
    code = SHOW.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == expected, done.stderr


def test_a_renderer_that_the_reader_chose_stays():
    code = "import plotly.io as pio; pio.renderers.default = 'png'; import dphrl_lite.figures; print(pio.renderers.default)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "png", done.stderr


def test_without_anywidget_figures_are_shown_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    page.helper.cache_clear()
    bundle = pio.renderers["plotly_mimetype"].to_mimebundle(go.Figure().to_dict())
    page.helper.cache_clear()
    figure = bundle["application/vnd.plotly.v1+json"]
    assert figure["config"]["toImageButtonOptions"]["scale"] == 2
    assert figure["layout"]["meta"]["alt"] == "Figure without a title."


# ---- colours ---------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), table 1, severity 1: what linear RGB becomes
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Ottosson (2020): linear RGB to OKLab, in which a distance of 0.02 is just seen
TO_LMS = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.21190350, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.62997870],
]
TO_LAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.97799850, -2.42859221, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]
# areas that words or lines stand on, lines of tables, and the answers that share a panel without being told apart
TINTS = {"#FFFFFF", "#FDE7C7", "#FBC98A", "#F3A04A", "#E3782B", "#DDDDDD", "#EEEEEE", "#DCE9E4", "#F3E3DA"}
TINTS |= {"#A6D4F2", "#7FC8A9"}


def seen(hue, deficiency):
    encoded = np.array([int(hue[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return TO_LAB @ np.cbrt(TO_LMS @ np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1))


def test_contrast_is_that_of_the_guidelines():
    assert style.contrast("#000000") == pytest.approx(21)
    assert style.contrast("#FFFFFF") == pytest.approx(1)
    assert style.contrast("#767676") == pytest.approx(4.54, abs=0.005)  # their own example of a grey that just passes


def test_every_colour_of_the_kit_stands_out_from_white():
    code = "".join(path.read_text() for path in (REPOSITORY / "dphrl_lite").rglob("*.py"))
    hues = set(re.findall(r'"(#[0-9A-F]{6})"', code)) - TINTS
    assert set(style.COLORS.values()) | set(style.BUCKETS.values()) <= hues
    assert {hue: round(style.contrast(hue), 2) for hue in hues if style.contrast(hue) < 3} == {}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("palette", ["COLORS", "BUCKETS"])
def test_no_two_methods_look_alike(palette, deficiency):
    hues = getattr(style, palette)
    far = {
        pair: np.linalg.norm(seen(hues[pair[0]], deficiency) - seen(hues[pair[1]], deficiency))
        for pair in itertools.combinations(hues, 2)
    }
    assert {pair: distance for pair, distance in far.items() if distance < 0.06} == {}


@pytest.mark.parametrize("hue", [*style.COLORS.values(), "#FFFF00"])
def test_ink_can_be_read(hue):
    assert style.contrast(style.ink(hue)) >= 4.5
    assert style.ink(style.ink(hue)) == style.ink(hue)
    assert style.ink("#222222") == "#222222"


def test_coloured_words_can_be_read():
    table = estimators.compare(worlds.example(), estimators.names(), ["forward_kl"])
    told = figures.estimator_table(table, "forward_kl").to_json()
    told += figures.verdict("", True) + figures.verdict("", False)
    told += figures.solved_flow(pd.Series({"keep": 3.0, "forget": 1.0, "gain": 2.0, "never": 4.0}), 2).layout.title.text
    told += figures.verdict_table(pd.DataFrame({"correct": [True, False]})).to_html()
    hues = set(re.findall(r"(?<!-)color['\"]?: ?['\"\[]*(#[0-9A-Fa-f]{6})", told)) - TINTS
    assert len(hues) >= 3 and min(map(style.contrast, hues)) >= 4.5
    assert min(style.contrast("#111111", ground) for ground in rollouts._HUES) >= 4.5
