"""Loading problems: rows of a local file, of a hub data set, or of a task's own generator, as `Problem`.

Here: reading rows, naming which column is what, the prompts of well-known data sets, and checks that every problem can
be used. Not here: chat templates (applied when the policy samples), verifying (`sql.py`, `math.py`, `countdown.py`),
and any download that `datasets` does.
"""

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from importlib import import_module
from itertools import islice
from pathlib import Path

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem
from dphrl_lite.tasks.math_answers import final_answers

# a column's name, several of which the first present one counts, or a function of the row
Column = str | tuple[str, ...] | Callable[[dict], object]

MAX_MESSAGE = 480  # characters of an error, whose cause may be a whole file on one line
_FIELDS = ("id", "prompt", "answer")
_IDS = ("id", "ID", "question_id", "unique_id")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
ONE_QUERY = "Answer with one SQLite query."


def _final_number(row: dict) -> str:
    """The number after `####`, without thousands separators; "" if there is no `####`."""
    return str(row["answer"]).partition("####")[2].strip().replace(",", "")


def _math_prompt(row: dict) -> str:
    """The question, and where the answer has to stand: without it a model may answer in a form that nobody reads."""
    return _boxed(_pick(row, ("problem", "question", "Problem")))


def _boxed(question) -> str:
    question = _messages(question)
    return question and f"{question}\n{BOXED}"


def _all_answers(row: dict) -> str:
    """OlympiadBench gives a list, of several where all are asked for; Math-Verify compares them in any order."""
    answer = _pick(row, ("final_answer", "answer"))
    return ", ".join(map(str, answer)) if isinstance(answer, list) else answer


def _sql_prompt(row: dict) -> str:
    """The prompt that the row brings along, else schema (where it is known), question and hint, as in `data/sql`."""
    if row.get("prompt"):
        return row["prompt"]
    hint = [f"Hint: {row['evidence']}"] if row.get("evidence") else []
    comments = "\n".join([str(row["question"] or ""), *hint, ONE_QUERY]).splitlines()
    return "\n".join([*([row["schema"], ""] if row.get("schema") else []), *(f"-- {line}" for line in comments)])


def _optional(name: str) -> Callable[[dict], object]:
    return lambda row: row.get(name)


def _solved(row: dict) -> str:
    """The answer where the row has one, else what the solution's last box holds (MATH, Minerva)."""
    answer = _pick(row, ("answer", "Answer", "final_answer", "ground_truth", "solution"))
    boxes = final_answers(str(answer))[0] if "\\boxed" in str(answer) else []
    return boxes[0] if boxes else answer if "solution" not in row or row["solution"] != answer else ""


_MATH = {"prompt": _math_prompt, "answer": ("answer", "Answer")}
_SQL = {"prompt": _sql_prompt, "db_id": "db_id", "question": "question"}

MAPPINGS: dict[str, dict[str, Column]] = {
    "gsm8k": {**_MATH, "answer": _final_number},
    "math500": {**_MATH, "subject": _optional("subject"), "level": _optional("level")},
    "deepscaler": _MATH,
    "aime": _MATH,
    "amc": _MATH,
    "olympiadbench": {**_MATH, "answer": _all_answers, "subfield": lambda row: row.get("subfield")},
    "collegemath": _MATH,
    "limr": {"prompt": lambda row: _boxed(_pick(row, ("prompt", "problem", "question"))), "answer": _solved},
    "minerva": {**_MATH, "answer": _solved},
    "verl": {  # messages as the prompt, which says itself how to answer
        "prompt": "prompt",
        "answer": "reward_model.ground_truth",
        "data_source": _optional("data_source"),
        "db_id": lambda row: row.get("db_id") or (row.get("extra_info") or {}).get("db_id"),
    },
    "dapo": {"prompt": lambda row: _boxed(row["prompt"]), "answer": "solution"},
    "bird": {**_SQL, "answer": "SQL", "difficulty": lambda row: row.get("difficulty")},  # train.json has none
    "spider": {**_SQL, "answer": ("gold_sql", "query", "sql")},
    "math": {**_MATH, "answer": _solved, "level": _optional("level"), "type": _optional("type")},  # MATH's own files
}
GENERATORS = ("arithmetic", "countdown", "minisql")  # modules that make problems
_OTHER_NAMES = {
    "dsrsub": "deepscaler",
    "minidev": "bird",
    "hendrycks": "math",
    "competitionmath": "math",
}  # files of these sets that do not carry their name


class _NoAnswerError(ValueError):
    """A row whose answer is empty."""


def load_problems(
    source, *, split=None, columns=None, databases=None, keep=None, limit=None, skip_unanswered=False
) -> list[Problem]:
    """Problems from a file, a hub data set, or a task's generator.

    Args:
        source: a .json, .jsonl, .csv or .parquet file; a hub id or folder that `datasets.load_dataset` knows, the
            config after a colon (`"openai/gsm8k:main"`); or a family that is made here (`"countdown:cd3"`,
            `"arithmetic:multiplication"`, `"minisql:count"`, which the task `sql` judges).
        split: of a hub data set; of what is made here "train" (the default) or "test", the held-out part, or, of
            countdown and minisql, "validation".
        columns: where the fields are: a name in `MAPPINGS`, or a dict from `id`, `prompt`, `answer` to a column name, a
            tuple of names of which the first present one counts, or a function of the row; further keys become `meta`.
            By default rows with columns `prompt` and `answer` are taken as they stand: other columns go into `meta`, and
            a `meta` column that holds a dict is merged in. Other rows get the mapping that the name of the file, its
            folder or the data set suggests: gsm8k_test.jsonl, HuggingFaceH4/MATH-500, bird/dev.json.
            Without a column `id`, `question_id` or `unique_id` the ids are `<source stem>-<row>`.
        databases: folder of SQLite files. Every row's `db_id` must be in it, and the `bird` and `spider` mappings (any
            function of the row: its column `schema`) put its CREATE TABLE text into prompts of bare questions.
        keep: a function of the row; rows for which it is false are left out (`keep=lambda row: row["answer"]` for
            DeepScaleR, some of whose rows have no answer).
        limit: keeps the first rows (of those kept).
        skip_unanswered: leaves out rows without an answer, whatever column it should stand in.

    Raises:
        FileNotFoundError: a missing source, or a row whose database is missing.
        ValueError: an unreadable file; a missing column; a row without prompt or answer; a repeated id; no rows.
        UnknownNameError: an unknown mapping, or an unknown family of a task.
    """
    try:
        return _load(source, split, columns, databases, keep, limit, skip_unanswered)
    except (ValueError, FileNotFoundError) as error:
        if len(str(error)) <= MAX_MESSAGE:
            raise
        raise type(error)(f"{str(error)[: MAX_MESSAGE - 200]} [...] {str(error)[-180:]}") from error


def _load(source, split, columns, databases, keep, limit, skip_unanswered) -> list[Problem]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected how many rows to keep, 1 or more, or None for all of them")
    task, _, family = str(source).partition(":")
    if task in GENERATORS:
        return import_module(f"dphrl_lite.tasks.{task}").problems(family, split=split or "train")[:limit]
    rows, stem, folder = _rows(source, split)
    rows = list(islice((pair for pair in enumerate(rows) if keep is None or keep(pair[1])), limit))
    if not rows:
        kept = "" if keep is None else " that `keep` keeps"
        raise ValueError(f"{source} (split {split!r}) holds no rows{kept}; expected one or more: check file and split")
    mapping = _mapping(columns, rows[0][1], (stem, folder))
    schemas: dict[Path, str] = {}
    problems: dict[str, Problem] = {}
    for number, row in rows:
        where = f"row {number} of {source}"
        try:
            problem = _problem(row, mapping, f"{stem}-{number}", where, databases and Path(databases), schemas)
        except _NoAnswerError:
            if skip_unanswered:
                continue
            raise
        if problem.id in problems:
            raise _repeated(where, problem.id, _column_name(_id_column(row, mapping) or "id"))
        problems[problem.id] = problem
    if not problems:
        raise ValueError(
            f"none of the {len(rows)} rows of {source} has an answer; name the column that holds it in `columns`"
        )
    return list(problems.values())


def _repeated(where: str, name: str, column: str) -> ValueError:
    return ValueError(
        f"{where} repeats the id {name!r} in {column}; ids must be unique, since results are filed by them: map `id` to "
        'another column, or to nothing to number the rows: columns={..., "id": ""}, in a recipe `id=`'
    )


def _mapping(columns, first: object, names: tuple[str, str]) -> Mapping[str, Column] | None:
    """The mapping that was asked for, else None for rows in our own form, else the one that a name suggests, or None."""
    if columns is not None:
        return lookup(MAPPINGS, "column mapping", columns) if isinstance(columns, str) else columns
    if isinstance(first, dict) and isinstance(first.get("reward_model"), dict):
        return MAPPINGS["verl"]
    if not isinstance(first, dict) or {"prompt", "answer"} <= first.keys():
        return None
    known = {name: name for name in MAPPINGS} | _OTHER_NAMES
    plain = (re.sub("[^a-z0-9]", "", name.lower()) for name in names)
    return next((MAPPINGS[known[key]] for name in plain for key in known if key in name), None)


def _problem(
    row, mapping: Mapping[str, Column] | None, default_id: str, where: str, databases: Path | None, schemas: dict
) -> Problem:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is of type {type(row).__name__}; expected an object with named columns")
    extra = None
    if mapping is None:
        mapping, extra = {key: key for key in row if key != "meta"}, row.get("meta")
    meta = {key: _value(row, column, where) for key, column in mapping.items() if key not in _FIELDS}
    meta |= extra if isinstance(extra, dict) else {} if extra is None else {"meta": extra}
    if databases:
        column = _column_name(mapping.get("db_id", "db_id"))
        path = find_database(databases, meta.get("db_id"), f"{where}, {column},")
        if path not in schemas:
            schemas[path] = _schema(path, where)
        row = {"schema": schemas[path]} | row
    prompt, answer = (_filled(row, mapping.get(field, field), field, where) for field in ("prompt", "answer"))
    own = _id_column(row, mapping)
    name = _filled(row, own, "id", where) if own else default_id
    return Problem(id=name, prompt=prompt, answer=answer, meta=meta)


def _id_column(row: dict, mapping: Mapping[str, Column] | None) -> Column | None:
    own = (mapping or {}).get("id")  # "": the rows are numbered
    return own if own is not None else next((name for name in _IDS if name in row), None)


def _filled(row: dict, column: Column, field: str, where: str) -> str:
    value = _value(row, column, where)
    value = _messages(value) if field == "prompt" else value
    if value is None or value != value or not str(value).strip():  # NaN: an empty cell of a numeric Parquet column
        raise (_NoAnswerError if field == "answer" else ValueError)(
            f"{where} has no {field} in {_column_name(column)}; every problem needs one: "
            f"fill it in, leave such rows out with `keep`, or map `{field}` to another column"
        )
    if isinstance(value, (list, dict)):  # such as chat messages, which would become a prompt in Python's notation
        raise ValueError(
            f"{where} has a {type(value).__name__} as {field} in {_column_name(column)}; expected text: "
            f"map `{field}` to a function of the row that gives it"
        )
    return str(value).replace("\r\n", "\n")


def _messages(prompt):
    """The text of chat messages that a model is to answer; any other prompt as it is."""
    if not isinstance(prompt, list) or not all(isinstance(part, dict) and "content" in part for part in prompt):
        return prompt
    if any(part.get("role") not in ("system", "user") for part in prompt):
        return prompt  # a conversation, which no one text can stand for
    return "\n\n".join(str(part["content"]) for part in prompt)


def _pick(row: dict, names: tuple[str, ...]):
    """The first of `names` that the row has; `a.b` is the entry b of column a, where no column is called so."""
    for name in names:
        if name in row:
            return row[name]
        inner = row
        for part in name.split("."):
            inner = inner[part] if isinstance(inner, dict) and part in inner else None
        if inner is not None:
            return inner
    raise KeyError(*names)


def _value(row: dict, column: Column, where: str):
    try:
        return column(row) if callable(column) else _pick(row, (column,) if isinstance(column, str) else column)
    except KeyError as error:
        wanted = " or ".join(map(repr, error.args))
        raise ValueError(
            f"{where} has no column {wanted}; it has: {', '.join(map(str, row))}. Say where the fields are "
            'with columns={"prompt": ..., "answer": ...} or a ready-made mapping: ' + ", ".join(MAPPINGS)
        ) from error


def _column_name(column: Column) -> str:
    if callable(column):
        return f"what {column.__name__} makes of it"
    return f"column {column!r}" if isinstance(column, str) else "columns " + ", ".join(column)


# ---- databases -------------------------------------------------------------------------------------------------------


def find_database(folder: Path, db_id: object, who: str) -> Path:
    """The file of a database, in the layout of Spider or of BIRD; the errors say that `who` needs it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no `db_id`, or rows of the database are still in a write-ahead log, which is not read.
    """
    if not db_id:
        raise ValueError(f"{who} names no database; expected its id in meta['db_id']: map the column to `db_id`")
    candidates = [folder / f"{db_id}.sqlite", folder / str(db_id) / f"{db_id}.sqlite"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        wanted = " nor at ".join(repr(str(path)) for path in candidates)
        raise FileNotFoundError(
            f"{who} needs database {db_id!r}, found neither at {wanted}: "
            "put the file there or pass another `databases` folder"
        )
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:  # reading it would write beside the database
        raise ValueError(
            f"{who} needs database {db_id!r}, some of whose rows are still in {str(log)!r}; "
            "close the program that writes it, or move them with `PRAGMA wal_checkpoint(TRUNCATE)`"
        )
    return path


def _schema(path: Path, where: str) -> str:
    """The CREATE TABLE statements of a database, in the order in which the tables were made; reads only."""
    tables = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return "\n".join(f"{sql};" for (sql,) in connection.execute(tables + " ORDER BY rowid"))
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"{where} needs database {path.stem!r}, whose file is not readable by SQLite: {error}"
        ) from error


# ---- rows ------------------------------------------------------------------------------------------------------------


def _rows(source, split: str | None) -> tuple[Iterable[dict], str, str]:
    """The rows of a source, the stem for ids, and the name of what holds it (a folder, or the owner on the hub)."""
    path = Path(source)
    if path.suffix.lower() not in _READERS:
        if path.is_file():
            raise ValueError(
                f"{source} is no .json, .jsonl, .csv or .parquet file: unpack it, or save it as one of them"
            )
        return _hub_rows(str(source), split)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(source)!r}, looked for from {str(Path.cwd())!r}; expected a file of problems: check the path"
        )
    if split not in (None, "train"):
        raise ValueError(f"{source} is one file, without a split {split!r}: leave `split` out or name another file")
    return _READERS[path.suffix.lower()](path), path.stem, path.parent.name


# Local files are read without `datasets`: it gives all rows of a file one schema, which puts a None into every `meta`
# for each key that some other row has, guesses types in CSV ("007" becomes 7), and copies each file into a cache.
def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _json_rows(path: Path) -> list:
    text = _decoded(path)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise _not_json(path, error) from error
        return _json_lines(path, text)
    if path.suffix.lower() == ".json" and isinstance(whole, dict) and any(isinstance(v, list) for v in whole.values()):
        raise ValueError(
            f"{path} holds one object around its rows, with the keys {', '.join(whole)}; "
            "expected a list of objects: save that list alone"
        )
    if (
        isinstance(whole, dict)
        and whole
        and all(isinstance(column, dict) and "0" in column for column in whole.values())
    ):
        raise ValueError(f"{path} holds columns, not rows: save it with df.to_json(path, orient='records', lines=True)")
    return whole if isinstance(whole, list) else [whole]


def _json_lines(path: Path, text: str) -> list:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise _not_json(f"line {number} of {path}", error) from error
    return rows


def _not_json(where, error: json.JSONDecodeError) -> ValueError:
    return ValueError(f"{where} is not JSON: {error}; expected one list of objects, or one object per line: correct it")


def _csv_rows(path: Path) -> list[dict]:
    reader, rows = csv.DictReader(io.StringIO(_decoded(path), newline="")), []
    try:
        for row in reader:
            if None in row or None in row.values():  # DictReader's marks for fields too many and too few
                raise csv.Error(f"its fields are not the header's {len(reader.fieldnames)}; quote those with commas")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"row {len(rows)} (line {reader.line_num}) of {path} is broken: {error}") from error
    return rows


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def _parquet_rows(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [{name: _text(value) for name, value in row.items()} for row in rows]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} holds bytes that are no UTF-8 text ({error.object[:20]!r}); save such columns as text"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


_READERS = {".json": _json_rows, ".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _hub_rows(source: str, split: str | None) -> tuple[Iterable[dict], str, str]:
    import datasets  # takes a second to import, and most problems come from local files

    local = Path(source).exists()
    name, _, config = (source, "", "") if local else source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        expected = (
            "This is a folder; expected one whose files hold rows of one kind: name the file that is meant"
            if local
            else "Expected a .json, .jsonl, .csv or .parquet file, a hub data set such as 'openai/gsm8k:main', or "
            "'countdown:cd3': check the name, the config after the colon, and the connection"
        )
        raise FileNotFoundError(f"cannot load {source!r} (split {split!r}): {error}. {expected}") from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) > 1:
            raise ValueError(f"{source} has the splits {', '.join(found)}; pass one of them as `split`")
        found = next(iter(found.values()))
    return iter(found), Path(name).name, Path(name).parent.name
