"""Which completions come when: the order of the data, minibatches, micro-batches, and what a forward pass says of them.

No model and no loss here.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dphrl_lite.sampling import TokenBatch


@dataclass(eq=False)
class Row:
    """One completion, fresh or stored: `logp` is pi_old's for the one, the reference's for the other."""

    prompt: list[int]
    token_ids: list[int]
    logp: list[float]
    reward: float = 0.0
    advantage: float = 0.0


class Order:
    """Positions 0 ... n - 1 in a new random order each epoch, as one endless row; `place` says how much was taken."""

    def __init__(self, n: int, *seed: int):
        self.n, self.seed, self.place = n, seed, 0

    def take(self, count: int) -> list[int]:
        """The next `count` positions."""
        if count and not self.n:
            raise ValueError("nothing to take from: the set is empty")
        positions = range(self.place, self.place + count)
        self.place += count
        epochs = {p // self.n: None for p in positions}
        orders = {e: np.random.default_rng([*self.seed, e]).permutation(self.n) for e in epochs}
        return [int(orders[p // self.n][p % self.n]) for p in positions]


def token_count(rows: Sequence[Row]) -> int:
    """Completion tokens in all."""
    return sum(len(row.token_ids) for row in rows)


def split(rows: Sequence, pieces: int) -> list[Sequence]:
    """`rows` in `pieces` runs of nearly equal length."""
    edges = np.linspace(0, len(rows), pieces + 1).round().astype(int)
    return [rows[a:b] for a, b in itertools.pairwise(edges)]


def packed(rows: Sequence[Row], tokens: int) -> Iterator[Sequence[Row]]:
    """Runs of rows that fill at most `tokens` when padded to their longest prompt and completion, and one row at least."""
    start, prompt, completion = 0, 0, 0
    for i, row in enumerate(rows):
        prompt, completion = max(prompt, len(row.prompt)), max(completion, len(row.token_ids))
        if i > start and (i + 1 - start) * (prompt + completion) > tokens:
            yield rows[start:i]
            start, prompt, completion = i, len(row.prompt), len(row.token_ids)
    if rows:
        yield rows[start:]


@dataclass(frozen=True)
class Forward:
    """A micro-batch after the forward pass: log-probs as computed and as stored, entropies `[B, T]`, and its share of the
    minibatch's tokens."""

    rows: Sequence[Row]
    batch: TokenBatch
    logp: Tensor
    stored: Tensor
    entropy: Tensor
    share: float


def gaps(parts: Iterable[Forward]) -> list[Tensor]:
    """|difference| between the log-probs as computed and as stored, nats, of each token. On the CPU: what is sent to another
    process from a GPU is opened on that same GPU there, where it may not be seen, or takes memory for one more context."""
    return [(part.logp - part.stored)[part.batch.mask].abs().double().cpu() for part in parts]


def take_over(parts: Iterable[Forward]):
    """Let the rows have the log-probs as computed."""
    for part in parts:
        for row, logp, mask in zip(part.rows, part.logp, part.batch.mask, strict=True):
            row.logp = logp[mask].tolist()
