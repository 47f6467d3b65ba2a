"""Every control of every widget, without a kernel: set `.value`, and the figure's data must follow."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache, partial
from html import escape
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from controls import change

from dphrl_lite import divergences, passk, presampling, training, widgets
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes
from dphrl_lite.scale import lowrank
from dphrl_lite.study import conclusions, debate, experiments, frontier, path_conclusions


def test_divergence_explorer_follows_every_control():
    explorer = widgets.divergence_explorer()
    for name in divergences.names():
        if name != "js":
            assert change(explorer, "name", name), name
    explorer.controls["name"].value = "alpha"
    moves = {"alpha": 0.9, "mean": -1.0, "width": 2.0, "count": 3, "distance": 5.0, "weight": 0.2, "mode_width": 1.0}
    for control, value in moves.items():
        assert change(explorer, control, value), control


def test_alpha_can_be_moved_only_where_it_counts():
    explorer = widgets.divergence_explorer("js")
    assert explorer.controls["alpha"].disabled
    explorer.controls["name"].value = "alpha"
    assert not explorer.controls["alpha"].disabled


def test_jump_moves_the_policy_onto_the_best_fit():
    explorer = widgets.divergence_explorer("reverse_kl")
    explorer.jump.click()
    assert explorer.controls["mean"].value == pytest.approx(-2, abs=0.1)
    policy = next(t for t in explorer.figures[0].data if t.name == "policy p (yours)")
    best = next(t for t in explorer.figures[0].data if str(t.name).startswith("best fit"))
    assert np.abs(policy.y - best.y).max() < 0.05


def test_a_registered_divergence_joins_the_explorer(registry):
    registry(divergences.Divergence("mine", lambda d: (d / 2).expm1() ** 2, label="my own"))
    assert change(widgets.divergence_explorer(), "name", "mine")


def test_the_browser_is_sent_what_the_figure_shows_and_little_else():
    explorer = widgets.divergence_explorer()
    plot = explorer.plots.children[0]
    explorer.controls["name"].value = "reverse_kl"
    assert explorer.plots.children[0] is plot  # redrawn in place
    assert plot.figure["data"] == json.loads(explorer.figures[0].to_json())["data"]
    assert "reverse KL" in plot.figure["layout"]["title"]["text"]
    assert len(json.dumps(plot.figure)) < 200_000


def test_plotly_is_sent_once_for_all_plots():
    plots = [widgets.divergence_explorer().plots.children[0] for _ in range(2)]
    assert sum(len(plot._esm) for plot in plots) < 15_000
    assert plots[0].library is plots[1].library
    assert len(plots[0].library._esm) < 1_000  # a module that starts slowly is given up by anywidget
    assert 1_000_000 < len(plots[0].library.source) < 6_000_000


def test_partition_explorer_follows_the_threshold():
    correct = np.random.default_rng(0).random((30, 8)) < 0.6
    rollouts = pd.DataFrame({"problem_id": np.repeat(range(30), 8), "correct": correct.ravel()})
    explorer = widgets.partition_explorer(rollouts)
    assert explorer.controls["threshold"].max == 8
    for threshold in (1, 4, 8):
        assert change(explorer, "threshold", threshold)


def test_partition_explorer_shows_what_the_switches_do(rollouts):
    explorer = widgets.partition_explorer(rollouts, threshold=6)
    title = lambda: explorer.figures[0].layout.title.text
    held = lambda **switches: len(presampling.partition(rollouts, 6, **switches).rehearsal)
    assert f"{held()} reference answers" in title()
    assert change(explorer, "one_per_problem", True)
    assert f"{held(one_per_problem=True)} reference answers" in title()
    assert change(explorer, "rehearse_exploration", True)
    both = presampling.partition(rollouts, 6, one_per_problem=True, rehearse_exploration=True).rehearsal
    assert f"{sum(map(len, both['token_ids']))} tokens, to {len(both)} problems" in title()
    assert change(explorer, "keep_unsolved", False)
    assert explorer.figures[0].data[0].name.startswith("unsolved, dropped")


def test_rollout_browser_shows_the_chosen_completion_of_the_chosen_problem(rollouts, tiny):
    browser = widgets.rollout_browser(rollouts, tiny.tokenizer)
    page = browser.plots.children[0]
    for problem, completion in ((rollouts["problem_id"].iloc[40], 3), (rollouts["problem_id"].iloc[-1], 8)):
        browser.controls["problem"].value, browser.controls["completion"].value = problem, completion
        rows = rollouts[rollouts["problem_id"] == problem]
        row = rows.iloc[completion - 1]
        assert page.value == browser.figures[0]
        assert rows["prompt"].iloc[0] in page.value
        assert page.value.count(">right<") == rows["correct"].sum()
        assert f"▶ {completion}" in page.value and page.value.count("▶") == 1
        (grid,) = browser.figures[1].data
        seen = grid.z.ravel()[~np.isnan(grid.z.ravel())]
        assert seen.tolist() == row["logp"].tolist()
        assert f"Completion {completion}, token by token" in browser.figures[1].layout.title.text
        assert f"sum {row['logp'].sum():.2f}" in browser.figures[1].layout.title.text


def test_pass_at_k_explorer_follows_every_control():
    rng = np.random.default_rng(0)
    models = lambda: {name: Outcomes(rng.random((20, 16)) < 0.3) for name in ("base", "grpo")}
    explorer = widgets.pass_at_k_explorer({"cd3": models(), "cd4": models()})
    assert [plot.wait for plot in explorer.plots.children] == [0, 100]  # the second waits until the hand rests
    for control, value in {"family": "cd4", "k": 2, "confidence": 0.8}.items():
        assert change(explorer, control, value), control


def test_bias_lab_follows_the_number_of_answers():
    lab = widgets.bias_lab([0.1, 0.5], samples=16)
    for n in (4, 64):
        assert change(lab, "n", n)
        assert lab.figures[0].layout.title.text.startswith(f"{n} answers")


def test_flow_explorer_follows_every_control_and_offers_what_there_is():
    rng = np.random.default_rng(0)
    models = lambda *names: {name: Outcomes(rng.random((20, 16)) < 0.3) for name in ("base", *names)}
    explorer = widgets.flow_explorer(
        {"cd3": models("grpo", "dph-js"), "cd4": models("dph-js", "grpo"), "sql": models()}
    )
    assert explorer.controls["model"].options == ("grpo", "dph-js")
    for control, value in {"model": "dph-js", "k": 2, "family": "cd4"}.items():
        assert change(explorer, control, value), control
    assert explorer.controls["model"].value == "dph-js"
    explorer.controls["family"].value = "sql"
    assert "No trained model" in explorer.plots.children[0].value
    explorer.controls["family"].value = "cd3"
    assert isinstance(explorer.plots.children[0], widgets.Plot)


@pytest.fixture
def scores():
    index = [(d, s, m, w, seed) for d in ("countdown", "sql") for s in ("validation", "test", "probe")
             for m, w in (("base", None), ("grpo", None), ("grpo+x", None),
                          ("rkl", 0.1), ("rkl", 1.0), ("dph-f+all", 0.1), ("dph-f+all", 1.0))
             for seed in ((0,) if m == "base" else (0, 1))]  # fmt: skip
    index = pd.MultiIndex.from_tuples(index, names=["domain", "split", "method", "strength", "seed"])
    values = np.random.default_rng(0).random((len(index), 4))
    table = pd.DataFrame(values, index, columns=["distinct", "Pass@1", "Pass@4", "Pass@64"])
    table.loc[table.index.get_level_values("split") == "probe", "Pass@64"] = np.nan
    return table


def two_paths():
    """Mean scores of the base model and of two methods at two learning rates, and the points of their paths."""
    point = ["method", "strength", "learning_rate", "steps", "back"]
    rows = [("base", None, None, 0, 0.0)]
    rows += [(m, None, rate, steps, 0.0) for m in ("grpo", "dapo") for rate in (3e-5, 1e-4) for steps in (20, 60)]
    scores = pd.DataFrame(rows, columns=point).astype({"strength": float, "learning_rate": float})
    numbers = np.arange(len(scores)) / 20
    scores = scores.assign(**{"Pass@1": 0.3 + numbers, "Pass@8": 0.9 - numbers, "Pass@64": 1 - numbers}, seeds=1)
    scores["line"] = path_conclusions.label(scores)
    points = scores[1:].assign(
        seed=0, score="Pass@64", kl=numbers[1:], **{"lost": numbers[1:], "lost elsewhere": numbers[1:] / 2}
    )
    return scores, points


def test_front_explorer_follows_every_control(scores):
    explorer = widgets.front_explorer(scores)
    single, ideas = "methods at one strength", "ideas (+) at one strength"
    assert set(explorer.controls) == {"domain", "split", "height", "rkl", "dph-f+all", single, ideas}
    moves = {"domain": "sql", "split": "validation", "height": "Pass@4", "rkl": False, single: False}
    shown = lambda: {t.name for t in explorer.figures[0].data if t.name}
    assert shown() == {"base", "grpo", "rkl"}  # ideas beyond the paper: not before they are asked for
    for control, value in (moves | {"dph-f+all": True, ideas: True}).items():
        assert change(explorer, control, value), control
    assert shown() == {"base", "dph-f+all", "grpo+x"}
    assert change(explorer, ideas, False)
    assert change(explorer, "dph-f+all", False) and shown() == {"base"}
    assert change(explorer, "height", "distinct")
    explorer.controls["height"].value, explorer.controls["split"].value = "Pass@64", "probe"
    assert "choose a smaller k" in explorer.figures[0].layout.annotations[0].text


def uploaded(table, name="mine.csv"):
    """What the browser's half of `FileUpload` sets."""
    content = table if isinstance(table, bytes) else table.to_csv(index=False).encode()
    file = {"name": name, "type": "text/csv", "size": len(content), "content": memoryview(content)}
    return (file | {"last_modified": datetime(2026, 1, 1, tzinfo=UTC)},)


def counts_of(*models, n=16, problems=12):
    rng = np.random.default_rng(len(models))
    tables = [
        pd.DataFrame({"model": m, "problem": range(problems), "n": n, "c": rng.integers(0, n + 1, problems)})
        for m in models
    ]
    return pd.concat(tables).assign(family=lambda table: np.where(table["problem"] < 5, "few", "more"))


def test_counts_lab_draws_an_uploaded_table_of_two_models():
    lab = widgets.CountsLab()
    assert "upload a table" in lab.figures[0]
    assert len(lab.figures) == 1
    table = counts_of("old", "new", "newest")
    lab.controls["upload"].value = uploaded(table)
    words, curves, cover, flow = lab.figures
    assert [isinstance(child, widgets.Plot) for child in lab.plots.children] == [False, True, True, True]
    old, new = (
        passk.Outcomes.from_counts(rows["n"], rows["c"]) for _, rows in list(table.groupby("model", sort=False))[:2]
    )
    means = {t.name: t.y for t in curves.data if t.name}
    assert np.allclose(means["old"], old.pass_at_k([1, 2, 4, 8, 16])["mean"])
    assert np.allclose(next(t for t in cover.data if t.name == "new").y[-1], new.cover_at(1.0))
    assert sorted(flow.data[0].link.value) == pytest.approx(sorted(passk.compare(old, new, 16)), abs=1e-4)
    below = passk.crossing(old, new)
    ends = f"falls below that of old at k = {below}" if below else "stays at or above that of old"
    assert f"Pass@k of new {ends}." in words and "Outcomes(" not in words
    for control, value in {"family": "few", "k": 2, "trained": "newest", "base": "new"}.items():
        assert change(lab, control, value), control


def test_counts_lab_with_one_model_has_no_flow():
    lab = widgets.CountsLab()
    lab.controls["upload"].value = uploaded(pd.DataFrame({"n": [4, 4], "c": [1, 4]}))
    assert len(lab.figures) == 3 and lab.controls["k"].disabled
    lab.controls["upload"].value = uploaded(counts_of("old", "new"))
    assert len(lab.figures) == len(lab.plots.children) == 4 and not lab.controls["k"].disabled
    other = counts_of("old", "new").iloc[:-1]
    lab.controls["upload"].value = uploaded(other)
    assert len(lab.figures) == 3
    assert "not compared: base and trained must hold the same problems; 1 differ" in lab.figures[0]


def test_counts_lab_reads_a_path_and_keeps_the_table_when_the_next_is_refused(tmp_path):
    path = tmp_path / "counts.jsonl"
    counts_of("old", "new").to_json(path, orient="records", lines=True)
    lab = widgets.CountsLab(path)
    assert lab.controls["path"].value == str(path)
    before = [figure.to_json() for figure in lab.figures[1:]]
    for bad in (uploaded(b"n,c\n4,5\n"), uploaded(b"n,right\n<b>,5\n"), uploaded(b"")):
        lab.controls["upload"].value = bad
        assert lab.error and "expected" in lab.figures[0] and "<b>" not in lab.figures[0]
        assert [figure.to_json() for figure in lab.figures[1:]] == before
    lab.controls["path"].value = str(tmp_path / "none.csv")
    assert "no table at" in lab.figures[0]
    counts_of("older", "newer", n=4).to_parquet(tmp_path / "b.parquet")
    lab.controls["path"].value = str(tmp_path)
    assert lab.error == "" and lab.controls["base"].value == "older" and lab.controls["k"].options[-1] == 4


def test_training_dashboard_reads_the_logs_as_they_grow(tmp_path):
    dashboard = widgets.TrainingDashboard({"grpo": tmp_path / "grpo", "dph-js": tmp_path / "js"}, seconds=0)
    assert {t.name for t in dashboard.figures[0].data} == {None}
    (tmp_path / "grpo").mkdir()
    record = {"step": 1, "reward": 0.2, "entropy": 0.5, "penalty": None, "log_u_mean": None}
    (tmp_path / "grpo" / "log.jsonl").write_text(json.dumps(record) + "\n")
    dashboard.follow(record)
    assert {t.name for t in dashboard.figures[0].data} == {None, "grpo"}
    short = widgets.TrainingDashboard({"grpo": tmp_path / "grpo"}, metrics=("reward", "entropy"))
    assert [trace.y.tolist() for trace in short.figures[0].data] == [[0.2], [0.5]]
    patient = widgets.TrainingDashboard({"grpo": tmp_path / "grpo"}, seconds=3600)
    before = patient.figures[0]
    patient.follow(record)
    assert patient.figures[0] is before
    patient.redraw()
    assert patient.figures[0] is not before


def test_estimator_lab_follows_every_control():
    lab = widgets.estimator_lab()
    assert lab.controls["level"].disabled  # one token: its sum is itself
    for name in divergences.names():
        if name != lab.controls["target"].value:
            assert change(lab, "target", name), name
    assert change(lab, "world", "two-token")
    assert not lab.controls["level"].disabled
    for control, value in {"level": "token", "distance": 2.0, "samples": 1024}.items():
        assert change(lab, control, value), control


def test_estimator_lab_says_what_is_followed():
    lab = widgets.estimator_lab("reverse_kl")
    table = lambda: dict(zip(*(lab.figures[1].data[0].cells.values[i] for i in (0, 7)), strict=True))
    assert table()["k2: (log u)²/2"] == "reverse KL"
    lab.controls["world"].value, lab.controls["level"].value = "two-token", "token"
    assert table()["k2: (log u)²/2"] == "reverse KL, per token at policy prefixes"


def test_a_registered_divergence_joins_the_estimator_lab(registry):
    registry(divergences.Divergence("mine", lambda d: (d / 2).expm1() ** 2, label="my own"))
    lab = widgets.estimator_lab()
    assert change(lab, "target", "mine")
    cells = lab.figures[1].data[0].cells.values
    assert cells[0][-1] == "f(u): my own"
    assert cells[7][-1] == "my own"


def test_collapse_lab_shows_that_tabular_pass_at_k_cannot_fall():
    lab = widgets.collapse_lab()
    lab.controls["sharing"].value = 0.0
    for groups in (0, 4):
        lab.controls["groups"].value = groups
        for line in (t for t in lab.figures[0].data if t.stackgroup is None):
            assert np.diff(line.y).min() >= -1e-12


def test_every_divergence_runs_in_the_collapse_lab_and_a_registered_one_joins(registry):
    registry(divergences.Divergence("mine", lambda d: (d / 2).expm1() ** 2, label="my own"))
    lab = widgets.collapse_lab()
    lab.controls["strength"].value = 5.0
    for name in divergences.names()[::-1]:
        assert name == lab.controls["name"].value or change(lab, "name", name), name
        assert all(np.isfinite(trace.y).all() for trace in lab.figures[0].data), name


def heading(lab):
    return lab.figures[0].layout.title.text


def test_sql_lab_judges_what_is_typed_and_follows_every_control():
    lab = widgets.sql_lab("school-08")
    assert "same rows as the gold query" in heading(lab)
    assert change(lab, "query", "SELECT name FROM student WHERE grade = 12")
    assert "wrong" in heading(lab)
    assert "same rows in another order" in heading(lab)
    lab.controls["problem"].value = "shop-05"
    assert "same rows as the gold query" in heading(lab)  # the box holds the gold query of the new question
    learnt = lab.controls["suggestion"].options[-1][1]
    assert change(lab, "suggestion", learnt)
    assert lab.controls["query"].value == learnt
    assert "same rows as the gold query" in heading(lab)
    assert change(lab, "instances", 2)
    assert "on instance 2: rows differ" in heading(lab)
    assert len(lab.figures[0].data) == 4


@pytest.mark.parametrize(
    "query", ["", "no idea", "DROP TABLE student", "SELECT 1; DELETE FROM student", "SELECT * FROM <b>"]
)
def test_sql_lab_stands_whatever_is_typed(query):
    lab = widgets.sql_lab()
    lab.controls["query"].value = query
    assert "wrong" in heading(lab)


def test_memory_lab_sends_little():
    assert len(widgets.memory_lab().figures[0].to_json()) < 30_000


def test_four_bit_lab_follows_every_control():
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 64, generator=random) for name in ("one", "two")}
    lab = widgets.four_bit_lab(weights)
    for control, value in {"name": "two", "block": 512, "double": False, "kind": "fp4"}.items():
        assert change(lab, control, value), control
    lab.controls["kind"].value = "int4"
    assert lab.controls["double"].disabled  # its scales stay as they are
    assert len(lab.figures[0].to_json()) < 30_000


def test_rank_explorer_follows_the_rank(tiny):
    after = tiny.copy().model
    with torch.no_grad():
        for weight in lowrank.linear_weights(after).values():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    explorer = widgets.rank_explorer(tiny.model, after)
    title = lambda: explorer.figures[0].layout.title.text
    kept = []
    for rank in (1, 16, 64):
        assert change(explorer, "rank", rank)
        assert f"{lowrank.lora_parameters(tiny.model, rank):,} parameters" in title()
        kept.append(int(re.search(r"<b>(\d+)%</b>", title())[1]))
    assert kept[0] < kept[1] < kept[2] and kept[2] > 95  # of 80 ranks
    assert len(explorer.figures[0].to_json()) < 30_000


def test_cost_lab_follows_every_control():
    lab = widgets.cost_lab()
    moves = {"billions": 32.8, "training": "full, checkpointed", "steps": 400, "completion": 2000, "prompt": 100}
    moves |= {"rehearsed": 0, "peak": 900, "busy": 0.2, "busy_sampling": 0.1, "price": 3.0}
    assert set(moves) == set(lab.controls)
    for control, value in moves.items():
        assert change(lab, control, value), control
    spent = dict(zip(("grpo", "rkl", "dph-js", "dph-js-definition"), lab.figures[0].layout.annotations, strict=True))
    assert spent["dph-js"].text == spent["grpo"].text  # nothing is rehearsed
    assert spent["rkl"].text != spent["grpo"].text


# ---- the training lab ------------------------------------------------------------------------------------------------

SMALL = {"problems_per_step": 4, "samples": 4, "rehearsal_per_step": 8}
SAME_EVERYWHERE = ["reward", "entropy", "penalty", "gradient_norm"]


@pytest.fixture
def lab(tiny, countdown, few_problems, parts, tmp_path):
    """A training lab on few problems, with steps of a moment."""
    data = experiments.Miniature(countdown, few_problems, {"cd3": few_problems[:4], "cd4": few_problems[-4:]})
    tables = {"base": experiments.evaluate(tiny, countdown, data.test, samples=4, progress=False)}
    return widgets.TrainingLab(tiny, data, parts, tables, work=tmp_path / "lab", seconds=0, **SMALL)


def finish(lab):
    if (thread := lab.thread) is not None:
        thread.join(timeout=120)
        assert not thread.is_alive()


def curves(lab, figure):
    """The runs that are drawn; crosses have names too, for those who do not see them."""
    return {name for trace in lab.figures[figure].data if (name := trace.name) and ", below" not in name}


def test_training_lab_trains_what_the_controls_say_and_evaluates_it(lab, tiny, countdown, few_problems, parts):
    moves = {"method": "dph-f", "strength": 0.5, "learning_rate": 3e-4, "steps": 5, "family": "cd3"}
    assert set(moves) == set(lab.controls)
    for control, value in moves.items():
        lab.controls[control].value = value
    assert lab.start.description == "Start"
    lab.start.click()
    finish(lab)
    name = "dph-f at 0.5, lr 0.0003"
    settings = {"steps": 5, "strength": 0.5, "learning_rate": 3e-4, "progress": False} | SMALL
    wanted = training.train(tiny, countdown, few_problems, parts, "dph-f", **settings)
    log = pd.DataFrame(training.read_log(lab.folders[name]))
    assert log[SAME_EVERYWHERE].equals(wanted.log[SAME_EVERYWHERE])
    assert curves(lab, 1) == {name}
    assert curves(lab, 2) == {"base", name}
    assert "4 problems" in lab.figures[2].layout.title.text and "cd3" in lab.figures[2].layout.title.text
    assert "5 steps done and evaluated" in lab.figures[0]
    assert lab.tables[name]["n"].eq(4).all()


def test_training_lab_stops_and_continues_exactly(lab, tiny, countdown, few_problems, parts):
    lab.controls["steps"].value = 10
    seen = []

    def stop_at_3(record):
        seen.append(record["step"])
        if record["step"] == 3:
            assert (lab.start.disabled, lab.stop.disabled, lab.reset.disabled) == (True, False, True)
            lab.start.click()  # nothing: it runs
            lab.reset.click()
            lab.stop.click()

    lab.follow, follow = stop_at_3, lab.follow
    lab.start.click()
    finish(lab)
    assert seen == [1, 2, 3]
    name, folder = next(iter(lab.folders.items()))
    assert len(training.read_log(folder)) == 3
    assert "stopped after 3 of 10 steps" in lab.figures[0]
    assert (lab.start.description, lab.start.disabled, lab.stop.disabled) == ("Continue", False, True)
    assert list(lab.tables) == ["base"]

    lab.follow = follow
    lab.start.click()
    finish(lab)
    settings = {"steps": 10, "progress": False} | SMALL
    wanted = training.train(tiny, countdown, few_problems, parts, "dph-js", **settings)
    log = pd.DataFrame(training.read_log(folder))
    assert log[SAME_EVERYWHERE].equals(wanted.log[SAME_EVERYWHERE])
    assert set(lab.tables) == {"base", name}


def test_training_lab_finds_and_deletes_the_runs_of_earlier_days(lab):
    lab.controls["steps"].value = 5
    lab.start.click()
    finish(lab)
    again = widgets.TrainingLab(lab.policy, lab.data, lab.parts, lab.tables, work=lab.work, seconds=0, **SMALL)
    assert again.start.description == "Continue"
    assert len(curves(again, 1)) == 1
    assert curves(again, 2) == {"base", *curves(again, 1)}
    again.controls["learning_rate"].value = 1e-3
    assert (again.start.description, again.reset.disabled) == ("Start", True)
    again.controls["learning_rate"].value = 1e-4
    again.reset.click()
    assert list(lab.work.iterdir()) == []
    assert curves(again, 1) == set()
    assert curves(again, 2) == {"base"}
    assert again.start.description == "Start"


def test_training_lab_offers_every_method_at_its_own_strength(lab, registry):
    for name, method in METHODS.items():
        lab.controls["method"].value = name
        assert lab.controls["strength"].disabled == (method.penalty == "none")
        own = lab.controls["strength"].value if method.strength is None else method.strength
        assert lab.controls["strength"].value == own > 0 or method.penalty == "none"
        assert escape(method.summary) in lab.figures[0]
        assert (" at " in lab.figures[0].split("</b>")[0]) == (method.penalty != "none")
    registry(divergences.Divergence("mine", lambda d: (d / 2).expm1() ** 2))
    again = widgets.TrainingLab(lab.policy, lab.data, lab.parts, lab.tables, work=lab.work, **SMALL)
    again.controls["method"].value = "dph-mine"
    assert "dph-mine at" in again.figures[0]


def test_training_lab_says_what_went_wrong_and_goes_on(lab):
    lab.work.mkdir()
    name = lab.run_settings()[0]
    lab.folder(name).mkdir()
    (lab.folder(name) / "thesis.txt").write_text("not a run")
    lab.start.click()
    finish(lab)
    assert "is not a run of this kit" in lab.figures[0]
    assert not lab.start.disabled
    lab.controls["method"].value, lab.controls["steps"].value = "grpo", 5
    lab.start.click()
    finish(lab)
    assert "5 steps done" in lab.figures[0]


def test_training_lab_needs_the_base_model(lab):
    with pytest.raises(ValueError, match="base"):
        widgets.TrainingLab(lab.policy, lab.data, lab.parts, {"grpo": lab.tables["base"]})


def test_solution_browser_follows_the_problem(tiny, countdown, few_problems):
    browser = widgets.solution_browser({"base": tiny, "grpo": tiny}, countdown, few_problems[:3], samples=16)
    for i in (1, 2, 0):
        assert change(browser, "problem", i)
        assert few_problems[i].prompt in browser.figures[0].layout.title.text
    written = browser.figures[0].data[1]
    assert change(browser, "by", "distinct")
    canonical = browser.figures[0].data[1]
    counts = experiments.solution_counts({"base": tiny, "grpo": tiny}, countdown, few_problems[0], samples=16)
    assert canonical.y.tolist() == counts["grpo"].tolist()
    assert len(written.y) >= len(canonical.y)
    assert sum(written.y) == sum(canonical.y)


# ---- every builder, every control ------------------------------------------------------------------------------------


@cache
def shipped_scores():
    return conclusions.run_scores(frontier.read()[0], (1, 8, 16, 32, 64))


WAY = ("base", "grpo", "grpo-exp", "sft", "dph-f")  # from the base model to DPH-F


@pytest.fixture
def builders(request, tmp_path):
    """Every public builder of `widgets` by name, ready to be called on small data."""
    need = request.getfixturevalue
    rng = np.random.default_rng(0)
    outcomes = {
        f: {name: Outcomes(rng.random((20, 16)) < 0.3) for name in ("base", "grpo", "rkl")} for f in ("cd3", "cd4")
    }
    record = {"step": 1, "reward": 0.2, "entropy": 0.5, "penalty": None, "log_u_mean": None}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text(json.dumps(record) + "\n")
    counts_of("old", "new", "newest").to_csv(tmp_path / "counts.csv", index=False)

    counted = {"base": [4, 10], "grpo": [0, 16], "dph-js": [8, 12]}
    guessed = {name: Outcomes.from_counts(16, c, ("cd3:2-3-4:14", "cd3:1-1-1:3")) for name, c in counted.items()}

    def ranks():
        after = need("tiny").copy().model
        with torch.no_grad():
            for weight in lowrank.linear_weights(after).values():
                weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        return widgets.rank_explorer(need("tiny").model, after)

    def solutions():
        both = {"base": need("tiny"), "grpo": need("tiny")}
        return widgets.solution_browser(both, need("countdown"), need("few_problems")[:3], samples=16)

    def collapse():
        lab = widgets.collapse_lab()
        lab.controls["strength"].value = 0.5  # at 0 it is plain GRPO, whatever the divergence
        return lab

    return {
        "divergence_explorer": widgets.divergence_explorer,
        "simplex_explorer": widgets.simplex_explorer,
        "mass_explorer": widgets.mass_explorer,
        "partition_explorer": lambda: widgets.partition_explorer(need("rollouts")),
        "rollout_browser": lambda: widgets.rollout_browser(need("rollouts"), need("tiny").tokenizer),
        "pass_at_k_explorer": lambda: widgets.pass_at_k_explorer(outcomes),
        "bias_lab": lambda: widgets.bias_lab([0.1, 0.5]),
        "flow_explorer": lambda: widgets.flow_explorer(outcomes),
        "front_explorer": lambda: widgets.front_explorer(need("scores")),
        "path_explorer": lambda: widgets.path_explorer(*two_paths()),
        "CountsLab": lambda: widgets.CountsLab(tmp_path / "counts.csv"),
        "TrainingDashboard": lambda: widgets.TrainingDashboard({"grpo": tmp_path / "run"}),
        "TrainingLab": lambda: need("lab"),
        "solution_browser": solutions,
        "estimator_lab": widgets.estimator_lab,
        "collapse_lab": collapse,
        "sql_lab": widgets.sql_lab,
        "memory_lab": widgets.memory_lab,
        "four_bit_lab": lambda: widgets.four_bit_lab({n: torch.randn(64, 64) for n in ("one", "two")}),
        "rank_explorer": ranks,
        "cost_lab": widgets.cost_lab,
        "lever_explorer": lambda: widgets.lever_explorer(debate.run_points(shipped_scores())),
        "rung_explorer": lambda: widgets.rung_explorer(frontier.read()[0].query("method in @WAY")),
        "guess_lab": lambda: widgets.guess_lab({"both": guessed, "less": dict(list(guessed.items())[:2])}),
        "off_target_lab": widgets.off_target_lab,
        "paper_explorer": lambda: widgets.paper_explorer(debate.paper_results(), shipped_scores()),
    }


BUILDERS = sorted(set(widgets.__all__) - {"Live", "Plot"})


def test_every_name_is_there_and_a_wrong_one_is_told():
    listing = {path.stem: path.read_text() for path in Path(widgets.__file__).parent.glob("*.py")}
    public = re.findall(
        r"^(?:def|class) ([A-Za-z]\w+).*(?:-> Live:|Live\):|Dashboard\):)$", "\n".join(listing.values()), re.M
    )
    assert sorted(public) == BUILDERS  # a new one is listed in `widgets._THEMES`
    assert set(widgets.__all__) <= set(dir(widgets)) and all(map(partial(getattr, widgets), widgets.__all__))
    with pytest.raises(AttributeError, match=r"no attribute 'explorer'; there are .* divergence_explorer"):
        getattr(widgets, "explorer")  # noqa: B009


@pytest.mark.parametrize(
    ("code", "others"),
    [
        ("from dphrl_lite import widgets", {"torch", "plotly", "ipywidgets", "pandas"}),
        ("from dphrl_lite import widgets; widgets.mass_explorer()", {"transformers", "sqlglot"}),
    ],
)
def test_a_widget_loads_what_it_needs_alone(code, others):
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert others & set(done.stdout.split()) == set()


def on_the_page(plots):
    """What the browser is sent, as one string."""
    return json.dumps([plot.value if isinstance(plot, ipywidgets.HTML) else plot.figure for plot in plots.children])


LATER = {("TrainingLab", "steps")}  # read when a run starts


def positions(control):
    """Values to set a control to: both ends, one between, and at last what it was."""
    if isinstance(control, ipywidgets.FileUpload):
        return [uploaded(counts_of("mine", "ours", "theirs"))]
    if isinstance(control, ipywidgets.Text | ipywidgets.Textarea):
        return ["nowhere", "", control.value]
    if isinstance(control, ipywidgets.Checkbox):
        return [not control.value, control.value]
    if isinstance(control, ipywidgets.FloatLogSlider):
        return [control.base**control.min, control.base**control.max, control.value]
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return [values[0], values[-1], values[len(values) // 2], control.value]
    return [control.min, control.max, control.min + control.step, control.value]


def switch_on(widget, control):
    """Choose another option elsewhere until `control` can be moved."""
    for other in widget.controls.values():
        for option in getattr(other, "options", ()) if control.disabled else ():
            if control.disabled:
                other.value = option[1] if isinstance(option, tuple) else option


@pytest.mark.parametrize("name", BUILDERS)
def test_every_control_of_every_widget_redraws_and_has_a_name(name, builders):
    assert name in builders, f"{name} is a new widget: list it in `builders`, with small data"
    widget = builders[name]()
    *rows, plots = widget.children
    shown = [control for row in rows for control in row.children]
    assert set(widget.controls.values()) <= set(shown)
    assert not any(len({isinstance(control, ipywidgets.Checkbox) for control in row.children}) > 1 for row in rows)
    for control in shown:
        assert control.description.strip(), f"{name}: a {type(control).__name__} has no description"
    for key, control in widget.controls.items():
        switch_on(widget, control)
        assert not control.disabled, f"{name}: {key} cannot be switched on"
        seen = {on_the_page(plots)}
        for value in positions(control):
            before = widget.figures
            changed = value != control.value
            control.value = value
            assert widget.figures is not before or not changed, f"{name}: {key} = {value!r} draws nothing"
            seen.add(on_the_page(plots))
            for drawn, figure in zip(plots.children, widget.figures, strict=True):
                if isinstance(figure, str):
                    assert drawn.value == figure
                else:
                    assert drawn.figure["data"] == json.loads(figure.to_json())["data"]
                    assert len(drawn.figure["layout"]["meta"]["alt"]) >= 20, f"{name}: a figure without words"
        assert len(seen) > 1 or (name, key) in LATER, f"{name}: {key} changes nothing"


def test_the_builders_are_those_of_the_module(builders):
    assert sorted(builders) == BUILDERS


@pytest.mark.parametrize("name", ["divergence_explorer", "TrainingDashboard", "TrainingLab"])
def test_every_button_can_be_pressed(name, builders):
    widget = builders[name]()
    buttons = [child for child in widget.children[0].children if isinstance(child, ipywidgets.Button)]
    assert buttons
    if "steps" in widget.controls:
        widget.controls["steps"].value = 5  # not the 40 of a real run
    for button in buttons:
        before = widget.figures
        button.click()
        finish(widget) if hasattr(widget, "thread") else None
        assert widget.figures is not before or button.disabled, button.description
