"""Figures hold the data they claim to show. How they look is checked by eye and in the browser."""

import numpy as np
import pandas as pd
import pytest

from dphrl_lite import bandits, divergences, figures, passk, presampling, toys
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes


@pytest.fixture
def rollouts():
    correct = np.array([[1] * 8, [1] * 5 + [0] * 3, [0] * 8, [1] * 7 + [0]], dtype=bool)
    return pd.DataFrame({"problem_id": np.repeat(list("abcd"), 8), "correct": correct.ravel()})


def traces(figure):
    return {t.name: t for t in figure.data if t.name}


def test_one_colour_per_method_throughout():
    assert set(figures.COLORS) >= set(list(METHODS)[:9]) | {"base"}
    assert len(set(figures.COLORS.values())) == len(figures.COLORS)
    assert figures.color("js") == figures.color("dph-js")
    assert figures.color("never-heard-of") == figures.color("never-heard-of")


@pytest.mark.parametrize("name", divergences.names())
def test_divergence_explorer_shows_policy_target_and_fit(name):
    divergence, fit = divergences.get(name), toys.best_fit(name, 0.5, 4.0, 0.5)
    figure = figures.divergence_explorer(divergence, fit, 0.5, 1.0, 4.0, 0.5)
    shown = traces(figure)
    step = (toys.GRID[1] - toys.GRID[0]).item()
    assert np.sum(shown["policy p (yours)"].y) * step == pytest.approx(1, abs=1e-6)
    assert np.allclose(shown[f"best fit under {divergence.label}"].y * step, toys.gaussian(fit.mean, fit.width))
    curve = next(t for t in figure.data if t.name == divergence.label)
    assert np.allclose(curve.y, divergence.f(np_log(curve.x)), atol=1e-9)
    assert divergence.label in figure.layout.title.text


def np_log(x):
    import torch

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
    assert len(figures.training_dashboard({}).data) == 0


def test_pass_at_k_curves_show_means_and_bands():
    out = Outcomes(np.random.default_rng(0).random((40, 8)) < 0.4)
    figure = figures.pass_at_k_curves({"base": out}, [1, 2, 8])
    table = out.pass_at_k([1, 2, 8])
    assert np.allclose(traces(figure)["base"].y, table["mean"])
    assert any(np.allclose(t.y, table["low"]) for t in figure.data)


def test_keep_forget_gain_adds_up_to_all_problems():
    base, trained = Outcomes.from_counts(4, [4, 4, 0, 1]), Outcomes.from_counts(4, [4, 0, 3, 1])
    figure = figures.keep_forget_gain({"base": base, "grpo": trained}, k=2)
    assert sum(t.x[0] for t in figure.data) == pytest.approx(1)
    assert traces(figure)["forget"].x[0] == pytest.approx(passk.compare(base, trained, 2)["forget"] / 4)


def test_gallery_names_who_covers():
    names = [t.name for t in figures.gallery(["forward_kl", "reverse_kl"], weight=0.3).data]
    assert names[1:] == ["forward KL: covers both modes", "reverse KL: seeks the right mode"]


def test_solution_bars():
    figure = figures.solution_bars(pd.DataFrame({"base": [3, 1], "grpo": [9, 0]}, index=["+1+2", "+1*3"]), "cd")
    assert traces(figure)["grpo"].y.tolist() == [9, 0]


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
