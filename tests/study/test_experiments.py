"""The miniature's data are disjoint, outcomes tables add up, and a comparison can be stopped and read again."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest

from dphrl_lite import settings
from dphrl_lite.engine.checkpoint import OtherRunError, read_manifest
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.study import experiments, pipeline
from dphrl_lite.study.pipeline import Stages
from dphrl_lite.tasks import arithmetic
from dphrl_lite.tasks.countdown import split_of
from dphrl_lite.training import TrainConfig


def test_miniature_keeps_train_and_test_apart():
    mini = experiments.miniature(train=50, test=30)
    assert len(mini.train) == 100
    assert {family: len(chosen) for family, chosen in mini.test.items()} == {"cd3": 30, "cd4": 30, "sort": 30}
    assert all(split_of(p.meta["numbers"]) == "train" for p in mini.train)
    assert all(split_of(p.meta["numbers"]) == "test" for family in ("cd3", "cd4") for p in mini.test[family])
    assert all(split_of(map(int, p.answer.split())) == "test" for p in mini.test["sort"])


@pytest.fixture(scope="module")
def table(tiny):
    mini = experiments.miniature(train=5, test=4)
    return experiments.evaluate(tiny, mini.task, mini.test, samples=8, progress=False)


def test_evaluate_gives_the_documented_columns(table):
    assert list(table.columns) == experiments.COLUMNS
    assert len(table) == 12
    assert (table["n"] == 8).all()
    assert (table["distinct"] <= table["c"]).all()


def test_by_family_picks_one_seed_and_keeps_problem_names(table):
    trained = [table.assign(method="grpo", seed=seed, c=seed) for seed in (1, 2)]
    outcomes = experiments.by_family(pd.concat([table, *trained]))
    assert outcomes["cd3"]["grpo"].c.tolist() == [1] * 4
    assert experiments.by_family(pd.concat([table, *trained]), seed=2)["cd3"]["grpo"].c.tolist() == [2] * 4
    assert set(outcomes["sort"]["base"].problem_ids) == set(table[table["family"] == "sort"]["problem"])
    with pytest.raises(ValueError, match="missing"):
        experiments.by_family(table.drop(columns="n"))


def test_strengths_and_domains_are_told_apart(table):
    weak, strong = (table.assign(method="dph-js", strength=s, seed=1, c=c) for s, c in ((0.5, 2), (2.0, 8)))
    outcomes = experiments.by_family(pd.concat([table, weak, strong]))
    assert set(outcomes["cd3"]) == {"base", "dph-js at 0.5", "dph-js at 2"}
    rows = experiments.summary(pd.concat([table, weak, strong]), ks=[1])["Pass@1"]
    assert rows["cd3", "dph-js at 0.5"] == 0.25
    assert rows["cd3", "dph-js at 2"] == 1
    both = experiments.by_family(pd.concat([table, table.assign(split="validation")]))
    assert "test/cd3" in both
    with pytest.raises(ValueError, match="no run of 'base' has seed 9"):
        experiments.by_family(pd.concat([table, table.assign(seed=1)]), seed=9)


def test_summary_averages_over_problems_and_seeds(table):
    trained = [table.assign(method="grpo", seed=seed, n=8, c=c) for seed, c in ((1, 0), (2, 4))]
    row = experiments.summary(pd.concat(trained), ks=[1]).loc[("cd3", "grpo")]
    assert row["Pass@1"] == pytest.approx(0.25)
    assert row["seeds"] == 2


def test_first_look_runs_resumes_and_refuses_other_settings(tmp_path, monkeypatch):
    small = experiments.miniature(train=12, test=3)
    monkeypatch.setattr(experiments, "miniature", lambda: small)
    settings = {"out": tmp_path / "look", "steps": 1, "seeds": [0], "samples": 4}
    table = experiments.first_look(**settings)
    assert table["method"].unique().tolist() == ["base", "grpo", "grpo-exp", "dph-js"]
    monkeypatch.setattr(pipeline.training, "train", None)  # nothing may be trained again
    assert experiments.first_look(**settings).equals(table)
    assert experiments.read_outcomes(tmp_path / "look").equals(table)
    with pytest.raises(OtherRunError, match="steps"):
        experiments.first_look(**settings | {"steps": 2})
    with pytest.raises(FileNotFoundError, match="no outcomes"):
        experiments.read_outcomes(tmp_path)


def test_solution_counts_name_each_solution_once(tiny):
    mini = experiments.miniature(train=5, test=4)
    counts = experiments.solution_counts({"base": tiny, "same": tiny}, mini.task, mini.test["cd3"][0], samples=64)
    assert counts.index.is_unique
    assert (counts["base"] == counts["same"]).all()


def test_the_shipped_outcomes_show_the_robust_facts():
    table = experiments.summary(experiments.read_outcomes())
    for family in ("cd3", "cd4"):
        at_64, at_1 = table.loc[family, "Pass@64"], table.loc[family, "Pass@1"]
        assert at_64["grpo"] < at_64["base"]
        assert at_64["dph-js"] > max(at_64["grpo"], at_64["grpo-exp"])
        assert min(at_1["grpo"], at_1["dph-js"]) > at_1["base"]


def test_a_comparison_goes_on_from_the_checkpoints_of_its_runs(tiny, countdown, few_problems, tmp_path):
    data = experiments.Miniature(countdown, few_problems, {"cd3": few_problems[:3]})
    train = TrainConfig("grpo", problems_per_step=4, samples=4, rehearsal_per_step=8)
    evaluate = EvaluateConfig(greedy=False, max_new_tokens=6)
    stages = Stages(PresampleConfig(), PartitionConfig(), train, evaluate)
    folders = {"work": tmp_path / "work", "rollouts": tmp_path / "work" / "presampling"}
    comparison = experiments.Comparison("a test", tiny, data, stages, {"train": {"samples": 4}}, **folders)
    out = tmp_path / "outcomes"
    first = comparison.run(out, ["dph-js"], 2, [3], 4)
    log = (out / "dph-js-seed3.jsonl").read_bytes()
    assert log == (tmp_path / "work" / "dph-js-seed3" / "log.jsonl").read_bytes()
    assert len(log.splitlines()) == 2
    assert pd.read_csv(out / "partition.csv")["problems"].sum() == len(few_problems)
    for path in out.glob("dph-js*"):
        path.unlink()
    assert comparison.run(out, ["dph-js"], 2, [3], 4).equals(first)
    assert (out / "dph-js-seed3.jsonl").read_bytes() == log  # its seconds, too: nothing was trained again
    with pytest.raises(OtherRunError, match="samples"):
        replace(comparison, manifest={"train": {"samples": 8}}).run(out, ["dph-js"], 2, [3], 4)


def test_the_shipped_multiplication_is_on_the_held_out_problems_of_the_generator():
    shipped = experiments.MULTIPLICATION
    table, manifest = experiments.read_outcomes(shipped), read_manifest(shipped)
    assert table["method"].unique().tolist() == ["base", *manifest["methods"]] == ["base", "grpo", "dph-js"]
    assert (table["n"] == manifest["samples"]).all()
    assert table["c"].between(0, table["n"]).all()
    assert (table["distinct"] == (table["c"] > 0)).all()  # an arithmetic problem has one answer
    for (_, family), rows in table.groupby(["method", "family"]):
        assert rows["problem"].tolist() == [
            p.id for p in arithmetic.problems(family, arithmetic.TESTED[family], "test")
        ]
    for method in manifest["methods"]:
        steps = [json.loads(line) for line in (shipped / f"{method}-seed0.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == list(range(1, manifest["steps"] + 1))
    assert pd.read_csv(shipped / "partition.csv")["problems"].sum() == len(arithmetic.problems("multiplication"))


def test_the_shipped_multiplication_was_run_with_the_recipe_as_it_stands():
    _, config = settings.load(experiments.RECIPES / "small_multiplication.yaml", TrainConfig)
    manifest = read_manifest(experiments.MULTIPLICATION)
    asked = asdict(config)
    assert manifest["steps"] == asked["steps"]
    assert {name: asked[name] for name in manifest["train"]} == manifest["train"]


def test_the_shipped_multiplication_shows_collapse_and_what_rehearsal_keeps():
    table = experiments.summary(experiments.read_outcomes(experiments.MULTIPLICATION)).loc["multiplication"]
    base, grpo, dph = (table.loc[name] for name in ("base", "grpo", "dph-js"))
    assert grpo["Pass@1"] > dph["Pass@1"] > base["Pass@1"]
    assert grpo["Pass@64"] < min(base["Pass@64"], dph["Pass@64"])
