"""How long the exact flows of the bandits take: 1,000 steps over 64 answers x 32 contexts. Goal: under 1 s on one core.

    python benchmarks/flows.py [--runs 5] [--out flows.json]

Prints a table and, with --out, writes JSON. Medians of wall-clock seconds, one thread.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from dphrl_lite import divergences
from dphrl_lite.lab import bandits

STEPS, CONTEXTS, ANSWERS = 1000, 32, 64
CASES = {
    "expected reward": {"objective": "reward"},
    "GRPO": {"objective": "grpo"},
    "GRPO, groups of 16": {"objective": "grpo", "groups": 16},
    **{
        f"GRPO + {name}": {"objective": "grpo", "divergence": name}
        for name in ("forward_kl", "reverse_kl", "js", "alpha")
    },
}


def seconds(bandit, objective, divergence=None, groups=None, repeat=5):
    divergence = divergence and divergences.get(divergence)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        bandits.flow(bandit, objective, divergence, 0.5, steps=STEPS, groups=groups)
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bandit = bandits.make(contexts=CONTEXTS, answers=ANSWERS)
    seconds(bandit, "grpo", "js", repeat=1)  # warm up
    print(f"{STEPS} steps, {CONTEXTS} contexts x {ANSWERS} answers, one thread, median of {arguments.runs}")
    print(f"{'flow':24s} {'median s':>9s} {'slowest s':>10s}")
    rows = []
    for name, case in CASES.items():
        times = seconds(bandit, **case, repeat=arguments.runs)
        rows.append({"flow": name, "median_s": statistics.median(times), "slowest_s": max(times), "runs": times})
        print(f"{name:24s} {rows[-1]['median_s']:9.3f} {rows[-1]['slowest_s']:10.3f}")
    if arguments.out:
        about = {"steps": STEPS, "contexts": CONTEXTS, "answers": ANSWERS, "threads": 1, "torch": torch.__version__}
        with open(arguments.out, "w") as file:
            json.dump({**about, "machine": platform.machine(), "results": rows}, file, indent=1)


if __name__ == "__main__":
    main()
