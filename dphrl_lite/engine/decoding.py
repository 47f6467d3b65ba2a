"""Rows of text that are being written: the prompts are read once, then every row grows by a token a step. Draws nothing.

`Rows` is the way that works everywhere: its cache grows, and rows leave at once. `graphs.FixedRows` has the same methods over
buffers that never move, which a GPU replays as one captured graph. What both are fed and give back is the same.
"""

import torch
from torch import Tensor

from dphrl_lite.engine import graphs
from dphrl_lite.engine.kv_cache import share
from dphrl_lite.engine.logprobs import pad, positions

WASTE = 1 / 8  # share of finished rows from which on it is worth copying the others together


def start(policy, prompts, samples: int, length: int, captured: bool | None = None):
    """Read the prompts; `samples` rows for each, with room for `length` tokens more.

    Args:
        policy: a `models.Policy`; where rows grow in buffers that move although a GPU is there, its `reasons` say why.
        prompts: token ids of each.
        samples: rows per prompt.
        length: tokens that a row may get.
        captured: decode over fixed buffers, which on a GPU become CUDA graphs; None: on a GPU, where the model can.

    Raises `NotImplementedError` as `kv_cache.share` does, and for `captured=True` where the model cannot.
    """
    attention = pad([[1] * len(p) for p in prompts], 0, left=True).to(policy.device)
    out = policy.model(
        input_ids=pad(prompts, policy.pad_id, left=True).to(policy.device),
        attention_mask=attention,
        position_ids=positions(attention),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = getattr(out, "past_key_values", None)
    logits = _drawable(out.logits, policy.device).repeat_interleave(samples, 0)
    if graphs.wanted(policy, cache, captured):
        return graphs.FixedRows(policy, cache, attention, logits, samples, length)
    share(policy.model, cache, samples, attention.shape[1] + length)
    return Rows(policy, cache, attention, logits, samples, length)


def _drawable(logits: Tensor, device: torch.device) -> Tensor:
    """The last position's, where they can be drawn from: Metal has no float64, so an Apple GPU hands them over."""
    return logits[:, -1].cpu() if device.type == "mps" else logits[:, -1]


class Rows:
    """The rows still being written: their cache, what of it is padding, and the logits of the next token `[rows, V]`."""

    def __init__(self, policy, cache, attention: Tensor, logits: Tensor, samples: int, length: int):
        self.model, self.device, self.cache, self.logits = policy.model, policy.device, cache, logits
        self.width = attention.shape[1]
        self.attention = None  # where nothing is padded, attention without a mask is faster
        self.position = torch.tensor([[self.width]], device=self.device)
        if not attention.all():
            ones = attention.new_ones(len(attention), length)
            self.attention = torch.cat([attention, ones], 1).repeat_interleave(samples, 0)
            self.position = attention.sum(-1, keepdim=True).repeat_interleave(samples, 0)

    def shrinks(self, going: int) -> bool:
        """Whether it is worth keeping `going` rows alone."""
        return going <= (1 - WASTE) * len(self.logits)

    def select(self, keep: Tensor):
        """Only keep these rows."""
        keep = keep.to(self.device)
        self.cache.batch_select_indices(keep)
        if self.attention is not None:
            self.attention, self.position = self.attention[keep], self.position[keep]

    def append(self, tokens: Tensor):
        """Read one more token in every row, `[rows, 1]`."""
        self.width += 1
        out = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=None if self.attention is None else self.attention[:, : self.width],
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = _drawable(out.logits, self.device)
        self.position = self.position + 1
