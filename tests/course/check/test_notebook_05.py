"""Wrong answers to the exercises of notebook 05, and what the hint must speak of."""

import math

import pandas as pd
import pytest

from dphrl_lite.course import check


def kept(rule):
    """A buffer by a rule for rows: columns of the rollouts, the right answers of each row's problem, the threshold."""

    def rehearsal(rollouts, threshold=6):
        count = rollouts.groupby("problem_id")["correct"].transform("sum")
        return rollouts[rule(rollouts, count, threshold)]

    return rehearsal


unmended = kept(lambda rollouts, count, threshold: count > threshold)
mended = kept(lambda rollouts, count, threshold: rollouts["correct"] & (count >= threshold))
PERFECT = {"6 of 8": ["B", "C", "D"], "4 of the first 4": ["A", "C"]}
LUCK = {8: 37 / 256, 32: sum(math.comb(32, c) for c in range(24, 33)) / 2**32}
HALVED = {"whole answer": 1 / 256, "penalty": 0.5 * math.log(0.5) - 1.5 * math.log(0.75)}
JS_OF_HALF_A_NAT = math.exp(0.5) * 0.5 - (math.exp(0.5) + 1) * math.log((math.exp(0.5) + 1) / 2)
WRONG = [
    ("05-1", PERFECT | {"6 of 8": ["B"]}, "at least"),
    ("05-1", PERFECT | {"6 of 8": ["A", "B", "C", "D"]}, "A has 4 right among the 8"),
    ("05-1", PERFECT | {"4 of the first 4": ["A", "B", "C", "D"]}, "B has 3 right among the 4"),
    ("05-1", PERFECT | {"4 of the first 4": ["C"]}, "A is missing"),
    ("05-1", PERFECT | {"6 of 8": 3}, "list of letters"),
    ("05-1", {"6 of 8": ["B"]}, "A dict with the keys"),
    ("05-2", LUCK | {8: 28 / 256}, "exactly that many"),
    ("05-2", LUCK | {8: 9 / 256}, "more than the threshold"),
    ("05-2", LUCK | {8: 1 - 37 / 256}, "chance of fewer"),
    ("05-2", LUCK | {8: 0.5**6}, "in a row"),
    ("05-2", LUCK | {8: 100 * 37 / 256}, "not per cent"),
    ("05-2", LUCK | {8: 0.75}, "binomial"),
    ("05-2", LUCK | {32: math.comb(32, 24) / 2**32}, "K = 32: That is the chance of exactly"),
    ("05-2", LUCK | {32: LUCK[8]}, "K = 32"),
    ("05-3", unmended, "holds wrong answers"),
    ("05-3", lambda rollouts, threshold=6: rollouts[["problem_id", "sample"]], "all their columns"),
    ("05-3", kept(lambda rollouts, count, threshold: count >= threshold), "holds wrong answers"),
    (
        "05-3",
        kept(lambda rollouts, count, threshold: rollouts["correct"] & (count > threshold)),
        "6 right of 8 are missing",
    ),
    ("05-3", kept(lambda rollouts, count, threshold: rollouts["correct"] & (count >= 6)), "5 right of 8 are missing"),
    ("05-3", kept(lambda rollouts, count, threshold: rollouts["correct"]), "a problem with 5 right of 8"),
    ("05-3", lambda rollouts, threshold: pd.concat([mended(rollouts, threshold)] * 2), "twice"),
    ("05-3", lambda rollouts, threshold: 3, "has to return rows"),
    ("05-4", HALVED | {"whole answer": 0.5}, "that is one token"),
    ("05-4", HALVED | {"whole answer": 1 / 128}, "stopping is a token"),
    ("05-4", HALVED | {"whole answer": 4.0}, "multiply"),
    ("05-4", HALVED | {"whole answer": 256}, "the other way round"),
    ("05-4", HALVED | {"whole answer": 8 * math.log(0.5)}, "that is log u"),
    ("05-4", HALVED | {"whole answer": 0.9}, "each token contribute"),
    ("05-4", HALVED | {"penalty": 8 * HALVED["penalty"]}, "not a sum"),
    ("05-4", HALVED | {"penalty": 0.6703}, "not of the whole answer"),
    (
        "05-4",
        HALVED | {"penalty": JS_OF_HALF_A_NAT},
        "takes log u",
    ),
    ("05-4", HALVED | {"penalty": -3}, "the log u of one token"),
    ("05-5", 1.0, "where the stored log-probability is `logp`"),
    ("05-5", 1 / 0.96, "the other way round"),
    ("05-5", 0.95, "may exceed it"),
    ("05-5", 0.9, "divide by what was kept"),
    ("05-5", 0.9 / 0.96, "the policy's, divided by it"),
    ("05-5", math.log(0.96), "that is log u"),
    ("05-5", 0.3, "can be drawn at all"),
]


RIGHT = [("05-1", PERFECT), ("05-2", LUCK), ("05-3", mended), ("05-4", HALVED), ("05-5", 0.96)]


@pytest.mark.parametrize(("exercise", "given"), RIGHT)
def test_a_right_answer_passes_as_does_one_that_is_rounded(exercise, given):
    assert check.answer(exercise, given)
    rounded = {"05-2": {8: 0.145, 32: 0.0035}, "05-4": {"whole answer": 0.0039, "penalty": 0.085}}
    assert check.answer(exercise, rounded.get(exercise, given))
