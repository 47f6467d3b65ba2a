"""The order of the data, and how samples go through the model: minibatches, micro-batches that fit into memory, and the share of
each process. Any dataclass with `prompt` and `token_ids` is a sample here. Knows no loss and no method.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dphrl_lite.engine.logprobs import TokenBatch, collate, pad, token_logps
from dphrl_lite.engine.processes import Processes


class Stream:
    """`items` in a new random order each epoch, as one endless row; `place` says how much of it was taken."""

    def __init__(self, items: Sequence, *seed: int):
        self.items, self.seed, self.place = items, seed, 0

    def take(self, count: int) -> list[tuple[int, object]]:
        """The next `count` items, each with its place in the row."""
        n = len(self.items)
        if count and not n:
            raise ValueError("nothing to take from: the set is empty")
        places = range(self.place, self.place + count)
        self.place += count
        orders = {e: np.random.default_rng([*self.seed, e]).permutation(n) for e in {p // n: None for p in places}}
        return [(p, self.items[orders[p // n][p % n]]) for p in places]


def split(items: Sequence, pieces: int) -> list[Sequence]:
    """`items` in `pieces` runs of nearly equal length."""
    edges = np.linspace(0, len(items), pieces + 1).round().astype(int)
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def token_count(samples: Iterable) -> int:
    """Completion tokens in all."""
    return sum(len(sample.token_ids) for sample in samples)


def microbatch_tokens(setting: int | None, vocabulary: int) -> int:
    """Padded tokens per forward pass: the run's `setting`, or 16,384, or as many as have 1 GiB of logits if that is fewer."""
    return setting or min(16384, 2**28 // vocabulary)


def pack(samples: Sequence, tokens: int) -> Iterator[Sequence]:
    """Runs that fill at most `tokens` when padded to their longest prompt and completion, and one sample at least."""
    start, prompt, completion = 0, 0, 0
    for i, sample in enumerate(samples):
        prompt, completion = max(prompt, len(sample.prompt)), max(completion, len(sample.token_ids))
        if i > start and (i + 1 - start) * (prompt + completion) > tokens:
            yield samples[start:i]
            start, prompt, completion = i, len(sample.prompt), len(sample.token_ids)
    if samples:
        yield samples[start:]


@dataclass(frozen=True)
class MicroBatch:
    """Some samples after the forward pass: their log-probs `logp` and entropies `[B, T]`, meaningless where `mask` is False,
    and their `share` of the minibatch's tokens."""

    samples: Sequence
    batch: TokenBatch
    logp: Tensor
    entropy: Tensor
    share: float

    @property
    def mask(self) -> Tensor:
        """Where a completion token stands, bool `[B, T]`."""
        return self.batch.mask

    def column(self, name: str) -> Tensor:
        """What the samples hold under `name`: `[B]` of one number each, `[B, T]` of one per token, padded with 0."""
        values = [getattr(sample, name) for sample in self.samples]
        return (pad(values, 0.0) if isinstance(values[0], list) else torch.tensor(values)).to(self.logp)


def forward(
    model: torch.nn.Module,
    samples: Sequence,
    tokens: int,
    *,
    pad_id: int,
    device: torch.device,
    temperature: float,
    processes: Processes | None = None,
) -> Iterator[MicroBatch]:
    """The training forward: `samples` in micro-batches of at most `tokens` padded tokens, with gradients if enabled.

    With `processes` this process's part of each micro-batch; the shares of all parts of all processes add up to 1.
    """
    index, count, sharded = (processes.index, processes.count, processes.sharded) if processes else (0, 1, False)
    # activations are checkpointed in train mode only; a dropout that this wakes up shows in the first step's check
    model.train(any(getattr(m, "gradient_checkpointing", False) for m in model.modules()))
    for part in pack(samples, tokens * count):
        mine = part[index::count]
        share = token_count(mine) / token_count(samples)
        mine = mine or part[:sharded]  # all who hold a part of the weights take part, if with a share of 0
        if mine:
            prompts, completions = [sample.prompt for sample in mine], [sample.token_ids for sample in mine]
            batch = collate(prompts, completions, pad_id, device)
            yield MicroBatch(mine, batch, *token_logps(model, batch, temperature), share)


def differences(parts: Iterable[MicroBatch], name: str) -> list[Tensor]:
    """|difference| between log-probs as computed and as stored under `name`, in nats, of each token; on the CPU."""
    return [(part.logp - part.column(name))[part.mask].abs().double().cpu() for part in parts]


def with_logps(samples: Sequence, parts: Iterable[MicroBatch], name: str) -> list:
    """The `samples` with the log-probs of `parts` under `name`; those that no part holds stay as they are."""
    logps = {
        id(sample): logp[mask].tolist()
        for part in parts
        for sample, logp, mask in zip(part.samples, part.logp, part.mask, strict=True)
    }
    return [dataclasses.replace(sample, **{name: logps.get(id(sample), getattr(sample, name))}) for sample in samples]
