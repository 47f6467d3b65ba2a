"""Conclusions are right where the answer is known: toy outcomes whose Pass@1 and Pass@64 were chosen."""

import numpy as np
import pandas as pd
import pytest

from dphrl_lite.study import conclusions
from dphrl_lite.study.conclusions import Claim, chosen, difference, matched, mean, report, run_scores, verdicts


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
    upper = [(0.1, 0.6, 0.8), (1.0, 0.4, 1.0)]
    lower = [(0.1, 0.55, 0.75), (1.0, 0.35, 0.95)]
    return made({"dph-js": upper, "rkl": lower, "same": upper, "apart": [(1.0, 0.95, 0.95)]})


def test_matched_differences_are_those_of_the_lines(table):
    found = matched(table, "toy", "dph-js", "rkl")
    # upper at Pass@1 = x: 1.4 - x, lower: 1.3 - x; apart from the once-in-64 answers' part of Pass@1
    assert found["value"] == pytest.approx(0.1, abs=0.01)
    assert found["low"] < found["value"] < found["high"]
    assert 0.4 <= found["from_"] < found["to"] <= 0.56
    turned = matched(table, "toy", "rkl", "dph-js")
    assert turned["value"] == pytest.approx(-found["value"])


def test_a_front_against_itself_is_zero_with_no_band(table):
    found = matched(table, "toy", "dph-js", "same")
    assert found["value"] == found["low"] == found["high"] == 0


def test_a_single_point_is_compared_where_it_stands():
    table = made({"dph-f": [(0.1, 0.6, 0.8), (1.0, 0.4, 1.0)], "grpo+pass@4": [(np.nan, 0.5, 0.95)]})
    found = conclusions.at_equal_pass_at_1(table, "toy", scores=["Pass@64"]).iloc[0]
    assert (found["first"], found["second"]) == ("grpo+pass@4", "dph-f")
    assert found["difference"] == pytest.approx(0.05, abs=0.01)  # the line is at .9 there
    assert found["from_"] == found["to"] == pytest.approx(0.5, abs=0.01)


def test_fronts_without_a_common_pass_at_1_are_not_compared(table):
    found = matched(table, "toy", "dph-js", "apart")
    assert np.isnan([found["value"], found["low"], found["high"]]).all()
    assert conclusions.verdict(found["low"], found["high"]) == "not comparable"


def test_only_common_seeds_are_compared(table):
    part = (table["method"] == "rkl") & (table["seed"] >= 3)
    worse = table.assign(c=table["c"].where(~part, 0))
    assert (
        matched(worse[~part], "toy", "dph-js", "rkl")["value"]
        == matched(table[table["seed"] < 3], "toy", "dph-js", "rkl")["value"]
    )
    one = table[
        (table["method"] != "rkl") | (table["seed"] == 2)
    ]  # one seed is no base model, to stand beside all five
    found = matched(one, "toy", "dph-js", "rkl")
    assert found == matched(table[table["seed"] == 2], "toy", "dph-js", "rkl")
    assert found["seeds"] == 1
    alone = table.assign(seed=table["seed"] + 10 * (table["method"] == "rkl"))
    with pytest.raises(ValueError, match="no seed, or no problem, in common"):
        matched(alone, "toy", "dph-js", "rkl")


def test_unknown_runs_are_said(table):
    with pytest.raises(ValueError, match="no runs of 'sft' in 'toy'; there are"):
        matched(table, "toy", "sft", "rkl")
    with pytest.raises(ValueError, match=r"no runs of 'rkl' at 7 in 'toy', test; methods there: \['apart', 'dph-js'"):
        difference(table, "toy", ("rkl", 7), ("rkl", 1.0), "Pass@1")


def test_a_difference_is_paired(table):
    """Two runs that differ in ten of 200 problems, the same ones for each seed: the band is that of those ten."""
    found = difference(table, "toy", ("dph-js", 0.1), ("rkl", 0.1), "Pass@64")
    assert found["value"] == pytest.approx(0.05)
    spread = np.sqrt(0.05 * 0.95 / 200)  # of a share of 200 problems; of unpaired ones it would be larger
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    same = difference(table, "toy", ("rkl", 0.1), ("rkl", 0.1), "Pass@64")
    assert same == {"value": 0, "low": 0, "high": 0, "seeds": 5}


def test_bands_know_of_the_choice_of_seeds():
    """The same problems solved in every run, but for seeds that solve all: only seeds can change."""
    rows = made({"m": [(0.5, 0.5, 0.5)]}, seeds=8, problems=50)
    rows["c"] = np.where(rows["seed"] < 4, rows["n"], 0)
    found = mean(rows, "toy", ("m", 0.5), "Pass@1")
    assert found["value"] == 0.5
    assert found["low"] == pytest.approx(0.5 - 1.96 * 0.5 / np.sqrt(8), abs=0.1)


def verdict(first, second, within=0.0, **fronts):
    claim = Claim("it is so", first, second, "Pass@64", within=within)
    return verdicts(made(fronts), of=[claim])["verdict"].item()


def test_verdicts():
    base, low = [(1.0, 0.3, 0.9)], [(1.0, 0.4, 0.6)]
    assert verdict("base", "grpo", base=base, grpo=low) == "holds"
    assert verdict("grpo", "base", base=base, grpo=low) == "does not hold"
    assert verdict("grpo", "base", base=base, grpo=base) == "cannot be told"  # not higher, and not lower
    assert verdict("grpo", "base", within=0.01, base=base, grpo=base) == "holds"
    assert verdict("grpo", "base", within=0.5, base=base, grpo=low) == "holds"


def test_claims_about_methods_that_were_not_run_are_left_out(table):
    assert verdicts(table)["claim"].tolist() == ["at equal Pass@1, DPH-JS has a higher Pass@64 than reverse KL"]


def test_the_rule_looks_at_validation_alone(table):
    scores = run_scores(table)
    best = chosen(scores).set_index("method")["strength"]
    assert best["rkl"] == 1.0  # .35 + .95 against .55 + .75: the answers that are right once in 64 decide
    worse = table.copy()
    worse.loc[(worse["split"] == "validation") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert chosen(run_scores(worse)).set_index("method")["strength"]["dph-js"] != best["dph-js"]
    worse = table.copy()
    worse.loc[(worse["split"] == "test") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert chosen(run_scores(worse)).set_index("method")["strength"]["dph-js"] == best["dph-js"]


def test_scores_are_means_over_problems_and_missing_beyond_n(table):
    scores = run_scores(table, ks=(1, 64))
    row = scores.loc[("toy", "test", "dph-js", 0.1, 0)]
    assert row["Pass@64"] == pytest.approx(0.8)
    assert row["Pass@1"] == pytest.approx(0.6 + 0.2 / 64)
    few = run_scores(table.assign(n=16, c=table["c"].clip(upper=16)), ks=(16, 64))
    assert few["Pass@64"].isna().all() and few["Pass@16"].notna().all()


def test_fronts_of_one_point_are_no_fronts():
    table = made({"dph-js": [(0.6, 0.5, 0.9)], "dph-f": [(0.3, 0.5, 0.9)], "rkl": [(0.1, 0.5, 0.8), (1.0, 0.4, 0.9)]})
    assert verdicts(table).empty


def test_the_report_of_a_whole_sweep_names_every_part():
    fronts = {"base": [(np.nan, 0.3, 0.95)], "grpo": [(np.nan, 0.5, 0.7)], "dapo": [(np.nan, 0.5, 0.7)]}
    fronts |= {name: [(0.1, 0.48, 0.8), (1.0, 0.4, 0.9)] for name in ("rkl", "dph-f", "dph-js")}
    table = made(fronts, seeds=2, problems=60)
    table = pd.concat([table, table[table["split"] == "test"].assign(split="probe")], ignore_index=True)
    table = table[(table["method"] != "base") | (table["seed"] == 0)]
    keys = ["domain", "method", "strength", "seed"]
    runs = table[keys].drop_duplicates().assign(entropy=0.4, tokens=9.0, tokens_trained=9.0, reference_forwards=0.0)
    text = report(table, runs)
    for part in (
        conclusions.RULE,
        "## toy: 16 runs; of each method and strength 2 to 2 seeds",
        "Fronts: every strength",
        "At equal Pass@1",
        "Every method at its strength minus grpo",
        "Which claims hold here",
    ):
        assert part in text
    board = conclusions.scoreboard(table, runs, "toy")
    assert board.loc["base", ["keep", "forget", "gain", "never"]].tolist() == pytest.approx([57, 0, 0, 3])
    assert board.loc["grpo", "forget"] == pytest.approx(15)
    assert board.loc["grpo", "Pass@1"] == pytest.approx(0.5 + 0.2 / 64)
    best = conclusions.moonshot(table, "toy").iloc[0]
    assert best["worst"] == pytest.approx(min(best["Pass@1 - GRPO"], best["Pass@64 - base"]))
    beaten = conclusions.against(table, "toy", "grpo").loc[("base", "Pass@64")]
    at_64 = difference(table, "toy", ("base", None), ("grpo", None), "Pass@64")
    assert beaten.tolist() == list(at_64.values()) and beaten["difference"] == pytest.approx(0.25)
    assert f"{at_64['value']:.3f} [{at_64['low']:.3f}, {at_64['high']:.3f}]" in text
    for methods in (["base"], ["base", "dph-f"]):  # a sweep that was stopped early
        some = report(table[table["method"].isin(methods)], runs[runs["method"].isin(methods)])
        assert "the base model alone" in some or "## toy: 4 runs" in some


def test_beside_keeps_the_same_problems_and_seeds_and_no_run_twice(table):
    base = made({"base": [(np.nan, 0.3, 0.9)]}, seeds=1)
    every = pd.concat([base, table])
    mine = made({"mine": [(0.3, 0.5, 0.9)], "rkl": [(0.1, 0.2, 0.2)]}, seeds=2)
    mine = mine[(mine["split"] == "test") & (mine["problem"] < "test050")]
    found = conclusions.beside(every, mine)
    assert set(found["problem"]) == set(mine["problem"]) and set(found["split"]) == {"test"}
    assert found.groupby("method")["seed"].nunique().to_dict() == {"base": 1} | dict.fromkeys(
        ["apart", "dph-js", "mine", "rkl", "same"], 2
    )
    again = found[(found["method"] == "rkl") & (found["strength"] == 0.1)]
    assert len(again) == 100 and again["c"].gt(0).mean() == pytest.approx(0.8)  # mine: 40 of the first 50
    assert len(conclusions.at_equal_pass_at_1(found, "toy", [("mine", "dph-js")], ["Pass@64"])) == 1
    with pytest.raises(ValueError, match=r"training seeds are \[0, 1, 2, 3, 4\]"):
        conclusions.beside(every, mine.assign(seed=9))


# ---- a sweep that was stopped: not every run has every seed ------------------------------------------------------------


@pytest.fixture
def stopped(table):
    """Methods have seeds 0 and 1, base 0 alone; `rkl` at its stronger strength, and "late", were not reached with seed 1."""
    fronts = {"grpo": [(np.nan, 0.6, 0.7)], "late": [(np.nan, 0.5, 0.9)]}
    whole = pd.concat([table, made({"base": [(np.nan, 0.3, 0.9)]} | fronts)])
    whole = whole[whole["seed"] < 2]
    whole = pd.concat([whole, whole[whole["split"] == "test"].assign(split="probe")])
    once = (whole["method"].isin(["base", "late"])) | ((whole["method"] == "rkl") & (whole["strength"] == 1.0))
    return whole[~(once & (whole["seed"] == 1))]


def test_a_strength_is_chosen_over_the_seeds_that_all_strengths_have(stopped):
    part = (stopped["method"] == "rkl") & (stopped["strength"] == 0.1) & (stopped["seed"] == 1)
    lucky = stopped.assign(c=stopped["c"].where(~part, stopped["n"]))  # a seed that the other strength does not have
    assert conclusions.strengths(run_scores(lucky), "toy") == conclusions.strengths(run_scores(stopped), "toy")
    apart = stopped[~((stopped["method"] == "rkl") & (stopped["strength"] == 0.1) & (stopped["seed"] == 0))]
    assert "rkl" in conclusions.strengths(run_scores(apart), "toy")  # none in common: all count


def test_differences_along_a_chain_add_up_whatever_seeds_there_are(stopped):
    chain = [("base", None), ("grpo", None), ("late", None)]
    found = conclusions.differences(stopped, "toy", chain, "Pass@64")
    whole = difference(stopped, "toy", chain[-1], chain[0], "Pass@64")
    assert sum(step["value"] for step in found) == pytest.approx(whole["value"])
    assert {step["seeds"] for step in found} == {1}


def test_runs_without_a_common_seed_are_left_out_of_the_tables(stopped):
    other = stopped.assign(seed=stopped["seed"] + 5 * stopped["method"].isin(["rkl", "late"]))
    assert len(verdicts(stopped)) > len(verdicts(other)) > 0
    assert conclusions.at_equal_pass_at_1(other, "toy", [("dph-js", "rkl")]).empty
    assert "late" in conclusions.moonshot(stopped, "toy").index
    assert "late" not in conclusions.moonshot(other, "toy").index
