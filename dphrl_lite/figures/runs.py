"""Figures of pre-sampling, training and what came of it: buckets, logs, Pass@k, forgotten problems, solutions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite import passk
from dphrl_lite.errors import lookup
from dphrl_lite.figures.style import BUCKETS, INK, color, colors, faded, styled
from dphrl_lite.passk import Outcomes


def partition_histogram(counts: pd.DataFrame, parts) -> go.Figure:
    """Histogram of correct-of-K, coloured by the bucket a problem falls into, with the threshold; the title counts the buffer.

    Args:
        counts: from `presampling.counts`: problem_id, n, c.
        parts: the `presampling.Partition` of the same problems; dropped problems are hatched.
    """
    threshold, correct, most = parts.threshold, counts.set_index("problem_id")["c"], counts["n"].max()
    buckets = {"unsolved": parts.unsolved, "D_exp": parts.exploration, "D_pef": parts.perfect}
    figure = go.Figure()
    for name, members in buckets.items():
        height = np.bincount(correct[list(members)], minlength=most + 1)
        hover = "%{x} correct: %{y} problems<extra>" + name + "</extra>"
        dropped = name == "unsolved" and not parts.keep_unsolved
        look = {"color": BUCKETS[name], "pattern": {"shape": "/" if dropped else "", "fgopacity": 1}}
        label = f"{name}{', dropped' * dropped}: {len(members)} problems"
        figure.add_bar(x=np.arange(most + 1), y=height, name=label, marker=look, hovertemplate=hover)
    figure.add_vline(x=threshold - 0.5, line={"color": INK, "dash": "dash", "width": 2}, opacity=1)
    figure.add_annotation(
        x=threshold - 0.6, y=1.06, yref="paper", text=f"threshold {threshold} →", showarrow=False, xanchor="right"
    )
    figure.update_xaxes(title_text=f"correct of K = {most} reference samples", dtick=1, range=[-0.6, most + 0.6])
    figure.update_yaxes(title_text="problems")
    stored = parts.rehearsal
    title = f"{len(counts)} problems · {len(stored)} reference answers to rehearse"
    if "token_ids" in stored:
        title += f", {sum(map(len, stored['token_ids']))} tokens, to {stored['problem_id'].nunique()} problems"
    return styled(figure, 420, title, barmode="stack", bargap=0.08, legend={"traceorder": "normal"}, uirevision="keep")


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
    empty = dict.fromkeys(_PANELS, True)
    for name, log in logs.items():
        table = pd.DataFrame(log)
        for i, metric in enumerate(_PANELS):
            if metric not in table or table[metric].isna().all():
                continue
            empty[metric], look = False, {"name": name, "legendgroup": name, "showlegend": i == 0}
            look |= {"line": {"color": color(name), "width": 2.5}, "row": i // 2 + 1, "col": i % 2 + 1}
            look["hovertemplate"] = f"step %{{x}}: %{{y:.4f}}<extra>{name}</extra>"
            figure.add_scatter(x=table["step"], y=pd.to_numeric(table[metric]), **look)
    for i, metric in enumerate(_PANELS):
        if empty[metric]:
            words = "nothing logged yet" if i < 2 else "no run with a penalty yet"
            place = {"row": i // 2 + 1, "col": i % 2 + 1}
            figure.add_scatter(x=[0], y=[0], mode="text", text=[words], showlegend=False, hoverinfo="skip", **place)
    figure.update_xaxes(title_text="training step", row=2)
    figure.update_annotations(font_size=14)
    return styled(
        figure, 520, "Training", legend={"orientation": "h", "y": 1.19, "x": 1, "xanchor": "right"}, uirevision="keep"
    )


def pass_at_k_curves(
    outcomes: Mapping[str, Outcomes],
    ks: Sequence[int],
    confidence: float = 0.95,
    what: str = "",
    crossing: str | None = None,
) -> go.Figure:
    """Pass@k against k (logarithmic) with bootstrap bands over problems, one colour per model.

    Args:
        outcomes: per model its `Outcomes`; the name "base" is black, methods have their colours.
        ks: where to evaluate.
        confidence: coverage of the bands.
        what: the problems, for the title.
        crossing: a model; where another's curve first falls below its, a cross stands.
    """
    figure, tables = go.Figure(), {name: out.pass_at_k(ks, confidence) for name, out in outcomes.items()}
    hues = colors(outcomes)
    for name, table in tables.items():  # bands first, so that none lies over a line
        band = {"mode": "lines", "line": {"width": 0}, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=table["k"], y=table["high"], **band)
        figure.add_scatter(x=table["k"], y=table["low"], fill="tonexty", fillcolor=faded(hues[name]), **band)
    for name, table in tables.items():
        look = {"mode": "lines+markers", "marker": {"size": 8}, "line": {"color": hues[name], "width": 3}}
        look["hovertemplate"] = f"Pass@%{{x}} = %{{y:.3f}}<extra>{name}</extra>"
        figure.add_scatter(x=table["k"], y=table["mean"], name=name, legendgroup=name, **look)
    for name, out in outcomes.items() if crossing else ():
        _add_crossing(figure, name, passk.crossing(outcomes[crossing], out), out, hues[name])
    words = list(map(str, ks))
    figure.update_xaxes(title_text="k: answers one may submit", type="log", tickvals=list(ks), ticktext=words)
    lowest = min(table["low"].min() for table in tables.values())
    figure.update_yaxes(title_text="Pass@k", tickformat=".0%", range=[min(lowest, 0.8) - 0.03, 1.02])
    problems = len(next(iter(outcomes.values())))
    title = f"Pass@k{f' on {what}' if what else ''}: {problems} problems, {confidence:.0%} bands"
    return styled(figure, 400, title, legend={"x": 0.98, "y": 0.04, "xanchor": "right"}, uirevision="keep")


def _add_crossing(figure: go.Figure, name: str, k: int | None, out: Outcomes, hue: str):
    if k is not None:
        marker = {"symbol": "x", "size": 13, "color": hue, "line": {"color": "white", "width": 1.5}}
        look = {"mode": "markers", "marker": marker, "legendgroup": name, "showlegend": False}
        look["hovertemplate"] = f"crosses at k = %{{x}}<extra>{name}</extra>"
        figure.add_scatter(x=[k], y=[passk.pass_at_k(out.n, out.c, k).mean()], **look)


def keep_forget_gain(outcomes: Mapping[str, Outcomes], k: int, base: str = "base") -> go.Figure:
    """What training changed, against `base`: problems forgotten to the left, gained to the right, kept and never in words.

    Raises:
        ValueError: `outcomes` does not hold `base`, or a model has other problems.
    """
    untouched = lookup(outcomes, "model", base)
    changes = {name: passk.compare(untouched, out, k) for name, out in outcomes.items() if name != base}
    shares = {name: change / change.sum() for name, change in changes.items()}
    names = [f"{name}<br>keeps {s['keep']:.1%}, never {s['never']:.1%}" for name, s in shares.items()]
    figure = go.Figure()
    for part, sign, hue in (("forget", -1, "#D55E00"), ("gain", 1, "#56B4E9")):
        values = [share[part] for share in shares.values()]
        words = [f"{value:.1%}" for value in values]
        look = {"marker_color": hue, "text": words, "textposition": "outside", "cliponaxis": False}
        figure.add_bar(y=names, x=[sign * value for value in values], name=part, orientation="h", **look)
    most = max([0.02, *(abs(x) for bar in figure.data for x in bar.x)])
    figure.update_xaxes(title_text="expected share of problems", tickformat=".0%", range=[-1.25 * most, 1.25 * most])
    figure.add_vline(x=0, line={"color": INK, "width": 1}, opacity=1)
    title = f"Forgotten and gained with k = {k} answers each"
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure = styled(figure, 190 + 52 * len(changes), title, barmode="overlay", legend=legend)
    return figure.update_layout(margin_l=200)


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
    return styled(figure, 420, f"Solutions of: {prompt}", barmode="group")
