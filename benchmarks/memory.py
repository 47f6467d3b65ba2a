"""Memory that a run needs, as reckoned before loading (`dphrl_lite.scale.memory`) and as measured. Goal: within 15 per cent.

    python benchmarks/memory.py [--cases tiny small ...] [--out benchmarks/results/memory.json]

Each case runs in a fresh process: load the model, sample the problems once, take two steps of `training.train` with DPH-JS. The
prompts differ in length, and no completion can end before `max_new_tokens`, because the reckoning is for the longest ones. On a
GPU the peak is PyTorch's own (`max_memory_allocated`, which leaves out the CUDA context). On a CPU it is the highest resident
memory (VmHWM, Linux) after loading less what the process held before it: while a file is read its pages are resident, too, but
the system may drop them. So that this counts memory and not start-up, everything lazy is
done before: a run of the tiny model imports each module, starts the threads and fills the allocator's pools; then free memory is
given back and the mark of the peak is reset. The tiny model has batches of 1,024 completions, so that its need dominates.
One thread; glibc's arenas are limited to one, and it gives back at once what is freed beyond 128 kB, as PyTorch's allocator on a
GPU uses it again. Left to itself glibc may keep more: .3 GB in the case "small, NF4", whose tensors are small.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SMALL = {"problems_per_step": 2, "samples": 4, "rehearsal_per_step": 4, "minibatches": 1, "max_new_tokens": 64}
LARGE = SMALL | {"rehearsal_per_step": 8, "max_new_tokens": 960, "microbatch_tokens": 8192}
BATCH = {"problems_per_step": 64, "samples": 16, "rehearsal_per_step": 256, "minibatches": 1, "max_new_tokens": 24}
CASES = {
    "tiny": ("tiny", {}, BATCH),
    "tiny, several micro-batches": ("tiny", {}, BATCH | {"microbatch_tokens": 8192}),
    "small": ("small", {}, SMALL),
    "small, rkl with its reference": ("small", {}, SMALL | {"method": "rkl"}),
    "small, LoRA": ("small", {"lora_rank": 16}, SMALL),
    "small, NF4": ("small", {"nf4": True}, SMALL | {"max_new_tokens": 32}),
    "qlora-7b": ("qlora-7b", {}, LARGE),
    "qlora-7b, one row at a time": ("qlora-7b", {}, LARGE | {"microbatch_tokens": 1024}),
}


def task_and_problems(tiny: bool, count: int):
    """Half of the problems are always right, and rehearsed; the others by checksum, so that groups are mixed."""
    from dphrl_lite.tasks import Problem, Task, Verdict
    from dphrl_lite.tasks.countdown import problems

    class Checksum(Task):
        name = "checksum"

        def check(self, problem, completion):
            return Verdict(problem in easy or zlib.crc32(completion.encode()) % 4 == 0, completion, "by checksum")

    words = [f"What is {i} times {i + 7}? Think about it {'very ' * (i % 24)}well." for i in range(count)]
    asked = [Problem(str(i), text, "any") for i, text in enumerate(words)]
    chosen = problems("cd3", count) if tiny else asked
    easy = chosen[::2]
    return Checksum(), chosen


def run(name: str, held: dict, settings: dict) -> tuple:
    """Load, sample, train; the plan of the model and the length of the longest prompt."""
    from dphrl_lite import models, presampling, training

    policy = models.load(name, **held)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    policy.tokenizer.eos_token = None
    for config in (policy.model.config, policy.model.generation_config):
        config.eos_token_id = None
    task, problems = task_and_problems(name == "tiny", 2 * settings["problems_per_step"])
    longest, samples = settings["max_new_tokens"], settings["samples"]
    table = presampling.sample(policy, task, problems, samples, max_new_tokens=longest, progress=False)
    parts = presampling.partition(table, threshold=samples)
    training.train(
        policy, task, problems, parts, steps=2, in_place=True, progress=False, **{"method": "dph-js"} | settings
    )
    return max(len(policy.encode(p.prompt)) for p in problems), policy.device


def resident(peak: bool = False) -> float:
    """Resident memory of this process in GB, now or at most since the mark was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:" if peak else "VmRSS:")) * 1024 / 1e9


def measure(case: str) -> dict:
    """One case, in this process."""
    import torch

    from dphrl_lite.scale import memory
    from dphrl_lite.training import TrainConfig

    name, held, settings = CASES[case]
    run("tiny", {k: v for k, v in held.items() if k == "nf4"}, BATCH | {"problems_per_step": 8})
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    prompt, device = run(name, held, settings)
    gpu = device.type == "cuda"
    measured = torch.cuda.max_memory_allocated() / 1e9 if gpu else resident(peak=True) - before
    table = memory.plan(name, TrainConfig(**{"method": "dph-js"} | settings), prompt_tokens=prompt, **held)
    phases = memory.peak_gb(table)
    found = {"case": case, "device": torch.cuda.get_device_name() if gpu else "cpu", "prompt_tokens": prompt}
    found |= {"predicted_gb": phases.max(), "measured_gb": measured, "ratio": phases.max() / measured}
    return found | {"phases": phases.round(4).to_dict(), "parts": dict(zip(table["part"], table["gb"], strict=True))}


def child(case: str) -> dict:
    """`measure` in a fresh process."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 17),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 17),
    }
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, "--child", case]
        done = subprocess.run(command, env=quiet | os.environ, stdout=subprocess.PIPE, stderr=errors, text=True)
        errors.seek(0)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{errors.read()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--out")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print(json.dumps(measure(arguments.child)))
    import torch

    cases = arguments.cases or [name for name in CASES if torch.cuda.is_available() or not name.startswith("qlora")]
    print(f"{'case':32s} {'predicted GB':>12s} {'measured GB':>12s} {'ratio':>6s}  worst phase")
    rows = []
    for case in cases:
        rows.append(row := child(case))
        worst = max(row["phases"], key=row["phases"].get)
        print(
            f"{case:32s} {row['predicted_gb']:12.3f} {row['measured_gb']:12.3f} {row['ratio']:6.2f}  {worst}",
            flush=True,
        )
    if arguments.out:
        about = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
        Path(arguments.out).write_text(json.dumps(about | {"results": rows}, indent=1))


if __name__ == "__main__":
    main()
