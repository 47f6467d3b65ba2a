"""Figures of exact dynamics on bandits: mass of answers, Pass@k over time, optima, exchange fronts."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from dphrl_lite import divergences
from dphrl_lite.figures.style import BELOW, COLORS, color, styled
from dphrl_lite.lab import bandits

_RIGHT = ("#00583F", "#009E73", "#1398F8", "#0072B2", "#A6D4F2", "#7FC8A9")  # the largest, before or after
_OTHER_RIGHT, _WRONG = "#DCE9E4", "#F3E3DA"


def answer_mass(path: bandits.Flow, context: int, height: int = 400) -> go.Figure:
    """Stacked mass over time of the answers of one context: right ones from below, the wrong ones together on top."""
    figure = go.Figure()
    _mass_layers(figure, path, context)
    rich = bandits.effective_correct(path.probs[:, context], path.bandit.correct[context])
    title = f"Context {context}: from {rich[0]:.1f} to {rich[-1]:.1f} right answers in effect"
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(title_text="probability", tickformat=".0%", range=[0, 1])
    return styled(figure, height, title, legend={"traceorder": "reversed"}, uirevision="keep")


def _mass_layers(figure: go.Figure, path: bandits.Flow, context: int, **place):
    p, right = path.probs[:, context].numpy(), path.bandit.correct[context].numpy()
    largest = [a for a in (p[0] + p[-1]).argsort()[::-1] if right[a]][: len(_RIGHT)]
    rest = np.setdiff1d(np.flatnonzero(right), largest)
    layers = [(f"answer {a}", p[:, a], hue) for a, hue in zip(largest, _RIGHT, strict=False)]
    layers += [(f"{len(rest)} other right", p[:, rest].sum(-1), _OTHER_RIGHT)] if len(rest) else []
    layers += [(f"{(~right).sum()} wrong", p[:, ~right].sum(-1), _WRONG)]
    for name, y, hue in layers:
        look = {"stackgroup": "mass", "fillcolor": hue, "line": {"color": "white", "width": 0.7}}
        hover = "%{y:.1%}<extra>" + name + "</extra>"
        figure.add_scatter(x=path.time.numpy(), y=y, name=name, hovertemplate=hover, **look, **place)


def pass_over_time(paths: Mapping[str, bandits.Flow], ks: Sequence[int] = (1, 8, 64)) -> go.Figure:
    """Exact Pass@k over time, one panel for trained and one for held-out contexts; one colour per path, one dash per k.

    Args:
        paths: named as methods or divergences, whose colours they get.
        ks: at most four.
    """
    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=["trained contexts", "held-out contexts"])
    for name, path in paths.items():
        for col, contexts in ((1, path.bandit.trained), (2, ~path.bandit.trained)):
            _pass_lines(figure, name, path, ks, contexts, row=1, col=col)
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(title_text="Pass@k, exact", tickformat=".0%", range=[0, 1.03], col=1)
    figure.update_annotations(font_size=14)
    return styled(figure, 430, "Mean over contexts", margin_b=100, legend=BELOW)


def _pass_lines(figure: go.Figure, name: str, path: bandits.Flow, ks: Sequence[int], contexts, **place):
    for k, dash in zip(ks, ("solid", "dash", "dot", "dashdot"), strict=False):
        line = {"color": color(name), "width": 2.5, "dash": dash}
        hover = f"Pass@{k} = %{{y:.3f}}<extra>{name}</extra>"
        label = f"{name}: Pass@{k}" if name else f"Pass@{k}"
        y, shown = path.pass_at_k(k, contexts).numpy(), place["col"] == 1
        look = {"line": line, "name": label, "legendgroup": label, "showlegend": shown, "hovertemplate": hover}
        figure.add_scatter(x=path.time.numpy(), y=y, mode="lines", **look, **place)


def optima(q, reward, betas: Sequence[float], title: str = "") -> go.Figure:
    """The closed-form optima of both KL directions against beta: mass on right answers, and how many of them are in use.

    Args:
        q, reward: reference and rewards of one context `[A]`; an answer is right where its reward is above 0.
        betas: strengths, positive, for a logarithmic axis.
    """
    panels = ["P(correct)", "right answers in effect"]
    figure = make_subplots(cols=2, subplot_titles=panels, horizontal_spacing=0.12)
    right = reward > 0
    for name, dash in (("forward_kl", "solid"), ("reverse_kl", "dash")):
        best = torch.stack([bandits.optimum(q, reward, beta, name) for beta in betas])
        label, line = divergences.get(name).label, {"color": color(name), "width": 3.5, "dash": dash}
        for col, y in ((1, (best * right).sum(-1)), (2, bandits.effective_correct(best, right))):
            hover = "beta = %{x:.3g}: %{y:.3f}<extra>" + label + "</extra>"
            look = {"line": line, "name": label, "showlegend": col == 1, "hovertemplate": hover}
            figure.add_scatter(x=list(betas), y=y.numpy(), mode="lines", row=1, col=col, **look)
    start = (q * right).sum().item(), bandits.effective_correct(q, right).item()
    for col, y in enumerate(start, 1):
        note = {"annotation_text": "reference", "annotation_position": "bottom left"}
        figure.add_hline(y=y, line={"color": COLORS["base"], "dash": "dot", "width": 1.5}, col=col, row=1, **note)
    figure.update_xaxes(type="log", title_text="β: strength of the penalty", tickvals=[0.01, 0.1, 1, 10])
    figure.update_yaxes(range=[0, 1.05], tickformat=".0%", col=1)
    figure.update_yaxes(range=[0, 1.15 * int(right.sum())], col=2)
    figure.update_annotations(font_size=14)
    return styled(figure, 400, title, margin_b=100, legend=BELOW)


def strength_front(sweeps: Mapping[str, bandits.Flow], k: int = 64, equal: int = 8) -> go.Figure:
    """Pass@1 against Pass@k of the held-out contexts at the end of training, one line per divergence along its strengths.

    Args:
        sweeps: divergence name -> a path over several strengths, the first of them 0.
        k: of the panel on the right; the left one shows Pass@`equal`.
    """
    figure = make_subplots(cols=2, subplot_titles=[f"Pass@{equal}", f"Pass@{k}"], horizontal_spacing=0.12)
    first = next(iter(sweeps.values()))
    held = ~first.bandit.trained
    for col, j in ((1, equal), (2, k)):
        for name, path in sweeps.items():
            x, y = path.pass_at_k(1, held)[-1].numpy(), path.pass_at_k(j, held)[-1].numpy()
            look = {"line": {"color": color(name), "width": 2.5}, "marker": {"size": 7}, "showlegend": col == 1}
            label = divergences.get(name).label if name in divergences.names() else name
            figure.add_scatter(x=x, y=y, mode="lines+markers", name=label, row=1, col=col, **look)
        for label, frame, mark in (("base", 0, "diamond"), ("grpo", -1, "star")):
            point = [path_k[frame, :1].numpy() for path_k in (first.pass_at_k(1, held), first.pass_at_k(j, held))]
            marker = {"color": COLORS[label], "size": 15, "symbol": mark}
            look = {"mode": "markers", "marker": marker, "name": label, "showlegend": col == 1}
            figure.add_scatter(x=point[0], y=point[1], row=1, col=col, **look)
    figure.update_xaxes(title_text="held-out Pass@1", tickformat=".0%")
    figure.update_yaxes(tickformat=".0%")
    figure.update_annotations(font_size=14)
    return styled(figure, 460, "The exchange, strength by strength", margin_b=100, legend=BELOW)


def hybrid_split(paths: Mapping[str, bandits.Flow], contexts) -> go.Figure:
    """P(correct) and right answers in effect of single contexts, before training and after each path.

    Args:
        paths: label -> path of the same bandit; each path's colour is that of its label.
        contexts: bool `[C]`, which to show; sorted by the reference's P(correct).
    """
    panels = ["P(correct)", "right answers in effect"]
    figure = make_subplots(rows=2, shared_xaxes=True, subplot_titles=panels, vertical_spacing=0.12)
    first = next(iter(paths.values()))
    order = [c for c in first.p_correct()[0].argsort(descending=True).tolist() if contexts[c]]
    ends = {"base": (first, 0)} | {name: (path, -1) for name, path in paths.items()}
    for name, (path, frame) in ends.items():
        p = path.probs[frame]
        values = (p * path.bandit.correct).sum(-1), bandits.effective_correct(p, path.bandit.correct)
        for row, y in enumerate(values, 1):
            look = {"marker_color": color(name), "name": name, "legendgroup": name, "showlegend": row == 1}
            hover = f"context %{{x}}: %{{y:.3f}}<extra>{name}</extra>"
            figure.add_bar(x=[str(c) for c in order], y=y[order].numpy(), hovertemplate=hover, row=row, col=1, **look)
    figure.update_xaxes(type="category")
    figure.update_xaxes(title_text="context, by what the reference solved", row=2)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03], row=1)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "y": 1.1, "yanchor": "bottom", "x": 1, "xanchor": "right"}
    return styled(figure, 520, "Context by context", barmode="group", bargap=0.3, legend=legend)


def collapse_lab(path: bandits.Flow, name: str, k: int, context: int) -> go.Figure:
    """Pass@1 and Pass@k over time for trained and held-out contexts, and the answers of one held-out context.

    Args:
        path: what to show (one strength).
        name: divergence, or "grpo" where there is no penalty.
        k: of Pass@k.
        context: whose answers are stacked.
    """
    titles = ["trained contexts", "held-out contexts", f"held-out context {context},<br>wrong answers in sand"]
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.09)
    held = ~path.bandit.trained
    for col, contexts in ((1, ~held), (2, held)):
        _pass_lines(figure, name, path, (1, k), contexts, row=1, col=col)
    _mass_layers(figure, path, context, row=1, col=3)
    for trace in figure.data:
        trace.showlegend = trace.showlegend is not False and trace.stackgroup is None
    one, many = ([path.pass_at_k(j, held)[i].item() for i in (0, -1)] for j in (1, k))
    title = f"Held out: Pass@1 {one[0]:.1%} → {one[1]:.1%}, Pass@{k} {many[0]:.1%} → <b>{many[1]:.1%}</b>"
    told = "strength 0: plain GRPO, whatever divergence and penalty say" if name == "grpo" else f"penalty: {name}"
    title += f"<br><span style='font-size:14px'>{told}</span>"
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03])
    figure.update_yaxes(title_text="Pass@k, exact", col=1)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_annotations(font_size=13)
    return styled(figure, 450, title, margin_b=100, legend=BELOW, uirevision="keep").update_layout(margin_t=110)
