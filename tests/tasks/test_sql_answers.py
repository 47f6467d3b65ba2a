"""Where queries stand in completions: gold queries of Spider's development set in every wrapping that people write."""

import json
import sqlite3
import time

import pytest

from dphrl_lite.tasks import Problem, get, load_problems
from dphrl_lite.tasks.sql_answers import extract

WRAPPINGS = {
    "plain": "{q}",
    "fence": "```sql\n{q}\n```",
    "fence3": "Here:\n```sqlite3\n{q}\n```\nThis query picks `name` from `t`; SELECT chooses.",
    "tilde": "~~~sql\n{q}\n~~~",
    "nolabel": "```\n{q}\n```",
    "answer": "<answer>{q}</answer>",
    "answernl": "text\n<answer>\n{q};\n</answer>",
    "answerfence": "<answer>\n```sql\n{q}\n```\n</answer>",
    "sql": "<sql>{q}</sql>",
    "query": "<query>\n{q}\n</query>",
    "inline": "The query is `{q}`.",
    "inline2": "Use ``{q}`` here.",
    "inline3": "We use `SELECT` and `name`. The query: `{q}`\n\nThe `SELECT` part picks names.",
    "final": "Final answer: {q}",
    "final2": "```sql\nSELECT 1\n```\nFinal answer: {q}",
    "final3": "First I tried SELECT 1.\n\n**Final Answer:**\n{q}",
    "finalis": "The final answer is: {q}",
    "finalsql": "Final SQL: {q}",
    "finaltick": "Final answer: `{q}`",
    "later": "```sql\nSELECT 1\n```\nCorrected:\n```\n{q}\n```",
    "latersqlite": "```sql\nSELECT 1\n```\nFinal:\n```sqlite\n{q}\n```",
    "prose_before": "Select the names of all customers in Oslo:\n{q}",
    "prose2": "Select rows, then filter:\n\n{q}",
    "prose3": "To answer we select from the tables.\n{q}",
    "prose4": "With this in mind, we get\n\n{q}",
    "prose5": "Select the singers from the table first.\n{q}",
    "after;": "{q};\n\nReplace 'Oslo' by another city if needed.",
    "after;2": "{q};\n\nUpdate: this is right.",
    "after;3": "{q};\nValues are case sensitive.",
    "after;4": "{q};\n\nInsert your own city.",
    "after;5": "{q};\n\nSelect any other city if you like.",
    "after;6": "{q}; Drop the last condition if needed.",
    "after;7": "{q};\nWith this query you get it.",
    "after;8": "{q};\n\nDelete what you do not need. Create an index for speed.",
    "after": "{q}\n\nThis query returns the names.",
    "after2": "{q}\nThis query returns the names.",
    "after3": "{q}\n\nWhere the city is Oslo, it is kept.",
    "after4": "{q}\n\nFrom this we see it.",
    "after5": "{q}\n\nQuestion: how many?\nSELECT count(*) FROM customer",
    "after6": "{q}\n\nNote: it is right.",
    "after8": "{q}\n\nExplanation:\n1. Select the table.\n2. Filter.",
    "after9": "{q}\n\nAnd that is all.",
    "after10": "{q}\n\nOn the whole, this works.",
    "list": "1. {q}",
    "quote": "> {q}",
    "bullet": "- {q}",
    "bom": "\ufeff{q}",
    "comment": "/* adults */ {q}",
    "dashcomment": "-- adults\n{q}",
    "bold": "**{q}**",
    "prompt": "sqlite> {q};",
    "sqlcolon": "SQL: {q}",
    "answercolon": "Answer: {q}",
    "thesql": "The SQL query is:\n\n{q}",
    "unclosed": "```sql\n{q}",
    "oneline": "```{q}```",
    "sqloneline": "```sql {q} ```",
    "crlf": "```sql\r\n{q}\r\n```",
    "indent": "    {q}",
    "fence_prose": "```sql\nHere is the query:\n{q}\n```",
    "fence_comment": "```sql\n-- names\n{q}\n```",
    "emptythen": "```sql\n{q}\n```\n```sql\n-- done\n```",
    "output": "```sql\n{q}\n```\nOutput:\n```\nname\nAda\n```",
    "A:": "A: {q}",
    "python": "```python\nprint(1)\n```\n{q}",
}

FIRST = ["answer", "sql", "inline", "final", "later", "after;", "after"]  # all queries; the others every tenth


def plain(sql):
    return " ".join((sql or "").replace("-- adults", "").replace("-- names", "").strip().rstrip(";").split())


@pytest.fixture(scope="module")
def golds(shared_data):
    return [
        json.loads(line)["gold_sql"] for line in (shared_data / "sql/predictions/din_sql.jsonl").open(encoding="utf-8")
    ]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_gold_query_is_found(golds, wrapping):
    golds = golds if wrapping in FIRST else golds[::10]
    found = [extract(WRAPPINGS[wrapping].replace("{q}", gold)) for gold in golds]
    assert [gold for gold, sql in zip(golds, found, strict=True) if plain(sql) != plain(gold)] == []


@pytest.fixture
def shop(tmp_path):
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.execute("CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
        connection.execute("INSERT INTO customer VALUES (1, 'Ada', 'Oslo'), (2, 'Bo', 'Rome'), (3, 'Cy', 'Oslo')")
        connection.execute("CREATE VIEW today AS SELECT date('now') AS day")
    connection.close()
    return tmp_path


@pytest.mark.parametrize("comparison", ["bag", "set"])
@pytest.mark.parametrize(
    "completion",
    ["```sql\n-- I do not know\n```", "```sql\n/* none */\n```", "```sql\n;\n```", "```sql\n;;\n```", "-- SELECT", "", "I do not know",  # noqa: E501
     "```\n-- SELECT 1\n```", "<answer>-- none</answer>", "<sql>;</sql>", "Final answer: --", "```sql\n \n```"],
)  # fmt: skip
def test_no_query_is_no_answer(shop, comparison, completion):
    problem = Problem("p", "", "SELECT name FROM customer WHERE city = 'Nowhere'", {"db_id": "shop"})
    task = get("sql", databases=shop, comparison=comparison, workers=1)
    assert not task.verify(problem, completion).correct
    assert task.verify(problem, "SELECT id FROM customer WHERE 0").correct


def test_a_gold_answer_without_a_query_or_in_vain_is_named(shop):
    golds = ["SELECT 1", "-- none", "SELECT nothing", "SELECT random()", "DELETE FROM customer", "SELECT date('now')"]
    problems = [Problem(gold, "", gold, {"db_id": "shop"}) for gold in golds]
    assert get("sql", databases=shop, workers=1).objections(problems).keys() == set(golds[1:5])


CLOCK = [
    "CURRENT_TIMESTAMP",
    "current_date",
    "CURRENT_TIME",
    "date()",
    "datetime('now')",
    "time('NOW')",
    "julianday('now')",
]
CLOCK += [
    "strftime('%s','now')",
    "strftime('%Y-%f')",
    "unixepoch()",
    "date('now', '-1 day')",
    "(SELECT day FROM today)",
]


def test_time_stands_still(shop):
    task = get("sql", databases=shop, workers=1)
    problems = {text: Problem(text, "", f"SELECT {text}", {"db_id": "shop"}) for text in CLOCK}
    for wait in (1.1, 0):
        for text, problem in problems.items():
            verdict = task.verify(problem, f"SELECT {text}")
            assert verdict.correct, verdict
        time.sleep(wait)
    literal = Problem("p", "", "SELECT date('2020-02-28', '+2 days'), '2025-06-15'", {"db_id": "shop"})
    assert task.verify(literal, "SELECT '2020-03-01', date('now')").correct


@pytest.mark.parametrize(
    "completion",
    [
        "<think>\n```sql\nSELECT 1\n```\nhmm, wait",
        "<reasoning>SELECT 1",
        "<think>SELECT 1</think>",
        "SELECT 1</think> I do not know",
    ],
)
def test_a_query_that_is_only_thought_of_is_no_answer(shop, completion):
    task = get("sql", databases=shop, workers=1)
    assert not task.verify(Problem("p", "", "SELECT 1", {"db_id": "shop"}), completion).correct


def test_a_real_second_statement_is_refused(shop):
    task, problem = get("sql", databases=shop, workers=1), Problem("p", "", "SELECT 1", {"db_id": "shop"})
    for second in [
        "SELECT 2",
        "DROP TABLE customer",
        "UPDATE customer SET id = 1",
        "DELETE FROM customer",
        "VALUES (1)",
        "COMMIT",
    ]:
        assert task.verify(problem, f"SELECT 1; {second}").reason == "more than one statement", second


def test_questions_of_the_project_have_no_objection():
    from pathlib import Path

    data = Path(__file__).resolve().parents[2] / "data" / "sql"
    task = get("sql", databases=data / "databases", workers=2)
    assert task.objections(load_problems(data / "questions.jsonl")) == {}


NAMES = "SELECT name FROM customer"
QUOTED = "SELECT `id`, `name` FROM `Order Details` ORDER BY `Free Meal (K-12)`"


@pytest.mark.parametrize(
    "wrapping",
    ["{q}", "{q};", "Answer: {q}", "**{q}**", "{q}\n\nThis counts.", "{q}`", "`{q}`", "Here:\n{q}\nIt uses `SELECT`."],
)
@pytest.mark.parametrize(
    "query", [QUOTED, "SELECT count(*) FROM `Order Details`", "SELECT `select` FROM [Order Details]"]
)
def test_a_backtick_that_closes_a_name_stays(wrapping, query):
    assert extract(wrapping.replace("{q}", query)).rstrip(";") == query


@pytest.mark.parametrize(
    "broken",
    [
        "SELECT name\nFROM customer\nWHERE",
        "SELECT name\nFROM customer\nWHERE city =",
        "Select name\nFrom customer\nWhere city =",
        "SELECT name FROM customer\nORDER BY nonsense(",
        "SELECT name\nFROM customer\nFROM customer",
        "SELECT name FROM customer. WHERE",
        "SELECT name FROM customer\nLEFT JOIN",
        "SELECT name FROM customer WHERE id != max( id",
        "SELECT name FROM customer\nWHERE id > 0\n and city =",
        "SELECT name FROM customer\nEXCEPT\nSELECT name FROM customer WHERE",
        "SELECT city FROM customer WHERE id IN (\nSELECT name FROM customer\n",
    ],
)
def test_a_broken_query_is_not_mended(shop, broken):
    verdict = get("sql", databases=shop, workers=1).verify(Problem("p", "", NAMES, {"db_id": "shop"}), broken)
    assert (verdict.answer, verdict.correct) == (broken.strip(), False)


@pytest.mark.parametrize(
    "tail",
    [
        ".\n\nWhere the city is Oslo, it is kept!",
        " and you get the names!",
        ", or\nso",
        " (all of them!)",
        " => names!",
    ],
)
def test_prose_that_looks_like_a_clause_is_dropped(tail):
    assert extract(f"Use {NAMES}{tail}") == NAMES


@pytest.mark.parametrize(
    ("completion", "query"),
    [
        ('{"sql": "SELECT name FROM t WHERE id > 2"}', "SELECT name FROM t WHERE id > 2"),
        ('{"sql": "SELECT name\\nFROM t WHERE c = \\"a\\""}', 'SELECT name\nFROM t WHERE c = "a"'),
        ("'SELECT name FROM t WHERE c = 'a''", "SELECT name FROM t WHERE c = 'a'"),
        ("```python\nq = '''SELECT name FROM t WHERE id > 2'''\n```", "SELECT name FROM t WHERE id > 2"),
        ('<answer>"SELECT name FROM t WHERE id > 2"</answer>', "SELECT name FROM t WHERE id > 2"),
    ],
)
def test_quotes_around_a_query_are_no_part_of_it(completion, query):
    assert extract(completion) == query


@pytest.mark.parametrize("wrapping", ["{q}", "```sql\n{q}\n```", "```\n{q}\n```", "<answer>{q}</answer>", "SQL: {q}"])
@pytest.mark.parametrize(
    "before",
    [
        "DROP TABLE customer; ",
        "DELETE FROM customer;\n",
        "UPDATE customer SET id = 1; -- all\n",
        "INSERT INTO customer VALUES (';');\n",
        "CREATE TABLE x AS SELECT 1;\n",
        "CREATE TABLE x AS\n",
        "INSERT INTO customer (name)\n",
        "EXPLAIN ",
        "EXPLAIN QUERY PLAN\n",
    ],
)
def test_a_statement_before_the_query_is_not_overlooked(shop, wrapping, before):
    problem = Problem("p", "", NAMES, {"db_id": "shop"})
    verdict = get("sql", databases=shop, workers=1).verify(problem, wrapping.replace("{q}", before + NAMES))
    assert not verdict.correct
    assert verdict.answer.startswith(before.split()[0])


@pytest.mark.parametrize(
    "before",
    [
        "First I update my view: ",
        "Delete from the list what you do not need.\n",
        "I explain:\n",
        "Update:\n",
        "USE shop;\n",
        "Drop table aliases, then:\n\n",
    ],
)
def test_prose_before_the_query_is_no_statement(before):
    assert extract(before + NAMES) == NAMES
