"""What a training step costs in floating-point operations, and what those cost in hours and money; what pre-sampling costs in
hours and on disk. Arithmetic on what the reader has measured, and `told` on what can be measured before a run.

Counted are the matrix products with the N weights of a dense model: 2N for a token that is read or written, 4N more where it is
trained. Attention over long contexts, the optimizer, and waiting are not counted: they belong to the share of the peak
that a run reaches, which its user knows or measures (`benchmarks/qlora_7b.py`).
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dphrl_lite.engine import shards
from dphrl_lite.objectives import METHODS

FORWARD = 2.0
# full: forward, activation gradients, weight gradients. QLoRA: forward, the same again (gradient checkpointing), activation
# gradients; frozen weights need none of their own, and the adapter's are too few to count.
TRAIN = {"full": 6.0, "full, checkpointed": 8.0, "qlora": 6.0}
# shares of the rate that a machine multiplies matrices at. Training: docs/gpu.md, 44 %. Drawing: on a GPU as there, 5.7 % with
# 64 rows at once and as many fewer as there are fewer rows; on a CPU, with the tiny model, a quarter to a third
BUSY, ROWS = 0.4, 64
BUSY_SAMPLING = {"cuda": 0.05, "cpu": 0.25}


@dataclass(frozen=True)
class Batch:
    """One step. The defaults are the paper's release (128 x 16, 256 rehearsed); the two lengths are assumptions."""

    problems: int = 128
    samples: int = 16
    prompt: int = 500
    completion: int = 500
    rehearsed: int = 256

    @property
    def fresh(self) -> int:
        """Tokens of all fresh rows, prompts included, as the update reads them."""
        return self.problems * self.samples * (self.prompt + self.completion)


def flops(method: str, parameters: float, batch: Batch, training: str = "qlora") -> dict[str, float]:
    """Floating-point operations of one step, by part: sampling, training, rehearsal, reference.

    Args:
        method: a name from `objectives.METHODS`. What `dapo` draws again depends on the model and is not counted.
        parameters: N of a dense model.
        batch: the step.
        training: of `TRAIN`.
    """
    rules, stored = METHODS[method], batch.rehearsed * (batch.prompt + batch.completion)
    written = batch.problems * (batch.prompt + batch.samples * batch.completion)  # a prompt is read once for its group
    tokens = {"sampling": FORWARD * written, "training": TRAIN[training] * batch.fresh}
    tokens["rehearsal"] = TRAIN[training] * stored * rules.rehearses
    tokens["reference"] = FORWARD * batch.fresh * rules.needs_reference
    if rules.mirrors:  # stored answers are only read; fresh ones to the same prompts are written, trained, and referred
        tokens["sampling"] += FORWARD * stored
        tokens["rehearsal"] = (FORWARD + TRAIN[training]) * stored
        tokens["reference"] = FORWARD * stored
    return {part: parameters * count for part, count in tokens.items()}


def hours(parts: Mapping[str, float], peak: float, busy: float, busy_sampling: float) -> dict[str, float]:
    """GPU-hours by part.

    Args:
        parts: floating-point operations, from `flops` (times the number of steps).
        peak: of the GPU, operations per second.
        busy: share of the peak that reading and training reach.
        busy_sampling: share that sampling reaches; less, as each token waits for all weights to be read from memory.
    """
    share = {part: busy_sampling if part == "sampling" else busy for part in parts}
    return {part: count / (peak * share[part]) / 3600 for part, count in parts.items()}


def bytes_per_token(folder: str | Path) -> float:
    """Bytes on disk per sampled token of finished rollouts, all columns together."""
    tokens = shards.load(folder)["token_ids"].map(len).sum()
    return sum(path.stat().st_size for path in shards.paths(folder)) / tokens


def presampling(
    problems: int, samples: int, tokens_per_answer: float, tokens_per_second: float, bytes_per_token: float
) -> dict[str, float]:
    """Time and space of a pre-sampling run, from what the reader measured.

    Args:
        problems, samples: problems, and answers to each (K).
        tokens_per_answer: mean length of an answer; measure it on a few dozen problems.
        tokens_per_second: of the whole batch, on all GPUs together, while answers are drawn.
        bytes_per_token: as `bytes_per_token(folder)` measured on a run of the same kind. Per token an id and two log-probs
            take 12 bytes, its text about 4 more; Parquet compresses what repeats, which in the tiny model's runs is much.

    Returns:
        completions, tokens, hours, gigabytes (1e9 bytes). Hours count drawing alone: not loading the model, not
        verifying, and as if all were drawn at that speed although long answers finish alone.
    """
    completions = problems * samples
    tokens = completions * tokens_per_answer
    hours = tokens / tokens_per_second / 3600
    return {"completions": completions, "tokens": tokens, "hours": hours, "gigabytes": tokens * bytes_per_token / 1e9}


def run_hours(method: str, batch: Batch, billions: float, steps: int, training: str, peak: float, **shares: float):
    """`hours` of a run of so many steps with so many billion weights; `peak` in TFLOP/s, the rest as in `flops` and `hours`."""
    return hours(flops(method, steps * billions * 1e9, batch, training), peak * 1e12, **shares)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a product of two `[size, size]` matrices, median of 10; well under a second."""
    size = size or (8192 if device.type == "cuda" else 512)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])


def told(parts: Mapping[str, float], rate: float, rows: int, what: str, device: str = "cuda") -> str:
    """One line before a run: about how many hours `parts` take, from what they were reckoned, and where to reckon anew.

    Args:
        parts: floating-point operations of the whole run, from `flops`.
        rate: of this machine, from `matrix_rate`.
        rows: completions drawn at once; fewer than `ROWS` take as long as so many.
        what: the run, in words.
        device: "cuda"; what is said of others is measured on a CPU.
    """
    busy_sampling = BUSY_SAMPLING.get(device, BUSY_SAMPLING["cpu"]) * (min(1, rows / ROWS) if device == "cuda" else 1)
    measured = "an H200 at 7B, docs/gpu.md" if device == "cuda" else "the tiny model on a CPU"
    spent = hours(parts, rate, BUSY, busy_sampling)
    total, drawing = sum(spent.values()), spent["sampling"]
    time_ = f"about {total:.1f} hours" if total >= 0.1 else "less than .1 hours"
    guess = f"{busy_sampling:.1%} of it drawing" + (f", {BUSY:.0%} training" if len(parts) > 1 else "")
    return (
        f"{time_} for {what}, {drawing / total:.0%} of them drawing, if every answer is as long as it may be: "
        f"reckoned with {rate / 1e12:.3g} TFLOP/s (measured now) and {guess} (as {measured}). "
        "Other shares, other cards: the cost lab at the end of notebooks/07_qlora_at_7b.ipynb"
    )
