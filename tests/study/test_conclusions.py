"""Conclusions are right where the answer is known: toy outcomes whose Pass@1 and Pass@64 were chosen."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dphrl_lite.study import conclusions
from dphrl_lite.study.conclusions import (
    Claim,
    Sweep,
    best_difference,
    choice,
    difference,
    front_difference,
    mean,
    report,
    run_scores,
    verdicts,
)

ROOT = Path(__file__).resolve().parents[2]


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
    found = front_difference(table, "toy", "dph-js", "rkl")
    # upper at Pass@1 = x: 1.4 - x, lower: 1.3 - x; apart from the once-in-64 answers' part of Pass@1
    assert found["value"] == pytest.approx(0.1, abs=0.01)
    assert found["low"] < found["value"] < found["high"]
    assert 0.4 <= found["from_"] < found["to"] <= 0.56
    turned = front_difference(table, "toy", "rkl", "dph-js")
    assert turned["value"] == pytest.approx(-found["value"])


def test_a_front_against_itself_is_zero_within_a_problem(table):
    found = front_difference(table, "toy", "dph-js", "same")
    assert (found["value"], found["apart"], found["p"]) == (0, 0, 1)
    assert -found["low"] == found["high"] == pytest.approx(1.96 / 201, rel=0.02)


def test_a_front_that_bends_is_no_handicap_for_its_neighbour():
    """Nine points of one bent curve: every second one against the front of the others."""
    strength = np.geomspace(0.03, 3, 9)
    one, many = 0.3 + 0.12 / (1 + strength), 1 - 0.08 / (1 + strength) ** 4
    x, y = conclusions.front(strength[::2], one[::2, None], many[::2, None])
    order = x[:, 0].argsort()
    curve = np.interp(one[1::2], x[order, 0], y[order, 0]) - many[1::2]
    lines = np.interp(one[1::2], one[::2][::-1], many[::2][::-1]) - many[1::2]
    assert lines.mean() < -0.0015 and abs(curve.mean()) < 0.15 * abs(lines.mean())


def test_fronts_that_part_in_many_draws_are_not_compared():
    """Two points that overlap with a third one by chance alone."""
    table = made({"dph-f": [(0.1, 0.6, 0.8), (1.0, 0.4, 1.0)], "edge": [(np.nan, 0.4, 0.9)]})
    ends = table["problem"].str.endswith("9") & (table["method"] == "edge")
    found = front_difference(table.assign(c=table["c"].where(~ends, 20)), "toy", "edge", "dph-f")
    assert 0.2 < found["apart"] < 0.95
    rows = verdicts(table, of=[Claim("it is so", "edge", "dph-f", "Pass@64", matched=True)])
    assert rows.empty  # one point is no front


def test_a_single_point_is_compared_where_it_stands():
    table = made({"dph-f": [(0.1, 0.6, 0.8), (1.0, 0.4, 1.0)], "grpo+pass@4": [(np.nan, 0.5, 0.95)]})
    found = conclusions.at_equal_pass_at_1(table, "toy", scores=["Pass@64"]).iloc[0]
    assert (found["first"], found["second"]) == ("grpo+pass@4", "dph-f")
    assert found["difference"] == pytest.approx(0.05, abs=0.01)  # the line is at .9 there
    assert found["from_"] == found["to"] == pytest.approx(0.5, abs=0.01)


def test_fronts_without_a_common_pass_at_1_are_not_compared(table):
    found = front_difference(table, "toy", "dph-js", "apart")
    assert np.isnan([found["value"], found["low"], found["high"]]).all()
    assert conclusions.verdict(found["low"], found["high"]) == "not comparable"


def test_only_common_seeds_are_compared(table):
    part = (table["method"] == "rkl") & (table["seed"] >= 3)
    worse = table.assign(c=table["c"].where(~part, 0))
    assert (
        front_difference(worse[~part], "toy", "dph-js", "rkl")["value"]
        == front_difference(table[table["seed"] < 3], "toy", "dph-js", "rkl")["value"]
    )
    one = table[
        (table["method"] != "rkl") | (table["seed"] == 2)
    ]  # one seed is no base model, to stand beside all five
    found = front_difference(one, "toy", "dph-js", "rkl")
    assert found == front_difference(table[table["seed"] == 2], "toy", "dph-js", "rkl")
    assert found["seeds"] == 1
    alone = table.assign(seed=table["seed"] + 10 * (table["method"] == "rkl"))
    with pytest.raises(ValueError, match="no seed in common"):
        front_difference(alone, "toy", "dph-js", "rkl")


def test_unknown_runs_are_said(table):
    with pytest.raises(ValueError, match="no runs of 'sft' in 'toy'; there are"):
        front_difference(table, "toy", "sft", "rkl")
    with pytest.raises(ValueError, match=r"no runs of 'rkl' at 7 in 'toy', test; methods there: \['apart', 'dph-js'"):
        difference(table, "toy", ("rkl", 7), ("rkl", 1.0), "Pass@1")


def test_a_difference_is_paired(table):
    """Two runs that differ in ten of 200 problems, the same ones for each seed: the band is that of those ten."""
    found = difference(table, "toy", ("dph-js", 0.1), ("rkl", 0.1), "Pass@64")
    assert found["value"] == pytest.approx(0.05)
    spread = np.sqrt(0.05 * 0.95 / 200)  # of a share of 200 problems; of unpaired ones it would be larger
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    same = difference(table, "toy", ("rkl", 0.1), ("rkl", 0.1), "Pass@64")
    assert (same["value"], same["p"], same["seeds"]) == (0, 1, 5)
    assert same["high"] == pytest.approx(1.96 / 201, rel=0.02)  # one problem more, either way


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
    assert verdicts(table)["claim"].tolist() == [
        "as a method, at equal Pass@1, DPH-JS has a higher Pass@64 than reverse KL"
    ]


def test_the_rule_looks_at_validation_alone(table):
    scores = run_scores(table)
    best = choice(scores).set_index("method")["strength"]
    assert best["rkl"] == 1.0  # .35 + .95 against .55 + .75: the answers that are right once in 64 decide
    worse = table.copy()
    worse.loc[(worse["split"] == "validation") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert choice(run_scores(worse)).set_index("method")["strength"]["dph-js"] != best["dph-js"]
    worse = table.copy()
    worse.loc[(worse["split"] == "test") & (worse["strength"] == best["dph-js"]), "c"] = 0
    assert choice(run_scores(worse)).set_index("method")["strength"]["dph-js"] == best["dph-js"]


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
    # base: 18 of 60 always solved, 39 once in 64; of two draws of 32 each finds half of those
    assert board.loc["base", ["keep", "forget", "gain", "never"]].tolist() == pytest.approx([18, 19.5, 19.5, 3])
    assert board.loc["grpo", "forget"] == pytest.approx(0.5 * (0.5 * 12 + 15))
    assert board.loc["grpo", "Pass@1"] == pytest.approx(0.5 + 0.2 / 64)
    best = conclusions.moonshot(table, "toy").iloc[0]
    assert best["worst"] == pytest.approx(min(best["Pass@1 - GRPO"], best["Pass@64 - base"]))
    beaten = conclusions.against(table, "toy", "grpo").loc[("base", "Pass@64")]
    at_64 = difference(table, "toy", ("base", None), ("grpo", None), "Pass@64")
    assert beaten[["difference", "low", "high"]].tolist() == list(at_64.values())[:3]
    assert beaten["difference"] == pytest.approx(0.25) and beaten["p"] > at_64["p"]
    assert f"{at_64['value']:.3f} [{at_64['low']:.3f}, {at_64['high']:.3f}]" in text
    for methods in (["base"], ["base", "dph-f"]):  # a sweep that was stopped early
        some = report(table[table["method"].isin(methods)], runs[runs["method"].isin(methods)])
        assert "the base model alone" in some or "## toy: 4 runs" in some


def test_comparable_keeps_the_same_problems_and_seeds_and_no_run_twice(table):
    base = made({"base": [(np.nan, 0.3, 0.9)]}, seeds=1)
    every = pd.concat([base, table])
    mine = made({"mine": [(0.3, 0.5, 0.9)], "rkl": [(0.1, 0.2, 0.2)]}, seeds=2)
    mine = mine[(mine["split"] == "test") & (mine["problem"] < "test050")]
    found = conclusions.comparable(every, mine)
    assert set(found["problem"]) == set(mine["problem"]) and set(found["split"]) == {"test"}
    assert found.groupby("method")["seed"].nunique().to_dict() == {"base": 1} | dict.fromkeys(
        ["apart", "dph-js", "mine", "rkl", "same"], 2
    )
    again = found[(found["method"] == "rkl") & (found["strength"] == 0.1)]
    assert len(again) == 100 and again["c"].gt(0).mean() == pytest.approx(0.8)  # mine: 40 of the first 50
    assert len(conclusions.at_equal_pass_at_1(found, "toy", [("mine", "dph-js")], ["Pass@64"])) == 1
    with pytest.raises(ValueError, match=r"training seeds are \[0, 1, 2, 3, 4\]"):
        conclusions.comparable(every, mine.assign(seed=9))


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


# ---- what a band draws -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_of_bands", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ["sql, 5 seeds, Pass@8", "sql, 2 seeds, Pass@8"])
def test_bands_cover_the_truth_with_clusters_and_few_seeds(coverage, case):
    found = coverage.coverage(case, 40)
    assert min(found.values()) > 0.82  # .95 less four standard errors
    problem = lambda table: table.assign(alone=table["problem"])
    rng, runs = np.random.default_rng(0), {("grpo", np.nan): coverage.penalised(0.0), ("base", np.nan): coverage.BASE}
    table = problem(coverage.world(rng, "sql", runs, 5))
    widths = [
        np.diff([difference(sweep, "toy", ("grpo", None), ("base", None), "Pass@8")[end] for end in ("low", "high")])[0]
        for sweep in (Sweep(table), Sweep(table, cluster="alone"))
    ]
    assert widths[0] > 1.3 * widths[1]  # one by one, a database's questions seem to say more than they do


def test_one_strength_is_not_above_the_front_of_its_others(coverage):
    assert np.mean(list(coverage.coverage("countdown, 5 seeds, Pass@8; front", 20).values())) > 0.85


def test_a_cluster_column_must_be_there(table):
    with pytest.raises(ValueError, match="column"):
        Sweep(table, cluster="database")


def test_a_problem_twice_is_refused(table):
    with pytest.raises(ValueError, match="has a problem twice"):
        mean(pd.concat([table, table]), "toy", ("rkl", 0.1), "Pass@1")


def test_the_strength_is_chosen_again_in_each_draw():
    """Two strengths that validation can hardly tell apart, and that differ much on the test: the band knows."""
    table = made({"m": [(0.1, 0.5, 0.5), (1.0, 0.5, 0.5)], "other": [(np.nan, 0.5, 0.5)]}, problems=60)
    late = (table["split"] == "validation") & (table["strength"] == 1.0) & (table["seed"] > 2)
    early = (table["split"] == "validation") & (table["strength"] == 0.1) & (table["seed"] < 3)
    table["c"] = np.where((late | early) & (table["problem"].str[-2:] == "59"), 64, table["c"])
    test = (table["split"] == "test") & (table["strength"] == 1.0)
    table["c"] = np.where(test, 0, table["c"])
    whole = best_difference(table, "toy", "m", "other", "Pass@1")
    fixed = difference(table, "toy", ("m", 0.1), ("other", None), "Pass@1")
    assert whole["value"] == fixed["value"] == 0
    assert whole["high"] > 4 * fixed["high"]


def test_holm_is_the_books():
    assert conclusions.holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)


def test_verdicts_are_corrected_for_how_many_there_are(table):
    one = Claim("it is so", "apart", "rkl", "Pass@1")
    alone = verdicts(table, of=[one])["p"].item()
    many = verdicts(table, of=[one, *(Claim(str(i), "same", "rkl", "Pass@64") for i in range(9))])
    assert many["p"].iloc[0] == pytest.approx(10 * alone)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("dph-js", "dph-f", "divergence"),
        ("dph-alpha-0.5", "dph-f", "divergence"),
        ("dph-f", "sft", "divergence"),
        ("dph-f", "rkl", "problems, penalised answers, divergence"),
        ("dph-f+wise", "dph-f", "+wise"),
        ("nobody", "dph-f", ""),
    ],
)
def test_what_methods_differ_in_is_said(first, second, words):
    assert conclusions.differ_in(first, second) == words
