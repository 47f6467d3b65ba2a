"""What a figure is on a page besides its drawing: words for those who do not see it, PNG and SVG to keep, and keys.

Holds the renderers of JupyterLab, VS Code and Colab too: `plotly` chooses among them by where it runs. Draws nothing.
"""

import base64
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from html import unescape

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import ColabRenderer, PlotlyRenderer

# A mode bar without the button that sends the figure to its maker; its PNG button saves the size on the page, in twice its
# pixels, also where `SCRIPT` does not run.
CONFIG = {
    "displaylogo": False,
    "showSendToCloud": False,
    "toImageButtonOptions": {"scale": 2, "width": None, "height": None},
}

# Everything that plotly does not do itself, for each of its figures on the page, whoever drew it. It runs once a page.
# - the words of `alt_text` on the drawing
# - an SVG button beside the PNG button: the same button pressed with another format
# - names for sliders, of which ipywidgets names the label only, and a ring around what has the focus
# - keys go to the control that has the focus: JupyterLab would take arrows, Enter and letters for its own commands
SCRIPT = """
(() => {
  if (globalThis.dphrlPage) return;
  globalThis.dphrlPage = true;
  const controls = ".dphrl-controls, .modebar";
  const style = document.createElement("style");
  style.textContent = `:is(${controls}) :focus-visible { outline: 3px solid #0072B2 !important; outline-offset: 2px; }`;
  document.head.append(style);
  addEventListener("keydown", ({ target, key, ctrlKey, metaKey }) => target.closest?.(controls)
    && target.toggleAttribute("data-lm-suppress-shortcuts", key !== "Escape" && !ctrlKey && !metaKey), true);

  const title = (plot) => plot.layout?.title?.text;
  const words = (plot) => plot.layout?.meta?.alt || title(plot) || "figure";
  const name = (plot) => (title(plot) || words(plot).split(". ")[0]).split("<br>")[0].replace(/<[^>]*>/g, "")
    .toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "figure";
  const offer = (plot, png) => {
    const svg = png.cloneNode(true);
    let format = "png";
    png.addEventListener("click", () => {
      plot._context.toImageButtonOptions = { format, filename: name(plot), scale: 2, width: null, height: null };
    }, true);
    svg.addEventListener("click", () => { format = "svg"; png.click(); format = "png"; });
    svg.classList.add("dphrl-svg");
    for (const told of ["data-title", "aria-label"]) svg.setAttribute(told, "Download plot as an SVG");
    svg.querySelector("svg").outerHTML = "<small><b>SVG</b></small>";
    png.after(svg);
  };
  const dress = (plot) => {
    const [drawing, ...over] = plot.querySelectorAll(".main-svg");
    drawing.setAttribute("role", "img");
    drawing.setAttribute("aria-label", words(plot));
    for (const part of over) part.setAttribute("aria-hidden", "true");
    const png = plot.querySelector(".modebar-btn[data-title='Download plot as a PNG']");
    if (png && !plot.querySelector(".dphrl-svg")) offer(plot, png);
  };
  const look = () => {
    for (const plot of document.getElementsByClassName("js-plotly-plot")) {
      if (plot.dphrlDressed || !plot.on || !plot.querySelector(".main-svg")) continue;
      plot.dphrlDressed = true;
      plot.on("plotly_afterplot", () => dress(plot));
      dress(plot);
    }
    for (const handle of document.querySelectorAll(".widget-inline-hbox .noUi-handle:not([aria-label])"))
      handle.setAttribute("aria-label", handle.closest(".widget-inline-hbox").querySelector(".widget-label").textContent);
  };
  let due;
  const soon = () => { due ??= setTimeout(() => { due = undefined; look(); }, 100); };
  new MutationObserver(soon).observe(document, { childList: true, subtree: true });
  look();
})();
"""

# `oneColumn(figure, width)`: a copy whose panels stand below each other and whose legend stands below them all, where the page
# is too narrow for panels side by side; the figure itself elsewhere. Titles break at middle dots and where a line is full.
# A panel takes 200 pixels, and between two are 100, for the upper one's axis and the lower one's title.
NARROW = """
const oneColumn = (figure, width) => {
  if (!width || width >= 720) return figure;
  const { data, layout } = structuredClone(figure);
  const domain = (axis) => axis?.domain ?? [0, 1];
  const panels = Object.keys(layout).filter((key) => /^xaxis/.test(key)).map((key) => {
    const x = layout[key], y = layout["yaxis" + (x.anchor ?? "y").slice(1)];
    return { x, y, name: "x" + key.slice(5), old: [domain(x), domain(y)] };
  }).filter(({ y }) => y).sort((a, b) => b.old[1][1] - a.old[1][1] || a.old[0][0] - b.old[0][0]);
  const rows = new Set(panels.map(({ old }) => old[1][1])).size, many = panels.length > rows;
  const left = Math.min(layout.margin?.l ?? 70, 130), most = (width - left - 24) / 7.2;
  const plain = (text) => text.replace(/<[^>]*>/g, "").length;
  const lines = (layout.title?.text ?? "").replace(/ · /g, "<br>").split("<br>").map((line) => {
    let row = "";
    return line.split(/ (?![^<]*>)/).reduce((all, word) => {
      const full = row && plain(row) + plain(word) >= most;
      row = full || !row ? word : `${row} ${word}`;
      return all + (!all ? "" : full ? "<br>" : " ") + word;
    }, "");
  }).join("<br>");
  const font = { ...layout.title?.font, size: 14 }, pad = { t: width < 460 ? 54 : 30 };  // below the toolbar of one or two rows
  if (layout.title) Object.assign(layout.title, { text: lines, font, pad, yref: "container", y: 1, yanchor: "top" });
  const top = 40 + pad.t + 18 * lines.split("<br>").length;
  const shown = data.filter(({ name, showlegend }) => name && showlegend !== false).length;
  const below = layout.showlegend === false || shown < 2 ? 60 : 84 + 22 * Math.ceil(shown / 2);
  const inside = many ? 300 * panels.length - 100 : (layout.height ?? 450) - 140;
  layout.height = top + inside + below;
  layout.margin = { ...layout.margin, l: left,
                    r: panels.length ? 24 : Math.min(layout.margin?.r ?? 24, 130), t: top, b: below };
  layout.legend = { ...layout.legend, orientation: "h", xref: "container", x: 0.02, xanchor: "left",
                    yref: "container", y: 0.01, yanchor: "bottom" };
  if (!many) return { data, layout };
  const step = 300 / inside, high = 200 / inside;
  panels.forEach(({ x, y, name, old: [across, up] }, i) => {
    const y1 = 1 - i * step, y0 = Math.max(0, y1 - high);
    for (const note of layout.annotations ?? [])  // the panel's title
      if (note.xref === "paper" && Math.abs(note.y - up[1]) < 0.02 && note.x >= across[0] && note.x <= across[1] && !note.moved)
        Object.assign(note, { x: 0.5, y: y1, moved: true });
    for (const trace of data)
      if ((trace.xaxis ?? "x") === name && trace.colorbar) Object.assign(trace.colorbar, { y: (y0 + y1) / 2, len: y1 - y0 });
    Object.assign(x, { domain: [0, 1] });
    Object.assign(y, { domain: [y0, y1], showticklabels: true });
  });
  for (const note of layout.annotations ?? []) delete note.moved;
  return { data, layout };
};
"""


def to_html(figure: go.Figure, **options) -> str:
    """`figure` as an HTML page of its own, with its words and both buttons; `options` as `plotly.io.to_html` takes them."""
    return pio.to_html(
        described(figure.to_dict()), **{"config": CONFIG, "post_script": SCRIPT, **options}, validate=False
    )


def described(figure: dict) -> dict:
    """`figure`, a plotly figure as a dict, with `alt_text` in its layout's `meta`, where `SCRIPT` finds it."""
    layout = figure.setdefault("layout", {})
    meta = layout.get("meta") or {}
    if isinstance(meta, dict):  # a reader's own figure may hold something else there, and keeps it
        layout["meta"] = {**meta, "alt": alt_text(figure)}
    return figure


def alt_text(figure: dict) -> str:
    """A figure in words: title, panels, axes, and each named curve with where it begins and ends.

    Args:
        figure: as `go.Figure.to_dict` gives.
    """
    layout = figure.get("layout") or {}
    title = _plain((layout.get("title") or {}).get("text"))
    notes = [_plain(note.get("text")) for note in layout.get("annotations") or ()]
    axes = {f"{letter} axis": _axis_titles(layout, letter) for letter in "xy"}
    sentences = _some([title, *notes], 9) or ["Figure without a title"]
    sentences += [f"{direction}: {', '.join(names)}" for direction, names in axes.items() if names]
    traces = [words for trace in figure.get("data") or () if (words := _trace(trace))]
    return ". ".join([*sentences, *_some(dict.fromkeys(traces), 16)]) + "."


def _trace(trace: dict) -> str:
    kind, name = trace.get("type", "scatter"), _plain(trace.get("name"))
    if kind == "table":
        columns = [list(map(_plain, column)) for column in (trace.get("cells") or {}).get("values") or ()]
        head = [_plain(cell) for cell in (trace.get("header") or {}).get("values") or ()]
        rows = [", ".join(row) for row in zip(*columns, strict=False)]
        return "; ".join([f"Table of {', '.join(head)}", *_some(rows, 20)])
    if kind == "sankey":
        return f"Flows between {', '.join(map(_plain, trace['node']['label']))}"
    if not name or kind not in ("scatter", "bar"):
        return name
    across, values = (_values(trace.get(axis)) for axis in "xy")
    if min(len(across), len(values)) == 0:
        return name
    if isinstance(values[0], str):  # drawn sideways: a label's value is across
        across, values = values, across
    if kind == "scatter" and "lines" in trace.get("mode", "lines"):
        return f"{name}: from {_said(values[0])} to {_said(values[-1])}"
    pairs = [f"{_said(place)} {_said(value)}" for place, value in zip(across, values, strict=False)]
    return f"{name}: {', '.join(_some(pairs, 6))}"


def _axis_titles(layout: dict, letter: str) -> list[str]:
    axes = [layout[key] for key in layout if key.startswith(f"{letter}axis")]
    return list(dict.fromkeys(_plain(t) for axis in axes if (t := (axis.get("title") or {}).get("text"))))


def _some(words: Iterable[str], most: int) -> list[str]:
    words = [word for word in words if word]
    return words[:most] + ([f"and {len(words) - most} more"] if len(words) > most else [])


def _values(values) -> np.ndarray:
    """The values of a trace, which plotly packs as base64 where they are numbers."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray([] if values is None else values, dtype=object)


def _said(value) -> str:
    if not isinstance(value, (int, float, np.number)):
        return _plain(value)
    return f"{value:.3g}" if np.isfinite(value) else "–"


def _plain(text) -> str:
    """Words without markup, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", "" if text is None else str(text))).split())


class _Described(PlotlyRenderer):
    """As plotly's own for JupyterLab and VS Code, with the figure's words in its data."""

    def to_mimebundle(self, fig_dict):
        helper()
        return super().to_mimebundle(described(fig_dict))


class _DescribedInColab(ColabRenderer):
    """As plotly's own for Colab, where each output is a page of its own: the script goes with the figure."""

    def to_mimebundle(self, fig_dict):
        return super().to_mimebundle(described(fig_dict))


@cache
def helper():
    """Brings `SCRIPT` into a notebook's page without leaving an output. Without anywidget, figures keep plotly's PNG button."""
    try:
        from anywidget import AnyWidget
    except ImportError:
        return None
    return AnyWidget(_esm=SCRIPT + "export default { initialize() {} };")


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """As if `module` were not installed, unless it is loaded already: jsonschema takes it, for international addresses, if it
    is there, and it compiles a grammar for two seconds."""
    hidden = sys.modules.setdefault(module, None) is None
    yield
    if hidden:
        del sys.modules[module]


def install() -> None:
    """Put the kit's renderers in the place of plotly's for JupyterLab, VS Code and Colab; which of them it is, stays."""
    with _absent("rfc3987_syntax"):
        pio.renderers  # noqa: B018  loads nbformat, and that jsonschema
    for name in ("plotly_mimetype", "jupyterlab", "nteract", "vscode"):
        pio.renderers[name] = _Described(CONFIG)
    pio.renderers["colab"] = _DescribedInColab(CONFIG, post_script=SCRIPT)
    chosen = pio.renderers.default
    # JupyterLab holds plotly: send a figure's data, not 4.5 MB of JavaScript as well
    pio.renderers.default = "plotly_mimetype" if chosen == "plotly_mimetype+notebook" else chosen
