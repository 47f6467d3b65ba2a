"""What a student does: open each notebook in JupyterLab, run it, turn every knob, see the figure change. All offline.

Each notebook is opened once: what is asked of one alone (`ALSO`) is asked before `checker` moves everything.
"""

import warnings
from functools import partial
from pathlib import Path

import checker
import pytest
from conftest import NOTEBOOKS

LABELLED = '.widget-dropdown:has(.widget-label:text-is("Divergence"))'
# what the figures draw, with plotly's packed arrays as they were sent
DATA = "cell => JSON.stringify([...cell.querySelectorAll('.js-plotly-plot')].map(figure => figure.data))"
RANGES = """plot => Object.fromEntries(Object.entries(plot._fullLayout)
  .filter(([name, axis]) => /^[xy]axis/.test(name)).map(([name, axis]) => [name, axis.range]))"""
CHANGED = f"([cell, before]) => cell.querySelector('.js-plotly-plot .main-svg') && ({DATA})(cell) !== before"


def choose_another(select) -> None:
    """Choose an option of a dropdown that is not the present one."""
    options = select.locator("option").evaluate_all("options => options.map(option => option.value)")
    present = select.input_value()
    select.select_option(next(option for option in options if option != present))


def wait_for_change(notebook, cell, before: str) -> None:
    from playwright.sync_api import TimeoutError

    try:
        notebook.page.wait_for_function(CHANGED, arg=[cell.element_handle(), before], timeout=60_000)
    except TimeoutError:
        notebook.picture("unchanged")
        shown = notebook.widget_errors() or notebook.watch.errors or "no error is shown"
        pytest.fail(f"the figure's data did not change within a minute; {shown}", pytrace=False)


def run_without_errors(notebook, name: str) -> None:
    notebook.open(name)
    checker.listen(notebook)
    notebook.run_all()
    assert notebook.cell_errors() == []
    assert notebook.cells_not_run() == []


def assert_nothing_went_wrong(notebook) -> None:
    assert notebook.widget_errors() == []
    assert notebook.watch.outside == [], "the page asked other machines; everything has to work offline"
    assert notebook.watch.errors == [], "errors in the browser's console"


def drag(page, part, right: float, down: float = 0.0) -> None:
    """Press the mouse in the middle of `part`, move it by so many pixels in steps, and let go."""
    box = part.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=5)
    page.mouse.up()


def another_divergence_redraws(notebook):
    cell = notebook.scroll_to(f".jp-Cell:has({LABELLED})")
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    before = cell.evaluate(DATA)

    choose_another(cell.locator(f"{LABELLED} select"))
    wait_for_change(notebook, cell, before)
    notebook.picture("divergence_explorer", cell.locator(".jp-Cell-outputWrapper"))


def dragging_keeps_the_zoom(notebook, label: str):
    """The figure changes in place while the slider is dragged, and stays zoomed."""
    slider = f'.widget-hslider:has(.widget-label:text-is("{label}"))'
    cell = notebook.scroll_to(f".jp-Cell:has({slider})")
    plot = cell.locator(".js-plotly-plot").first
    plot.locator(".main-svg").first.wait_for()
    plot.scroll_into_view_if_needed()
    whole = plot.evaluate(RANGES)
    drag(notebook.page, plot.locator(".nsewdrag").first, right=60, down=50)  # a box: plotly zooms into it
    notebook.page.wait_for_timeout(500)
    zoomed = {name: extent for name, extent in plot.evaluate(RANGES).items() if extent != whole[name]}
    node, before = plot.element_handle(), cell.evaluate(DATA)
    assert zoomed

    drag(notebook.page, cell.locator(f"{slider} .noUi-handle"), right=25)
    wait_for_change(notebook, cell, before)
    assert node.evaluate("plot => plot.isConnected"), "the plot was thrown away and drawn anew: it flickers"
    after = node.evaluate(RANGES)
    assert {name: after[name] for name in zoomed} == zoomed, "the zoom is lost"
    notebook.picture(f"{label}_dragged".replace(" ", "_"), cell.locator(".jp-Cell-outputWrapper"))


def another_query_shows_its_rows(notebook):
    suggestions = '.widget-dropdown:has(.widget-label:text-is("try"))'
    cell = notebook.scroll_to(f".jp-Cell:has({suggestions})")
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    before = cell.evaluate(DATA)

    mistake = cell.locator(f"{suggestions} option").filter(has_text="a typical mistake").first.get_attribute("value")
    cell.locator(f"{suggestions} select").select_option(mistake)
    wait_for_change(notebook, cell, before)
    before = cell.evaluate(DATA)
    judges = '.widget-dropdown:has(.widget-label:text-is("judge on"))'
    cell.locator(f"{judges} select").select_option(index=1)
    wait_for_change(notebook, cell, before)
    notebook.picture("sql_lab", cell.locator(".jp-Cell-outputWrapper"))


def rollouts_are_browsed_with_the_keyboard_alone(notebook):
    cell = notebook.scroll_to('.jp-Cell:has(.widget-label:text-is("completion"))')
    page, shown = notebook.page, cell.locator(".widget-html-content").first
    cell.locator("select").focus()
    for keys in (["ArrowDown"], ["Tab", "ArrowRight"]):
        before = shown.inner_text()
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_function("([node, before]) => node.innerText !== before", arg=[shown.element_handle(), before])
    assert "▶ 2" in shown.inner_text()
    notebook.picture("rollout_browser", cell.locator(".jp-Cell-outputWrapper"))


def the_front_follows_its_switches_and_names_the_run_under_the_pointer(notebook):
    upwards = '.widget-dropdown:has(.widget-label:text-is("upwards"))'
    cell = notebook.scroll_to(f".jp-Cell:has({upwards})")
    plot = cell.locator(".js-plotly-plot").first
    plot.locator(".main-svg").first.wait_for()
    for turn in (
        lambda: cell.locator(f"{upwards} select").select_option("distinct"),
        lambda: cell.get_by_label("rkl", exact=True).uncheck(),
    ):
        before = cell.evaluate(DATA)
        turn()
        wait_for_change(notebook, cell, before)
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .trace .point").last.bounding_box()
    notebook.page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2, steps=5)
    told = plot.locator(".hoverlayer .hovertext").first
    told.wait_for()
    assert "Pass@64" in told.text_content() and "seed" in told.text_content()
    notebook.picture("front", cell.locator(".jp-Cell-outputWrapper"))


def a_table_of_ones_own_is_uploaded(notebook):
    cell = notebook.scroll_to('.jp-Cell:has(button:has-text("or upload"))')
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    for name, table, told in (
        ("bad.csv", "n,right\n8,1\n", "no column c"),
        ("good.csv", "model,problem,n,c\nmine,p,8,1\nours,p,8,4\n", "mine: 1 problem, 8 answers to each"),
    ):
        with notebook.page.expect_file_chooser() as chooser:
            cell.locator('button:has-text("or upload")').click()
        chooser.value.set_files({"name": name, "mimeType": "text/csv", "buffer": table.encode()})
        cell.locator(".widget-html-content", has_text=told).first.wait_for()
    notebook.picture("counts", cell.locator(".jp-Cell-outputWrapper"))


def figures_are_saved_with_the_keyboard(notebook):
    for place in (".jp-RenderedPlotly", ".dphrl-plot"):  # one of a cell, one of a widget
        notebook.scroll_to(f".jp-Cell:has({place} .dphrl-svg)")
        for kind, begin in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
            notebook.page.locator(f'{place} button[aria-label$="{kind}"]').first.focus()
            with notebook.page.expect_download() as download:
                notebook.page.keyboard.press("Enter")
            name, content = download.value.suggested_filename, Path(download.value.path()).read_bytes()
            assert content.startswith(begin) and len(content) > 5_000
            assert name.endswith(kind.lower()) and not name.startswith("newplot"), name


ALSO = {
    "01_divergence_geometry": [
        another_divergence_redraws,
        partial(dragging_keeps_the_zoom, label="policy mean"),
        figures_are_saved_with_the_keyboard,
    ],
    "02_estimators": [partial(dragging_keeps_the_zoom, label="distance")],
    "03_collapse_in_miniature": [partial(dragging_keeps_the_zoom, label="strength")],
    "04_verifiable_tasks": [another_query_shows_its_rows],
    "05_presampling": [rollouts_are_browsed_with_the_keyboard_alone],
    "07_qlora_at_7b": [partial(dragging_keeps_the_zoom, label="LoRA rank")],
    "08_pass_at_k_analysis": [
        partial(dragging_keeps_the_zoom, label="answers drawn"),
        the_front_follows_its_switches_and_names_the_run_under_the_pointer,
        a_table_of_ones_own_is_uploaded,
    ],
}
# controls that rightly change nothing where `checker` comes to them: its sliders stand at their beginning by then
IDLE = {
    ("03", "Divergence"): "strength 0, at which no divergence acts: the title says so",
    ("05", "rehearse D_exp's right answers too"): "at threshold 1 no problem is in D_exp",
    ("06", "Refresh"): "no run elsewhere has written anything",
    ("08", "problems"): "the table that the checker uploads has one kind of problem",
}
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def test_every_notebook_is_there():
    assert set(ALSO) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_each_of_its_controls_works(notebook, name):
    run_without_errors(notebook, f"{name}.ipynb")
    for step in ALSO.get(name, ()):
        step(notebook)
    report = checker.read(notebook)
    notebook.picture(name)
    for idle in report.idle:
        if any(name.startswith(number) and f"{control!r}" in idle for number, control in IDLE):
            continue
        warnings.warn(f"{name}, {idle} changes nothing that is seen", stacklevel=1)
    assert report.problems == []
    assert report.moved or "widgets." not in (notebook.lab.folder / f"{name}.ipynb").read_text()


TRAINING = """
from dphrl_lite import models, presampling, widgets
from dphrl_lite.study import experiments
policy, mini = models.load("tiny"), experiments.miniature(train=24, test=4)
parts = presampling.partition(presampling.sample(policy, mini.task, mini.train, progress=False))
tables = {"base": experiments.evaluate(policy, mini.task, mini.test, samples=8, progress=False)}
small = {"problems_per_step": 8, "samples": 4, "rehearsal_per_step": 4}
widgets.TrainingLab(policy, mini, parts, tables, work="runs/lab", seconds=0.2, **small)
"""


def test_a_run_is_started_stopped_and_continued_while_the_page_answers(notebook):
    import nbformat

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without one JupyterLab asks for it
    book = nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(TRAINING)])
    nbformat.write(book, notebook.lab.folder / "training_lab.ipynb")
    run_without_errors(notebook, "training_lab.ipynb")
    cell = notebook.scroll_to('.jp-Cell:has(button:text-is("Stop"))')
    button = lambda name: cell.locator(f'button:text-is("{name}")')
    assert button("Stop").is_disabled()
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()  # what is below it moves when it comes
    slider = cell.locator('.widget-hslider:has(.widget-label:text-is("steps in all"))')
    slider.locator(".noUi-handle").press("End")  # a long run
    slider.locator('.widget-readout:text-is("120")').wait_for()
    button("Start").click()
    cell.locator("text=/step [1-9][0-9]* of 120/").wait_for()
    before = cell.evaluate(DATA)
    wait_for_change(notebook, cell, before)  # the curves move by themselves
    button("Stop").click()
    stopped = cell.locator("text=/stopped after [0-9]+ of 120 steps/")
    stopped.wait_for()
    done = int(stopped.inner_text().split("stopped after ")[1].split()[0])
    assert 0 < done < 120, "Stop came when the run was done"
    button("Continue").click()
    following = cell.locator("text=/step [1-9][0-9]* of 120/")
    following.wait_for()
    assert int(following.inner_text().rsplit("step ", 1)[1].split()[0]) > done, "it began anew"
    cell.locator("text=/120 steps done and evaluated/").wait_for(timeout=300_000)
    notebook.picture("training_lab", cell.locator(".jp-Cell-outputWrapper"))
    assert_nothing_went_wrong(notebook)
