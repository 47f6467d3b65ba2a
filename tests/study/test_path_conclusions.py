"""What paths say of made-up runs whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from dphrl_lite.study import path_conclusions as paths
from dphrl_lite.study.path_conclusions import POINT

STEPS = (20, 60, 120, 200)


def made(lines: dict, seeds=3, problems=240, noise=0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Outcomes and runs: line (method, strength, rate, back) -> steps -> (Pass@1, share of problems never solved, KL)."""
    rng, rows, runs = np.random.default_rng(0), [], []
    hard = rng.random(problems)
    for (method, strength, rate, back), points in lines.items():
        for steps, (one, lost, kl) in points.items():
            for seed in range(1 if method == "base" else seeds):
                point = dict(zip(POINT, (method, strength, rate, steps, back), strict=True))
                for split, n, high in (("validation", 64, one), ("test", 64, one), ("probe", 16, 0.6 - lost)):
                    share = np.clip(high + noise * rng.standard_normal(problems), 0.02, 0.98)
                    if split != "probe":
                        share = np.where(hard < lost, 0, share)
                    ids = [f"{split}:{i % 60}:{i}" for i in range(problems)]
                    frame = pd.DataFrame({"problem": ids, "n": n, "c": rng.binomial(n, share), "distinct": 1})
                    rows.append(frame.assign(domain="countdown", split=split, family="f", seed=seed, **point))
                spent = {"tokens": 1e4 * steps, "tokens_trained": 1e4 * steps, "reference_forwards": 0.0}
                spent["reference_forwards"] = 5.0 if method == "rkl" else 0.0
                runs.append(
                    {"domain": "countdown", "seed": seed, "kl": kl, "kl_probe": kl, "entropy": 0.3} | point | spent
                )
    types = {"strength": float, "learning_rate": float}
    return pd.concat(rows, ignore_index=True).astype(types), pd.DataFrame(runs).astype(types)


@pytest.fixture(scope="module")
def world():
    """A smaller step is all that helps: `dph-f` is `grpo` at the same distance; `sft` loses more than its distance says."""
    fast = {steps: (0.35 + 0.1 * i, 0.05 * i, 1.0 * i) for i, steps in enumerate(STEPS, 1)}
    slow = {steps: (0.35 + 0.05 * i, 0.025 * i, 0.5 * i) for i, steps in enumerate(STEPS, 1)}
    worse = {steps: (one, lost + 0.15, kl) for steps, (one, lost, kl) in slow.items()}
    return made(
        {
            ("base", np.nan, np.nan, 0.0): {0: (0.3, 0.0, 0.0)},
            ("grpo", np.nan, 1e-4, 0.0): fast,
            ("grpo", np.nan, 3e-5, 0.0): slow,
            ("grpo", np.nan, 1e-4, 0.5): {200: (0.5, 0.1, 2.0)},
            ("dph-f", 0.3, 1e-4, 0.0): fast,
            ("dph-f", 0.3, 3e-5, 0.0): slow,
            ("rkl", 0.3, 3e-5, 0.0): slow,
            ("sft", 0.3, 3e-5, 0.0): worse,
        }
    )


def test_every_configuration_competes_and_is_found_again(world):
    table, _ = world
    outcomes, behind = paths.configurations(table)
    assert len(outcomes) == len(table)
    counted = behind.groupby("method").size().to_dict()
    assert counted == {"base": 1, "grpo": 8, "grpo+wise": 1, "dph-f": 8, "rkl": 4, "sft": 4}
    assert behind.loc[behind["method"].isin(["base", "grpo+wise"]), "number"].isna().all()
    assert (behind.loc[behind["method"] != "base", "seeds"] == 3).all()
    best = paths.best(table, "countdown")
    assert list(best.index[:2]) == ["base", "grpo"] and {"grpo+wise", "sft"} < set(best.index)
    grpo = table[(table["method"] == "grpo") & (table["back"] == 0)]
    merit = grpo.assign(one=grpo["c"] / grpo["n"], many=grpo["c"] > 0).groupby(["split", "learning_rate", "steps"])
    merit = merit[["one", "many"]].mean()
    rate, steps = merit.loc["validation"].sum(axis=1).idxmax()
    row = best.loc["grpo"]
    assert (row["learning_rate"], row["steps"]) == (rate, steps)
    assert row[["Pass@1", "Pass@64"]].tolist() == pytest.approx(merit.loc["test", rate, steps].tolist())


def test_configurations_of_too_few_seeds_are_not_chosen(world):
    table, _ = world
    slow = (table["method"] == "grpo") & (table["learning_rate"] == 3e-5) & (table["seed"] > 0)
    behind = paths.configurations(table[~slow])[1]
    assert set(behind.loc[behind["method"] == "grpo", "learning_rate"]) == {1e-4}


def test_at_equal_pass_at_1_equals_are_equal_and_who_loses_more_is_seen(world):
    table, _ = world
    found = paths.at_equal(table, "countdown", 0.44)
    assert set(found.index.unique("method")) == {"dph-f", "grpo+wise", "rkl"}  # sft does not get there
    same = found.loc[("dph-f", "Pass@64")]
    assert abs(same["difference"]) < 0.02 and same["p"] > 0.05
    worse = paths.at_equal(table, "countdown", 0.3).loc[("sft", "Pass@64")]
    assert worse["difference"] < -0.1 and worse["p"] < 0.05
    assert paths.at_equal(table, "countdown", 0.99).empty


def test_cost_counts_the_backward_pass_and_the_reference():
    rows = [[100, 50, 0], [100, 50, 8], [np.nan, np.nan, np.nan]]
    runs = pd.DataFrame(rows, columns=["tokens", "tokens_trained", "reference_forwards"])
    assert list(paths.cost(runs)) == [250, 350, 0]


def test_at_equal_cost_nothing_dearer_is_chosen(world):
    table, runs = world
    budget = 4e4 * 60
    cheap = paths.affordable(table, runs, budget)
    assert set(cheap["steps"]) == {0, 20, 60}
    assert set(cheap.loc[cheap["method"] == "rkl", "steps"]) == {20}  # the reference costs, too
    found = paths.at_equal_cost(table, runs, "countdown", budget)
    assert "grpo+wise" not in found.index.unique("method") and "dph-f" in found.index.unique("method")


def test_who_leaves_the_one_curve(world):
    points = paths.distances(*world, "countdown")
    assert len(points) == len(world[1]) - 1 and points["kl"].notna().all()
    found, explained = paths.leaves(points)
    assert found.loc["sft", "low"] > 0.1 and found.loc["sft", "p"] < 0.05
    assert abs(found.loc["dph-f", "off"]) < 0.06
    alone = points[points["method"] != "sft"]
    found, explained = paths.leaves(alone)
    assert explained > 0.95 and (found["off"].abs() < 0.02).all()


def test_a_line_is_a_run_along_its_steps(world):
    table = paths.lines(world[0])
    steps = table.loc[table["method"] == "dph-f 0.3 at 3e-05", "strength"].unique()
    assert sorted(steps) == list(STEPS)
    assert table.loc[table["method"] == "grpo at 0.0001, 0.5 back", "strength"].isna().all()


def test_the_report_holds_every_table_and_says_what_it_chose_by(world):
    text = paths.report(*world)
    for words in (
        "18 paths",
        paths.RULE,
        "equal Pass@1",
        "the cost of grpo's 60 steps",
        "who leaves it",
        "learning rate 3e-05 throughout",
        "each method at its best",
    ):
        assert words in text, words


def test_figures_show_every_line_and_point(world):
    from dphrl_lite import figures

    points = paths.distances(*world, "countdown")
    figure = figures.loss_by_distance(points)
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in dots) == 2 * len(points)
    scores = paths.mean_scores(world[0], "countdown")
    drawn = figures.path_fronts(scores, "Pass@8")
    assert {trace.name for trace in drawn.data} == set(scores["line"]) - {"base"}
    rates = {trace.name: trace.line.dash for trace in drawn.data}
    assert rates["grpo at 3e-05"] != rates["grpo at 0.0001"] == rates["dph-f 0.3 at 0.0001"]
    with pytest.raises(ValueError, match="column of scores"):
        figures.path_fronts(scores, "Pass@7")


def test_the_learning_rate_is_a_switch(world):
    from dphrl_lite import widgets

    explorer = widgets.path_explorer(paths.mean_scores(world[0], "countdown"), paths.distances(*world, "countdown"))
    named = lambda: {trace.name for trace in explorer.figures[0].data}
    assert {"grpo at 0.0001", "grpo at 3e-05", "dph-f 0.3 at 3e-05"} <= named()
    explorer.controls["0.0001"].value = False
    assert "grpo at 0.0001" not in named() and "grpo at 3e-05" in named()
    explorer.controls["dph-f"].value = False
    assert "dph-f 0.3 at 3e-05" not in named()
    for name in ("3e-05", "grpo", "rkl", "sft"):  # nothing is left, and nothing breaks
        explorer.controls[name].value = False
    assert named() == set()


def test_path_against_path_sees_what_the_choice_is_too_coarse_for(world):
    found = paths.line_differences(world[0], "countdown").set_index(["first", "score"])
    small, large = "grpo at 3e-05", "grpo at 0.0001"
    pairs = [(small, large), ("dph-f 0.3 at 0.0001", small), ("dph-f 0.3 at 0.0001", large)]
    pairs += [(f"{name} 0.3 at 3e-05", small) for name in ("dph-f", "rkl", "sft")]
    first = paths.line_differences(world[0], "countdown", scores=["Pass@64"])
    assert set(zip(first["first"], first["second"], strict=True)) == set(pairs)
    same, worse = (found.loc[(f"{name} 0.3 at 3e-05", "Pass@64")] for name in ("dph-f", "sft"))
    assert abs(same["difference"]) < 0.01 and same["p"] > 0.05
    assert worse["difference"] < -0.1 and worse["p"] < 0.05
    one = paths.line_differences(
        world[0], "countdown", [("dph-f 0.3 at 0.0001", "grpo at 0.0001"), ("no", "such")], ["Pass@8"]
    )
    assert len(one) == 1 and set(one["domain"]) == {"countdown"}


def test_where_a_penalty_helps_is_told_at_equal_pass_at_1_and_on_other_tasks(world):
    table = world[0].replace({"domain": {"countdown": "elsewhere"}})
    found = paths.where_it_helps(pd.concat([world[0], table], ignore_index=True))
    rates = {"dph-f": ("0.0001", "3e-05"), "rkl": ("3e-05",), "sft": ("3e-05",)}
    asked = {
        (f"{name} 0.3 at {rate}", score)
        for name in rates
        for rate in rates[name]
        for score in ("Pass@64", "other tasks")
    }
    assert set(found.index) == {(domain, *row) for domain in ("countdown", "elsewhere") for row in asked}
    for domain in ("countdown", "elsewhere"):
        same, worse = (found.loc[(domain, f"{name} 0.3 at 3e-05")] for name in ("dph-f", "sft"))
        assert (same["difference"].abs() < 0.01).all() and (same["p"] > 0.05).all()
        assert (worse["difference"] < -0.1).all() and (worse["p"] < 0.05).all()
        assert worse["Pass@1 in the end"].abs().lt(0.1).all()


def test_what_a_smaller_step_does_is_told_after_the_last_step(world):
    elsewhere = world[0].replace({"domain": {"countdown": "elsewhere"}})
    one_rate = elsewhere[elsewhere["learning_rate"] != 3e-5].replace({"domain": {"elsewhere": "one rate"}})
    found = paths.smaller_step(pd.concat([world[0], elsewhere, one_rate], ignore_index=True))
    scores = {"Pass@1": 0.55 * 0.9 - 0.75 * 0.8, "Pass@64": 0.1, "other tasks": 0.1}  # as the world was made
    asked = {
        (domain, "grpo at 3e-05", "grpo at 0.0001", score) for domain in ("countdown", "elsewhere") for score in scores
    }
    assert set(found.index) == asked
    for (*_, score), row in found.iterrows():
        assert row["low"] <= scores[score] <= row["high"] and row["p"] < 0.1
        assert row["difference"] == pytest.approx(scores[score], abs=0.04)


def test_every_point_knows_its_distance_and_its_cost(world):
    found = paths.every_point(*world, "countdown").set_index(["line", "steps"])
    assert len(found) == 26 and (found.loc[("base", 0), ["kl", "M passes"]] == 0).all()
    assert found.loc[("rkl 0.3 at 3e-05", 60), "M passes"] == pytest.approx(3.0)
    assert found.loc[("grpo at 0.0001, 0.5 back", 200), "kl"] == 2.0


def test_equal_heights_are_read_between_points(world):
    scores = paths.mean_scores(world[0], "countdown")
    found = paths.at_one_height(scores, 0.42)
    assert found["grpo at 0.0001"] == pytest.approx(found["grpo at 3e-05"], abs=0.02)
    assert found["sft 0.3 at 3e-05"] < found["rkl 0.3 at 3e-05"] - 0.1
    assert paths.at_one_height(scores, 0.9).isna().all()


def test_what_decides_is_ranked_above_the_floor_of_seeds(world):
    ranked = paths.ranking(world[0], "countdown", 0.42)
    first, rest = ranked.iloc[0], ranked.iloc[1:]
    assert ranked.index[0] == "a penalty, and which" and first["worst"] == "sft 0.3 at 3e-05" and first["spread"] > 0.1
    assert {"size of the step", "size of the step, with dph-f", "floor: seeds of grpo"} == set(rest.index)
    assert (rest["spread"] < 0.03).all() and (ranked["seeds"] == 3).all()


def test_who_comes_within_a_point_is_chosen_on_validation(world):
    found = paths.within_a_point(world[0], "countdown")
    assert set(found.index) == {"grpo", "grpo+wise", "dph-f", "rkl", "sft"}
    margins = found[["Pass@1 - grpo", "Pass@64 - base", "other tasks - base"]]
    assert found["worst"].tolist() == pytest.approx(margins.min(axis=1).tolist()) and (found["worst"] < -0.01).all()
    # the middle of the way is nearest, whichever way: what is won at one end is lost at the other
    assert found.loc["grpo", ["Pass@1 - grpo", "Pass@64 - base"]].max() < 0.02
