"""Filters, mismatches, clamps and swapped signs, by enumeration in float64."""

import math

import pytest
import torch

from dphrl_lite import divergences
from dphrl_lite.lab import estimators, pitfalls, worlds
from dphrl_lite.lab.estimators import expected
from dphrl_lite.lab.worlds import cosine, exact, relative_error

ONE = worlds.example("categorical", 1.0)
TWO = worlds.example("two-token", 1.0)
WORLDS = pytest.mark.parametrize("world", [ONE, TWO])


def correct_in(world):
    return torch.arange(len(world.q)) % 3 == 0


def at_home(world):
    return worlds.World(world.reference, world.reference, world.vocabulary, world.tokens)


def gradient(name, world, **how):
    return expected(estimators.get(name), world, **how).gradient


# ---- filtering by reward


@WORLDS
def test_filtering_makes_the_mean_of_u_the_ratio_of_the_success_rates(world):
    correct = correct_in(world)
    kept = pitfalls.restricted(world.q, correct)
    u = world.p / world.q
    assert (world.q * u).sum().item() == pytest.approx(1)
    assert (kept * u).sum().item() == pytest.approx((world.p[correct].sum() / world.q[correct].sum()).item())
    assert kept[~correct].sum() == 0
    with pytest.raises(ValueError, match="keeps nothing"):
        pitfalls.restricted(world.q, torch.zeros_like(correct))


@WORLDS
def test_the_canonical_term_is_not_neutral_on_filtered_samples(world):
    correct = correct_in(world)
    kept = pitfalls.restricted(world.q, correct)
    extra = gradient("forward_kl", world, drawn=kept) - gradient("plain", world, drawn=kept)
    logits = world.policy.clone().requires_grad_()
    success = world.logp(logits).sum(1).exp()[correct].sum()
    ratio = torch.autograd.grad(success / world.q[correct].sum(), logits)[0]
    assert torch.allclose(extra, ratio, atol=1e-12)  # it pulls P(correct) down
    assert extra.norm() > 0.05
    unfiltered = gradient("forward_kl", world) - gradient("plain", world)
    assert unfiltered.abs().max() < 1e-12


@WORLDS
def test_at_the_reference_plain_still_teaches_the_correct_answers_and_canonical_rests(world):
    home, correct = at_home(world), correct_in(world)
    kept = pitfalls.restricted(home.q, correct)
    for name in ("forward_kl", "js", "alpha"):
        assert gradient(name, home, drawn=kept).abs().max() < 1e-12
    logits = home.policy.clone().requires_grad_()
    log_success = home.logp(logits).sum(1).exp()[correct].sum().log()
    towards = torch.autograd.grad(-log_success, logits)[0]
    assert torch.allclose(gradient("plain", home, drawn=kept), towards, atol=1e-12)
    assert pitfalls.pull(gradient("plain", home, drawn=kept), home, correct) > 0.01


def test_pull_is_the_change_of_log_p_along_a_small_step():
    correct, g = correct_in(TWO), gradient("plain", TWO)
    step = 1e-6
    log_p = lambda logits: TWO.logp(logits).sum(1).exp()[correct].sum().log()
    change = (log_p(TWO.policy - step * g) - log_p(TWO.policy)) / step
    assert pitfalls.pull(g, TWO, correct) == pytest.approx(change.item(), rel=1e-4)


def test_the_table_of_filtering():
    correct = torch.tensor([True, True, False, False, True, False])
    table = pitfalls.filtering(ONE, correct, [-1.0, 0.0, 1.0])
    kept = table[table["samples"] == "correct only"].reset_index(drop=True)
    home = ONE.q[correct].sum().item()
    assert kept["p_correct"][1] == pytest.approx(home)
    assert (kept["E[u]"] - kept["p_correct"] / home).abs().max() < 1e-12
    assert (table[table["samples"] == "all"]["E[u]"] - 1).abs().max() < 1e-12
    assert (kept["plain"] > 0).all()
    for name in ("forward_kl", "js"):
        below, rest, above = kept[name]
        assert below > 0 > above
        assert rest == pytest.approx(0, abs=1e-12)


# ---- temperature and top-p


def test_sampling_distributions_by_hand():
    world = worlds.categorical([0.25] * 4, [0.5, 0.3, 0.15, 0.05])
    close = lambda got, wanted: torch.allclose(got, torch.tensor(wanted, dtype=torch.float64))
    assert close(pitfalls.sampling_distribution(world, top_p=0.7), [0.625, 0.375, 0, 0])
    assert close(pitfalls.sampling_distribution(world, top_p=0.01), [1.0, 0, 0, 0])
    sharp = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64) ** 2
    assert close(pitfalls.sampling_distribution(world, temperature=0.5), (sharp / sharp.sum()).tolist())
    assert torch.allclose(pitfalls.sampling_distribution(TWO), TWO.q)
    assert pitfalls.sampling_distribution(TWO, top_p=0.6).sum().item() == pytest.approx(1)


@WORLDS
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.3, 1.0), (1.0, 0.6)])
def test_plain_then_pulls_towards_what_was_sampled_not_towards_the_reference(world, temperature, top_p):
    drawn = pitfalls.sampling_distribution(world, temperature, top_p)
    got = gradient("plain", world, drawn=drawn)
    logits = world.policy.clone().requires_grad_()
    cross_entropy = -(drawn * world.logp(logits).sum(1)).sum()
    assert torch.allclose(got, torch.autograd.grad(cross_entropy, logits)[0])
    assert relative_error(got, exact(world, divergences.get("forward_kl"))[1]) > 0.05
    assert abs((drawn * world.p / world.q).sum().item() - 1) > 1e-3
    assert gradient("plain", at_home(world), drawn=drawn).norm() > 0.03
    assert gradient("forward_kl", at_home(world), drawn=drawn).norm() < 1e-12


@WORLDS
def test_the_stored_sampling_log_probs_repair_a_temperature_and_not_a_cut(world):
    truth = exact(world, divergences.get("forward_kl"))[1]
    for drawn, repaired in (
        (pitfalls.sampling_distribution(world, temperature=0.7), True),
        (pitfalls.sampling_distribution(world, top_p=0.6), False),
    ):
        error = relative_error(gradient("plain", world, drawn=drawn, weighted=True), truth)
        assert (error < 1e-12) == repaired
        assert repaired or error > 0.05


def test_the_table_of_mismatches():
    table = pitfalls.mismatch(ONE, [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9)])
    assert table.iloc[0].drop(["temperature", "top-p"]).tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-12)
    assert (table["error of gradient"][1:] > 0.1).all()
    assert table["error, weighted"][1] < 1e-12 < 0.1 < table["error, weighted"][2]
    assert (table["pull at p = q, plain"][1:] > 0.05).all()
    assert (table["pull at p = q, canonical"] < 1e-12).all()


# ---- clamps


def test_below_a_clamp_the_restoring_force_is_zero():
    log_u = torch.tensor([-12.0, -6.0, -4.0], dtype=torch.float64)
    force = lambda estimator: pitfalls.force(estimator, log_u).tolist()
    whole = force(estimators.get("forward_kl"))
    assert whole == pytest.approx(log_u.expm1().tolist())
    assert force(pitfalls.clamped("forward_kl", low=-5)) == pytest.approx([0, 0, whole[2]])
    assert force(pitfalls.clamped("forward_kl", low=-20, most=10)) == pytest.approx([0, *whole[1:]])
    assert force(estimators.get("plain")) == [-1, -1, -1]


def test_a_dying_answer_comes_back_only_without_the_clamp():
    ends = {
        name: pitfalls.recovery(estimator)[-1]
        for name, estimator in {
            "forward": estimators.get("forward_kl"),
            "low": pitfalls.clamped("forward_kl", low=-5),
            "most": pitfalls.clamped("forward_kl", low=-20, most=10),
            "js": estimators.get("js"),
        }.items()
    }
    assert ends.pop("forward") == pytest.approx(0, abs=1e-3)
    assert all(end < -11.9 for end in ends.values())


def test_recovery_is_gradient_descent_on_the_divergence():
    world = worlds.categorical([0.25 * math.exp(-3)] + [(1 - 0.25 * math.exp(-3)) / 3] * 3, [0.25] * 4)
    step = exact(world, divergences.get("js"))[1]
    after = (world.policy - step).softmax(0)[0] / 0.25
    assert pitfalls.recovery(estimators.get("js"), -3.0, 1)[1] == pytest.approx(after.log().item())


# ---- the swapped sign


def test_swapped_plain_drives_the_policy_away():
    for world in (ONE, TWO, pitfalls.FAR):
        got = expected(pitfalls.swapped("plain"), world)
        value, truth = exact(world, divergences.get("forward_kl"))
        assert got.value == pytest.approx(-value)
        assert cosine(got.gradient, truth) == pytest.approx(-1)


@pytest.mark.parametrize("name", divergences.names())
def test_a_swapped_generator_minimises_f_of_one_over_u(name):
    got, f = expected(pitfalls.swapped(name), TWO), divergences.get(name).f
    logits = TWO.policy.clone().requires_grad_()
    value = (TWO.q * f(TWO.q.log() - TWO.logp(logits).sum(1))).sum()
    assert got.value == pytest.approx(value.item())
    assert torch.allclose(got.gradient, torch.autograd.grad(value, logits)[0], atol=1e-12)
    # on samples of the policy the swapped ratio is right: it is the divergence with both roles exchanged
    exchanged = (TWO.p * f(TWO.q.log() - TWO.p.log())).sum()
    assert exchanged.item() == pytest.approx(divergences.get(name).exact(TWO.q, TWO.p).item())


@pytest.mark.parametrize("name", ["plain", *divergences.names()])
def test_the_check_passes_what_is_right_and_catches_a_swapped_sign(name):
    pitfalls.check_gradient(estimators.get(name))
    pitfalls.check_gradient(estimators.get(name), TWO)
    if name == "neyman_chi2":  # (u - 1)^2 / u is symmetric in log u: nothing to swap
        pitfalls.check_gradient(pitfalls.swapped(name))
        return
    with pytest.raises(AssertionError, match="raises the divergence"):
        pitfalls.check_gradient(pitfalls.swapped(name))


def test_near_the_reference_a_swapped_sign_hides():
    near = worlds.example("categorical", 0.1)
    for name in ("forward_kl", "js", "reverse_kl"):
        swapped = expected(pitfalls.swapped(name), near)
        assert swapped.value > 0  # the loss looks healthy
        assert cosine(swapped.gradient, exact(near, divergences.get(name))[1]) > 0.98
        assert (
            cosine(
                expected(pitfalls.swapped(name), pitfalls.FAR).gradient, exact(pitfalls.FAR, divergences.get(name))[1]
            )
            < 0
        )


def test_the_check_also_catches_the_naive_jensen_shannon():
    pitfalls.check_gradient(estimators.get("js-definition"))
    with pytest.raises(AssertionError, match=r"relative error 1\)"):
        pitfalls.check_gradient(estimators.get("js-naive"))
