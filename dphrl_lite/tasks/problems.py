"""Loading problems: rows of a local file or of a hub data set, mapped to `Problem`.

Here: reading rows, naming which column is what, and checks that every problem can be used. Not here: prompt templates
beyond what a data set ships, verifying (`sql.py`, `math.py`, `countdown.py`), and any download that `datasets` does.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem

Column = str | Callable[[dict], object]

_FIELDS = ("id", "prompt", "answer")


def _final_number(row: dict) -> str:
    """The number after `####`, without thousands separators; "" if there is no `####`."""
    return row["answer"].partition("####")[2].strip().replace(",", "")


def _spider_prompt(row: dict) -> str:
    return row.get("prompt") or row["question"]


def _bird_prompt(row: dict) -> str:
    return f"{row['question']}\n{row['evidence']}".strip() if row.get("evidence") else row["question"]


_SQL = {"db_id": "db_id", "question": "question"}

MAPPINGS: dict[str, dict[str, Column]] = {
    "gsm8k": {"prompt": "question", "answer": _final_number},
    "math500": {"id": "unique_id", "prompt": "problem", "answer": "answer", "subject": "subject", "level": "level"},
    "spider": {"prompt": _spider_prompt, "answer": lambda row: row.get("gold_sql") or row["query"], **_SQL},
    "bird": {"id": "question_id", "prompt": _bird_prompt, "answer": "SQL", **_SQL, "difficulty": "difficulty"},
}


def load_problems(source, *, split=None, columns=None, limit=None) -> list[Problem]:
    """Problems from `source`: a .json, .jsonl, .csv or .parquet file, or what `datasets.load_dataset` knows.

    A hub data set may carry its config after a colon: `"openai/gsm8k:main"`. `columns` says where the fields are: a
    name in `MAPPINGS` ("gsm8k", "math500", "spider", "bird"), or a dict from `id`, `prompt`, `answer` to a column name
    or a function of the row; its further keys become `meta`. Without `columns` the fields are the columns of their own
    name, every other column goes into `meta`, and a `meta` column that holds a dict is merged in. Without an id column
    the ids are `<source stem>-<row>`. `limit` keeps the first rows.

    Raises `FileNotFoundError` for a missing source, and `ValueError` for a missing column, a row without an answer, a
    repeated id, or no rows; `UnknownNameError` for an unknown mapping.
    """
    mapping = lookup(MAPPINGS, "column mapping", columns) if isinstance(columns, str) else columns
    rows, stem = _rows(source, split)
    problems: dict[str, Problem] = {}
    for number, row in enumerate(islice(rows, limit)):
        if not isinstance(row, dict):
            raise ValueError(
                f"row {number} of {source} is of type {type(row).__name__}; expected an object with named columns"
            )
        problem = _problem(row, mapping, f"{stem}-{number}", f"row {number} of {source}")
        if problem.id in problems:
            raise ValueError(
                f"row {number} of {source} repeats the id {problem.id!r}; ids must be unique, since results are filed "
                "by them: map `id` to another column, or leave it out to number the rows"
            )
        problems[problem.id] = problem
    if not problems:
        raise ValueError(f"{source} (split {split!r}) holds no rows; expected one or more: check file, split and limit")
    return list(problems.values())


def _problem(row: dict, mapping: Mapping[str, Column] | None, default_id: str, where: str) -> Problem:
    if mapping is None:
        mapping = {key: key for key in row if key != "meta"}
        extra = row.get("meta")
        meta = dict(extra) if isinstance(extra, dict) else {} if extra is None else {"meta": extra}
    else:
        mapping, meta = {**({"id": "id"} if "id" in row else {}), **mapping}, {}
    meta = {key: _value(row, column, where) for key, column in mapping.items() if key not in _FIELDS} | meta
    prompt = _value(row, mapping.get("prompt", "prompt"), where)
    answer = _value(row, mapping.get("answer", "answer"), where)
    if answer is None or not str(answer).strip():
        raise ValueError(
            f"{where} has no answer in {_column_name(mapping.get('answer', 'answer'))}; every problem needs one to be "
            "verified against: fill it in, drop the row, or map `answer` to another column"
        )
    name = _value(row, mapping["id"], where) if "id" in mapping else default_id
    return Problem(id=str(name), prompt=str(prompt), answer=str(answer), meta=meta)


def _value(row: dict, column: Column, where: str):
    try:
        return column(row) if callable(column) else row[column]
    except KeyError as error:
        raise ValueError(
            f"{where} has no column {error.args[0]!r}; it has: {', '.join(map(str, row))}. Say where the fields are "
            'with columns={"prompt": ..., "answer": ...} or a ready-made mapping: ' + ", ".join(MAPPINGS)
        ) from error


def _column_name(column: Column) -> str:
    return f"what {column.__name__} makes of it" if callable(column) else f"column {column!r}"


def _rows(source, split: str | None) -> tuple[Iterator[dict], str]:
    """The rows of a source and the stem for ids."""
    path = Path(source)
    if path.suffix.lower() not in _READERS:
        return _hub_rows(str(source), split)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(source)!r}, looked for from {str(Path.cwd())!r}; expected a file of problems: check the path"
        )
    if split not in (None, "train"):
        raise ValueError(f"{source} is one file, without a split {split!r}: leave `split` out or name another file")
    return _READERS[path.suffix.lower()](path), path.stem


# Local files are read without `datasets`: it gives all rows of a file one schema, which puts a None into every `meta`
# for each key that some other row has, guesses types in CSV ("007" becomes 7), and copies each file into a cache.
def _json_rows(path: Path) -> Iterator[dict]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = text.lstrip().startswith("[")
        yield from json.loads(text) if whole else (json.loads(line) for line in text.split("\n") if line.strip())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error}; expected one list of objects, or one object per line: correct that place"
        ) from error


def _csv_rows(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterator[dict]:
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path).to_pylist()


_READERS = {".json": _json_rows, ".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _hub_rows(source: str, split: str | None) -> tuple[Iterator[dict], str]:
    import datasets  # takes a second to import, and most problems come from local files

    name, _, config = (source, "", "") if Path(source).exists() else source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"cannot load {source!r} (split {split!r}): {error}. Expected a .json, .jsonl, .csv or .parquet file, or a "
            "hub data set such as 'openai/gsm8k:main': check the name, the config after the colon, and the connection"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) > 1:
            raise ValueError(f"{source} has the splits {', '.join(found)}; pass one of them as `split`")
        found = next(iter(found.values()))
    return iter(found), Path(name).name
