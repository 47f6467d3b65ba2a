"""Text-to-SQL on SQLite: run the model's query and the gold query, and compare what they return.

Here: finding the query in a completion, running it where it can only read and cannot run long, comparing two results,
and a canonical form that tells two right queries apart. Not here: questions (`problems.py`), prompts, the databases.

A query runs inside this process, on a read-only connection of its own that refuses everything except reading. Time is
checked between steps of SQLite's virtual machine, so a single slow step (a search inside a 1 MB string) can overrun
`time_limit` by a few seconds; memory is bounded by the caps below, not by the operating system.
"""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import prod
from pathlib import Path

import sqlglot
from sqlglot import exp

from dphrl_lite.errors import unknown
from dphrl_lite.tasks.base import Problem, Task, Verdict

MAX_SQL = 100_000  # characters of one query
MAX_CANONICAL = 10_000  # characters of a query that is still parsed for `distinct`
MAX_VALUE = 1_000_000  # bytes of one value
MAX_COLUMNS = 300
MAX_RESULT = 50_000_000  # bytes of text and blobs in one result, and cells in it
MAX_MATCHING = 3_000_000  # cells looked at while matching columns
MAX_CTE_COPIES = 20_000  # SQLite expands every use of a CTE before it runs; its time limit does not cover that

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL,  # bytes, where MAX_SQL counts characters
    sqlite3.SQLITE_LIMIT_COLUMN: MAX_COLUMNS,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "lsdir", "fsdir", "eval"}

_FENCE = re.compile(r"```(\w*)(.*?)(```|\Z)", re.DOTALL)
_WITH = r"with\s+(?:recursive\s+)?(?:\w+|\"[^\"\n]{1,200}\"|`[^`\n]{1,200}`)\s*(?:\([^()]{0,500}\)\s*)?as\b"
_START = re.compile(rf"^[ \t(]*(?:select\b|{_WITH})", re.IGNORECASE | re.MULTILINE)
_WORDS = "select|values|insert|update|delete|drop|create|alter|attach|detach|pragma|vacuum|replace|begin|commit|reindex"
_STATEMENT = re.compile(rf"\s*(?:(?:{_WORDS})\b|{_WITH})", re.IGNORECASE)
_TOKEN = re.compile(r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;", re.DOTALL)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_QUOTED = re.compile(
    _COMMENT.pattern + r"|'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)", re.DOTALL
)
_AS_QUERY = r" ?(?:\([^()]{0,500}\) ?)?\bas ?(?:not )?(?:materialized ?)?\("
_CTE = re.compile(rf"(?<!\w)(\w+){_AS_QUERY}")
_TABLE_USE = re.compile(rf"(?:\bfrom|\bjoin|[,(]) ?(\w+)(?!\w)(?!{_AS_QUERY})")
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)

Rows = list[tuple]


class QueryError(Exception):
    """A query that did not give a result; the message is the verdict's reason."""


class Sql(Task):
    """Judges SQL by what it returns: `problem.answer` is the gold query, `problem.meta["db_id"]` names the database."""

    name = "sql"

    def __init__(self, databases=None, comparison="bag", time_limit=5.0, row_limit=10_000):
        """Set up a verifier for the databases in one folder.

        `databases` is a folder that holds `<db_id>.sqlite` or `<db_id>/<db_id>.sqlite`. `comparison="bag"` is Spider's
        rule: equal bags of rows under some order of the columns, the row order counting only where the gold query has
        ORDER BY. `"set"` is BIRD's rule: equal sets of rows, columns as they stand. `time_limit` is in seconds for each
        query. Raises `FileNotFoundError` for a missing folder, `UnknownNameError` for an unknown comparison.
        """
        if databases is None:
            raise ValueError("the sql task needs its databases: get('sql', databases='data/sql/databases')")
        self.databases = Path(databases)
        if not self.databases.is_dir():
            raise FileNotFoundError(
                f"no folder of databases at {str(databases)!r}; expected one that holds <db_id>.sqlite files: "
                "check the path, or make the shipped databases with `python data/make_databases.py`"
            )
        if comparison not in _COMPARISONS:
            raise unknown("comparison", comparison, _COMPARISONS)
        self.comparison, self.time_limit, self.row_limit = comparison, float(time_limit), int(row_limit)
        self._gold: dict[tuple[str, str], tuple[int, Rows]] = {}

    def identity(self) -> dict:
        """Name, databases and rules."""
        rules = {"comparison": self.comparison, "time_limit": self.time_limit, "row_limit": self.row_limit}
        return super().identity() | {"databases": self.databases.name} | rules

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Run the query in `completion` and compare its rows with the gold query's.

        Raises `FileNotFoundError` for a missing database and `ValueError` for a gold query that fails.
        """
        path = self._database(problem)
        gold_width, gold = self._gold_rows(problem, path)
        sql = extract(completion)
        if not sql:
            return Verdict(False, None, "no SQL found in the completion")
        try:
            width, rows = self._run(path, sql, only_width=gold_width if gold else None)
        except QueryError as error:
            return Verdict(False, sql, str(error))
        if gold and width != gold_width:
            return Verdict(False, sql, f"returned {_count(width, 'column')} where the gold query returns {gold_width}")
        difference = _COMPARISONS[self.comparison](gold, rows, bool(_ORDER_BY.search(problem.answer)))
        if difference:
            return Verdict(False, sql, difference)
        return Verdict(True, sql, "same rows as the gold query", canonical(sql))

    def _database(self, problem: Problem) -> Path:
        db_id = problem.meta.get("db_id")
        if not db_id:
            raise ValueError(
                f"problem {problem.id!r} names no database; expected its id in meta['db_id']: "
                "map the data set's database column to `db_id`"
            )
        candidates = [self.databases / f"{db_id}.sqlite", self.databases / str(db_id) / f"{db_id}.sqlite"]
        for path in candidates:
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"problem {problem.id!r} needs database {db_id!r}, found neither at {str(candidates[0])!r} "
            f"nor at {str(candidates[1])!r}: put the file there or pass another `databases` folder"
        )

    def _gold_rows(self, problem: Problem, path: Path) -> tuple[int, Rows]:
        key = (str(path), problem.answer)
        if key not in self._gold:
            try:
                self._gold[key] = self._run(path, problem.answer)
            except QueryError as error:
                raise ValueError(
                    f"the gold query of problem {problem.id!r} gives no result to compare with ({error}); "
                    "correct its `answer` or drop the problem"
                ) from error
        return self._gold[key]

    def _run(self, path: Path, sql: str, only_width: int | None = None) -> tuple[int, Rows]:
        """The result of one query as (number of columns, rows); rows are left unread unless there are `only_width`."""
        if len(sql) > MAX_SQL:
            raise QueryError(f"the query is longer than {MAX_SQL:,} characters")
        if _cte_copies(sql) > MAX_CTE_COPIES:
            raise QueryError("the WITH clauses refer to each other too often to be expanded")
        try:
            with _reader(path, self.time_limit) as connection:
                cursor = connection.execute(sql)
                width = len(cursor.description or ())
                return width, [] if only_width not in (None, width) else _fetch(cursor, self.row_limit)
        except sqlite3.Error as error:
            raise QueryError(self._reason(error)) from error
        except sqlite3.Warning as error:  # Python 3.11; later versions raise ProgrammingError
            raise QueryError("more than one statement") from error
        except (ValueError, OverflowError, MemoryError) as error:  # NUL bytes, lone surrogates, huge values
            raise QueryError(f"SQL error: {error}") from error

    def _reason(self, error: sqlite3.Error) -> str:
        text, code = str(error), getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_INTERRUPT:
            return f"stopped after {self.time_limit} s"
        if code == sqlite3.SQLITE_AUTH or "not authorized" in text or "prohibited" in text:
            return "not allowed: only reading is permitted"
        if "one statement at a time" in text:
            return "more than one statement"
        if "user-defined function" in text:
            return "SQL error: trim takes at most 1,000 characters to remove"
        return f"SQL error: {text}"


def extract(completion: str) -> str | None:
    """The query in a completion, or None.

    The last ```sql block, else the last plain ``` block with a query in it, else the text from the first
    line that starts with SELECT or WITH. Prose after a closing `;` is dropped there; a further statement is kept, so
    that running it is refused.
    """
    blocks = _FENCE.findall(completion)
    for label, body, _ in reversed(blocks):
        if label.lower() in ("sql", "sqlite") and body.strip():
            return body.strip()
    for label, body, end in reversed(blocks):
        inline = label.lower() in ("select", "with")  # ```SELECT 1``` on one line: no label but the first word
        body = label + body if inline else body
        if end and (inline or not label) and _START.search(body):
            return body.strip()
    start = _START.search(completion)
    return _first_statement(completion[start.start() :]) if start else None


def _first_statement(text: str) -> str:
    """`text` up to a `;` that prose follows, or all of it, up to a stray closing fence in either case."""
    text = text.split("```")[0]
    end = next((token.end() for token in _TOKEN.finditer(text) if token[0] == ";"), len(text))
    return text.strip() if _STATEMENT.match(_COMMENT.sub("", text[end:])) else text[:end].strip()


def _cte_copies(sql: str) -> int:
    """An upper bound on how many copies of one subquery SQLite makes when it expands the WITH clauses."""
    sql = " ".join(_QUOTED.sub(_as_word, sql.lower().replace("$", "_")).split())
    uses = Counter(_TABLE_USE.findall(sql))
    return prod(max(1, uses[name]) for name in set(_CTE.findall(sql)))


def _as_word(match: re.Match) -> str:
    """A quoted name or string as one plain word, a comment as a space."""
    if _COMMENT.match(match[0]):
        return " "
    return " " + re.sub(r"\W", "_", match[0][1:].rstrip(match[0][0] + "]")) + " "


@contextmanager
def _reader(path: Path, time_limit: float) -> Iterator[sqlite3.Connection]:
    """A connection that can only read, and whose queries are interrupted after `time_limit` seconds."""
    deadline = time.monotonic() + time_limit
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        # Spider's evaluator decodes so: some of its databases hold text that is not UTF-8.
        connection.text_factory = lambda raw: raw.decode(errors="ignore")
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
            connection.create_function(name, 2, _guarded(strip), deterministic=True)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 500)
        yield connection


def _authorize(action: int, first: str | None, second: str | None, *_) -> int:
    forbidden = action == sqlite3.SQLITE_FUNCTION and str(second).lower() in _FORBIDDEN_FUNCTIONS
    return sqlite3.SQLITE_OK if action in _READING and not forbidden else sqlite3.SQLITE_DENY


def _guarded(strip):
    """SQLite's trim(text, characters), which takes hours in one step when both are 1 MB long, for few characters."""

    def trim(text, characters):
        if text is None or characters is None:
            return None
        if len(str(characters)) > 1_000:
            raise ValueError("too many characters")  # SQLite does not pass the message on
        return strip(str(text), str(characters))

    return trim


def _fetch(cursor: sqlite3.Cursor, row_limit: int) -> Rows:
    rows, size = [], 0
    for row in cursor:
        rows.append(row)
        size += len(row) + sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(rows) > row_limit:
            raise QueryError(f"stopped after {row_limit:,} rows")
        if size > MAX_RESULT:
            raise QueryError(f"stopped after {MAX_RESULT:,} bytes of results")
    return rows


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


_COMPARISONS = {"bag": _compare_bags, "set": _compare_sets}


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


def canonical(sql: str) -> str:
    """A form in which queries that differ only in case, spacing, quoting, aliases or operand order are equal.

    Never raises: what sqlglot cannot parse is compared as case-folded text.
    """
    try:
        if len(sql) > MAX_CANONICAL:
            raise ValueError("too long to parse")
        return _normalised(sqlglot.parse_one(sql, read="sqlite")).sql(dialect="sqlite", comments=False)
    except Exception:  # parse errors, RecursionError: `distinct` is no reason to fail
        return " ".join(sql.casefold().split()).rstrip("; ")


def _normalised(tree: exp.Expression) -> exp.Expression:
    for name in tree.find_all(exp.Identifier):
        name.set("this", name.this.casefold())
        name.set("quoted", False)
    for join in tree.find_all(exp.Join):
        join.set("kind", None if join.kind == "INNER" else join.args.get("kind"))
    _drop_aliases(tree)
    for node in reversed(list(tree.find_all(exp.EQ, exp.And, exp.Or))):  # children before parents
        if isinstance(node, exp.EQ):
            left, right = sorted((node.this, node.expression), key=str)
            node.set("this", left)
            node.set("expression", right)
        elif not isinstance(node.parent, type(node)):
            combine = exp.and_ if isinstance(node, exp.And) else exp.or_
            node.replace(combine(*sorted(node.flatten(), key=str)))
    return tree


def _drop_aliases(tree: exp.Expression) -> None:
    """Remove table aliases where each table occurs once, and names of output columns that nothing refers to."""
    tables, columns = list(tree.find_all(exp.Table)), list(tree.find_all(exp.Column))
    owner = {table.alias_or_name: table.name for table in tables}
    if len(owner) == len(tables) == len({*owner.values()}):
        for column in columns:
            table = owner.get(column.table, column.table)
            column.set("table", exp.to_identifier(table) if table and len(tables) > 1 else None)
        for table in tables:
            table.set("alias", None)
    referred = {column.name for column in columns}
    for output in tree.selects if isinstance(tree, exp.Select) else []:
        if isinstance(output, exp.Alias) and output.alias not in referred:
            output.replace(output.this)
