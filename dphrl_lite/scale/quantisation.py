"""What four bits do to weights: the 16 levels, the error they leave, the bits that the scales cost.

NF4 and FP4 are computed by bitsandbytes, as in a QLoRA run; the evenly spaced levels they are compared with, here. No model is
loaded and nothing is trained.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from dphrl_lite.engine.loading import need
from dphrl_lite.errors import lookup

KINDS = {"nf4": "NF4", "fp4": "FP4", "int4": "evenly spaced"}
BLOCKS = (32, 64, 128, 256, 512, 1024)  # larger ones bitsandbytes compiles anew on a CPU, for minutes
_SCALES_PER_BLOCK = 256  # double quantisation: so many 8-bit scales share one 32-bit scale


def levels(kind: str = "nf4") -> Tensor:
    """The values that four bits can name, `[15]` or `[16]`, rising from -1 to 1: in units of the largest |weight| of a block.

    Raises:
        ValueError: `kind` is none of `KINDS`.
        ImportError: bitsandbytes is missing, with the command that installs it.
    """
    lookup(KINDS, "4-bit format", kind)
    if kind == "int4":
        return torch.arange(-7, 8) / 7  # 0 among them, which an even number would miss
    return need("bitsandbytes").functional.get_4bit_type(kind, device="cpu").float().unique()


def scaled(weight: Tensor, block: int = 64) -> Tensor:
    """`[rows, block]`: each run of `block` weights divided by its largest |weight|. The last run is filled with zeros."""
    rows = _rows(weight, block)
    return rows / _largest(rows)


def _rows(weight: Tensor, block: int) -> Tensor:
    return torch.nn.functional.pad(weight.detach().float().flatten(), (0, -weight.numel() % block)).view(-1, block)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1, keepdim=True).clamp_min(1e-12)


def round_trip(weight: Tensor, kind: str = "nf4", block: int = 64, double: bool = False) -> Tensor:
    """`weight` to four bits and back, in its own shape.

    Args:
        weight: float, any shape.
        kind: of `KINDS`.
        block: how many weights share a scale.
        double: store the scales in 8 bits (double quantisation); not for "int4".

    Raises:
        ValueError, ImportError: as `levels`.
    """
    lookup(KINDS, "4-bit format", kind)
    if kind == "int4":
        rows = _rows(weight, block)
        largest = _largest(rows)
        return ((rows / largest * 7).round() / 7 * largest).flatten()[: weight.numel()].view_as(weight)
    functional = need("bitsandbytes").functional
    flat = weight.detach().float().reshape(1, -1)  # on a CPU, blocks longer than a row would come back wrong (0.49)
    stored, state = functional.quantize_4bit(flat, blocksize=block, quant_type=kind, compress_statistics=double)
    return functional.dequantize_4bit(stored, state).view_as(weight)


def error(weight: Tensor, restored: Tensor) -> float:
    """Relative error of the whole matrix: ||restored - weight|| / ||weight||."""
    return ((restored - weight).norm() / weight.norm()).item()


def errors(weight: Tensor, blocks: Sequence[int] = BLOCKS) -> pd.DataFrame:
    """Relative error of `weight`: rows block sizes, columns `KINDS`."""
    rows = [{kind: error(weight, round_trip(weight, kind, block)) for kind in KINDS} for block in blocks]
    return pd.DataFrame(rows, index=pd.Index(blocks, name="block"))


def bits_per_weight(block: int = 64, double: bool = False) -> float:
    """4, and a part of the block's scale: 32 bits, or 8 and a part of a second scale (arXiv 2305.14314, section 3)."""
    return 4 + ((8 + 32 / _SCALES_PER_BLOCK) if double else 32) / block
