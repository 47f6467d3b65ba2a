"""Text-to-SQL on SQLite: run the model's query and the gold query, and compare what they return.

Here: the verdict, and a canonical form that tells two right queries apart. Not here: finding the query in a completion
(`sql_answers.py`), running and comparing (`sql_worker.py`, in a process that can be killed), questions (`problems.py`).
"""

import hashlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import sqlglot
from sqlglot import exp

from dphrl_lite.errors import unknown
from dphrl_lite.tasks.base import Problem, Task, Verdict
from dphrl_lite.tasks.problems import find_database
from dphrl_lite.tasks.sql_answers import extract
from dphrl_lite.tasks.sql_worker import COMPARISONS
from dphrl_lite.tasks.worker import WorkerError, Workers

MAX_COMPLETION = 1_000_000  # characters; a model writes less
MAX_SQL = 100_000  # characters of one query
MAX_CANONICAL = 5_000  # characters of a query that is still parsed for `distinct`


class Sql(Task):
    """Judges SQL by what it returns: `problem.answer` is the gold query, `problem.meta["db_id"]` names the database.

    A query is stopped after `step_limit` steps of SQLite's virtual machine, or ten times the gold query's own steps if
    that is more: a count that (for one version of SQLite) depends neither on the machine nor on its load, so that a
    resumed run gives the rewards of an uninterrupted one. Ten million steps take .1 to 1 s. `time_limit` is the backstop
    for a step that is slow itself, such as a search inside a 1 MB string. Functions of time are told one and the same.
    """

    name = "sql"

    def __init__(
        self,
        databases=None,
        comparison="bag",
        time_limit=5.0,
        row_limit=10_000,
        step_limit=10_000_000,
        workers=None,
        partial_credit=False,
    ):
        """Set up a verifier for the databases in one folder.

        `databases` is a folder that holds `<db_id>.sqlite` or `<db_id>/<db_id>.sqlite`. `comparison="bag"` is Spider's
        rule: equal bags of rows under some order of the columns, the row order counting only where the gold query has
        ORDER BY. `"set"` is BIRD's rule: equal sets of rows, columns as they stand. `time_limit` is in seconds of processor
        time for each query, the gold query too; `workers`: processes that `verify_all` uses (None: at most 4).
        `partial_credit`: a wrong query whose result shares columns with the gold query's has a reward of up to .8, as in
        the paper's release (`sql_worker.partial_credit`); what is correct stays the same.

        Raises:
            FileNotFoundError: a missing folder.
            ValueError: no folder, an unknown comparison, a limit that lets nothing pass.
        """
        if databases is None:
            raise ValueError("the sql task needs its databases: get('sql', databases='data/sql/databases')")
        self.databases = Path(databases)
        if not self.databases.is_dir():
            raise FileNotFoundError(
                f"no folder of databases at {str(databases)!r}; expected one that holds <db_id>.sqlite files: "
                "check the path, or make the shipped databases with `python data/make_databases.py`"
            )
        if comparison not in COMPARISONS:
            raise unknown("comparison", comparison, COMPARISONS)
        self.limits = {"time_limit": float(time_limit), "row_limit": int(row_limit), "step_limit": int(step_limit)}
        if not time_limit > 0 or row_limit < 1 or step_limit < 1:
            raise ValueError(
                f"time_limit={time_limit}, row_limit={row_limit}, step_limit={step_limit}: expected seconds over 0 and "
                "at least 1 row and 1 step; the defaults are 5.0, 10_000 and 10_000_000"
            )
        self.comparison, self.workers = comparison, Workers("dphrl_lite.tasks.sql_worker", workers)
        self.partial_credit = bool(partial_credit)

    def identity(self) -> dict:
        """Name, databases and rules. A file's size and header stand for it: SQLite counts each change in the header."""
        told, hasher = {"databases": self.databases.name, "comparison": self.comparison}, hashlib.sha256()
        for path in sorted(self.databases.rglob("*.sqlite")):
            with path.open("rb") as file:
                header = file.read(100)
            hasher.update(repr((path.relative_to(self.databases).as_posix(), path.stat().st_size, header)).encode())
        told |= {"partial_credit": True} if self.partial_credit else {}
        return super().identity() | told | {"database_files": hasher.hexdigest()[:16]} | self.limits

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Run the query in `completion` and compare its rows with the gold query's.

        Raises `FileNotFoundError` for a missing database and `ValueError` for a gold query that fails.
        """
        sql = extract(completion) if len(completion) <= MAX_COMPLETION else None
        wrong = None if sql else "no SQL found in the completion"
        if len(sql or completion) > (MAX_SQL if sql else MAX_COMPLETION):
            wrong = f"too long: at most {MAX_COMPLETION:,} characters of text and {MAX_SQL:,} of SQL are read"
        found = {}
        try:
            found = self._judge(problem, None if wrong else sql)
            wrong = found["wrong"] or wrong
        except WorkerError as error:
            self._judge(problem, None)  # raises if the gold query is to blame
            wrong = str(error)
        if wrong:
            return Verdict(False, sql, wrong, partial=found.get("partial", 0.0))
        return Verdict(True, sql, "same rows as the gold query", canonical(sql))

    def own_verdict(self, problem: Problem) -> Verdict:
        """The verdict on the gold query itself."""
        return self.verify(problem, f"```sql\n{problem.answer}\n```")

    def _judge(self, problem: Problem, sql: str | None) -> dict:
        """What is "wrong" with `sql`, or None, and its "partial" credit; without `sql`, only the gold query is run."""
        path = find_database(self.databases, problem.meta.get("db_id"), f"problem {problem.id!r}")
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        seconds, request = self.limits["time_limit"], {"uri": uri, "gold": str(problem.answer), "sql": sql}
        request |= {"partial": True} if self.partial_credit else {}
        try:
            found = self.workers.ask(seconds, **request, comparison=self.comparison, limits=self.limits)
        except WorkerError as error:
            if sql is not None:
                raise
            found = {"gold": str(error)}
        if "gold" in found:
            raise ValueError(
                f"the gold query of problem {problem.id!r} gives no result on {path} to compare with "
                f"({found['gold']}); correct its `answer` or that file, raise the limits, or drop the problem"
            )
        return found


# ---- which queries are the same solution -----------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def canonical(sql: str) -> str:
    """A form that is equal for queries which a person would call the same solution, as far as their text tells.

    The same: other case, spacing, quotes, aliases, comments; operands of =, <>, +, *, AND, OR and IN lists in another
    order; `a > b` and `b < a`; BETWEEN and its two comparisons; inner joins in another order, or with their conditions
    in WHERE; ORDER BY an output column's alias or its expression. Another solution: anything else, such as a subquery
    for a join, EXISTS for IN, or MAX for ORDER BY ... LIMIT 1. Never raises: what sqlglot cannot parse is compared as
    case-folded text.
    """
    try:
        if len(sql) > MAX_CANONICAL:
            raise ValueError("too long to parse")
        return _text(_normalised(sqlglot.parse_one(sql, read="sqlite")))
    except Exception:  # parse errors, RecursionError: `distinct` is no reason to fail
        return " ".join(sql.casefold().split()).rstrip("; ")


def _text(tree: exp.Expression) -> str:
    return tree.sql(dialect="sqlite", comments=False, copy=False)


def _normalised(tree: exp.Expression) -> exp.Expression:
    kinds = {kind: [] for kind in (exp.Identifier, exp.Column, exp.Select, exp.CTE)}
    for node in tree.walk():  # breadth first: a SELECT before those inside it; walking is what costs time
        kinds.get(type(node), []).append(node)
    for name in kinds[exp.Identifier]:
        quoted, column = name.args.get("quoted"), name.parent
        # SQLite reads "France" as a string where no column has that name
        if quoted and isinstance(column, exp.Column) and not column.table and column.arg_key == "expression":
            column.replace(exp.Literal.string(name.this))
        name.set("this", name.this.casefold())
        name.set("quoted", False)
    columns = [column for column in kinds[exp.Column] if column.parent]
    _rename_sources(kinds[exp.Select], kinds[exp.CTE], columns)
    _drop_output_aliases(kinds[exp.Select], columns)
    for select in kinds[exp.Select]:
        _merge_inner_joins(select)
    nodes = list(tree.walk())
    for node in nodes:  # exp.and_ and exp.or_ put back those parentheses that are needed
        if isinstance(node, exp.Paren) and isinstance(node.parent, _CONDITIONS) and not isinstance(node.this, exp.Or):
            node.replace(node.this)
    for node in reversed(nodes):  # children before parents
        if isinstance(node, _REWRITES):
            _rewrite(node)
    return tree


def _sources(select: exp.Select) -> list[exp.Expression]:
    start = [clause.this for clause in select.args.values() if isinstance(clause, exp.From)]
    return start + [join.this for join in select.args.get("joins") or []]


def _rename_sources(selects: list[exp.Select], ctes: list[exp.CTE], columns: list[exp.Column]) -> None:
    """Name each table in FROM after itself, numbered where it occurs again, and likewise CTEs and subqueries."""
    cte_names = {cte.alias: f"cte_{number}" for number, cte in enumerate(ctes)}
    for cte in ctes:
        cte.args["alias"].set("this", exp.to_identifier(cte_names[cte.alias]))
    scopes, taken = {}, {None: ()}
    for select in selects:
        outer = select.find_ancestor(exp.Select)
        scope, used = {}, Counter(taken[outer and id(outer)])
        scopes[id(select)], taken[id(select)] = scope, used
        for source in _sources(select):
            table = cte_names.get(source.name, source.name) if isinstance(source, exp.Table) else "subquery"
            used[table] += 1
            name = scope[source.alias_or_name] = table if used[table] == 1 else f"{table}_{used[table]}"
            source.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
            if source.name in cte_names:
                source.set("this", exp.to_identifier(table))
    for column in columns:
        own = select = column.find_ancestor(exp.Select)
        while column.table and select and column.table not in scopes[id(select)]:
            select = select.find_ancestor(exp.Select)
        if column.table and select:
            alone = select is own and len(scopes[id(own)]) == 1
            column.set("table", None if alone else exp.to_identifier(scopes[id(select)][column.table]))


def _drop_output_aliases(selects: list[exp.Select], columns: list[exp.Column]) -> None:
    """Write expressions for aliases in ORDER BY, and drop the aliases that nothing else refers to."""
    for select in selects:
        aliased = {output.alias: output.this for output in select.selects if isinstance(output, exp.Alias)}
        order = select.args.get("order") if aliased else None
        for column in list(order.find_all(exp.Column)) if order else []:
            if not column.table and column.name in aliased:
                column.replace(aliased.pop(column.name).copy())  # once, so that no expression grows without end
    referred = {column.name for column in columns if column.parent}
    for output in [output for select in selects for output in select.selects]:
        if isinstance(output, exp.Alias) and output.alias not in referred:
            output.replace(output.this)


def _merge_inner_joins(select: exp.Select) -> None:
    """List the tables of inner joins in one order, their conditions in WHERE; leave a SELECT with other joins as it is."""
    joins = select.args.get("joins")
    if not joins:
        return
    plain = {"this", "on", "kind"}
    if any({key for key, value in join.args.items() if value} - plain for join in joins):
        for join in joins:
            join.set("kind", None if join.kind in ("INNER", "OUTER") else join.args.get("kind"))
        return
    conditions = [join.args["on"] for join in joins if join.args.get("on")]
    first, *others = sorted(_sources(select), key=_text)
    for clause in list(select.args.values()):
        if isinstance(clause, exp.From):
            clause.set("this", first)
    select.set("joins", [exp.Join(this=source) for source in others])
    if conditions:
        select.where(*conditions, copy=False)


_CONDITIONS = (exp.And, exp.Or, exp.Where, exp.Having, exp.Join, exp.Paren)
_SORTED = (exp.EQ, exp.NEQ, exp.Add, exp.Mul)
_REWRITES = (*_SORTED, exp.GT, exp.GTE, exp.Between, exp.In, exp.And, exp.Or, exp.Ordered)


def _rewrite(node: exp.Expression) -> None:
    if isinstance(node, exp.Between):
        if not isinstance(node.this, exp.Column):
            return  # a copy of one BETWEEN inside another would double at each level
        low, high = exp.LTE(this=node.args["low"], expression=node.this.copy()), node.this <= node.args["high"]
        both = exp.And(this=low, expression=high)
        node.replace(both if isinstance(node.parent, _CONDITIONS) else exp.Paren(this=both))
    elif isinstance(node, exp.GT | exp.GTE):
        node.replace((exp.LT if isinstance(node, exp.GT) else exp.LTE)(this=node.expression, expression=node.this))
    elif isinstance(node, exp.In):
        node.set("expressions", sorted(node.expressions, key=_text))
    elif isinstance(node, exp.Ordered):
        node.set("desc", node.args.get("desc") or None)  # ASC is the default
    elif isinstance(node, _SORTED):
        left, right = sorted((node.this, node.expression), key=_text)
        node.set("this", left)
        node.set("expression", exp.Paren(this=right) if isinstance(right, exp.Binary) else right)
    elif not isinstance(node.parent, type(node)):
        combine = exp.and_ if isinstance(node, exp.And) else exp.or_
        node.replace(combine(*sorted(node.flatten(), key=_text), copy=False))
