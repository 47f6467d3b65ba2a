"""What each trick saves, against hand-counted bytes: plans of 7B from the configuration alone."""

import pytest
import torch

from dphrl_lite.scale import budget, memory

RUN = {"microbatch_tokens": 2048, "max_new_tokens": 768}


@pytest.fixture(scope="module")
def plans():
    return budget.ladder("Qwen2.5-7B", 16, 256, **RUN)


def gb(plans, trick, part):
    plan = plans[trick]
    return plan.loc[plan["part"] == part, "gb"].sum()


def test_every_trick_needs_less_than_the_one_before(plans):
    assert tuple(plans) == budget.TRICKS
    total = budget.worst(plans).drop(columns="phase").sum(axis=1)
    assert (total.diff().dropna() < 0).all()
    peaks = [memory.peak_gb(plan).max() for plan in plans.values()]
    assert total.tolist() == pytest.approx(peaks)


def test_each_trick_changes_the_part_that_it_is_about(plans):
    weights = 7.615616512  # 10^9 of Qwen2.5-7B, from its model card's configuration
    full, dph, bf16, recomputed, lora, nf4, double, paged = budget.TRICKS
    assert gb(plans, full, "reference") == gb(plans, full, "weights") == pytest.approx(4 * weights)
    assert gb(plans, dph, "reference") == 0
    assert gb(plans, bf16, "weights") == pytest.approx(2 * weights)
    assert gb(plans, recomputed, "weights") == gb(plans, bf16, "weights")
    assert gb(plans, recomputed, "activations") < 0.1 * gb(plans, bf16, "activations")
    assert gb(plans, lora, "gradients") < 0.02 * gb(plans, recomputed, "gradients")
    assert gb(plans, lora, "weights") == gb(plans, recomputed, "weights")
    linear = sum(m * n for m, n in memory.Shape.of(budget.plan_load("Qwen2.5-7B").model).linear) / 1e9
    assert gb(plans, nf4, "weights") == pytest.approx(linear * 4.5 / 8 + (weights - linear) * 2, rel=1e-3)
    assert gb(plans, double, "weights") == pytest.approx(linear * 4.127 / 8 + (weights - linear) * 2, rel=1e-3)
    assert gb(plans, paged, "optimizer") < 0.3 * gb(plans, double, "optimizer")


@pytest.mark.parametrize("size", budget.SIZES)
def test_sizes_have_as_many_parameters_as_their_names_say(size):
    load_plan = budget.plan_load(size)
    billions = float(size.split("-")[-1].removesuffix("B"))
    assert memory.Shape.of(load_plan.model).parameters / 1e9 == pytest.approx(billions, rel=0.1)
    assert load_plan.model.dtype == torch.bfloat16


def test_the_gradient_kept_for_the_log_is_off_unless_asked_for(plans):
    asked = budget.ladder("Qwen2.5-7B", 16, 256, gradient_parts=True, **RUN)
    trick = budget.TRICKS[1]
    assert gb(plans, trick, "gradient parts") == 0
    assert gb(asked, trick, "gradient parts") == pytest.approx(gb(asked, trick, "gradients"))
