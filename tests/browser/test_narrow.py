"""Figures in a window of 1,280 and of 800 pixels: nothing lies over anything else, and none vanishes when the width changes."""

import nbformat

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
CODE = """
import pandas as pd
from dphrl_lite import figures, widgets
widgets.divergence_explorer()
---
widgets.mass_explorer()
---
widgets.Plot(figures.generators(["forward_kl", "alpha", "js", "reverse_kl", "neyman_chi2"]))
---
log = pd.DataFrame({"step": range(9)} | {name: range(9) for name in ("reward", "entropy", "penalty", "log_u_mean")})
widgets.Plot(figures.training_dashboard({name: log for name in ("grpo", "grpo-exp", "sft", "dph-f", "dph-js")}))
---
widgets.Plot(figures.solved_flow(pd.Series({"keep": 150.0, "forget": 1.3, "gain": 0.2, "never": 48.5}), 64))
"""
# pairs of a figure's words and buttons that lie over each other, and words that stand out of its frame
OVER = """(plot) => {
  const frame = plot.getBoundingClientRect(), boxes = [];
  for (const kind of [".gtitle", ".annotation-text-g", ".xtitle", ".ytitle", ".legend", ".modebar"])
    for (const part of plot.querySelectorAll(kind)) {
      const box = part.getBoundingClientRect();
      if (box.width) boxes.push([kind + " " + part.textContent.slice(0, 30), box]);
    }
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const bad = boxes.filter(([, box]) => box.right > frame.right + 2 || box.bottom > frame.bottom + 2).map(([name]) => name);
  boxes.forEach(([name, box], i) => {
    for (const [other, its] of boxes.slice(i + 1)) if (over(box, its)) bad.push(`${name} | ${other}`);
  });
  return bad;
}"""
DRAWN = """([cell, width]) => {
  const plot = cell.querySelector(".js-plotly-plot"), drawing = plot?.querySelector(".main-svg");
  return drawing && drawing.clientHeight > 100 && Math.abs(drawing.clientWidth - plot.parentElement.clientWidth) < 3
    && plot.clientWidth < width;
}"""


def test_figures_fit_a_narrow_window_and_survive_that_it_changes(notebook):
    cells = [nbformat.v4.new_code_cell(source) for source in CODE.strip().split("\n---\n")]
    path = notebook.lab.folder / "narrow.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), path)
    notebook.open(path.name)
    notebook.run_all()
    assert notebook.cell_errors() == []
    for turn, width in enumerate((1280, 800, 1280, 800)):
        notebook.page.set_viewport_size({"width": width, "height": 1000})
        for index in range(len(cells)):
            cell = notebook.go_to(index)
            notebook.page.wait_for_function(DRAWN, arg=[cell.element_handle(), width], timeout=60_000)
            plot = cell.locator(".js-plotly-plot").first
            columns = plot.evaluate(
                "plot => new Set(Object.entries(plot._fullLayout).filter(([name, axis]) => "
                "/^xaxis/.test(name)).map(([, axis]) => axis.domain[0])).size"
            )
            assert columns <= 1 or width == 1280, f"cell {index} has {columns} columns at {width} pixels"
            notebook.picture(f"narrow_{index}_{width}_{turn}", cell.locator(".jp-Cell-outputWrapper"))
            assert plot.evaluate(OVER) == [], f"cell {index} at {width} pixels"
    assert notebook.widget_errors() == []
    assert notebook.watch.errors == []
