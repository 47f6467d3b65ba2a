import hashlib
import json
import re
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dphrl_lite.tasks import Problem, get, load_problems, sql_worker
from dphrl_lite.tasks.sql import Sql, canonical, extract

DATA = Path(__file__).resolve().parents[2] / "data"
QUESTIONS = load_problems(DATA / "sql" / "questions.jsonl")


@pytest.fixture(scope="module")
def task():
    return get("sql", databases=DATA / "sql" / "databases", time_limit=1.0)


def school(gold):
    return Problem("p", "", gold, {"db_id": "school"})


def database(folder, *statements):
    """A database `d` in `folder`, and the problems on it."""
    with sqlite3.connect(folder / "d.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return lambda gold: Problem("p", "", gold, {"db_id": "d"})


# --- agreement with the official evaluator, and the shipped questions ---------------------------------------------


def test_agrees_with_the_official_evaluator_on_every_published_verdict(shared_data):
    task = Sql(shared_data / "sql" / "databases")
    rows = [json.loads(line) for line in (shared_data / "sql/predictions/din_sql.jsonl").open(encoding="utf-8")]
    disagreements = []
    for row in rows:
        problem = Problem(row["id"], "", row["gold_sql"], {"db_id": row["db_id"]})
        verdict = task.verify(problem, f"```sql\n{row['predicted_sql']}\n```")
        if verdict.correct != row["correct"]:
            disagreements.append((row, verdict))
    assert len(rows) == 602
    assert not disagreements


@pytest.mark.parametrize("problem", QUESTIONS, ids=lambda problem: problem.id)
def test_shipped_question_tells_right_from_wrong(task, problem):
    right = [task.verify(problem, sql) for sql in [problem.answer, *problem.meta["also_right"]]]
    assert all(verdict.correct for verdict in right), right
    assert len({verdict.distinct for verdict in right}) == len(right)
    wrong = [task.verify(problem, sql) for sql in problem.meta["wrong"]]
    assert wrong
    assert not any(verdict.correct or "error" in verdict.reason for verdict in wrong), wrong


def test_shipped_questions_are_complete():
    assert len(QUESTIONS) >= 40
    assert {problem.meta["db_id"] for problem in QUESTIONS} == {"school", "library", "shop", "league"}
    assert sum(len(problem.meta["also_right"]) >= 1 for problem in QUESTIONS) > len(QUESTIONS) / 2
    for problem in QUESTIONS:
        assert "CREATE TABLE" in problem.prompt
        assert problem.meta["question"] in problem.prompt


def test_remaking_the_data_gives_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, str(DATA / "make_databases.py"), str(tmp_path)], check=True, capture_output=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 9
    for name, content in made.items():
        assert content == (DATA / "sql" / name).read_bytes(), f"{name} differs from the shipped file"


def test_shipped_foreign_keys_hold():
    for path in (DATA / "sql" / "databases").glob("*.sqlite"):
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.close()


# --- finding the query --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "query"),
    [
        ("First ```sql\nSELECT 1\n``` better ```SQL\nSELECT 2;\n``` done", "SELECT 2;"),
        ("```\nSELECT 1\n``` and then ```sql\nSELECT 2\n```, or ```\nSELECT 3\n```", "SELECT 3"),
        ("So:\n```\nSELECT 3\n```", "SELECT 3"),
        ("```SELECT 7```", "SELECT 7"),
        ("```python\nprint(1)\n```\nSELECT 4", "SELECT 4"),
        ("SELECT 5\n```\nThis is it", "SELECT 5"),
        ("SELECT 5\n```\nIts output:\n```\n1 row\n```", "SELECT 5"),
        ("```sql\nSELECT 6", "SELECT 6"),
        ("Here it is:\n  SELECT a\nFROM b;\nThis lists a.", "SELECT a\nFROM b;"),
        ("With the tables above we want\nSELECT 1", "SELECT 1"),
        ("with a as ( select 1 ) select * from a", "with a as ( select 1 ) select * from a"),
        ("select count ( * ) from student", "select count ( * ) from student"),
        ("SELECT 'a;b' -- not; here\n, \"c;d\" /* ; */;\nDone.", "SELECT 'a;b' -- not; here\n, \"c;d\" /* ; */;"),
        ("SELECT 1; DROP TABLE student", "SELECT 1; DROP TABLE student"),
        ("I do not know.", None),
        ("Answer: SELECT 9; It counts.", "SELECT 9;"),
        ("**SQL:** SELECT 10", "SELECT 10"),
        ("My plan: select rows.\nSELECT 11", "SELECT 11"),
        ("``` sql\nSELECT 12\n```", "SELECT 12"),
        ("```sql\n```", None),
        ("", None),
    ],
)
def test_extract(completion, query):
    assert extract(completion) == query


def test_word_level_output_is_judged(task):
    verdict = task.verify(school("SELECT COUNT(*) FROM student"), "select count ( * ) from student ;")
    assert verdict.correct
    assert verdict.reason == "same rows as the gold query"


# --- equality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("SELECT 1, 2", "SELECT 2, 1", True),
        ("SELECT 1, 2", "SELECT 1, 2, 2", False),
        ("SELECT 1 UNION ALL SELECT 1", "SELECT 1", False),
        ("SELECT 1 UNION ALL SELECT 2", "SELECT 2 UNION ALL SELECT 1", True),
        ("SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a", "SELECT 2 UNION ALL SELECT 1", False),
        ("SELECT 1 AS a, 3 UNION ALL SELECT 2, 4 order\nby a", "SELECT 3, 1 UNION ALL SELECT 4, 2", True),
        ("SELECT 1", "SELECT 1.0", True),
        ("SELECT 1", "SELECT '1'", False),
        ("SELECT NULL", "SELECT NULL", True),
        ("SELECT NULL", "SELECT 0", False),
        # each column has its match, but no one permutation of columns serves both rows
        ("SELECT 1, 2 UNION ALL SELECT 2, 1", "SELECT 1, 1 UNION ALL SELECT 2, 2", False),
        ("SELECT 0, 1, 2 UNION ALL SELECT 1, 0, 3", "SELECT 3, 0, 1 UNION ALL SELECT 2, 1, 0", True),
        ("SELECT name FROM student WHERE 0", "SELECT id, name FROM student WHERE 0", True),
        ("SELECT name FROM student WHERE 0", "SELECT id, name FROM student", False),
    ],
)
def test_bag_equality(task, gold, answer, correct):
    verdict = task.verify(school(gold), answer)
    assert verdict.correct is correct
    assert (verdict.distinct is not None) is correct


TWO = "SELECT 1 AS a UNION ALL SELECT 2 AS a"


@pytest.mark.parametrize(
    ("gold", "ordered"),
    [
        (f"{TWO} ORDER BY a", True),
        (f"{TWO}\nORDER\tBY a; -- done", True),
        (f"SELECT a FROM ({TWO}) ORDER BY (SELECT 1), a", True),
        (f"WITH t AS ({TWO}) SELECT a FROM t ORDER BY a", True),
        (TWO, False),
        (f"SELECT a FROM ({TWO} ORDER BY a)", False),
        (f"WITH t AS ({TWO} ORDER BY a) SELECT a FROM t", False),
        (f"SELECT a FROM ({TWO}) WHERE a IN (SELECT ((1)) UNION SELECT 2 ORDER BY 1)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM (SELECT 1 AS a UNION ALL SELECT 2)", False),
        ("SELECT row_number() OVER w FROM (SELECT 1 AS a UNION ALL SELECT 2) WINDOW w AS (ORDER BY a)", False),
        (f"SELECT a FROM ({TWO}) WHERE 'order by )' <> '('", False),
        (f'SELECT a AS "order by" FROM ({TWO})', False),
        (f"SELECT a AS [order by] FROM ({TWO})", False),
        (f"{TWO} -- order by a", False),
        (f"{TWO} /* order by a */", False),
    ],
)
def test_only_an_outer_order_by_makes_the_order_count(task, gold, ordered):
    right, backwards = "SELECT 1 UNION ALL SELECT 2", "SELECT 2 UNION ALL SELECT 1"
    assert task.verify(school(gold), right).correct
    assert task.verify(school(gold), backwards).correct is not ordered


def test_set_equality_is_birds_rule():
    task = Sql(DATA / "sql" / "databases", comparison="set")
    assert task.verify(school("SELECT 1 UNION ALL SELECT 1"), "SELECT 1").correct
    assert task.verify(school("SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a"), "SELECT 2 UNION ALL SELECT 1").correct
    assert not task.verify(school("SELECT 1, 2"), "SELECT 2, 1").correct


def test_matching_many_columns_is_exact_and_bounded(tmp_path):
    columns = ", ".join(f"(n * {step}) % 41 AS c{step}" for step in range(1, 41))
    rotated = ", ".join(f"(n * {step}) % 41 AS c{step}" for step in range(40, 0, -1))
    numbers = "WITH RECURSIVE t(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t WHERE n < 40) SELECT {} FROM t"
    task, problem = Sql(tmp_path), database(tmp_path)
    start = time.monotonic()
    assert task.verify(problem(numbers.format(columns)), numbers.format(rotated)).correct
    broken = rotated.replace("(n * 7) % 41", "(n * 7 + (n = 3) - (n = 9)) % 41")
    assert not task.verify(problem(numbers.format(columns)), numbers.format(broken)).correct
    assert time.monotonic() - start < 60  # the limit is a second or so; unbounded without it


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("SELECT name FROM student LIMIT 3", "returned 3 rows where the gold query returns 30"),
        ("SELECT name, id FROM student", "returned 2 columns where the gold query returns 1"),
        ("SELECT id FROM student", "rows differ"),
        ("SELECT foo FROM student", "SQL error: no such column: foo"),
        ("SELECT name FROM student ORDER BY id DESC", "same rows in another order"),
        ("no idea", "no SQL found in the completion"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        (f"SELECT '{'a' * 100_000}'", "too long"),
        ("word " * 200_001, "too long"),
        ("```sql\nDELETE FROM student\n```", "not allowed: only reading is permitted"),
    ],
)
def test_reason_says_what_was_wrong(task, answer, reason):
    assert task.verify(school("SELECT name FROM student ORDER BY id"), answer).reason.startswith(reason)


def test_text_that_is_not_utf8_is_read_as_the_official_evaluator_reads_it(tmp_path):
    problem = database(tmp_path, "CREATE TABLE t (a TEXT)", "INSERT INTO t VALUES (CAST(X'63616661E9' AS TEXT))")
    assert Sql(tmp_path).verify(problem("SELECT a FROM t"), "SELECT 'cafa'").correct


# --- canonical forms ----------------------------------------------------------------------------------------------


SAME = {
    "case, quotes, spaces": ("SELECT name FROM t WHERE x = 1", 'select  "NAME"\nfrom [T] where X = 1 ;'),
    "comment": ("SELECT name FROM t", "SELECT name /* the name */ FROM t -- done"),
    "table alias": ("SELECT name FROM t", "SELECT T1.name FROM t AS T1"),
    "aliases in a join": ("SELECT t.x FROM t JOIN u ON t.i = u.i", "SELECT a.x FROM t AS a JOIN u b ON a.i = b.i"),
    "aliases in a self-join": ("SELECT a.x FROM t a JOIN t b ON a.y < b.y", "SELECT p.x FROM t p JOIN t q ON p.y < q.y"),
    "aliases on both sides of UNION": ("SELECT a.x FROM t a UNION SELECT a.x FROM u a", "SELECT x FROM t UNION SELECT x FROM u"),
    "alias in a correlated subquery": (
        "SELECT x FROM t AS a WHERE EXISTS (SELECT 1 FROM u WHERE u.i = a.i)",
        "SELECT b.x FROM t AS b WHERE EXISTS (SELECT 1 FROM u AS c WHERE c.i = b.i)",
    ),
    "name of a CTE": ("WITH q AS (SELECT 1 AS a) SELECT q.a FROM q", "WITH r AS (SELECT 1 AS a) SELECT a FROM r"),
    "name of a column": ("SELECT COUNT(*) FROM t", "SELECT COUNT(*) AS how_many FROM t"),
    "ORDER BY an alias": ("SELECT SUM(y) AS n FROM t GROUP BY x ORDER BY n", "SELECT SUM(y) FROM t GROUP BY x ORDER BY SUM(y)"),
    "a string in double quotes": ("SELECT x FROM t WHERE c = 'France'", 'SELECT x FROM t WHERE c = "France"'),
    "operands of =": ("SELECT x FROM t WHERE a = b", "SELECT x FROM t WHERE b = a"),
    "operands of AND": ("SELECT x FROM t WHERE a = 1 AND b = 2 AND c = 3", "SELECT x FROM t WHERE (c = 3 AND 1 = a) AND b = 2"),
    "operands of OR": ("SELECT x FROM t WHERE a = 1 OR b = 2", "SELECT x FROM t WHERE (b = 2) OR (a = 1)"),
    "operands of +": ("SELECT a + b FROM t", "SELECT b + a FROM t"),
    "the other comparison": ("SELECT x FROM t WHERE a > 1 AND b >= c", "SELECT x FROM t WHERE 1 < a AND c <= b"),
    "<> and !=": ("SELECT x FROM t WHERE a <> 1", "SELECT x FROM t WHERE a != 1"),
    "IN list": ("SELECT x FROM t WHERE a IN (1, 2)", "SELECT x FROM t WHERE a IN (2, 1)"),
    "BETWEEN": ("SELECT x FROM t WHERE b = 1 AND a BETWEEN 1 AND 2", "SELECT x FROM t WHERE a >= 1 AND a <= 2 AND b = 1"),
    "order of inner joins": (
        "SELECT t.x FROM t JOIN u ON t.i = u.i JOIN v ON u.j = v.j",
        "SELECT a.x FROM v AS c INNER JOIN u AS b ON b.j = c.j JOIN t AS a ON a.i = b.i",
    ),
    "comma join": ("SELECT t.x FROM t JOIN u ON t.i = u.i WHERE t.y = 1", "SELECT t.x FROM t, u WHERE t.y = 1 AND t.i = u.i"),
    "LEFT OUTER": ("SELECT t.x FROM t LEFT JOIN u ON t.i = u.i", "SELECT t.x FROM t LEFT OUTER JOIN u ON u.i = t.i"),
    "ASC": ("SELECT x FROM t ORDER BY x", "SELECT x FROM t ORDER BY x ASC"),
}  # fmt: skip
DIFFERENT = {
    "case of a string": ("SELECT x FROM t WHERE c = 'X'", "SELECT x FROM t WHERE c = 'x'"),
    "another column or table": ("SELECT x FROM t", "SELECT x FROM u"),
    "IN and JOIN": ("SELECT x FROM t WHERE i IN (SELECT i FROM u)", "SELECT t.x FROM t JOIN u ON t.i = u.i"),
    "IN and EXISTS": ("SELECT 1 FROM t WHERE i IN (SELECT j FROM u)", "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE j)"),
    "EXCEPT and NOT IN": ("SELECT i FROM t EXCEPT SELECT i FROM u", "SELECT i FROM t WHERE i NOT IN (SELECT i FROM u)"),
    "MAX and ORDER BY LIMIT": ("SELECT MAX(x) FROM t", "SELECT x FROM t ORDER BY x DESC LIMIT 1"),
    "DISTINCT and GROUP BY": ("SELECT DISTINCT x FROM t", "SELECT x FROM t GROUP BY x"),
    "CTE and subquery": ("WITH q AS (SELECT x FROM t) SELECT x FROM q", "SELECT x FROM (SELECT x FROM t)"),
    "inner and left join": ("SELECT t.x FROM t JOIN u ON t.i = u.i", "SELECT t.x FROM t LEFT JOIN u ON t.i = u.i"),
    "order of left joins": ("SELECT t.x FROM t LEFT JOIN u ON t.i = u.i", "SELECT t.x FROM u LEFT JOIN t ON t.i = u.i"),
    "which side of a self-join": ("SELECT a.x FROM t a JOIN t b ON a.y < b.y", "SELECT b.x FROM t a JOIN t b ON a.y < b.y"),
    "which table of a correlated subquery": (
        "SELECT x FROM t a WHERE y > (SELECT AVG(y) FROM t b WHERE b.i = a.i)",
        "SELECT x FROM t a WHERE y > (SELECT AVG(y) FROM t b WHERE b.i = b.i)",
    ),
    "operands of -": ("SELECT a - b FROM t", "SELECT b - a FROM t"),
    "whole division": ("SELECT a / b * c FROM t", "SELECT c * a / b FROM t"),
    "strict comparison": ("SELECT x FROM t WHERE a > 1", "SELECT x FROM t WHERE a >= 1"),
    "NOT BETWEEN": ("SELECT x FROM t WHERE a NOT BETWEEN 1 AND 2", "SELECT x FROM t WHERE NOT a >= 1 AND a <= 2"),
    "AND before OR": ("SELECT x FROM t WHERE a OR b AND c", "SELECT x FROM t WHERE (a OR b) AND c"),
    "direction": ("SELECT x FROM t ORDER BY x", "SELECT x FROM t ORDER BY x DESC"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_a_person_calls_the_same_query_has_the_same_canonical_form(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_way_to_the_answer_has_another_canonical_form(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "not ( sql",
        "\0",
        "SELECT " + "(" * 3000,
        "SELECT " + "NOT " * 1200 + "1",
        "SELECT 1 WHERE a" + " BETWEEN 1 AND 2" * 250,
    ],
)
def test_canonical_never_raises(sql):
    assert isinstance(canonical(sql), str)


# --- hostile input ------------------------------------------------------------------------------------------------

ENDLESS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT {} FROM t"
DOUBLING = "".join(f", t{i + 1} AS (SELECT a FROM t{i} UNION ALL SELECT a FROM t{i})" for i in range(40))
A, B = "printf('%.900000c', 'a')", "printf('%.900000c', 'b')"
HOSTILE = {
    "empty": "",
    "nul": "\0",
    "nul in query": "SELECT name\0 FROM student",
    "lone surrogate": "SELECT '\ud800' FROM student",
    "invalid bytes": b"SELECT '\xff\xfe'".decode(errors="surrogateescape"),
    "two statements": "SELECT name FROM student; SELECT 1",
    "drop after select": "SELECT name FROM student; DROP TABLE student",
    "comment then drop": "SELECT name FROM student; -- x\nDROP TABLE student",
    "10 MB literal": f"SELECT '{'a' * 10_000_000}'",
    "10 MB of fences": "```" * 3_300_000,
    "10 MB of WITH": "with\na (\n" * 1_100_000,
    "brackets after a colon": ":" + "(" * 900_000,
    "colons": ": *" * 300_000,
    "10 MB of brackets": "(" * 10_000_000,
    "endless rows": ENDLESS.format("n"),
    "endless sum": ENDLESS.format("SUM(n)"),
    "cross join": "SELECT COUNT(*) FROM " + ", ".join(f"enrollment AS e{i}" for i in range(9)),
    "sorted cross join": f"SELECT * FROM {', '.join(f'student AS s{i}' for i in range(6))} ORDER BY s0.name",
    "CTE doubling": f"WITH t0 AS (SELECT 1 AS a){DOUBLING} SELECT COUNT(*) FROM t40",
    "CTE doubling, fenced and quoted": f"```sql\nWITH/**/[t0] AS/**/(SELECT 1 AS a){DOUBLING} SELECT 1 FROM t40\n```",
    "CTE doubling under odd names": re.sub(
        r"t(\d+)", r'"t - \1"', f"WITH t0 AS (SELECT 1 AS a){DOUBLING} SELECT 1 FROM t40"
    ),
    "slow trim": f"SELECT TRIM({B}, substr({A}, 1, 80000) || 'b')",
    "slow instr": f"SELECT INSTR({A}, substr({A}, 1, 500000) || 'b')",
    "slow LIKE": f"SELECT name FROM student WHERE {A} LIKE '{'%a' * 20}%b'",
    "slow GLOB": f"SELECT name FROM student WHERE {A} GLOB '{'*a' * 20}*b'",
    "slow replace": f"SELECT COUNT(REPLACE({A}, substr({A}, 1, 500000) || 'b', 'c')) FROM student",
    "chance": "SELECT name FROM student ORDER BY RANDOM()",
    "huge value": "SELECT zeroblob(900000000)",
    "huge rows": "SELECT zeroblob(999999) FROM student AS a, student AS b, student AS c",
    "huge text": "SELECT hex(zeroblob(400000)) FROM student AS a, student AS b, student AS c",
    "many columns": f"SELECT {', '.join('1' * 5000)}",
    "deep nesting": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "many NOTs": "SELECT 1 WHERE " + "NOT " * 20_000 + "1",
    "patterns": f"SELECT name FROM student WHERE name LIKE '{'%a' * 20_000}'",
    "attach": "```sql\nATTACH 'evil.db' AS evil\n```",
    "vacuum into": "```sql\nVACUUM INTO 'evil.db'\n```",
    "pragma": "```sql\nPRAGMA journal_mode = WAL\n```",
    "pragma function": "SELECT * FROM pragma_database_list",
    "temp table": "```sql\nCREATE TEMP TABLE x AS SELECT 1\n```",
    "transaction": "```sql\nBEGIN EXCLUSIVE\n```",
    "update": "```sql\nUPDATE student SET name = ''\n```",
    "update in WITH": "WITH a AS (SELECT 1) UPDATE student SET name = ''",
    "load_extension": "SELECT load_extension('evil')",
    "readfile": "SELECT readfile('/etc/passwd')",
    "writefile": "SELECT writefile('evil.db', 'x')",
    "fts3_tokenizer": "SELECT fts3_tokenizer('simple')",
}


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE)
def test_hostile_completion_is_judged_wrong_in_bounded_time(task, completion, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before, start = hashes(task.databases), time.monotonic()
    verdict = task.verify(school("SELECT name FROM student"), completion)
    assert time.monotonic() - start < 60  # unbounded without the guard
    assert not verdict.correct
    assert verdict.reason
    assert verdict.distinct is None
    assert hashes(task.databases) == before
    assert not list(tmp_path.iterdir())


def test_steps_are_limited_by_number_and_the_gold_query_gives_the_scale(task):
    verdict = task.verify(school("SELECT 1"), ENDLESS.format("SUM(n)"))
    assert verdict.reason == "stopped after 10,000,000 steps"
    count = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t LIMIT {}) SELECT COUNT(*) {} FROM t"
    strict = Sql(DATA / "sql" / "databases", step_limit=1)
    judge = lambda factor: strict.verify(school(count.format(10_000, "")), count.format(factor * 10_000, f"/ {factor}"))
    assert judge(8).correct  # eight times the gold query's steps, which may be ten times as many
    assert judge(12).reason.startswith("stopped after")
    assert judge(12) == judge(12)


def test_a_single_step_that_takes_for_ever_is_stopped_by_the_time_limit_and_the_next_query_is_judged(task):
    assert task.verify(school("SELECT 1"), HOSTILE["slow trim"]).reason == "stopped after 1 s"
    assert task.verify(school("SELECT 1"), "SELECT 1").correct


def test_memory_is_limited():
    task = Sql(DATA / "sql" / "databases", time_limit=60)
    assert task.verify(school("SELECT 1"), HOSTILE["CTE doubling"]).reason == "stopped: more than 256 MB of memory"
    wide = f"SELECT a.name, substr({A}, 1, 900000 + b.id) AS big FROM student AS a, student AS b ORDER BY big, a.name"
    assert task.verify(school("SELECT 1, 2"), wide).reason == "stopped: more than 256 MB of memory"


def test_a_result_that_depends_on_chance_is_refused(task):
    verdict = task.verify(school("SELECT 1"), "SELECT random() IS NOT NULL")
    assert verdict.reason == "not allowed: the result would depend on chance"


def test_a_row_limit_stops_long_results(task):
    assert task.verify(school("SELECT 1"), ENDLESS.format("n")).reason == "stopped after 10,000 rows"


def test_many_ctes_that_use_each_other_once_are_fine(task):
    chain = ", ".join(f"t{i + 1} AS (SELECT t{i}.a FROM t{i} WHERE t{i}.a > 0)" for i in range(30))
    assert task.verify(school("SELECT 1"), f"WITH t0 AS (SELECT 1 AS a), {chain} SELECT t30.a FROM t30").correct


def test_a_batch_gives_the_verdicts_of_verify_in_order():
    jobs = [(problem, sql) for problem in QUESTIONS for sql in [problem.answer, *problem.meta["wrong"]]]
    jobs[5:5] = [(QUESTIONS[0], HOSTILE["slow trim"]), (QUESTIONS[0], HOSTILE["endless sum"])]
    task = Sql(DATA / "sql" / "databases", time_limit=1, workers=3)
    verdicts = task.verify_all(iter(jobs))
    assert verdicts == [task.verify(*job) for job in jobs]
    assert [verdict.answer for verdict in verdicts] == [extract(sql) for _, sql in jobs]


def test_threads_can_share_a_task():
    task = Sql(DATA / "sql" / "databases")
    jobs = [(problem, sql) for problem in QUESTIONS for sql in [problem.answer, *problem.meta["also_right"]]] * 3
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda job: task.verify(*job).correct, jobs))


# --- broken problems ----------------------------------------------------------------------------------------------


def test_both_folder_layouts_are_found(tmp_path):
    (tmp_path / "d").mkdir()
    problem = database(tmp_path / "d", "CREATE TABLE t (a)")
    assert get("sql", databases=tmp_path).verify(problem("SELECT COUNT(*) FROM t"), "SELECT 0").correct


def test_rows_in_a_write_ahead_log_are_not_silently_left_out(tmp_path):
    problem = database(tmp_path, "CREATE TABLE t (a)")
    with sqlite3.connect(tmp_path / "d.sqlite") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        with pytest.raises(ValueError, match=r"problem 'p' needs database 'd'.*d\.sqlite-wal.*wal_checkpoint"):
            get("sql", databases=tmp_path).verify(problem("SELECT COUNT(*) FROM t"), "SELECT 0")
    connection.close()  # moves the rows
    assert get("sql", databases=tmp_path).verify(problem("SELECT COUNT(*) FROM t"), "SELECT 1").correct


def test_missing_folder_and_database_name_their_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*make_databases"):
        Sql(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as error:
        Sql(tmp_path).verify(school("SELECT 1"), "SELECT 1")
    assert str(tmp_path / "school.sqlite") in str(error.value).replace("\\\\", "\\")
    assert str(tmp_path / "school" / "school.sqlite") in str(error.value).replace("\\\\", "\\")


def test_unknown_comparison_lists_the_known_ones():
    with pytest.raises(ValueError, match="bag, set"):
        Sql(DATA / "sql" / "databases", comparison="bags")


@pytest.mark.parametrize("gold", ["SELECT nothing FROM student", "DROP TABLE student", ENDLESS.format("n")])
def test_failing_gold_query_names_the_problem(task, gold):
    with pytest.raises(ValueError, match="gold query of problem 'p'"):
        task.verify(school(gold), "SELECT 1")


def test_problem_without_database_or_answer_is_an_error(task):
    with pytest.raises(ValueError, match="names no database"):
        task.verify(Problem("p", "", "SELECT 1"), "SELECT 1")
    with pytest.raises(ValueError, match="has no answer"):
        task.verify(school(" "), "SELECT 1")


def test_gold_query_that_takes_for_ever_names_the_problem(task):
    with pytest.raises(ValueError, match=r"gold query of problem 'p' .*stopped after 1 s"):
        task.verify(school(HOSTILE["slow trim"]), "SELECT 1")


@pytest.mark.parametrize(
    "limit", [{"time_limit": 0}, {"time_limit": -1.0}, {"row_limit": 0}, {"step_limit": 0}, {"workers": 0}]
)
def test_limits_that_let_nothing_pass_are_errors(limit):
    with pytest.raises(ValueError, match=f"{next(iter(limit))}=.*expected"):
        Sql(DATA / "sql" / "databases", **limit)


def test_partial_credit_by_hand():
    gold = [(1, "a"), (2, "b")]
    assert sql_worker.partial_credit(gold, [("b", 1), ("a", 2)]) == pytest.approx(0.8)  # both columns, in any order
    assert sql_worker.partial_credit(gold, [(1,), (2,), (2,)]) == pytest.approx(
        0.8 * 1 / 2
    )  # one of two, as one column
    assert sql_worker.partial_credit(gold, [(1, 9, 8), (2, 9, 8)]) == pytest.approx(0.8 * 1 / 6)
    assert sql_worker.partial_credit(gold, [(3, "c")]) == sql_worker.partial_credit(gold, []) == 0
    assert sql_worker.partial_credit([], gold) == 0


def test_partial_credit_is_a_reward_and_no_verdict(task):
    strict, lenient = task, get("sql", databases=task.databases, time_limit=1.0, partial_credit=True)
    problem = school("SELECT name, grade FROM student")
    near, far = "```sql\nSELECT grade FROM student\n```", "```sql\nSELECT 1 FROM nowhere\n```"
    right = f"```sql\n{problem.answer}\n```"
    assert [lenient.verify(problem, text).correct for text in (near, far, right)] == [False, False, True]
    assert [lenient.verify(problem, text).reward for text in (near, far, right)] == [pytest.approx(0.4), 0, 1]
    assert [strict.verify(problem, text).reward for text in (near, far, right)] == [0, 0, 1]
    assert lenient.verify(problem, near).reason == strict.verify(problem, near).reason
    assert lenient.identity() == strict.identity() | {"partial_credit": True}


def test_gold_results_are_cached(monkeypatch):
    runs, run = [], sql_worker.run
    monkeypatch.setattr(sql_worker, "limit_time", lambda seconds: None)  # it ends the process
    monkeypatch.setattr(
        sql_worker, "run", lambda uri, sql, *rest, **more: runs.append(sql) or run(uri, sql, *rest, **more)
    )
    uri, limits = (DATA / "sql/databases/school.sqlite").as_uri(), {"time_limit": 5, "row_limit": 9, "step_limit": 1000}
    for _ in range(2):
        assert sql_worker.judge(uri, "SELECT 7", "SELECT 7 AS x", "bag", limits) == {"wrong": None}
    assert runs == ["SELECT 7", "SELECT 7 AS x", "SELECT 7 AS x"]


def test_a_changed_database_is_another_task(tmp_path):
    def database(folder, value):
        folder.mkdir(parents=True)
        with sqlite3.connect(folder / "one.sqlite") as connection:
            connection.execute("CREATE TABLE t (x)")
            connection.execute("INSERT INTO t VALUES (?)", (value,))
        connection.close()
        return get("sql", databases=folder)

    first, copied = (database(tmp_path / name / "databases", 1) for name in ("a", "b"))
    assert first.identity() == copied.identity()
    with sqlite3.connect(tmp_path / "b" / "databases" / "one.sqlite") as connection:
        connection.execute("UPDATE t SET x = 2")
    connection.close()
    assert first.identity() != copied.identity()
