"""Pass@k against exact fractions, brute force, and figures computed elsewhere on published outcomes."""

import json
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dphrl_lite import passk
from dphrl_lite.passk import Outcomes
from dphrl_lite.tasks import arithmetic, minisql


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_against_exact_fractions(nck):
    n, c, k = nck
    assert passk.pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), abs=1e-12)


def test_large_n_is_still_exact():
    exact = float(1 - Fraction(comb(9_990, 512), comb(10_000, 512)))
    assert passk.pass_at_k(10_000, 10, 512) == pytest.approx(exact, rel=1e-11)


def test_against_counting_all_subsets():
    outcomes = [1, 0, 0, 1, 0, 0, 0]
    hits = [any(chosen) for chosen in combinations(outcomes, 3)]
    assert passk.pass_at_k(7, 2, 3) == pytest.approx(np.mean(hits))


def test_broadcasts():
    values = passk.pass_at_k(8, np.array([[0], [4], [8]]), np.array([1, 8]))
    assert np.allclose(values, [[0, 0], [0.5, 1], [1, 1]])
    assert isinstance(passk.pass_at_k(8, 4, 1), float)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (-1, 0, 1), (4, -1, 1), (4, 1, 0), (4, 1.5, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"expected|must|draw"):
        passk.pass_at_k(n, c, k)


def test_reference_figures_qwen(shared_data):
    rows = [json.loads(line) for line in (shared_data / "rollouts/qwen_math_100x8.jsonl").open()]
    table = Outcomes(np.array([row["score"] for row in rows])).pass_at_k([1, 2, 4, 8])
    assert table["mean"].round(4).tolist() == [0.9100, 0.9329, 0.9510, 0.9600]


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, [0.3348, 0.4484, 0.5499, 0.6369]), (43, [0.4704, 0.5711, 0.6548, 0.7237])]
)
def test_reference_figures_dsr(shared_data, epoch, expected):
    counts = json.loads((shared_data / "rollouts/dsr_correct_of_8_by_epoch.json").read_text())
    table = Outcomes.from_counts(8, [c[epoch] for c in counts.values()]).pass_at_k([1, 2, 4, 8])
    assert table["mean"].round(4).tolist() == expected


def test_bands_cover_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        solve = rng.beta(0.6, 0.9, size=80)
        row = Outcomes.from_counts(16, rng.binomial(16, solve)).pass_at_k(4, confidence=0.9).iloc[0]
        inside += row.low <= 1 - ((1 - rng.beta(0.6, 0.9, size=200_000)) ** 4).mean() <= row.high
    assert 0.83 <= inside / 200 <= 0.96


@pytest.mark.parametrize("rate", [0.004, 0.996])
def test_bands_near_the_ends_cover_the_truth(rate):
    solved, inside = np.random.default_rng(0).binomial(64, rate, 400), 0
    for count in solved:
        row = Outcomes.from_counts(1, (np.arange(64) < count).astype(int)).pass_at_k(1).iloc[0]
        inside += row.low <= rate <= row.high
    assert inside / 400 > 0.9


def test_the_band_of_one_is_wilsons():
    row = Outcomes.from_counts(4, [4] * 64).pass_at_k(1).iloc[0]
    square = stats.t.ppf(0.975, 63) ** 2
    assert (row["low"], row["high"]) == (pytest.approx(64 / (64 + square)), pytest.approx(1.0))
    assert Outcomes.from_counts(4, [0] * 64).pass_at_k(1).iloc[0]["high"] == pytest.approx(1 - row["low"])


def test_many_problems_make_the_band_that_of_the_spread():
    values = np.random.default_rng(0).beta(2, 2, 5000)
    low, high = passk.share_band(values.mean(), values.var() / 5000, 5000, 4999, 0.95)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(5000), rel=0.01)


def test_bands_draw_clusters_whole():
    """Ten databases, each solved or not: a hundred questions say no more than ten."""
    solved = np.repeat([1, 0] * 5, 10)
    ids = [f"db{i // 10}:count:{i}" for i in range(100)]
    width = lambda **of: Outcomes.from_counts(1, solved, **of).pass_at_k(1).eval("high - low").item()
    assert width(problem_ids=ids) == width(clusters=np.arange(100) // 10) > 2.5 * width()
    with pytest.raises(ValueError, match="one label for each of the 100 problems; got 3"):
        Outcomes.from_counts(1, solved, clusters=[1, 2, 3])


def test_clusters_are_read_from_the_kits_names():
    names = ["mini62:count:5", "mini62:most:1", "cd3:2-4-10:2", "cd3:2-4-10:7", "sort:4-3-1", "anything", 7]
    assert passk.clusters_of(["multiplication:1:8-2", "multiplication:0:2-8"]) == ["multiplication:2-8"] * 2
    kits = [f"mini1:{form}:0" for form in minisql.FORMS] + [f"{family}:0:2-8" for family in arithmetic.FAMILIES]
    assert not set(passk.clusters_of(kits)) & set(kits)  # every family of the kit is known
    for foreign in (["gsm8k:test:0", "gsm8k:test:1"], ["math:algebra:7", "math:algebra:8"]):
        assert passk.clusters_of(foreign) == foreign  # three parts and a number: not the kit's, so each on its own
    assert passk.clusters_of(names) == ["mini62"] * 2 + ["cd3:2-4-10"] * 2 + ["sort:4-3-1", "anything", "7"]


def test_problems_without_a_label_stand_alone():
    out = Outcomes.from_counts(8, [1, 2, 3, 4], clusters=[None, "a", float("nan"), "a"])
    assert out.pass_at_k(1)["clusters"].item() == 3


def test_cover_counts_a_problem_that_is_right_exactly_as_often():
    out = Outcomes.from_counts(10, [3, 3, 6, 6, 7, 7, 10, 10])
    assert (
        out.cover_at(np.linspace(0, 1, 11))[[3, 6, 7]].tolist()
        == out.cover_at([0.3, 0.6, 0.7]).tolist()
        == [1, 0.75, 0.5]
    )


def test_chance_forgets_what_two_draws_of_one_model_differ_in():
    rng, rates = np.random.default_rng(0), np.random.default_rng(1).beta(0.3, 1, 4000)
    draws = [rng.binomial(1, rates[:, None], (4000, 8)) for _ in range(2)]
    both = Outcomes(np.concatenate(draws, axis=1))
    forgotten = (draws[0].any(1) & ~draws[1].any(1)).sum()
    assert passk.chance_forgets(both, 8) == pytest.approx(forgotten, rel=0.1)
    with pytest.raises(ValueError, match="between 1 and n"):
        passk.chance_forgets(both, 9)


def test_bands_are_reproducible_and_ordered():
    out = Outcomes(np.random.default_rng(1).random((30, 16)) < 0.3)
    table = out.pass_at_k([1, 4, 16])
    assert table.equals(out.pass_at_k([1, 4, 16]))
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] <= table["high"]).all() and (table["low"] < table["high"]).all()


def test_ragged_problems_raise_or_are_dropped_and_counted():
    out = Outcomes.from_counts([8, 2, 4], [4, 1, 0])
    with pytest.raises(ValueError, match="1 of 3 problems have fewer than k = 4 samples"):
        out.pass_at_k([1, 4])
    table = out.pass_at_k([1, 4, 8], drop_short=True)
    assert table["dropped"].tolist() == [0, 1, 2]
    assert table["problems"].tolist() == [3, 2, 1]
    assert table["mean"].tolist() == pytest.approx([(0.5 + 0.5 + 0) / 3, (1 - 1 / 70) / 2, 1.0])
    with pytest.raises(ValueError, match="no problem has k = 9"):
        out.pass_at_k(9, drop_short=True)


def test_cover_at():
    out = Outcomes.from_counts(10, [0, 6, 7, 10])
    assert out.cover_at([0.0, 0.6, 0.7, 1.0]).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert out.cover_at(0.6) == 0.75
    with pytest.raises(ValueError, match="between 0 and 1"):
        out.cover_at(1.2)


def test_compare_gives_expected_counts():
    base, trained = Outcomes.from_counts(4, [4, 4, 0, 0, 2]), Outcomes.from_counts(4, [4, 0, 4, 0, 2])
    assert passk.compare(base, trained, k=1).to_dict() == {"keep": 1.25, "forget": 1.25, "gain": 1.25, "never": 1.25}


def test_died_counts_what_was_found_often_and_is_found_no_more():
    counts = pd.DataFrame({"base": [30, 8, 7, 0], "grpo": [90, 0, 0, 5], "dph-js": [1, 1, 0, 0]})
    table = passk.died(counts)
    assert table.loc["grpo"].to_dict() == {"died": 1, "of": 2}
    assert table.loc["dph-js"].to_dict() == {"died": 0, "of": 2}
    assert passk.died(counts, often=7).loc["dph-js", "died"] == 1


def test_compare_matches_problems_by_id():
    base = Outcomes.from_counts(4, [4, 0], problem_ids=["a", "b"])
    trained = Outcomes.from_counts(4, [0, 4], problem_ids=["b", "a"])
    assert passk.compare(base, trained, k=1).keep == 1
    with pytest.raises(ValueError, match="same problems"):
        passk.compare(base, Outcomes.from_counts(4, [0, 4], problem_ids=["b", "c"]), k=1)
    with pytest.raises(ValueError, match="same set"):
        passk.compare(base, Outcomes.from_counts(4, [1]), k=1)


def test_crossing_is_the_first_k_below_base():
    base, trained = Outcomes.from_counts(8, [1, 1, 8]), Outcomes.from_counts(8, [4, 0, 8])
    curves = [out.pass_at_k(range(1, 9))["mean"].to_numpy() for out in (base, trained)]
    first = int(np.argmax(curves[1] < curves[0])) + 1
    assert 1 < first < 8
    assert passk.crossing(base, trained) == first
    assert passk.crossing(base, trained, ks=[8, first - 1]) == 8
    assert passk.crossing(base, trained, ks=range(1, first)) is None
    assert passk.crossing(trained, base) == 1


def test_a_model_does_not_cross_itself_whatever_the_order():
    base = Outcomes.from_counts(7, [0, 1, 2, 3, 5, 6], problem_ids="abcdef")
    assert passk.crossing(base, base) is None
    assert passk.crossing(base, Outcomes.from_counts(7, base.c[::-1], problem_ids="fedcba")) is None


@pytest.mark.parametrize(("trained", "ks", "said"), [
    (Outcomes.from_counts(4, [1]), None, "same set"),
    (Outcomes.from_counts(4, [1, 1], problem_ids="ac"), None, "same problems"),
    (Outcomes.from_counts(4, [1, 1]), [], "ks is empty"),
    (Outcomes.from_counts(4, [1, 1]), [1, 8], "draw more"),
    (Outcomes.from_counts(4, [1, 1]), [1.5], "whole numbers"),
])  # fmt: skip
def test_crossing_refuses_what_cannot_be_compared(trained, ks, said):
    with pytest.raises(ValueError, match=said):
        passk.crossing(Outcomes.from_counts(4, [2, 2], problem_ids="ab"), trained, ks)


@pytest.mark.parametrize("make", [
    lambda: Outcomes([0.3, 0.4]),
    lambda: Outcomes(np.zeros((0, 3), bool)),
    lambda: Outcomes.from_counts([2, 2], [3, 0]),
    lambda: Outcomes.from_counts(0, [0]),
    lambda: Outcomes(np.zeros((2, 2), bool), problem_ids=["a", "a"]),
    lambda: Outcomes([[True], [True, False]]),
    lambda: Outcomes.from_counts([2, 2], [1, 1, 1]),
    lambda: Outcomes.from_counts(2, [1]).pass_at_k(1, confidence=95),
    lambda: Outcomes.from_counts(np.inf, [1]),
])  # fmt: skip
def test_bad_outcomes_are_refused(make):
    with pytest.raises(ValueError, match=r"must|need|more correct"):
        make()


def test_what_is_beside_the_estimator_is_found_in_its_room():
    assert passk.read_counts.__module__ == "dphrl_lite.study.counts"
    assert passk.estimator_errors.__module__ == "dphrl_lite.lab.guessing"
    with pytest.raises(AttributeError, match="no attribute 'estimator_error'"):
        passk.estimator_error  # noqa: B018
