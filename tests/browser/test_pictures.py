"""README's pictures. `make pictures` keeps them in notebooks/images; without it the same is looked at, and nothing is kept."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from plotly.offline import get_plotlyjs

from dphrl_lite import figures
from dphrl_lite.study import conclusions, frontier

MAIN = ("grpo", "grpo-exp", "dapo", "rkl", "rkl-k3", "sft", "dph-f", "dph-js", "grpo+wise")
PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def keep(part, name: str) -> None:
    if folder := os.environ.get("DPHRL_SCREENSHOTS"):
        part.screenshot(path=Path(folder) / f"{name}.png")


def test_the_explorer_in_use(notebook):
    """The widget of notebook 01 alone, in JupyterLab, after a reader has chosen reverse KL and asked for the best fit."""
    code = nbformat.v4.new_code_cell("from dphrl_lite import widgets\n\nwidgets.divergence_explorer()")
    path = notebook.lab.folder / "explorer.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[code], metadata=PYTHON), path)
    notebook.open(path.name)
    notebook.run_all()
    cell = notebook.scroll_to(".jp-Cell:has(.js-plotly-plot)")
    title = cell.locator(".js-plotly-plot .gtitle").first
    title.wait_for()
    cell.locator('.widget-dropdown:has(.widget-label:text-is("Divergence")) select').select_option("reverse KL")
    cell.get_by_role("button", name="Jump to the best fit").click()
    notebook.page.wait_for_function("node => node.textContent.includes('seeks')", arg=title.element_handle())
    notebook.page.wait_for_timeout(3000)  # the figure follows both sliders that the button moves
    assert "policy by mode: 100% / 0%" in title.text_content()  # it sits on the left mode
    assert notebook.widget_errors() == []
    keep(cell.locator(".jp-OutputArea-child .jp-OutputArea-output").first, "divergence_explorer")


@pytest.fixture
def sharp(browser):
    """A page with two pixels for one, as a picture in a README wants."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, device_scale_factor=2)
    yield context.new_page()
    context.close()


def test_the_front_of_the_shipped_runs(sharp):
    """Pass@1 against Pass@64 on countdown, of every run in data/frontier."""
    scores = conclusions.run_scores(frontier.read()[0])
    figure = figures.front(scores, "countdown", methods=MAIN)
    sharp.add_script_tag(content=get_plotlyjs())
    sharp.evaluate("figure => Plotly.newPlot(document.body, figure.data, figure.layout)", json.loads(figure.to_json()))
    drawing = sharp.locator(".main-svg").first
    drawing.wait_for()
    assert sharp.locator(".scatterlayer .trace").count() >= len(figure.data)
    keep(sharp.locator(".svg-container"), "front")
