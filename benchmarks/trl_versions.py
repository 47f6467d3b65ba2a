"""The tests of the TRL layer against other versions of TRL, so that what the next one breaks is seen before it is pinned.

    python benchmarks/trl_versions.py [latest 1.10.0 ...] [--folder build/trl] [-- -k bit]

Each version is put into a folder of its own, without its requirements, in front of the installed packages; nothing that is
installed changes. What stands behind `--` goes to pytest. Needs a connection for what is not there yet.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def fetch(version: str, folder: Path) -> Path:
    """TRL of that version, in `folder`/`version`; "latest" is fetched anew each time."""
    target = folder / version
    if version == "latest" or not target.is_dir():
        name = "trl" if version == "latest" else f"trl=={version}"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(target), name], check=True)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("versions", nargs="*", default=["latest"])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "trl")
    own, more = (sys.argv[1:], []) if "--" not in sys.argv else split(sys.argv[1:])
    arguments, failed = parser.parse_args(own), []
    for version in arguments.versions:
        paths = os.pathsep.join([str(fetch(version, arguments.folder)), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        said = [sys.executable, "-c", "import trl; print(trl.__version__)"]
        found = subprocess.run(said, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]
        print(f"TRL {found}", flush=True)
        tests = [sys.executable, "-m", "pytest", "tests/large/test_trl.py", "tests/large/test_runs.py", *more]
        failed += [found] * bool(subprocess.run(tests, env=environment, cwd=ROOT).returncode)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    sys.exit(bool(failed))


def split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--")
    return words[:at], words[at + 1 :]


if __name__ == "__main__":
    main()
