"""Figures of estimators: their values, the gradients they follow, and their pitfalls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from dphrl_lite import divergences
from dphrl_lite.figures.style import BELOW, FAINT, INK, color, ink, styled
from dphrl_lite.lab import pitfalls
from dphrl_lite.lab.estimators import Estimator


def _followed_color(follows: str) -> str:
    """The colour of the divergence that a row of `estimators.compare` names; grey where it names none."""
    names = {divergences.get(name).label: name for name in divergences.names()}
    name = names.get(follows.removeprefix("½ ").split(",")[0])
    return color(name) if name else "#757575"


def estimator_bars(table: pd.DataFrame, target: str, samples: int) -> go.Figure:
    """Value, and cosine of the gradient, of each estimator: dot and bar for mean ± std of repeated estimates, tick for exact.

    Args:
        table: from `estimators.error_bars` with the same `target` and `samples`.
        target: the divergence with whose gradient the gradients are compared.
        samples: how many samples each estimate had.
    """
    panels = {"value": ("", table["exact"]), "cosine": ("2", table[f"cos {target}"])}
    followed = table["follows"].str.removeprefix("½ ").str.split(",").str[0]
    traces = []
    for column, (axis, truth) in panels.items():
        place = {
            "type": "scatter",
            "mode": "markers",
            "xaxis": f"x{axis}",
            "yaxis": f"y{axis}",
            "showlegend": axis == "",
        }
        for label, part in table.groupby(followed, sort=False):
            hue, hover = _followed_color(label), "%{y}<br>%{x:.3f} ± %{error_x.array:.3f}<extra></extra>"
            bars = {"type": "data", "array": part[f"{column} std"], "color": hue, "thickness": 3, "width": 6}
            symbol = "circle-open" if label.startswith("none") else "circle"  # as grey as what follows nothing
            look = {"marker": {"size": 11, "color": hue, "symbol": symbol}, "error_x": bars, "name": f"follows {label}"}
            at = {"x": part[column], "y": part.index, "hovertemplate": hover, "legendgroup": label}
            traces.append(place | look | at)
        tick = {"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": INK}}
        at = {"x": truth, "y": table.index, "hovertemplate": "exact: %{x:.3f}<extra></extra>"}
        traces.append(place | at | {"marker": tick, "name": "exact"})
    figure = go.Figure({"data": traces, "layout": _bar_axes(list(table.index), divergences.get(target).label)})
    title = f"Estimates from {samples} samples<br><span style='font-size:14px'>"
    title += "dot and bar: mean ± standard deviation of 100 estimates;<br>colour: whose gradient, in expectation</span>"
    figure = styled(figure, 290 + 34 * len(table), title, legend=BELOW, uirevision="keep")
    figure.layout.margin.update(l=180, t=100, b=150)
    return figure


def _bar_axes(rows: list[str], target: str) -> dict:
    """Two panels over one list of rows, as one layout: made in one go it is drawn in half the time, and a slider feels that."""
    x, y = {"zeroline": True, "zerolinecolor": FAINT}, {"categoryorder": "array", "categoryarray": rows[::-1]}
    y |= {"ticks": "", "showline": False, "range": [-0.6, len(rows) - 0.4]}
    title = lambda words: {"text": words, "font": {"size": 14}}
    cosine = title(f"cosine with the gradient<br>of {target}")
    return {
        "xaxis": {"domain": [0, 0.44], "title": title("value (nats)"), "rangemode": "tozero", **x},
        "xaxis2": {"domain": [0.47, 1], "title": cosine, "range": [-1.05, 1.08], "anchor": "y2", **x},
        "yaxis": y,
        "yaxis2": {"anchor": "x2", "matches": "y", "showticklabels": False, **y},
    }


_TABLE_COLUMNS = {
    "estimator": 160,
    "samples": 80,
    "value estimates": 145,
    "exact": 60,
    "bias": 60,
    "std": 60,
    "cosine": 65,
    "gradient follows exactly": 320,
}


def estimator_table(table: pd.DataFrame, target: str) -> go.Figure:
    """The rows of `estimators.compare` against `target` as a table: expectations by enumeration, not from samples."""
    numbers = lambda column: [f"{x:.3f}".replace("-0.000", "0.000").replace("nan", "–") for x in table[column]]
    estimates = table["estimates"].str.replace("½ ", "½\u00a0")
    cells = [list(table.index), table["samples"], estimates, numbers("exact"), numbers("bias"), numbers("std")]
    cells += [numbers(f"cos {target}"), table["follows"]]
    align = ["left"] * 3 + ["right"] * 4 + ["left"]
    inks = [INK] * 7 + [[ink(_followed_color(follows)) for follows in table["follows"]]]
    look = {"align": align, "line": {"color": "#DDDDDD"}}
    head = {"values": [f"<b>{w}</b>" for w in _TABLE_COLUMNS], "fill": {"color": "#EEEEEE"}, "height": 28, **look}
    body = {"values": cells, "fill": {"color": "white"}, "height": 26, "font": {"color": inks, "size": 12}, **look}
    label, wrapped = divergences.get(target).label, (table["follows"].str.len() > 42).sum()
    words = f"By enumeration: value in nats, std of one sample, cosine with the gradient of {label}"
    layout = {
        "template": None,
        "height": 84 + 27 * len(table) + 14 * int(wrapped),
        "font": {"size": 13, "color": INK},
        "title": {"text": words, "x": 0, "xref": "paper", "y": 0.98, "yanchor": "top", "font": {"size": 14}},
        "margin": {"l": 10, "r": 10, "t": 34, "b": 8},
    }
    return go.Figure(go.Table(columnwidth=list(_TABLE_COLUMNS.values()), header=head, cells=body), layout)


def filtering_curves(table: pd.DataFrame) -> go.Figure:
    """What keeping only correct reference samples does to E[u] and to the pull on P(correct). `table`: `pitfalls.filtering`."""
    figure = make_subplots(cols=2, horizontal_spacing=0.15, subplot_titles=["E[u]", "a step on correct samples"])
    drawn = dict(list(table.groupby("samples")))
    for name, look in {"all": {"color": INK, "dash": "dash"}, "correct only": {"color": "#D55E00"}}.items():
        hover = "P(correct) = %{x:.2f}: E[u] = %{y:.2f}<extra></extra>"
        x, y, line = drawn[name]["p_correct"], drawn[name]["E[u]"], {"width": 3, **look}
        label = {"all": "all samples", "correct only": "correct samples only"}[name]
        figure.add_scatter(x=x, y=y, name=label, line=line, hovertemplate=hover, legend="legend", row=1, col=1)
    kept = drawn["correct only"]
    home = np.interp(1.0, kept["E[u]"], kept["p_correct"])
    for name in table.columns.drop(["samples", "p_correct", "E[u]"]):
        label = "plain −log u" if name == "plain" else f"f(u), {divergences.get(name).label}"
        line = {"width": 3, "color": color("sft" if name == "plain" else name)}
        look = {"name": label, "line": line, "hovertemplate": "P(correct) = %{x:.2f}: %{y:.3f}<extra></extra>"}
        figure.add_scatter(x=kept["p_correct"], y=kept[name], legend="legend2", row=1, col=2, **look)
    figure.add_hline(y=0, line={"color": INK, "width": 1}, row=1, col=2)
    for col in (1, 2):
        line = {"color": FAINT, "dash": "dot", "width": 2}
        note = {"annotation_text": f"reference: {home:.0%}", "annotation_position": "bottom right"}
        figure.add_vline(x=home, line=line, row=1, col=col, **(note if col == 1 else {}))
    figure.update_xaxes(title_text="P(correct) under the policy", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title_text="mean of u = policy / reference", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="change of log P(correct)", row=1, col=2)
    figure.update_annotations(font_size=14)
    place = BELOW | {"orientation": "v"}
    legends = {"legend": place, "legend2": place | {"x": 0.57}}
    return styled(figure, 500, "Rehearsing only correct samples", margin_b=150, **legends)


def clamp_curves(shown: Sequence[Estimator], log_u: float = -12.0, steps: int = 80) -> go.Figure:
    """The pull on a token, and whether a dying answer comes back when gradient descent follows that pull alone.

    Args:
        shown: losses on reference samples, such as `pitfalls.clamped(...)`, with different labels.
        log_u: where the dying answer starts.
        steps: of gradient descent.
    """
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.15,
        subplot_titles=["pull on a token: d loss / d log u", "a dying answer, step by step"],
    )
    x, dashes, widths = (
        torch.linspace(-16, 1, 341, dtype=torch.float64),
        ("solid", "dash", "dot", "solid"),
        (7, 4, 3, 3),
    )
    stuck = 0
    for i, estimator in enumerate(shown):
        whole = divergences.get(estimator.name).label == estimator.label.removeprefix("f(u): ")
        hue = color(estimator.name) if whole else ("#D55E00", "#2F4B7C")[i % 2]
        look = {"name": estimator.label, "legendgroup": estimator.label}
        look["line"] = {"color": hue, "dash": dashes[i % 4], "width": widths[i % 4]}
        pull, path = pitfalls.force(estimator, x), pitfalls.recovery(estimator, log_u, steps)
        hover = "%{x:.3g}: %{y:.3f}<extra></extra>"
        figure.add_scatter(x=x.numpy(), y=pull.numpy(), hovertemplate=hover, row=1, col=1, **look)
        figure.add_scatter(y=path, showlegend=False, hovertemplate=hover, row=1, col=2, **look)
        stuck += path[-1] < log_u + 1
    words = f"{stuck} of {len(shown)} stay where they are"
    figure.add_annotation(x=steps / 2, y=log_u, yshift=14, text=words, showarrow=False, row=1, col=2)
    figure.add_vline(x=log_u, line={"color": FAINT, "dash": "dot", "width": 2}, row=1, col=1)
    figure.add_annotation(x=log_u, y=0.6, text="the dying<br>answer", xanchor="left", showarrow=False, row=1, col=1)
    figure.update_xaxes(title_text="log u (nats)", row=1, col=1)
    figure.update_xaxes(title_text="step of gradient descent", row=1, col=2)
    figure.update_yaxes(title_text="nats per nat", range=[-1.15, 1.15], row=1, col=1)
    figure.update_yaxes(title_text="its log u (nats)", range=[log_u - 1, 1], row=1, col=2)
    figure.update_annotations(font_size=14)
    return styled(figure, 500, "A clamp lets go of what it protects", margin_b=140, legend=BELOW)
