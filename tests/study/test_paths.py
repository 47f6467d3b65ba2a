"""A path is a run evaluated as it goes on, goes on after a kill, and its KL is that of the definition."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from families import bytes_policy

from dphrl_lite import models, presampling
from dphrl_lite.engine.checkpoint import read_manifest, weights_digest
from dphrl_lite.evaluation import COLUMNS, ProblemSet
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import clusters_of
from dphrl_lite.study import frontier, paths
from dphrl_lite.study.paths import CLAIMS, DOMAINS, LINES, PathTrial
from dphrl_lite.tasks import arithmetic


@pytest.fixture
def small_paths(monkeypatch):
    """Paths of seconds: two steps on few problems."""
    few = {"trained": {"cd3": 24, "cd4": 8}, "drawn": {"validation": 4, "test": 4, "probe": 2}, "checkpoints": (1, 2)}
    few |= {"held_out": {"validation": {"cd3": 3}, "test": {"cd3": 2}, "probe": {"sort": 2}}}
    domain = replace(paths.DOMAINS["countdown"], **few, settings={"problems_per_step": 4})
    monkeypatch.setattr(paths, "DOMAINS", {"countdown": domain})


@pytest.mark.parametrize(
    ("shipped", "identity"), [(frontier.FRONTIER, frontier._identity), (paths.PATHS, paths._identity)]
)
def test_the_shipped_runs_can_be_read_and_gone_on_with(shipped, identity):
    """Their manifest is what the sweep claims a folder with, so that a copy of it is resumed."""
    manifest, outcomes = read_manifest(shipped), frontier.read(shipped)[0]
    asked = json.loads(json.dumps(identity()))
    assert {name: manifest.get(name) for name in asked} == asked
    assert manifest["weights"] == weights_digest(models.load("tiny").model)
    assert {"base", "grpo"} < set(outcomes["method"]) and (outcomes["c"] <= outcomes["n"]).all()


def test_a_path_holds_outcomes_cost_and_kl_of_every_checkpoint_and_of_the_way_back(small_paths, tmp_path):
    for trial in (PathTrial("countdown", "base", None, 0), PathTrial("countdown", "dph-f", 0.3, 1, 1e-3)):
        trial.run(tmp_path)
    frontier.collect(tmp_path, PathTrial, COLUMNS + paths.POINT)
    table, runs = frontier.read(tmp_path)
    assert list(table.columns) == COLUMNS + paths.POINT
    points = [(0, 0.0), (1, 0.0), (2, 0.0), (2, 0.3)]
    assert list(zip(runs["steps"], runs["back"], strict=True)) == points
    assert table.groupby(["steps", "back"]).size().to_dict() == dict.fromkeys(points, 7)
    base, first, second, back = (row for _, row in runs.iterrows())
    assert base["kl"] == pytest.approx(0, abs=1e-5) and base["kl_probe"] == pytest.approx(0, abs=1e-5)
    assert 0 < back["kl"] != second["kl"] > 0 and second["tokens"] == back["tokens"] > first["tokens"]
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())


def test_a_killed_path_goes_on_and_gives_the_same(small_paths, tmp_path, monkeypatch):
    trial = PathTrial("countdown", "grpo", None, 0, 1e-4)
    trial.run(tmp_path / "whole")
    whole_kl, calls = paths.kl_to_reference, []

    def killed(*given, **settings):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return whole_kl(*given, **settings)

    monkeypatch.setattr(paths, "kl_to_reference", killed)
    with pytest.raises(KeyboardInterrupt):
        trial.run(tmp_path / "killed")
    assert not (tmp_path / "killed" / f"{trial.name}.parquet").exists()
    monkeypatch.setattr(paths, "kl_to_reference", whole_kl)
    trial.run(tmp_path / "killed")
    tables = [pd.read_parquet(tmp_path / kind / f"{trial.name}.parquet") for kind in ("whole", "killed")]
    pd.testing.assert_frame_equal(*tables)
    costs = [json.loads((tmp_path / kind / f"{trial.name}.json").read_text()) for kind in ("whole", "killed")]
    for one, other in zip(*costs, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_kl_is_the_mean_over_answers_of_the_sum_of_log_ratios(countdown, few_problems, tiny):
    moved = tiny.copy()
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight.mul_(1.01)
    part = ProblemSet("few", countdown, few_problems[:2])
    assert paths.kl_to_reference(tiny, tiny, [part]) == pytest.approx(0, abs=1e-4)
    # by hand: the answers that are drawn, scored by both in one sequence each
    drawn = presampling.sample(moved, countdown, part.problems, 4, seed=2, progress=False)
    prompts = {p.id: moved.encode(p.prompt) for p in part.problems}
    total = 0.0
    for row in drawn.itertuples():
        ids = torch.tensor([[*prompts[row.problem_id], *row.token_ids]])
        at = torch.arange(len(prompts[row.problem_id]) - 1, ids.shape[1] - 1)
        logps = [p.model(ids).logits[0, at].log_softmax(-1) for p in (moved, tiny)]
        chosen = [x.gather(1, ids[0, at + 1, None]).sum() for x in logps]
        total += (chosen[0] - chosen[1]).item()
    assert paths.kl_to_reference(moved, tiny, [part]) == pytest.approx(total / len(drawn), abs=1e-3)


def test_names_tell_paths_apart_and_seeds_come_in_turn():
    every = paths.trials()
    assert len({trial.name for trial in every}) == len(every)
    assert [trial.seed for trial in every] == sorted(trial.seed for trial in every)
    claimed = {line.method for line in CLAIMS}
    assert {trial.method for trial in every if trial.seed == 4} == claimed
    assert {trial.domain for trial in every} == set(DOMAINS) - {paths.CLASS}
    with pytest.raises(ValueError, match=r"method of the paths.*ppo"):
        paths.run("nowhere", methods=["ppo"])
    with pytest.raises(ValueError, match=r"domain of the paths.*math"):
        paths.run("nowhere", domains=["math"])


def test_what_varies_the_divergence_alone_has_one_curvature():
    alone = {
        line.method: line.strength
        for line in LINES["countdown"]
        if line.method in ("dph-reverse_kl", "dph-hellinger", "dph-pearson_chi2")
    }
    assert len(alone) == 3
    for method, strength in alone.items():
        assert strength == pytest.approx(0.3 * METHODS[method].strength)


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_no_problem_is_in_two_splits(domain):
    sets = [
        [p.id for p in domain.problems],
        *([p.id for s in parts for p in s.problems] for parts in domain.sets.values()),
    ]
    every = [i for ids in sets for i in ids]
    assert len(set(every)) == len(every)
    clusters = [set(clusters_of(ids)) for ids in sets]
    assert not set.intersection(clusters[0], set().union(*clusters[1:]))


def test_sql_is_tested_on_a_hundred_databases_and_products_on_all_that_are_held_out():
    tested = [p.meta["db_id"] for part in DOMAINS["sql"].sets["test"] for p in part.problems]
    assert len(set(tested)) == 100 and len(tested) == 1000
    (products,) = DOMAINS["multiplication"].sets["test"]
    assert {tuple(p.meta["numbers"]) for p in products.problems} == {
        (a, b) for a in range(2, 10) for b in range(2, 10) if arithmetic.is_held_out(a, b)
    }


def test_variants_change_what_their_names_say():
    partition = lambda name: PathTrial("countdown", name, None, 0).stages().partition
    assert partition("dph-f+wrong").rehearse_wrong and not partition("dph-f+wrong").rehearse_exploration
    assert partition("dph-f+all+wrong").rehearse_wrong and partition("dph-f+all+wrong").rehearse_exploration
    assert partition("grpo+seldom").explore_at_most == 2 and partition("grpo").explore_at_most is None
    assert PathTrial("countdown", "grpo+distinct", None, 0).stages().train.distinct_advantage


def test_a_language_models_path_runs_as_the_tiny_ones(tmp_path, monkeypatch):
    some = {key: {"multiplication": 2} for key in ("validation", "test")} | {"probe": {"addition": 1}}
    prompts = [p.prompt for p in DOMAINS["multiplication"].problems]
    bytes_policy(tmp_path / "model", prompts, "12", steps=5)
    cheap = {
        "problems_per_step": 2,
        "samples": 2,
        "rehearsal_per_step": 2,
        "max_new_tokens": 2,
        "gradient_parts": False,
    }
    domain = replace(
        DOMAINS["multiplication"],
        **{"model": str(tmp_path / "model"), "held_out": some, "settings": cheap, "checkpoints": (1,)},
        drawing={"max_new_tokens": 2},
        generation={"max_new_tokens": 2},
        trained={"multiplication": 6},
        drawn=dict.fromkeys(DOMAINS["multiplication"].drawn, 4),
    )
    monkeypatch.setattr(paths, "DOMAINS", {"multiplication": domain})
    for trial in (PathTrial("multiplication", "base", None, 0), PathTrial("multiplication", "grpo", None, 0, 1e-3)):
        trial.run(tmp_path / "out")
    frontier.collect(tmp_path / "out", PathTrial, COLUMNS + paths.POINT)
    table, runs = frontier.read(tmp_path / "out")
    assert runs[["steps", "back"]].to_numpy().tolist() == [[0, 0], [1, 0], [1, 0.3]]
    assert runs["kl"].iloc[0] == pytest.approx(0, abs=1e-4) and runs["kl"].notna().all()
    assert (table["n"] == 4).all() and set(table["family"].astype(str)) == {"multiplication", "addition"}
