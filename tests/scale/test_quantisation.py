"""Four bits and back: against bitsandbytes' own tables, hand-made blocks, and the layers of a loaded NF4 model."""

import pytest
import torch

from dphrl_lite import models
from dphrl_lite.scale import quantisation

WEIGHT = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("kind", quantisation.KINDS)
def test_what_comes_back_is_a_level_times_the_largest_weight_of_its_block(kind):
    levels, restored = quantisation.levels(kind), quantisation.round_trip(WEIGHT, kind, 64)
    blocks, back = WEIGHT.view(-1, 64), restored.view(-1, 64)
    units = back / blocks.abs().amax(1, keepdim=True)
    assert (units[..., None] - levels).abs().amin(-1).max() < 1e-6
    # and it is the nearest level, to the precision at which bitsandbytes states its borders
    nearest = (quantisation.scaled(WEIGHT)[..., None] - levels).abs().amin(-1)
    assert ((units - quantisation.scaled(WEIGHT)).abs() - nearest).max() < 1e-3


def test_levels_rise_from_minus_one_to_one_and_hold_zero():
    for kind, count in {"nf4": 16, "fp4": 15, "int4": 15}.items():
        levels = quantisation.levels(kind)
        assert len(levels) == count and levels.diff().min() > 0
        assert levels[0] == -1 and levels[-1] == 1 and (levels == 0).any()
    with pytest.raises(ValueError, match="unknown 4-bit format 'nf5'"):
        quantisation.levels("nf5")


def test_nf4_errs_least_on_gaussian_weights_and_smaller_blocks_err_less():
    table = quantisation.errors(WEIGHT)
    assert (table["nf4"] < table["int4"]).all() and (table["nf4"] < table["fp4"]).all()
    assert (table.diff().dropna() > 0).all(axis=None)
    assert table.loc[64, "nf4"] == pytest.approx(0.0915, abs=0.003)  # of a Gaussian


def test_one_outlier_harms_its_block_only():
    weight = WEIGHT.clone()
    weight[0, 0] = 10.0
    harmed = (quantisation.round_trip(weight) - weight).view(-1, 64).norm(dim=1)
    usual = (quantisation.round_trip(WEIGHT) - WEIGHT).view(-1, 64).norm(dim=1)
    assert harmed[0] > 5 * usual[0]
    assert torch.equal(harmed[1:], usual[1:])


def test_double_quantisation_costs_little_error_and_saves_the_bits_of_the_paper():
    once, twice = (quantisation.error(WEIGHT, quantisation.round_trip(WEIGHT, double=d)) for d in (False, True))
    assert once == pytest.approx(twice, rel=0.02)
    assert quantisation.bits_per_weight(64) == 4.5
    assert quantisation.bits_per_weight(64) - quantisation.bits_per_weight(64, double=True) == pytest.approx(
        0.373, abs=5e-4
    )


def test_blocks_that_do_not_divide_the_matrix():
    odd = WEIGHT[:3, :37]
    for kind in quantisation.KINDS:
        assert quantisation.round_trip(odd, kind, 64).shape == odd.shape
        assert quantisation.error(odd, quantisation.round_trip(odd, kind, 64)) < 0.2


def test_it_is_what_a_loaded_nf4_model_holds(tiny):
    from bitsandbytes.functional import dequantize_4bit

    name = "model.layers.1.mlp.up_proj"
    held = models.load("tiny", nf4=True).model.get_submodule(f"base_model.model.{name}.base_layer").weight
    weight = tiny.model.get_submodule(name).weight
    assert torch.equal(dequantize_4bit(held.data, held.quant_state), quantisation.round_trip(weight, double=True))
