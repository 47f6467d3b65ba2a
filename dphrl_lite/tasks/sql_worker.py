"""The sandbox of SQL: the process in which queries run and results are compared: `python -m dphrl_lite.tasks.sql_worker`.

A query runs on a read-only connection of its own that refuses everything except reading. Its limits, in the order in
which they should bite: steps of SQLite's virtual machine and bytes of SQLite's memory, which are the same on every
machine and in every run, so that rewards are too; rows and bytes of the result; and then, for the single step that
takes for ever, the death of this process (`worker.py`). `sql.Sql` asks; nothing else should.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from dphrl_lite.tasks.worker import limit_time, serve

MEMORY_GB = 2  # of this process; a query's own share is MAX_MEMORY
MAX_MEMORY = 256 * 2**20  # bytes that SQLite may allocate for one query, sorting included
MAX_VALUE = 1_000_000  # bytes of one value
MAX_RESULT = 50_000_000  # bytes of text and blobs in one result, and cells in it
MAX_HELD = 2_000_000  # the same of all gold results that are kept
MAX_MATCHING = 3_000_000  # cells looked at while matching columns
STEPS_AT_ONCE = 1_000  # between two looks at the number of steps

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE,
    sqlite3.SQLITE_LIMIT_COLUMN: 300,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "lsdir", "fsdir", "eval"}
_CHANCE = {"random", "randomblob"}  # a verdict must be the same tomorrow
NOW = "2025-06-15 12:34:56.789"  # and so must be what time it is, for gold query and prediction alike
# function -> which of its arguments is the time, where it has been told one
_CLOCK = {"date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1}
_CURRENT = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
_FORBIDDEN = _FORBIDDEN_FUNCTIONS | _CHANCE
_FORBIDDEN_WITHOUT_CLOCK = _FORBIDDEN | _CLOCK.keys() | _CURRENT.keys()
_QUOTED = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]", re.DOTALL)
_INNERMOST = re.compile(r"\([^()]*\)")
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)

Rows = list[tuple]
_gold: dict[tuple, tuple] = {}  # (database, query) -> (columns, rows, size, steps)


class QueryError(Exception):
    """A query that did not give a result; the message is the verdict's reason."""


def judge(uri: str, gold: str, sql: str | None, comparison: str, limits: dict, partial: bool = False) -> dict:
    """Run `sql` and compare what it returns with what `gold` returns.

    `limits` are "time_limit" (seconds for each query), "row_limit", and "step_limit"; a query may always take ten times
    the gold query's steps. `sql` None only runs `gold`.

    Returns:
        {"gold": why} where the gold query gives no result, else {"wrong": why}, with None for a right answer, and with
        `partial` {"partial": credit} besides (`partial_credit`).
    """
    try:
        gold_width, gold_rows, _, steps = _gold_result(uri, gold, limits["row_limit"])
    except QueryError as error:
        return {"gold": str(error)}
    if sql is None:
        return {"wrong": None}
    limit_time(limits["time_limit"])
    most_steps = max(limits["step_limit"], 10 * steps)
    try:
        # Rows are left unread where their width says enough: an empty gold result is equal to any empty result.
        only_width = gold_width if gold_rows and not partial else None
        width, rows, _, _ = run(uri, sql, limits["row_limit"], most_steps, only_width=only_width)
    except QueryError as error:
        return {"wrong": str(error)}
    wrong = None
    if gold_rows and width != gold_width:
        wrong = f"returned {_count(width, 'column')} where the gold query returns {gold_width}"
    wrong = wrong or COMPARISONS[comparison](gold_rows, rows, is_ordered(gold))
    return {"wrong": wrong} | ({"partial": partial_credit(gold_rows, rows)} if partial and wrong else {})


def partial_credit(gold: Rows, rows: Rows) -> float:
    """What a wrong result is worth: .8 m^2 / (G R), m of the G gold columns found among the R columns returned, by the set of
    their values, whatever their order and the number of rows; at most .8, and 0 where either result is empty.

    Source: the release of arXiv 2509.07430 (`SqlDetailRewardModel`; its comment has another formula).
    """
    wanted, found = ([set(column) for column in zip(*result, strict=True)] for result in (gold, rows))
    if not wanted or not found:
        return 0.0
    same = sum(column in found for column in wanted)
    return 0.8 * min(1.0, same * same / (len(wanted) * len(found)))


def _gold_result(uri: str, sql: str, row_limit: int) -> tuple:
    if (uri, sql) not in _gold:
        found = run(uri, sql, row_limit)
        if sum(size for _, _, size, _ in _gold.values()) + found[2] > MAX_HELD:
            _gold.clear()
        _gold[uri, sql] = found
    return _gold[uri, sql]


def run(uri: str, sql: str, row_limit: int, step_limit: float = float("inf"), only_width: int | None = None) -> tuple:
    """The result of one query as (number of columns, rows, size, steps); rows are unread unless there are `only_width`.

    Raises:
        QueryError: no result, or one over a limit.
    """
    try:
        return _run(uri, sql, row_limit, step_limit, only_width, clock=False)
    except sqlite3.Error as error:
        if not _asks_for_time(error):
            raise QueryError(_reason(error, step_limit)) from error
    try:  # functions of Python's cost a connection .1 ms, and hardly a query asks what time it is
        return _run(uri, sql, row_limit, step_limit, only_width, clock=True)
    except sqlite3.Error as error:
        raise QueryError(_reason(error, step_limit)) from error


def _run(uri: str, sql: str, row_limit: int, step_limit: float, only_width: int | None, clock: bool) -> tuple:
    steps = 0

    def too_many():
        nonlocal steps
        steps += STEPS_AT_ONCE
        return steps > step_limit

    try:
        with _reader(uri, clock) as connection:
            connection.set_progress_handler(too_many, STEPS_AT_ONCE)
            cursor = connection.execute(sql)
            width = len(cursor.description or ())
            if not width:  # a comment, `;`, or nothing: its result would equal any empty one
                raise QueryError("no query: the statement has no result columns")
            rows, size = ([], 0) if only_width not in (None, width) else _fetch(cursor, row_limit)
            return width, rows, size, steps
    except sqlite3.Warning as error:  # Python 3.11; later versions raise ProgrammingError
        raise QueryError("more than one statement") from error
    except MemoryError as error:
        raise QueryError(f"stopped: more than {MAX_MEMORY // 2**20} MB of memory") from error
    except (ValueError, OverflowError) as error:  # NUL bytes, lone surrogates, huge values
        raise QueryError(f"SQL error: {error}") from error


@contextmanager
def _reader(uri: str, clock: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that can only read, in bounded memory; without `clock` it refuses the functions of time."""
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        # Spider's evaluator decodes so: some of its databases hold text that is not UTF-8.
        connection.text_factory = lambda raw: raw.decode(errors="ignore")
        connection.execute(f"PRAGMA hard_heap_limit = {MAX_MEMORY}")
        connection.execute("PRAGMA temp_store = MEMORY")  # a sort fills neither the disk nor more than that
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        if not clock:
            connection.set_authorizer(_authorize_without_clock)
            yield connection
            return
        with closing(sqlite3.connect(":memory:")) as reference:
            _stop_clock(connection, reference)
            connection.set_authorizer(authorize)
            yield connection


def _asks_for_time(error: sqlite3.Error) -> bool:
    return str(error).lower().rpartition("function: ")[2] in _CLOCK.keys() | _CURRENT.keys()


def _stop_clock(connection: sqlite3.Connection, reference: sqlite3.Connection):
    """Make `NOW` the time of all functions of `connection` that ask for it; `reference` computes what they return."""

    def at_now(name: str, index: int):
        """SQLite's function `name`, whose time stands at `index` of its arguments, at `NOW` where it would ask the clock."""

        def function(*arguments):
            now = len(arguments) == index or str(arguments[index]).strip().lower() == "now"
            subsecond = len(arguments) > index and str(arguments[index]).lower() in ("subsec", "subsecond")
            rest = arguments[index + (now and not subsecond) :]
            times = (*arguments[:index], NOW, *rest) if now or subsecond else arguments
            return reference.execute(f"SELECT {name}({', '.join('?' * len(times))})", times).fetchone()[0]

        return function

    for name, index in _CLOCK.items():
        connection.create_function(name, -1, at_now(name, index), deterministic=True)
    for name, date in _CURRENT.items():
        connection.create_function(name, 0, at_now(date, 0), deterministic=True)


def authorize(action: int, first: str | None, second: str | None, *_) -> int:
    """SQLite's question before each thing that a query does: only reading is allowed, and no chance."""
    forbidden = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FORBIDDEN
    return sqlite3.SQLITE_OK if action in _READING and not forbidden else sqlite3.SQLITE_DENY


def _authorize_without_clock(action: int, first: str | None, second: str | None, *_) -> int:
    forbidden = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FORBIDDEN_WITHOUT_CLOCK
    return sqlite3.SQLITE_OK if action in _READING and not forbidden else sqlite3.SQLITE_DENY


def _reason(error: sqlite3.Error, step_limit: float) -> str:
    text, code = str(error), getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_INTERRUPT:
        return f"stopped after {step_limit:,} steps"
    if any(text.endswith(f"function: {name}") for name in _CHANCE):
        return "not allowed: the result would depend on chance"
    if code == sqlite3.SQLITE_AUTH or "not authorized" in text or "prohibited" in text:
        return "not allowed: only reading is permitted"
    return "more than one statement" if "one statement at a time" in text else f"SQL error: {text}"


def _fetch(cursor: sqlite3.Cursor, row_limit: int) -> tuple[Rows, int]:
    rows, size = [], 0
    for row in cursor:
        rows.append(row)
        size += len(row) + sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(rows) > row_limit:
            raise QueryError(f"stopped after {row_limit:,} rows")
        if size > MAX_RESULT:
            raise QueryError(f"stopped after {MAX_RESULT:,} bytes of results")
    return rows, size


# ---- comparing two results -------------------------------------------------------------------------------------------


def is_ordered(sql: str) -> bool:
    """Whether a query orders its result: ORDER BY outside all parentheses, quotes and comments.

    In SQLite only the end of the whole statement is such a place; those of subqueries, windows and aggregates are not.
    """
    text, more = _QUOTED.sub(" ", sql), True
    while more:
        text, more = _INNERMOST.subn(" ", text)
    return bool(_ORDER_BY.search(text))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _compare_bags(gold: Rows, rows: Rows, ordered: bool) -> str | None:
    """What differs between two results, or None: bags of rows under some permutation of the columns."""
    if len(gold) != len(rows):
        return f"returned {_count(len(rows), 'row')} where the gold query returns {len(gold)}"
    if gold == rows:
        return None
    if ordered and Counter(zip(*gold, strict=True)) == Counter(zip(*rows, strict=True)):
        return None
    if not _same_bag(gold, rows):
        return "rows differ"
    return "same rows in another order than the gold query's ORDER BY gives" if ordered else None


def _compare_sets(gold: Rows, rows: Rows, ordered: bool) -> str | None:
    """What differs between two results, or None: sets of rows, as BIRD compares them."""
    return None if set(gold) == set(rows) else "rows differ"


COMPARISONS = {"bag": _compare_bags, "set": _compare_sets}


def _same_bag(gold: Rows, rows: Rows) -> bool:
    """Whether some permutation of the columns of `rows` makes both the same bag of rows; both have the same shape.

    Backtracks over the columns. A gold column may only go with a column that holds the same multiset of values, and a
    partial assignment is kept only while the rows, cut to the columns assigned so far, are the same bag.
    """
    if Counter(gold) == Counter(rows):
        return True
    gold_columns, columns = list(zip(*gold, strict=True)), list(zip(*rows, strict=True))
    by_values: dict[frozenset, list[int]] = {}
    for index, column in enumerate(columns):
        by_values.setdefault(frozenset(Counter(column).items()), []).append(index)
    candidates = [by_values.get(frozenset(Counter(column).items()), []) for column in gold_columns]
    order = sorted(range(len(gold_columns)), key=lambda index: len(candidates[index]))
    work, start = 0, [0] * len(gold)
    stack = [(0, start, start, frozenset())]
    while stack and work < MAX_MATCHING:
        depth, gold_ids, ids, used = stack.pop()
        if depth == len(order):
            return True
        tried = {columns[index]: index for index in candidates[order[depth]] if index not in used}
        for column, index in tried.items():  # equal columns are interchangeable, so one of them is enough
            work += len(gold)
            labels: dict[tuple, int] = {}
            next_gold = _extend(gold_ids, gold_columns[order[depth]], labels)
            next_ids = _extend(ids, column, labels)
            if Counter(next_gold) == Counter(next_ids):
                stack.append((depth + 1, next_gold, next_ids, used | {index}))
    return False


def _extend(ids: list[int], column: tuple, labels: dict[tuple, int]) -> list[int]:
    """Ids of the rows one column longer; equal cut-off rows get equal ids, in both results alike."""
    return [labels.setdefault(pair, len(labels)) for pair in zip(ids, column, strict=True)]


def main():
    """Serve until standard input ends."""
    serve(judge, MEMORY_GB)


if __name__ == "__main__":
    main()
