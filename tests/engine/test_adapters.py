"""Adapter products in 16 bits: what they give, and gradients that come back in float32, scaled where they would vanish."""

import pytest
import torch

from dphrl_lite import models
from dphrl_lite.engine import adapters
from dphrl_lite.sampling import collate, generate, token_logps

pytest.importorskip("peft")


def adapted(tiny, dtype):
    policy = models.load("tiny", dtype=dtype, lora_rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape) * 0.05)
    return policy


def gradient(policy, scale=1.0):
    batch = collate([policy.encode("countdown 2 5 target")] * 2, [[5, 6, 7, 8], [9, 10]], policy.pad_id)
    policy.model.zero_grad()
    (scale * token_logps(policy.model, batch)[0][batch.mask].mean()).backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])


def relative(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_float32_and_nearly_as_exact_as_with_products_in_float32(tiny, dtype):
    policy, exact = adapted(tiny, dtype), gradient(adapted(tiny, torch.float32))
    found = gradient(policy)
    for module in policy.model.modules():
        if "lora_A" in module._modules:
            del module.forward  # peft's own
    policy.model.gradient_scale = 1.0
    assert found.dtype == torch.float32
    assert relative(found, exact) < min(0.03, 2 * relative(gradient(policy), exact))


def test_a_gradient_too_small_for_float16_survives(tiny):
    policy, exact = adapted(tiny, torch.float16), gradient(adapted(tiny, torch.float32), 1e-6)
    assert relative(gradient(policy, 1e-6), exact) < 0.05
    policy.model.gradient_scale = 1.0  # what would come without: layers still divide by the scale
    assert relative(gradient(policy, 1e-6) * adapters.GRADIENT_SCALE, exact) > 0.1


def test_with_the_adapter_off_the_base_answers(tiny):
    policy, base = adapted(tiny, torch.bfloat16), models.load("tiny", dtype=torch.bfloat16)
    ids = torch.tensor([policy.encode("countdown 2 5 target")])
    with torch.no_grad(), policy.model.disable_adapter():
        assert torch.equal(policy.model(ids).logits, base.model(ids).logits)


def test_overflow_in_float16_is_named_at_the_first_forward(tiny):
    policy = adapted(tiny, torch.float16)
    with torch.no_grad():
        for layer in policy.model.get_base_model().model.layers:
            layer.post_attention_layernorm.weight.fill_(6e4)
    with pytest.raises(FloatingPointError, match=r"overflows in float16.*dtype=torch\.float32"):
        generate(policy, [[3, 4]], 2, seeds=[0], max_new_tokens=3)
    with pytest.raises(FloatingPointError, match="overflows in float16"):
        gradient(policy)


def test_float32_is_left_as_it_is(tiny):
    model = adapted(tiny, torch.float32).model
    assert not any("forward" in m.__dict__ for m in model.modules() if "lora_A" in m._modules)
