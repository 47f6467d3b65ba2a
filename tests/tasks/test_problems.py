import json
from pathlib import Path

import pandas as pd
import pytest

from dphrl_lite.tasks import get, load_problems
from dphrl_lite.tasks.problems import MAPPINGS

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


def test_a_folder_is_loaded_by_datasets(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "1", "answer": "1"}])
    assert load_problems(tmp_path)[0].id == f"{tmp_path.name}-0"


def test_shipped_sql_questions_load(monkeypatch):
    monkeypatch.chdir(REPO)
    problems = load_problems("data/sql/questions.jsonl")
    assert len(problems) >= 40
    verdict = get("sql", databases="data/sql/databases").verify(problems[0], problems[0].answer)
    assert verdict.correct


def test_ready_made_mappings_on_real_files(shared_data):
    gsm8k = load_problems(shared_data / "math" / "gsm8k_test.jsonl", columns="gsm8k")
    assert len(gsm8k) == 1319
    assert gsm8k[0].answer == "18"
    assert all(problem.answer.lstrip("-").replace(".", "").isdigit() for problem in gsm8k)
    math500 = load_problems(shared_data / "math" / "math500.jsonl", columns="math500")
    assert len(math500) == 500
    assert math500[0].meta["level"] == 2
    spider = load_problems(shared_data / "sql" / "spider_dev.jsonl", columns="spider")
    assert len(spider) == 602
    task = get("sql", databases=shared_data / "sql" / "databases")
    assert all(task.verify(problem, problem.answer).correct for problem in spider[::20])


def test_bird_mapping_adds_the_evidence(tmp_path):
    row = {"question_id": 3, "db_id": "d", "question": "How many?", "evidence": "count", "SQL": "SELECT 1"}
    problem = load_problems(write(tmp_path / "dev.json", [row | {"difficulty": "simple"}]), columns="bird")[0]
    assert (problem.id, problem.prompt, problem.answer) == ("3", "How many?\ncount", "SELECT 1")
    assert problem.meta["db_id"] == "d"


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
        (ROWS, "gsm8k", "no column 'question'"),
        ([ROWS[0], ROWS[1] | {"answer": " "}], None, "row 1 of .* has no answer in column 'answer'"),
        ([ROWS[0], ROWS[1] | {"answer": None}], None, "row 1 of .* has no answer in column 'answer'"),
        ([{"question": "1", "answer": "no number"}], "gsm8k", "row 0 of .* has no answer in what _final_number"),
        ([ROWS[0], ROWS[0]], None, "row 1 of .* repeats the id 'a'"),
        ([], None, "holds no rows"),
        ([[1, 2]], None, "row 0 of .* is of type int"),
    ],
)
def test_unusable_rows_are_named(tmp_path, rows, columns, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write(tmp_path / "set.jsonl", rows), columns=columns)


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"id": "a"', encoding="utf-8")
    with pytest.raises(ValueError, match=r"set\.jsonl is not JSON"):
        load_problems(path)


def test_a_file_has_no_other_split(tmp_path):
    with pytest.raises(ValueError, match="without a split 'test'"):
        load_problems(write(tmp_path / "set.jsonl", ROWS), split="test")


def test_a_folder_with_several_splits_asks_which(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "answer": "1"}])
    with pytest.raises(ValueError, match=r"splits train, test; pass one"):
        load_problems(tmp_path)
    assert load_problems(tmp_path, split="test")[0].prompt == "test"
