"""The debate's arithmetic where the answer is known, its figures, every control of its widgets, and the capstone's path."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from controls import change

from dphrl_lite import divergences, figures, widgets
from dphrl_lite.lab import bandits, toys
from dphrl_lite.passk import Outcomes
from dphrl_lite.study import conclusions, debate, experiments, frontier

COLUMN = ("sql", "Llama-3.1-8B-Instruct")


@pytest.fixture(scope="module")
def paper():
    return debate.paper_results()


@pytest.fixture(scope="module")
def shipped():
    return frontier.read()[0]


@pytest.fixture(scope="module")
def scores(shipped):
    return conclusions.run_scores(shipped, (1, 8, 16, 32, 64))


# ---- the paper's tables ----------------------------------------------------------------------------------------------


def test_the_retyped_tables_are_the_typed_ones(paper, shared_data):
    typed = pd.read_csv(shared_data / "paper_results.csv")
    ours = paper.assign(method=paper["label"] + paper["strength"].map(lambda e: "" if pd.isna(e) else f" eta={e:g}"))
    keys = ["table", "model", "method", "benchmark", "metric"]
    both = typed.merge(ours, on=keys, how="outer", indicator=True)
    assert (both["_merge"] == "both").all() and len(both) == len(typed) == len(paper) == 153
    assert (both["value"] == both["percent"]).all()


def test_the_tables_are_tidy(paper):
    keys = ["table", "model", "benchmark", "metric", "label", "strength"]
    assert not paper.duplicated(keys).any() and paper["percent"].between(0, 100).all()
    assert set(paper.loc[paper["in_domain"], "benchmark"]) == {"BIRD"}
    assert set(paper["method"]) <= {"base", *frontier.strengths()}
    assert paper.groupby("label")["method"].nunique().max() == 1


def test_a_column_has_base_first_and_labels_that_differ(paper):
    column = debate.paper_column(paper, *COLUMN, "Spider", "pass@16").set_index("label")["percent"]
    assert (column.index[0], column["base"], column["GRPO"], column["DPH-F"]) == ("base", 93.2, 80.6, 85.7)
    swept = debate.paper_column(paper, "js-eta", COLUMN[1], "Spider", "pass@16")
    assert swept["label"].is_unique and swept["percent"].iloc[0] == 93.2 and len(swept) == 7
    assert swept["label"].iloc[-1] == "DPH-JS definition, η = 0.2"


def test_our_miniature_has_the_form_of_the_paper(scores):
    test = debate.like_paper(scores, "countdown", True, "pass@16")
    assert (
        test["method"].iloc[0] == "base" and test["label"].is_unique and not any("+" in name for name in test["method"])
    )
    best = conclusions.strengths(scores, "countdown")
    row = test[test["method"] == "dph-f"].iloc[0]
    assert row["strength"] == best["dph-f"]
    runs = scores.reset_index().query("domain == 'countdown' and split == 'test' and method == 'dph-f'")
    assert row["percent"] == pytest.approx(100 * runs.loc[runs["strength"] == best["dph-f"], "Pass@16"].mean())
    assert debate.like_paper(scores, "countdown", False, "pass@32")["percent"].isna().all()  # 16 answers were drawn
    every = debate.like_paper(scores, "countdown", True, "greedy", every="dph-js")
    assert len(every) > 5 and set(every["method"]) == {"base", "dph-js", "dph-js-definition"}
    with pytest.raises(ValueError, match=r"column of scores.*Pass@7"):
        debate.like_paper(scores, "countdown", True, "pass@7")


def test_an_exchange_counts_points_against_base(paper):
    one, many = (debate.paper_column(paper, *COLUMN, "Spider", metric) for metric in ("greedy", "pass@16"))
    points = debate.exchange(one, many).set_index("label")
    assert points.loc["base", ["one", "many"]].tolist() == [0, 0]
    assert points.loc["DPH-F", ["one", "many"]].tolist() == pytest.approx([6.4, -7.5])


@pytest.mark.parametrize("table", [("math-out-of-domain", COLUMN[1]), ("js-eta", COLUMN[1]), ("sql", "OmniSQL-32B")])
def test_paper_explorer_follows_every_control(paper, scores, table):
    explorer = widgets.paper_explorer(paper, scores)
    assert explorer.controls["benchmark"].value == "Spider" and explorer.controls["metric"].value == "pass@16"
    bars = explorer.figures[0].data[0]
    assert dict(zip(bars.y, bars.x, strict=True))["DPH-F"] == 85.7
    for control, value in {"metric": "greedy", "benchmark": "BIRD", "domain": "sql"}.items():
        assert change(explorer, control, value), control
    assert change(explorer, "table", table)
    for benchmark in explorer.controls["benchmark"].options:
        explorer.controls["benchmark"].value = benchmark
        for metric in explorer.controls["metric"].options:
            explorer.controls["metric"].value = metric
            bars = explorer.figures[0].data[0]
            expected = debate.paper_column(paper, *table, benchmark, metric)
            assert list(bars.y) == expected["label"].tolist() and list(bars.x) == expected["percent"].tolist()
            assert isinstance(explorer.figures[1], str) == (table[0] == "math-out-of-domain")


# ---- strength or direction -------------------------------------------------------------------------------------------


def points(method, ones, manys, strengths=(0.1, 1.0), group="g"):
    rows = {"group": group, "world": 0, "method": method, "strength": strengths, "Pass@1": ones, "Pass@64": manys}
    return pd.DataFrame(rows)


def test_one_front_walked_at_two_paces_has_no_effect_of_the_divergence():
    """Both methods lie on the line Pass@64 = 1.4 - Pass@1; the second is further along at each strength."""
    table = pd.concat([points("a", [0.6, 0.4], [0.8, 1.0]), points("b", [0.5, 0.45], [0.9, 0.95])])
    found = debate.levers(table).loc["g"]
    assert found["strength"] == pytest.approx((0.2 + 0.05) / 2)
    assert found["divergence"] == pytest.approx((0.1 + 0.05) / 2)
    assert found["matched"] == pytest.approx(0)


def test_two_parallel_fronts_differ_by_their_distance_and_apart_by_nothing_known():
    upper, lower = points("a", [0.6, 0.4], [0.8, 1.0]), points("b", [0.6, 0.4], [0.75, 0.95])
    assert debate.levers(pd.concat([upper, lower])).loc["g", "matched"] == pytest.approx(0.05)
    assert np.isnan(debate.levers(pd.concat([upper, points("b", [0.9, 0.8], [1, 1])])).loc["g", "matched"])


def test_bandit_points_are_the_ends_of_flows_at_equal_curvature():
    table = debate.bandit_points([3], ("js", "forward_kl"), (0.2, 1.0), ks=(1, 8), steps=20)
    bandit, js = bandits.make(seed=3), divergences.get("js")
    path = bandits.flow(bandit, "grpo", js, 2.0, steps=20)
    row = table[(table["method"] == "js") & (table["strength"] == 1.0)].iloc[0]
    for k in (1, 8):
        assert row[f"Pass@{k}"] == pytest.approx(path.pass_at_k(k, ~bandit.trained)[-1].item())
    ways = bandits.distinct_correct(path.probs[-1], bandit.correct, 8)[~bandit.trained].mean().item()
    assert row["distinct"] == pytest.approx(ways) and ways > row["Pass@8"]
    assert len(table) == 4 and set(table["group"]) == {"bandits"}


def test_run_points_are_at_equal_curvature(scores):
    table = debate.run_points(scores)
    countdown = table[table["group"] == "countdown"]
    assert set(countdown["method"]) == {"dph-f", "dph-js"}  # the divergence alone is unlike
    assert countdown.groupby("method")["strength"].apply(list).map(tuple).nunique() == 1  # JS's strengths were doubled
    assert set(countdown["strength"]) == set(frontier.CURVATURES)


def test_lever_explorer_follows_its_control(scores):
    points = debate.run_points(scores).assign(odd=np.nan)
    explorer = widgets.lever_explorer(points)
    assert set(explorer.controls["score"].options) == {"distinct", "Pass@8", "Pass@16", "Pass@32", "Pass@64"}
    for score, scale in (("Pass@64", 100), ("Pass@8", 100), ("distinct", 1)):
        explorer.controls["score"].value = score
        bars = {bar.name: list(bar.y) for bar in explorer.figures[0].data}
        expected = debate.levers(points, score)
        for lever, words in debate.LEVERS.items():
            assert bars[words] == pytest.approx((scale * expected[lever]).tolist(), nan_ok=True)
    assert "different right answers" in explorer.figures[0].layout.title.text


# ---- imitation -------------------------------------------------------------------------------------------------------


def test_rungs_add_up_to_the_whole_way(shipped):
    rows = debate.rungs(shipped, "countdown", 1.0, ["Pass@64"])
    whole = conclusions.difference(shipped, "countdown", ("dph-f", 1.0), ("base", None), "Pass@64")["value"]
    assert rows["value"].sum() == pytest.approx(whole) and len(rows) == 4
    with pytest.raises(ValueError, match=r"no runs of 'sft' at 0\.5"):
        debate.rungs(shipped, "countdown", 0.5)


def test_rung_explorer_follows_every_control(shipped):
    few = shipped[shipped["method"].isin(["base", "grpo", "grpo-exp", "sft", "dph-f"])]
    explorer = widgets.rung_explorer(few)
    assert change(explorer, "domain", "sql") and change(explorer, "eta", 0.1)
    assert "sql, η = 0.1" in explorer.figures[0].layout.title.text
    expected = debate.rungs(few, "sql", 0.1)["value"]
    assert sorted(trace.x[0] for trace in explorer.figures[0].data) == pytest.approx(sorted(expected))


# ---- guessing --------------------------------------------------------------------------------------------------------

PROBLEMS = ("cd3:2-3-4:14", "cd3:1-1-1:3")


@pytest.fixture
def models():
    made = {"base": [4, 10], "grpo": [0, 16], "dph-js": [8, 12]}
    return {name: Outcomes.from_counts(16, c, PROBLEMS) for name, c in made.items()}


def test_guess_rates_are_counted(models):
    # 2 + 3 * 4, 2 + 4 * 3, 3 * 4 + 2, 4 * 3 + 2: four of 6 orders x 9 pairs of signs; 1 + 1 + 1: one of 9
    assert debate.guess_rates(PROBLEMS).tolist() == pytest.approx([4 / 54, 1 / 9])


def test_guessing_curves_mix_the_model_with_the_guesser(models):
    curves = debate.guessing_curves(models, "grpo", 0.25).set_index(["model", "measure", "x"])["y"]
    mixed = [0.25 * 4 / 54, 0.75 + 0.25 / 9]
    assert curves["grpo + guesses", "Pass@k", 1] == pytest.approx(np.mean(mixed))
    assert curves["base", "Pass@k", 1] == pytest.approx(14 / 32)
    assert curves["guesses alone", "Pass@k", 2] == pytest.approx(np.mean([1 - (50 / 54) ** 2, 1 - (8 / 9) ** 2]))
    assert curves["guesses alone", "Pass@k"].iloc[-1] > 0.99 and curves["guesses alone", "Cover@τ", 0.5] == 0
    assert curves["grpo + guesses", "Cover@τ", 0.75] == 0.5 and curves["grpo + guesses", "Cover@τ", 1.0] == 0


def test_guess_lab_follows_every_control(models):
    lab = widgets.guess_lab({"both": models, "less": {name: models[name] for name in ("base", "grpo")}})
    assert {trace.name for trace in lab.figures[0].data} >= {"base", "grpo", "grpo + guesses", "guesses alone"}
    assert change(lab, "share", 0.5) and change(lab, "model", "base")
    assert change(lab, "family", "less") and "dph-js" not in {trace.name for trace in lab.figures[0].data}
    lab.controls["family"].value, lab.controls["model"].value = "both", "dph-js"
    assert change(lab, "family", "less")  # which does not hold the chosen model
    assert lab.controls["model"].value in ("base", "grpo")


# ---- off target ------------------------------------------------------------------------------------------------------


def test_off_target_lab_follows_every_control():
    lab = widgets.off_target_lab()
    (grey, target, *fits) = [t for t in lab.figures[0].data if t.xaxis == "x"]
    step = (toys.GRID[1] - toys.GRID[0]).item()
    assert sum(target.y) * step == pytest.approx(1, abs=1e-6) and len(fits) == 4
    right = {t.legendgroup: list(t.y) for t in lab.figures[0].data if t.xaxis == "x2" and t.legendgroup}
    off = sum(y for y, out in zip(fits[0].y, grey.y, strict=True) if out) * step
    assert right["forward KL"][3] == pytest.approx(off, abs=1e-6)  # four apart
    assert right["forward KL"][3] > 0.2 > 0.05 > right["reverse KL"][3]
    assert change(lab, "distance", 3.0) and change(lab, "weight", 0.3)


# ---- the capstone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few_problems(monkeypatch):
    small = {"problems_per_step": 4, "rehearsal_per_step": 8, "steps": 60}
    few = replace(frontier.DOMAINS["countdown"], trained=dict.fromkeys(("cd3", "cd4"), 24), settings=small)
    monkeypatch.setattr(frontier, "DOMAINS", {"countdown": few})


def test_the_capstone_from_a_formula_to_a_place_on_the_front(registry, shipped, tmp_path, few_problems):
    mine = registry(divergences.Divergence("mine", lambda d: -torch.log(0.1 + 0.9 * torch.exp(d)), label="mine"))
    where = {"steps": 1, "problems": 6, "progress": False}
    tables = [frontier.own_run("dph-mine", s, tmp_path, **where) for s in (None, 0.5)]
    placed = pd.concat(tables)
    assert set(placed["strength"]) == {round(1 / mine.curvature, 2), 0.5} and len(placed) == 2 * 2 * 6
    together = conclusions.comparable(shipped, placed)
    assert together.groupby(["method", "strength", "seed"], dropna=False).size().nunique() == 1  # the same problems
    figure = figures.own_front(conclusions.run_scores(together), "dph-mine")
    names = {trace.name for trace in figure.data}
    assert {"dph-mine", "base", "grpo", "dph-f", "rkl"} <= names and not any("+" in name for name in names if name)
    assert sum("yours" in note.text for note in figure.layout.annotations) == 2
    found = conclusions.at_equal_pass_at_1(together, "countdown", [("dph-mine", "dph-f")], ["Pass@64"])
    assert len(found) == 1


def test_figures_name_a_widget_table_that_experiments_can_make(shipped, scores):
    test = shipped[(shipped["split"] == "test") & (shipped["domain"] == "countdown")].merge(conclusions.choice(scores))
    families = experiments.by_family(test[test["method"].isin(["base", "grpo"])])
    curves = debate.guessing_curves(families["cd3"], "grpo", 0.1).set_index(["model", "measure", "x"])["y"]
    assert curves["guesses alone", "Pass@k", 1] < 0.15 < 0.9 < curves["guesses alone", "Pass@k", 64]
