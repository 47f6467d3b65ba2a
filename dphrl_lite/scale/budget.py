"""What each trick saves: the plans of `memory` for one run, held more and more sparingly, from full float32 training to QLoRA.

No formula of its own but the bits of a scale; loads no weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import pandas as pd
import torch

from dphrl_lite import models
from dphrl_lite.engine import loading
from dphrl_lite.models import LoadPlan
from dphrl_lite.scale import memory, quantisation
from dphrl_lite.training import TrainConfig

QWEN_14B = (152_064, 5_120, 13_824, 48, 40, 8)
SIZES = {
    "Qwen2.5-7B": models.QWEN_7B,
    "Llama-3.1-8B": models.LLAMA_8B,
    "Qwen2.5-14B": QWEN_14B,
    "Qwen2.5-32B": models.QWEN_32B,
}
TRICKS = (
    "reverse KL, float32, AdamW",
    "DPH-JS: no reference model",
    "bfloat16",
    "gradient checkpointing",
    "LoRA",
    "NF4",
    "double quantisation",
    "8-bit AdamW, paged",
)


@lru_cache(maxsize=8)
def plan_load(size: str, dtype: torch.dtype = torch.bfloat16) -> LoadPlan:
    """A model of `SIZES` on the meta device: not a weight of it is read, and no hub is asked."""
    profile = models.Profile(size, "", sizes=SIZES[size])
    empty = loading.without_weights(profile.config())
    return LoadPlan(profile, None, empty.to(dtype), torch.device("cuda"), dtype, [])


def ladder(size: str, rank: int, prompt_tokens: int, **run) -> dict[str, pd.DataFrame]:
    """The plan after each of `TRICKS`, each with all those before it: rows `part, gb, knob` and one column per phase.

    Args:
        size: of `SIZES`.
        rank: of the LoRA adapter.
        prompt_tokens: length of the longest prompts.
        **run: fields of `TrainConfig`, such as `microbatch_tokens` and `max_new_tokens`. `gradient_parts`, which holds one
            more copy of the trained gradients for the log's sake, is off unless asked for.
    """
    run = {"gradient_parts": False} | run
    dense = {dtype: _plan(size, dtype, 0, False, prompt_tokens, run) for dtype in (torch.float32, torch.bfloat16)}
    weights = dense[torch.bfloat16]
    # the plan recomputes layers where weights are in four bits: with the other weights, it is that trick alone
    recomputed = [_plan(size, torch.bfloat16, r, True, prompt_tokens, run) for r in (0, rank)]
    plans = [
        _plan(size, torch.float32, 0, False, prompt_tokens, run, "rkl"),
        dense[torch.float32],
        weights,
        _with_weights(recomputed[0], weights),
        _with_weights(recomputed[1], weights),
        _scales_in_32_bits(recomputed[1], size),
        recomputed[1],
        _plan(size, torch.bfloat16, rank, True, prompt_tokens, run | {"optimizer": "paged-adamw-8bit"}),
    ]
    return dict(zip(TRICKS, plans, strict=True))


def _plan(size: str, dtype: torch.dtype, rank: int, nf4: bool, prompt_tokens: int, run: dict, method: str = "dph-js"):
    load_plan = plan_load(size, dtype)
    load_plan = replace(load_plan, profile=replace(load_plan.profile, nf4=nf4, lora_rank=rank))
    return memory.plan(load_plan, TrainConfig(method, **{"optimizer": "adamw"} | run), prompt_tokens=prompt_tokens)


def _with_weights(plan: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """`plan` with the weights of another."""
    weights = other.loc[other["part"] == "weights", "gb"].item()
    return plan.assign(gb=plan["gb"].where(plan["part"] != "weights", weights))


def _scales_in_32_bits(plan: pd.DataFrame, size: str) -> pd.DataFrame:
    more = quantisation.bits_per_weight() - quantisation.bits_per_weight(double=True)
    numbers = sum(rows * columns for rows, columns in memory.Shape.of(plan_load(size).model).linear)
    return plan.assign(gb=plan["gb"] + (plan["part"] == "weights") * more * numbers / 8e9)


def worst(plans: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What is in memory at the peak of each plan, in GB: rows plans, columns parts, and `phase`, when that is."""
    rows = []
    for plan in plans.values():
        phase = memory.peak_gb(plan).idxmax()
        rows.append({"phase": phase} | plan[plan[phase]].groupby("part", sort=False)["gb"].sum().to_dict())
    return pd.DataFrame(rows, index=pd.Index(list(plans), name="trick")).fillna(0.0)


@lru_cache(maxsize=64)  # a slider asks for the same plans again and again
def peaks(size: str, rank: int, rows: int, length: int) -> pd.DataFrame:
    """`worst` of the `ladder` with so many rows of `length` tokens at once, a quarter of each the prompt."""
    prompt = length // 4
    return worst(ladder(size, rank, prompt, microbatch_tokens=rows * length, max_new_tokens=length - prompt))
