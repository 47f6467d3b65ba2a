"""Every statement about estimators, by enumeration in float64; the reference computations here are written anew."""

import math

import numpy as np
import pytest
import torch

from dphrl_lite import divergences
from dphrl_lite.divergences import Divergence
from dphrl_lite.lab import estimators, worlds
from dphrl_lite.lab.estimators import expected
from dphrl_lite.lab.worlds import cosine, exact, relative_error

ONE = worlds.example("categorical", 1.0)
TWO = worlds.example("two-token", 1.0)
WORLDS = pytest.mark.parametrize("world", [ONE, TWO, worlds.example("two-token", 0.5, seed=3)])
DIVERGENCES = pytest.mark.parametrize("name", divergences.names())


def gradient(name, world=ONE, level="sequence", **how):
    return expected(estimators.get(name), world, level, **how).gradient


def true_gradient(name, world=ONE, prefixes=None):
    return exact(world, divergences.get(name), prefixes)[1]


def close(a, b, atol=1e-12):
    return torch.allclose(a, b, rtol=1e-9, atol=atol)


def far(a, b):
    return relative_error(a, b) > 0.02


# ---- as a loss, on one token or with log u of the whole sequence


@WORLDS
def test_k1_as_a_loss_has_no_expected_gradient(world):
    assert gradient("k1", world).abs().max() < 1e-14
    assert gradient("k1", world, "token").abs().max() < 1e-14


@WORLDS
def test_k2_follows_reverse_kl_and_k3_follows_forward_kl(world):
    assert close(gradient("k2", world), true_gradient("reverse_kl", world))
    assert close(gradient("k3", world), true_gradient("forward_kl", world))
    assert far(gradient("k3", world), true_gradient("reverse_kl", world))


@WORLDS
def test_k1_in_the_reward_follows_reverse_kl_with_its_return_to_go(world):
    for level in ("sequence", "token"):
        assert close(gradient("k1-reward", world, level), true_gradient("reverse_kl", world))
    variances = [score_variance(world, level) for level in ("token", "sequence")]
    assert variances[0] <= variances[1] + 1e-12


def score_variance(world, level):
    """Total variance of the policy gradient of one sample."""
    ((_, _, g),) = estimators._terms(estimators.get("k1-reward"), world, level)
    mean = world.p @ g
    return (world.p @ ((g - mean) ** 2).sum(1)).item()


@WORLDS
def test_values_of_k1_k2_k3(world):
    kl = exact(world, divergences.get("reverse_kl"))[0]
    value = lambda name, level: expected(estimators.get(name), world, level).value
    for level in ("sequence", "token"):
        assert value("k1", level) == pytest.approx(kl)
        assert value("k3", level) == pytest.approx(kl)
        assert abs(value("k2", level) - kl) > 1e-3  # right to second order in log u only
    assert expected(estimators.get("k3"), world).std < expected(estimators.get("k1"), world).std


@WORLDS
def test_plain_is_cross_entropy_and_follows_forward_kl(world):
    logits = world.policy.clone().requires_grad_()
    cross_entropy = -(world.q * world.logp(logits).sum(1)).sum()
    entropy = -(world.q * world.q.log()).sum()
    got = expected(estimators.get("plain"), world)
    assert got.value == pytest.approx((cross_entropy - entropy).item())
    assert close(got.gradient, torch.autograd.grad(cross_entropy, logits)[0])
    assert close(got.gradient, true_gradient("forward_kl", world))


@WORLDS
def test_the_canonical_term_is_neutral_in_expectation_and_calms_the_value(world):
    plain, canonical = (expected(estimators.get(name), world) for name in ("plain", "forward_kl"))
    assert close(plain.gradient, canonical.gradient)
    assert plain.value == pytest.approx(canonical.value)
    assert canonical.std < plain.std


@DIVERGENCES
def test_f_on_reference_samples_estimates_its_divergence_without_bias(name):
    for world in (ONE, TWO):
        got, (value, grad) = expected(estimators.get(name), world), exact(world, divergences.get(name))
        assert got.value == pytest.approx(value)
        assert close(got.gradient, grad)


# ---- Jensen-Shannon


@WORLDS
def test_the_naive_definition_cancels_to_zero_and_the_right_one_is_half_the_generator(world):
    naive, right = (expected(estimators.get(n), world) for n in ("js-naive", "js-definition"))
    value, grad = exact(world, divergences.get("js"))
    assert naive.value == pytest.approx(value / 2)
    assert right.value == pytest.approx(value / 2)
    assert naive.gradient.abs().max() < 1e-14
    assert close(right.gradient, grad / 2)


def test_token_by_token_the_naive_definition_cancels_only_where_both_visit_prefixes_alike():
    naive = gradient("js-naive", TWO, "token")
    assert naive[:4].abs().max() < 1e-14  # the first token: one prompt, visited by both
    assert naive[4:].abs().max() > 1e-3
    assert abs(cosine(naive, true_gradient("js", TWO))) < 0.1  # and what is left leads nowhere
    right = gradient("js-definition", TWO, "token")
    assert close(right, true_gradient("js", TWO, "policy") / 2)


# ---- sums over tokens


def test_token_sums_that_add_up_to_the_sequence():
    forward, reverse = (exact(TWO, divergences.get(n))[0] for n in ("forward_kl", "reverse_kl"))
    for name in ("plain", "forward_kl"):
        got = expected(estimators.get(name), TWO, "token")
        assert got.value == pytest.approx(forward)
        assert close(got.gradient, true_gradient("forward_kl", TWO))
    for name in ("k1", "k3", "k1-reward"):
        assert expected(estimators.get(name), TWO, "token").value == pytest.approx(reverse)


@DIVERGENCES
def test_all_others_do_not_add_up(name):
    got, (value, grad) = expected(estimators.get(name), TWO, "token"), exact(TWO, divergences.get(name))
    if name != "forward_kl":
        assert abs(got.value - value) > 0.01 * value
        assert far(got.gradient, grad)
    per_token = exact(TWO, divergences.get(name), "reference")
    assert got.value == pytest.approx(per_token[0])
    assert close(got.gradient, per_token[1])


def test_token_by_token_k2_and_k3_follow_the_tokens_at_the_policys_prefixes():
    for name, followed in (("k2", "reverse_kl"), ("k3", "forward_kl")):
        got = gradient(name, TWO, "token")
        assert close(got, true_gradient(followed, TWO, "policy"))
        assert far(got, true_gradient(followed, TWO))


def test_all_of_this_holds_only_while_the_policy_is_the_one_that_sampled():
    """Old samples: the expectation is over another policy, and k2 no longer follows reverse KL."""
    old = worlds.example("categorical", 1.5)
    ((_, _, gradients),) = estimators._terms(estimators.get("k2"), ONE, "sequence")
    assert far(old.p @ gradients, true_gradient("reverse_kl"))


# ---- tables and samples


def test_compare_names_what_each_estimator_follows():
    follows = estimators.compare(ONE, estimators.names())["follows"]
    assert follows["k1: log u"] == follows["JS definition, naive"] == "nothing: it is zero"
    assert follows["k2: (log u)²/2"] == follows["k1 in the reward"] == "reverse KL"
    assert follows["k3: 1/u − 1 + log u"] == follows["plain: −log u"] == "forward KL"
    assert follows["JS definition, right"] == "½ Jensen-Shannon"
    follows = estimators.compare(TWO, estimators.names(), level="token")["follows"]
    assert follows["k2: (log u)²/2"] == "reverse KL, per token at policy prefixes"
    assert follows["f(u): forward KL"] == "forward KL"
    assert follows["f(u): Jensen-Shannon"] == "Jensen-Shannon, per token at reference prefixes"
    assert follows["JS definition, naive"] == "none of these"


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_compare_agrees_with_what_each_estimator_promises_on_one_token(level):
    for name in estimators.names():
        estimator = estimators.get(name)
        if estimator.gradient_of is None:
            assert gradient(name, ONE, level).norm() < 1e-12
        else:
            truth = estimator.scale * true_gradient(estimator.gradient_of)
            assert close(gradient(name, ONE, level), truth)


@pytest.mark.parametrize(("world", "level"), [(ONE, "sequence"), (TWO, "sequence"), (TWO, "token")])
def test_many_estimates_agree_with_the_enumeration(world, level):
    for name in estimators.names():
        estimator = estimators.get(name)
        got, draws = expected(estimator, world, level), estimators.simulate(estimator, world, 50, level, 2000)
        deviation = draws.values.std().item()
        assert draws.values.mean().item() == pytest.approx(got.value, abs=4.5 * deviation / math.sqrt(2000))
        assert deviation == pytest.approx(got.std / math.sqrt(50), rel=0.1)
        spread = draws.gradients.std(0) / math.sqrt(2000)
        assert ((draws.gradients.mean(0) - got.gradient).abs() <= 4.5 * spread + 1e-12).all()


def test_error_bars_cover_the_exact_values_and_shrink():
    names = estimators.usual("js")
    few, many = (estimators.error_bars(TWO, names, "js", n) for n in (16, 1024))
    assert len(few) == len(names)
    assert ((few["value"] - few["exact"] - few["bias"]).abs() < 4.5 * few["value std"] / 10).all()
    assert (many["value std"] < few["value std"] / 4).all()
    sure = many["follows"] == "Jensen-Shannon"
    assert (many["cosine"][sure] > 0.98).all()


def test_the_same_seed_gives_the_same_samples():
    k2 = estimators.get("k2")
    first, again = (estimators.simulate(k2, ONE, 8, seed=1).values for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, estimators.simulate(k2, ONE, 8, seed=2).values)


def test_a_registered_divergence_is_an_estimator_at_once(registry):
    with pytest.raises(KeyError, match="k1-reward"):
        estimators.get("mine")
    registry(Divergence("mine", lambda d: (d / 1.5).expm1() ** 2, label="my own"))
    assert "mine" in estimators.names()
    row = estimators.compare(ONE, ["mine"], against=["mine"]).loc["f(u): my own"]
    assert row["follows"] == "my own"
    assert row["cos mine"] == pytest.approx(1)
    assert row["bias"] == pytest.approx(0, abs=1e-12)


def test_the_numbers_that_notebook_02_speaks_of():
    by_hand = worlds.categorical([0.55, 0.44, 0.01], [0.4, 0.3, 0.3])
    table = estimators.compare(by_hand, ["k1", "k2", "k3"])
    assert table["std"].idxmax() == "k3: 1/u − 1 + log u"  # 1/u = 30 on the dying answer
    assert table["bias"].round(2).tolist() == [0, -0.19, 0]
    assert table["exact"].round(2).tolist() == [0.31] * 3
    pulls = [gradient(name, by_hand)[2].item() for name in ("k1", "k2", "k3")]
    assert np.round(pulls, 3).tolist() == [0, -0.037, -0.29]
    near = estimators.compare(ONE, ["k1", "k2", "k3"])["std"]
    assert near.idxmax() == "k1: log u"
    plain, canonical = (expected(estimators.get(n), ONE).std for n in ("plain", "forward_kl"))
    assert plain > 3 * canonical
    token, whole = (expected(estimators.get("js"), TWO, level).std for level in ("token", "sequence"))
    assert token < 0.75 * whole
    bars = estimators.error_bars(ONE, estimators.usual("js"), "reverse_kl", 64)
    k1, zero = bars.loc["k1: log u"], bars.loc["JS definition, naive"]
    assert np.isnan(k1["cos reverse_kl"])
    assert min(k1["cosine std"], zero["cosine std"]) > 0.3  # zero in expectation is noise in practice
