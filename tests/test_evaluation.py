"""Outcomes are right, tables add up, and an evaluation can be killed, shared out, repeated and compared."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from dphrl_lite import cli, evaluation, presampling
from dphrl_lite.engine.checkpoint import OtherRunError
from dphrl_lite.evaluation import COLUMNS, EvaluateConfig, ProblemSet
from dphrl_lite.study import pipeline, reports
from dphrl_lite.tasks.countdown import problems

SMALL = EvaluateConfig(samples=4, problems_per_shard=4, problems_per_batch=4)


@pytest.fixture(scope="module")
def sets(countdown):
    return [
        ProblemSet("cd3", countdown, problems("cd3", 10, split="test")),
        ProblemSet("sort", countdown, problems("sort", 5, split="test"), in_domain=False),
    ]


@pytest.fixture(scope="module")
def table(tiny, sets, tmp_path_factory):
    return evaluation.evaluate(tiny, sets, SMALL, tmp_path_factory.mktemp("evaluation") / "base", progress=False)


def test_outcomes_are_counts_of_verified_answers_to_each_problem(tiny, countdown, sets, table):
    assert list(table.columns) == [*COLUMNS, *evaluation.EXTRA]
    assert table["problem"].tolist() == [p.id for s in sets for p in s.problems]
    cd3 = table[table["family"] == "cd3"]
    drawn = presampling.sample(tiny, countdown, sets[0].problems, 4, seed=1, problems_per_batch=4, progress=False)
    assert cd3["c"].tolist() == drawn.groupby("problem_id", sort=False)["correct"].sum().tolist()
    best = presampling.sample(tiny, countdown, sets[0].problems, 1, temperature=0.0, progress=False)
    assert cd3["greedy"].tolist() == best["correct"].tolist()
    assert table.groupby("family")["in_domain"].first().to_dict() == {"cd3": True, "sort": False}


def test_scores_are_means_over_problems_and_over_sets():
    counts = {"a": [4, 0, 2], "b": [1, 1, 4]}
    rows = [(name, f"{name}{i}", 4, c, c > 1) for name, cs in counts.items() for i, c in enumerate(cs)]
    table = pd.DataFrame(rows, columns=["family", "problem", "n", "c", "greedy"]).assign(in_domain=True, distinct=1)
    scores = reports.scores(table, [1, 4])
    a, mean = scores.loc[("in domain", "a")], scores.loc[("in domain", "mean of sets")]
    assert (a["problems"], a["greedy"], a["mean@4"], a["cover@0.5"]) == pytest.approx((3, 2 / 3, 0.5, 2 / 3))
    assert (a["Pass@1"], a["Pass@4"]) == pytest.approx((0.5, 2 / 3))
    assert a["low 4"] <= a["Pass@4"] <= a["high 4"]
    assert (mean["problems"], mean["Pass@4"], mean["Pass@1"]) == pytest.approx((6, 5 / 6, 0.5))
    lines = reports.markdown(scores).splitlines()
    assert "| in domain | a | 3 | 0.667 | 0.500 | 0.500 [" in lines[2]
    assert "| in domain | mean of sets | 6 | 0.500 |" in lines[4] and "[" not in lines[4]


def test_changes_match_problems_by_name_and_skip_sets_that_only_one_has(table):
    base = table[table["family"] == "cd3"].assign(c=[4, 0] * 5)
    trained = table.assign(c=0).iloc[::-1]
    changed = reports.changes(base, trained, k=4)
    assert changed.index.tolist() == [("in domain", "cd3")]
    assert changed.iloc[0].to_dict() == {"keep": 0, "forget": 5, "gain": 0, "never": 5}
    with pytest.raises(ValueError, match=r"nothing to compare: .*\['cd3'\]"):
        reports.changes(base, table[table["family"] == "sort"], k=4)


def test_an_evaluation_of_other_problems_is_shown_and_not_compared(table):
    base = table[table["problem"] != table["problem"].iloc[0]]
    with pytest.raises(ValueError, match=r"set 'cd3': .*1 differ.*; evaluate both on the same problems"):
        reports.changes(base, table, k=4)
    told = reports.report(table, SMALL, base)
    assert "| in domain | cd3 | 10 |" in told and "Not compared with base: set 'cd3'" in told
    assert "| in domain | cd3 | 10.0 |" not in told


def test_shares_make_the_whole_and_the_last_one_puts_it_together(tiny, sets, table, tmp_path):
    shares = [evaluation.evaluate(tiny, sets, SMALL, tmp_path, (i, 3), progress=False) for i in (1, 2, 0)]
    assert shares[0] is None and shares[1] is None
    pd.testing.assert_frame_equal(shares[2], table)
    pd.testing.assert_frame_equal(pipeline.read_outcomes(tmp_path), table)


def test_a_finished_evaluation_is_read_and_another_policy_is_refused(tiny, sets, table, tmp_path, monkeypatch):
    first = evaluation.evaluate(tiny, sets[:1], SMALL, tmp_path, progress=False)
    monkeypatch.setattr(presampling, "generate", None)  # nothing may be drawn again
    again = evaluation.evaluate(tiny, sets[:1], SMALL, tmp_path, progress=False)
    pd.testing.assert_frame_equal(again, first)
    other = tiny.copy()
    next(other.model.parameters()).data += 1
    with pytest.raises(OtherRunError, match="weights"):
        evaluation.evaluate(other, sets[:1], SMALL, tmp_path, progress=False)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"ks \[8\] must lie between 1 and samples = 4"):
        EvaluateConfig(samples=4, ks=[8])
    with pytest.raises(ValueError, match=r"confidence is 95"):
        EvaluateConfig(confidence=95)
    assert EvaluateConfig(samples=12).all_ks == [1, 2, 4, 8, 12]


def test_no_evaluation_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no outcomes"):
        pipeline.read_outcomes(tmp_path)


@pytest.fixture(scope="module")
def some_sets(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "sets.yaml"
    each = "{{task: countdown, problems: [countdown:{0}], split: test, limit: 12}}"
    path.write_text("".join(f"{name}: {each.format(name)}\n" for name in ("cd3", "cd4", "sort")))
    return str(path)


def test_a_killed_evaluation_goes_on_and_gives_the_same(some_sets, tmp_path, capsys):
    argv = ["evaluate", "--sets", some_sets, "--samples", "16", "--problems-per-shard", "2"]
    command = [sys.executable, "-m", "dphrl_lite.cli", *argv, "--out", str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    samples = tmp_path / "killed" / "evaluation" / "base" / "cd3" / "samples"
    try:
        while process.poll() is None and not list(samples.glob("shard-*.parquet")):
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "evaluation" / "base" / "sort.parquet").exists()
    reports = []
    for name in ("killed", "whole"):
        assert cli.main([*argv, "--out", str(tmp_path / name)]) == 0
        reports.append((tmp_path / name / "evaluation" / "base" / "report.md").read_text())
        assert reports[-1] in capsys.readouterr().out
    assert reports[0] == reports[1]
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.parquet")} for n in ("killed", "whole")]
    assert files[0] == files[1]


def test_a_trained_policy_is_compared_with_the_untrained_one_by_itself(some_sets, tmp_path, capsys):
    where = ["--out", str(tmp_path)]
    evaluate = [
        "evaluate",
        *where,
        "--sets",
        some_sets,
        "--samples",
        "2",
        "--out-of-domain",
        "sort",
        "--in-domain",
        "cd3",
    ]
    train = ["train", *where, "--limit", "6", "--steps", "1", "--problems_per_step", "2", "--samples", "2"]
    assert cli.main(["presample", *where, "--limit", "6"]) == 0
    assert cli.main([*train, "--threshold", "2", "--method", "dph-alpha", "--alpha", "0.8"]) == 0
    policy = tmp_path / "dph-alpha-0.8-seed0" / "policy-000001"
    (tmp_path / "evaluation" / "base" / "cd3").mkdir(parents=True)  # the untrained model's has only begun
    assert cli.main([*evaluate, "--policy", str(policy)]) == 0
    assert "Against" not in capsys.readouterr().out
    assert cli.main(evaluate) == 0
    assert cli.main([*evaluate, "--policy", str(policy)]) == 0
    assert "Against base" in capsys.readouterr().out
    card = (policy / "README.md").read_text()
    assert card.count("## Pass@k") == card.count("| in domain | cd3 | 12 |") == card.count("Against base") == 1
    outcomes = pipeline.read_outcomes(tmp_path / "evaluation" / "dph-alpha-0.8-seed0-policy-000001")
    assert set(outcomes["method"]) == {"dph-alpha-0.8"} and set(outcomes["strength"]) == {1.0}
    assert cli.main([*evaluate, "--against", str(tmp_path / "nowhere")]) == 2
    assert "no outcomes" in capsys.readouterr().err
