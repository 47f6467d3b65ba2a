"""Data in, `plotly` figures out: pure functions, one colour per method and divergence throughout the kit.

No widgets here and no training; arithmetic beyond counting and axis limits belongs to `toys`, `passk` or `presampling`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import torch
from plotly.subplots import make_subplots

from dphrl_lite import bandits, divergences, passk, toys
from dphrl_lite.divergences import Divergence
from dphrl_lite.passk import Outcomes

if "notebook" in pio.renderers.default:
    pio.renderers.default = "plotly_mimetype"  # JupyterLab holds plotly: send a figure's data, not 4.5 MB of JavaScript

# Okabe and Ito's palette: distinguishable with the common colour-vision deficiencies, and in print.
COLORS = {
    "base": "#000000",
    "grpo": "#D55E00",
    "grpo-exp": "#E69F00",
    "dapo": "#B3A000",
    "rkl": "#CC79A7",
    "rkl-k3": "#8C4A73",
    "sft": "#8A8A8A",
    "dph-f": "#009E73",
    "dph-js": "#0072B2",
    "dph-alpha": "#56B4E9",
}
_DIVERGENCE_COLORS = {"forward_kl": "dph-f", "reverse_kl": "rkl", "js": "dph-js", "alpha": "dph-alpha"}
_SPARE = ("#6A3D9A", "#7F5B2E", "#2F4B7C", "#A05195", "#665191", "#4D9221")
_FAINT, _INK = "#C4C4C4", "#222222"
BUCKETS = {"D_pef": "#009E73", "D_exp": "#E69F00", "unsolved": "#999999"}


def color(name: str) -> str:
    """The colour of a method or divergence; names the kit does not know get one of their own, always the same."""
    if name in _DIVERGENCE_COLORS or name in COLORS:
        return COLORS[_DIVERGENCE_COLORS.get(name, name)]
    return _SPARE[sum(map(ord, name)) % len(_SPARE)]


def _styled(figure: go.Figure, height: int, title: str = "", **layout) -> go.Figure:
    figure.update_layout(
        template="simple_white",
        height=height,
        title={"text": title, "x": 0, "xanchor": "left", "xref": "paper", "font": {"size": 17}},
        font={"size": 14, "color": _INK},
        margin={"l": 70, "r": 24, "t": 90, "b": 56},
        hoverlabel={"font": {"size": 13}},
        **layout,
    )
    return figure


# ---- divergences -----------------------------------------------------------------------------------------------------


def divergence_explorer(
    divergence: Divergence, fit: toys.Fit, mean: float, width: float, distance: float, weight: float
) -> go.Figure:
    """Generator, restoring force, and a Gaussian policy over a two-mode target, with the best fit under `divergence`.

    Args:
        divergence: what to show.
        fit: its best fit to this target (`toys.best_fit`).
        mean, width: of the policy, a Gaussian.
        distance, weight: of the target: distance of the two modes, share of mass in the left one.
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
    target, policy = toys.two_modes(distance, weight), toys.gaussian(mean, width)
    _density_panel(figure, divergence, target, policy, fit)
    value = divergence.exact(policy, target).item()
    spread = f"left mode: target {weight:.0%}, policy {toys.mass_left(policy):.0%}"
    best = f"best fit: {fit.value:.3f} nats at mean {round(fit.mean, 2) + 0.0:g}, width {fit.width:.2f}; it {coverage(fit)}"
    title = f"<b>{divergence.label}</b>: D(policy, target) = {_nats(value)} nats · {spread}<br>"
    title += f"<span style='font-size:14px'>{best}</span>"
    figure.update_annotations(font_size=14)
    legend = {"x": 0.99, "y": 0.98, "xanchor": "right", "bgcolor": "rgba(255,255,255,0.8)"}
    return _styled(figure, 550, title, legend=legend, uirevision="keep").update_layout(margin_t=118)


def coverage(fit: toys.Fit) -> str:
    """In words, whether a fitted Gaussian covers both modes or seeks one."""
    left = toys.mass_left(toys.gaussian(fit.mean, fit.width))
    if 0.1 < left < 0.9:
        return "covers both modes"
    return f"seeks the {'left' if left >= 0.9 else 'right'} mode"


def _nats(value: float) -> str:
    return "∞" if np.isinf(value) else f"{value:.3f}" if value < 1e4 else f"{value:.1e}"


def _generator_panels(figure: go.Figure, divergence: Divergence):
    log_u = torch.linspace(-5, 1.6, 200, dtype=torch.float64)
    u = log_u.exp().numpy()
    backdrop = [divergences.get(name) for name in ("forward_kl", "reverse_kl", "js")]
    for row, curve in ((1, lambda d: d.f(log_u)), (2, lambda d: d.force(log_u))):
        place = {"row": row, "col": 1}
        for other in backdrop:
            line = {"color": _FAINT, "width": 1.5}
            look = {"line": line, "showlegend": False, "hovertemplate": f"{other.label}<extra></extra>"}
            if row == 1 and other.name != divergence.name:
                look |= {
                    "mode": "lines+text",
                    "textposition": "bottom right" if other.name == "js" else "top right",
                    "textfont": {"size": 11, "color": "#777777"},
                }
                look["text"] = ["" if i != 8 else other.label for i in range(len(u))]
            figure.add_scatter(x=u, y=curve(other).numpy(), **look, **place)
        line = {"color": color(divergence.name.split("(")[0]), "width": 4}
        hover = "u = %{x:.3g}<br>%{y:.3f}<extra></extra>"
        name = divergence.label
        values = curve(divergence).numpy()
        figure.add_scatter(x=u, y=values, line=line, name=name, showlegend=False, hovertemplate=hover, **place)
        figure.add_vline(x=1, line={"color": _FAINT, "dash": "dot", "width": 1}, **place)
    ticks = {"tickvals": [0.01, 0.1, 1, 5], "ticktext": ["0.01", "0.1", "1", "5"]}
    figure.update_xaxes(type="log", range=[-2.2, 0.72], col=1, **ticks)
    figure.update_xaxes(title_text="u = policy / reference", row=2, col=1)
    figure.update_yaxes(range=[-0.15, 4.2], title_text="nats", row=1, col=1)
    figure.update_yaxes(range=[-2, 3], title_text="nats", zeroline=True, row=2, col=1)


def _density_panel(figure: go.Figure, divergence: Divergence, target, policy, fit: toys.Fit):
    x, step = toys.GRID.numpy(), (toys.GRID[1] - toys.GRID[0]).item()
    best = toys.gaussian(fit.mean, fit.width)
    hue = color(divergence.name.split("(")[0])
    curves = [
        ("target = reference q", target, {"color": _INK, "width": 2}, "rgba(0,0,0,0.10)"),
        ("policy p (yours)", policy, {"color": "#D55E00", "width": 4}, None),
        (f"best fit under {divergence.label}", best, {"color": hue, "width": 3, "dash": "dash"}, None),
    ]
    for name, p, line, fill in curves:
        y = (p / step).numpy()
        look = {"fill": "tozeroy", "fillcolor": fill} if fill else {}
        hover = "x = %{x:.2f}: %{y:.3f}<extra></extra>"
        figure.add_scatter(x=x, y=y, name=name, line=line, hovertemplate=hover, row=1, col=2, **look)
    figure.update_xaxes(title_text="x", range=[-6, 6], row=1, col=2)
    figure.update_yaxes(title_text="density", range=[0, 0.75], row=1, col=2)


def gallery(names: Sequence[str], distance: float = 4.0, weight: float = 0.5) -> go.Figure:
    """The best Gaussian under each named divergence, all over one two-mode target: covering against seeking at a glance."""
    figure = go.Figure()
    x, step = toys.GRID.numpy(), (toys.GRID[1] - toys.GRID[0]).item()
    target = (toys.two_modes(distance, weight) / step).numpy()
    figure.add_scatter(
        x=x, y=target, name="target", fill="tozeroy", fillcolor="rgba(0,0,0,0.10)", line={"color": _INK, "width": 2}
    )
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    for i, name in enumerate(names):
        divergence, fit = divergences.get(name), toys.best_fit(name, 0.5, distance, weight)
        line = {"color": color(name), "width": 3, "dash": dashes[i % len(dashes)]}
        label = f"{divergence.label}: {coverage(fit)}"
        figure.add_scatter(x=x, y=(toys.gaussian(fit.mean, fit.width) / step).numpy(), name=label, line=line)
    figure.update_xaxes(title_text="x", range=[-6, 6])
    figure.update_yaxes(title_text="density")
    return _styled(figure, 420, "The Gaussian that each divergence likes best")


# ---- pre-sampling ----------------------------------------------------------------------------------------------------


def partition_histogram(counts: pd.DataFrame, parts) -> go.Figure:
    """Histogram of correct-of-K, coloured by the bucket a problem falls into.

    Args:
        counts: from `presampling.counts`: problem_id, n, c.
        parts: the `presampling.Partition` of the same problems.
    """
    threshold, correct, most = parts.threshold, counts.set_index("problem_id")["c"], counts["n"].max()
    buckets = {"unsolved": parts.unsolved, "D_exp": parts.exploration, "D_pef": parts.perfect}
    figure = go.Figure()
    for name, members in buckets.items():
        height = np.bincount(correct[list(members)], minlength=most + 1)
        hover = "%{x} correct: %{y} problems<extra>" + name + "</extra>"
        label = f"{name}: {len(members)} problems"
        figure.add_bar(x=np.arange(most + 1), y=height, name=label, marker_color=BUCKETS[name], hovertemplate=hover)
    figure.add_vline(x=threshold - 0.5, line={"color": _INK, "dash": "dash", "width": 2}, opacity=1)
    figure.add_annotation(
        x=threshold - 0.4, y=1.04, yref="paper", text=f"threshold {threshold} →", showarrow=False, xanchor="left"
    )
    figure.update_xaxes(title_text=f"correct of K = {most} reference samples", dtick=1)
    figure.update_yaxes(title_text="problems")
    stored = int(correct[list(parts.perfect)].sum())
    title = f"{len(counts)} problems · {stored} correct reference answers to rehearse"
    return _styled(figure, 420, title, barmode="stack", bargap=0.08, legend={"traceorder": "normal"}, uirevision="keep")


# ---- training --------------------------------------------------------------------------------------------------------

_PANELS = {
    "reward": "reward: share correct",
    "entropy": "entropy per token (nats)",
    "penalty": "penalty (nats per token)",
    "log_u_mean": "mean log u on rehearsal (nats)",
}


def training_dashboard(logs: Mapping[str, pd.DataFrame | Sequence[dict]]) -> go.Figure:
    """Reward, entropy, penalty and mean log u over training steps, one colour per run.

    Args:
        logs: per run a log (`Run.log`, or `training.read_log(folder)`); a run named as a method gets its colour.
    """
    figure = make_subplots(rows=2, cols=2, subplot_titles=list(_PANELS.values()), vertical_spacing=0.17)
    for name, log in logs.items():
        table = pd.DataFrame(log)
        for i, metric in enumerate(_PANELS):
            if metric not in table or table[metric].isna().all():
                continue
            line, place = {"color": color(name), "width": 2.5}, {"row": i // 2 + 1, "col": i % 2 + 1}
            values = pd.to_numeric(table[metric])
            hover = f"step %{{x}}: %{{y:.4f}}<extra>{name}</extra>"
            figure.add_scatter(
                x=table["step"],
                y=values,
                name=name,
                legendgroup=name,
                showlegend=i == 0,
                line=line,
                hovertemplate=hover,
                **place,
            )
    figure.update_xaxes(title_text="training step", row=2)
    figure.update_annotations(font_size=14)
    return _styled(
        figure, 520, "Training", legend={"orientation": "h", "y": 1.19, "x": 1, "xanchor": "right"}, uirevision="keep"
    )


# ---- Pass@k ----------------------------------------------------------------------------------------------------------


def pass_at_k_curves(outcomes: Mapping[str, Outcomes], ks: Sequence[int], confidence: float = 0.95) -> go.Figure:
    """Pass@k against k (logarithmic) with bootstrap bands over problems, one colour per model.

    Args:
        outcomes: per model its `Outcomes`; the name "base" is black, methods have their colours.
        ks: where to evaluate.
        confidence: coverage of the bands.
    """
    figure = go.Figure()
    for name, out in outcomes.items():
        table, hue = out.pass_at_k(ks, confidence), color(name)
        band = {"line": {"width": 0}, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=table["k"], y=table["high"], mode="lines", **band)
        figure.add_scatter(x=table["k"], y=table["low"], mode="lines", fill="tonexty", fillcolor=_faded(hue), **band)
        hover = f"Pass@%{{x}} = %{{y:.3f}}<extra>{name}</extra>"
        look = {"mode": "lines+markers", "marker": {"size": 8}, "line": {"color": hue, "width": 3}, "legendgroup": name}
        figure.add_scatter(x=table["k"], y=table["mean"], name=name, hovertemplate=hover, **look)
    figure.update_xaxes(
        title_text="k: answers one may submit", type="log", tickvals=list(ks), ticktext=list(map(str, ks))
    )
    figure.update_yaxes(title_text="Pass@k", tickformat=".0%")
    problems = len(next(iter(outcomes.values())))
    title = f"Pass@k over {problems} held-out problems, {confidence:.0%} bands"
    return _styled(figure, 460, title, legend={"x": 0.98, "y": 0.04, "xanchor": "right"}, uirevision="keep")


def _faded(hue: str) -> str:
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def keep_forget_gain(outcomes: Mapping[str, Outcomes], k: int, base: str = "base") -> go.Figure:
    """Stacked bars: the share of problems kept, gained, forgotten and never solved with k samples, against `base`."""
    hues = {"keep": "#009E73", "gain": "#56B4E9", "forget": "#D55E00", "never": "#C4C4C4"}
    trained = {name: passk.compare(outcomes[base], out, k) for name, out in outcomes.items() if name != base}
    figure = go.Figure()
    for part, hue in hues.items():
        shares = [table[part] / table.sum() for table in trained.values()]
        words = [f"{share:.1%}" if share >= 0.03 else "" for share in shares]
        figure.add_bar(
            y=list(trained),
            x=shares,
            name=part,
            orientation="h",
            marker_color=hue,
            text=words,
            textangle=0,
            insidetextanchor="middle",
        )
    figure.update_xaxes(title_text="expected share of problems", tickformat=".0%", range=[0, 1])
    title = f"What became of the problems, with k = {k} answers each"
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return _styled(figure, 190 + 60 * len(trained), title, barmode="stack", legend=legend)


def solution_bars(counts: pd.DataFrame, prompt: str) -> go.Figure:
    """How often each model finds each different right solution of one problem.

    Args:
        counts: from `experiments.solution_counts`: rows solutions, columns models.
        prompt: the problem, for the title.
    """
    figure = go.Figure()
    for name in counts:
        figure.add_bar(x=counts.index, y=counts[name], name=name, marker_color=color(name), text=counts[name])
    figure.update_traces(textposition="outside", cliponaxis=False)
    figure.update_xaxes(title_text="solution (up to the order of operands)", type="category")
    figure.update_yaxes(title_text="samples that found it")
    return _styled(figure, 420, f"Solutions of: {prompt}", barmode="group")


# ---- bandits ---------------------------------------------------------------------------------------------------------

_RIGHT = ("#00583F", "#009E73", "#56B4E9", "#0072B2", "#A6D4F2", "#7FC8A9")  # the largest, before or after
_OTHER_RIGHT, _WRONG = "#DCE9E4", "#F3E3DA"


def answer_mass(path: bandits.Flow, context: int, height: int = 400) -> go.Figure:
    """Stacked mass over time of the answers of one context: right ones from below, the wrong ones together on top."""
    figure = go.Figure()
    _mass_layers(figure, path, context)
    rich = bandits.effective_correct(path.probs[:, context], path.bandit.correct[context])
    title = f"Context {context}: from {rich[0]:.1f} to {rich[-1]:.1f} right answers in effect"
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(title_text="probability", tickformat=".0%", range=[0, 1])
    return _styled(figure, height, title, legend={"traceorder": "reversed"}, uirevision="keep")


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
    return _styled(figure, 430, "Mean over contexts", margin_b=100, legend=_BELOW)


_BELOW = {"orientation": "h", "yref": "container", "y": 0.02, "yanchor": "bottom", "x": 0}


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
    return _styled(figure, 400, title, margin_b=100, legend=_BELOW)


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
    return _styled(figure, 460, "The exchange, strength by strength", margin_b=100, legend=_BELOW)


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
    return _styled(figure, 520, "Context by context", barmode="group", bargap=0.3, legend=legend)


def collapse_lab(path: bandits.Flow, name: str, k: int, context: int) -> go.Figure:
    """Pass@1 and Pass@k over time for trained and held-out contexts, and the answers of one held-out context.

    Args:
        path: what to show (one strength).
        name: method or divergence, for the colour.
        k: of Pass@k.
        context: whose answers are stacked.
    """
    titles = ["trained contexts", "held-out contexts", f"answers of held-out context {context}"]
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.07)
    held = ~path.bandit.trained
    for col, contexts in ((1, ~held), (2, held)):
        _pass_lines(figure, name, path, (1, k), contexts, row=1, col=col)
    _mass_layers(figure, path, context, row=1, col=3)
    for trace in figure.data:
        trace.showlegend = trace.showlegend is not False and trace.stackgroup is None
    one, many = ([path.pass_at_k(j, held)[i].item() for i in (0, -1)] for j in (1, k))
    title = f"Held out: Pass@1 {one[0]:.1%} → {one[1]:.1%}, Pass@{k} {many[0]:.1%} → <b>{many[1]:.1%}</b>"
    figure.update_xaxes(title_text="time")
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03])
    figure.update_annotations(font_size=14)
    return _styled(figure, 430, title, margin_b=100, legend=_BELOW, uirevision="keep")
