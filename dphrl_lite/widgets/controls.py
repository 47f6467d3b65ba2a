"""The controls that widgets are made of: one width and one look for all. Knows no figure and builds none."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import ipywidgets

from dphrl_lite import divergences


def wide(pixels: int = 360) -> dict:
    """The label's and the control's width, as arguments of any control."""
    return {"style": {"description_width": "120px"}, "layout": {"width": f"{pixels}px", "max_width": "100%"}}


def slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    """A slider over numbers between two limits."""
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=label, **wide())


def choice(label: str, options: Iterable, value=None, kind: type = ipywidgets.SelectionSlider, pixels: int = 360):
    """A slider over `options`, values or pairs of label and value; `value` is chosen at first."""
    return kind(options=list(options), value=value, description=label, **wide(pixels))


dropdown = partial(choice, kind=ipywidgets.Dropdown)


def checkbox(label: str, value: bool) -> ipywidgets.Checkbox:
    """A switch in one column, or two for a long label, so that rows of switches stand below each other."""
    layout = {"width": f"{150 if len(label) < 18 else 312}px", "margin": "2px 12px 2px 0"}
    return ipywidgets.Checkbox(value, description=label, indent=False, layout=layout)


def button(label: str, press: Callable, **layout) -> ipywidgets.Button:
    """A button as wide as its label, which calls `press` with itself."""
    control = ipywidgets.Button(description=label, layout={"width": "auto"} | layout)
    control.on_click(press)
    return control


def divergence_dropdown(value: str) -> ipywidgets.Dropdown:
    """All divergences by label; alpha's says nothing of alpha, for which there is a slider."""
    labels = {name: "alpha" if name == "alpha" else divergences.get(name).label for name in divergences.names()}
    return dropdown("Divergence", [(label, name) for name, label in labels.items()], value)


def alpha_slider(divergence: ipywidgets.Dropdown) -> ipywidgets.FloatSlider:
    """A slider for alpha that can be moved only while the dropdown says "alpha"."""
    return only_while(slider("alpha", 0.5, 0, 1, 0.05), divergence, lambda name: name == "alpha")


def only_while(control, other, condition: Callable):
    """`control`, which can be moved only while `condition` holds of the value of another control."""

    def follow(_change=None):
        control.disabled = not condition(other.value)

    other.observe(follow, names="value")
    follow()
    return control


def offer(control, options: Iterable, prefer: int = 0):
    """Give a control other options; the present choice stays if it can, else the one at position `prefer` is chosen."""
    before, options = control.value, list(options)
    control.options = options
    if options:
        control.value = before if before in options else options[min(prefer, len(options) - 1)]


def offers(controls: Mapping, names: Iterable[str], offer_rest: Callable[[], None]):
    """Call `offer_rest` now, and whenever one of the controls `names` changes: what the others offer depends on them."""
    for name in names:
        controls[name].observe(lambda _change: offer_rest(), names="value")
    offer_rest()
