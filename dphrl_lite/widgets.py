"""Widgets around `figures`: choose, slide, and the figure follows. No arithmetic of its own.

A `Live` widget keeps its controls by name (`widget.controls["threshold"].value = 4` works without a browser) and its
newest figures in `widget.figures`, so that every control can be tested without a kernel.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import anywidget
import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs

from dphrl_lite import bandits, divergences, figures, presampling, toys, training
from dphrl_lite.passk import Outcomes

_WIDE = {"description_width": "120px"}


class _Library(anywidget.AnyWidget):
    """plotly.js itself, 5 MB, sent to the browser once per notebook however many plots there are."""

    _esm = get_plotlyjs() + "\nexport default {};"


_library = cache(_Library)


class Plot(anywidget.AnyWidget):
    """One figure that is redrawn in place: no flicker, no change of size, and zoom is kept.

    `plotly.graph_objects.FigureWidget` does so too, and sends plotly.js again with every figure.
    """

    _esm = """
    const library = async () => {
      while (!globalThis.Plotly) await new Promise((again) => setTimeout(again, 20));
      return globalThis.Plotly;
    };
    export default {
      async render({ model, el }) {
        const Plotly = await library();
        const node = el.appendChild(document.createElement("div"));
        node.setAttribute("role", "img");
        const draw = () => {
          const { data, layout } = model.get("figure");
          const words = layout.title?.text ?? "figure";
          node.setAttribute("aria-label", words.replace(/<[^>]*>/g, " "));
          return Plotly.react(node, data, layout, { responsive: true, displaylogo: false });
        };
        model.on("change:figure", draw);
        await draw();
        return () => { model.off("change:figure", draw); Plotly.purge(node); };
      },
    };
    """
    figure = traitlets.Dict().tag(sync=True)

    def __init__(self, figure: go.Figure):
        _library()
        super().__init__(figure=_plain(figure))

    def show(self, figure: go.Figure):
        """Draw `figure` in place of the present one."""
        self.figure = _plain(figure)


def _plain(figure: go.Figure) -> dict:
    return json.loads(figure.to_json())


class Live(ipywidgets.VBox):
    """Controls above figures that are rebuilt whenever a control changes.

    Args:
        controls: by the name under which `build` takes their values.
        build: from the values to one figure or several.
        extra: further widgets for the control row, without a value that `build` needs (buttons).
    """

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], build: Callable, extra: Sequence = ()):
        self.controls, self._build, self.figures = dict(controls), build, []
        self.plots = ipywidgets.VBox()
        row = ipywidgets.Box([*self.controls.values(), *extra], layout={"flex_flow": "row wrap"})
        super().__init__([row, self.plots])
        for control in self.controls.values():
            control.observe(self.redraw, names="value")
        self.redraw()

    def redraw(self, _change=None):
        """Build the figures from the controls' present values and show them in place of the old ones."""
        built = self._build(**{name: control.value for name, control in self.controls.items()})
        self.figures = list(built) if isinstance(built, (list, tuple)) else [built]
        if not self.plots.children:
            self.plots.children = [Plot(figure) for figure in self.figures]
            return
        for plot, figure in zip(self.plots.children, self.figures, strict=True):
            plot.show(figure)


def _slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    limits = {"min": low, "max": high, "step": step}
    return ipywidgets.FloatSlider(value, description=label, style=_WIDE, layout={"width": "360px"}, **limits)


def divergence_explorer(name: str = "js") -> Live:
    """Choose a divergence, move a Gaussian policy over a two-mode target: f, its pull, the best fit, the value."""
    options = [(divergences.get(n).label if n != "alpha" else "alpha", n) for n in divergences.names()]
    controls = {
        "name": ipywidgets.Dropdown(options=options, value=name, description="Divergence", style=_WIDE),
        "alpha": _slider("alpha", 0.5, 0, 1, 0.05),
        "mean": _slider("policy mean", 0.5, -4, 4, 0.1),
        "width": _slider("policy width", 1, 0.3, 4, 0.1),
        "distance": _slider("mode distance", 4, 0, 8, 0.25),
        "weight": _slider("left mode's mass", 0.5, 0.05, 0.95, 0.05),
    }
    button = ipywidgets.Button(description="Jump to the best fit", layout={"margin": "2px 2px 2px 128px"})
    live = Live(controls, _divergence_figure, extra=[button])

    def follow(_change=None):
        controls["alpha"].disabled = controls["name"].value != "alpha"

    def jump(_button):
        fit = toys.best_fit(*(controls[c].value for c in ("name", "alpha", "distance", "weight")))
        controls["mean"].value, controls["width"].value = fit.mean, fit.width

    controls["name"].observe(follow, names="value")
    button.on_click(jump)
    live.jump = button
    follow()
    return live


def _divergence_figure(name, alpha, mean, width, distance, weight) -> go.Figure:
    divergence = divergences.get(name, alpha=alpha if name == "alpha" else None)
    fit = toys.best_fit(name, alpha, distance, weight)
    return figures.divergence_explorer(divergence, fit, mean, width, distance, weight)


def partition_explorer(rollouts: pd.DataFrame, threshold: int = 6) -> Live:
    """Slide the threshold and watch problems move between D_pef and D_exp. `rollouts` as `presampling.sample` gives."""
    counts = presampling.counts(rollouts)
    slider = ipywidgets.IntSlider(
        threshold, 1, int(counts["n"].min()), description="threshold", style=_WIDE, layout={"width": "420px"}
    )
    build = lambda threshold: figures.partition_histogram(counts, presampling.partition(rollouts, threshold))
    return Live({"threshold": slider}, build)


def pass_at_k_explorer(outcomes: Mapping[str, Mapping[str, Outcomes]], base: str = "base") -> Live:
    """Pass@k curves with bands, and keep / forget / gain / never, by problem family and k.

    Args:
        outcomes: family of problems -> model -> `Outcomes`; each family holds the model `base`.
        base: the model that the others are compared with.
    """
    fewest = min(int(out.n.min()) for models in outcomes.values() for out in models.values())
    ks = [2**i for i in range(fewest.bit_length()) if 2**i <= fewest]
    controls = {
        "family": ipywidgets.Dropdown(options=list(outcomes), description="problems", style=_WIDE),
        "k": ipywidgets.SelectionSlider(options=ks, value=ks[-1], description="k for the bars", style=_WIDE),
        "confidence": ipywidgets.SelectionSlider(
            options=[("80 %", 0.8), ("95 %", 0.95), ("99 %", 0.99)], value=0.95, description="bands", style=_WIDE
        ),
    }

    def build(family, k, confidence):
        models = outcomes[family]
        return figures.pass_at_k_curves(models, ks, confidence), figures.keep_forget_gain(models, k, base)

    return Live(controls, build)


class TrainingDashboard(Live):
    """Training curves read from the logs that runs write, while they write them.

    Args:
        folders: run name -> folder given to `training.train(..., out=folder)`; those without a log yet are left out.
        seconds: shortest time between two redraws by `follow`.

    Pass `dashboard.follow` as `on_step` to a run in this notebook, or press Refresh for runs elsewhere.
    """

    def __init__(self, folders: Mapping[str, str | Path], seconds: float = 1.0):
        self.folders, self.seconds, self._drawn = dict(folders), seconds, 0.0
        button = ipywidgets.Button(description="Refresh")
        button.on_click(self.redraw)
        super().__init__({}, self._from_logs, extra=[button])

    def _from_logs(self) -> go.Figure:
        written = {name: f for name, f in self.folders.items() if (Path(f) / training.LOG).is_file()}
        return figures.training_dashboard({name: training.read_log(folder) for name, folder in written.items()})

    def follow(self, _metrics: dict):
        """Redraw if the last redraw is at least `seconds` ago."""
        if time.monotonic() - self._drawn >= self.seconds:
            self.redraw()

    def redraw(self, _change=None):
        """Read the logs and draw them."""
        super().redraw()
        self._drawn = time.monotonic()


# ---- bandits ---------------------------------------------------------------------------------------------------------

_STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_GROUPS = {"exact": 0, "groups of 16": 16, "groups of 4": 4}
_SHARING = {"tabular: 0": 0.0, "0.5": 0.5, "0.9": 0.9, "all: 1": 1.0}
_PENALTIES = {"on all trained contexts": "all", "hybrid: D_pef only": "perfect"}


def collapse_lab(divergence: str = "js", seed: int = 0) -> Live:
    """GRPO on the default bandit: choose divergence, strength, gradients and sharing, and see who keeps Pass@k.

    All strengths of a choice are computed at once and kept, so that the slider only looks them up.
    """
    known = {name: divergences.get(name) for name in divergences.names()}
    worlds = {sharing: bandits.make(sharing=sharing, seed=seed) for sharing in _SHARING.values()}
    held_out = [c for c, trained in enumerate(worlds[0.0].trained.tolist()) if not trained]

    @lru_cache(maxsize=64)
    def paths(name, groups, sharing, rehearse):
        setting = {"steps": 100, "step_size": 2.0, "frames": 26, "groups": groups or None, "rehearse": rehearse}
        return bandits.flow(worlds[sharing], "grpo", known[name], _STRENGTHS, **setting)

    def build(name, strength, rehearse, groups, sharing, k, context):
        path = paths(name, groups, sharing, rehearse).at_strength(_STRENGTHS.index(strength))
        return figures.collapse_lab(path, name if strength else "grpo", k, context)

    choose = lambda label, options, value: ipywidgets.Dropdown(
        options=options, value=value, description=label, style=_WIDE, layout={"width": "360px"}
    )
    slide = lambda label, options, value: ipywidgets.SelectionSlider(
        options=options, value=value, description=label, style=_WIDE, layout={"width": "360px"}
    )
    names = [(known[n].label if n != "alpha" else "alpha", n) for n in known]
    controls = {
        "strength": slide("strength", [(f"{s:g}", s) for s in _STRENGTHS], 0.0),
        "k": slide("k", [2**i for i in range(1, 9)], 64),
        "name": choose("Divergence", names, divergence),
        "rehearse": choose("penalty", _PENALTIES.items(), "all"),
        "groups": choose("gradients", _GROUPS.items(), 0),
        "sharing": slide("sharing", list(_SHARING.items()), 0.9),
        "context": slide("context", held_out, held_out[-4]),
    }
    return Live(controls, build)
