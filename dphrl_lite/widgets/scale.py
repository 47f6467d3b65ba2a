"""Widgets of size and price: memory, four bits, the rank of a change, the cost of a run."""

from collections.abc import Mapping
from functools import cache

import pandas as pd
import torch

from dphrl_lite import figures
from dphrl_lite.scale import budget, costs, lowrank, quantisation
from dphrl_lite.widgets.controls import checkbox, choice, dropdown, only_while, slider
from dphrl_lite.widgets.live import Live

_METHODS = ("grpo", "rkl", "dph-js", "dph-js-definition")
_LENGTHS = (100, 250, 500, 1000, 2000, 4000)


def memory_lab(size: str = "Qwen2.5-7B") -> Live:
    """What each trick saves of GPU memory, for a model, a LoRA rank, and lengths of your choice."""
    controls = {
        "size": dropdown("model", budget.SIZES, size),
        "rank": choice("LoRA rank", [1, 4, 8, 16, 32, 64, 128, 256], 16),
        "rows": choice("rows at once", [1, 2, 4, 8, 16, 32], 8),
        "length": choice("tokens per row", [512, 1024, 2048, 4096], 1024),
    }

    def build(size, rank, rows, length):
        title = f"{size}, {rows} x {length:,} tokens at once, peak of a training step"
        return figures.memory_ladder(budget.peaks(size, rank, rows, length), title)

    return Live(controls, build)


def four_bit_lab(weights: Mapping[str, torch.Tensor]) -> Live:
    """What 4-bit storage does to a weight matrix: choose the matrix, the format, and how many weights share a scale.

    Args:
        weights: name -> matrix of floats.
    """
    kinds = dropdown("format", [(label, kind) for kind, label in quantisation.KINDS.items()], "nf4")
    controls = {
        "name": dropdown("matrix", weights, next(iter(weights))),
        "kind": kinds,
        "block": choice("block size", quantisation.BLOCKS, 64),
        "double": only_while(checkbox("double quantisation", True), kinds, lambda kind: kind != "int4"),
    }
    errors = cache(lambda name: quantisation.errors(weights[name]))
    return Live(controls, lambda name, **settings: figures.four_bits(weights[name], errors=errors(name), **settings))


def rank_explorer(before, after) -> Live:
    """Slide the rank r: how much of the change from model `before` to `after` it keeps, and how many parameters it takes."""
    values = lowrank.singular_values(before, after)
    shares, whole = lowrank.shares(values), after.num_parameters()

    def build(rank):
        return figures.rank_explorer(values, shares, rank, lowrank.lora_parameters(after, rank), whole)

    ranks = [rank for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256) if rank in shares.index]
    return Live({"rank": choice("rank r", ranks, 4 if 4 in ranks else ranks[-1])}, build)


def cost_lab() -> Live:
    """GPU-hours and money of a whole run, by method. Every default is an assumption to be changed."""
    controls = {
        "billions": choice("billion weights", [0.5, 1.5, 3, 7.6, 8, 14.8, 32.8], 7.6),
        "training": dropdown("training", costs.TRAIN, "qlora"),
        "steps": choice("steps", [50, 100, 200, 400, 800], 200),
        "completion": choice("tokens an answer", _LENGTHS, 500),
        "prompt": choice("tokens a prompt", _LENGTHS, 500),
        "rehearsed": choice("rehearsed a step", [0, 64, 128, 256, 384, 512, 1024, 2048], 384),
        "peak": slider("peak, TFLOP/s", 150, 20, 2000, 10),
        "busy": slider("share, training", 0.4, 0.05, 0.8, 0.05),
        "busy_sampling": slider("share, sampling", 0.05, 0.01, 0.4, 0.01),
        "price": slider("price of an hour", 1.0, 0.1, 10, 0.1),
    }

    def build(prompt, completion, rehearsed, price, **run):
        batch = costs.Batch(prompt=prompt, completion=completion, rehearsed=rehearsed)
        hours = pd.DataFrame({method: costs.run_hours(method, batch, **run) for method in _METHODS}).T
        answers = f"{batch.problems} x {batch.samples} answers"
        return figures.cost_bars(hours, price, f"{run['steps']} steps of {answers}, {run['billions']:g}B weights")

    return Live(controls, build)
