"""CONTRIBUTING.md keeps its word: its blocks of Python run, and do what is said of them."""

import re
from pathlib import Path

import nbformat
import pytest
import test_notebooks

from dphrl_lite import divergences, objectives, training
from dphrl_lite.course.install import FIRST_CELL

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M | re.S)


@pytest.fixture
def added(registry, monkeypatch, tmp_path):
    """Runs the block under a heading; what it registers is forgotten afterwards."""
    monkeypatch.setattr(objectives, "_FIXED", dict(objectives._FIXED))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()

    def run(heading: str) -> dict:
        names = {}
        exec(dict(BLOCKS)[heading], names)
        return names

    return run


def test_there_are_the_four_that_a_contributor_looks_for():
    assert [heading for heading, _ in BLOCKS] == ["A divergence", "A method", "A task", "A notebook"]


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[heading for heading, _ in BLOCKS])
def test_each_takes_fewer_than_30_lines(block):
    assert len(block.splitlines()) < 30


def test_a_divergence_is_registered_and_trains(added):
    run = added("A divergence")["run"]
    assert "le_cam" in divergences.names() and "dph-le_cam" in objectives.METHODS
    assert isinstance(run, training.Run) and run.config.method == "dph-le_cam"


def test_a_method_is_registered_and_trains(added):
    run = added("A method")["run"]
    assert objectives.METHODS["all-f"].rehearses and run.config.method == "all-f"


def test_a_task_judges_and_trains(added):
    run = added("A task")["run"]
    assert run.log["reward"].between(0, 1).all()


def test_a_notebook_has_what_every_notebook_has_to_have(added, monkeypatch):
    notebook = nbformat.read(added("A notebook")["path"], 4)
    monkeypatch.setitem(test_notebooks.BOOKS, "10_mine.ipynb", notebook)
    test_notebooks.test_the_head_says_what_is_learnt_how_long_it_takes_and_where_it_goes("10_mine.ipynb")
    test_notebooks.test_the_end_says_what_to_take_away_and_links_on("10_mine.ipynb")
    test_notebooks.test_code_cells_are_short_and_define_no_logic("10_mine.ipynb")
    assert notebook.cells[1].source == FIRST_CELL.rstrip("\n")
