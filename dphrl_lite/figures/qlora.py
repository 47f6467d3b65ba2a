"""Figures of QLoRA: memory trick by trick, what four bits do to weights, the rank of a change, what a run costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from dphrl_lite.figures.style import BELOW, DASHES, FAINT, INK, styled
from dphrl_lite.scale import quantisation

_PARTS = {
    "weights": ("#0072B2", ["weights"]),
    "reference": ("#CA75A6", ["reference"]),
    "optimizer": ("#AA7944", ["optimizer", "optimizer work space"]),
    "gradients": ("#D55E00", ["gradients", "gradient parts"]),
    "adapter": ("#009E73", ["adapter"]),
    "activations, logits, work space": ("#6D7B81", ["activations", "logits", "layer work space"]),
    "sampling": ("#1398F8", ["key-value cache", "decoding graphs", "drawing", "sampling work space"]),
}


def memory_ladder(parts: pd.DataFrame, title: str, cards: Sequence[float] = (16, 24)) -> go.Figure:
    """Memory at the peak, one bar per trick with all tricks before it; the same bars twice, on the right enlarged.

    Args:
        parts: from `budget.worst`.
        title: the run, in words.
        cards: sizes of GPUs in GB, drawn as lines.
    """
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.4, 0.6], horizontal_spacing=0.03)
    total = parts.drop(columns="phase").sum(axis=1)
    for name, (hue, members) in _PARTS.items():
        held = parts.reindex(columns=members, fill_value=0.0).sum(axis=1)
        if not held.any():
            continue
        for col in (1, 2):
            look = {"orientation": "h", "name": name, "legendgroup": name, "marker_color": hue, "showlegend": col == 1}
            hover = f"%{{y}}<br>{name}: %{{x:.1f}} GB<extra></extra>"
            figure.add_bar(y=parts.index, x=held, hovertemplate=hover, row=1, col=col, **look)
    room, words = 1.6 * max(cards), [f"<b>{gb:.0f}</b>" if gb >= 100 else f"<b>{gb:.1f}</b>" for gb in total]
    for col, within in ((1, np.full(len(total), True)), (2, total < 0.9 * room)):  # longer bars bear their number
        look = {"mode": "text", "text": words, "textfont_color": np.where(within, INK, "white").tolist()}
        look |= {"textposition": np.where(within, "middle right", "middle left").tolist()}
        look |= {"showlegend": False, "hoverinfo": "skip"}
        x = np.where(within, total, np.minimum(total, room))
        figure.add_scatter(x=x, y=parts.index, row=1, col=col, **look)
    line = {"type": "line", "xref": "x2", "yref": "y2 domain", "y0": 0, "y1": 1, "line": {"dash": "dash", "width": 1.5}}
    note = {"xref": "x2", "yref": "y2 domain", "y": 1, "yanchor": "bottom", "showarrow": False}
    shapes = [line | {"x0": gb, "x1": gb} for gb in cards]
    figure.update_layout(shapes=shapes, annotations=[note | {"x": gb, "text": f"{gb:g} GB"} for gb in cards])
    figure.update_xaxes(title_text="GB", range=[0, 1.17 * total.max()], col=1)
    figure.update_xaxes(title_text="GB, enlarged", range=[0, room], col=2)
    figure.update_yaxes(autorange="reversed", ticks="", col=1)
    title += f": {total.iloc[0]:.0f} GB → <b>{total.iloc[-1]:.1f} GB</b>"
    figure = styled(figure, 470, title, barmode="stack", bargap=0.25, legend=BELOW | {"traceorder": "normal"})
    return figure.update_layout(margin={"l": 210, "b": 110}, uirevision="keep")


_KIND_COLORS = {"nf4": "#0072B2", "fp4": "#AA7944", "int4": "#D55E00"}


def four_bits(weight: Tensor, kind: str, block: int, double: bool, errors: pd.DataFrame) -> go.Figure:
    """A weight matrix in four bits: its levels, its weights before and after, and the error against the size of a block.

    Args:
        weight: `[out, in]`.
        kind, block, double: as for `quantisation.round_trip`.
        errors: of this matrix, from `quantisation.errors`.
    """
    titles = ["weights in units of their block's largest", "weights before and after", "relative error"]
    figure = make_subplots(cols=3, horizontal_spacing=0.08, subplot_titles=titles)
    restored = quantisation.round_trip(weight, kind, block, double)
    hue, label = _KIND_COLORS[kind], quantisation.KINDS[kind]
    _histogram(figure, quantisation.scaled(weight, block), 1.0, FAINT, "weights", row=1, col=1)
    for other in ("int4", kind) if kind != "int4" else ("int4",):
        levels = quantisation.levels(other).numpy()
        look = {"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": _KIND_COLORS[other]}}
        name, height = f"levels of {quantisation.KINDS[other]}", (0.0 if other == kind else -0.16)
        highest = max(figure.data[0].y)
        at = {"x": levels, "y": np.full(len(levels), height * highest), "hovertemplate": "%{x:.3f}<extra></extra>"}
        figure.add_scatter(mode="markers", marker=look, name=name, row=1, col=1, **at)
    widest = weight.abs().max().item()
    _histogram(figure, restored, widest, hue, "after", row=1, col=2)
    _histogram(figure, weight, widest, INK, "before", fill="none", row=1, col=2)
    for other, line in errors.items():
        dash = "solid" if other == kind else "dot"
        look = {"name": quantisation.KINDS[other], "line": {"color": _KIND_COLORS[other], "width": 3, "dash": dash}}
        hover = "blocks of %{x}: %{y:.2%}<extra>" + quantisation.KINDS[other] + "</extra>"
        figure.add_scatter(x=errors.index, y=line, mode="lines", hovertemplate=hover, row=1, col=3, **look)
    off, bits = quantisation.error(weight, restored), quantisation.bits_per_weight(block, double and kind != "int4")
    dot = {"size": 13, "color": hue}
    figure.add_scatter(x=[block], y=[off], mode="markers", marker=dot, name="chosen", row=1, col=3)
    figure.update_xaxes(type="log", title_text="weights per block", tickvals=list(errors.index), row=1, col=3)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=1, col=3)
    figure.update_yaxes(showticklabels=False, ticks="", col=1)
    figure.update_yaxes(showticklabels=False, ticks="", rangemode="tozero", col=2)
    figure.update_annotations(font_size=14)
    title = f"{label}, blocks of {block}: {bits:.3f} bits per weight, relative error <b>{off:.1%}</b>"
    return styled(figure, 430, title, legend=BELOW, uirevision="keep").update_layout(margin={"l": 30, "b": 110})


def _histogram(figure: go.Figure, values: Tensor, widest: float, hue: str, name: str, fill="tozeroy", **place):
    """Counts drawn as an area: sent as 121 numbers, however many weights there are."""
    counts, edges = np.histogram(values.numpy(), bins=121, range=(-widest, widest))
    look = {"line": {"color": hue, "width": 1.5, "shape": "hvh"}, "fill": fill, "name": name}
    middle = np.round((edges[1:] + edges[:-1]) / 2, 6)
    figure.add_scatter(x=middle, y=counts, mode="lines", hovertemplate="%{x:.3f}: %{y}<extra></extra>", **look, **place)


def rank_explorer(values: Mapping[str, Tensor], shares: pd.DataFrame, rank: int, trained: int, whole: int) -> go.Figure:
    """Singular values of what training changed, and the share of it that rank r keeps, one line per weight matrix.

    Args:
        values: from `lowrank.singular_values`.
        shares: from `lowrank.shares`.
        rank: r, marked.
        trained, whole: parameters that LoRA of that rank trains, and that full training trains.
    """
    titles = ["singular values of each change", "share of the change that rank r keeps"]
    figure = make_subplots(cols=2, horizontal_spacing=0.1, subplot_titles=titles)
    for part, hue in {"attention": "#6A3D9A", "MLP": "#7F5B2E"}.items():
        names = [name for name in values if ("mlp" in name) == (part == "MLP")]
        for col, lines in ((1, [values[n] / values[n][0] for n in names]), (2, [shares[n].to_numpy() for n in names])):
            x, y = _joined(lines)
            look = {"line": {"color": hue, "width": 1.2}, "opacity": 0.6, "name": part, "showlegend": col == 1}
            look |= {"legendgroup": part, "mode": "lines", "hovertemplate": f"%{{x}}: %{{y:.3g}}<extra>{part}</extra>"}
            figure.add_scatter(x=x, y=y, row=1, col=col, **look)
    median = shares.median(axis=1)
    line = {"color": INK, "width": 3.5}
    figure.add_scatter(x=shares.index, y=median, name="median", mode="lines", line=line, row=1, col=2)
    for col in (1, 2):
        figure.add_vline(x=rank, line={"color": INK, "dash": "dash", "width": 1.5}, row=1, col=col)
    figure.update_xaxes(title_text="number of the singular value", row=1, col=1)
    figure.update_xaxes(title_text="rank r", row=1, col=2)
    figure.update_yaxes(title_text="relative to the largest", range=[0, 1.03], row=1, col=1)
    figure.update_yaxes(title_text="share of ‖ΔW‖²", tickformat=".0%", range=[0, 1.03], row=1, col=2)
    figure.update_annotations(font_size=14)
    kept = shares.loc[rank]
    title = (
        f"Rank {rank} keeps <b>{median[rank]:.0%}</b> of the change ({kept.min():.0%} to {kept.max():.0%} by matrix)"
    )
    title += f" and trains {trained:,} parameters: {trained / whole:.1%} of {whole:,}"
    return styled(figure, 430, title, legend=BELOW, uirevision="keep").update_layout(margin_b=100)


def _joined(lines: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Several lines over 1, 2, 3... as one with gaps, from 16 on every fourth point: a fraction to send and to draw."""
    shown = [[i for i in range(len(line)) if i < 16 or i % 4 == 3] for line in lines]
    x = [np.array([*places, np.nan]) + 1 for places in shown]
    y = [np.array([*np.asarray(line)[places], np.nan]) for line, places in zip(lines, shown, strict=True)]
    return np.concatenate(x).astype(np.float32), np.concatenate(y).astype(np.float32)


def reward_by_run(logs: Mapping[str, pd.DataFrame], window: int = 5) -> go.Figure:
    """Reward over training steps, one line per run, each the mean of the last `window` steps.

    Args:
        logs: per run a log; the first one is drawn in black.
        window: steps.
    """
    figure = go.Figure()
    ramp = ["#000000", "#1398F8", "#0072B2", "#00304D"]
    for i, (name, log) in enumerate(logs.items()):
        line = {"color": ramp[i % len(ramp)], "width": 3, "dash": DASHES[i // len(ramp)]}
        y = log["reward"].rolling(window, min_periods=1).mean()
        hover = f"step %{{x}}: %{{y:.3f}}<extra>{name}</extra>"
        figure.add_scatter(x=log["step"], y=y, name=name, mode="lines", line=line, hovertemplate=hover)
    figure.update_xaxes(title_text="training step")
    figure.update_yaxes(title_text="reward", tickformat=".3~p")
    return styled(figure, 400, f"Reward, mean of the last {window} steps")


_COST_COLORS = {"sampling": "#1398F8", "training": "#0072B2", "rehearsal": "#009E73", "reference": "#CA75A6"}


def cost_bars(hours: pd.DataFrame, price: float, title: str) -> go.Figure:
    """GPU-hours of a whole run, by method and part, with what they cost.

    Args:
        hours: rows methods, columns parts.
        price: of one GPU-hour, in the reader's currency.
        title: the run, in words.
    """
    figure = go.Figure()
    for part in hours:
        hover = f"%{{y}}: %{{x:.1f}} h of {part}<extra></extra>"
        look = {"orientation": "h", "name": part, "marker_color": _COST_COLORS[part], "hovertemplate": hover}
        figure.add_bar(y=hours.index, x=hours[part], **look)
    total = hours.sum(axis=1)
    for method, spent in total.items():
        words = f"<b>{spent:,.0f} h</b><br>costs {spent * price:,.0f}"
        figure.add_annotation(x=spent, y=method, text=words, showarrow=False, xanchor="left", align="left", xshift=4)
    figure.update_xaxes(title_text="GPU-hours", range=[0, 1.35 * total.max()])
    figure.update_yaxes(autorange="reversed", ticks="")
    figure = styled(
        figure, 400, title, barmode="stack", bargap=0.3, legend=BELOW | {"traceorder": "normal"}, uirevision="keep"
    )
    return figure.update_layout(margin={"l": 150, "b": 100})


_KERNELS = {
    "products with 4-bit weights": "#0072B2",
    "other matrix products": "#009E73",
    "attention": "#D55E00",
    "the rest": "#AA7944",
}


def token_kernels(found: Sequence[Mapping], kernels: int = 40) -> go.Figure:
    """What a GPU does while one token is decoded, launched kernel by kernel and as a graph: milliseconds, and a time line.

    Args:
        found: what `benchmarks/qlora_7b.py --part kernels` measured.
        kernels: of the first so many, the time line.
    """
    titles = ["a whole token", f"its first {kernels} kernels"]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    ways = [f"{way['way']}<br>{way['wall_ms']:.1f} ms" for way in found]
    for kind, hue in _KERNELS.items():
        look = {"orientation": "h", "name": kind, "legendgroup": kind, "marker_color": hue}
        busy = [way["kinds"][kind][1] for way in found]
        figure.add_bar(y=ways, x=busy, hovertemplate="%{x:.2f} ms<extra>%{y}</extra>", row=1, col=1, **look)
        for label, way in zip(ways, found, strict=True):
            some = [(a, b) for a, b, name in way["first"][:kernels] if name == kind]
            figure.add_bar(
                y=[label] * len(some), x=[b - a for a, b in some], base=[a for a, _ in some],
                hovertemplate="from %{base:.0f} µs, %{x:.1f} µs<extra></extra>", showlegend=False, row=1, col=2,
                marker_line={"width": 1, "color": hue}, **look,  # most are thinner than a pixel
            )  # fmt: skip
    idle = [way["wall_ms"] - way["busy_ms"] for way in found]
    figure.add_bar(y=ways, x=idle, orientation="h", name="the GPU waits", marker_color=FAINT, row=1, col=1)
    figure.update_xaxes(title_text="milliseconds", col=1)
    figure.update_xaxes(title_text="microseconds", col=2)
    figure = styled(figure, 330, "One token of a 7B model with LoRA", barmode="stack", legend=BELOW)
    return figure.update_layout(margin={"l": 110, "b": 110})
