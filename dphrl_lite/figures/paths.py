"""Figures of runs that were evaluated as they went on: loss against the distance from the reference, and paths as fronts."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite.errors import lookup
from dphrl_lite.figures.style import DASHES, INK, color, method_of, styled
from dphrl_lite.study import path_conclusions

_LEGEND = {"x": 1.02, "y": 1, "font": {"size": 12}, "itemsizing": "constant", "tracegroupgap": 0}


def loss_by_distance(points: pd.DataFrame, title: str = "") -> go.Figure:
    """What was lost against KL(policy, reference) per answer: a dot for each evaluated point, and the one curve through all.

    Args:
        points: from `path_conclusions.distances`.
        title: what stands above.
    """
    panels = [words.format(score=points["score"].iloc[0]) for words in path_conclusions.LOSSES.values()]
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=panels)
    names = path_conclusions.method_of(points)
    for col, loss in enumerate(path_conclusions.LOSSES, 1):
        along = np.linspace(0, points["kl"].max(), 101)
        fitted = path_conclusions.on_curve(along, path_conclusions.curve(points["kl"], points[loss]))
        look = {"name": "one curve for all", "legendgroup": "curve", "showlegend": col == 1, "hoverinfo": "skip"}
        figure.add_scatter(x=along, y=fitted, line={"color": INK, "width": 1.5, "dash": "dot"}, row=1, col=col, **look)
        for name in dict.fromkeys(names):
            mine = points[names == name]
            wise = name.endswith("+wise")
            marker = {"color": color(method_of(name)), "size": 9, "opacity": 0.8, "symbol": "x" if wise else "circle"}
            told = [
                f"{line}<br>{row.steps:g} steps, seed {row.seed}"
                for line, row in zip(path_conclusions.label(mine), mine.itertuples(), strict=True)
            ]
            look = {"mode": "markers", "marker": marker, "name": name, "legendgroup": name, "showlegend": col == 1}
            hover = "%{text}<br>%{x:.2f} nats, lost %{y:.1%}<extra></extra>"
            figure.add_scatter(x=mine["kl"], y=mine[loss], text=told, hovertemplate=hover, row=1, col=col, **look)
    figure.update_xaxes(title_text="KL, nats per answer", rangemode="tozero")
    figure.update_yaxes(tickformat="~%")
    figure.update_annotations(font_size=14)
    return styled(figure, 460, title, legend=_LEGEND).update_layout(margin_r=190)


def path_fronts(scores: pd.DataFrame, height: str = "Pass@64", title: str = "") -> go.Figure:
    """Pass@1 against another score along each path, means over seeds: a line for each method, strength and learning rate, whose
    marks grow with the steps. A smaller step has another dash; what went part of the way back is a cross.

    Args:
        scores: from `path_conclusions.mean_scores`; the base model's row is where the dotted lines meet.
        height: the column that is drawn upwards.
        title: what stands above.
    """
    lookup(dict.fromkeys(scores.columns), "column of scores", height)
    figure = go.Figure()
    rates = sorted(scores["learning_rate"].dropna().unique(), reverse=True)
    for line, part in scores[scores["method"] != "base"].groupby("line", sort=False):
        part = part.sort_values("steps")
        first = part.iloc[0]
        dash = DASHES[rates.index(first["learning_rate"]) % len(DASHES)]
        hue, one = color(method_of(first["method"])), len(part) == 1
        marker = {
            "color": hue,
            "size": 12 if one else np.linspace(6, 13, len(part)),
            "symbol": "x" if first["back"] else "circle",
        }
        told = [f"<b>{line}</b><br>{row.steps:g} steps, {row.seeds} seeds" for row in part.itertuples()]
        hover = "%{text}<br>Pass@1 %{x:.1%}, " + height + " %{y:.1%}<extra></extra>"
        look = {"mode": "markers" if one else "lines+markers", "line": {"color": hue, "dash": dash, "width": 2}}
        figure.add_scatter(
            x=part["Pass@1"], y=part[height], text=told, hovertemplate=hover, name=line, marker=marker, **look
        )
    base = scores[scores["method"] == "base"].iloc[0]
    dotted = {"line": {"color": INK, "dash": "dot", "width": 1}, "opacity": 1}
    figure.add_vline(x=base["Pass@1"], **dotted)
    figure.add_hline(y=base[height], **dotted)
    figure.update_xaxes(title_text="Pass@1", tickformat="~%")
    figure.update_yaxes(title_text=height, tickformat="~%")
    tall = max(560, 165 + 19 * len(figure.data))  # the legend whole
    return styled(figure, tall, title, legend=_LEGEND).update_layout(margin_r=230)
