"""Estimators of Pass@k that mislead, and models that guess, against drawing and counting."""

from math import comb

import numpy as np
import pytest

from dphrl_lite import passk
from dphrl_lite.lab import guessing


def test_with_replacement_is_the_plug_in():
    assert guessing.with_replacement(4, 1, 2) == pytest.approx(7 / 16)
    assert guessing.with_replacement(8, [0, 4, 8], 3).tolist() == pytest.approx([0, 7 / 8, 1])
    with pytest.raises(ValueError, match="draw more"):
        guessing.with_replacement(4, 1, 5)


def test_errors_of_the_estimators_are_those_of_drawing():
    rates, n, ks = np.array([0.05, 0.4]), 6, [1, 3, 6]
    found = guessing.estimator_errors(rates, n, ks).set_index(["k", "estimator"])
    drawn = np.random.default_rng(0).random((40_000, len(rates), n)) < rates[:, None]
    c = drawn.sum(-1)
    for k in ks:
        estimates = {
            "unbiased": passk.pass_at_k(n, c, k),
            "with replacement": guessing.with_replacement(n, c, k),
            "first k": drawn[..., :k].any(-1),
        }
        truth = (1 - (1 - rates) ** k).mean()
        for name, values in estimates.items():
            row, means = found.loc[k, name], values.mean(1)
            assert row["truth"] == pytest.approx(truth)
            assert row["bias"] == pytest.approx(means.mean() - truth, abs=0.006)
            assert row["std"] == pytest.approx(means.std(), rel=0.03)


def test_only_sampling_with_replacement_is_biased():
    found = guessing.estimator_errors([0.0, 0.02, 0.3, 1.0], 64, [1, 2, 64]).set_index(["estimator", "k"])
    assert np.allclose(found.loc["unbiased", "bias"], 0, atol=1e-12)
    assert np.allclose(found.loc["with replacement", "bias"].loc[1], 0, atol=1e-12)
    assert (found.loc["with replacement", "bias"].loc[2:] < -1e-5).all()
    assert (found.loc["unbiased", "std"] <= found.loc["first k", "std"] + 1e-12).all()
    large = guessing.estimator_errors([0.001, 1.0], 5000, [5000]).set_index("estimator")
    assert large.loc["unbiased", "bias"] == pytest.approx(0, abs=1e-9)


def test_estimator_errors_refuse_what_is_no_chance():
    with pytest.raises(ValueError, match="between 0 and 1"):
        guessing.estimator_errors([0.5, 1.2], 8, [1])
    with pytest.raises(ValueError, match="draw more"):
        guessing.estimator_errors([0.5], 8, [9])


def test_a_model_with_guesses_against_counting_every_draw():
    """Of 5 answers 2 are right, guesses are right once in 4, every third answer is a guess; two are submitted."""
    n, c, guess, share = 5, 2, 0.25, 1 / 3
    both_own, one_own, none_own = (1 - share) ** 2, 2 * share * (1 - share), share**2
    missed = both_own * comb(3, 2) / comb(5, 2) + one_own * (3 / 5) * (1 - guess) + none_own * (1 - guess) ** 2
    assert guessing.with_guesses([n], [c], 2, guess, share)[0] == pytest.approx(1 - missed)


def test_a_model_with_guesses_is_unbiased_and_its_ends_are_known():
    p, guess, share, n, k = 0.3, 0.1, 0.4, 8, 4
    c = np.arange(n + 1)
    chance = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    expected = chance @ guessing.with_guesses(n, c, k, guess, share)
    assert expected == pytest.approx(1 - (1 - (1 - share) * p - share * guess) ** k)
    assert guessing.with_guesses(n, c, k, guess, 0) == pytest.approx(passk.pass_at_k(n, c, k))
    assert guessing.with_guesses(n, c, k, guess, 1) == pytest.approx(np.full(n + 1, 1 - (1 - guess) ** k))


@pytest.mark.parametrize("wrong", [{"guess": 1.5}, {"guess": -0.1}, {"share": 2}, {"share": -1}])
def test_a_model_with_guesses_refuses_what_is_no_chance(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        guessing.with_guesses([4], [2], 2, **({"guess": 0.5, "share": 0.5} | wrong))
