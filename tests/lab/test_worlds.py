"""Worlds against formulas by hand: enumeration, scores, exact values and gradients."""

import pytest
import torch

from dphrl_lite import divergences
from dphrl_lite.lab import worlds
from dphrl_lite.lab.worlds import exact

ONE = worlds.example("categorical", 1.0)
TWO = worlds.example("two-token", 1.0)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_two_token_world_enumerates_first_times_second():
    first, second = TWO.policy[:4].softmax(0), TWO.policy[4:].view(4, 4).softmax(1)
    assert close(TWO.p.view(4, 4), first[:, None] * second)
    assert TWO.p.sum().item() == pytest.approx(1)
    assert TWO.logp(TWO.policy).shape == (16, 2)


def test_scores_are_the_gradient_of_the_log_probs():
    for s, t in ((0, 0), (7, 0), (7, 1), (15, 1)):
        logits = TWO.policy.clone().requires_grad_()
        assert close(torch.autograd.grad(TWO.logp(logits)[s, t], logits)[0], TWO.scores[s, t])


def test_exact_values_and_gradients_of_the_kl_divergences_by_hand():
    p, q = ONE.p, ONE.q
    value, grad = exact(ONE, divergences.get("forward_kl"))
    assert value == pytest.approx((q * (q / p).log()).sum().item())
    assert close(grad, p - q)
    value, grad = exact(ONE, divergences.get("reverse_kl"))
    assert value == pytest.approx((p * (p / q).log()).sum().item())
    assert close(grad, p * ((p / q).log() - value))


def test_distance_is_that_of_the_logits():
    for kind in ("categorical", "two-token"):
        world = worlds.example(kind, 0.7)
        assert (world.policy - world.reference).std().item() == pytest.approx(0.7)
    with pytest.raises(KeyError, match="two-token"):
        worlds.example("three-token")


def test_the_chain_rule_of_the_kl_divergences():
    """Sequence values are sums of the next token's, at the prefixes of whoever weighs the sum."""
    for name, prefixes in (("forward_kl", "reference"), ("reverse_kl", "policy")):
        whole, parts = (exact(TWO, divergences.get(name), where)[0] for where in (None, prefixes))
        assert whole == pytest.approx(parts)


def test_cosine_and_relative_error():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])
    assert worlds.cosine(a, 2 * a) == pytest.approx(1)
    assert worlds.cosine(a, b) == 0
    assert worlds.cosine(a, 0 * a) != worlds.cosine(a, 0 * a)  # nan
    assert worlds.relative_error(2 * a, a) == pytest.approx(1)
