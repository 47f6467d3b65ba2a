"""Advantages and losses by hand, the table of methods, and each penalty's gradient by summing over a small support."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from dphrl_lite import divergences, objectives
from dphrl_lite.divergences import Divergence
from dphrl_lite.lab import worlds
from dphrl_lite.objectives import (
    METHODS,
    Method,
    adapted_strength,
    clipped_loss,
    group_advantages,
    k1_advantages,
    pass_at_k_advantages,
    reference_penalty,
    rehearsal_loss,
    shared_rewards,
)
from dphrl_lite.training import TrainConfig

# The table of the method, section 5, typed off by hand: on-policy data, clip, penalty, divergence.
TABLE = {
    "grpo": ("all", 0.2, 0.2, "none", None),
    "grpo-exp": ("exploration", 0.2, 0.28, "none", None),
    "dapo": ("all", 0.2, 0.28, "none", None),
    "rkl": ("all", 0.2, 0.28, "reference_k2", None),
    "rkl-k3": ("all", 0.2, 0.28, "reference_k3", None),
    "sft": ("exploration", 0.2, 0.28, "rehearsal_ce", None),
    "dph-f": ("exploration", 0.2, 0.28, "rehearsal_f", "forward_kl"),
    "dph-js": ("exploration", 0.2, 0.28, "rehearsal_f", "js"),
    "dph-alpha": ("exploration", 0.2, 0.28, "rehearsal_f", "alpha"),
    "dph-js-definition": ("exploration", 0.2, 0.28, "js_definition", None),
    "rkl-k1-reward": ("all", 0.2, 0.28, "reward_k1", None),
    "grpo-entropy": ("all", 0.2, 0.2, "entropy", None),
    "rkl-exp": ("exploration", 0.2, 0.28, "reference_k2", None),
}
CURVATURE = {
    "forward_kl": 1,
    "alpha": 1,
    "js": 0.5,
    "reverse_kl": 1,
    "hellinger": 0.5,
    "jeffreys": 2,
    "pearson_chi2": 2,
}


# ---- the table of methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_methods_are_those_of_the_table(name):
    m = METHODS[name]
    assert (m.on_policy, m.clip_low, m.clip_high, m.penalty, m.divergence) == TABLE[name]
    assert m.name == name
    assert m.dynamic_sampling == (name == "dapo")
    assert m.rehearses == (name in ("sft", "dph-f", "dph-js", "dph-alpha", "dph-js-definition"))
    assert m.needs_reference == (name in ("rkl", "rkl-k3", "rkl-k1-reward", "rkl-exp", "dph-js-definition"))
    assert m.mirrors == (name == "dph-js-definition")
    assert (m.strength > 0) == (m.penalty != "none")


def test_every_registered_divergence_is_a_method_once():
    others = {f"dph-{n}" for n in divergences.names()} - {"dph-forward_kl", "dph-js", "dph-alpha"}
    assert len(METHODS) == len(list(METHODS))
    assert set(METHODS) == set(TABLE) | others
    assert all(METHODS[name].name == name for name in METHODS)


def test_methods_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS["grpo"].clip_low = 0.1
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["grpo"]


@pytest.mark.parametrize("divergence", CURVATURE)
def test_dph_strengths_are_of_equal_curvature(divergence):
    name = {"forward_kl": "dph-f"}.get(divergence, f"dph-{divergence}")
    assert METHODS[name].strength * CURVATURE[divergence] == pytest.approx(1, abs=1e-3)


def test_a_kink_has_no_curvature_to_divide_by():
    assert METHODS["dph-total_variation"].strength is None
    with pytest.raises(ValueError, match="no default strength"):
        METHODS["dph-total_variation"].strength_of(TrainConfig("dph-total_variation").strength)
    assert METHODS["dph-total_variation"].strength_of(0.5) == 0.5
    assert METHODS["dph-js"].strength_of(None) == METHODS["dph-js"].strength


def test_a_registered_divergence_is_a_method_at_once(registry):
    with pytest.raises(ValueError, match="unknown method 'dph-mine'"):
        METHODS["dph-mine"]
    registry(Divergence(name="mine", f=lambda d: 4 * (d / 2).expm1() ** 2))  # four times Hellinger: f''(1) = 2
    m = METHODS["dph-mine"]
    assert (m.penalty, m.divergence, m.on_policy) == ("rehearsal_f", "mine", "exploration")
    assert m.strength == pytest.approx(0.5, abs=1e-3)
    assert "dph-mine" in METHODS
    assert "dph-mine" in list(METHODS)
    value = rehearsal_loss(m, torch.tensor([[math.log(4.0)]]), torch.zeros(1, 1), torch.ones(1, 1))
    assert value.item() == pytest.approx(4)  # 4 (sqrt 4 - 1)^2


@pytest.mark.parametrize("name", ["dph-jss", "dph-", "js", "", None, 3])
def test_unknown_methods_list_the_names(name):
    with pytest.raises(ValueError, match="dapo, dph-alpha, dph-f"):
        METHODS[name]
    assert name not in METHODS


# ---- group advantages ------------------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    # means 1/4 and 1/2; variances with ddof 1: (9 + 1 + 1 + 1)/16/3 = 1/4 and 4/4/3 = 1/3
    a, b = 0.5 + 1e-6, math.sqrt(1 / 3) + 1e-6
    expected = [[0.75 / a, *[-0.25 / a] * 3], [0.5 / b, 0.5 / b, -0.5 / b, -0.5 / b]]
    for found, row in zip(group_advantages(rewards).tolist(), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-12)


@given(st.floats(-100, 100, width=32), st.integers(2, 64))
def test_equal_rewards_have_exactly_no_advantage(reward, samples):
    assert not group_advantages(torch.full((1, samples), reward)).any()


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16), st.floats(-5, 5))
def test_advantages_average_to_zero_and_forget_the_offset(rewards, offset):
    rewards = torch.tensor([rewards], dtype=torch.float64)
    found = group_advantages(rewards)
    assert found.mean().item() == pytest.approx(0, abs=1e-8)
    if rewards.std() > 1e-3:
        assert torch.allclose(group_advantages(rewards + offset), found, atol=1e-6)


@pytest.mark.parametrize("rewards", [torch.zeros(3, 1), torch.zeros(4), torch.zeros(2, 2, 2)])
def test_rewards_of_a_wrong_shape_are_refused(rewards):
    with pytest.raises(ValueError, match="at least 2 samples"):
        group_advantages(rewards)


# ---- Pass@k advantages -----------------------------------------------------------------------------------------------


def test_shared_rewards_by_hand():
    rewards = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    shared = shared_rewards(rewards, [["a", "b", None, "a"], [None, None, "a", "a"]])
    assert shared.tolist() == [[0.5, 1.0, 0.0, 0.5], [0.0, 0.0, 0.5, 0.5]]
    a = group_advantages(shared)[0]
    assert a[1] > a[0] == a[3] > a[2]
    with pytest.raises(ValueError, match="one form for each reward"):
        shared_rewards(rewards, [["a", "b", None, "a"]])


def test_shared_rewards_push_each_right_form_alike_however_often_it_is_drawn():
    """The expected policy gradient over all groups of five: each right form's grad log p with the chance that it is drawn at
    all; plain rewards push a form as often as it comes, which is the gradient of P(right)."""
    logits = torch.tensor([1.5, 0.0, 0.5], dtype=torch.float64, requires_grad=True)  # two right forms, and a wrong one
    p, right, samples = logits.softmax(0), [1.0, 1.0, 0.0], 5
    shared, plain = 0, 0
    for group in itertools.product(range(3), repeat=samples):
        rewards = torch.tensor([[right[i] for i in group]], dtype=torch.float64)
        logp = p.log()[list(group)]
        weight = logp.sum().exp().detach()
        shared = shared + weight * (shared_rewards(rewards, [["ab-"[i] for i in group]])[0] * logp).sum()
        plain = plain + weight * (rewards[0] * logp).sum()
    drawn = ((1 - (1 - p[:2]) ** samples).detach() * p[:2].log()).sum()
    found, truth, usual = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (shared, drawn, plain))
    assert torch.allclose(found, truth, atol=1e-12)
    assert torch.allclose(usual, samples * torch.autograd.grad(p[:2].sum(), logits)[0], atol=1e-12)
    assert found[1] > 3 * found[0] and usual[0] > 3 * usual[1]  # the seldom one catches up, instead of falling behind


def by_subsets(rewards, k):
    """Advantages as defined: each k-subset has one reward, standardised over all of them; the mean over one's own subsets."""
    subsets = list(itertools.combinations(range(len(rewards)), k))
    passed = torch.tensor([max(rewards[i] for i in s) for s in subsets], dtype=torch.float64)
    deviation = passed.std(correction=0)
    z = (passed - passed.mean()) / deviation if deviation > 0 else torch.zeros_like(passed)
    return [torch.stack([z[j] for j, s in enumerate(subsets) if i in s]).mean().item() for i in range(len(rewards))]


@pytest.mark.parametrize("samples", [2, 3, 5, 8])
def test_pass_at_k_advantages_are_those_of_all_subsets(samples):
    for k in range(2, samples + 1):
        rewards = torch.tril(torch.ones(samples + 1, samples, dtype=torch.float64), -1).flip(1)  # 0 ... all right
        expected = torch.tensor([by_subsets(row, k) for row in rewards.tolist()], dtype=torch.float64)
        assert torch.allclose(pass_at_k_advantages(rewards, k), expected, rtol=0, atol=1e-12)
        assert not pass_at_k_advantages(rewards, k)[rewards.sum(1) > samples - k].any()  # too few wrong: exactly zero


def test_pass_at_k_advantages_by_hand():
    # of the 6 pairs of 4, 3 hold the right one: R = 1/2, deviation 1/2; a wrong one is in 3 pairs, one of them with it
    assert pass_at_k_advantages(torch.tensor([[1, 0, 0, 0]]), 2).tolist() == [pytest.approx([1, *[-1 / 3] * 3])]


def test_pass_at_1_advantages_are_the_groups():
    rewards = (torch.rand(50, 16, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert torch.equal(pass_at_k_advantages(rewards, 1), group_advantages(rewards))


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("p", [0.1, 0.6])
def test_pass_at_k_advantages_follow_the_gradient_of_pass_at_k(p, k):
    """Of a policy that is right with chance p: the mean of sum_i A_i deviation grad log pi, over all outcomes of G = 5, is
    (G/k - 1) times the gradient of 1 - (1 - p)^k; 1 is taken off because a completion is in its own baseline."""
    samples, found = 5, 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=samples):
        c = int(sum(outcome))
        passed = 1 - math.comb(samples - c, k) / math.comb(samples, k)
        chance = p**c * (1 - p) ** (samples - c)
        advantages = pass_at_k_advantages(torch.tensor([outcome], dtype=torch.float64), k)[0].tolist()
        score = sum(a * (1 / p if r else -1 / (1 - p)) for a, r in zip(advantages, outcome, strict=True))
        found += chance * math.sqrt(passed * (1 - passed)) * score
    assert found == pytest.approx((samples / k - 1) * k * (1 - p) ** (k - 1), rel=1e-12)


@pytest.mark.parametrize(("rewards", "k"), [
    (torch.zeros(1, 4), 0), (torch.zeros(1, 4), 5), (torch.zeros(1, 4), -1), (torch.full((1, 4), 0.5), 2),
    (torch.full((1, 4), 0.5), 1), (torch.full((1, 4), torch.nan), 2), (torch.zeros(4), 2), (torch.zeros(3, 0), 1),
])  # fmt: skip
def test_what_has_no_pass_at_k_is_refused(rewards, k):
    with pytest.raises(ValueError, match=rf"rewards 0 or 1 .* got k = {k} and rewards \[.*of shape"):
        pass_at_k_advantages(rewards, k)


# ---- a strength that holds the penalty at a value --------------------------------------------------------------------


@pytest.mark.parametrize(("penalty", "factor"), [
    (0.02, 1), (0.0, math.exp(-0.1)), (-1.0, math.exp(-0.1)), (0.016, math.exp(-0.04)), (0.026, math.exp(0.06)),
    (9.0, math.exp(0.1)),
])  # fmt: skip
def test_adapted_strength_by_hand(penalty, factor):
    assert adapted_strength(0.3, penalty, 0.02) == pytest.approx(0.3 * factor, rel=1e-14)


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_adapted_strength_finds_the_one_that_holds_the_target(start):
    strength, penalty = start, lambda strength: 0.01 / (0.5 + strength)  # less the stronger it is
    for _ in range(300):
        strength = adapted_strength(strength, penalty(strength), 0.004)
    assert strength == pytest.approx(2, rel=1e-6)


# ---- the clipped loss ------------------------------------------------------------------------------------------------

RHO = [0.5, 0.79, 1.0, 1.27, 1.5]


def clipped(advantage, rho, low=0.2, high=0.28):
    """Loss and d loss / d logp for one completion whose tokens have the ratios `rho`."""
    logp_old = torch.full((1, len(rho)), -1.0, dtype=torch.float64)
    logp = (logp_old + torch.tensor([rho], dtype=torch.float64).log()).requires_grad_()
    out = clipped_loss(logp, logp_old, torch.tensor([advantage]), torch.ones_like(logp), low, high)
    out.loss.backward()
    return out, logp.grad[0].tolist()


def test_clipped_loss_by_hand_for_a_good_answer():
    out, gradient = clipped(2.0, RHO)
    assert out.loss.item() == pytest.approx(-2 * (0.5 + 0.79 + 1.0 + 1.27 + 1.28) / 5)
    assert gradient == pytest.approx([-2 * r / 5 for r in (0.5, 0.79, 1.0, 1.27, 0.0)])
    assert (out.clipped_low, out.clipped_high) == (0, pytest.approx(0.2))


def test_clipped_loss_by_hand_for_a_bad_answer():
    out, gradient = clipped(-3.0, RHO)
    assert out.loss.item() == pytest.approx(3 * (0.8 + 0.8 + 1.0 + 1.27 + 1.5) / 5)
    assert gradient == pytest.approx([3 * r / 5 for r in (0.0, 0.0, 1.0, 1.27, 1.5)])
    assert (out.clipped_low, out.clipped_high) == (pytest.approx(0.4), 0)


def test_the_clip_is_asymmetric():
    assert clipped(1.0, [1.27])[1] == pytest.approx([-1.27])
    assert clipped(1.0, [1.27], high=0.2)[1] == [0.0]
    assert clipped(-1.0, [0.75])[1] == [0.0]
    assert clipped(-1.0, [0.75], low=0.28)[1] == pytest.approx([0.75])


def test_on_policy_the_gradient_is_the_policy_gradient():
    out, gradient = clipped(1.5, [1.0, 1.0])
    assert out.loss.item() == pytest.approx(-1.5)
    assert gradient == pytest.approx([-0.75, -0.75])


def test_the_dual_clip_bounds_what_a_bad_answer_costs():
    def loss(advantage, rho, dual):
        logp = torch.tensor([[math.log(rho)]], dtype=torch.float64, requires_grad=True)
        found = clipped_loss(logp, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1), 0.2, 0.28, dual).loss
        return found.item(), torch.autograd.grad(found, logp)[0].item()

    assert loss(-2.0, 5.0, 3.0) == pytest.approx((6.0, 0.0))  # -max(min(5 A, 1.28 A), 3 A), A = -2: flat beyond 3
    assert loss(-2.0, 5.0, None) == pytest.approx((10.0, 10.0))
    for advantage, rho in ((-2.0, 2.0), (-2.0, 0.5), (2.0, 5.0), (2.0, 0.5), (0.0, 9.0)):  # nothing else changes
        assert loss(advantage, rho, 3.0) == loss(advantage, rho, None)


def test_the_mean_is_over_tokens_and_ignores_padding():
    logp = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.nan, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    out = clipped_loss(logp, old, torch.tensor([1.0, -2.0]), mask, 0.2, 0.28)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-(3 * 1 - 2) / 4)  # not the mean of two per-completion means
    assert logp.grad.tolist() == [[-0.25] * 3, [0.5, 0.0, 0.0]]


# ---- penalties, exactly: a batch that holds each outcome in proportion to its probability --------------------------

Q = torch.tensor([8, 4, 2, 1, 1], dtype=torch.float64) / 16  # reference
P = torch.tensor([2, 2, 4, 4, 4], dtype=torch.float64) / 16  # policy


def as_batch(weights):
    """Outcome numbers `[1, 16]`: the mean over them *is* the expectation under `weights`."""
    return torch.repeat_interleave(torch.arange(5), (weights * 16).round().long())[None]


def gradient(of):
    """d of(log p) / d logits at the policy `P`."""
    logits = P.log().clone().requires_grad_()
    return torch.autograd.grad(of(log_softmax(logits, -1)), logits)[0]


def on_samples(penalty, weights):
    x = as_batch(weights)
    return gradient(lambda log_p: penalty(log_p[x], Q.log()[x], torch.ones(x.shape)))


def forward_kl(log_p):
    return (Q * (Q.log() - log_p)).sum()


def reverse_kl(log_p):
    return (log_p.exp() * (log_p - Q.log())).sum()


def test_the_batches_are_expectations():
    for weights in (P, Q):
        assert torch.equal(torch.bincount(as_batch(weights)[0], minlength=5) / 16, weights.float())


def test_k2_on_policy_samples_has_the_reverse_kl_gradient():
    k2 = lambda *tensors: reference_penalty(METHODS["rkl"], *tensors)
    assert torch.allclose(on_samples(k2, P), gradient(reverse_kl), atol=1e-12)
    assert not torch.allclose(on_samples(k2, P), gradient(forward_kl), atol=1e-2)


def test_k3_on_policy_samples_has_the_forward_kl_gradient():
    k3 = lambda *tensors: reference_penalty(METHODS["rkl-k3"], *tensors)
    assert torch.allclose(on_samples(k3, P), gradient(forward_kl), atol=1e-12)
    assert not torch.allclose(on_samples(k3, P), gradient(reverse_kl), atol=1e-2)


def test_values_of_k2_and_k3_by_hand():
    logp, ref, mask = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]]), torch.ones(1, 2)
    assert reference_penalty(METHODS["rkl"], logp, ref, mask).item() == pytest.approx(0.5)
    expected = (math.exp(-1) - 1 + 1 + math.exp(1) - 1 - 1) / 2
    assert reference_penalty(METHODS["rkl-k3"], logp, ref, mask).item() == pytest.approx(expected)


def test_sft_on_reference_samples_has_the_forward_kl_gradient():
    sft = lambda *tensors: rehearsal_loss(METHODS["sft"], *tensors)
    assert torch.allclose(on_samples(sft, Q), gradient(forward_kl), atol=1e-12)


DPH = ["dph-f", "dph-js", "dph-alpha", "dph-reverse_kl", "dph-hellinger", "dph-jeffreys", "dph-pearson_chi2"]


@pytest.mark.parametrize("name", DPH)
def test_rehearsal_on_reference_samples_has_the_gradient_of_its_divergence(name):
    penalty = lambda *tensors: rehearsal_loss(METHODS[name], *tensors)
    divergence = divergences.get(METHODS[name].divergence)
    assert torch.allclose(on_samples(penalty, Q), gradient(lambda log_p: divergence.exact(log_p.exp(), Q)), atol=1e-12)


def test_dph_f_on_all_reference_samples_is_the_forward_kl_itself():
    dph_f = lambda *tensors: rehearsal_loss(METHODS["dph-f"], *tensors)
    assert torch.allclose(on_samples(dph_f, Q), gradient(forward_kl), atol=1e-12)
    x = as_batch(Q)
    value = dph_f(P.log()[x], Q.log()[x], torch.ones(x.shape))
    assert value.item() == pytest.approx(forward_kl(P.log()).item())


def test_filtered_by_reward_dph_f_and_sft_part():
    """The tilt u - 1 is neutral under full sampling only: method, section 3."""
    kept = torch.tensor([0.5, 0.5, 0, 0, 0], dtype=torch.float64)
    gradients = [on_samples(lambda *t, n=n: rehearsal_loss(METHODS[n], *t), kept) for n in ("sft", "dph-f")]
    u = P / Q
    tilt = gradient(lambda log_p: (kept * u * log_p).sum())  # grad of E[u - 1] = E[u grad log p]
    assert torch.allclose(gradients[1] - gradients[0], tilt, atol=1e-12)
    assert tilt.abs().max() > 0.01


def test_alpha_reaches_the_loss_of_dph_alpha_only():
    tensors = (torch.tensor([[-0.5]]), torch.tensor([[-2.0]]), torch.ones(1, 1))
    u = math.exp(1.5)
    expected = (u**0.2 - 0.2 * u - 0.8) / (0.8 * -0.2)
    assert rehearsal_loss(METHODS["dph-alpha"], *tensors, alpha=0.8).item() == pytest.approx(expected, rel=1e-5)
    js = rehearsal_loss(METHODS["dph-js"], *tensors)
    assert rehearsal_loss(METHODS["dph-js"], *tensors, alpha=0.8) == js


@pytest.mark.parametrize("loss", [
    lambda *t: rehearsal_loss(METHODS["sft"], *t),
    lambda *t: rehearsal_loss(METHODS["dph-js"], *t),
    lambda *t: reference_penalty(METHODS["rkl"], *t),
    lambda *t: reference_penalty(METHODS["rkl-k3"], *t),
])  # fmt: skip
def test_penalties_are_masked_token_means_in_the_dtype_of_the_policy(loss):
    torch.manual_seed(0)
    logp, ref, mask = -torch.rand(2, 4), -torch.rand(2, 4), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    poisoned = torch.where(mask.bool(), ref, math.nan)
    each = [loss(logp[i : i + 1, j : j + 1], ref[i : i + 1, j : j + 1], torch.ones(1, 1)) for i, j in mask.nonzero()]
    assert loss(logp, poisoned, mask).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    assert loss(logp, ref, mask).dtype == torch.float32
    with pytest.raises(ValueError, match="selects no token"):
        loss(logp, ref, torch.zeros(2, 4))


def test_a_penalty_is_zero_at_the_reference():
    logp, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2)
    for name in (*DPH, "rkl", "rkl-k3"):
        loss = rehearsal_loss if METHODS[name].rehearses else reference_penalty
        x = logp.clone().requires_grad_()
        value = loss(METHODS[name], x, logp, mask)
        assert value.item() == 0
        assert torch.autograd.grad(value, x)[0].abs().max() == 0


def test_a_method_of_ones_own_is_one_row():
    mine = Method("mine", "exploration", "", penalty="rehearsal_f", divergence="hellinger", strength=1.0)
    assert mine.rehearses
    assert not mine.needs_reference
    assert rehearsal_loss(mine, torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)) == 0


def test_a_steep_divergence_keeps_a_strength(registry):
    registry(Divergence(name="steep", f=lambda d: 3000 * d.expm1() ** 2))
    assert METHODS["dph-steep"].strength == pytest.approx(1 / 6000, rel=1e-2)


# ---- exactly, on a language model: two tokens, three steps, all eight sequences ------------------------------------


@pytest.fixture
def world():
    """Policy and reference apart, so that a wrong gradient shows."""
    torch.manual_seed(1)
    policy, reference = torch.randn(2, 14, dtype=torch.float64)
    return worlds.World(policy, reference, vocabulary=2, tokens=3)


def expected_gradient(world, loss, weights):
    """The gradient of a loss of one sequence `(logp, logp_ref, mask)`, summed over all sequences with their probability."""
    logits, ones = world.policy.clone().requires_grad_(), torch.ones(1, world.tokens)
    pairs = zip(world.logp(logits), world.logp(world.reference), strict=True)
    losses = torch.stack([loss(logp[None], ref[None], ones) for logp, ref in pairs])
    return torch.autograd.grad((weights * losses).sum(), logits)[0] * world.tokens  # token means, back to sums


def is_gradient(found, world, divergence, prefixes=None, scale=1.0):
    return worlds.relative_error(found, scale * worlds.exact(world, divergences.get(divergence), prefixes)[1]) < 1e-9


def test_the_clipped_loss_follows_the_expected_advantage(world):
    advantages, logits = torch.randn(8, dtype=torch.float64), world.policy.clone().requires_grad_()
    logp, ones = world.logp(logits), torch.ones(1, 3)
    losses = [
        clipped_loss(x[None], x.detach()[None], a[None], ones, 0.2, 0.28).loss
        for x, a in zip(logp, advantages, strict=True)
    ]
    (found,) = torch.autograd.grad((world.p * torch.stack(losses)).sum() * 3, logits, retain_graph=True)
    (truth,) = torch.autograd.grad(-(logp.sum(1).exp() * advantages).sum(), logits)
    assert torch.allclose(found, truth, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("rkl", "reverse_kl", "forward_kl"), ("rkl-k3", "forward_kl", "reverse_kl")]
)
def test_k2_and_k3_hold_each_token_where_the_policy_goes(world, name, right, wrong):
    found = expected_gradient(world, lambda *t: reference_penalty(METHODS[name], *t), world.p)
    assert is_gradient(found, world, right, "policy")
    assert not is_gradient(found, world, right)  # the sequence's gradient also moves where the policy goes
    assert not is_gradient(found, world, wrong, "policy")


def test_off_policy_they_are_no_gradient_any_more(world):
    elsewhere = torch.softmax(torch.randn(8, dtype=torch.float64), 0)
    for name, divergence in (("rkl", "reverse_kl"), ("rkl-k3", "forward_kl"), ("dph-js-definition", "js")):
        found = expected_gradient(world, lambda *t, n=name: reference_penalty(METHODS[n], *t), elsewhere)
        assert not is_gradient(found, world, divergence, "policy", 0.5 if divergence == "js" else 1)


def test_k1_in_the_reward_has_the_gradient_of_the_reward_and_of_the_sequences_reverse_kl(world):
    """To the end summed, as a reward; as a loss it has none, and k1 of its own token alone lacks where the policy goes."""
    advantages, logits = torch.randn(8, dtype=torch.float64), world.policy.clone().requires_grad_()
    logp, ref, mask = world.logp(logits), world.logp(world.reference), torch.ones(8, 3)
    found = {}
    for name in ("return", "token"):
        a = k1_advantages(advantages, logp.detach(), ref, mask, 0.3)
        a = a if name == "return" else advantages[:, None] - 0.3 * (logp.detach() - ref)
        losses = [
            clipped_loss(x[None], x.detach()[None], y[None], mask[:1], 0.2, 0.28).loss
            for x, y in zip(logp, a, strict=True)
        ]
        (found[name],) = torch.autograd.grad((world.p * torch.stack(losses)).sum() * 3, logits, retain_graph=True)
    p = logp.sum(1).exp()
    reward, kl = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (-(p * advantages).sum(),
                  (p * (logp - ref).sum(1)).sum()))  # fmt: skip
    assert torch.allclose(found["return"], reward + 0.3 * kl, atol=1e-12)
    assert torch.allclose(kl, worlds.exact(world, divergences.get("reverse_kl"))[1], atol=1e-9)
    assert not torch.allclose(found["token"], reward + 0.3 * kl, atol=1e-3)


def test_k1_advantages_by_hand():
    logp, ref = (
        torch.tensor([[-1.0, -2.0, -9.0]]),
        torch.tensor([[-1.5, -1.0, 9.0]]),
    )  # log u: .5, -1; the third is padding
    found = k1_advantages(torch.tensor([2.0]), logp, ref, torch.tensor([[1, 1, 0]]), beta=0.1)
    assert found[0, :2].tolist() == pytest.approx([2 + 0.05, 2 + 0.1])


@pytest.mark.parametrize("name", ["sft", "dph-f"])
def test_forward_kl_on_reference_samples_is_that_of_whole_sequences(world, name):
    found = expected_gradient(world, lambda *t: rehearsal_loss(METHODS[name], *t), world.q)
    assert is_gradient(found, world, "forward_kl")


@pytest.mark.parametrize("name", [n for n in DPH if n != "dph-f"])
def test_the_other_rehearsal_losses_hold_each_token_where_the_reference_goes(world, name):
    found = expected_gradient(world, lambda *t: rehearsal_loss(METHODS[name], *t), world.q)
    assert is_gradient(found, world, METHODS[name].divergence, "reference")
    assert not is_gradient(found, world, METHODS[name].divergence)


def definition(world, naive=False):
    """The expected gradient of both halves of `dph-js-definition`; naive: autograd through the definition."""
    method = METHODS["dph-js-definition"]
    half = lambda logp, other: (logp - (torch.logaddexp(logp, other) - math.log(2))).mean() / 2
    on_policy = lambda p, q, mask: half(p, q) if naive else reference_penalty(method, p, q, mask)
    stored = lambda p, q, mask: half(q, p) if naive else rehearsal_loss(method, p, q, mask) + 0 * p.sum()
    return expected_gradient(world, on_policy, world.p), expected_gradient(world, stored, world.q)


def test_the_definition_of_js_has_half_the_gradient_of_the_generator(world):
    on_policy, stored = definition(world)
    assert is_gradient(on_policy, world, "js", "policy", scale=0.5)
    assert not stored.any()
    one = worlds.example("categorical")
    assert is_gradient(definition(one)[0], one, "js", scale=0.5)


def test_the_definition_of_js_differentiated_naively_vanishes():
    one = worlds.example("categorical")
    on_policy, stored = definition(one, naive=True)
    assert on_policy.abs().max() > 0.01
    assert (on_policy + stored).abs().max() < 1e-15


def test_the_value_of_the_definition_is_the_js_divergence():
    one, method, ones = worlds.example("categorical"), METHODS["dph-js-definition"], torch.ones(1, 1)
    pairs = list(zip(one.policy.log_softmax(0), one.reference.log_softmax(0), strict=True))
    halves = [
        sum(w * loss(method, p.view(1, 1), q.view(1, 1), ones) for w, (p, q) in zip(weights, pairs, strict=True))
        for loss, weights in ((reference_penalty, one.p), (rehearsal_loss, one.q))
    ]
    assert sum(halves).item() == pytest.approx(divergences.get("js").exact(one.p, one.q).item() / 2, rel=1e-9)


def test_the_definition_is_as_strong_as_the_generator_near_the_reference():
    assert METHODS["dph-js-definition"].strength == 2 * METHODS["dph-js"].strength
    near = worlds.example("categorical", distance=1e-3)
    by_definition = METHODS["dph-js-definition"].strength * definition(near)[0]
    by_generator = METHODS["dph-js"].strength * worlds.exact(near, divergences.get("js"))[1]
    assert worlds.relative_error(by_definition, by_generator) < 2e-3


# ---- the release's formulas ----------------------------------------------------------------------------------------

RELEASE = {
    "dph-f": lambda d: d.exp() - d - 1,
    "dph-js": lambda d: d.exp() * d - (d.exp() + 1) * ((d.exp() + 1) / 2).log(),
    "dph-alpha": lambda d: ((0.5 * d).exp() - 0.5 * d.exp() - 0.5) / (0.5 * -0.5),
}


@pytest.mark.parametrize("name", RELEASE)
def test_rehearsal_losses_are_the_releases_formulas_and_finite_where_those_are_not(name):
    at = lambda d: rehearsal_loss(METHODS[name], d.view(1, 1), torch.zeros(1, 1, dtype=d.dtype), torch.ones(1, 1))
    for d in torch.linspace(-4.99, 4.99, 101, dtype=torch.float64):
        assert at(d).item() == pytest.approx(RELEASE[name](d).item(), rel=1e-9, abs=1e-12)
    for d in (-120.0, -100.0, -30.0, 30.0, 80.0):
        x = torch.tensor(d, requires_grad=True)
        value = at(x)
        (slope,) = torch.autograd.grad(value, x)
        assert value.isfinite()
        assert slope.isfinite()


# ---- every method of the table, on a batch computed by hand --------------------------------------------------------

LOGP, OLD, REF = [[-0.5, -2.0], [-1.0]], [[-0.7, -1.2], [-1.3]], [[-1.5, -1.0], [-0.2]]  # two completions, three tokens
ADVANTAGES = [1.0, -2.0]


def by_hand(name):
    """L_exp, and the penalty of a method where it acts on these three tokens, in plain arithmetic."""
    low, high = 0.8, 1.2 if name in ("grpo", "grpo-entropy") else 1.28
    tokens = [(p, o, q, a) for ps, os, qs, a in zip(LOGP, OLD, REF, ADVANTAGES, strict=True)
              for p, o, q in zip(ps, os, qs, strict=True)]  # fmt: skip
    clip = lambda rho: min(max(rho, low), high)
    exploration = -sum(min(math.exp(p - o) * a, clip(math.exp(p - o)) * a) for p, o, _, a in tokens) / 3
    mean = lambda f: sum(f(p - q, math.exp(p - q)) for p, _, q, _ in tokens) / 3
    penalty = {
        "rkl": lambda d, u: d**2 / 2,
        "rkl-exp": lambda d, u: d**2 / 2,
        "rkl-k3": lambda d, u: 1 / u - 1 + d,
        "rkl-k1-reward": lambda d, u: d,
        "sft": lambda d, u: -d,
        "dph-f": lambda d, u: u - 1 - d,
        "dph-js": lambda d, u: u * d - (u + 1) * math.log((u + 1) / 2),
        "dph-alpha": lambda d, u: (u**0.5 - 0.5 * u - 0.5) / -0.25,
        "dph-js-definition": lambda d, u: math.log(2 * u / (u + 1)) / 2 + math.log(2 / (u + 1)) / 2,
    }
    return exploration, mean(penalty[name]) if name in penalty else None


@pytest.mark.parametrize("name", TABLE)
def test_every_method_by_hand(name):
    fill = lambda rows: torch.tensor([[*r, *[-9.0] * (2 - len(r))] for r in rows], dtype=torch.float64)
    logp, old, ref, mask = fill(LOGP), fill(OLD), fill(REF), torch.tensor([[1, 1], [1, 0]])
    m, (exploration, penalty) = METHODS[name], by_hand(name)
    out = clipped_loss(logp, old, torch.tensor(ADVANTAGES), mask, m.clip_low, m.clip_high)
    assert out.loss.item() == pytest.approx(exploration, rel=1e-12)
    halves = [rehearsal_loss(m, logp, ref, mask)] if m.rehearses else []
    halves += [reference_penalty(m, logp, ref, mask)] if m.needs_reference else []
    assert (sum(halves).item() if halves else None) == (penalty and pytest.approx(penalty, rel=1e-12))


def test_a_group_of_equal_rewards_contributes_nothing():
    logp = torch.full((4, 3), -1.0, dtype=torch.float64, requires_grad=True)
    advantages = group_advantages(torch.tensor([[1.0, 1.0, 1.0, 1.0]]))[0]
    clipped_loss(logp, logp.detach() - 0.1, advantages, torch.ones(4, 3), 0.2, 0.28).loss.backward()
    assert not logp.grad.any()


def test_a_registered_method_is_used_by_name_and_may_be_replaced(monkeypatch):
    monkeypatch.setattr(objectives, "_FIXED", dict(objectives._FIXED))
    for strength in (1.0, 2.0):
        mine = objectives.Method("mine", "all", "a test", penalty="rehearsal_f", divergence="js", strength=strength)
        assert objectives.register(mine) is METHODS["mine"]
    assert METHODS["mine"].strength == 2.0 and "mine" in list(METHODS)


@pytest.mark.parametrize(("name", "why"), [("grpo", "built in"), ("dph-js", "built in"), ("dph-new", "divergence")])
def test_names_of_the_kit_are_kept(name, why):
    before = dict(METHODS)
    with pytest.raises(ValueError, match=why):
        objectives.register(objectives.Method(name, "all", "a test"))
    assert dict(METHODS) == before
