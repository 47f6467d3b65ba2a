"""A LoRA adapter's products in the precision of the layers beside it; its master weights, which are trained, stay float32.

peft makes the whole activation float32 instead, multiplies off the matrix units, and copies the layer's own product: two thirds
of a decoded token, and seven float32 copies of what flows through each layer in training. How far the gradients of the two ways
lie apart is measured by `benchmarks/qlora_7b.py --part gradients`. In float32 nothing is changed.
"""

from functools import partial

import torch
from torch import Tensor

GRADIENT_SCALE = 4096.0  # float16 ends at 6e-8 below: a token's gradient among thousands would be lost on its way down


def narrow(model) -> torch.nn.Module:
    """Let the adapted layers of a PEFT model in 16 bits multiply so. Returns the model.

    In float16 gradients are scaled where they enter the model (`scaled`), and scaled back where they reach a master weight.
    """
    if model.dtype not in (torch.float16, torch.bfloat16):
        return model
    model.gradient_scale = GRADIENT_SCALE if model.dtype == torch.float16 else 1.0
    for layer in model.modules():
        if getattr(layer, "lora_A", None) and isinstance(layer.get_base_layer(), torch.nn.Linear):
            layer.forward = partial(_forward, layer, layer.forward, model.gradient_scale)
    return model


def scaled(logits: Tensor, scale: float) -> Tensor:
    """`logits`; the gradient that comes back through them is multiplied by `scale`."""
    return logits if scale == 1 else _Scaled.apply(logits, scale)


def _forward(layer, plain, scale: float, x: Tensor, *args, **kwargs) -> Tensor:
    """W x + s B A x with A and B rounded to x's precision, and the sum in one kernel; `plain` where there is more to it."""
    name, *others = layer.active_adapters
    special = layer.disable_adapters or layer.merged or others or args or kwargs or name not in layer.lora_A
    if special or layer.lora_variant or layer.lora_bias[name] or isinstance(layer.lora_dropout[name], torch.nn.Dropout):
        return plain(x, *args, **kwargs)
    a, b = (_rounded(m[name].weight, x.dtype, scale) for m in (layer.lora_A, layer.lora_B))
    base, inner = layer.get_base_layer()(x), torch.nn.functional.linear(x, a)
    flat = torch.addmm(base.flatten(0, -2), inner.flatten(0, -2), b.T, alpha=layer.scaling[name])
    return flat.view_as(base)


def _rounded(weight: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    if weight.dtype == dtype or not torch.is_grad_enabled():
        return weight.to(dtype)
    return _Rounded.apply(weight, dtype, scale)


class _Rounded(torch.autograd.Function):
    """A master weight in another precision; its gradient comes back in its own."""

    @staticmethod
    def forward(ctx, weight: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        ctx.scale = scale
        return weight.to(dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.float() / ctx.scale, None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.scale, None
