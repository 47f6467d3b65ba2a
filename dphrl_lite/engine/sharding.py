"""A model spread over several devices by FSDP2, switched on by `accelerate launch` with `distributed_type: FSDP`.

PyTorch's `fully_shard` itself, decoder layer by decoder layer, and not `Accelerator.prepare`: gradients are summed and not
averaged here, and the weights must come whole for a while. While sampling they do (`whole`): processes draw answers of
different lengths, and gathered layer by layer each token would wait for the slowest process and move all weights once. The
price is one whole copy in the compute dtype on each device while sampling, beside its share: 2 bytes per parameter in
bfloat16, 66 GB for 32.8B. Trained weights are kept in float32 where the model computes in bfloat16, so that small updates
are not lost. Every process must enter each function here, in the same order. Knows nothing of policies and losses.

What is needed for sharding is imported where something is sharded: it takes a second, and some builds of PyTorch lack it.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def asked() -> bool:
    """Whether this process was launched to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def load_device() -> str | None:
    """Where to load a model that will be sharded: on the CPU, where weights stay in the page cache that all processes share
    until `shard` takes its part of them. None if nothing is sharded."""
    if not asked():
        return None
    from accelerate.utils import disable_fsdp_ram_efficient_loading

    disable_fsdp_ram_efficient_loading()  # it would leave the weights of all processes but one empty
    return "cpu"


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Spread `model` over the devices of all processes, in place, one layer at a time; activations are recomputed.

    Raises `ValueError` for weights in 4 or 8 bits.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtypes = {p.dtype for p in model.parameters()}
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(
            "FSDP needs weights in bfloat16 or float32, and these are quantised: launch with --multi_gpu instead of FSDP "
            "(each GPU holds them all), or load the model without nf4"
        )
    low = torch.bfloat16 if torch.bfloat16 in dtypes else None
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low and torch.float32)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    if any(p.requires_grad for p in model.parameters()):
        name = (
            "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        )  # transformers' old word
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    names = set(model._no_split_modules or ())
    for part in [*(m for m in model.modules() if type(m).__name__ in names), model]:
        for p in part.parameters():
            if p.requires_grad and p.dtype == low:
                p.data = p.data.float()
        fully_shard(part, mesh=mesh, mp_policy=precision)
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)
    return model


def twin(model: nn.Module) -> nn.Module:
    """A frozen model over the very same tensors, so that `shard` can make a second one from them without a copy of all."""
    shared = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def unshard(model: nn.Module):
    """All weights on each device until `settle`: forward passes wait for no other process. What is not sharded stays."""
    parts = _parts(model)
    if parts:
        model.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()


def settle(model: nn.Module):
    """Let go of all gathered weights, so that `parameters()` gives the shards that are trained."""
    parts = _parts(model)
    for part in parts:
        part.reshard()
    if parts:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)  # the output head is used after the root's forward


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """`unshard` for a while."""
    unshard(model)
    try:
        yield
    finally:
        settle(model)


def _parts(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "unshard")]


def _is_shard(x: Tensor) -> bool:
    return hasattr(x, "full_tensor")


def weights(model: nn.Module) -> dict[str, Tensor] | None:
    """What `save_pretrained` takes as `state_dict` of a model that was put together again, in the compute dtype; None for one
    that was never sharded."""
    return {name: p.detach() for name, p in model.named_parameters()} if _parts(model) else None


def gather(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors from shards, one at a time, in the CPU's memory of those processes that `keep` them."""
    pairs = ((name, full(x)) for name, x in tensors.items())
    return {name: x.cpu() if _is_shard(tensors[name]) else x for name, x in pairs if keep}


def full(x: Tensor) -> Tensor:
    """A whole tensor from its shards; any other as it is."""
    return x.full_tensor() if _is_shard(x) else x


def like(x: Tensor, parameter: Tensor) -> Tensor:
    """The shard of the whole `x` that belongs beside `parameter`; `x` itself where shapes differ or nothing is sharded."""
    if not _is_shard(parameter) or x.shape != parameter.shape:
        return x
    from torch.distributed.tensor import distribute_tensor

    mine = distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return mine.clone()  # or the shard, a view, would keep the whole


def dot(first: list[Tensor], second: list[Tensor]) -> float:
    """The inner product of two lists of tensors, whole or sharded alike."""
    pairs = [[x.to_local() if _is_shard(x) else x for x in pair] for pair in zip(first, second, strict=True)]
    product = sum(torch.dot(a.flatten(), b.flatten()) for a, b in pairs)
    if _is_shard(first[0]):
        torch.distributed.all_reduce(product)
    return product.item()
