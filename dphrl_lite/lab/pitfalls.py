"""What goes wrong with f(u) on reference samples: filtered by reward, drawn otherwise than scored, clamped, or upside down.

Each effect is exact, in the small `worlds`, and comes as a pandas table. Nothing here samples.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dphrl_lite import divergences
from dphrl_lite.lab import estimators, worlds
from dphrl_lite.lab.estimators import Estimator, expected
from dphrl_lite.lab.worlds import World

# Every canonical f is symmetric in log u near u = 1, so a swapped sign shows only far from the reference. Here the policy
# has flattened the reference's favourite and dropped an answer: following a swapped generator leads uphill.
FAR = worlds.categorical(p=[0.31, 0.69 - 1e-5, 1e-5], q=[0.0005, 0.98, 0.0195])


def restricted(probs: Tensor, keep: Tensor) -> Tensor:
    """`probs` `[S]` given that only what `keep` selects is kept: the samples that pass the filter."""
    kept = probs * keep
    if kept.sum() <= 0:
        raise ValueError("the filter keeps nothing; keep at least one outcome of positive probability")
    return kept / kept.sum()


def pull(gradient: Tensor, world: World, on: Tensor) -> float:
    """How fast a small step against `gradient` raises log p(on), `on` a bool mask over sequences `[S]`; negative: lowers it."""
    inside = restricted(world.p, on)
    return 0.0 - (inside @ world.scores.sum(1) @ gradient).item()


def filtering(
    world: World, correct: Tensor, tilts: Sequence[float], names=("plain", "forward_kl", "js")
) -> pd.DataFrame:
    """What keeping only correct reference samples does to E[u], and to the pull on the probability of being correct.

    Args:
        world: a categorical; its policy is replaced by the reference, tilted towards the correct answers.
        correct: bool `[S]`.
        tilts: how much the log-odds of a correct answer have risen.

    Returns:
        Per tilt and per set of samples ("all", "correct only"): p_correct, E[u], and a pull per estimator in `names`.
    """
    rows = []
    for tilt in tilts:
        now = replace(world, policy=world.reference + tilt * correct)
        for samples, drawn in (("all", now.q), ("correct only", restricted(now.q, correct))):
            row = {"samples": samples, "p_correct": (now.p * correct).sum().item()}
            row["E[u]"] = (drawn * now.p / now.q).sum().item()
            for name in names:
                row[name] = pull(expected(estimators.get(name), now, drawn=drawn).gradient, now, correct)
            rows.append(row)
    return pd.DataFrame(rows)


def sampling_distribution(world: World, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Probabilities `[S]` with which the reference writes its sequences at a temperature and a top-p, token by token."""
    parts = []
    for logp in world.conditionals(world.reference / temperature):
        ordered, order = logp.exp().sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # keep tokens until their sum reaches top_p, the first one always
        cut = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, before >= top_p)
        parts.append(logp.masked_fill(cut & (logp < ordered[:, :1].log()), -torch.inf).flatten())
    return world.logp(torch.cat(parts)).sum(1).exp()


def mismatch(world: World, settings: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """What happens to forward KL when samples are drawn at another temperature or top-p than u is computed at.

    Args:
        settings: pairs (temperature, top_p).

    Returns:
        Per setting: E[u] (1 without mismatch); the error of plain's gradient; the same with samples weighted by
        exp(logp - logp_sampling); and the gradient's norm at policy = reference, where nothing should pull.
    """
    at_home = replace(world, policy=world.reference)
    plain, canonical = estimators.get("plain"), estimators.get("forward_kl")
    _, truth = worlds.exact(world, divergences.get("forward_kl"))
    rows = []
    for temperature, top_p in settings:
        drawn = sampling_distribution(world, temperature, top_p)
        error = lambda **how: worlds.relative_error(expected(plain, world, drawn=drawn, **how).gradient, truth)  # noqa: B023
        row = {"temperature": temperature, "top-p": top_p, "E[u]": (drawn * world.p / world.q).sum().item()}
        row |= {"error of gradient": error(), "error, weighted": error(weighted=True)}
        for label, estimator in (("plain", plain), ("canonical", canonical)):
            row[f"pull at p = q, {label}"] = expected(estimator, at_home, drawn=drawn).gradient.norm().item()
        rows.append(row)
    return pd.DataFrame(rows)


def clamped(name: str, low: float = -np.inf, most: float = np.inf) -> Estimator:
    """A divergence's estimator with log u kept above `low` and f below `most`, as careful code likes to do."""
    right, f = estimators.get(name), divergences.get(name).f
    label = right.label + (f", log u ≥ {low:g}".replace("-", "−") if low > -np.inf else "")
    label += f", f ≤ {most:g}" if most < np.inf else ""
    return replace(right, label=label, on_reference=lambda p, q: f((p - q).clamp(min=low)).clamp(max=most))


def force(estimator: Estimator, log_u: Tensor) -> Tensor:
    """The pull d loss / d log u of a loss on reference samples, at each `log_u`."""
    logp = log_u.clone().requires_grad_()
    return torch.autograd.grad(estimator.on_reference(logp, torch.zeros_like(logp)).sum(), logp)[0]


def recovery(estimator: Estimator, log_u: float = -12.0, steps: int = 80, rate: float = 1.0) -> np.ndarray:
    """log u of a dying answer while gradient descent follows the expected gradient alone `[steps + 1]`.

    Four answers, equally likely under the reference; the policy gives one of them exp(log_u) times its share.
    """
    dying = 0.25 * np.exp(log_u)
    world, path = worlds.categorical([dying] + [(1 - dying) / 3] * 3, [0.25] * 4), [log_u]
    for _ in range(steps):
        weight = world.q * force(estimator, world.p.log() - world.q.log())
        world = replace(world, policy=world.policy - rate * (weight - world.p * weight.sum()))
        path.append((world.p[0] / world.q[0]).log().item())
    return np.array(path)


def swapped(name: str) -> Estimator:
    """The classic bug: log u the wrong way round. On reference samples it minimises E_q[f(1/u)], no longer E_q[f(u)]."""
    right = estimators.get(name)
    swap = lambda loss: loss and (lambda p, q: loss(q, p))
    label = f"{right.label}, swapped"
    return replace(right, label=label, on_policy=swap(right.on_policy), on_reference=swap(right.on_reference))


def check_gradient(estimator: Estimator, world: World = FAR, tolerance: float = 1e-6) -> None:
    """The test that catches a swapped sign: the expected gradient must be the exact one, far from the reference.

    Raises:
        AssertionError: it is not; the message says by how much, and whether a small step raises the divergence.
    """
    _, truth = worlds.exact(world, divergences.get(estimator.value_of))
    gradient = expected(estimator, world).gradient
    error = worlds.relative_error(gradient, estimator.scale * truth)
    if error > tolerance:
        way = "raises" if gradient @ truth < 0 else "lowers"
        raise AssertionError(
            f"{estimator.label}: the gradient is not that of {divergences.get(estimator.value_of).label} (relative error "
            f"{error:.3g}); a small step against it {way} the divergence. Expected error 0: check the sign of log u and "
            "who wrote the samples"
        )
