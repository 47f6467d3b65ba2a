"""Figures of pre-sampling, training and what came of it: buckets, logs, Pass@k, forgotten problems, solutions."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite import passk
from dphrl_lite.errors import lookup
from dphrl_lite.figures.style import BELOW, BUCKETS, DASHES, INK, color, colors, faded, method_of, styled
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


_LABELS = {
    "reward": "reward: share correct",
    "entropy": "entropy per token (nats)",
    "penalty": "penalty (nats per token)",
    "log_u_mean": "mean log u on rehearsal (nats)",
    "loss_exploration": "the loss L_exp",
    "gradient_norm": "gradient norm, before clipping",
    "clipped_low": "tokens stopped by the lower clip",
    "clipped_high": "tokens stopped by the upper clip",
    "zero_spread": "groups all right or all wrong",
}
_PANELS = ("reward", "entropy", "penalty", "log_u_mean")


def training_dashboard(
    logs: Mapping[str, pd.DataFrame | Sequence[dict]], metrics: Sequence[str] = _PANELS, title: str = "Training"
) -> go.Figure:
    """Metrics over training steps, one panel each, one colour per run; further runs of one method are dashed, on its broad line.

    Args:
        logs: per run a log (`Run.log`, or `training.read_log(folder)`); a run named as a method gets its colour.
        metrics: columns of the log (see `training.METRICS`).
        title: what the runs are.
    """
    rows, labels = -(-len(metrics) // 2), [_LABELS.get(metric, metric) for metric in metrics]
    figure = make_subplots(rows=rows, cols=2, subplot_titles=labels, vertical_spacing=0.34 / rows)
    places = [{"row": i // 2 + 1, "col": i % 2 + 1} for i in range(len(metrics))]
    missing, dashes = dict(zip(metrics, places, strict=True)), _dashes(logs)
    hues = [color(name) for name in logs]
    for name, log in logs.items():
        table = pd.DataFrame(log)
        hue, dash = color(name), dashes[name]
        broad = dash == DASHES[0] and hues.count(hue) > 1  # two that are equal are both seen
        for metric, place in zip(metrics, places, strict=True):
            if metric not in table or table[metric].isna().all():
                continue
            missing.pop(metric, None)
            look = {"name": name, "legendgroup": name, "showlegend": metric == metrics[0]}
            look |= {"mode": "lines", "line": {"color": hue, "width": 6 if broad else 2.5, "dash": dash}}
            look["opacity"] = 0.45 if broad else 1
            look["hovertemplate"] = f"step %{{x}}: %{{y:.4f}}<extra>{name}</extra>"
            figure.add_scatter(x=table["step"], y=pd.to_numeric(table[metric]), **look, **place)
    for metric, place in missing.items():
        words = "no run with a penalty yet" if metric in ("penalty", "log_u_mean") else "nothing logged yet"
        figure.add_scatter(x=[0], y=[0], mode="text", text=[words], showlegend=False, hoverinfo="skip", **place)
        figure.update_xaxes(showticklabels=False, **place).update_yaxes(showticklabels=False, **place)
    figure.update_xaxes(title_text="training step", row=rows)
    figure.update_yaxes(exponentformat="e")  # not 400µ
    figure.update_annotations(font_size=14)
    return styled(figure, 124 + 220 * rows, title, margin_b=100, legend=BELOW, uirevision="keep")


def _dashes(names: Iterable[str]) -> dict[str, str]:
    """Solid lines, and other dashes for names that share an earlier one's colour; `grpo-exp`, near GRPO in it, is dashed."""
    seen: dict[str, list[str]] = {}
    for name in names:
        seen.setdefault(color(name), []).append(name)
    places = {name: i + (method_of(name) == "grpo-exp") for same in seen.values() for i, name in enumerate(same)}
    return {name: DASHES[i % len(DASHES)] for name, i in places.items()}


def pass_at_k_curves(
    outcomes: Mapping[str, Outcomes],
    ks: Sequence[int],
    confidence: float = 0.95,
    what: str = "",
    crossing: str | None = None,
) -> go.Figure:
    """Pass@k against k (logarithmic) with bands for the choice of problems, one colour per model.

    Args:
        outcomes: per model its `Outcomes`; the name "base" is black, methods have their colours.
        ks: where to evaluate.
        confidence: coverage of the bands.
        what: the problems, for the title.
        crossing: a model; where another's curve first falls below its, a cross stands.
    """
    figure, tables = go.Figure(), {name: out.pass_at_k(ks, confidence) for name, out in outcomes.items()}
    hues, dashes = colors(outcomes), _dashes(tables)
    for name, table in tables.items():  # bands first, so that none lies over a line
        band = {"mode": "lines", "line": {"width": 0}, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        figure.add_scatter(x=table["k"], y=table["high"], **band)
        figure.add_scatter(x=table["k"], y=table["low"], fill="tonexty", fillcolor=faded(hues[name]), **band)
    for name, table in tables.items():
        look = {"mode": "lines+markers", "marker": {"size": 8}}
        look["line"] = {"color": hues[name], "width": 3, "dash": dashes[name]}
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
        look["name"] = f"{name}, below from k = {k}"
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
    for part, sign, hue in (("forget", -1, "#D55E00"), ("gain", 1, "#1398F8")):
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


def solution_bars(counts: pd.DataFrame, prompt: str, base: str = "base") -> go.Figure:
    """How often each model finds each different right solution of one problem; the legend counts the solutions that died.

    Which have died `passk.died` says. Of many solutions those that come first are drawn, and all are counted.

    Args:
        counts: from `experiments.solution_counts`: rows solutions, columns models, `base` among them.
        prompt: the problem, for the title.
        base: the model that the others are compared with.
    """
    figure, died, drawn = go.Figure(), passk.died(counts, base), counts.head(DRAWN)
    for name in counts:
        dead = ": {died} of {of} died".format(**died.loc[name]) if name != base else ""
        look = {"name": name + dead, "marker_color": color(name), "text": drawn[name], "textangle": 0}
        figure.add_bar(x=drawn.index, y=drawn[name], textposition="outside", cliponaxis=False, **look)
    more = f", the first {DRAWN} of {len(counts)}" if len(counts) > DRAWN else ""
    figure.update_xaxes(title_text=f"right answers{more}", type="category")
    figure.update_yaxes(title_text="samples that gave it")
    legend = BELOW | {"traceorder": "normal"}
    return styled(figure, 540, f"Right answers to: {prompt}", barmode="group", margin_b=150, legend=legend)


DRAWN = 16  # more bars cannot be read
