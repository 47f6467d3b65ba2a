"""Figures of divergences: generators, policies over targets, the simplex, what a penalty keeps."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from dphrl_lite import divergences
from dphrl_lite.divergences import Divergence
from dphrl_lite.figures.style import BELOW, DASHES, FAINT, INK, color, styled
from dphrl_lite.lab import toys


def generators(names: Sequence[str]) -> go.Figure:
    """f(u) and its restoring force u f'(u) for several divergences side by side, against u on a logarithmic axis."""
    figure = make_subplots(cols=2, subplot_titles=["f(u): the price of a ratio u", "u f′(u): the pull on log u"])
    log_u = torch.linspace(-7, 1.62, 240, dtype=torch.float64)
    for i, name in enumerate(names):
        divergence = divergences.get(name)
        for col, values in ((1, divergence.f(log_u)), (2, divergence.force(log_u))):
            line = {"color": color(name), "width": 3, "dash": DASHES[i % len(DASHES)]}
            look = {"name": divergence.label, "legendgroup": name, "showlegend": col == 1, "line": line}
            figure.add_scatter(x=log_u.exp().numpy(), y=values.numpy(), row=1, col=col, **look)
    figure.update_xaxes(type="log", title_text="u = policy / reference", tickvals=[0.001, 0.01, 0.1, 1, 5])
    figure.update_yaxes(range=[-0.2, 5], title_text="nats", col=1)
    figure.update_yaxes(range=[-2, 3], zeroline=True, col=2)
    figure.update_annotations(font_size=14)
    return styled(figure, 470, margin_b=110, legend=BELOW)


def divergence_explorer(
    divergence: Divergence, fit: toys.Fit, mean: float, width: float, target: toys.Modes
) -> go.Figure:
    """Generator, restoring force, and a Gaussian policy over a target with several modes, with the best fit.

    Args:
        divergence: what to show.
        fit: its best fit to this target (`toys.best_fit`).
        mean, width: of the policy, a Gaussian.
        target: the reference.
    """
    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.4, 0.6],
        specs=[[{}, {"rowspan": 2}], [{}, None]],
        horizontal_spacing=0.11,
        vertical_spacing=0.2,
        subplot_titles=["f(u): the price of a ratio u", "Policy over target", "u f′(u): the pull on log u"],
    )
    _generator_panels(figure, divergence)
    policy = toys.gaussian(mean, width)
    _density_panel(figure, divergence, target, policy, fit)
    value = divergence.exact(policy, target.density()).item()
    shares = " / ".join(f"{share:.0%}" for share in target.shares(policy))
    title = f"<b>{divergence.label}</b>: D(policy, target) = {_nats(value)} nats · policy by mode: {shares}<br>"
    best = f"best fit: {fit.value:.3f} nats at mean {round(fit.mean, 2) + 0.0:g}, width {fit.width:.2f}"
    title += f"<span style='font-size:14px'>{best}; it {coverage(fit, target)}</span>"
    figure.update_annotations(font_size=14)
    return styled(figure, 540, title, margin_b=110, legend=BELOW, uirevision="keep").update_layout(margin_t=104)


def coverage(fit: toys.Fit, target: toys.Modes) -> str:
    """In words, how many modes of the target a fitted Gaussian covers: gives at least half of the mass they have."""
    held = (target.shares(toys.gaussian(fit.mean, fit.width)) >= target.weights / 2).tolist()
    if all(held):
        return f"covers {'both' if target.count == 2 else f'all {target.count}'} modes"
    if sum(held) > 1:
        return f"covers {sum(held)} of {target.count} modes"
    names = ["left", "right"] if target.count == 2 else ["left", "middle", "right"]
    return f"seeks the {names[held.index(True)]} mode" if target.count <= 3 else "seeks one mode"


def _nats(value: float) -> str:
    return "∞" if np.isinf(value) else f"{value:.3f}" if value < 1e4 else f"{value:.1e}"


def _generator_panels(figure: go.Figure, divergence: Divergence):
    log_u = torch.linspace(-5, 1.6, 80, dtype=torch.float64)
    u = log_u.exp().numpy()
    backdrop = [divergences.get(name) for name in ("forward_kl", "reverse_kl", "js")]
    for row, curve in ((1, lambda d: d.f(log_u)), (2, lambda d: d.force(log_u))):
        place = {"row": row, "col": 1}
        for other in backdrop:
            line, values = {"color": FAINT, "width": 1.5}, curve(other).numpy()
            look = {"line": line, "showlegend": False, "hovertemplate": f"{other.label}<extra></extra>"}
            figure.add_scatter(x=u, y=values, **look, **place)
            if other.name != divergence.name and (row == 1 or other.name == "forward_kl"):
                below = 0.25 if other.name == "js" else 0  # in the free band under its curve
                font = {"size": 11, "color": "#707070"}
                label = {
                    "mode": "text",
                    "text": [other.label],
                    "textfont": font,
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
                label["textposition"] = "bottom right" if below else "top right"
                figure.add_scatter(x=u[3:4], y=values[3:4] - below, **label, **place)
        line = {"color": color(divergence.name.split("(")[0]), "width": 4}
        hover = "u = %{x:.3g}<br>%{y:.3f}<extra></extra>"
        name = divergence.label
        values = curve(divergence).numpy()
        figure.add_scatter(x=u, y=values, line=line, name=name, showlegend=False, hovertemplate=hover, **place)
        figure.add_vline(x=1, line={"color": FAINT, "dash": "dot", "width": 1}, **place)
    ticks = {"tickvals": [0.01, 0.1, 1, 5], "ticktext": ["0.01", "0.1", "1", "5"]}
    figure.update_xaxes(type="log", range=[-2.2, 0.72], col=1, **ticks)
    figure.update_xaxes(title_text="u = policy / reference", row=2, col=1)
    figure.update_yaxes(range=[-0.15, 4.2], title_text="nats", row=1, col=1)
    figure.update_yaxes(range=[-2, 3], title_text="df / d log u", zeroline=True, row=2, col=1)


def _density_panel(figure: go.Figure, divergence: Divergence, target: toys.Modes, policy, fit: toys.Fit):
    x, step = toys.GRID.numpy(), (toys.GRID[1] - toys.GRID[0]).item()
    best = toys.gaussian(fit.mean, fit.width)
    hue = color(divergence.name.split("(")[0])
    curves = [
        ("target = reference q", target.density(), {"color": INK, "width": 2}, "rgba(0,0,0,0.10)"),
        ("policy p (yours)", policy, {"color": "#D55E00", "width": 4}, None),
        (f"best fit under {divergence.label}", best, {"color": hue, "width": 3, "dash": "dash"}, None),
    ]
    for name, p, line, fill in curves:
        y = (p / step).numpy()
        look = {"fill": "tozeroy", "fillcolor": fill} if fill else {}
        hover = "x = %{x:.2f}: %{y:.3f}<extra></extra>"
        figure.add_scatter(x=x, y=y, name=name, line=line, hovertemplate=hover, row=1, col=2, **look)
    figure.update_xaxes(title_text="x", range=[-8, 8], row=1, col=2)
    figure.update_yaxes(title_text="density", range=[0, 1.05], row=1, col=2)


def gallery(names: Sequence[str], target: toys.Modes) -> go.Figure:
    """The best Gaussian under each named divergence over one target, a panel each: covering against seeking at a glance."""
    fits = [toys.best_fit(name, target=target) for name in names]
    words = [f"{divergences.get(n).label}:<br>{coverage(f, target)}" for n, f in zip(names, fits, strict=True)]
    figure = make_subplots(cols=len(names), subplot_titles=words, shared_yaxes=True, horizontal_spacing=0.02)
    x, step = toys.GRID.numpy(), (toys.GRID[1] - toys.GRID[0]).item()
    density = (target.density() / step).numpy()
    grey = {"fill": "tozeroy", "fillcolor": "rgba(0,0,0,0.10)", "line": {"color": INK, "width": 1.5}}
    for col, (name, fit) in enumerate(zip(names, fits, strict=True), start=1):
        best = (toys.gaussian(fit.mean, fit.width) / step).numpy()
        figure.add_scatter(x=x, y=density, name="target", showlegend=False, row=1, col=col, **grey)
        line = {"color": color(name), "width": 3.5}
        figure.add_scatter(x=x, y=best, name=divergences.get(name).label, showlegend=False, line=line, row=1, col=col)
    figure.update_xaxes(title_text="x", range=[-6, 6])
    figure.update_yaxes(title_text="density", col=1)
    figure.update_annotations(font_size=12)
    return styled(figure, 340)


def simplex(paths: Mapping[str, torch.Tensor], reference: torch.Tensor) -> go.Figure:
    """Gradient flows of penalties on the triangle of three answers; dots stand at equal times.

    Args:
        paths: per divergence `toys.simplex_flow` `[T, starts, 3]`.
        reference: q `[3]`.
    """
    figure = go.Figure()
    for name, path in paths.items():
        for start in range(path.shape[1]):
            a, b, c = path[:, start].T.numpy()
            look = {"line": {"color": color(name), "width": 2.5}, "marker": {"size": 5}, "mode": "lines+markers"}
            label = divergences.get(name).label
            look |= {"name": label, "legendgroup": name, "showlegend": start == 0}
            figure.add_scatterternary(a=a, b=b, c=c, **look)
    a, b, c = reference[:, None].numpy()
    star = {"symbol": "star", "size": 16, "color": INK}
    figure.add_scatterternary(a=a, b=b, c=c, mode="markers", marker=star, name="reference")
    axes = {f"{axis}axis": {"title": {"text": f"answer {axis.upper()}"}, "ticks": "outside"} for axis in "abc"}
    title = "A penalty alone, from three policies that have nearly forgotten two answers"
    figure.update_layout(ternary={"sum": 1, **axes})
    return styled(figure, 520, title, uirevision="keep")


@cache
def _alpha(alpha: float) -> Divergence:
    return divergences.get("alpha", alpha=alpha)


def mass_map(names: Sequence[str], weight: float) -> go.Figure:
    """What is left of an answer without reward, when reward pulls away from it and a penalty holds it.

    Two answers; the reference gives the one without reward the share `weight`. Left: its mass at the optimum against the
    penalty's strength, at equal curvature. Right: the same for alpha from 0 (reverse KL) to 1 (forward KL).
    """
    reference, reward = torch.tensor([weight, 1 - weight]).double(), torch.tensor([0.0, 1.0]).double()
    strengths = torch.logspace(-1.3, 1, 31, dtype=torch.float64)
    left = "at equal curvature f″(1)"
    figure = make_subplots(cols=2, subplot_titles=[left, "alpha between the KLs"], horizontal_spacing=0.12)
    for i, name in enumerate(names):
        divergence = divergences.get(name)
        mass = toys.optimum(divergence, reference, reward, strengths / divergence.curvature)[:, 0]
        line = {"color": color(name), "width": 3, "dash": DASHES[i % len(DASHES)]}
        figure.add_scatter(
            x=strengths.numpy(), y=(mass / weight).numpy(), name=divergence.label, line=line, row=1, col=1
        )
    alphas = [i / 8 for i in range(9)]
    rows = [toys.optimum(_alpha(a), reference, reward, strengths)[:, 0] for a in alphas]
    bar = {"title": {"text": "share kept"}, "tickformat": ".0%"}
    shares = (torch.stack(rows) / weight).numpy()
    figure.add_heatmap(x=strengths.numpy(), y=alphas, z=shares, colorscale="Cividis", colorbar=bar, row=1, col=2)
    figure.update_xaxes(type="log", title_text="strength η f″(1)", tickvals=[0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    figure.update_yaxes(title_text="share kept of its start", tickformat=".0%", range=[0, 1], row=1, col=1)
    figure.update_yaxes(title_text="alpha", row=1, col=2)
    title = f"How much of an answer without reward survives (it starts with {weight:.0%})"
    return styled(figure, 510, title, margin_b=110, legend=BELOW, uirevision="keep")
