"""What all figures share: one colour per method and divergence throughout the kit, fonts, margins. Draws nothing."""

from collections.abc import Iterable

import plotly.graph_objects as go
import plotly.io as pio

pio.templates.default = (
    "simple_white"  # a default costs nothing; named in each figure it would take 10 ms of every redraw
)

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
    "dph-js-definition": "#2F4B7C",
    "dph-alpha": "#56B4E9",
}
_DIVERGENCE_COLORS = {"forward_kl": "dph-f", "reverse_kl": "rkl", "js": "dph-js", "alpha": "dph-alpha"}
_SPARE = ("#6A3D9A", "#7F5B2E", "#A05195", "#665191", "#4D9221")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
FAINT, INK = "#C4C4C4", "#222222"
BELOW = {"orientation": "h", "yref": "container", "y": 0.02, "yanchor": "bottom", "x": 0}
BUCKETS = {"D_pef": "#009E73", "D_exp": "#E69F00", "unsolved": "#999999"}


def color(name: str) -> str:
    """The colour of a method or divergence, and of "<method> at 2" or "<method>, lr 0.001"; other names get one of their own,
    always the same."""
    known = _DIVERGENCE_COLORS.get(name, name.split(" ")[0].rstrip(","))
    if known in COLORS:
        return COLORS[known]
    return _SPARE[sum(map(ord, name)) % len(_SPARE)]


def method_of(name: str) -> str:
    """The method whose colour a variant such as "dph-f+all" or "dph-alpha-0.2" has."""
    return max((method for method in COLORS if name.startswith(method)), key=len, default=name)


def colors(names: Iterable[str]) -> dict[str, str]:
    """`color` of each name, no two of them alike as long as there are spare ones."""
    found: dict[str, str] = {}
    for name in names:
        spare = [hue for hue in (color(name), *_SPARE, *COLORS.values()) if hue not in found.values()]
        found[name] = spare[0] if spare else color(name)
    return found


def styled(figure: go.Figure, height: int, title: str = "", **layout) -> go.Figure:
    """`figure` itself, with the kit's fonts and margins, a height in pixels and a title on the left."""
    figure.update_layout(
        height=height,
        title={"text": title, "x": 0, "xanchor": "left", "xref": "paper", "font": {"size": 17}},
        font={"size": 14, "color": INK},
        margin={"l": 70, "r": 24, "t": 90 if title else 64, "b": 56},
        hoverlabel={"font": {"size": 13}},
        **layout,
    )
    return figure


def faded(hue: str, opacity: float = 0.16) -> str:
    """A colour such as "#0072B2", nearly transparent, for bands."""
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
