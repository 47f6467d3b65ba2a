"""AdamW, in full and in 8 bits: which one a run uses, and why. Knows no loss and no schedule."""

from collections.abc import Sequence

import torch

from dphrl_lite.engine.loading import need

OPTIMIZERS = {"auto": "", "adamw": "", "adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}
REASONS = {
    "adamw": "two float32 moments per trained weight",
    "adamw-8bit": "moments in 8 bits; paging them needs a GPU",
    "paged-adamw-8bit": "moments in 8 bits, moved to main memory when the GPU is full",
}


def choose(asked: str, nf4: bool, device: torch.device) -> str:
    """The optimizer of a run: on "auto", AdamW in 8 bits for an adapter on NF4 weights, else AdamW. Only a GPU has pages."""
    name = ("paged-adamw-8bit" if nf4 else "adamw") if asked == "auto" else asked
    return "adamw-8bit" if name == "paged-adamw-8bit" and device.type != "cuda" else name


def make(
    name: str,
    weights: Sequence[torch.nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer `name` (from `choose`) for `weights`. `betas`: what is kept of the moments of gradient and square each step;
    `weight_decay`: decoupled, for all weights alike.

    Raises:
        ImportError: 8 bits asked for and no bitsandbytes, with the command that installs it.
    """
    kind = torch.optim.AdamW if name == "adamw" else getattr(need("bitsandbytes").optim, OPTIMIZERS[name])
    return kind(weights, lr=learning_rate, betas=betas, weight_decay=weight_decay)
