"""What a student does first: open a notebook in JupyterLab, run it, turn a knob, see the figure change. All offline."""

import pytest

LABELLED = '.widget-dropdown:has(.widget-label:text-is("Divergence"))'
SLIDER = '.widget-hslider:has(.widget-label:text-is("distance"))'
# what the figures draw, with plotly's packed arrays as they were sent
DATA = "cell => JSON.stringify([...cell.querySelectorAll('.js-plotly-plot')].map(figure => figure.data))"
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


def test_divergence_explorer_redraws_when_another_divergence_is_chosen(notebook):
    notebook.open("01_divergence_geometry.ipynb")
    notebook.run_all()
    assert notebook.cell_errors() == []
    assert notebook.cells_not_run() == []

    cell = notebook.scroll_to(f".jp-Cell:has({LABELLED})")
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    before = cell.evaluate(DATA)

    choose_another(cell.locator(f"{LABELLED} select"))
    wait_for_change(notebook, cell, before)
    notebook.picture("divergence_explorer", cell.locator(".jp-Cell-outputWrapper"))

    assert notebook.widget_errors() == []
    assert notebook.watch.outside == [], "the page asked other machines; everything has to work offline"
    assert notebook.watch.errors == [], "errors in the browser's console"


def test_estimator_lab_redraws_while_the_distance_is_moved(notebook):
    notebook.open("02_estimators.ipynb")
    notebook.run_all()
    assert notebook.cell_errors() == []
    assert notebook.cells_not_run() == []

    cell = notebook.scroll_to(f".jp-Cell:has({SLIDER})")
    cell.locator(".js-plotly-plot .main-svg").first.wait_for()
    before = cell.evaluate(DATA)

    cell.locator(f"{SLIDER} .noUi-handle").press("ArrowRight")
    wait_for_change(notebook, cell, before)
    notebook.picture("estimator_lab", cell.locator(".jp-Cell-outputWrapper"))

    assert notebook.widget_errors() == []
    assert notebook.watch.outside == [], "the page asked other machines; everything has to work offline"
    assert notebook.watch.errors == [], "errors in the browser's console"
