"""Figures of what an evaluation says: errors of estimators, flows of problems, Cover@tau, diversity, the front.

Pass@k curves and forgotten against gained problems of several models: `figures.runs`.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite.errors import lookup
from dphrl_lite.figures.style import BELOW, COLORS, DASHES, FAINT, INK, color, colors, faded, ink, method_of, styled
from dphrl_lite.passk import Outcomes

_ESTIMATORS = {"unbiased": ("#0072B2", "solid"), "with replacement": ("#D55E00", "dash"), "first k": ("#6D7B81", "dot")}


def estimator_errors(errors: pd.DataFrame, n: int) -> go.Figure:
    """Bias and standard deviation of each estimator of Pass@k against k. `errors`: of `lab.guessing.estimator_errors`, at `n`."""
    panels = ["bias: expected minus true", "standard deviation of the mean"]
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=panels)
    for name, part in errors.groupby("estimator", sort=False):
        hue, dash = _ESTIMATORS[name]
        for col, column in enumerate(("bias", "std"), 1):
            look = {"name": name, "legendgroup": name, "showlegend": col == 1}
            look |= {"line": {"color": hue, "dash": dash, "width": 3}, "mode": "lines"}
            hover = "k = %{x}: %{y:.2%}<extra>" + name + "</extra>"
            figure.add_scatter(x=part["k"], y=part[column], hovertemplate=hover, row=1, col=col, **look)
    plug_in = errors[errors["estimator"] == "with replacement"].iloc[-1]
    figure.update_xaxes(title_text="k", rangemode="tozero")
    figure.update_yaxes(tickformat="~%", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(tickformat=".1%", rangemode="tozero", row=1, col=2)
    figure.update_annotations(font_size=14)
    title = f"{n} answers each: at k = {plug_in['k']} sampling with replacement is off by "
    title += f"<b>{100 * plug_in['bias']:+.1f} points</b>"
    return styled(figure, 420, title, margin_b=100, legend=BELOW, uirevision="keep")


_PARTS = {"keep": ("#009E73", 0, 2), "forget": ("#D55E00", 0, 3), "gain": ("#1398F8", 1, 2), "never": ("#6D7B81", 1, 3)}


def solved_flow(change: pd.Series, k: int, base: str = "base", trained: str = "trained") -> go.Figure:
    """Problems flow from solved or not before training to solved or not after it.

    Args:
        change: from `passk.compare` with this `k`.
        k: answers that each model has.
        base, trained: what the two models are called.
    """
    whole = change.sum()
    sums = [change["keep"] + change["forget"], change["gain"] + change["never"]]
    sums += [change["keep"] + change["gain"], change["forget"] + change["never"]]
    sides = [f"{who}: {what}" for who in (base, trained) for what in ("solved", "not solved")]
    words = [f"{side}, {count:.1f}" for side, count in zip(sides, sums, strict=True)]
    high = np.clip(
        [sums[0] / whole / 2, 1 - sums[1] / whole / 2, sums[2] / whole / 2, 1 - sums[3] / whole / 2], 0.01, 0.99
    )
    link = {
        "source": [look[1] for look in _PARTS.values()],
        "target": [look[2] for look in _PARTS.values()],
        # plotly drops a node without a stream, and misplaces the others
        "value": [max(change[part], 1e-6 * whole) for part in _PARTS],
        "label": list(_PARTS),
        "color": [faded(look[0], 0.5) for look in _PARTS.values()],
        "hovertemplate": "%{label}: %{value:.1f} problems<extra></extra>",
    }
    node = {"label": words, "color": [INK, FAINT, color(trained), FAINT], "pad": 24, "thickness": 16}
    node |= {"x": [0.001, 0.001, 0.999, 0.999], "y": high, "hovertemplate": "%{label}<extra></extra>"}
    unseen = {"color": "rgba(0,0,0,0)", "shadow": "none"}  # beside the streams, which would run through the words
    figure = go.Figure(go.Sankey(node=node, link=link, arrangement="fixed", textfont=unseen))
    for i, (text, down) in enumerate(zip(words, high, strict=True)):
        place = {"x": 0.0 if i < 2 else 1.0, "xanchor": "right" if i < 2 else "left", "xshift": -8 if i < 2 else 8}
        place["align"] = place["xanchor"]
        figure.add_annotation(
            text=text.replace(": ", ":<br>"), y=1 - down, xref="paper", yref="paper", showarrow=False, **place
        )
    counts = " · ".join(
        f"<span style='color:{ink(hue)}'><b>{part}</b></span> {change[part]:.1f}" for part, (hue, *_) in _PARTS.items()
    )
    title = f"{whole:.0f} problems, k = {k}: {counts}"
    return styled(figure, 360, title).update_layout(
        margin={"l": 130, "r": 130, "b": 30}, title={"xref": "container", "x": 0.02}
    )


def cover_curves(outcomes: Mapping[str, Outcomes], what: str = "") -> go.Figure:
    """Cover@tau against tau (logarithmic): the share of problems solved in at least a share tau of the answers."""
    figure, most = go.Figure(), max(int(out.n.max()) for out in outcomes.values())
    taus = np.arange(1, most + 1) / most
    hues = colors(outcomes)
    for name, out in outcomes.items():
        hover = "%{y:.1%} are right in at least %{x:.1%} of the answers<extra>" + name + "</extra>"
        look = {"line": {"color": hues[name], "width": 3, "shape": "vh"}, "name": name, "hovertemplate": hover}
        figure.add_scatter(x=taus, y=out.cover_at(taus), mode="lines", **look)
    ticks = [tau for tau in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tau >= taus[0]]
    words = [f"{tau:g}" for tau in ticks]
    figure.update_xaxes(title_text="τ: share of the answers that is right", type="log", tickvals=ticks, ticktext=words)
    figure.update_yaxes(title_text="Cover@τ", tickformat=".0%", range=[0, 1.02])
    title = f"Cover@τ{f' on {what}' if what else ''}: ever on the left, always on the right"
    return styled(figure, 400, title, legend={"x": 0.02, "y": 0.04}, uirevision="keep")


def diversity(table: pd.DataFrame, what: str = "") -> go.Figure:
    """Share of problems to which a model finds at least d different right answers, against d.

    Args:
        table: rows of outcomes with `method` and `distinct`, as many problems of each method; seeds are put together.
        what: the problems, for the title.
    """
    figure, most = go.Figure(), int(table["distinct"].max())
    at_least = np.arange(1, most + 1)
    for name, counts in table.groupby("method", sort=False, observed=True)["distinct"]:
        share = (counts.to_numpy()[:, None] >= at_least).mean(0)
        hover = "%{y:.1%} have %{x} or more right answers<extra>" + f"{name}, mean {counts.mean():.2f}</extra>"
        look = {"line": {"color": color(name), "width": 3}, "marker": {"size": 7}, "hovertemplate": hover}
        figure.add_scatter(x=at_least, y=share, mode="lines+markers", name=f"{name}: mean {counts.mean():.2f}", **look)
    figure.update_xaxes(title_text="d: different right answers found", dtick=1, range=[0.8, min(most, 8) + 0.2])
    ticks = [
        0.001,
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
    ]  # logarithmic: each further answer is found to a share of the problems
    shares = {"type": "log", "tickformat": "~%", "tickvals": ticks, "range": [-3, 0.05]}
    figure.update_yaxes(title_text="share of problems with at least d", **shares)
    title = f"Different right answers{f' on {what}' if what else ''}"
    return styled(figure, 400, title, legend={"x": 0.02, "y": 0.04}, uirevision="keep")


# ---- the front -------------------------------------------------------------------------------------------------------

_SYMBOLS = ("star", "diamond", "square", "triangle-up", "cross", "x", "pentagon", "hexagram", "triangle-down", "bowtie")


def front(
    scores: pd.DataFrame,
    domain: str,
    split: str = "test",
    height: str = "Pass@64",
    methods: Collection[str] | None = None,
) -> go.Figure:
    """Pass@1 against Pass@k, or distinct right answers: one line per method along its strengths, small dots for seeds.

    Larger marks are stronger penalties. Methods with one strength are single marks; dotted lines cross at base.

    Args:
        scores: from `conclusions.run_scores`.
        domain, split: which runs and problems.
        height: the column that is drawn upwards, "Pass@4" ... or "distinct".
        methods: which to draw beside base; None: all.
    """
    lookup(dict.fromkeys(scores.columns), "column of scores", height)
    runs = scores.reset_index().astype({"method": str})
    runs = runs[(runs["domain"] == domain) & (runs["split"] == split)].dropna(subset=height)
    runs = runs[runs["method"].isin(["base", *(runs["method"] if methods is None else methods)])]
    figure, symbols, kin = go.Figure(), itertools.cycle(_SYMBOLS), Counter()
    for name, part in runs.groupby("method", sort=False):
        swept = part["strength"].nunique() > 1
        kin[method_of(name)] += swept and name not in COLORS  # a variant has its method's colour, and a dash
        dash = "solid" if name in COLORS else DASHES[kin[method_of(name)] % len(DASHES)]
        line = {"color": color(method_of(name)), "dash": dash, "width": 2.5}
        _add_runs(figure, name, part, height, line, None if swept else next(symbols))
    for axis, column in (("x", "Pass@1"), ("y", height)):
        for at in runs.loc[runs["method"] == "base", column]:
            figure.add_shape(
                type="line", **_across(axis, at), line={"color": INK, "dash": "dot", "width": 1}, layer="below"
            )
    words = _words(height)
    if runs.empty:
        none = f"No run has {words} here.<br>Fewer answers were drawn to these problems: choose a smaller k."
        figure.add_annotation(text=none, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
        figure.update_layout(xaxis_range=[0, 1], yaxis_range=[0, 1])
    figure.update_xaxes(title_text="Pass@1", tickformat="~%")
    figure.update_yaxes(title_text=words, tickformat="~%" if height != "distinct" else ".2f")
    legend = {"x": 1.02, "y": 1, "font": {"size": 12}, "itemsizing": "trace", "tracegroupgap": 0}
    title = f"{domain}, {split} problems: Pass@1 against {words}"
    return styled(figure, 580, title, legend=legend, uirevision=f"{domain}{split}{height}").update_layout(margin_r=190)


def swept(scores: pd.DataFrame) -> list[str]:
    """The methods that have more than one strength in `scores`: those whose fronts are lines."""
    several = scores.reset_index().groupby("method", sort=False, observed=True)["strength"].nunique() > 1
    return [str(name) for name in several.index[several]]


def _across(axis: str, at: float) -> dict:
    other = "y" if axis == "x" else "x"
    return {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}


def _words(height: str) -> str:
    return "different right answers per problem" if height == "distinct" else height


def _add_runs(figure: go.Figure, name: str, runs: pd.DataFrame, height: str, line: dict, symbol: str | None):
    """The seeds of a method as small dots, and the means over seeds: a line along the strengths, or one mark."""
    columns = [column for column in runs if column.startswith("Pass@") or column == "distinct"]
    means = runs.groupby("strength", dropna=False)[columns].mean().reset_index()
    seeds = runs.groupby("strength", dropna=False)["seed"].unique().to_list()
    shared = {"legendgroup": name, "hovertemplate": "%{text}<extra></extra>"}
    if max(map(len, seeds)) > 1:
        words = [_hover(name, f"seed {row['seed']}", row, columns) for _, row in runs.iterrows()]
        dots = {"mode": "markers", "marker": {"color": line["color"], "size": 5, "opacity": 0.45}, "showlegend": False}
        figure.add_scatter(x=runs["Pass@1"], y=runs[height], text=words, **dots, **shared)
    who = [f"mean of {len(of)} seeds" if len(of) > 1 else f"seed {of[0]}" for of in seeds]
    words = [_hover(name, some, row, columns) for some, (_, row) in zip(who, means.iterrows(), strict=True)]
    look = {"mode": "lines+markers", "line": line, "marker": {"size": np.linspace(7, 15, len(means)), "opacity": 1}}
    if symbol:
        marker = {"color": line["color"], "size": 14, "symbol": symbol, "line": {"color": "white", "width": 1}}
        look = {"mode": "markers", "marker": marker}
    figure.add_scatter(x=means["Pass@1"], y=means[height], text=words, name=name, **look, **shared)


def _hover(name: str, who: str, row: pd.Series, columns: list[str]) -> str:
    strength = "" if pd.isna(row["strength"]) else f", strength {row['strength']:g}"
    numbers = [f"{c} {row[c]:{'.2f' if c == 'distinct' else '.1%'}}" for c in columns if pd.notna(row[c])]
    return "<br>".join([f"<b>{name}</b>{strength}", who, *numbers])


def matched_differences(differences: pd.DataFrame, k: int = 64) -> go.Figure:
    """Differences of Pass@k at equal Pass@1, one row per pair: dot and interval, dark where p, corrected, is below .05.

    Args:
        differences: rows of `conclusions.at_equal_pass_at_1`, with a column domain; pairs whose fronts do not
            overlap, in the runs or in many draws (p is NaN), are named and grey.
        k: of Pass@k, for the title.
    """
    columns = ["domain", "first", "second", "differ in", "difference", "low", "high", "p", "from_", "to"]
    rows = differences.reindex(columns=columns).iloc[::-1]
    labels = rows["domain"].astype(str) + ": " + rows["first"] + " − " + rows["second"]
    labels = labels.where(rows["p"].notna(), labels + "<br>no common Pass@1")
    clear = rows["p"] < 0.05
    ranges = [f"compared at Pass@1 from {a:.1%} to {b:.1%}" for a, b in zip(rows["from_"], rows["to"], strict=True)]
    bars = {"type": "data", "array": rows["high"] - rows["difference"], "arrayminus": rows["difference"] - rows["low"]}
    figure = go.Figure()
    for kind, hue, name in ((clear, "#0072B2", "told from 0"), (~clear, "#6D7B81", "cannot be told from 0")):
        some = {side: value[kind] for side, value in bars.items() if side != "type"}
        error = {"type": "data", "color": hue, "thickness": 3, "width": 6, **some}
        words = [
            f"{text}<br>{row.low:+.1%} to {row.high:+.1%}, p = {row.p:.3f}<br>they differ in: {row[3]}"
            for text, row in zip(np.array(ranges)[kind], rows[kind].itertuples(index=False), strict=True)
        ]
        look = {"mode": "markers", "marker": {"color": hue, "size": 12}, "error_x": error, "name": name}
        hover = "%{y}: %{x:+.1%}<br>%{text}<extra></extra>"
        figure.add_scatter(x=rows["difference"][kind], y=labels[kind], text=words, hovertemplate=hover, **look)
    figure.add_vline(x=0, line={"color": INK, "width": 1}, opacity=1)
    figure.update_xaxes(title_text=f"difference of Pass@{k}", tickformat="+~%", zeroline=False)
    figure.update_yaxes(categoryorder="array", categoryarray=list(labels), ticks="", showline=False)
    title = f"Pass@{k} at equal Pass@1: first minus second, 95 % intervals"
    legend = {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0}
    figure = styled(figure, 190 + 36 * len(rows), title, legend=legend)
    # long labels leave the title little room
    return figure.update_layout(margin_l=230, title={"x": 0.02, "xref": "container"})
