import hashlib

import pytest

from dphrl_lite.tasks import Problem, cases, get
from dphrl_lite.tasks.cases import DATABASES, labelled, memorised, preview, questions, verdicts

SCHOOL = DATABASES[0] / "school.sqlite"


def judged(name, folder):
    source, task, table = labelled(name, folder)
    table["verdict"] = verdicts(task, table)
    return source, table


def test_judge_puts_verdicts_side_by_side():
    problem = Problem("p", "", "SELECT 1", {"db_id": "school"})
    table = cases.judge(get("sql", databases=DATABASES[0]), problem, {"right": "SELECT 1", "wrong": "SELECT 2"})
    assert table["correct"].to_dict() == {"right": True, "wrong": False}
    assert table.loc["wrong", ["completion", "reason"]].tolist() == ["SELECT 2", "rows differ"]


def test_published_labels_are_taken_where_they_are(shared_data):
    """Every tenth is judged here; test_sql.py and test_math.py judge them all."""
    for name, whose, count in (("sql", "official evaluator", 602), ("math", "grader", 800)):
        source, task, table = labelled(name, shared_data)
        assert whose in source and len(table) == count
        some = table.iloc[::10]
        assert some["label"].tolist() == verdicts(task, some)


def test_shipped_labels_stand_in_elsewhere(tmp_path):
    source, sql = judged("sql", tmp_path)
    assert "the project" in source
    assert (sql["label"] == sql["verdict"]).all()
    assert set(sql["label"]) == {True, False}
    source, math = judged("math", tmp_path)
    assert "the project" in source
    assert (math["why"] != "").all()
    wrong = math[math["label"] != math["verdict"]]
    assert set(wrong["label"]) == {True, False}  # both kinds of mistake are shown
    assert len(wrong) < len(math) / 2


def test_unknown_cases_list_the_known_ones():
    with pytest.raises(ValueError, match="expected one of: math, sql"):
        labelled("countdown")


def test_preview_shows_rows_with_their_names():
    table = preview(SCHOOL, "SELECT name, grade FROM student ORDER BY id", rows=2)
    assert list(table.columns) == ["name", "grade"]
    assert len(table) == 2


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("DROP TABLE student", "not authorized"),
        ("ATTACH 'x.db' AS x", "not authorized"),
        ("PRAGMA writable_schema = 1", "not authorized"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT nope FROM student", "no such column"),
        ("WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT COUNT(*) FROM t", "interrupted"),
        ("SELECT zeroblob(100000000)", "too big"),
        ("SELECT '\0'", ""),
    ],
)
def test_preview_only_reads_and_says_why_not(sql, words):
    before = hashlib.sha256(SCHOOL.read_bytes()).hexdigest()
    found = preview(SCHOOL, sql, seconds=0.2)
    assert isinstance(found, str)
    assert words in found
    assert hashlib.sha256(SCHOOL.read_bytes()).hexdigest() == before
    assert sorted(path.suffix for path in SCHOOL.parent.iterdir()) == [".sqlite"] * 4


def test_a_memorised_result_is_right_on_its_database():
    task = get("sql", databases=DATABASES[0])
    for problem in questions():
        sql = memorised(DATABASES[0] / f"{problem.meta['db_id']}.sqlite", problem.answer)
        assert task.verify(problem, sql).correct, problem.id
    empty = memorised(SCHOOL, "SELECT name FROM student WHERE grade = 0")
    assert len(preview(SCHOOL, empty)) == 0
    assert preview(SCHOOL, memorised(SCHOOL, "SELECT 'it''s', NULL, 1.5")).iloc[0].tolist()[::2] == ["it's", 1.5]
