"""Miniature text-to-SQL: every listed query is right, near misses are not, and no held-out schema is ever shown."""

import re
import subprocess
import sys
from itertools import pairwise

import pytest

from dphrl_lite.models import DATA
from dphrl_lite.tasks import Problem, get, minisql
from dphrl_lite.tasks.minisql import FORMS, SPLITS, problems, schema, supervised_examples

COUNTS = {form: {split: len(problems(form, split=split)) for split in SPLITS} for form in FORMS}


@pytest.fixture(scope="module")
def task():
    return get("sql", databases=DATA / "minisql")


@pytest.mark.parametrize("form", FORMS)
def test_every_query_of_a_form_is_right_and_several_are_different_solutions(task, form):
    seen = set()
    for index in (2, 25, 33, 50):
        for words in list(minisql._fillings(index, form))[::37]:
            answers = [answer.format(**words) for answer in FORMS[form][1]]
            problem = Problem("p", "", answers[0], {"db_id": f"mini{index:02d}"})
            verdicts = task.verify_all((problem, answer) for answer in answers)
            assert all(verdict.correct for verdict in verdicts), (answers, [v.reason for v in verdicts])
            seen.add(len({verdict.distinct for verdict in verdicts}))
    assert max(seen) >= 3


@pytest.mark.parametrize("form", [form for form in FORMS if "{v}" in FORMS[form][0]])
def test_a_comparison_that_is_turned_round_or_off_by_one_is_wrong(task, form):
    """Of all questions of a form at most a tenth let it pass by chance of the rows."""
    asked = problems(form, 60, split="test", seed=3)
    for sign in (" < ",) if form == "different" else (" < ", " >= "):  # few tags: one row more seldom adds one
        verdicts = task.verify_all((p, p.answer.replace(" > ", sign)) for p in asked)
        assert sum(v.correct for v in verdicts) <= 6, sign


def test_a_query_that_ignores_the_comparison_is_wrong(task):
    for p in problems("different", 40, split="test", seed=4):
        ignoring = re.sub(r"(\w+) > \d+", r"\1 > 0", p.answer)
        assert not task.verify(p, ignoring).correct, ignoring


@pytest.mark.parametrize("form", ["count", "filter", "whose"])
def test_a_word_spelled_otherwise_than_it_is_stored_is_wrong(task, form):
    kinds = set()
    for p in problems(form, 60, split="test", seed=4):
        word = re.search(r"'(\w+)'", p.answer)[1]
        right = [spell for spell in minisql.SPELLINGS if task.verify(p, p.answer.replace(word, spell(word))).correct]
        assert [spell(word) for spell in right] == [word]
        kinds.add(right[0])
    assert len(kinds) == 3


def test_the_answer_of_another_question_is_wrong(task):
    asked = problems("most", 40, split="test")
    others = [b.answer for a, b in pairwise(asked) if a.meta["db_id"] != b.meta["db_id"]]
    assert not any(task.verify(asked[0], other).correct for other in others if other != asked[0].answer)


def test_no_two_splits_share_a_database_or_a_schema():
    schemas = {split: {schema(i) for i in indices} for split, indices in SPLITS.items()}
    assert sum(map(len, schemas.values())) == len(set.union(*schemas.values())) == sum(map(len, SPLITS.values()))


def test_supervised_examples_never_show_a_held_out_schema():
    hidden = {str(schema(i)) for split in ("validation", "test") for i in SPLITS[split]}
    shown = {prompt.removeprefix("sql ").split(" ? ")[0] for prompt, _ in supervised_examples(2000, seed=5)}
    assert len(shown) > 1900 and not shown & hidden


def test_supervised_answers_use_every_query_of_every_form():
    examples = supervised_examples(4000, seed=1)
    assert examples[:50] == supervised_examples(50, seed=1) != supervised_examples(50, seed=2)
    kinds = {
        (prompt.split(" ? ")[1].split()[0], tuple(w for w in answer.split() if w.isupper()))
        for prompt, answer in examples
    }
    assert len(kinds) > 20


def test_the_vocabulary_has_every_word():
    words = {*minisql.vocabulary(), *map(str, range(100))}
    for prompt, answer in supervised_examples(1000, seed=2):
        assert words >= {*prompt.split(), *answer.split()}
    for form in FORMS:
        assert all(words >= set(p.prompt.split()) for p in problems(form, 30, split="test"))


def test_prompts_say_schema_and_question(task):
    problem = problems("count", 1, split="test")[0]
    assert problem.prompt == f"sql {schema(int(problem.meta['db_id'][4:]))} ? {problem.meta['question']} ="
    assert problem.meta["family"] == "count"


def test_ids_are_unique_and_each_form_has_enough_test_questions():
    ids = [p.id for form in FORMS for split in SPLITS for p in problems(form, split=split)]
    assert len(ids) == len(set(ids))
    assert all(counts["test"] >= 125 for counts in COUNTS.values())


def test_databases_are_made_the_same_again(tmp_path):
    subprocess.run([sys.executable, str(DATA / "make_minisql.py"), str(tmp_path)], check=True, capture_output=True)
    shipped = {path.name: path.read_bytes() for path in (DATA / "minisql").glob("*.sqlite")}
    assert len(shipped) == 164 and shipped == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_too_many_or_unknown_are_said():
    with pytest.raises(ValueError, match="asked for 1000 most questions of split 'test'; there are"):
        problems("most", 1000, split="test")
    with pytest.raises(ValueError, match="minisql form"):
        problems("least")
    with pytest.raises(ValueError, match="train, validation"):
        problems("most", split="dev")
