"""How low is the rank of what training changes? Singular values of a full run's change, and what LoRA would train.

A LoRA adapter can only change a matrix by a product of rank r. Nothing is trained here.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that LoRA on "all linear layers" adapts, by name: every `nn.Linear` but the one that writes the logits."""
    head = model.get_output_embeddings()
    modules = model.named_modules()
    return {name: m.weight.detach() for name, m in modules if isinstance(m, nn.Linear) and m is not head}


def singular_values(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """The singular values, falling, of the change of each linear weight from `before` to `after`, two models of one shape."""
    old, new = linear_weights(before), linear_weights(after)
    return {name: torch.linalg.svdvals((new[name] - old[name]).double()) for name in old}


def shares(values: Mapping[str, Tensor]) -> pd.DataFrame:
    """The share of ||change||^2 that the best matrix of rank r keeps (Eckart and Young): rows r from 1, columns names.

    Matrices of different sizes end at 1. Raises `ValueError` where a matrix did not change.
    """
    still = [name for name, s in values.items() if s.square().sum() == 0]
    if still:
        raise ValueError(f"{still[0]} did not change, so there is nothing to keep; compare a model with a trained one")
    energy = {name: (s.square().cumsum(0) / s.square().sum()).numpy() for name, s in values.items()}
    table = pd.DataFrame({name: pd.Series(share) for name, share in energy.items()}).fillna(1.0)
    return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="rank"))


def lora_parameters(model: nn.Module, rank: int) -> int:
    """How many parameters an adapter of that rank on all linear layers trains: rank x (rows + columns) for each."""
    return sum(rank * sum(weight.shape) for weight in linear_weights(model).values())
