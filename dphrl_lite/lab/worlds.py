"""Worlds so small that all their sequences can be written down: a categorical, and a two-token language model.

Here a divergence of whole sequences is exact, and so is its gradient. Notation as in `divergences`: p policy, q reference,
u = p/q. All float64; no sampling, no estimators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from dphrl_lite.divergences import Divergence
from dphrl_lite.errors import lookup


@dataclass(frozen=True, eq=False)
class World:
    """A policy and a reference over all S = V^T sequences of T tokens from a vocabulary of V.

    Args:
        policy, reference: logits `[P]` of every prefix, one after the other: V for the first token, then V for the
            second token after each first one, ... One token makes a categorical.
        vocabulary, tokens: V and T.
    """

    policy: Tensor
    reference: Tensor
    vocabulary: int
    tokens: int = 1

    def conditionals(self, logits: Tensor) -> list[Tensor]:
        """Log-probs of the next token, per position: `[V^t, V]`, a row for each prefix."""
        sizes = [self.vocabulary ** (t + 1) for t in range(self.tokens)]
        return [part.view(-1, self.vocabulary).log_softmax(-1) for part in logits.split(sizes)]

    def logp(self, logits: Tensor) -> Tensor:
        """Log-probs of the tokens of every sequence `[S, T]`."""
        size = self.vocabulary**self.tokens
        return torch.stack([c.flatten().repeat_interleave(size // c.numel()) for c in self.conditionals(logits)], 1)

    @cached_property
    def p(self) -> Tensor:
        """The policy's probability of every sequence `[S]`."""
        return self.logp(self.policy).sum(1).exp()

    @cached_property
    def q(self) -> Tensor:
        """The reference's probability of every sequence `[S]`."""
        return self.logp(self.reference).sum(1).exp()

    @cached_property
    def scores(self) -> Tensor:
        """grad log p of every token of every sequence `[S, T, P]`."""
        return torch.autograd.functional.jacobian(self.logp, self.policy, vectorize=True)


def categorical(p: Sequence[float], q: Sequence[float]) -> World:
    """A world of one token with the given policy and reference probabilities, all positive."""
    p, q = (torch.as_tensor(x, dtype=torch.float64) for x in (p, q))
    return World(p.log(), q.log(), len(p))


def example(kind: str = "categorical", distance: float = 1.0, seed: int = 0) -> World:
    """A random world: "categorical" over 6 outcomes, or a "two-token" language model with V = 4.

    `distance` is the standard deviation of the policy's logits around the reference's.
    """
    vocabulary, tokens = lookup({"categorical": (6, 1), "two-token": (4, 2)}, "world", kind)
    size, rng = sum(vocabulary ** (t + 1) for t in range(tokens)), np.random.default_rng(seed)
    reference, move = torch.as_tensor(rng.standard_normal((2, size)))
    return World(reference + distance * (move - move.mean()) / move.std(), reference, vocabulary, tokens)


@lru_cache(maxsize=256)
def exact(world: World, divergence: Divergence, prefixes: str | None = None) -> tuple[float, Tensor]:
    """Value (nats) and gradient `[P]` of D_f(policy || reference).

    Args:
        prefixes: None for the divergence of whole sequences; "policy" or "reference" for the sum over positions of the
            next token's divergence, averaged over the prefixes that this model visits, as if those were given.
    """
    logits = world.policy.clone().requires_grad_()
    if prefixes is None:
        value = divergence.exact(world.logp(logits).sum(1).exp(), world.q)
    else:
        visits = (world.p if prefixes == "policy" else world.q).clone()
        pairs = zip(world.conditionals(logits), world.conditionals(world.reference), strict=True)
        terms = ((visits.view(len(p), -1).sum(1) * divergence.exact(p.exp(), q.exp())).sum() for p, q in pairs)
        value = sum(terms)
    return value.item(), torch.autograd.grad(value, logits)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two gradients; nan where one is zero."""
    norms = a.norm() * b.norm()
    return (a @ b / norms).item() if norms > 1e-12 else float("nan")


def relative_error(a: Tensor, truth: Tensor) -> float:
    """|a - truth| / |truth|."""
    return ((a - truth).norm() / truth.norm()).item()
