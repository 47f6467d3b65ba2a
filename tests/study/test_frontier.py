"""The sweep's trials and problems are what was written down, and a sweep goes on where it was stopped."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from dphrl_lite import evaluation
from dphrl_lite.engine.checkpoint import OtherRunError
from dphrl_lite.study import conclusions, frontier
from dphrl_lite.study.frontier import DOMAINS, IDEAS, Trial, strengths, trials


def test_about_three_hundred_different_trials_seed_by_seed():
    every = trials()
    paper = [trial for trial in every if trial.method not in IDEAS]
    assert len({trial.name for trial in every}) == len(every) and len(paper) == 2 * 5 * (5 * 5 + 7)
    assert [trial.seed for trial in every] == sorted(trial.seed for trial in every)
    assert {trial.method for trial in trials(methods=["grpo", "dph-js"])} == {"grpo", "dph-js"}


def test_fronts_are_swept_at_equal_curvature():
    swept = {method: values for method, values in strengths().items() if len(values) > 1}
    assert set(swept) - set(IDEAS) == {"rkl", "rkl-k3", "sft", "dph-f", "dph-js"}
    assert np.allclose(np.array(swept["dph-js"]) / 2, swept["dph-f"])  # f''(1) is 1/2 and 1


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_no_problem_is_in_two_splits_and_enough_are_tested(domain):
    ids = [p.id for p in domain.problems]
    sets = {split: [p.id for some in parts for p in some.problems] for split, parts in domain.sets.items()}
    everything = [*ids, *(i for split in sets.values() for i in split)]
    assert len(set(everything)) == len(everything)
    assert len(sets["test"]) >= 1000


def test_a_trial_writes_its_outcomes_and_its_cost(small, tmp_path):
    for trial in (Trial("countdown", "base", None, 0), Trial("countdown", "dph-f+balanced", 0.3, 200)):
        frontier.run_trial(trial, tmp_path)
    frontier.collect(tmp_path)
    table, runs = frontier.read(tmp_path)
    assert list(table.columns) == evaluation.COLUMNS
    assert table.groupby(["method", "split"], observed=True).size().to_dict() == {
        (method, split): count
        for method in ("base", "dph-f+balanced")
        for split, count in {"validation": 3, "test": 3, "probe": 2}.items()
    }
    trained = runs.set_index("method").loc["dph-f+balanced"]
    assert (
        trained["strength"] == 0.3
        and trained["seed"] == table["seed"].max() == 200
        and trained["tokens_trained"] > trained["tokens"]
    )
    assert set(table.loc[table["method"] == "base", "strength"].isna()) == {True}
    assert runs["entropy"].between(0.05, 2).all()


def test_a_sweep_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "ProcessPoolExecutor", lambda *settings: ThreadPoolExecutor(1))
    ran = []
    monkeypatch.setattr(
        frontier, "run_trial", lambda t, folder: (ran.append(t), (folder / f"{t.name}.parquet").touch())
    )
    wanted = trials(["countdown"], ["grpo", "sft"], (0,))
    assert frontier.sweep(wanted, tmp_path, minutes=0) == 7 and not ran
    assert "7 of 7 runs are missing; the same command goes on" in capsys.readouterr().err
    assert frontier.sweep(wanted[:2], tmp_path) == 0
    assert [t.method for t in ran] == ["base", *(t.method for t in wanted[:2])]
    assert frontier.sweep(wanted, tmp_path) == 0
    assert len(ran) == len(set(ran)) == 7


def test_collected_runs_are_not_run_again_and_stay(small, tmp_path):
    first, second = Trial("countdown", "grpo", None, 0), Trial("countdown", "base", None, 0)
    frontier.run_trial(first, tmp_path)
    frontier.collect(tmp_path)
    for path in tmp_path.glob("*-seed0.*"):  # as in a copy of what is shipped
        path.unlink()
    assert frontier._done(tmp_path) == {first.name}
    before = frontier.read(tmp_path)[0]
    frontier.run_trial(second, tmp_path)
    frontier.collect(tmp_path)
    frontier.collect(tmp_path)  # what is there twice is not counted twice
    table, runs = frontier.read(tmp_path)
    assert frontier._done(tmp_path) == {first.name, second.name} and len(runs) == 2
    assert (
        list(runs["method"]) == list(table["method"].unique()) == ["base", "grpo"]
    )  # not in the order in which they ran
    again = table[table["method"] == "grpo"].reset_index(drop=True)
    assert again.astype(str).equals(before.astype(str)) and len(table) == 2 * len(before)


def test_a_sweep_with_other_settings_is_refused(small, small_domain, tmp_path, monkeypatch):
    frontier.sweep([], tmp_path)
    monkeypatch.setattr(frontier, "DOMAINS", {"countdown": small_domain(threshold=5)})
    with pytest.raises(OtherRunError, match="threshold"):
        frontier.sweep([], tmp_path)


def test_unknown_names_are_said_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"method of the frontier.*ppo"):
        frontier.run(tmp_path / "x", methods=["ppo"])
    with pytest.raises(ValueError, match=r"domain.*math"):
        frontier.run(tmp_path / "x", domains=["math"])
    assert not (tmp_path / "x").exists()


def test_nothing_to_read_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="dphrl experiment frontier --out"):
        frontier.read(tmp_path)


def test_grpo_collapses_and_rehearsal_holds(small_domain, tmp_path, monkeypatch):
    """The robust facts on a short run: GRPO ends below the base model at k = 64, and DPH-F above GRPO; so do the bands."""
    larger = small_domain(
        trained=DOMAINS["countdown"].trained,
        settings={"steps": 40},
        held_out={"validation": {"cd3": 1}, "test": {"cd3": 60, "cd4": 140}, "probe": {"sort": 1}},
        drawn={"validation": 1, "test": 64, "probe": 1},
    )
    monkeypatch.setattr(frontier, "DOMAINS", {"countdown": larger})
    for method, strength in (("base", None), ("grpo", None), ("dph-f", 1.0)):
        frontier.run_trial(Trial("countdown", method, strength, 0), tmp_path)
    frontier.collect(tmp_path)
    table, _ = frontier.read(tmp_path)
    base, grpo, dph = ("base", None), ("grpo", None), ("dph-f", 1.0)
    assert conclusions.difference(table, "countdown", base, grpo, "Pass@64")["low"] > 0
    assert conclusions.difference(table, "countdown", dph, grpo, "Pass@64")["low"] > 0
    assert conclusions.difference(table, "countdown", grpo, base, "Pass@1")["low"] > 0


def test_a_strength_that_goes_back_lies_between_the_trained_and_the_untouched_model(small, tmp_path):
    settings = {"folder": tmp_path, "split": "validation", "progress": False, "steps": 3, "seed": 1}
    drawn = lambda *run: frontier.own_run(*run, **settings)["c"].tolist()
    frontier.run_trial(Trial("countdown", "base", None, 0), tmp_path)
    untouched = pd.read_parquet(tmp_path / "countdown-base-seed0.parquet").query("split == 'validation'")["c"].tolist()
    assert drawn("grpo+wise", 1.0) == untouched
    assert drawn("grpo+wise", 0.0) == drawn("grpo") != untouched
    assert set(frontier.own_run("grpo+wise", **settings)["strength"]) == {0.5}
    stages = Trial("countdown", "grpo+wise+4x", 0.6, 0).stages()
    assert (stages.train.steps, stages.back) == (4 * frontier.DOMAINS["countdown"].steps, 0.6)


def test_an_own_run_is_that_of_the_sweep(small, tmp_path):
    frontier.run_trial(Trial("countdown", "dph-f+balanced", 0.3, 1), tmp_path)
    frontier.collect(tmp_path)
    table, _ = frontier.read(tmp_path)
    swept = table[table["split"] == "test"].reset_index(drop=True)
    own = frontier.own_run("dph-f+balanced", 0.3, tmp_path / "own", seed=1, progress=False)
    assert own["c"].tolist() == swept["c"].tolist() and own["problem"].tolist() == swept["problem"].tolist()
    fewer = frontier.own_run("grpo", None, tmp_path / "own", split="validation", problems=2, steps=1, progress=False)
    assert len(fewer) == 2 and set(fewer["split"]) == {"validation"} and fewer["strength"].isna().all()


@pytest.mark.parametrize("wrong", [{"method": "ppo"}, {"domain": "math"}, {"split": "train"}])
def test_an_own_run_that_cannot_be_says_so_before_anything_runs(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected one of"):
        frontier.own_run(**({"method": "grpo", "folder": tmp_path / "x"} | wrong))
    assert not (tmp_path / "x").exists()
