"""A student's own copies of the notebooks, so that running one changes nothing that git tracks, and an update changes nothing
that a student wrote. Standard library only: `make lab` asks it first.

What `notebooks/` holds is copied to `my_notebooks/`, which git ignores. A file that was touched there is never overwritten:
`renew` moves it to `my_notebooks/earlier/` before it takes the new edition.

    python -m dphrl_lite.course.copies             # what is missing; says what has a newer edition (`make lab`)
    python -m dphrl_lite.course.copies --renew     # takes the newer editions (`make renew`)
    python -m dphrl_lite.course.copies --renew 06  # a fresh copy of notebook 06, also where there is no newer one
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ORIGINS = ".editions.json"  # file -> digest of the edition that it was copied from
SKIPPED = {"runs", ".ipynb_checkpoints"}


def digest(path: Path) -> str:
    """A short name for a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def editions(source: Path) -> dict[str, str]:
    """Every file of the folder `source` with the digest of its present edition; what runs have left there is no edition."""
    files = (path for path in sorted(source.rglob("*")) if path.is_file())
    names = {path.relative_to(source): path for path in files}
    return {name.as_posix(): digest(path) for name, path in names.items() if not SKIPPED & set(name.parts)}


def update(source: Path, copies: Path) -> list[str]:
    """Copy what is missing, and new editions of what nobody touched; the names of touched files with a newer edition."""
    origins, outdated = _origins(copies), []
    for name, present in editions(source).items():
        target = copies / name
        if target.is_file() and origins.get(name) != present:
            touched = digest(target) not in (origins.get(name), present)
            if touched:
                outdated.append(name)
                continue
        if not target.is_file() or origins.get(name) != present:
            _copy(source / name, target)
        origins[name] = present
    _write(copies / ORIGINS, json.dumps(origins, indent=1))
    return outdated


def renew(source: Path, copies: Path, start: str | None = None, now: str | None = None) -> list[str]:
    """Take the newer editions, or fresh copies of all files whose name begins with `start`; returns what was put aside.

    Args:
        source: the folder of editions.
        copies: a student's copies of them.
        start: such as "06"; None for every file that has a newer edition.
        now: name of the folder below `copies`/earlier that receives what was touched; None for date and time.

    Raises:
        ValueError: no notebook begins with `start`.
    """
    names = [name for name in editions(source) if start is None or name.startswith(start)]
    if not names:
        raise ValueError(f"no file of {source} begins with {start!r}; expected the number of a notebook, such as 06")
    outdated = update(source, copies)
    origins = _origins(copies)
    again = outdated if start is None else [n for n in names if n in outdated or digest(copies / n) != origins[n]]
    earlier = copies / "earlier" / (now or time.strftime("%Y-%m-%d_%H-%M-%S"))
    for name in again:
        (earlier / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(copies / name, earlier / name)
    update(source, copies)
    return [f"{(earlier / name).relative_to(copies.parent)}" for name in again]


def _origins(copies: Path) -> dict[str, str]:
    path = copies / ORIGINS
    return json.loads(path.read_text()) if path.is_file() else {}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, source.read_bytes())


def _write(path: Path, contents: bytes | str) -> None:
    """Whole or not at all, and without the permissions of the source: a read-only clone gives copies that can be written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    shutil.move(partial, path)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=REPOSITORY / "notebooks")
    parser.add_argument("--copies", type=Path, default=REPOSITORY / "my_notebooks")
    parser.add_argument("--renew", nargs="?", const="", metavar="06", help="take newer editions, or a notebook afresh")
    options = parser.parse_args()
    fresh = not options.copies.exists()
    if options.renew is None:
        outdated = update(options.source, options.copies)
        print(f"Your copies of the notebooks {'are now' if fresh else 'stay'} in {options.copies.name}/.")
        if outdated:
            print(f"A newer edition is there of {', '.join(outdated)}: `make renew` takes it and keeps yours.")
        return
    try:
        aside = renew(options.source, options.copies, options.renew or None)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(f"yours is now {path}" for path in aside) or "Every copy is of the newest edition; nothing to do.")


if __name__ == "__main__":
    main()
