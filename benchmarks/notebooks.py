"""How long does a class wait? Seconds that each notebook needs to run from top to bottom at its full size, and its slowest cell.

Run: `python benchmarks/notebooks.py` (about nine minutes, on an otherwise idle machine; `--runs 3` for medians). Each run
starts in a copy of the folder in which nothing has run before. `--kernels 4` runs each notebook in four kernels at once, as on
a server that a class shares, and tells the slowest. JSON goes to benchmarks/results/notebooks.json, or notebooks-4.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


class Timed(NotebookClient):
    """Executes a notebook and keeps the seconds of each code cell."""

    def __init__(self, notebook, folder: Path):
        super().__init__(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}}, kernel_name="python3")
        self.seconds: dict[int, float] = {}

    async def async_execute_cell(self, cell, index, **options):
        start = time.perf_counter()
        cell = await super().async_execute_cell(cell, index, **options)
        self.seconds[index] = time.perf_counter() - start
        return cell


def measure(name: str) -> dict:
    """Run one notebook in a fresh copy of the folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "notebooks"
        shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns("runs"))
        notebook = nbformat.read(folder / name, 4)
        client, start = Timed(notebook, folder), time.perf_counter()
        client.execute()
    slowest = max(client.seconds, key=client.seconds.get)
    last_line = notebook.cells[slowest].source.strip().splitlines()[-1]
    return {"seconds": time.perf_counter() - start, "slowest": client.seconds[slowest], "cell": last_line}


def slowest_of(name: str, kernels: int) -> dict:
    """The run that took longest of as many at once as there are `kernels`."""
    with ThreadPoolExecutor(kernels) as pool:
        return max(pool.map(measure, [name] * kernels), key=lambda run: run["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kernels", type=int, default=1, help="how many run each notebook at the same time")
    parser.add_argument("--only", default="", help="part of a notebook's name")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb") if options.only in path.name)
    rows = []
    for name in names:
        runs = [slowest_of(name, options.kernels) for _ in range(options.runs)]
        rows.append(
            {
                "notebook": name.removesuffix(".ipynb"),
                "seconds": statistics.median(run["seconds"] for run in runs),
                "slowest_cell": statistics.median(run["slowest"] for run in runs),
                "its_last_line": max(runs, key=lambda run: run["slowest"])["cell"],
            }
        )
        print(
            "{notebook:26s} {seconds:6.0f} s, of which {slowest_cell:5.0f} s in: {its_last_line}".format(**rows[-1]),
            flush=True,
        )
    if not options.only:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        machine |= {"runs": options.runs, "kernels": options.kernels}
        results = {"machine": machine, "results": rows}
        suffix = f"-{options.kernels}" if options.kernels > 1 else ""
        (ROOT / f"benchmarks/results/notebooks{suffix}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
