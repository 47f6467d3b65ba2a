"""Estimators of a divergence from samples: what their *value* estimates, and which *gradient* they follow as a loss.

The losses are those that train (`objectives`, and f of `divergences`), each examined exactly, by enumeration of the small
`worlds`; Monte-Carlo only shows the spread of finitely many samples.
Notation as in `divergences`: p policy, q reference, u = p/q. All float64. Nothing here trains or knows a language model.

Sources: J. Schulman's note "Approximating KL divergence" (2020) for k1, k2, k3; arXiv 2509.07430, section 3, for f(u) on
reference samples and the definition of Jensen-Shannon. What they follow as losses is derived and tested here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dphrl_lite import divergences
from dphrl_lite.errors import lookup
from dphrl_lite.lab.worlds import World, cosine, exact, relative_error
from dphrl_lite.objectives import cross_entropy, half_kl_to_mean, js_on_policy, js_on_reference, k2, k3

Level = Literal["sequence", "token"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (logp, logp_ref), both [S, T], to the loss of every token [S, T]
USUAL = ("forward_kl", "reverse_kl", "js")
_SAME, _ZERO = 1e-9, 1e-12  # relative errors and norms below which gradients are called equal, or zero


@dataclass(frozen=True)
class Estimator:
    """A loss on samples. Its value is the mean over samples; its gradient what autograd makes of that mean.

    Args:
        name, label: for look-up, and for figures and tables.
        value_of: the divergence that the value is meant to estimate.
        gradient_of: the divergence whose gradient it follows on one token; None if the expected gradient is zero.
        on_policy, on_reference: the loss of a sample of the policy, of the reference; the means of both are added.
        scale: what it estimates, in units of `value_of` (the definition of Jensen-Shannon is half the generator's).
    """

    name: str
    label: str
    value_of: str
    gradient_of: str | None
    on_policy: Loss | None = None
    on_reference: Loss | None = None
    scale: float = 1.0

    @property
    def samples(self) -> str:
        """Who wrote the samples: "policy", "reference" or "both"."""
        return "both" if self.on_policy and self.on_reference else "policy" if self.on_policy else "reference"


def _k1_reward(logp: Tensor, logp_ref: Tensor) -> Tensor:
    log_u = (logp - logp_ref).detach()
    to_go = log_u.flip(-1).cumsum(-1).flip(-1)  # a token answers for what comes after it, too
    return log_u + to_go * (logp - logp.detach())  # 0, with the gradient of logp: a policy gradient


def _js_naive(logp: Tensor, logp_ref: Tensor) -> Tensor:
    return half_kl_to_mean(logp_ref, logp)


_FIXED = {
    e.name: e
    for e in (
        Estimator("k1", "k1: log u", "reverse_kl", None, lambda p, q: p - q),
        Estimator("k1-reward", "k1 in the reward", "reverse_kl", "reverse_kl", _k1_reward),
        Estimator("k2", "k2: (log u)²/2", "reverse_kl", "reverse_kl", k2),
        Estimator("k3", "k3: 1/u − 1 + log u", "reverse_kl", "forward_kl", k3),
        Estimator("plain", "plain: −log u", "forward_kl", "forward_kl", on_reference=cross_entropy),
        Estimator("js-naive", "JS definition, naive", "js", None, half_kl_to_mean, _js_naive, 0.5),
        Estimator("js-definition", "JS definition, right", "js", "js", js_on_policy, js_on_reference, 0.5),
    )
}


def names() -> list[str]:
    """The fixed estimators, then every registered divergence: its f(u) on reference samples."""
    return [*_FIXED, *divergences.names()]


def usual(divergence: str) -> list[str]:
    """The fixed estimators, and a divergence's f(u)."""
    return [*_FIXED, divergence]


def get(name: str) -> Estimator:
    """The estimator called `name`; the name of a divergence gives its canonical generator on reference samples."""
    if name in _FIXED:
        return _FIXED[name]
    lookup(dict.fromkeys(names()), "estimator", name)
    divergence = divergences.get(name)
    return Estimator(name, f"f(u): {divergence.label}", name, name, on_reference=lambda p, q: divergence.f(p - q))


@dataclass(frozen=True)
class Expected:
    """Expected value (nats), standard deviation of the value of one sample, expected gradient `[P]`."""

    value: float
    std: float
    gradient: Tensor


def _terms(estimator: Estimator, world: World, level: Level) -> list[tuple[str, Tensor, Tensor]]:
    """Per source of samples: its name, the loss of every sequence `[S]` and its gradient `[S, P]`."""
    logp, ref = world.logp(world.policy).detach(), world.logp(world.reference)
    if level == "sequence":
        logp, ref = logp.sum(1, keepdim=True), ref.sum(1, keepdim=True)
    logp.requires_grad_()
    terms = []
    for source, loss in (("policy", estimator.on_policy), ("reference", estimator.on_reference)):
        if loss:
            values = loss(logp, ref) + 0 * logp  # a loss that is all stop-gradient has gradient zero
            (weight,) = torch.autograd.grad(values.sum(), logp)
            gradients = torch.einsum("st,stp->sp", weight.expand(-1, world.tokens), world.scores)
            terms.append((source, values.detach().sum(1), gradients))
    return terms


def expected(
    estimator: Estimator, world: World, level: Level = "sequence", drawn: Tensor | None = None, weighted: bool = False
) -> Expected:
    """What an estimator gives on endlessly many samples, by enumeration.

    Args:
        level: "sequence" sums log u over the tokens first; "token" sums the losses of the tokens.
        drawn: probabilities `[S]` from which the *reference* samples really came: filtered, tempered, cut.
        weighted: weigh each reference sample by reference / drawn.
    """
    value, variance, gradient = 0.0, 0.0, torch.zeros_like(world.policy)
    for source, values, gradients in _terms(estimator, world, level):
        probs = world.p if source == "policy" else world.q if drawn is None else drawn
        if weighted and source == "reference":
            weight = torch.where(probs > 0, world.q / probs, 0.0)
            values, gradients = weight * values, weight[:, None] * gradients
        mean = (probs * values).sum()
        value, variance = value + mean, variance + (probs * (values - mean) ** 2).sum()
        gradient = gradient + probs @ gradients
    return Expected(float(value), float(variance) ** 0.5, gradient)


def compare(
    world: World, names: Sequence[str | Estimator], against: Sequence[str] = USUAL, level: Level = "sequence"
) -> pd.DataFrame:
    """What each estimator's value estimates and which gradient it follows, by enumeration.

    Args:
        names: estimators by name, or `Estimator` objects.
        against: divergences with whose exact gradients the expected one is compared.
        level: as for `expected`.

    Returns:
        One row per estimator: who wrote its samples; what it "estimates" and the "exact" value of that; "bias" and "std" of
        one sample (nats); per divergence the cosine ("cos", nan for a zero gradient) and the relative distance ("error") of
        the gradients; and the divergence whose gradient it "follows" exactly, if there is one.
    """
    rows = {}
    for estimator in map(_resolve, names):
        got, target = expected(estimator, world, level), divergences.get(estimator.value_of)
        truth = estimator.scale * exact(world, target)[0]
        row = {"samples": estimator.samples, "estimates": _half(estimator) + target.label, "exact": truth}
        bias = got.value - truth
        row |= {"bias": bias if abs(bias) > _ZERO else 0.0, "std": got.std}
        gradients = {n: estimator.scale * exact(world, divergences.get(n))[1] for n in against}
        row |= {f"cos {n}": cosine(got.gradient, g) for n, g in gradients.items()}
        row |= {f"error {n}": relative_error(got.gradient, g) for n, g in gradients.items()}
        rows[estimator.label] = row | {"follows": _follows(got.gradient, estimator, world)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("estimator")


def _resolve(estimator: str | Estimator) -> Estimator:
    return get(estimator) if isinstance(estimator, str) else estimator


def _half(estimator: Estimator) -> str:
    return "½ " if estimator.scale == 0.5 else ""


def _follows(gradient: Tensor, estimator: Estimator, world: World) -> str:
    if gradient.norm() < _ZERO:
        return "nothing: it is zero"
    for prefixes in (None, "policy", "reference"):
        for name in dict.fromkeys((*USUAL, estimator.value_of)):
            divergence = divergences.get(name)
            if relative_error(gradient, estimator.scale * exact(world, divergence, prefixes)[1]) < _SAME:
                where = f", per token at {prefixes} prefixes" if prefixes else ""
                return _half(estimator) + divergence.label + where
    return "none of these"


@dataclass(frozen=True)
class Draws:
    """Repeated estimates: values `[R]` in nats and gradients `[R, P]`, each from as many samples as were asked for."""

    values: Tensor
    gradients: Tensor


@lru_cache(maxsize=64)
def _shares(world: World, source: str, samples: int, repeats: int, seed: int) -> Tensor:
    """How often each sequence was drawn `[R, S]`, as a share: the same samples for every estimator."""
    rng, probs = np.random.default_rng([seed, source == "policy"]), world.p if source == "policy" else world.q
    return torch.as_tensor(rng.multinomial(samples, (probs / probs.sum()).numpy(), size=repeats) / samples)


def simulate(
    estimator: Estimator, world: World, samples: int, level: Level = "sequence", repeats: int = 100, seed: int = 0
) -> Draws:
    """Estimate `repeats` times, each time from `samples` samples (of each source, where both are used)."""
    values, gradients = torch.zeros(repeats, dtype=torch.float64), torch.zeros_like(world.policy)
    for source, value, gradient in _terms(estimator, world, level):
        shares = _shares(world, source, samples, repeats, seed)
        values, gradients = values + shares @ value, gradients + shares @ gradient
    return Draws(values, gradients)


def error_bars(
    world: World, names: Sequence[str | Estimator], target: str, samples: int, level: Level = "sequence"
) -> pd.DataFrame:
    """`compare` against one divergence, with what 100 repeated estimates from `samples` samples each give.

    Returns:
        The table of `compare`, and: "value" and "value std" (nats); "cosine" and "cosine std" with the exact gradient of
        `target`. The deviations are what a single estimate has to live with.
    """
    table = compare(world, names, (target,), level)
    truth = exact(world, divergences.get(target))[1]
    draws = [simulate(estimator, world, samples, level) for estimator in map(_resolve, names)]
    cosines = [torch.nn.functional.cosine_similarity(d.gradients, truth[None]) for d in draws]
    for column, numbers in (("value", [d.values for d in draws]), ("cosine", cosines)):
        table[column] = [x.mean().item() for x in numbers]
        table[f"{column} std"] = [x.std().item() for x in numbers]
    return table
