"""The mechanism of exercises, and that every exercise of every notebook has a check, a solution, and wrong answers tested.
That the solutions are right is seen where notebooks/solutions/ runs: there an answer that is not right is an error."""

import importlib
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from dphrl_lite.course import check, solutions

NOTEBOOKS = sorted(solutions.NOTEBOOKS.glob("*.ipynb"))
ASKED = {cell.metadata["exercise"]: cell for path in NOTEBOOKS for cell in solutions.exercises(nbformat.read(path, 4))}
MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("test_notebook_*.py"))]
WRONG = [wrong for module in MODULES for wrong in module.WRONG]  # an exercise, a wrong answer, words of its hint
WITH_EXERCISES = [f"{number:02d}" for number in range(1, 9)]


@pytest.fixture(autouse=True)
def nothing_answered(monkeypatch):
    monkeypatch.setattr(check, "_given", {})


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    assert set(ASKED) == set(check.checks())


@pytest.mark.parametrize("notebook", WITH_EXERCISES)
def test_there_are_at_least_four_exercises(notebook):
    assert sum(name.startswith(f"{notebook}-") for name in ASKED) >= 4


@pytest.mark.parametrize("empty", [..., None])
@pytest.mark.parametrize("exercise", check.checks())
def test_no_answer_is_told_so(exercise, empty):
    result = check.answer(exercise, empty)
    assert result.right is None and not result
    assert "no answer yet" in result.message


@pytest.mark.parametrize("exercise", check.checks())
def test_an_answer_of_a_strange_kind_raises_nothing(exercise):
    for strange in (object(), "?", [], {}, float("nan"), lambda *_, **__: 1 / 0, lambda *_, **__: "?", print):
        result = check.answer(exercise, strange)
        assert result.right is not True
        assert result.message


def test_wrong_answers_to_every_exercise_are_tested():
    assert {exercise for exercise, _, _ in WRONG} >= set(check.checks())


@pytest.mark.parametrize(("exercise", "given", "told"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(exercise, given, told):
    result = check.answer(exercise, given)
    assert result.right is False
    assert told.lower() in result.message.lower()


@pytest.mark.parametrize("exercise", ASKED)
def test_the_solution_is_not_the_placeholder_and_the_prompt_names_the_exercise(exercise):
    cell = ASKED[exercise]
    placeholder = cell.source.splitlines()[:-1]
    assert cell.metadata["solution"].splitlines() != placeholder
    notebook = nbformat.read(next(path for path in NOTEBOOKS if path.name.startswith(exercise[:2])), 4)
    before = notebook.cells[[other.id for other in notebook.cells].index(cell.id) - 1]
    assert before.cell_type == "markdown"
    assert re.search(rf"^### Exercise {exercise} · .+", before.source, re.MULTILINE)


def test_the_checked_in_solutions_are_those_of_the_notebooks():
    there = {path.name: path.read_text() for path in (solutions.NOTEBOOKS / "solutions").glob("*.ipynb")}
    assert there == solutions.editions(), "the solutions are stale: make solutions"


# ---- the mechanism ---------------------------------------------------------------------------------------------------


def test_a_function_that_fails_is_told_its_error_and_one_without_body_that_it_is_empty(monkeypatch):
    monkeypatch.setitem(check.CHECKS, "99-1", lambda given: f"It gives {check.call(given, 2)}.")
    assert check.answer("99-1", lambda x: x + 1).message == "right. It gives 3."
    assert "ZeroDivisionError" in check.answer("99-1", lambda x: x / 0).message
    assert check.answer("99-1", lambda x: ...).right is None
    unfinished = check.answer("99-1", lambda x: max(*...))  # as where it calls a function that returns `...`
    assert unfinished.right is None and "one that it calls" in unfinished.message
    assert "each branch" in check.answer("99-1", lambda x: None).message
    assert "A function is asked for" in check.answer("99-1", 3).message


def test_an_answer_may_be_a_number_of_any_library():
    for given in (0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([0.5]), pd.Series([0.5])):
        assert check.number(given) == 0.5
    for given in (torch.tensor([1.0, 2.0]), np.array([1, 2]), "0.5", True):
        with pytest.raises(check.Hint, match="A number is asked for"):
            check.number(given)


def test_a_function_that_changes_its_input_harms_nobody(monkeypatch):
    kept = torch.ones(2)
    monkeypatch.setitem(check.CHECKS, "99-1", lambda given: f"{check.call(given, kept)}")
    assert check.answer("99-1", lambda x: x.zero_().sum().item())
    assert kept.sum() == 2


def test_a_solution_that_is_wrong_is_an_error():
    assert check.require("01-1", "forward_kl")
    with pytest.raises(check.NotRight, match="without bound"):
        check.require("01-1", "js")


def test_progress_counts_the_latest_answer():
    total = sum(name.startswith("01-") for name in check.checks())
    check.answer("01-1", "forward_kl")
    assert check.progress("01").startswith(f"Notebook 01: 1 of {total} right")
    check.answer("01-1", "js")
    assert check.progress("01").startswith(f"Notebook 01: 0 of {total} right")


def test_unknown_exercises_are_an_error():
    with pytest.raises(KeyError, match="unknown exercise"):
        check.answer("77-7", 1)


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [(1.0, 1.00001, True), ([1, 2], [1.0, 2.0], True), ([1, 2], [[1, 2]], False), (float("inf"), float("inf"), True)],
)
def test_closeness_is_of_shape_and_value(given, expected, same):
    assert check.close(given, expected) is same


def book(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A"), *cells])


def test_a_solved_notebook_holds_the_solution_and_demands_it():
    asked = nbformat.v4.new_code_cell('x = ...\ncheck.answer("01-1", x)')
    asked.metadata = nbformat.from_dict({"exercise": "01-1", "solution": 'x = "forward_kl"'})
    link = nbformat.v4.new_markdown_cell("[a](00_start_here.ipynb) [b](https://example.org) ![c](images/c.png)")
    student = book(asked, link)
    edition = solutions.solved(student, "a.ipynb")
    assert edition.cells[1].source == 'x = "forward_kl"\ncheck.require("01-1", x)'
    assert "solution" not in edition.cells[1].metadata
    assert edition.cells[2].source == "[a](../00_start_here.ipynb) [b](https://example.org) ![c](../images/c.png)"
    assert student.cells[1].source.startswith("x = ...")


def test_a_solution_that_ends_in_a_function_stays_well_formatted():
    asked = nbformat.v4.new_code_cell('def f(): ...\n\n\ncheck.answer("01-1", f)')
    asked.metadata = nbformat.from_dict({"exercise": "01-1", "solution": "def f():\n    return 1"})
    edition = solutions.solved(book(asked), "a.ipynb")
    assert edition.cells[1].source == 'def f():\n    return 1\n\n\ncheck.require("01-1", f)'


@pytest.mark.parametrize("change", [{"source": "x = ..."}, {"metadata": {"exercise": "01-1"}}])
def test_an_exercise_without_check_or_solution_is_refused(change):
    asked = nbformat.v4.new_code_cell('x = ...\ncheck.answer("01-1", x)')
    asked.metadata = nbformat.from_dict({"exercise": "01-1", "solution": "x = 1"})
    asked.update(nbformat.from_dict(change))
    with pytest.raises(ValueError, match=r"exercise 01-1 of a\.ipynb"):
        solutions.solved(book(asked), "a.ipynb")


def test_the_lines_of_a_class_are_collected(monkeypatch):
    monkeypatch.setattr(check, "_given", {})
    lines = [str(check.progress("06")), "Ada: Notebook 01: 3 of 3 right.", "vote: dph-js", "noise"]
    table = check.collected("\n".join(lines))
    assert table["notebook"].tolist()[:2] == ["06", "01"]
    assert table["right"].tolist()[:2] == [0, 3]
    every = [name for name in check.checks("06") if name.startswith("06-")]
    assert table["open"].tolist()[:2] == [every, []]
    assert table["vote"].dropna().tolist() == ["dph-js"]


@pytest.mark.parametrize("pasted", ["{}", "'{}'", '"{}"', "> {}", "10:31 Ada: {}", "*{}*", "\t{}  ", "CAPITALS"])
def test_a_pasted_line_survives_a_chat(pasted):
    line = "Notebook 06: 7 of 9 right, open: 4 9."
    said = line.upper() if pasted == "CAPITALS" else pasted.format(line)
    for text in (said, said.replace(" ", "\u00a0"), said.replace(" of ", "\n> of "), said.replace(" 9.", "\r\n9.")):
        (row,) = check.collected(f"{text}\n10:32 Bob: hello 5").itertuples()
        assert (row.notebook, row.right, row.of, row.open) == ("06", 7, 9, ["06-4", "06-9"])


def test_a_line_is_short_and_the_next_line_s_time_is_no_exercise(monkeypatch):
    monkeypatch.setattr(check, "_given", {})
    assert max(len(str(check.progress(f"{n:02d}"))) for n in range(1, 9)) < 80
    (row,) = check.collected("Notebook 03: 5 of 6 right, open: 2\n10:32 Bob: hello").itertuples()
    assert row.open == ["03-2"]


def test_votes_are_counted_whatever_their_quotes_and_capitals():
    table = check.collected("vote: dph-js\nVote : DPH-JS.\n> vote: 'dph-js'\n10:31 Ada: vote: reverse  KL\nvote:\n")
    assert table["vote"].value_counts().to_dict() == {"dph-js": 3, "reverse kl": 1}
