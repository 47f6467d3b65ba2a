"""Wrong answers to the exercises of notebook 08, and what the hint must speak of."""

import re
from math import comb

import pytest

from dphrl_lite.course import check
from dphrl_lite.study import conclusions, frontier

OUTCOMES = frontier.read()[0]


def ways(domain: str, method: str) -> float:
    return float(conclusions.values(OUTCOMES, domain, (method, None), "distinct").to_numpy().mean())


KEPT = ways("sql", "grpo") / ways("sql", "base")
RIGHT = {"more than GRPO": "cannot be told", "keeps base": "holds", "reaches GRPO": "does not hold"}

STEPS = {"rkl": 160, "dph-f": 168.4}
WRONG = [
    ("08-1", lambda n, c, k: 1 - (1 - c / n) ** k, "puts every answer back"),
    ("08-1", lambda n, c, k: comb(n - c, k) / comb(n, k), "none of the k answers"),
    ("08-1", lambda n, c, k: 1 - comb(c, k) / comb(n, k), "draws of k right answers"),
    ("08-1", lambda n, c, k: k * c / n, "the number is wrong"),
    ("08-2", 100 * KEPT, "per cent"),
    ("08-2", 1 / KEPT, "below the line"),
    ("08-2", 1 - KEPT, "was lost"),
    ("08-2", ways("countdown", "grpo") / ways("countdown", "base"), "rows of sql"),
    ("08-2", 0.998, "Pass@64"),
    ("08-2", 0.1, "Two numbers"),
    ("08-3", 0, "two draws are not"),
    ("08-3", 100, "fail in the second"),
    ("08-3", 0.25, "a share"),
    ("08-3", 25, "a share"),
    ("08-3", 64, "multiplied"),
    ("08-4", 0.0, "in pairs"),
    ("08-4", -0.01, "in pairs"),
    ("08-4", -0.03, "upper"),
    ("08-4", 3, "as a share"),
    ("08-4", 0.2, "between B's two points"),
    ("08-5", STEPS | {"rkl": 250}, "more steps for the same cost, or fewer"),
    ("08-5", STEPS | {"rkl": 100}, "add up what an answer costs"),
    ("08-5", STEPS | {"dph-f": 160}, "sampled long ago"),
    ("08-5", STEPS | {"dph-f": 139.1}, "who scores its answers"),
    ("08-5", STEPS | {"dph-f": 237.5}, "more steps for the same cost, or fewer"),
    ("08-6", RIGHT | {"more than GRPO": "does not hold"}, "others that do not"),
    ("08-6", RIGHT | {"more than GRPO": "holds"}, "others that do not"),
    ("08-6", RIGHT | {"keeps base": "cannot be told"}, "lose a point"),
    ("08-6", RIGHT | {"reaches GRPO": "cannot be told"}, "On which side"),
    ("08-6", RIGHT | {"keeps base": "no idea"}, "Choose one of"),
    ("08-6", "holds", "A dict with the keys"),
]


def test_a_half_filled_dictionary_is_no_answer_yet():
    assert check.answer("08-6", RIGHT | {"keeps base": ...}).right is None


@pytest.mark.parametrize("wrong", [row for row in WRONG if isinstance(row[1], (int, float))])
def test_a_hint_does_not_give_the_number_away(wrong):
    answers = {"08-2": round(KEPT, 2), "08-3": 50, "08-4": 0.03}
    told = re.findall(r"\d*\.?\d+", check.answer(*wrong[:2]).message)
    assert answers[wrong[0]] not in map(float, told)


def test_equal_cost_takes_fewer_of_the_dearer_steps():
    assert check.answer("08-5", STEPS).right
    assert check.answer("08-5", {"rkl": 160, "dph-f": 168}).right
