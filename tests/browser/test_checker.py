"""The reader of `checker` finds what is wrong, wherever it is, and nothing where nothing is."""

import checker
import nbformat

GOOD = """
import ipywidgets
import plotly.graph_objects as go
from IPython.display import HTML, display
from dphrl_lite import figures, widgets
figure = lambda x: go.Figure(layout={"title": {"text": f"A line that rises to {x}"}}).add_scatter(y=[0, x], name="line")
slider = lambda words, high=3: ipywidgets.IntSlider(1, 1, high, description=words)
widgets.Live({"x": slider("good")}, figure)
"""
BAD = {
    "a widget raised ZeroDivisionError": 'widgets.Live({"x": slider("bad")}, lambda x: figure(x) if x == 1 else 1 / 0)',
    "a slider has no name": 'widgets.Live({"x": slider("")}, figure)',
    "the slider 'off' stays switched off": 'ipywidgets.IntSlider(description="off", disabled=True)',
    "Tab does not reach 'unreachable'": """
display(HTML("<script>setInterval(() => document.querySelectorAll('[aria-label=unreachable]')"
             ".forEach((handle) => { handle.tabIndex = -1; }), 50)</script>"))
widgets.Live({"x": slider("first"), "y": slider("unreachable")}, lambda x, y: figure(x * y))""",
    "in a widget: ": """
output = ipywidgets.Output()
with output:
    print("oh no", file=__import__("sys").stderr)
output""",
    "1 of 1 figures are missing": 'display({"application/vnd.plotly.v1+json": None}, raw=True)',
    "nothing is drawn where it should be": """
class Blank(widgets.Plot):
    _esm = "export default { render({ el }) { el.classList.add('dphrl-plot'); } }"
Blank(figure(1))""",
    "a figure is missing: its place under the controls is empty": """
class Empty(widgets.Plot):
    _esm = "export default { render() {} }"
live = widgets.Live({"x": slider("empty")}, lambda x: "words")
live.plots.children = [Empty(figure(1))]
live""",
    "a figure has no alternative text": """
with_words, figures.page.described = figures.page.described, lambda figure: figure
display(widgets.Plot(go.Figure().add_scatter(y=[1, 2])))
figures.page.described = with_words""",
    "console: injected": "display(HTML('<script>console.error(\"injected\")</script>'))",
    "request to another machine: http://elsewhere.invalid/": "HTML('<img src=\"http://elsewhere.invalid/spy.png\">')",
    "shown as text": 'display({"text/plain": "Figure({})"}, raw=True)',
}


def write(folder, sources: list[str]) -> str:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without one JupyterLab asks for it
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    cells += [
        nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
        nbformat.v4.new_code_cell("0 / 0"),
    ]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), folder / "injected.ipynb")
    return "injected.ipynb"


def test_the_reader_finds_each_thing_that_is_wrong_and_nothing_else(notebook):
    notebook.patience = 5
    notebook.open(write(notebook.lab.folder, [GOOD, *BAD.values()]))
    checker.listen(notebook)
    notebook.run_all()
    (error,) = notebook.cell_errors()  # of the last cell: the one before it fails on purpose
    assert "ZeroDivisionError" in error
    report = checker.read(notebook)
    missed = [words for words in BAD if not any(words in problem for problem in report.problems)]
    assert missed == [], "\n".join(report.problems)
    assert not [problem for problem in report.problems if problem.startswith("cell 0:")]
    assert report.moved >= 4
