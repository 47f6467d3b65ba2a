"""How fast does a figure follow its slider? Four ways to redraw the same explorer in JupyterLab, and the kit's way for its
other labs, side by side in one run.

Run: `python benchmarks/widgets.py` (needs Chromium; about three minutes, on an otherwise idle machine). It presses an
arrow key on a slider, waits until the figure holds new data and is painted, and prints medians. JSON goes to
benchmarks/results/widgets.json. `setup_MB` counts what the kernel sends until the page rests; the kit's own plotly.js
(4.9 MB) is in every row, because each row builds its figures with the kit's explorer.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
import conftest as lab_tools  # noqa: E402  the browser tests' way to start and watch a JupyterLab

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
START = """
import json
import ipywidgets
import plotly.graph_objects as go
from dphrl_lite import widgets
live = widgets.divergence_explorer()
for control in live.controls.values():
    control.unobserve(live.redraw, names="value")
build = lambda *_: live._build(**{name: control.value for name, control in live.controls.items()})
def show(draw, *shown):
    for control in live.controls.values():
        control.observe(draw, names="value")
    return ipywidgets.VBox([*live.controls.values(), *shown])
"""
MECHANISMS = {
    "Plot: one anywidget each, plotly.js once (the kit's)": "widgets.divergence_explorer()",
    "FigureWidget": """
figure = go.FigureWidget(build())
def draw(_):
    new = build()
    with figure.batch_update():
        for old, trace in zip(figure.data, new.data):
            old.update(trace.to_plotly_json())
        figure.layout.title = new.layout.title
show(draw, figure)
""",
    "Output.outputs, plotly mimetype": """
output = ipywidgets.Output()
def draw(_=None):
    data = {"application/vnd.plotly.v1+json": json.loads(build().to_json())}
    output.outputs = ({"output_type": "display_data", "metadata": {}, "data": data},)
draw()
show(draw, output)
""",
    "interactive_output and fig.show()": """
output = ipywidgets.interactive_output(lambda **_: build().show(renderer="plotly_mimetype"), live.controls)
ipywidgets.VBox([*live.controls.values(), output])
""",
}
LABS = {
    "estimator_lab, Plot": ("widgets.estimator_lab()", "distance"),
    "collapse_lab, Plot": ("widgets.collapse_lab()", "strength"),
    "simplex_explorer, Plot": ("widgets.simplex_explorer()", "reference: A"),
    "mass_explorer, Plot": ("widgets.mass_explorer()", "starts with"),
}
CELLS = {name: (code, "policy mean") for name, code in MECHANISMS.items()} | LABS
PRESS = """async ([key, slider]) => {
  const plot = () => document.querySelector(".js-plotly-plot");
  const title = () => plot()?.querySelector(".gtitle")?.textContent;
  const before = title(), node = plot(), data = node.data, start = performance.now();
  const label = [...document.querySelectorAll(".widget-label")].find((x) => x.textContent === slider);
  const handle = label.parentElement.querySelector(".noUi-handle");
  handle.dispatchEvent(new KeyboardEvent("keydown", { key, keyCode: key === "ArrowRight" ? 39 : 37, bubbles: true }));
  return await new Promise((done) => {
    const look = () => {
      const now = performance.now() - start;
      if ((title() && title() !== before) || (plot() === node && node.data !== data)) {
        requestAnimationFrame(() => done({ ms: performance.now() - start, kept: plot() === node }));
      } else if (now > 5000) done({ ms: null, kept: false });
      else requestAnimationFrame(look);
    };
    look();
  });
}"""


def measure(browser, lab, name: str, slider: str, changes: int) -> dict:
    """Median and 90th percentile of milliseconds from key to paint, and what the kernel sends."""
    context, sent = browser.new_context(viewport={"width": 1400, "height": 1000}), [0]
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: sent.append(sent[-1] + len(data))))
    notebook = lab_tools.NotebookPage(page, lab, lab_tools.Watch())
    notebook.open(name)
    notebook.run_all()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_timeout(2000)
    setup, presses = sent[-1], []
    for i in range(changes + 2):  # the first two warm up
        presses.append(page.evaluate(PRESS, ["ArrowRight" if i % 8 < 4 else "ArrowLeft", slider]))
        page.wait_for_timeout(250)
    context.close()
    done = sorted(press["ms"] for press in presses[2:] if press["ms"] is not None)
    return {
        "median_ms": round(statistics.median(done), 1) if done else None,
        "p90_ms": round(done[int(0.9 * len(done))], 1) if done else None,
        "answered": f"{len(done)} of {changes}",
        "plot_kept": all(press["kept"] for press in presses[2:]),
        "setup_MB": round(setup / 1e6, 2),
        "kB_per_change": round((sent[-1] - setup) / len(presses) / 1e3, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "widgets.json")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    folder = home / "notebooks"
    folder.mkdir()
    for i, (code, _) in enumerate(CELLS.values()):
        cells = [nbformat.v4.new_code_cell(START.strip()), nbformat.v4.new_code_cell(code.strip())]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), folder / f"{i}.ipynb")
    port, log = lab_tools.free_port(), home / "lab.log"
    lab = lab_tools.Lab(f"http://127.0.0.1:{port}", "benchmark", folder)
    command, environment = lab_tools.lab_command(port, "benchmark", folder), lab_tools.private_environment(home)
    with log.open("w") as sink:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=sink)
    try:
        lab_tools.wait_until_answering(lab, server, log)
        with sync_playwright() as playwright:
            path = lab_tools.find_browser()
            browser = playwright.chromium.launch(executable_path=path, args=lab_tools.CHROMIUM_ARGS)
            sliders = {name: slider for name, (_, slider) in CELLS.items()}
            found = {
                name: measure(browser, lab, f"{i}.ipynb", slider, arguments.changes)
                for i, (name, slider) in enumerate(sliders.items())
            }
    finally:
        server.terminate()
        server.wait()
    for name, row in found.items():
        print(f"{name:<54} {row}")
    machine = {"machine": platform.platform(), "python": platform.python_version()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(machine | {"mechanisms": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
