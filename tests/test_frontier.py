"""The sweep's trials and problems are what was written down, and conclusions are right where the answer is known."""

import numpy as np
import pandas as pd
import pytest

from dphrl_lite import frontier
from dphrl_lite.frontier import HELD_OUT, TRAIN, chosen, matched, run_scores, strengths, trials


def test_about_three_hundred_different_trials_seed_by_seed():
    every = trials()
    assert len({trial.name for trial in every}) == len(every) == 2 * 5 * (5 * 5 + 7)
    assert [trial.seed for trial in every] == sorted(trial.seed for trial in every)
    assert {trial.method for trial in trials(methods=["grpo", "dph-js"])} == {"grpo", "dph-js"}


def test_fronts_are_swept_at_equal_curvature():
    swept = {method: values for method, values in strengths().items() if len(values) > 1}
    assert set(swept) == {"rkl", "rkl-k3", "sft", "dph-f", "dph-js"}
    assert np.allclose(np.array(swept["dph-js"]) / 2, swept["dph-f"])  # f''(1) is 1/2 and 1


@pytest.mark.parametrize("domain", TRAIN)
def test_no_problem_is_in_two_splits_and_enough_are_tested(domain):
    ids = [p.id for p in frontier.training_problems(domain)]
    sets = {
        split: [p.id for some in frontier._sets(domain, split) for p in some.problems] for split in HELD_OUT[domain]
    }
    everything = [*ids, *(i for split in sets.values() for i in split)]
    assert len(set(everything)) == len(everything)
    assert len(sets["test"]) >= 1000


def made(fronts: dict, seeds=5, problems=200, n=64) -> pd.DataFrame:
    """Outcomes whose Pass@1 and Pass@64 are known: a share `one` of problems is always solved, and of the others as many as
    bring those solved at all to `many` are solved once in 64."""
    rows = []
    for method, points in fronts.items():
        for (strength, one, many), seed in ((p, s) for p in points for s in range(seeds)):
            always, ever = round(one * problems), round(many * problems)
            counts = np.where(np.arange(problems) < always, n, np.where(np.arange(problems) < ever, 1, 0))
            run = {"method": method, "strength": strength, "seed": seed, "family": "f", "n": n, "c": counts}
            for split in ("validation", "test"):
                run |= {"problem": [f"{split}{i:03d}" for i in range(problems)], "distinct": np.minimum(counts, 1)}
                rows.append(pd.DataFrame(run).assign(domain="toy", split=split))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def table():
    upper = [(0.1, 0.6, 0.7), (1.0, 0.4, 0.9)]
    lower = [(0.1, 0.7, 0.5), (1.0, 0.3, 0.9)]
    return made({"dph-js": upper, "rkl": lower, "same": upper, "apart": [(1.0, 0.95, 0.95)]})


def test_matched_differences_are_those_of_the_lines(table):
    found = matched(table, "toy", "dph-js", "rkl", resamples=200)
    # upper at Pass@1 = x: .7 + (.6 - x), lower: .5 + (.7 - x); apart from the once-in-64 answers' part of Pass@1
    assert found["difference"] == pytest.approx(0.1, abs=0.01)
    assert found["low"] < found["difference"] < found["high"]
    assert 0.4 <= found["from_"] < found["to"] <= 0.61
    turned = matched(table, "toy", "rkl", "dph-js", resamples=200)
    assert turned["difference"] == pytest.approx(-found["difference"])


def test_a_front_against_itself_is_zero_with_no_band(table):
    found = matched(table, "toy", "dph-js", "same", resamples=50)
    assert found["difference"] == found["low"] == found["high"] == 0


def test_fronts_without_a_common_pass_at_1_are_not_compared(table):
    found = matched(table, "toy", "dph-js", "apart", resamples=20)
    assert np.isnan([found["difference"], found["low"], found["high"]]).all()


def test_other_seeds_are_refused(table):
    fewer = table[(table["method"] != "rkl") | (table["seed"] < 3)]
    with pytest.raises(ValueError, match="dph-js has 5 seeds and rkl 3"):
        matched(fewer, "toy", "dph-js", "rkl")
    with pytest.raises(ValueError, match="no runs of 'sft' in 'toy'; there are"):
        matched(table, "toy", "sft", "rkl")


def test_the_rule_looks_at_validation_alone(table):
    scores = run_scores(table)
    best = chosen(scores).set_index("method")["strength"]
    assert (
        best["rkl"] == 0.1
    )  # .7 + .5 against .3 + .9: a tie in the drawing, decided by the rare answers' part of Pass@1
    worse = table.copy()
    worse.loc[(worse["split"] == "validation") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert chosen(run_scores(worse)).set_index("method")["strength"]["dph-js"] != best["dph-js"]
    worse = table.copy()
    worse.loc[(worse["split"] == "test") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert chosen(run_scores(worse)).set_index("method")["strength"]["dph-js"] == best["dph-js"]


def test_scores_are_means_over_problems_and_missing_beyond_n(table):
    scores = run_scores(table, ks=(1, 64))
    row = scores.loc[("toy", "test", "dph-js", 0.1, 0)]
    assert row["Pass@64"] == pytest.approx(0.7)
    assert row["Pass@1"] == pytest.approx(0.6 + 0.1 / 64)
    few = run_scores(table.assign(n=16, c=table["c"].clip(upper=16)), ks=(16, 64))
    assert few["Pass@64"].isna().all() and few["Pass@16"].notna().all()
