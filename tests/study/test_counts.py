"""Tables of counts that others made: whatever their format, in words where they cannot be read."""

import json

import pandas as pd
import pytest

from dphrl_lite import passk
from dphrl_lite.passk import Outcomes
from dphrl_lite.study.counts import by_model, read_counts

TABLE = pd.DataFrame(
    {"model": ["a", "a", "b", "b"], "problem": ["x", "y", "y", "x"], "n": [8, 4, 8, 8], "c": [3, 0, 8, 1]}
)


def as_bytes(table, kind):
    if kind == "parquet":
        return table.to_parquet(index=False)
    if kind.startswith("json"):
        return table.to_json(orient="records", lines=kind == "jsonl").encode()
    return table.to_csv(index=False, sep={"csv": ",", "excel": ";", "tsv": "\t"}[kind]).encode()


@pytest.mark.parametrize("kind", ["csv", "excel", "tsv", "jsonl", "json", "parquet"])
def test_counts_are_read_whatever_the_format(kind, tmp_path):
    path = tmp_path / "table.dat"
    path.write_bytes(as_bytes(TABLE, kind))
    for source in (path, str(path), path.read_bytes()):
        found = read_counts(source)
        assert found[list(TABLE)].to_dict("list") == TABLE.to_dict("list")
    out = by_model(found)
    assert list(out) == ["a", "b"]
    assert (
        passk.compare(out["a"], out["b"], 1).to_dict()
        == passk.compare(Outcomes.from_counts([8, 4], [3, 0]), Outcomes.from_counts([8, 8], [1, 8]), 1).to_dict()
    )


def test_two_columns_suffice_and_a_byte_order_mark_does_no_harm():
    found = read_counts(b"\xef\xbb\xbfn,c\n8,3\n8,0\n")
    assert found["problem"].tolist() == ["0", "1"]
    assert by_model(found)["model"].c.tolist() == [3, 0]


def test_runs_of_a_method_are_told_apart_and_families_kept(tmp_path):
    run = {"method": ["base", "grpo", "grpo", "dph-f", "dph-f"], "seed": [0, 0, 1, 0, 0]}
    run |= {"strength": [None, None, None, 0.1, 1.0], "problem": "p", "n": 4, "c": 1, "distinct": 1}
    for family in ("cd3", "cd4"):
        pd.DataFrame(run).assign(family=family).to_parquet(tmp_path / f"{family}.parquet")
    found = read_counts(tmp_path)
    models = ["base", "grpo, seed 0", "grpo, seed 1", "dph-f at 0.1", "dph-f at 1.0"]
    assert list(by_model(found)) == models
    assert len(by_model(found)["base"]) == 2
    assert by_model(found, "cd4")["base"].problem_ids == ("cd4/p",)
    assert found["distinct"].tolist() == [1] * 10


def test_paths_of_a_method_are_told_apart_by_learning_rate_and_way_back(tmp_path):
    run = {
        "method": ["base", "grpo", "grpo", "grpo"],
        "learning_rate": [None, 3e-5, 1e-4, 1e-4],
        "back": [0, 0, 0, 0.5],
    }
    pd.DataFrame(run | {"steps": [0, 60, 60, 60], "problem": "p", "n": 4, "c": 1}).to_parquet(
        tmp_path / "paths.parquet"
    )
    models = [
        "base",
        "grpo, learning rate 3e-05",
        "grpo, learning rate 0.0001, back 0.0",
        "grpo, learning rate 0.0001, back 0.5",
    ]
    assert list(by_model(read_counts(tmp_path))) == models


@pytest.mark.parametrize(("text", "said"), [
    (b"", "neither CSV nor JSON lines nor Parquet"),
    (b"PAR1 cut short", "neither CSV nor JSON lines nor Parquet"),
    (b'{"n": 8, "c": ', "neither CSV nor JSON lines nor Parquet"),
    (b"\xff\xfe\x00n,c", "neither CSV nor JSON lines nor Parquet"),
    (b"n,right\n8,3\n", r"no column c among \['n', 'right'\]: expected a table"),
    (b"drawn,right\n8,3\n", "no column c and no column n"),
    (b"n,c\n", "no rows"),
    (b"n,c\n8,3\n8,9\n", r"1 of 2 rows are wrong, the first is row 2 \(.*c 9\): more right .* expected c <= n"),
    (b"n,c\n8,2.5\n", "c must be a whole number >= 0"),
    (b"n,c\n8,many\n", "c must be a whole number >= 0"),
    (b"n,c\n8,\n", "c must be a whole number >= 0"),
    (b"n,c\n-8,-9\n", "n must be a whole number >= 0"),
    (b"n,c\n0,0\n", "at least one answer"),
    (b"problem,n,c\nx,8,1\nx,8,2\n", "its problem stands there before"),
])  # fmt: skip
def test_tables_that_are_no_counts_are_refused_in_words(text, said):
    with pytest.raises(ValueError, match=said):
        read_counts(text)


def test_no_table_at_a_path(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(FileNotFoundError, match="no table at"):
            read_counts(path)


# ---- answers of other frameworks -------------------------------------------------------------------------------------


def lines(rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_samples_of_lm_eval_are_counted_filter_by_filter(tmp_path):
    row = lambda doc, filter, right: {
        "doc_id": doc, "doc": {"q": "?"}, "target": "7", "arguments": [["?"]], "resps": [["7"]],
        "filtered_resps": ["7"], "filter": filter, "metrics": ["exact_match"], "doc_hash": f"h{doc}", "exact_match": right,
    }  # fmt: skip
    for run, right in enumerate((1.0, 0.0)):
        rows = [row(doc, filter, right * (doc == 0)) for doc in (0, 1) for filter in ("strict", "flexible")]
        (tmp_path / f"samples_gsm8k_{run}.jsonl").write_bytes(lines(rows))
    found = read_counts(tmp_path)
    sums = found.groupby("model")[["n", "c"]].sum()
    assert sums.to_numpy().tolist() == [[4, 1], [4, 1]] and set(sums.index) == {"strict", "flexible"}
    assert by_model(found)["strict"].c.tolist() == [1, 0]


def test_dumps_of_verl_are_counted_prompt_by_prompt():
    rows = [
        {"input": q, "output": "x", "gts": "7", "score": s, "step": 3, "acc": s > 0}
        for q, s in (("a", 1), ("a", -1), ("b", 1))
    ]
    found = read_counts(lines(rows))
    assert found[["problem", "n", "c"]].to_numpy().tolist() == [["a", 2, 1], ["b", 1, 1]]
    with pytest.raises(ValueError, match="score must be 1 for a right answer"):
        read_counts(lines(rows), correct="score")


def test_details_of_lighteval_are_counted(tmp_path):
    doc = [{"id": str(i), "query": "?"} for i in (0, 0, 1)]
    metric = [{"extractive_match": float(right), "other": 0.5} for right in (1, 0, 1)]
    pd.DataFrame({"doc": doc, "metric": metric}).to_parquet(tmp_path / "details.parquet")
    found = read_counts(tmp_path)
    assert found[["problem", "n", "c"]].to_numpy().tolist() == [["0", 2, 1], ["1", 1, 1]]


def test_a_column_of_clusters_is_kept():
    found = read_counts(b"problem,cluster,n,c\na,x,4,1\nb,x,4,2\nc,y,4,3\n")
    assert by_model(found)["model"].pass_at_k(1)["clusters"].item() == 2


def test_a_model_without_a_strength_is_counted_too():
    rows = pd.DataFrame(
        {"problem": [1, 1, 2], "correct": [1, 0, 1], "method": ["base", "base", "dph-js"], "strength": [None, None, 2]}
    )
    assert read_counts(rows.to_csv(index=False).encode())["model"].tolist() == ["base", "dph-js"]


def test_problems_of_two_families_with_one_name_are_two():
    rows = pd.DataFrame({"family": ["gsm8k"] * 3 + ["math"] * 3, "n": 4, "c": [1, 2, 3, 0, 4, 2]})
    (out,) = by_model(read_counts(rows.to_csv(index=False).encode())).values()
    assert out.pass_at_k(1)["clusters"].item() == 6
