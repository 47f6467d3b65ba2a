import json
import sqlite3
from pathlib import Path

import datasets
import pandas as pd
import pytest

from dphrl_lite.tasks import Problem, countdown, get, load_problems
from dphrl_lite.tasks.problems import BOXED, MAPPINGS

REPO = Path(__file__).resolve().parents[2]
ROWS = [
    {"id": "a", "prompt": "1 + 1", "answer": "2", "meta": {"level": 1}, "source": "book"},
    {"id": "b", "prompt": "2 + 2", "answer": "4", "meta": {"hint": "double"}, "source": "web"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- what is read -------------------------------------------------------------------------------------------------


def test_default_columns(tmp_path):
    first, second = load_problems(write(tmp_path / "set.jsonl", ROWS))
    assert (first.id, first.prompt, first.answer) == ("a", "1 + 1", "2")
    assert first.meta == {"level": 1, "source": "book"}
    assert second.meta == {"hint": "double", "source": "web"}  # no None for the keys of other rows


def test_json_csv_and_parquet_hold_the_same_problems(tmp_path):
    rows = [{"id": "007", "prompt": "a\nb", "answer": "1,000", "topic": "x"}, {"id": "8", "prompt": "c", "answer": "2"}]
    rows[1]["topic"] = "y"
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    expected = load_problems(write(tmp_path / "a.jsonl", rows))
    for suffix in ("json", "csv", "parquet"):
        assert load_problems(tmp_path / f"a.{suffix}") == expected


def test_ids_default_to_the_row_number(tmp_path):
    path = write(tmp_path / "sums.jsonl", [{"prompt": "1", "answer": "1"}, {"prompt": "2", "answer": "2"}])
    assert [problem.id for problem in load_problems(path)] == ["sums-0", "sums-1"]


def test_columns_map_names_and_functions(tmp_path):
    columns = {"prompt": lambda row: row["prompt"] + " =", "answer": "answer", "origin": "source"}
    problem = load_problems(write(tmp_path / "set.jsonl", ROWS), columns=columns)[0]
    assert (problem.id, problem.prompt, problem.meta) == ("a", "1 + 1 =", {"origin": "book"})


def test_limit_keeps_the_first_rows(tmp_path):
    path = write(tmp_path / "set.jsonl", [*ROWS, {"id": "c"}])
    assert [problem.id for problem in load_problems(path, limit=2)] == ["a", "b"]


def test_keep_leaves_rows_out_and_their_numbers_stand(tmp_path):
    rows = [{"prompt": str(i), "answer": "" if i == 1 else "0"} for i in range(5)]
    path = write(tmp_path / "set.jsonl", rows)
    kept = load_problems(path, keep=lambda row: row["answer"], limit=2)
    assert [problem.id for problem in kept] == ["set-0", "set-2"]
    with pytest.raises(ValueError, match="no rows that `keep` keeps"):
        load_problems(path, keep=lambda row: False)


def test_a_folder_is_loaded_by_datasets(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "1", "answer": "1"}])
    assert load_problems(tmp_path)[0].id == f"{tmp_path.name}-0"


def test_shipped_sql_questions_load(monkeypatch):
    monkeypatch.chdir(REPO)
    problems = load_problems("data/sql/questions.jsonl")
    assert len(problems) >= 40
    verdict = get("sql", databases="data/sql/databases").verify(problems[0], problems[0].answer)
    assert verdict.correct


# One row of each data set with the columns that it has on the hub, or in its official download, and what is made of it.
MATH = {"problem": "1 + 1?", "solution": "It is 2.", "answer": "2"}
SPIDER = {"db_id": "d", "query": "SELECT 1", "question": "How many?", "query_toks": [], "question_toks": []}
BIRD = {"db_id": "d", "question": "How many?", "evidence": "many = all", "SQL": "SELECT 1"}
RECORDED = {
    "openai/gsm8k:main": {"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
    "HuggingFaceH4/MATH-500": MATH | {"subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"},
    "agentica-org/DeepScaleR-Preview-Dataset": MATH,
    "HuggingFaceH4/aime_2024": MATH | {"id": 60, "url": "", "year": "2024"},
    "Maxwell-Jia/AIME_2024": {"ID": "2024-I-4", "Problem": "1 + 1?", "Solution": "2.", "Answer": 2},
    "math-ai/amc23": {"id": 0, "question": "1 + 1?", "answer": "2", "url": ""},
    "AI-MO/aimo-validation-amc": MATH | {"id": 0, "url": ""},
    "math-ai/olympiadbench": {"id": 4, "question": "1 + 1?", "final_answer": ["2"], "subfield": "Algebra"},
    "Hothan/OlympiadBench:OE_TO_maths_en_COMP": {
        "id": 4,
        "question": "1 + 1?",
        "solution": ["It is 2."],
        "final_answer": ["2"],
        "context": None,
        "is_multiple_answer": False,
        "answer_type": "Numerical",
        "subfield": "Algebra",
    },
    "di-zhang-fdu/College_Math_Test": {"question": "1 + 1?", "answer": "2"},
    "realtreetune/college_math": {"problem": "1 + 1?", "answer": "2"},
    "open-r1/DAPO-Math-17k-Processed:en": {"prompt": "1 + 1?", "solution": "2", "data_source": "math_dapo"},
    "xlangai/spider": SPIDER,
    "birdsql/bird_mini_dev": BIRD | {"question_id": 1471, "difficulty": "simple"},
}


@pytest.mark.parametrize("source", RECORDED)
def test_well_known_data_sets_are_known_by_their_hub_id(source, monkeypatch):
    row, asked = RECORDED[source], []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = load_problems(source, split="test")
    name, _, config = source.partition(":")
    assert asked == [(name, config or None, "test")]
    own = next((row[key] for key in ("id", "ID", "question_id", "unique_id") if key in row), None)
    assert problem.id == (f"{Path(name).name}-0" if own is None else str(own))
    if "db_id" in row:
        hint = "\n-- Hint: many = all" if "evidence" in row else ""
        assert problem.prompt == f"-- How many?{hint}\n-- Answer with one SQLite query."
        assert (problem.answer, problem.meta["db_id"]) == ("SELECT 1", "d")
    else:
        assert (problem.prompt, problem.answer) == (f"1 + 1?\n{BOXED}", "2")


def test_all_answers_of_olympiadbench_are_asked_for_in_any_order(tmp_path):
    answers = {"list": ["$2$", "$-3$"], "text": ["$2, -3$"]}
    rows = [{"id": key, "question": "Solve.", "final_answer": value} for key, value in answers.items()]
    problems, given = load_problems(write(tmp_path / "olympiadbench.jsonl", rows)), ("-3, 2", "2,-3", "2", "2, 3")
    verdicts = get("math").verify_all((p, f"\\boxed{{{answer}}}") for p in problems for answer in given)
    assert [v.correct for v in verdicts] == [True, True, False, False] * 2


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("spider/train_spider.json", SPIDER),
        ("spider/dev.json", SPIDER),
        ("bird/train.json", BIRD),
        ("mini_dev_sqlite.json", BIRD | {"question_id": 3, "difficulty": "simple"}),
    ],
)
def test_official_downloads_are_known_by_file_or_folder(tmp_path, path, row):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([row]), encoding="utf-8")
    (problem,) = load_problems(file)
    assert (problem.answer, problem.meta["db_id"]) == ("SELECT 1", "d")
    assert problem.id == str(row.get("question_id", f"{file.stem}-0"))


def test_rows_in_our_own_form_need_no_mapping_whatever_the_file_is_called(tmp_path):
    assert load_problems(write(tmp_path / "gsm8k.jsonl", ROWS)) == load_problems(write(tmp_path / "set.jsonl", ROWS))


@pytest.mark.parametrize(
    ("name", "count", "answer"),
    [
        ("gsm8k_test", 1319, "18"),
        ("math500", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("dsr_sub", 1208, "\\frac{3}{7}"),
        ("aime24", 30, "204"),
        ("amc23", 40, "27.0"),
    ],
)
def test_math_files_are_known_by_name(shared_data, name, count, answer):
    problems = load_problems(shared_data / "math" / f"{name}.jsonl", keep=lambda row: row["answer"] != "")
    assert len(problems) == count  # one row of dsr_sub has no answer
    assert problems[0].answer == answer
    assert all(problem.prompt.endswith(BOXED) for problem in problems)
    task = get("math")
    assert all(task.verify(problem, f"\\boxed{{{problem.answer}}}").correct for problem in problems[:20])


def test_spider_file_is_known_by_name(shared_data):
    databases = shared_data / "sql" / "databases"
    spider = load_problems(shared_data / "sql" / "spider_dev.jsonl", databases=databases)
    assert len(spider) == 602
    assert spider[0].prompt.startswith("Task Overview")  # what the file brings along
    task = get("sql", databases=databases)
    assert all(task.verify(problem, problem.answer).correct for problem in spider[::20])


# --- databases ----------------------------------------------------------------------------------------------------


@pytest.fixture
def databases(tmp_path):
    """A folder with database `d` in Spider's layout, and `e` in BIRD's."""
    folder = tmp_path / "databases"
    (folder / "e").mkdir(parents=True)
    for path in (folder / "d.sqlite", folder / "e" / "e.sqlite"):
        connection = sqlite3.connect(path)
        connection.executescript(f"CREATE TABLE {path.stem}1 (a INTEGER PRIMARY KEY); CREATE TABLE two (b TEXT);")
        connection.close()
    return folder


@pytest.mark.parametrize(("columns", "row"), [("spider", SPIDER), ("bird", BIRD)])
def test_bare_questions_get_the_schema_of_their_database(tmp_path, databases, columns, row):
    path = write(tmp_path / "set.jsonl", [row, row | {"db_id": "e"}])
    first, second = load_problems(path, columns=columns, databases=databases)
    assert first.prompt.startswith(
        "CREATE TABLE d1 (a INTEGER PRIMARY KEY);\nCREATE TABLE two (b TEXT);\n\n-- How many?\n-- "
    )
    assert second.prompt.startswith("CREATE TABLE e1")
    assert not list(databases.rglob("*-*"))  # no journal: the files were only read


def test_prompts_are_written_as_in_the_shipped_questions(tmp_path):
    shipped = load_problems(REPO / "data/sql/questions.jsonl")
    rows = [{"question": p.meta["question"], "db_id": p.meta["db_id"], "query": p.answer} for p in shipped]
    loaded = load_problems(write(tmp_path / "spider.jsonl", rows), databases=REPO / "data/sql/databases")
    assert [problem.prompt for problem in loaded] == [problem.prompt for problem in shipped]


def test_a_missing_database_is_found_when_loading(tmp_path, databases):
    rows = [SPIDER] * 17 + [SPIDER | {"db_id": "gone"}]
    with pytest.raises(
        FileNotFoundError, match=r"row 17 of .*, column 'db_id', needs database 'gone', found neither at .*gone\.sqlite"
    ):
        load_problems(write(tmp_path / "spider.jsonl", rows), databases=databases)


def test_the_database_is_looked_for_in_our_own_form_too(tmp_path, databases):
    rows = [row | {"meta": {"db_id": name}} for row, name in zip(ROWS, ("d", "gone"), strict=True)]
    with pytest.raises(FileNotFoundError, match=r"row 1 of .* 'gone'"):
        load_problems(write(tmp_path / "set.jsonl", rows), databases=databases)
    with pytest.raises(ValueError, match=r"row 0 of .* names no database"):
        load_problems(write(tmp_path / "set.jsonl", ROWS), databases=databases)


def test_a_file_that_is_no_database_is_named(tmp_path, databases):
    (databases / "d.sqlite").write_text("no database, and longer than its header would have to be" * 9)
    with pytest.raises(ValueError, match=r"row 0 of .* database 'd', whose file is not readable"):
        load_problems(write(tmp_path / "spider.jsonl", [SPIDER]), databases=databases)


# --- made by a task -----------------------------------------------------------------------------------------------


def test_countdown_families_are_made():
    assert load_problems("countdown:cd3", limit=7) == countdown.problems("cd3", 7)
    held_out = load_problems("countdown:cd4", split="test")
    assert held_out == countdown.problems("cd4", split="test")
    assert all(countdown.split_of(problem.meta["numbers"]) == "test" for problem in held_out)
    with pytest.raises(ValueError, match="countdown family 'cd5'; expected one of: cd3, cd4, sort"):
        load_problems("countdown:cd5")


# --- errors -------------------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        load_problems(tmp_path / "nowhere.jsonl")


def test_data_set_that_cannot_be_reached_says_what_was_expected():
    with pytest.raises(FileNotFoundError, match=r"'no-such/set:main'.*openai/gsm8k:main"):
        load_problems("no-such/set:main", split="test")


def test_unknown_mapping_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=f"{', '.join(sorted(MAPPINGS))}.*'gsm8k'"):
        load_problems(write(tmp_path / "set.jsonl", ROWS), columns="gsm8")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"question": "1", "answer": "1"}], None, "no column 'prompt'; it has: question, answer"),
        (ROWS, {"prompt": "prompt", "answer": "gold"}, "no column 'gold'; it has: id, prompt, answer, meta, source"),
        (ROWS, "gsm8k", "no column 'problem' or 'question'"),
        ([ROWS[0], ROWS[1] | {"answer": " "}], None, "row 1 of .* has no answer in column 'answer'"),
        ([ROWS[0], ROWS[1] | {"answer": None}], None, "row 1 of .* has no answer in column 'answer'"),
        ([{"question": "1", "answer": "no number"}], "gsm8k", "row 0 of .* has no answer in what _final_number"),
        ([ROWS[0], ROWS[0]], None, "row 1 of .* repeats the id 'a' in column 'id'"),
        ([BIRD | {"question_id": 7}] * 2, "bird", "row 1 of .* repeats the id '7' in column 'question_id'"),
        ([], None, "holds no rows"),
        ([[1, 2]], None, "row 0 of .* is of type int"),
        ([ROWS[0], ROWS[1] | {"prompt": None}], None, "row 1 of .* has no prompt in column 'prompt'"),
        ([ROWS[0] | {"id": None}], None, "row 0 of .* has no id in column 'id'"),
        ([SPIDER | {"query": ""}], "spider", "row 0 of .* has no answer in columns gold_sql, query"),
        ([BIRD], "spider", "no column 'gold_sql' or 'query'"),
        ([{"question": None, "answer": "#### 1"}], "gsm8k", "row 0 of .* has no prompt in what _math_prompt"),
        ([{"question": "1", "answer": 1}], "gsm8k", "row 0 of .* has no answer in what _final_number"),
        (
            [ROWS[0], ROWS[1] | {"prompt": [{"role": "user"}]}],
            None,
            "row 1 of .* has a list as prompt in column 'prompt'",
        ),
    ],
)
def test_unusable_rows_are_named(tmp_path, rows, columns, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(tmp_path / "set.jsonl", rows), columns=columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"rows": [{"prompt": "1", "answer": "1"}]}', "one object around its rows, with the keys rows"),
        ("a.json", b'[{"prompt": "1",\n "answer": }]', r"a\.json is not JSON: .*line 2"),
        ("a.jsonl", b'{"prompt": "1", "answer": "1"}\n{"prompt"}\n', r"line 2 of .*a\.jsonl is not JSON"),
        ("a.csv", b"id,prompt,answer\n1,one,1\n2,two, too,2\n", r"row 1 \(line 3\) of .*a\.csv .*the header's 3"),
        ("a.csv", b"id,prompt,answer\n1,one\n", r"row 0 \(line 2\) of .*a\.csv .*the header's 3"),
        ("a.csv", "prompt,answer\né,1\n".encode("latin-1"), r"a\.csv is not UTF-8 text \(byte 14\)"),
        ("a.jsonl", '{"prompt": "é", "answer": "1"}'.encode("latin-1"), r"a\.jsonl is not UTF-8 text"),
        ("a.parquet", b"no such thing", r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl.gz", b"packed", r"a\.jsonl\.gz is no \.json, \.jsonl"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / name)


def test_an_empty_cell_of_a_numeric_column_is_no_answer(tmp_path):
    pd.DataFrame({"prompt": ["a", "b"], "answer": [1.0, None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .* has no answer"):
        load_problems(tmp_path / "a.parquet")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match=f"limit is {limit}; expected"):
        load_problems(write(tmp_path / "set.jsonl", ROWS), limit=limit)


def test_a_folder_without_one_kind_of_rows_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"This is a folder; .*name the file"):
        load_problems(tmp_path)


def test_a_file_has_no_other_split(tmp_path):
    with pytest.raises(ValueError, match="without a split 'test'"):
        load_problems(write(tmp_path / "set.jsonl", ROWS), split="test")


def test_a_folder_with_several_splits_asks_which(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "answer": "1"}])
    with pytest.raises(ValueError, match=r"splits train, test; pass one"):
        load_problems(tmp_path)
    assert load_problems(tmp_path, split="test")[0].prompt == "test"


# --- real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "row", "prompt", "answer"),
    [
        (None, {"data_source": "x", "prompt": [{"role": "user", "content": "1 + 1"}], "reward_model": {"style": "rule", "ground_truth": "2"}}, "1 + 1", "2"),  # noqa: E501
        ("verl", {"prompt": [{"role": "system", "content": "Hi."}, {"role": "user", "content": "?"}], "reward_model": {"ground_truth": 2}}, "Hi.\n\n?", "2"),  # noqa: E501
        ({"prompt": "q.text", "answer": "reward_model.ground_truth"}, {"q": {"text": "?"}, "reward_model": {"ground_truth": 3}}, "?", "3"),  # noqa: E501
        ({"prompt": "a.b", "answer": "c"}, {"a.b": "?", "c": 1}, "?", "1"),
        ("math", {"problem": "?", "solution": "So $\\boxed{\\frac{1}{2}}$.", "level": "Level 5", "type": "Algebra"}, f"?\n{BOXED}", "\\frac{1}{2}"),  # noqa: E501
        ("minerva", {"question": "?", "answer": "2.5"}, f"?\n{BOXED}", "2.5"),
        ("minerva", {"problem": "?", "solution": "It is \\boxed{4}"}, f"?\n{BOXED}", "4"),
        ("limr", {"prompt": "?", "answer": "7"}, f"?\n{BOXED}", "7"),
        ("math500", {"problem": "?", "answer": "7"}, f"?\n{BOXED}", "7"),
        ("spider", {"question": "?", "db_id": "d", "sql": "SELECT 1"}, "-- ?\n-- Answer with one SQLite query.", "SELECT 1"),
    ],
)  # fmt: skip
def test_schemas_of_real_files(tmp_path, columns, row, prompt, answer):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n")
    (problem,) = load_problems(path, columns=columns)
    assert (problem.prompt, problem.answer) == (prompt, answer)


def test_repeated_ids_can_be_numbered(tmp_path):
    path = write(
        tmp_path / "set.jsonl", [{"id": "a", "prompt": "1", "answer": "1"}, {"id": "a", "prompt": "2", "answer": "2"}]
    )
    with pytest.raises(ValueError, match="repeats the id 'a'"):
        load_problems(path)
    columns = {"prompt": "prompt", "answer": "answer", "id": ""}
    assert [problem.id for problem in load_problems(path, columns=columns)] == ["set-0", "set-1"]


def test_ids_are_text_and_line_ends_plain(tmp_path):
    path = write(
        tmp_path / "set.jsonl", [{"id": 1, "prompt": "1\r\n2", "answer": "1"}, {"id": "a", "prompt": "2", "answer": 2}]
    )
    assert [(problem.id, problem.prompt) for problem in load_problems(path)] == [("1", "1\n2"), ("a", "2")]
    assert Problem(3, "", "").id == "3"


def test_bytes_of_parquet_are_text_or_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for number, prompt in enumerate((b"caf\xc3\xa9", b"\xff\xfe")):
        path = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"prompt": [prompt], "answer": [b"1"]}), path)
    assert load_problems(tmp_path / "0.parquet")[0].prompt == "café"
    with pytest.raises(ValueError, match="no UTF-8 text"):
        load_problems(tmp_path / "1.parquet")


def test_messages_are_short(tmp_path):
    (tmp_path / "columns.json").write_text(pd.DataFrame([{"prompt": "p", "answer": "a"}] * 2_000).to_json())
    with pytest.raises(ValueError, match="orient='records'"):
        load_problems(tmp_path / "columns.json")
    write(tmp_path / "wide.jsonl", [{f"column {n}": n for n in range(10_000)}])
    write(tmp_path / "long.jsonl", [{"id": "a" * 10_000, "prompt": "1", "answer": "1"}] * 2)
    for name in ("columns.json", "wide.jsonl", "long.jsonl"):
        with pytest.raises(ValueError) as error:
            load_problems(tmp_path / name)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("cell", ["", " ", None])
def test_empty_cells_are_named_when_loading(tmp_path, cell):
    for field in ("id", "prompt", "answer"):
        with pytest.raises(ValueError, match=f"row 0 .* no {field}"):
            load_problems(write(tmp_path / "set.jsonl", [{"id": "a", "prompt": "1", "answer": "1"} | {field: cell}]))


def test_a_file_without_any_answer_holds_no_problems(tmp_path):
    path = write(tmp_path / "gsm8k_blank.jsonl", [{"question": "1 + 1?", "answer": ""}])
    with pytest.raises(ValueError, match=r"none of the 1 rows of .* has an answer"):
        load_problems(path, skip_unanswered=True)
