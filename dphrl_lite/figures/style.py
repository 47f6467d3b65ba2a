"""What all figures share: one colour per method and divergence throughout the kit, fonts, margins. Draws nothing."""

from collections.abc import Iterable
from functools import cache

import plotly.graph_objects as go
import plotly.io as pio

pio.templates.default = (
    "simple_white"  # a default costs nothing; named in each figure it would take 10 ms of every redraw
)

# Okabe and Ito's palette, darkened until each stands out from white (WCAG 2: 3 to 1), and moved apart as colour-vision
# deficiencies see it (Machado, Oliveira and Fernandes 2009).
COLORS = {
    "base": "#000000",
    "grpo": "#BD4700",
    "grpo-exp": "#AA7944",
    "dapo": "#A89300",
    "rkl": "#CA75A6",
    "rkl-k3": "#8A4B70",
    "rkl-k1-reward": "#45104F",
    "grpo-entropy": "#5A1D06",
    "sft": "#6D7B81",
    "dph-f": "#009E73",
    "dph-js": "#0072B2",
    "dph-js-definition": "#2E497A",
    "dph-alpha": "#1398F8",
}
_DIVERGENCE_COLORS = {"forward_kl": "dph-f", "reverse_kl": "rkl", "js": "dph-js", "alpha": "dph-alpha"}
_SPARE = ("#6A3D9A", "#7F5B2E", "#A05195", "#665191", "#4D9221")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
FAINT, INK = "#949494", "#222222"
BELOW = {"orientation": "h", "yref": "container", "y": 0.02, "yanchor": "bottom", "x": 0}
BUCKETS = {"D_pef": "#009E73", "D_exp": "#BF6F00", "unsolved": "#6D7B81"}


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


def styled(figure: go.Figure, height: int, title: str = "", margin_b: int = 56, **layout) -> go.Figure:
    """`figure` itself, with the kit's fonts and margins, a height in pixels, a title on the left, and `margin_b` pixels below."""
    figure.update_layout(
        height=height,
        title={"text": title, "x": 0, "xanchor": "left", "xref": "paper", "font": {"size": 17}},
        font={"size": 14, "color": INK},
        margin={"l": 70, "r": 24, "t": 90 if title else 64, "b": margin_b},
        hoverlabel={"font": {"size": 13}},
        modebar={"color": "#6D7B81", "activecolor": INK},
        **layout,
    )
    return figure


def faded(hue: str, opacity: float = 0.16) -> str:
    """A colour such as "#0072B2", nearly transparent, for bands."""
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def contrast(hue: str, ground: str = "#FFFFFF") -> float:
    """Contrast of two colours such as "#0072B2", from 1 to 21. Source: WCAG 2.2."""
    low, high = sorted(_luminance(some) for some in (hue, ground))
    return (high + 0.05) / (low + 0.05)


def _luminance(hue: str) -> float:
    parts = [int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@cache
def ink(hue: str) -> str:
    """A colour for words: `hue`, darker where needed to be read on white (WCAG 2: 4.5 to 1)."""
    while contrast(hue) < 4.5:
        hue = "#" + "".join(f"{int(0.97 * int(hue[i : i + 2], 16)):02X}" for i in (1, 3, 5))
    return hue
