"""Figures hold the data they claim to show. How they look is checked by eye and in the browser."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from dphrl_lite import divergences, figures, models, passk, presampling
from dphrl_lite.figures import style
from dphrl_lite.lab import bandits, estimators, pitfalls, toys, worlds
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes
from dphrl_lite.scale import lowrank, quantisation


@pytest.fixture
def rollouts():
    correct = np.array([[1] * 8, [1] * 5 + [0] * 3, [0] * 8, [1] * 7 + [0]], dtype=bool)
    return pd.DataFrame({"problem_id": np.repeat(list("abcd"), 8), "correct": correct.ravel()})


def traces(figure):
    return {t.name: t for t in figure.data if t.name}


def test_one_colour_per_method_throughout():
    assert set(figures.COLORS) >= set(list(METHODS)[:9]) | {"base"}
    assert len(set(figures.COLORS.values())) == len(figures.COLORS)
    assert figures.color("js") == figures.color("dph-js") == figures.color("dph-js at 2, lr 0.001")
    assert figures.color("grpo") == figures.color("grpo, lr 0.001")
    assert figures.color("never-heard-of") == figures.color("never-heard-of")


@pytest.mark.parametrize("name", divergences.names())
def test_divergence_explorer_shows_policy_target_and_fit(name):
    divergence, fit = divergences.get(name), toys.best_fit(name)
    figure = figures.divergence_explorer(divergence, fit, 0.5, 1.0, toys.Modes())
    shown = traces(figure)
    step = (toys.GRID[1] - toys.GRID[0]).item()
    assert np.sum(shown["policy p (yours)"].y) * step == pytest.approx(1, abs=1e-6)
    assert np.allclose(shown[f"best fit under {divergence.label}"].y * step, toys.gaussian(fit.mean, fit.width))
    curve = next(t for t in figure.data if t.name == divergence.label)
    assert np.allclose(curve.y, divergence.f(np_log(curve.x)), atol=1e-9)
    assert divergence.label in figure.layout.title.text


def np_log(x):
    return torch.tensor(np.log(x))


def test_partition_histogram_counts_every_problem_once(rollouts):
    counts = presampling.counts(rollouts)
    for threshold, perfect in ((1, 3), (6, 2), (8, 1)):
        figure = figures.partition_histogram(counts, presampling.partition(rollouts, threshold))
        assert sum(t.y.sum() for t in figure.data) == 4
        assert next(t for t in figure.data if t.name.startswith("D_pef")).y.sum() == perfect


def test_training_dashboard_leaves_out_what_a_method_does_not_log():
    log = pd.DataFrame(
        {"step": [1, 2], "reward": [0.1, 0.2], "entropy": [0.5, 0.4], "penalty": None, "log_u_mean": None}
    )
    figure = figures.training_dashboard({"grpo": log, "dph-js": log.assign(penalty=[0.0, 0.1], log_u_mean=[0.0, -0.1])})
    assert sum(t.name == "grpo" for t in figure.data) == 2
    assert sum(t.name == "dph-js" for t in figure.data) == 4
    words = [t.text[0] for t in figures.training_dashboard({"grpo": log}).data if t.text]
    assert words == ["no run with a penalty yet"] * 2


def test_pass_at_k_curves_show_means_and_bands():
    out = Outcomes(np.random.default_rng(0).random((40, 8)) < 0.4)
    figure = figures.pass_at_k_curves({"base": out}, [1, 2, 8])
    table = out.pass_at_k([1, 2, 8])
    assert np.allclose(traces(figure)["base"].y, table["mean"])
    assert any(np.allclose(t.y, table["low"]) for t in figure.data)


def test_forgotten_and_gained_problems():
    base, trained = Outcomes.from_counts(4, [4, 4, 0, 1]), Outcomes.from_counts(4, [4, 0, 3, 1])
    shown = traces(figures.keep_forget_gain({"base": base, "grpo": trained}, k=2))
    change = passk.compare(base, trained, 2) / 4
    assert shown["forget"].x[0] == pytest.approx(-change["forget"])
    assert shown["gain"].x[0] == pytest.approx(change["gain"])
    assert shown["gain"].y[0] == f"grpo<br>keeps {change['keep']:.1%}, never {change['never']:.1%}"
    with pytest.raises(ValueError, match="unknown model 'base'"):
        figures.keep_forget_gain({"grpo": trained}, k=2)


def test_a_cross_stands_where_a_curve_falls_below_base():
    base, trained = Outcomes.from_counts(8, [1, 1, 8]), Outcomes.from_counts(8, [4, 0, 8])
    both = {"base": base, "grpo": trained}
    (cross,) = [t for t in figures.pass_at_k_curves(both, [1, 8], crossing="base").data if t.marker.symbol == "x"]
    k = passk.crossing(base, trained)
    assert (cross.x[0], cross.y[0]) == (k, pytest.approx(trained.pass_at_k(k)["mean"][0]))
    assert len(figures.pass_at_k_curves(both, [1, 8]).data) == 6


def test_models_of_any_name_have_different_colours():
    found = style.colors(["base", *(f"model {i}" for i in range(12))])
    assert len(set(found.values())) == 13
    assert found["base"] == figures.color("base")


def test_estimator_errors_are_those_of_the_table():
    errors = passk.estimator_errors([0.05, 0.3], 8, range(1, 9))
    figure = figures.estimator_errors(errors, 8)
    part = errors[errors["estimator"] == "with replacement"]
    bias, std = [t for t in figure.data if t.name == "with replacement"]
    assert np.allclose(bias.y, part["bias"]) and np.allclose(std.y, part["std"])
    assert f"{100 * part['bias'].iloc[-1]:+.1f} points" in figure.layout.title.text


def test_flow_carries_the_expected_counts():
    base, trained = Outcomes.from_counts(4, [4, 4, 0, 1]), Outcomes.from_counts(4, [4, 0, 3, 1])
    change = passk.compare(base, trained, 2)
    sankey = figures.solved_flow(change, 2, "base", "grpo").data[0]
    assert dict(zip(sankey.link.label, sankey.link.value, strict=True)) == pytest.approx(change.to_dict(), abs=1e-5)
    ends = dict(zip(sankey.link.label, zip(sankey.link.source, sankey.link.target, strict=True), strict=True))
    assert ends == {"keep": (0, 2), "forget": (0, 3), "gain": (1, 2), "never": (1, 3)}
    assert sankey.node.label[0] == f"base: solved, {change['keep'] + change['forget']:.1f}"
    same = figures.solved_flow(passk.compare(base, base, 4), 4).data[0]
    assert min(same.link.value) > 0  # plotly drops a node without a stream, and misplaces the others


def test_cover_curves_are_cover_at_tau():
    out = Outcomes.from_counts(4, [0, 1, 2, 4])
    line = traces(figures.cover_curves({"base": out}))["base"]
    assert line.x.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert line.y.tolist() == [0.75, 0.5, 0.25, 0.25]


def test_diversity_is_the_share_with_at_least_so_many():
    table = pd.DataFrame({"method": ["base"] * 4 + ["grpo"] * 2, "distinct": [0, 1, 3, 3, 1, 0]})
    base, grpo = figures.diversity(table).data
    assert base.y.tolist() == [0.75, 0.5, 0.5]
    assert grpo.y.tolist() == [0.5, 0, 0]
    assert base.name == "base: mean 1.75"


@pytest.fixture
def scores():
    runs = [
        ("base", None, 0, 0.3, 1.0),
        ("rkl", 0.1, 0, 0.5, 0.7),
        ("rkl", 1.0, 2, 0.4, 0.8),
        ("rkl", 0.1, 1, 0.7, 0.5),
    ]
    runs += [("grpo", None, 0, 0.6, 0.6)]
    table = pd.DataFrame(runs, columns=["method", "strength", "seed", "Pass@1", "Pass@8"])
    table = table.assign(domain="toy", split="test", distinct=2.0)
    return table.set_index(["domain", "split", "method", "strength", "seed"])


def test_front_is_the_mean_over_seeds_along_the_strengths(scores):
    shown = traces(figures.front(scores, "toy", height="Pass@8"))
    assert set(shown) == {"base", "rkl", "grpo"}
    assert shown["rkl"].x.tolist() == pytest.approx([0.6, 0.4])
    assert shown["rkl"].y.tolist() == pytest.approx([0.6, 0.8])
    assert (
        shown["rkl"].text[0]
        == "<b>rkl</b>, strength 0.1<br>mean of 2 seeds<br>Pass@1 60.0%<br>Pass@8 60.0%<br>distinct 2.00"
    )
    assert "strength 1<br>seed 2<br>" in shown["rkl"].text[1]
    assert shown["grpo"].mode == "markers"
    (dots,) = [t for t in figures.front(scores, "toy", height="Pass@8").data if t.legendgroup == "rkl" and not t.name]
    assert sorted(dots.x) == [0.4, 0.5, 0.7]
    assert "strength 0.1<br>seed 1<br>Pass@1 70.0%" in dots.text[list(dots.x).index(0.7)]
    assert figures.swept(scores) == ["rkl"]


def test_front_shows_what_is_asked_for_and_says_where_there_is_nothing(scores):
    assert set(traces(figures.front(scores, "toy", height="distinct", methods=["grpo"]))) == {"base", "grpo"}
    empty = figures.front(scores.assign(**{"Pass@8": np.nan}), "toy", height="Pass@8")
    assert "choose a smaller k" in empty.layout.annotations[0].text
    with pytest.raises(ValueError, match="unknown column of scores 'Pass@3'"):
        figures.front(scores, "toy", height="Pass@3")


def test_matched_differences_tell_clear_ones_from_others():
    table = pd.DataFrame({"domain": "toy", "first": list("abc"), "second": "z", "difference": [0.1, 0.01, np.nan]})
    table = table.assign(low=[0.05, -0.02, np.nan], high=[0.15, 0.05, np.nan], p=[0.01, 0.3, np.nan], from_=0.3, to=0.4)
    clear, unclear = figures.matched_differences(table).data
    assert list(clear.y) == ["toy: a − z"] and list(clear.x) == [0.1]
    assert clear.error_x.array[0] == pytest.approx(0.05) and clear.error_x.arrayminus[0] == pytest.approx(0.05)
    assert "toy: b − z" in unclear.y and "toy: c − z<br>no common Pass@1" in unclear.y


def test_gallery_names_who_covers():
    figure = figures.gallery(["forward_kl", "reverse_kl"], toys.Modes(weight=0.3))
    words = [annotation.text for annotation in figure.layout.annotations]
    assert words == ["forward KL:<br>covers both modes", "reverse KL:<br>seeks the right mode"]
    assert [t.name for t in figure.data] == ["target", "forward KL", "target", "reverse KL"]


def test_coverage_in_words():
    three = toys.Modes(3, 4.0, 1 / 3)
    said = [figures.coverage(toys.Fit(mean, width, 0.0), three) for mean, width in ((0, 4), (2, 1), (-4, 1), (0, 0.5))]
    assert said == ["covers all 3 modes", "covers 2 of 3 modes", "seeks the left mode", "seeks the middle mode"]


def test_generators_draw_value_and_pull():
    figure = figures.generators(["forward_kl", "js"])
    value, pull = figure.data[:2]
    assert np.allclose(value.y, divergences.get("forward_kl").f(np_log(value.x)))
    assert np.allclose(pull.y, divergences.get("forward_kl").force(np_log(pull.x)))


def test_simplex_draws_every_flow_from_its_start():
    q, starts = torch.tensor([0.6, 0.3, 0.1]).double(), 0.97 * torch.eye(3).double() + 0.01
    paths = {"js": toys.simplex_flow(divergences.get("js"), q, starts, torch.arange(3).double())}
    figure = figures.simplex(paths, q)
    assert len(figure.data) == 4
    assert [figure.data[1].a[0], figure.data[1].b[0], figure.data[1].c[0]] == pytest.approx([0.01, 0.98, 0.01])


def test_mass_map_shows_the_optimum():
    figure = figures.mass_map(["reverse_kl", "js"], weight=0.3)
    shown, q = traces(figure)["reverse KL"], torch.tensor([0.3, 0.7]).double()
    tilted = q * torch.exp(torch.tensor([0.0, 1.0]).double() / shown.x[10])
    assert shown.y[10] == pytest.approx((tilted[0] / tilted.sum() / 0.3).item(), rel=1e-4)
    heat = figure.data[-1]
    assert np.allclose(heat.z[0], shown.y)  # alpha = 0 is reverse KL


def test_solution_bars_count_the_solutions_that_died():
    counts = pd.DataFrame({"base": [30, 9, 2], "grpo": [99, 0, 0]}, index=["+1+2", "+1*3", "-4+1"])
    shown = traces(figures.solution_bars(counts, "cd"))
    assert shown["base"].y.tolist() == [30, 9, 2]
    assert shown["grpo: 1 of 2 died"].y.tolist() == [99, 0, 0]  # the third was rare in the first place


def test_training_dashboard_shows_the_metrics_asked_for_and_tells_runs_of_one_method_apart():
    log = [
        {"step": 1, "gradient_norm": 0.5, "zero_spread": 0.25},
        {"step": 2, "gradient_norm": 0.7, "zero_spread": 0.5},
    ]
    logs = {"dph-js at 1": log, "dph-js at 2": log, "grpo": log}
    figure = figures.training_dashboard(logs, ("gradient_norm", "zero_spread", "penalty"), "Norms")
    drawn = [t for t in figure.data if t.name]
    assert [t.y.tolist() for t in drawn if t.name == "grpo"] == [[0.5, 0.7], [0.25, 0.5]]
    assert {t.line.color for t in drawn if t.name.startswith("dph-js")} == {figures.color("dph-js")}
    assert len({(t.line.color, t.line.dash) for t in drawn}) == 3
    assert [t.text[0] for t in figure.data if t.mode == "text"] == ["no run with a penalty yet"]
    assert figure.layout.title.text == "Norms"


def test_estimator_bars_show_estimates_and_exact_values():
    table = estimators.error_bars(worlds.example("two-token"), estimators.usual("js"), "js", 64, "token")
    figure = figures.estimator_bars(table, "js", 64)
    dots = [t for t in figure.data if t.name != "exact"]
    for axis, column in (("x", "value"), ("x2", "cosine")):
        shown = {row: x for t in dots if t.xaxis == axis for row, x in zip(t.y, t.x, strict=True)}
        bars = {row: s for t in dots if t.xaxis == axis for row, s in zip(t.y, t.error_x.array, strict=True)}
        assert shown == pytest.approx(table[column].to_dict())
        assert bars == pytest.approx(table[f"{column} std"].to_dict())
    values, cosines = (t for t in figure.data if t.name == "exact")
    assert np.allclose(values.x, table["exact"])
    assert np.allclose(cosines.x, table["cos js"], equal_nan=True)
    hues = {t.name: t.marker.color for t in dots}
    assert hues["follows reverse KL"] == figures.color("reverse_kl")
    assert hues["follows nothing: it is zero"] not in figures.COLORS.values()


def test_estimator_table_holds_a_row_per_estimator():
    table = estimators.compare(worlds.example(), estimators.names(), ["forward_kl"])
    cells = figures.estimator_table(table, "forward_kl").data[0].cells.values
    assert list(cells[0]) == list(table.index)
    assert cells[3][0] == f"{table['exact'].iloc[0]:.3f}"
    assert cells[6][0] == "–"  # k1's gradient is zero and has no direction
    assert "-0.000" not in str(cells)


def test_filtering_curves_show_the_table():
    correct = torch.tensor([True, True, False, False, True, False])
    table = pitfalls.filtering(worlds.example(), correct, [-1, 0, 1])
    shown = traces(figures.filtering_curves(table))
    kept = table[table["samples"] == "correct only"]
    assert np.allclose(shown["correct samples only"].y, kept["E[u]"])
    assert np.allclose(shown["plain −log u"].y, kept["plain"])
    assert np.allclose(shown["f(u), Jensen-Shannon"].y, kept["js"])


def test_clamp_curves_show_force_and_recovery():
    shown = [estimators.get("forward_kl"), pitfalls.clamped("forward_kl", low=-5)]
    figure = figures.clamp_curves(shown, steps=30)
    force, path, clamped, dead = figure.data
    assert np.allclose(force.y, np.expm1(force.x))
    assert path.y[0] == -12
    assert path.y[-1] > -5 > dead.y[-1]
    assert np.all(np.asarray(clamped.y)[np.asarray(clamped.x) < -5] == 0)
    assert force.line.color == figures.color("forward_kl") != clamped.line.color


# ---- bandits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return bandits.make(contexts=8, answers=12, held_out=4)


@pytest.fixture(scope="module")
def path(world):
    return bandits.flow(world, "grpo", steps=20, frames=5)


def test_answer_mass_adds_up_to_one_at_every_moment(path):
    figure = figures.answer_mass(path, 2)
    assert np.allclose(np.sum([t.y for t in figure.data], 0), 1)
    wrong = next(t for t in figure.data if t.name.endswith("wrong"))
    assert np.allclose(1 - wrong.y, path.p_correct()[:, 2])


def test_pass_over_time_shows_trained_and_held_out_means(world, path):
    figure = figures.pass_over_time({"grpo": path}, ks=(1, 8))
    assert [t.name for t in figure.data] == ["grpo: Pass@1", "grpo: Pass@8"] * 2
    assert np.allclose(figure.data[1].y, path.pass_at_k(8, world.trained))
    assert np.allclose(figure.data[3].y, path.pass_at_k(8, ~world.trained))


def test_optima_are_the_closed_forms(world):
    q, reward = world.reference[0], world.reward[0]
    shown = figures.optima(q, reward, [0.1, 1.0]).data
    for i, name in ((0, "forward_kl"), (2, "reverse_kl")):
        best = bandits.optimum(q, reward, 0.1, name)
        assert shown[i].y[0] == pytest.approx((best * reward).sum().item())
        assert shown[i + 1].y[0] == pytest.approx(bandits.effective_correct(best, reward > 0).item())


def test_strength_front_starts_at_no_penalty(world):
    sweep = bandits.flow(world, "grpo", divergences.get("js"), [0.0, 1.0], steps=20, frames=2)
    figure = figures.strength_front({"js": sweep}, k=16)
    line = next(t for t in figure.data if t.xaxis == "x2" and t.mode == "lines+markers")
    star = [t for t in figure.data if t.name == "grpo"][-1]
    assert (line.x[0], line.y[0]) == pytest.approx((star.x[0], star.y[0]))
    assert line.y == pytest.approx(sweep.pass_at_k(16, ~world.trained)[-1].numpy())


def test_hybrid_split_shows_each_context_once_per_path(world, path):
    figure = figures.hybrid_split({"grpo-exp": path, "dph-js": path}, world.trained)
    assert [t.name for t in figure.data[::2]] == ["base", "grpo-exp", "dph-js"]
    for trace in figure.data:
        assert set(trace.x) == {"0", "1", "2", "3"}
    assert figure.data[0].y[0] == pytest.approx(world.solve_rate[world.trained].max().item())


def test_collapse_lab_says_in_its_title_what_became_of_pass_at_k(world, path):
    figure = figures.collapse_lab(path, "grpo", 8, 5)
    end = path.pass_at_k(8, ~world.trained)[-1].item()
    assert f"<b>{end:.1%}</b>" in figure.layout.title.text
    assert np.allclose(np.sum([t.y for t in figure.data if t.stackgroup], 0), 1)
    assert "strength 0" in figure.layout.title.text
    assert "penalty: js" in figures.collapse_lab(path, "js", 8, 5).layout.title.text


def test_query_results_shows_rows_and_says_where_there_are_none():
    rows = pd.DataFrame({"name": ["<i>Ada</i>", None], "n": [1, 2]})
    figure = figures.query_results(
        [("gold", rows), ("yours", "no such table")], figures.verdict("a < b", False), shown=1
    )
    gold, yours = (trace.cells["values"] for trace in figure.data)
    assert [list(column) for column in gold] == [["&lt;i&gt;Ada&lt;/i&gt;"], ["1"]]
    assert [list(column) for column in yours] == [["no such table"]]
    assert [note.text for note in figure.layout.annotations] == ["gold: 2 rows", "yours"]
    assert "wrong" in figure.layout.title.text
    assert "a &lt; b" in figure.layout.title.text


def test_verdict_table_says_right_and_wrong_in_words():
    html = figures.verdict_table(pd.DataFrame({"correct": [True, False], "distinct": ["+1", None]})).to_html()
    assert html.index("right</td>") < html.index("wrong</td>") < html.index("–</td>")


def test_verdict_table_shows_what_a_model_wrote_as_text():
    html = figures.verdict_table(pd.DataFrame({"query": ["SELECT 1 WHERE 1 <b>2</b>"]}, index=["a"])).to_html()
    assert "1 &lt;b&gt;2&lt;/b&gt;" in html


# ---- QLoRA --------------------------------------------------------------------------------------------------------------


def test_memory_ladder_stacks_all_parts_twice_and_says_their_sum():
    parts = pd.DataFrame({"phase": "layers", "weights": [30.0, 5.5], "optimizer": [60.0, 0.1]}, index=["plain", "NF4"])
    figure = figures.memory_ladder(parts, "a run")
    for axis in ("x", "x2"):
        bars = [t for t in figure.data if t.type == "bar" and t.xaxis == axis]
        assert np.allclose(np.sum([bar.x for bar in bars], 0), [90, 5.6])
    words = next(t.text for t in figure.data if t.type == "scatter")
    assert list(words) == ["<b>90.0</b>", "<b>5.6</b>"]
    assert [shape.x0 for shape in figure.layout.shapes] == [16, 24]


def test_four_bits_shows_levels_counts_and_the_chosen_error():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = quantisation.errors(weight)
    figure = figures.four_bits(weight, "nf4", 256, True, errors)
    shown = traces(figure)
    assert np.allclose(shown["levels of NF4"].x, quantisation.levels("nf4"))
    assert shown["weights"].y.sum() == shown["after"].y.sum() == weight.numel()
    assert shown["chosen"].x[0] == 256
    assert shown["chosen"].y[0] == pytest.approx(errors.loc[256, "nf4"], rel=0.02)
    assert np.allclose(shown["evenly spaced"].y, errors["int4"])
    assert "4.032 bits" in figure.layout.title.text


def test_rank_explorer_shows_what_a_rank_keeps():
    values = {"a.mlp": torch.tensor([3.0, 4.0]).sort(descending=True).values, "a.attention": torch.tensor([1.0, 0.0])}
    shares = lowrank.shares(values)
    figure = figures.rank_explorer(values, shares, rank=1, trained=10, whole=100)
    kept = {t.name: t.y for t in figure.data if t.xaxis == "x2"}
    assert kept["MLP"][:2] == pytest.approx([16 / 25, 1.0])
    assert kept["attention"][:2] == pytest.approx([1.0, 1.0])
    assert "<b>82%</b>" in figure.layout.title.text and "10.0% of 100" in figure.layout.title.text


def test_reward_by_run_is_a_running_mean():
    log = pd.DataFrame({"step": [1, 2, 3], "reward": [0.0, 1.0, 0.5]})
    assert figures.reward_by_run({"all": log}, window=2).data[0].y.tolist() == [0.0, 0.5, 0.75]


def test_cost_bars_say_hours_and_money():
    hours = pd.DataFrame({"sampling": [10.0, 10.0], "reference": [0.0, 5.0]}, index=["dph-js", "rkl"])
    figure = figures.cost_bars(hours, price=2.0, title="a run")
    assert [a.text for a in figure.layout.annotations] == ["<b>10 h</b><br>costs 20", "<b>15 h</b><br>costs 30"]
    assert traces(figure)["reference"].x.tolist() == [0.0, 5.0]


def test_a_tokens_kernels_add_up_to_its_milliseconds():
    found = json.loads((models.DATA / "runs" / "qlora-7b.json").read_text())["kernels"]["found"]
    bars = [bar for bar in figures.token_kernels(found).data if bar.xaxis == "x"]
    for i, way in enumerate(found):
        assert sum(bar.x[i] for bar in bars) == pytest.approx(way["wall_ms"], rel=1e-6)
    line = [x for bar in figures.token_kernels(found, kernels=10).data if bar.xaxis == "x2" for x in bar.x]
    assert len(line) == 10 * len(found)
