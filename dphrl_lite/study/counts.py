"""Anyone's counts: tables of other people's outcomes, of lm-eval, lighteval and verl among them, as `passk.Outcomes`.

Not here: the kit's own tables (`study.pipeline`), and what follows from them (`passk`).
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from dphrl_lite.passk import Outcomes, clusters_of

_WANTED = (
    "expected a table with the columns n (answers drawn) and c (right ones), one row per problem and model, and if there "
    "are several also problem and model (or method, strength, seed); optional: family, cluster, distinct. Or single answers: "
    "lm-eval's samples, lighteval's details, verl's dumps, or any column problem beside a column correct of 0 and 1"
)
_PROBLEMS = ("problem", "doc_hash", "doc_id", "input", "prompt", "id")  # lm-eval, verl; lighteval: doc["id"]
_VERDICTS = ("correct", "acc", "exact_match", "extractive_match", "score")  # lighteval: in metric


def read_counts(source: str | Path | bytes, correct: str | None = None) -> pd.DataFrame:
    """A table of counts, whoever made it: CSV, JSON lines or Parquet, told apart by their content.

    Single answers are counted: rows of lm-eval's `--log_samples` (each of its filters is a model; run it several times for
    several answers), of lighteval's details, of verl's dumps of rollouts or validation (give one step's), or any others.

    Args:
        source: a file; its bytes; or a folder, of which all `*.parquet`, or else all `*.jsonl`, are read.
        correct: of single answers, the column (or lighteval's metric) that is 1 for a right one; None: the first known one.

    Returns:
        Table with model, family, problem, n, c, and cluster and distinct where they are given. Runs of one method at several
        strengths, learning rates, steps or seeds are models of their own. Without a column `problem`, problems are numbered
        by their place.

    Raises:
        FileNotFoundError: there is no such file, or no `*.parquet` in the folder.
        ValueError: not a table, columns are missing, or rows are impossible; the message says which and why.
    """
    table = _parsed(source).rename(columns=lambda name: str(name).strip())
    table = table if {"n", "c"} & set(table) or table.empty else _counted(table, correct)
    if missing := {"n", "c"} - set(table):
        raise ValueError(f"no column {' and no column '.join(sorted(missing))} among {list(table)}: {_WANTED}")
    if table.empty:
        raise ValueError(f"the table has no rows: {_WANTED}")
    numbers = {name: _whole_column(table, name) for name in ("n", "c", "distinct") if name in table}
    counts = pd.DataFrame({"model": _model_names(table), "family": table.get("family", pd.Series("", table.index))})
    more = {name: table[name].astype(str) for name in ("cluster",) if name in table}
    counts = counts.astype(str).assign(problem=table.get("problem"), **more, **numbers)
    groups = ["model", "family"]
    counts["problem"] = (counts.groupby(groups).cumcount() if "problem" not in table else counts["problem"]).astype(str)
    _refuse(counts, counts["n"] < 1, "n = 0: expected at least one answer to each problem")
    _refuse(counts, counts["c"] > counts["n"], "more right answers than were drawn; expected c <= n")
    _refuse(
        counts,
        counts.duplicated([*groups, "problem"]),
        "its problem stands there before, for the same model: expected one row each; name the runs in model or seed",
    )
    return counts[[*groups, "problem", *more, *numbers]]


def _counted(table: pd.DataFrame, correct: str | None) -> pd.DataFrame:
    """Single answers as counts; a table without a problem or a verdict as it came."""
    rows = table.copy()
    for name, columns in (("metric", _VERDICTS if correct is None else (correct,)), ("doc", ("id",))):
        if name in rows and isinstance(rows[name].iloc[0], dict):  # as lighteval has them
            inside = pd.DataFrame(rows[name].tolist(), rows.index)
            rows = rows.assign(**{column: inside[column] for column in columns if column in inside})
    problem = next((name for name in _PROBLEMS if name in rows), None)
    verdict = correct or next((name for name in _VERDICTS if name in rows), None)
    if problem is None or verdict not in rows:
        return table
    right = pd.to_numeric(rows[verdict], errors="coerce")
    _refuse(
        rows, ~right.isin((0, 1)), f"{verdict} must be 1 for a right answer and 0 for a wrong one; name another column"
    )
    rows = rows.assign(model=rows["filter"]) if "filter" in rows and "model" not in rows else rows  # lm-eval
    keys = [name for name in ("model", "method", *_RUNS, "family", "cluster") if name in rows]
    names = [rows[name] for name in keys] + [rows[problem].rename("problem")]
    groups = right.groupby(names, sort=False, dropna=False)  # base has no strength
    return groups.agg(n="count", c="sum").reset_index()


def _parsed(source: str | Path | bytes) -> pd.DataFrame:
    if not isinstance(source, bytes):
        inside = (sorted(Path(source).glob(kind)) for kind in ("*.parquet", "*.jsonl"))
        paths = next(filter(None, inside), []) if Path(source).is_dir() else [Path(source)]
        if not paths or not paths[0].is_file():
            raise FileNotFoundError(
                f"no table at {source}: expected a CSV, JSON lines or Parquet file, or a folder of them"
            )
        return pd.concat([_parsed(path.read_bytes()) for path in paths], ignore_index=True)
    stream, head = io.BytesIO(source), source.lstrip()[:1]
    first = source.split(b"\n", 1)[0]
    try:
        if source[:4] == b"PAR1":
            return pd.read_parquet(stream)
        if head in (b"{", b"["):
            return pd.read_json(stream, lines=head == b"{")
        return pd.read_csv(stream, sep=max(",;\t", key=lambda sep: first.count(sep.encode())))
    except (ValueError, OSError) as error:  # pandas' and Arrow's own errors are ValueErrors or OSErrors
        raise ValueError(f"this is neither CSV nor JSON lines nor Parquet ({error}): {_WANTED}") from error


def _whole_column(table: pd.DataFrame, name: str) -> pd.Series:
    numbers = pd.to_numeric(table[name], errors="coerce")
    _refuse(table, ~((numbers >= 0) & (numbers % 1 == 0)), f"{name} must be a whole number >= 0")
    return numbers.astype("int64")


def _refuse(table: pd.DataFrame, bad: pd.Series, why: str):
    if bad.any():
        place = int(np.argmax(bad))
        row = ", ".join(f"{name} {table[name].iloc[place]}" for name in ("model", "problem", "n", "c") if name in table)
        raise ValueError(f"{bad.sum()} of {len(table)} rows are wrong, the first is row {place + 1} ({row}): {why}")


_RUNS = {
    "strength": " at ",
    "learning_rate": ", learning rate ",
    "steps": ", steps ",
    "back": ", back ",
    "seed": ", seed ",
}  # what tells the runs of one method apart, as it stands in a model's name


def _model_names(table: pd.DataFrame) -> pd.Series:
    """`model` or `method`, with strength, learning rate, steps, way back and seed where there are several of them."""
    name = table.get("model", table.get("method", pd.Series("model", table.index))).astype(str)
    for column, word in _RUNS.items():
        if column in table:
            several = table[column].groupby(name).transform("nunique") > 1
            name = name.where(~several, name + word + table[column].astype(str))
    return name


def by_model(counts: pd.DataFrame, family: str | None = None) -> dict[str, Outcomes]:
    """Model -> `Outcomes` of a table from `read_counts`, of one family of problems or of all."""
    part = counts if family is None else counts[counts["family"] == family]
    names = part["family"] + "/" + part["problem"]
    if "cluster" not in part:  # of the kit's own problems; any other stands for itself, in its family
        labels = pd.Series(clusters_of(part["problem"]), part.index)
        part = part.assign(cluster=labels.where(labels != part["problem"], names))
    groups = part.assign(name=names).groupby("model", sort=False)
    return {model: Outcomes.from_counts(rows["n"], rows["c"], rows["name"], rows["cluster"]) for model, rows in groups}
