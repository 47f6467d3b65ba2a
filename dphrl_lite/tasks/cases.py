"""Cases to try verifiers on: verdicts side by side, answers with known labels, query results, and the memorising hack.

Everything the project ships for this is in `data/sql` and `data/math`; where a developer has published verdicts beside
the repository (`../shared/data`), those are taken. Not here: verifying itself, or anything that training needs.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from dphrl_lite.errors import lookup
from dphrl_lite.tasks import Problem, Task, get, load_problems
from dphrl_lite.tasks.sql_worker import authorize

ROOT = Path(__file__).resolve().parents[2]
DATABASES = (ROOT / "data/sql/databases", ROOT / "data/sql/databases_2")
REAL = ROOT.parent / "shared/data"
_COLUMNS = ["problem", "completion", "label", "why"]


def questions() -> list[Problem]:
    """The shipped SQL questions; `meta` holds other right queries and typical wrong ones."""
    return load_problems(ROOT / "data/sql/questions.jsonl")


def judge(task: Task, problem: Problem, answers: Mapping[str, str]) -> pd.DataFrame:
    """The verdicts on several answers to one problem, one row for each; `answers`: what is tried -> completion."""
    columns = ["correct", "reason", "distinct"]
    verdicts = [asdict(verdict) for verdict in task.verify_all((problem, text) for text in answers.values())]
    table = pd.DataFrame(verdicts, index=pd.Index(answers, name="case"), columns=columns)
    table.insert(0, "completion", list(answers.values()))
    return table


def math_cases() -> pd.DataFrame:
    """The shipped answers to math problems as `labelled` gives them, with a label by hand and why each is worth a try."""
    rows = enumerate(_lines(ROOT / "data/math/cases.jsonl"))
    rows = [(Problem(f"case-{i}", "", r["answer"]), r["completion"], r["correct"], r["why"]) for i, r in rows]
    return pd.DataFrame(rows, columns=_COLUMNS)


def labelled(name: str, real: Path = REAL) -> tuple[str, Task, pd.DataFrame]:
    """Answers with labels that this kit did not make, where folder `real` has them, else the shipped ones.

    Returns:
        whose labels they are, the task to judge them with ("sql" or "math"), and a table with the columns `problem`,
        `completion`, `label` and `why` (why the answer is worth trying; empty for published answers).
    """
    source, task, rows = lookup({"sql": _sql_cases, "math": _math_cases}, "kind of cases", name)(real)
    return source, task, pd.DataFrame(rows, columns=_COLUMNS)


def verdicts(task: Task, cases: pd.DataFrame) -> list[bool]:
    """Which of the answers in a table of `labelled` or `math_cases` the task calls right."""
    return [verdict.correct for verdict in task.verify_all(zip(cases["problem"], cases["completion"], strict=True))]


def _sql_cases(real: Path):
    path = real / "sql/predictions/din_sql.jsonl"
    if path.is_file():
        made = [(Problem(str(r["id"]), "", r["gold_sql"], {"db_id": r["db_id"]}), r) for r in _lines(path)]
        rows = [(problem, f"```sql\n{r['predicted_sql']}\n```", r["correct"], "") for problem, r in made]
        source = "DIN-SQL's queries to Spider, labelled by Spider's official evaluator"
        return source, get("sql", databases=real / "sql/databases"), rows
    rows = []
    for problem in questions():
        for label, key in ((True, "also_right"), (False, "wrong")):
            rows += [(problem, sql, label, "") for sql in problem.meta[key]]
    return "the shipped queries, labelled by the project", get("sql", databases=DATABASES[0]), rows


def _math_cases(real: Path):
    path, task = real / "rollouts/qwen_math_100x8.jsonl", get("math")
    if not path.is_file():
        return "the shipped answers, labelled by the project", task, math_cases()
    made = [(Problem(str(r["idx"]), r["question"], r["answer"]), r) for r in _lines(path)]
    rows = [(p, text, bool(score), "") for p, r in made for text, score in zip(r["code"], r["score"], strict=True)]
    return "answers by Qwen2.5-Math, labelled by its authors' grader", task, rows


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def preview(database: Path, sql: str, rows: int = 100, seconds: float = 1.0) -> pd.DataFrame | str:
    """The first rows that a query returns, or in words why there are none; for looking, not for judging.

    The connection can only read, its values are at most 1 MB, and it is interrupted after `seconds`.
    """
    deadline = time.monotonic() + seconds
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
            connection.set_authorizer(authorize)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 500)
            cursor = connection.execute(sql)
            return pd.DataFrame(cursor.fetchmany(rows), columns=[name for name, *_ in cursor.description or ()])
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        return str(error)


def results(question: Problem, query: str, databases: Sequence[Path]) -> list[tuple[str, pd.DataFrame | str]]:
    """What the gold query and `query` return on each of the folders of databases: label, and `preview`."""
    queries = {"gold query": question.answer, "your query": query}
    paths = [folder / f"{question.meta['db_id']}.sqlite" for folder in databases]
    pairs = [(who, i, sql, path) for i, path in enumerate(paths, 1) for who, sql in queries.items()]
    return [(f"{who}, database {i}", preview(path, sql)) for who, i, sql, path in pairs]


def suggestions(question: Problem) -> dict[str, str]:
    """Queries to try on a shipped question: label -> SQL, right ones, typical mistakes, and one that was learnt by heart."""
    queries = {"the gold query": question.answer}
    queries |= {f"in other words, {i}": sql for i, sql in enumerate(question.meta["also_right"], 1)}
    queries |= {f"a typical mistake, {i}": sql for i, sql in enumerate(question.meta["wrong"], 1)}
    database = DATABASES[0] / f"{question.meta['db_id']}.sqlite"
    return queries | {"learnt by heart": memorised(database, question.answer)}


def memorised(database: Path, sql: str) -> str:
    """A query that returns the rows of another one without looking into any table: what a policy could learn by heart."""
    rows = preview(database, sql).astype(object).itertuples(index=False)
    values = ", ".join(f"({', '.join(map(_literal, row))})" for row in rows)
    return f"SELECT * FROM (VALUES {values})" if values else "SELECT 1 WHERE 0"


def _literal(value) -> str:
    if pd.isna(value):
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
