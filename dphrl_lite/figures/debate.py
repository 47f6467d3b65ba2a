"""Figures of the debate: what moves a score, what a gain consists of, guessing, mass off target, the paper's tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite import divergences
from dphrl_lite.figures.analysis import front, swept
from dphrl_lite.figures.style import BELOW, COLORS, DASHES, FAINT, INK, color, method_of, styled
from dphrl_lite.lab import toys
from dphrl_lite.study import debate

_LEVERS = {"strength": "#4D4D4D", "divergence": "#1398F8", "matched": "#0072B2"}


def levers(table: pd.DataFrame, score: str) -> go.Figure:
    """How far a score moves by each of `debate.LEVERS`, a group of bars per row. `table` from `debate.levers`."""
    figure, shares = go.Figure(), score != "distinct"
    for lever, words in debate.LEVERS.items():
        values = table[lever] * (100 if shares else 1)
        told = values.map(("{:.1f}" if shares else "{:.2f}").format)
        look = {"marker_color": _LEVERS[lever], "text": told, "textposition": "outside"}
        hover = "%{x}: %{y:.2f}<extra>" + words + "</extra>"
        figure.add_bar(x=table.index, y=values, name=words, cliponaxis=False, hovertemplate=hover, **look)
    figure.update_yaxes(title_text="range, in points" if shares else "range", rangemode="tozero")
    what = score if shares else "the number of different right answers"
    title = f"How far {what} moves when one thing is changed"
    return styled(figure, 420, title, margin_b=100, barmode="group", bargap=0.25, legend=BELOW, uirevision="keep")


def rungs(rows: pd.DataFrame, what: str = "") -> go.Figure:
    """The changes between the base model and DPH-F, one panel per score: dot and interval. `rows` from `debate.rungs`."""
    scores, steps = list(dict.fromkeys(rows["score"])), list(dict.fromkeys(rows["step"]))
    figure = make_subplots(cols=len(scores), shared_yaxes=True, subplot_titles=scores, horizontal_spacing=0.03)
    for col, score in enumerate(scores, 1):
        part = rows[rows["score"] == score]
        clear = (part["low"] > 0) | (part["high"] < 0)
        hues = np.where(clear, COLORS["dph-js"], COLORS["sft"]).tolist()
        for hue, row in zip(hues, part.itertuples(), strict=True):
            bars = {"array": [row.high - row.value], "arrayminus": [row.value - row.low], "thickness": 3, "width": 6}
            look = {"mode": "markers", "marker": {"color": hue, "size": 12}, "error_x": bars | {"color": hue}}
            hover = f"{row.step}<br>{score} %{{x:+.1%}}, {row.low:+.1%} to {row.high:+.1%}<extra></extra>"
            figure.add_scatter(
                x=[row.value],
                y=[row.step],
                name=f"{score}: {row.step}",
                hovertemplate=hover,
                showlegend=False,
                row=1,
                col=col,
                **look,
            )
        figure.add_vline(x=0, line={"color": INK, "width": 1}, opacity=1, row=1, col=col)
    reach = 1.15 * max(rows["high"].abs().max(), rows["low"].abs().max(), 0.01)
    figure.update_xaxes(tickformat="+.0%", range=[-reach, reach], zeroline=False)
    figure.update_yaxes(categoryorder="array", categoryarray=steps[::-1], ticks="", showline=False)
    figure.update_annotations(font_size=14)
    title = f"Step by step to DPH-F{f', {what}' if what else ''}: grey cannot be told from 0"
    return styled(figure, 330, title, uirevision="keep").update_layout(margin_l=230)


def guessing(curves: pd.DataFrame, title: str) -> go.Figure:
    """Pass@k against k and Cover@τ against τ, of models, of one with guesses, and of guesses alone.

    Args:
        curves: from `debate.guessing_curves`.
        title: above both.
    """
    figure = make_subplots(cols=2, subplot_titles=["Pass@k", "Cover@τ"], horizontal_spacing=0.09)
    for (model, measure), part in curves.groupby(["model", "measure"], sort=False):
        hue = "#7F5B2E" if model == debate.GUESSES else color(model)
        dash = "dot" if model == debate.GUESSES else "dash" if model.endswith("+ guesses") else "solid"
        col = 1 if measure == "Pass@k" else 2
        look = {"line": {"color": hue, "width": 3, "dash": dash}, "name": model, "legendgroup": model}
        look |= {"mode": "lines+markers" if col == 1 else "lines", "showlegend": col == 1}
        hover = "%{y:.1%} at %{x:.3~g}<extra>" + model + "</extra>"
        figure.add_scatter(x=part["x"], y=part["y"], hovertemplate=hover, row=1, col=col, **look)
    ks = sorted(set(curves.loc[curves["measure"] == "Pass@k", "x"].astype(int)))
    figure.update_xaxes(type="log", tickvals=ks, ticktext=list(map(str, ks)), title_text="k", row=1, col=1)
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1]
    words = {"type": "log", "tickvals": ticks, "ticktext": list(map(str, ticks))}
    figure.update_xaxes(title_text="τ: share of the answers that is right", row=1, col=2, **words)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03])
    figure.update_annotations(font_size=14)
    return styled(figure, 450, title, margin_b=100, legend=BELOW, uirevision="keep")


_DISTANCES = range(1, 7)


def off_target(names: Sequence[str], target: toys.Modes) -> go.Figure:
    """The best Gaussian under each divergence over the region that the target leaves out, and how much of it lies there.

    Args:
        names: divergences.
        target: its modes; on the right their distance varies.
    """
    right = "share of the policy off target"
    figure = make_subplots(cols=2, subplot_titles=["best fits; grey: off target", right], horizontal_spacing=0.1)
    x, step = toys.GRID.numpy(), (toys.GRID[1] - toys.GRID[0]).item()
    off = {"fill": "tozeroy", "fillcolor": "rgba(0,0,0,0.08)", "line": {"width": 0, "shape": "hvh"}}
    figure.add_scatter(x=x, y=target.is_off().numpy() * 0.9, showlegend=False, hoverinfo="skip", row=1, col=1, **off)
    line = {"color": INK, "width": 2}
    figure.add_scatter(
        x=x, y=(target.density() / step).numpy(), name="target = reference", line=line, legendrank=1, row=1, col=1
    )
    for i, name in enumerate(names):
        label = divergences.get(name).label
        look = {"line": {"color": color(name), "width": 3, "dash": DASHES[i % len(DASHES)]}}
        fits = [_best(name, target.count, distance, target.weight, target.width) for distance in _DISTANCES]
        p, _ = _best(name, target.count, target.distance, target.weight, target.width)
        figure.add_scatter(x=x, y=(p / step).numpy(), name=label, legendgroup=label, row=1, col=1, **look)
        shares = [share for _, share in fits]
        hover = "modes %{x} apart: %{y:.1%}<extra>" + label + "</extra>"
        look |= {"legendgroup": label, "showlegend": False, "hovertemplate": hover, "mode": "lines+markers"}
        figure.add_scatter(x=list(_DISTANCES), y=shares, row=1, col=2, **look)
    figure.add_vline(x=target.distance, line={"color": FAINT, "dash": "dot"}, row=1, col=2)
    figure.update_xaxes(title_text="x", range=[-6, 6], row=1, col=1)
    figure.update_xaxes(title_text="distance of the modes", row=1, col=2)
    figure.update_yaxes(title_text="density", range=[0, 0.9], row=1, col=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 0.7], row=1, col=2)
    figure.update_annotations(font_size=14)
    title = f"Two modes, {target.distance:g} apart, {target.weight:.0%} of the mass in the left one"
    return styled(figure, 450, title, margin_b=100, legend=BELOW, uirevision="keep")


def _best(name: str, *shape) -> tuple:
    target = toys.Modes(*shape)
    fit = toys.best_fit(name, target=target)
    p = toys.gaussian(fit.mean, fit.width)
    return p, target.off_target(p).item()


# ---- the paper's tables ----------------------------------------------------------------------------------------------


def beside_paper(paper: pd.DataFrame, ours: pd.DataFrame, titles: Sequence[str]) -> go.Figure:
    """Two tables of per cents as bars in one form, the paper's on the left, ours on the right; dotted: the base model.

    Args:
        paper, ours: rows with label, method and percent; one of method "base" in each, if there is one.
        titles: of both.
    """
    figure = make_subplots(cols=2, subplot_titles=list(titles), horizontal_spacing=0.2)
    for col, (who, rows) in enumerate((("the paper", paper), ("ours", ours)), 1):
        values, hues = rows["percent"], [color(method_of(name)) for name in rows["method"]]
        words = values.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
        look = {"marker_color": hues, "text": words, "textposition": "outside", "cliponaxis": False}
        hover = "%{y}: %{x:.2f} %<extra></extra>"
        figure.add_bar(
            x=values,
            y=rows["label"],
            name=who,
            orientation="h",
            hovertemplate=hover,
            showlegend=False,
            row=1,
            col=col,
            **look,
        )
        for at in values[rows["method"] == "base"].dropna():
            figure.add_vline(x=at, line={"color": INK, "dash": "dot", "width": 1.5}, layer="below", row=1, col=col)
        low, high = (values.min(), values.max()) if values.notna().any() else (0, 100)
        figure.update_xaxes(
            range=[max(0, low - 0.6 * (high - low) - 1), high + 0.12 * (high - low) + 2], row=1, col=col
        )
        if values.isna().all():
            note = "too few answers were drawn for this k"
            figure.add_annotation(text=note, x=50, y=len(rows) / 2, showarrow=False, row=1, col=col)
    figure.update_xaxes(title_text="per cent; the axis does not begin at 0")
    figure.update_yaxes(autorange="reversed", ticks="", showline=False, dtick=1, tickfont_size=12)
    figure.update_annotations(font_size=14)
    height = 190 + 27 * max(len(paper), len(ours))
    return styled(figure, height, "Per cent solved; dotted: the base model", uirevision="keep").update_layout(
        margin_l=200
    )


def exchanges(paper: pd.DataFrame, ours: pd.DataFrame, k: int | str) -> go.Figure:
    """Points gained with one answer against points lost with k, in the paper and in ours; base is where the lines cross.

    Args:
        paper, ours: from `debate.exchange`, with a column label.
        k: answers, for the axis.
    """
    names = ["the paper: greedy", "our miniature: Pass@1"]
    figure = make_subplots(cols=2, subplot_titles=names, horizontal_spacing=0.08, shared_yaxes=True)
    for col, (who, rows) in enumerate((("the paper", paper), ("ours", ours)), 1):
        look = {"mode": "markers", "showlegend": False, "name": who}
        marker = {"color": [color(method_of(name)) for name in rows["method"]], "size": 12}
        hover = f"%{{text}}<br>one answer %{{x:+.1f}} points, Pass@{k} %{{y:+.1f}} points<extra></extra>"
        figure.add_scatter(
            x=rows["one"],
            y=rows["many"],
            text=rows["label"],
            marker=marker,
            hovertemplate=hover,
            row=1,
            col=col,
            **look,
        )
    line = {"line": {"color": INK, "dash": "dot", "width": 1}, "layer": "below"}
    figure.add_hline(y=0, **line)
    figure.add_vline(x=0, **line)
    figure.update_xaxes(title_text="points against base, one answer", tickformat="+~f", zeroline=False)
    figure.update_yaxes(tickformat="+~f", zeroline=False)
    figure.update_yaxes(title_text=f"points against base, Pass@{k}", row=1, col=1)
    figure.update_annotations(font_size=14)
    return styled(figure, 400, "What one answer gains, and many lose; colours as above", uirevision="keep")


def own_front(scores: pd.DataFrame, name: str, domain: str = "countdown") -> go.Figure:
    """The front of the shipped methods (the paper's and controls that have several strengths), with the runs of one more
    method marked as yours.

    Args:
        scores: from `conclusions.run_scores` of `conclusions.comparable`.
        name: your method, at one strength or several.
        domain: as `front` takes it.
    """
    others = [method for method in swept(scores) if method != name and "+" not in method]
    figure = front(scores, domain, "test", "Pass@64", [*others, "grpo", name])
    mine = scores.loc[domain].xs("test", level="split").loc[[name]].groupby("strength", dropna=False).mean()
    for place, (strength, row) in enumerate(mine.iterrows()):
        words = "yours" if pd.isna(strength) else f"yours, η = {strength:g}"
        look = {
            "showarrow": True,
            "arrowwidth": 2,
            "arrowcolor": color(name),
            "ax": -64,
            "ay": 92 + 24 * place,
        }  # below the front is room; one below the other
        figure.add_annotation(x=row["Pass@1"], y=row["Pass@64"], text=f"<b>{words}</b>", standoff=8, **look)
    return figure
