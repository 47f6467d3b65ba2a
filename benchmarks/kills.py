"""kill -9 at many moments of pre-sampling: what was on disk, what was computed again, and whether the bytes are the same.

    python benchmarks/kills.py [--trials 20] [--at-random 10] [--out benchmarks/results/kills.json]

The tiny model, 14 problems, 3 answers each, 4 problems to a shard. A run in a process of its own counts its moments: each
problem drawn, each file half written, written, and in place. Every trial kills a new process at one of these moments (all
spread evenly), or at a random time, starts it again, and compares the folder byte by byte with an uninterrupted run's.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import tempfile
import time
from pathlib import Path

from dphrl_lite.tasks.countdown import problems

SAMPLES, PER_SHARD, PROBLEMS = 3, 4, 14


# what a run imports, imported once in the process that the others are forked from
PRELOAD = ["dphrl_lite.presampling", "dphrl_lite.tasks.countdown", "dphrl_lite.models"]
PRELOAD += ["transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]
PRELOAD += ["transformers.models.llama.modeling_llama"]


def run(folder: Path, journal: Path, chosen: list, kill_at: int | None = None):
    """Pre-sample in this process; write each moment to the journal, and kill -9 this process at the one numbered `kill_at`."""
    from dphrl_lite import models, presampling, tasks
    from dphrl_lite.engine import checkpoint, shards

    moments = iter(range(10**6))
    log = journal.open("a")

    def moment(words: str):
        print(words, file=log, flush=True)
        if next(moments) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    draw, write_whole = presampling.generate, checkpoint.write_whole

    def generate(*args, **settings):
        drawn = draw(*args, **settings)
        moment("a problem drawn")
        return drawn

    def write_in_moments(path, write, **settings):
        def slowly(temporary):
            write(temporary)
            whole = temporary.read_bytes()
            temporary.write_bytes(whole[: len(whole) // 2])
            moment(f"inside the write of {path.name}")
            temporary.write_bytes(whole)
            moment(f"{path.name} written, not in place")

        write_whole(path, slowly, **settings)
        moment(f"{path.name} in place")

    presampling.generate, shards.write_whole, checkpoint.write_whole = generate, write_in_moments, write_in_moments
    policy = models.load("tiny")
    moment("start")
    settings = {"samples": SAMPLES, "problems_per_shard": PER_SHARD, "progress": False}
    presampling.sample(policy, tasks.get("countdown"), chosen, out=folder, **settings)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a run by name, without what a killed process left half-written."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*")) if not p.name.startswith(".")}


def start(context, home: Path, name: str, kill_at: int | None = None):
    """Start `run` on home/name in a new process."""
    chosen = problems("cd3", PROBLEMS, seed=1)
    process = context.Process(target=run, args=(home / name, home / f"{name}.journal", chosen, kill_at))
    process.start()
    return process


def trial(context, home: Path, name: str, whole: dict, kill_at: int | None, after: float | None) -> dict:
    """Kill one run (at a moment, or some seconds after its first one), start it again, and compare."""
    folder, journal = home / name, home / f"{name}.journal"
    process = start(context, home, name, kill_at)
    if after is not None:
        while process.is_alive() and not (journal.is_file() and journal.read_text()):
            time.sleep(0.001)
        time.sleep(after)
        process.kill()
    process.join()
    moments = journal.read_text().splitlines()
    there = content(folder)
    row = {"moment": moments[-1] if after is None else f"{after:.2f} s in; last: {moments[-1]}"}
    row |= {"killed": process.exitcode == -signal.SIGKILL, "shards": sum(n.startswith("shard") for n in there)}
    row |= {"on_disk": [p.name[:22] for p in sorted(folder.glob("*"))] if folder.is_dir() else []}
    again = start(context, home, name)
    again.join()
    drawn = journal.read_text().splitlines().count("a problem drawn")
    row["rows_again"] = (drawn - PROBLEMS) * SAMPLES
    row["equal"] = again.exitcode == 0 and there.items() <= whole.items() and content(folder) == whole
    return row


def trials(n: int = 20, at_random: int = 0, seed: int = 0) -> list[dict]:
    """`n` kills at moments spread evenly over a run, always one inside the write of the manifest and of a shard, and
    `at_random` kills at random times.

    Returns:
        One row per kill: moment, killed, shards, on_disk (files then there), rows_again (rows computed a second time),
        equal (whole files were left as they were, and in the end all files are those of an uninterrupted run).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        start(context, home, "whole").join()
        whole, moments = content(home / "whole"), (home / "whole.journal").read_text().splitlines()
        inside = [
            next(i for i, m in enumerate(moments) if m.startswith(f"inside the write of {w}")) for w in ("man", "sh")
        ]
        spread = [round(i * (len(moments) - 1) / (n - 3)) for i in range(n - 2)]
        rows = [trial(context, home, f"{i}", whole, at, None) for i, at in enumerate(sorted(inside + spread))]
        delays = [random.Random(seed + i).uniform(0, 0.5) for i in range(at_random)]
        return rows + [trial(context, home, f"r{i}", whole, None, after) for i, after in enumerate(delays)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--at-random", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    arguments = parser.parse_args()
    rows = trials(arguments.trials, arguments.at_random)
    print(f"{'killed':55s} {'shards there':>12s} {'rows again':>10s} {'equal':>5s}")
    for row in rows:
        print(f"{row['moment']:55s} {row['shards']:12d} {row['rows_again']:10d} {'yes' if row['equal'] else 'NO':>5s}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.platform(), "python": platform.python_version()}
    arguments.out.write_text(json.dumps(machine | {"trials": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
