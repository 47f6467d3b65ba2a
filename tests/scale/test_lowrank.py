"""Shares of a change that low rank keeps, on changes whose rank is known, and PEFT's own count of parameters."""

import numpy as np
import pytest
import torch

from dphrl_lite import models
from dphrl_lite.scale import lowrank


@pytest.fixture
def changed(tiny):
    """A copy of the tiny model, each linear weight changed by a product of rank 3."""
    copy, random = tiny.copy().model, torch.Generator().manual_seed(0)
    for weight in lowrank.linear_weights(copy).values():
        rows, columns = weight.shape
        weight += 1e-2 * torch.randn(rows, 3, generator=random) @ torch.randn(3, columns, generator=random)
    return copy


def test_a_change_of_rank_three_is_kept_whole_by_rank_three(tiny, changed):
    values = lowrank.singular_values(tiny.model, changed)
    assert set(values) == set(lowrank.linear_weights(tiny.model))
    table = lowrank.shares(values)
    assert np.allclose(table.loc[3:], 1, atol=1e-6)
    assert (table.loc[2] < 0.99).all() and (table.diff().dropna() > -1e-9).all(axis=None)
    name = table.columns[0]
    delta = lowrank.linear_weights(changed)[name] - lowrank.linear_weights(tiny.model)[name]
    assert table.loc[1, name] == pytest.approx(
        (torch.linalg.matrix_norm(delta, 2) / delta.norm()).item() ** 2, rel=1e-4
    )


def test_a_model_that_did_not_change_is_named(tiny):
    with pytest.raises(ValueError, match="did not change"):
        lowrank.shares(lowrank.singular_values(tiny.model, tiny.copy().model))


@pytest.mark.parametrize("rank", [1, 4])
def test_an_adapter_trains_as_many_parameters_as_counted(tiny, rank):
    adapted = models.load("tiny", lora_rank=rank).model
    assert lowrank.lora_parameters(tiny.model, rank) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
