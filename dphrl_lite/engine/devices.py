"""Where a model computes and in which precision, each with its reason; and how a launched process gets a GPU of its own."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState

from dphrl_lite.engine.threads import TINY_PARAMETERS

NO_BFLOAT16 = "float16: the GPU has no bfloat16; the adapter and its optimizer stay float32, gradients are scaled"
FLOAT32_PARAMETERS = 1_000_000_000  # below, weights that are trained without an adapter are float32: 16 GB with AdamW


def choose() -> tuple[torch.device, torch.dtype, list[str]]:
    """Device and compute dtype for this machine, with the reason for each; a launched process gets a GPU of its own."""
    if "WORLD_SIZE" in os.environ:
        _join()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.device("cuda"), torch.bfloat16, [f"device cuda: {name}", "bfloat16: the GPU computes in it"]
        return torch.device("cuda"), torch.float16, [f"device cuda: {name}", NO_BFLOAT16]
    if torch.backends.mps.is_available():
        return (
            torch.device("mps"),
            torch.float32,
            ["device mps: Apple GPU found", "float32: exact and fast enough there"],
        )
    return torch.device("cpu"), torch.float32, ["device cpu: no GPU found", "float32: bfloat16 is slower on most CPUs"]


def _join():
    """Become one of the processes that accelerate launched, each with a GPU of its own where there are any.

    Raises `ValueError` for more processes than GPUs: NCCL would say so less clearly, once all models are loaded.
    """
    gpu = torch.cuda.is_available()
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpu and launched > torch.cuda.device_count():
        raise ValueError(
            f"{launched} processes were launched, and torch sees {torch.cuda.device_count()} GPU here; expected one process "
            "for each GPU. Lower --num_processes, or set CUDA_VISIBLE_DEVICES= (empty) to use the CPU alone"
        )
    # NCCL alone could not sum the gradients of the tiny model, which stays on the CPU
    backend = "cuda:nccl,cpu:gloo" if gpu and "LOCAL_RANK" in os.environ else None
    # the fastest waits for the slowest to have sampled and judged: NCCL's own 10 minutes can be too few
    PartialState(cpu=not gpu, backend=backend, timeout=timedelta(hours=2))


def place(parameters: int, whole: bool, nf4: bool, device: str | None, dtype: torch.dtype | None):
    """Device, compute dtype and their reasons for a model of so many parameters; `whole`: all its weights are trained."""
    where, kind, reasons = choose()
    if parameters < TINY_PARAMETERS and not nf4:
        where, kind = torch.device("cpu"), torch.float32
        reasons = ["device cpu: so small a model is fastest there", "float32: log-probs exact to 1e-5"]
        reasons.append(
            "one thread: its matrices are too small to share, and busy neighbours would slow shared work down"
        )
    elif whole and kind != torch.float32 and (parameters < FLOAT32_PARAMETERS or kind == torch.float16):
        kind, reasons[1] = torch.float32, f"float32: all its weights are trained, and {kind} would lose small updates"
    if device:
        where, reasons[0] = torch.device(device), f"device {device}: as asked for"
    if dtype:
        kind, reasons[1] = dtype, f"{dtype}: as asked for"
    return where, kind, reasons
