"""A figure that is redrawn in place, and controls above figures: what every widget is made of. Knows no figure and no method."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import anywidget
import ipywidgets
import plotly.graph_objects as go
import plotly.io as pio
import traitlets
from plotly.offline import get_plotlyjs

from dphrl_lite.figures import page

try:
    from google.colab import output
except ImportError:
    pass
else:
    output.enable_custom_widget_manager()  # without it Colab shows ipywidgets' own widgets only, and no `Plot`


class _Library(anywidget.AnyWidget):
    """plotly.js itself, 5 MB, sent to the browser once per notebook however many plots there are.

    As data, not as this widget's module: anywidget gives a module two seconds to start, too few for 5 MB on a busy
    machine. The first plot that is drawn asks for it and runs it.
    """

    _esm = "export default { initialize() {} };"
    source = traitlets.Unicode().tag(sync=True)


@cache
def _library() -> _Library:
    return _Library(source=get_plotlyjs())


class Plot(anywidget.AnyWidget):
    """One figure that is redrawn in place: no flicker, no change of size, and zoom is kept.

    `plotly.graph_objects.FigureWidget` does so too, and sends plotly.js again with every figure.
    """

    _esm = (
        page.SCRIPT
        + page.NARROW
        + """
    const run = (source) => new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      script.onload = done;
      script.onerror = failed;
      document.head.append(script);
    });
    const load = async (model) => {
      const library = await model.widget_manager.get_model(model.get("library").replace("IPY_MODEL_", ""));
      if (!globalThis.Plotly) await run(library.get("source"));
      return globalThis.Plotly;
    };
    export default {
      async render({ model, el }) {
        el.classList.add("dphrl-plot");
        const Plotly = await (globalThis.dphrlPlotly ??= load(model).catch((error) => {
          globalThis.dphrlPlotly = undefined; // the next plot tries again
          throw error;
        }));
        const node = el.appendChild(document.createElement("div"));
        let timer, drawn;
        const draw = () => {
          const width = el.clientWidth; // 0 where JupyterLab has taken the cell out of the page: it is drawn on its return
          if (!width) return;
          const { data, layout } = oneColumn(model.get("figure"), width);
          drawn = width;
          return Plotly.react(node, data, { ...layout, width }, model.get("config"));
        };
        const resized = new ResizeObserver(() => {
          if (el.clientWidth && el.clientWidth !== drawn) draw();
        });
        const follow = () => {
          clearTimeout(timer);
          if (model.get("wait")) timer = setTimeout(draw, model.get("wait"));
          else draw();
        };
        model.on("change:figure", follow);
        await draw();
        resized.observe(el);
        return () => {
          resized.disconnect();
          model.off("change:figure", follow);
          clearTimeout(timer);
          Plotly.purge(node);
        };
      },
    };
    """
    )
    figure = traitlets.Dict().tag(sync=True)
    config = traitlets.Dict(page.CONFIG).tag(sync=True)
    library = traitlets.Instance(_Library).tag(sync=True, **ipywidgets.widget_serialization)
    wait = traitlets.Int(0, help="milliseconds without a further change before it is redrawn").tag(sync=True)

    def __init__(self, figure: go.Figure, wait: int = 0):
        super().__init__(figure=_plain(figure), library=_library(), wait=wait)

    def show(self, figure: go.Figure):
        """Draw `figure` in place of the present one."""
        self.figure = _plain(figure)


def _plain(figure: go.Figure) -> dict:
    return json.loads(pio.to_json(page.described(figure.to_dict()), validate=False))


class Live(ipywidgets.VBox):
    """Controls above figures that are rebuilt whenever a control changes.

    Args:
        controls: by the name under which `build` takes their values.
        build: from the values to one figure or several; a string is shown as HTML, text to select and to copy.
        extra: further widgets for the control row, without a value that `build` needs (buttons).
    """

    def __init__(self, controls: Mapping[str, ipywidgets.Widget], build: Callable, extra: Sequence = ()):
        self.controls, self._build, self.figures = dict(controls), build, []
        self.plots = ipywidgets.VBox()
        page.helper()
        switches = [control for control in self.controls.values() if isinstance(control, ipywidgets.Checkbox)]
        others = [control for control in self.controls.values() if control not in switches]
        rows = [ipywidgets.Box(row, layout={"flex_flow": "row wrap"}) for row in ([*others, *extra], switches) if row]
        for row in rows:
            row.add_class("dphrl-controls")
        super().__init__([*rows, self.plots])
        for control in self.controls.values():
            control.observe(self.redraw, names="value")
        self.redraw()

    @property
    def values(self) -> dict:
        """The controls' present values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self, _change=None):
        """Build the figures from the controls' values and show them in place of the old ones."""
        figures = self._build(**self.values)
        self.figures = list(figures) if isinstance(figures, (list, tuple)) else [figures]
        if [isinstance(plot, Plot) for plot in self.plots.children] != [not isinstance(f, str) for f in self.figures]:
            # a second figure follows when the hand rests, so that the first keeps up with it
            new = lambda figure, wait: ipywidgets.HTML(figure) if isinstance(figure, str) else Plot(figure, wait)
            self.plots.children = [new(figure, 100 if i else 0) for i, figure in enumerate(self.figures)]
            return
        for plot, figure in zip(self.plots.children, self.figures, strict=True):
            if isinstance(figure, str):
                plot.value = figure
            else:
                plot.show(figure)
