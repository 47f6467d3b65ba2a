"""How often the bands of `passk` and `conclusions` hold the truth, in worlds whose truth is known. Goal: 92 to 97 of 100.

    python benchmarks/coverage.py [--worlds 300] [--out coverage.json]

Each world draws problems in clusters, methods that act on clusters unlike, seeds, and single answers; its truth is the same
world with endlessly many clusters and seeds. Sizes are the sweep's: "sql" has 1,000 questions on 32 databases, "countdown"
1,041 problems over 169 sets of numbers. Prints a table and, with --out, writes JSON.
"""

import argparse
import json
import time
from functools import cache

import numpy as np
import pandas as pd

from dphrl_lite.passk import Outcomes
from dphrl_lite.study import conclusions

SHAPES = {"sql": (32, 1000), "countdown": (169, 1041)}  # clusters, problems
ANSWERS = 64
OWN, OF_CLUSTER = 1.1, {"sql": 0.6, "countdown": 0.5}  # spread of problems and of clusters, in log-odds
METHOD_OF_CLUSTER = {"sql": 0.35, "countdown": 0.1}  # how unlike a method acts on clusters
SEED, SEED_OF_PROBLEM = 0.04, 0.3
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
BASE = (1.0, 0.0)  # of a method: what log-odds are multiplied by, and what is added


def penalised(strength: float) -> tuple[float, float]:
    """A method that sharpens and learns the less the stronger its penalty: from (1.9, .85) back to the base model."""
    part = 1 / (1 + (strength / 0.25) ** 0.9)
    return 1 + 0.9 * part, 0.85 * part


def rates(method, ease, push, seed, noise):
    """Chances of a right answer."""
    sharpness, gain = method
    moved = method != BASE
    return 1 / (1 + np.exp(-(sharpness * ease + gain + moved * (push + seed + noise))))


@cache
def truth(shape: str, method: tuple, k: int) -> float:
    rng, many = np.random.default_rng(0), 400_000
    ease = rng.normal(0, np.hypot(OWN, OF_CLUSTER[shape]), many)
    spreads = METHOD_OF_CLUSTER[shape], SEED, SEED_OF_PROBLEM
    return float(1 - np.mean((1 - rates(method, ease, *(rng.normal(0, s, many) for s in spreads))) ** k))


def world(rng, shape: str, runs: dict, seeds: int, split: str = "test") -> pd.DataFrame:
    """Outcomes of `runs`, (name, strength) -> method, all on the same problems."""
    clusters, problems = SHAPES[shape]
    cluster = np.sort(rng.integers(clusters, size=problems))
    ease = rng.normal(0, OWN, problems) + rng.normal(0, OF_CLUSTER[shape], clusters)[cluster]
    push = rng.normal(0, METHOD_OF_CLUSTER[shape], clusters)[cluster]
    names = [f"{split}{a}:count:{i}" for i, a in enumerate(cluster)]
    tables = []
    for (name, strength), method in runs.items():
        for seed in range(1 if name == "base" else seeds):
            shift, noise = rng.normal(0, SEED), rng.normal(0, SEED_OF_PROBLEM, problems)
            c = rng.binomial(ANSWERS, rates(method, ease, push, shift, noise))
            run = {"domain": "toy", "split": split, "method": name, "strength": strength, "seed": seed}
            tables.append(pd.DataFrame({"problem": names, "n": ANSWERS, "c": c, "distinct": c > 0}).assign(**run))
    return pd.concat(tables, ignore_index=True)


def mean_and_difference(rng, shape: str, seeds: int, k: int) -> dict[str, bool]:
    """Does each band hold the truth?"""
    grpo, base = penalised(0.0), BASE
    table = conclusions.Sweep(world(rng, shape, {("grpo", np.nan): grpo, ("base", np.nan): base}, seeds))
    found = conclusions.mean(table, "toy", ("grpo", None), f"Pass@{k}")
    gap = conclusions.difference(table, "toy", ("grpo", None), ("base", None), f"Pass@{k}")
    answers = {
        "mean": (found, truth(shape, grpo, k)),
        "difference": (gap, truth(shape, grpo, k) - truth(shape, base, k)),
    }
    return {name: band["low"] <= value <= band["high"] for name, (band, value) in answers.items()}


def two_runs(rng, shape: str, seeds: int, k: int) -> dict[str, bool]:
    """Two runs of one method, under two names."""
    runs = {("a", 0.3): penalised(0.3), ("b", 0.3): penalised(0.3)}
    gap = conclusions.difference(world(rng, shape, runs, seeds), "toy", ("a", 0.3), ("b", 0.3), f"Pass@{k}")
    return {"same method": gap["low"] <= 0 <= gap["high"]}


def chosen(rng, shape: str, seeds: int, k: int) -> dict[str, bool]:
    """Two names of one method, each at the strength that validation chooses."""
    runs = {(name, s): penalised(s) for name in ("a", "b") for s in STRENGTHS[1:4]}
    table = pd.concat([world(rng, shape, runs, seeds), world(rng, shape, runs, seeds, "validation")])
    gap = conclusions.best_difference(table, "toy", "a", "b", f"Pass@{k}")
    return {"same method, strengths chosen": gap["low"] <= 0 <= gap["high"]}


def left_out(rng, shape: str, seeds: int, k: int) -> dict[str, bool]:
    """One strength of a method against the front of its others: is it *not* called higher?"""
    out = STRENGTHS[rng.integers(1, 4)]
    runs = {("one" if s == out else "front", s): penalised(s) for s in STRENGTHS}
    gap = conclusions.front_difference(world(rng, shape, runs, seeds), "toy", "one", "front", f"Pass@{k}")
    return {"one strength against its own front, not higher": not gap["low"] > 0}


def near_one(rng, problems: int = 64, rate: float = 0.996) -> dict[str, bool]:
    row = Outcomes.from_counts(1, rng.binomial(1, rate, problems)).pass_at_k(1).iloc[0]
    return {f"{problems} problems, truth {rate}": row["low"] <= rate <= row["high"]}


CASES = {
    **{
        f"{shape}, {seeds} seeds, Pass@{k}": (check, (shape, seeds, k))
        for shape in SHAPES
        for seeds, k in ((5, 1), (5, 8), (3, 8), (2, 8))
        for check in (mean_and_difference,)
    },
    **{f"{shape}, 5 seeds, Pass@8; same": (two_runs, (shape, 5, 8)) for shape in SHAPES},
    **{f"{shape}, 5 seeds, Pass@8; chosen": (chosen, (shape, 5, 8)) for shape in SHAPES},
    **{f"{shape}, 5 seeds, Pass@8; front": (left_out, (shape, 5, 8)) for shape in SHAPES},
    "one draw near 1": (near_one, ()),
}


def coverage(case: str, worlds: int) -> dict[str, float]:
    """Statement -> the share of worlds in which it held."""
    check, arguments = CASES[case]
    return pd.DataFrame([check(np.random.default_rng(i), *arguments) for i in range(worlds)]).mean().to_dict()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out")
    arguments = parser.parse_args(argv)
    rows, start = [], time.time()
    print(f"{arguments.worlds} worlds each; the standard error of .95 is {np.sqrt(0.95 * 0.05 / arguments.worlds):.3f}")
    for case in arguments.cases:
        for what, share in coverage(case, arguments.worlds).items():
            rows.append({"case": case, "band": what, "coverage": share})
            print(f"{case:35s} {what:48s} {share:.3f}", flush=True)
    if arguments.out:
        about = {
            "worlds": arguments.worlds,
            "seconds": round(time.time() - start, 1),
            "nominal": conclusions.CONFIDENCE,
        }
        with open(arguments.out, "w") as file:
            json.dump({**about, "results": rows}, file, indent=1)


if __name__ == "__main__":
    main()
