"""The gradient of the trained weights: summed over processes, taken apart for the log, clipped, and applied."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dphrl_lite.engine import sharding
from dphrl_lite.engine.processes import Processes


class Gradient:
    """The gradient that `backward` adds up in the `weights`, of all processes together."""

    def __init__(self, weights: Sequence[torch.nn.Parameter], processes: Processes):
        self.weights, self.processes = weights, processes

    def take(self) -> list[Tensor]:
        """What has been added up so far, taken out of the model, so that what comes next stands alone."""
        self.sum()
        parts = [p.grad for p in self.weights]
        self.clear()
        return parts

    def sum(self) -> list[Tensor]:
        """The sum over processes, which stays in the model."""
        self.processes.sum_gradients(self.weights)
        return [p.grad for p in self.weights]

    def put_back(self, parts: list[Tensor]):
        """Add what was taken to what is there now."""
        torch._foreach_add_([p.grad for p in self.weights], parts)

    def apply(self, optimizer: torch.optim.Optimizer, clip: float, step: int) -> float:
        """One update with the gradient clipped to the norm `clip`; returns its norm before.

        Raises `FloatingPointError` where it is not finite; then nothing is updated.
        """
        norm = sharding.full(torch.nn.utils.clip_grad_norm_(self.weights, clip)).item()
        if not norm < float("inf"):  # nan, too
            raise FloatingPointError(
                f"the gradient of step {step + 1} is {norm}; it was not applied, and the last checkpoint is intact. "
                "Lower learning_rate or strength"
            )
        optimizer.step()
        self.clear()  # sampling has better use for the memory
        return norm

    def clear(self):
        """Forget it, and free its memory."""
        for p in self.weights:
            p.grad = None


def parts(first: Sequence[Tensor], second: Sequence[Tensor]) -> dict[str, float]:
    """Norms and cosine of two gradients, each a list of tensors (one per parameter), whole or sharded."""
    norms = [sharding.dot(g, g) ** 0.5 for g in (first, second)]
    product = norms[0] * norms[1]
    cosine = sharding.dot(first, second) / product if product > 0 else None
    return {"gradient_norm_exploration": norms[0], "gradient_norm_penalty": norms[1], "gradient_cosine": cosine}
