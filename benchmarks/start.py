"""How long does a command keep one waiting? Seconds until `dphrl --help` has answered, and until a command on the tiny model
is at work: until its first progress bar appears. Goals: 2 s and 4 s on an idle machine.

Run: `python benchmarks/start.py [--runs 5]` (about a minute and a half). Prints a table of medians; JSON goes to
benchmarks/results/start.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ["--config", str(ROOT / "recipes/miniature.yaml")]
CASES = {  # command -> what it writes first when it is at work; None: it ends
    "--help": None,
    "presample": b"problem/s",
    "train": b"?it/s",
    "evaluate": b"problem/s",
}


def waited(command: list[str], sign: bytes | None) -> float:
    """Seconds from the start of `command` until `sign` is among what it has written, or until it ends."""
    start, written = time.perf_counter(), b""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    while part := os.read(run.stdout.fileno(), 65536):
        written += part
        if sign is not None and sign in written:
            seconds = time.perf_counter() - start
            run.kill()
            run.wait()
            return seconds
    if sign is not None or run.wait():
        raise RuntimeError(f"{' '.join(command)} ended before it was at work:\n{written[-1000:].decode()}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    dphrl = [sys.executable, "-m", "dphrl_lite.cli"]
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        subprocess.run([*dphrl, "presample", *RECIPE, "--out", str(ready)], check=True, capture_output=True)
        rows = []
        for name, sign in CASES.items():
            seconds = []
            for number in range(runs):
                out = ready if name != "presample" else Path(folder) / str(number)
                own = [] if name == "--help" else [*RECIPE, "--out", str(out)]
                own += ["--seed", str(number)] if name == "train" else []
                seconds.append(waited([*dphrl, name, *own], sign))
            rows.append({"command": f"dphrl {name}", "seconds": statistics.median(seconds), "slowest": max(seconds)})
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    results = {"machine": {"cores": os.cpu_count(), "python": platform.python_version(), "runs": runs}, "results": rows}
    (ROOT / "benchmarks/results/start.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
