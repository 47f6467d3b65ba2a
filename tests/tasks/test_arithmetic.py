"""One-digit arithmetic: right answers, splits that share no pair of numbers, and a verifier that wants the number."""

import re

import pytest

from dphrl_lite.tasks import Problem, arithmetic, get, load_problems

FAMILIES = tuple(arithmetic.FAMILIES)
SIGNS = {"multiplication": "*", "addition": "+", "subtraction": "-"}


def pairs(problems):
    return {tuple(sorted(p.meta["numbers"])) for p in problems}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_numbers_in_the_prompt(family):
    for problem in arithmetic.problems(family) + arithmetic.problems(family, split="test"):
        a, b = map(int, re.findall(r"\d", problem.prompt))
        left, right = (b, a) if problem.prompt.startswith("Subtract") else (a, b)  # "Subtract 3 from 8."
        assert [left, right] == problem.meta["numbers"]
        assert problem.answer == str(eval(f"{left} {SIGNS[family]} {right}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_pair_in_either_order(family):
    train, test = arithmetic.problems(family), arithmetic.problems(family, split="test")
    assert len(train) == 80
    assert len(test) == 48
    assert len({p.id for p in train + test}) == 128
    assert not pairs(train) & pairs(test)
    assert pairs(train) | pairs(test) == {(a, b) for b in arithmetic.NUMBERS for a in range(2, b + 1)}


def test_who_chooses_settings_trains_on_other_pairs():
    train, fit, validation = (arithmetic.problems("multiplication", split=s) for s in ("train", "fit", "validation"))
    assert not pairs(fit) & pairs(validation) and len(validation) > 20
    assert sorted(p.id for p in fit + validation) == sorted(p.id for p in train)


def test_no_family_shows_another_familys_held_out_pair():
    trained = pairs(arithmetic.problems("multiplication"))
    assert not any(trained & pairs(arithmetic.problems(family, split="test")) for family in FAMILIES)


def test_the_seed_decides_order_and_choice():
    few = arithmetic.problems("addition", 10, "test", seed=3)
    assert few == arithmetic.problems("addition", 10, "test", seed=3)
    assert few != arithmetic.problems("addition", 10, "test", seed=4)
    assert sorted(p.id for p in arithmetic.problems("addition", seed=3)) == sorted(
        p.id for p in arithmetic.problems("addition", seed=4)
    )


def test_load_problems_knows_the_families():
    assert load_problems("arithmetic:multiplication", limit=5) == arithmetic.problems("multiplication", 5)
    assert load_problems("arithmetic:addition", split="test") == arithmetic.problems("addition", split="test")
    for wrong in ({"source": "arithmetic:division"}, {"source": "arithmetic:addition", "split": "dev"}):
        with pytest.raises(ValueError, match="expected one of"):
            load_problems(**wrong)
    with pytest.raises(ValueError, match="there are 48"):
        arithmetic.problems("addition", 49, "test")


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("56", "56", True),
        ("56", "7 * 8 = 56.", True),
        ("56", "The product of 7 and 8 is 56", True),
        ("56", "7 * 8", False),  # repeats the question: Math-Verify would take it
        ("56", "14 * 4 =", False),
        ("56", "7 * 8 = 56\nOr 8 * 7", False),  # goes on to other numbers
        ("56", "4.56", False),
        ("56", "156", False),
        ("56", "-56", False),
        ("56", "fifty-six", False),
        ("56", "<answer>56</answer> because it is 7 * 8", True),
        ("56", "", False),
        ("-2", "7 - 9 = -2", True),
        ("-2", "The answer is \u22122.", True),
        ("-2", "9 - 2", False),
        ("-2", "9 -2", False),
        ("2", "9-7=2", True),
    ],
)
def test_the_last_number_counts(answer, completion, right):
    verdict = get("arithmetic").verify(Problem("p", "?", answer), completion)
    assert verdict.correct is right
    assert verdict.distinct == (answer if right else None)
    assert right or "number" in verdict.reason
