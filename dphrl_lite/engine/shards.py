"""Rollouts on disk: a folder with `manifest.json`, Parquet shards of so many problems each, and `totals.json` when all are there.

Each file is written whole or not at all, by whichever process is first. Knows what a table's columns are called, not what they
mean: that is `presampling`'s.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dphrl_lite.engine import checkpoint
from dphrl_lite.engine.checkpoint import write_whole

TOTALS = "totals.json"


def read_manifest(folder: str | Path) -> dict:
    """What decided the rollouts in `folder`. Raises `FileNotFoundError` where there is no pre-sampling."""
    manifest = checkpoint.read_manifest(folder)
    if manifest.get("kind") != "presampling":
        raise FileNotFoundError(f"no pre-sampling in {folder}; expected a folder that sample(..., out=folder) wrote")
    return manifest


def paths(folder: str | Path) -> list[Path]:
    """Where all shards of the run are, or will be."""
    manifest = read_manifest(folder)
    shards = -(-manifest["problem_count"] // manifest["problems_per_shard"])
    return [_path(folder, index) for index in range(shards)]


def _path(folder: str | Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.parquet"


def missing(folder: str | Path) -> list[int]:
    """Numbers of the shards that a run in `folder` still lacks."""
    return [index for index, path in enumerate(paths(folder)) if not path.is_file()]


def shard(folder: Path | None, index: int, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """One shard: read if it is there, else computed, and written if there is a folder."""
    if folder is None:
        return compute()
    path = _path(folder, index)
    if not path.is_file():
        write_whole(path, lambda temporary: compute().to_parquet(temporary, index=False), overwrite=False)
    return _read(path)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:  # Arrow's; we write whole files, so something else has damaged it
        raise ValueError(f"{path} is damaged ({error}); delete it and give the same command again") from error


def load(folder: str | Path) -> pd.DataFrame:
    """The rollouts of a finished folder, without model or problems: the table that `sample(..., out=folder)` returned.

    Raises:
        FileNotFoundError: `folder` holds no pre-sampling, or shards are missing; the message names them.
    """
    manifest, lacking = read_manifest(folder), missing(folder)
    if lacking:
        size, count = manifest["problems_per_shard"], manifest["problem_count"]
        names = [f"{_path(folder, i).name} (problems {i * size} to {min(count, i * size + size) - 1})" for i in lacking]
        raise FileNotFoundError(
            f"{folder} lacks {len(lacking)} of its shards: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}. "
            "Give the same command again (without --shard, or with each share): only what is missing is computed"
        )
    return pd.concat([_read(path) for path in paths(folder)], ignore_index=True)


def write_totals(folder: Path, table: pd.DataFrame | None):
    """Counts of the finished run, beside its manifest: the manifest says what is asked for and never changes."""
    if (folder / TOTALS).is_file():
        return
    table = load(folder) if table is None else table
    totals = {"problems": table["problem_id"].nunique(), "completions": len(table)}
    totals |= {"tokens": int(table["token_ids"].map(len).sum()), "correct": int(table["correct"].sum())}
    write_whole(folder / TOTALS, lambda temporary: temporary.write_text(json.dumps(totals)), overwrite=False)
