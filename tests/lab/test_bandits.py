"""The bandits against autograd, closed forms and hand-made cases. What notebook 03 states is asserted here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dphrl_lite import divergences, passk
from dphrl_lite.lab import bandits
from dphrl_lite.lab.bandits import Bandit

SMOOTH = [name for name in divergences.names() if name != "total_variation"]


@pytest.fixture(scope="module")
def bandit():
    return bandits.make()


@pytest.fixture(scope="module")
def grpo(bandit):
    return bandits.flow(bandit, "grpo")


def table(q, reward) -> Bandit:
    """Contexts with parameters of their own, all trained."""
    return Bandit(q.log(), reward, torch.eye(len(q)), torch.ones(len(q)))


def random_table(seed, contexts=4, answers=6, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.softmax(scale * torch.randn(contexts, answers, generator=draw, dtype=torch.float64), -1)
    return q, torch.rand(contexts, answers, generator=draw, dtype=torch.float64)


# ---- the world ----------------------------------------------------------------------------------------------------------


def test_the_default_bandit_is_what_its_docstring_says(bandit):
    assert bandit.start.shape == (32, 64) and bandit.start.dtype == torch.float64
    right = bandit.correct.sum(1)
    assert right.min() >= 1 and right.max() < 64 and right.double().mean() > 10
    assert bandit.trained.tolist() == [True] * 16 + [False] * 16
    kernel = bandit.features @ bandit.features.T
    assert torch.allclose(kernel[:16, :16], 0.1 * torch.eye(16).double() + 0.9 / 16)
    assert torch.allclose(kernel[16:, :16], torch.tensor(0.9 / 16, dtype=torch.float64))
    assert torch.equal(bandits.make().start, bandit.start)
    assert not torch.equal(bandits.make(seed=1).start, bandit.start)


def test_d_pef_is_trained_and_solved_at_the_threshold(bandit):
    assert bandit.perfect(0.75).sum() == 3 and not (bandit.perfect(0.75) & ~bandit.trained).any()
    assert bandit.solve_rate[bandit.perfect(0.75)].min() >= 0.75
    assert torch.equal(bandit.perfect(0.0), bandit.trained)


@pytest.mark.parametrize("k", [1, 2, 16])
def test_exact_pass_at_k_is_what_the_unbiased_estimator_estimates(k):
    n, p = 24, 0.3
    binomial = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(weight * passk.pass_at_k(n, c, k) for c, weight in enumerate(binomial))
    assert bandits.pass_at_k(p, k).item() == pytest.approx(expected, rel=1e-12)


def test_counts_of_right_answers_by_hand():
    p, correct = torch.tensor([0.25, 0.25, 0.0005, 0.4995]).double(), torch.tensor([True, True, True, False])
    assert bandits.living_correct(p, correct) == 2
    assert bandits.effective_correct(p, correct).item() == pytest.approx(2, abs=0.02)
    assert bandits.distinct_correct(p, correct, 2).item() == pytest.approx(2 * (1 - 0.75**2) + 1 - 0.9995**2)
    assert bandits.entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))


# ---- gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", divergences.names())
def test_a_step_follows_autograd_of_the_exact_objective(name):
    """Two trained contexts that share parameters and a held-out one: W moves along the gradient of the written objective."""
    draw = torch.Generator().manual_seed(3)
    start, features = torch.randn(3, 5, generator=draw), torch.randn(3, 2, generator=draw)
    reward = torch.tensor([[1.0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    b = Bandit(start, reward, features, torch.tensor([True, True, False]))
    divergence, size = divergences.get(name), 1e-3
    first = bandits.flow(b, "grpo", divergence, 0.3, steps=1, step_size=size).probs[1]  # leaves the point where p = q
    w = torch.linalg.lstsq(b.features, (first / b.reference).log()).solution.requires_grad_()
    p = torch.softmax(b.start + b.features @ w, -1)
    rate = (p * b.correct).sum(-1)
    value = 2 * rate.sqrt().arcsin() - 0.3 * divergence.exact(p, b.reference)
    expected = torch.autograd.grad(value[:2].sum(), w)[0]
    logp = torch.log_softmax(b.start + b.features @ w, -1).detach()
    inner = bandits.reward_gradient(logp.exp(), b.reward, "grpo") - 0.3 * bandits.penalty_gradient(
        divergence, logp, b.reference.log(), b.reference
    )
    assert torch.allclose(b.features[:2].T @ inner[:2], expected, atol=1e-9)


def test_hybrid_penalty_is_f_over_right_answers_of_d_pef(bandit):
    """One step of the hybrid flow with a strength alone equals autograd of the rehearsal loss on D_pef."""
    b, js, size = bandit.tabular(), divergences.get("js"), 1e-4
    path = bandits.flow(b, "reward", js, 2.0, steps=2, step_size=size, rehearse="perfect", frames=3).probs
    pef = b.perfect()
    assert torch.equal(path[1][pef], path[0][pef])  # f'(1) = 0: nothing to hold before anything has moved
    moved = (path[1] != path[0]).any(-1)
    assert torch.equal(moved, b.trained & ~pef)
    z = (b.start + torch.randn(b.start.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    logp, right = torch.log_softmax(z, -1), b.reference * b.correct
    weights = right / right.sum(-1, keepdim=True)
    loss = (weights * js.f(logp - b.reference.log())).sum()
    ours = bandits.penalty_gradient(js, logp.detach(), b.reference.log(), weights)
    assert torch.allclose(ours, torch.autograd.grad(loss, z)[0], atol=1e-12)


def test_dividing_by_the_standard_deviation_ascends_two_arcsin_sqrt():
    q, reward = random_table(0)
    reward, z = (reward > 0.5).double(), q.log().requires_grad_()
    value = 2 * (torch.softmax(z, -1) * reward).sum(-1).sqrt().arcsin()
    expected = torch.autograd.grad(value.sum(), z)[0]
    assert torch.allclose(bandits.reward_gradient(q, reward, "grpo"), expected, atol=1e-12)


def test_groups_estimate_the_exact_gradient_without_bias():
    q, reward = random_table(1, contexts=2)
    many = q.expand(40_000, 2, 6)
    draw = torch.Generator().manual_seed(0)
    sampled = bandits.reward_gradient(many, reward, "reward", groups=4, draw=draw)
    error = (sampled.mean(0) - bandits.reward_gradient(q, reward, "reward")).abs()
    assert (error < 5 * sampled.std(0) / 200).all()


def test_a_longer_step_is_cut_short_and_the_clock_says_so():
    q, reward = random_table(2)
    path = bandits.flow(table(q, reward), "reward", step_size=1e6, steps=5, frames=6)
    logits = path.probs.log()
    assert (path.time.diff() < 1e6).all()
    centred = logits - logits.mean(-1, keepdim=True)
    assert centred.diff(dim=0).abs().max() <= 2


# ---- what RL without a penalty does -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 5),
    objective=st.sampled_from(bandits.OBJECTIVES),
    groups=st.sampled_from([None, 2, 5]),
    step_size=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_tabular_rl_never_lowers_p_correct_of_any_context(seed, scale, objective, groups, step_size):
    """Right answers' logits never fall and wrong ones' never rise: exact or in groups, at any step size."""
    q, reward = random_table(seed, scale=scale)
    b = table(q, (reward > 0.6).double())
    path = bandits.flow(b, objective, groups=groups, steps=60, step_size=step_size, frames=61, seed=seed)
    assert path.p_correct().diff(dim=0).min() >= -1e-12
    for k in (1, 8, 64):
        assert path.pass_at_k(k).diff().min() >= -1e-12


def test_tabular_rl_still_loses_right_answers(bandit):
    path = bandits.flow(bandit.tabular(), "grpo")
    rich = bandits.effective_correct(path.probs, bandit.correct)[:, bandit.trained].mean(-1)
    assert path.p_correct().diff(dim=0).min() >= -1e-12
    assert path.pass_at_k(1, bandit.trained)[-1] > 0.99
    assert rich[0] > 8 and rich[-1] < 2
    assert torch.allclose(path.probs[-1][~bandit.trained], bandit.reference[~bandit.trained])


def test_the_rich_get_richer_among_right_answers():
    p = torch.tensor([0.4, 0.2, 0.3, 0.1]).double()
    gradient = bandits.reward_gradient(p, torch.tensor([1.0, 1, 0, 0]).double(), "reward")
    assert gradient.tolist() == pytest.approx([0.16, 0.08, -0.18, -0.06])


@pytest.mark.parametrize("seed", range(5))
def test_shared_parameters_raise_pass_at_1_of_held_out_contexts(seed):
    b = bandits.make(seed=seed)
    path = bandits.flow(b, "grpo")
    assert path.pass_at_k(1, ~b.trained)[-1] > path.pass_at_k(1, ~b.trained)[0]


def test_shared_parameters_let_pass_at_k_collapse_and_a_penalty_keeps_it(bandit, grpo):
    held = ~bandit.trained
    before, after = ([grpo.pass_at_k(k, held)[i].item() for k in (1, 8, 64)] for i in (0, -1))
    assert before == pytest.approx([0.554, 0.893, 0.989], abs=2e-3)
    assert after == pytest.approx([0.810, 0.848, 0.927], abs=2e-3)
    for name in ("forward_kl", "reverse_kl", "js"):
        divergence = divergences.get(name)
        kept = bandits.flow(bandit, "grpo", divergence, 0.5 / divergence.curvature)
        assert kept.pass_at_k(1, held)[-1] > before[0] + 0.08
        assert kept.pass_at_k(8, held)[-1] > before[1] + 0.02
        assert kept.pass_at_k(64, held)[-1] > after[2] + 0.025


def test_over_ten_bandits_collapse_is_the_rule_not_the_law():
    worlds = [bandits.make(seed=seed) for seed in range(10)]
    change = torch.tensor(
        [[bandits.flow(b, "grpo").pass_at_k(k, ~b.trained).diff().sum() for k in (1, 64)] for b in worlds]
    )
    assert (change[:, 0] > 0).all() and change[:, 1].mean() < -0.03
    assert 7 <= (change[:, 1] < 0).sum() < 10


def test_a_held_out_context_keeps_its_mass_where_the_winner_is_right(bandit, grpo):
    winner = grpo.probs[-1].mean(0).argmax()
    assert grpo.probs[-1].mean(0)[winner] > 0.9
    change, held, wins = (grpo.p_correct()[-1] - grpo.p_correct()[0]), ~bandit.trained, bandit.correct[:, winner]
    assert (change[held & wins] > 0).all() and (change[held & ~wins] < 0).all()
    assert (held & wins).sum() == 13 and (held & ~wins).sum() == 3
    assert (grpo.p_correct()[-1, [24, 28]] < 0.06).all() and (grpo.p_correct()[0, [24, 28]] > 0.7).all()


# ---- finite groups ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", bandits.OBJECTIVES)
def test_groups_kill_equal_answers_that_the_exact_flow_keeps(objective):
    """64 copies of one context with four equally likely right answers of eight."""
    q, reward = torch.full((64, 8), 1 / 8).double(), torch.tensor([1.0] * 4 + [0] * 4).expand(64, 8)
    b = table(q, reward)
    left = {}
    for groups in (None, 32, 8, 4):
        path = bandits.flow(b, objective, groups=groups, frames=2)
        left[groups] = bandits.effective_correct(path.probs[-1], b.correct).mean().item()
        assert path.p_correct().diff(dim=0).min() >= 0
    assert left[None] == pytest.approx(4)
    assert 3.8 > left[32] > left[8] + 0.1 > left[4] + 0.2


def test_with_unequal_answers_small_groups_are_slower_and_lose_fewer(bandit, grpo):
    """The other side of the coin, at the same number of steps: most small groups are all wrong or all right."""
    small = bandits.flow(bandit, "grpo", groups=4)
    held = ~bandit.trained
    assert small.pass_at_k(1, held)[-1] < grpo.pass_at_k(1, held)[-1]
    living = lambda path: bandits.living_correct(path.probs[-1], bandit.correct).mean()
    assert living(small) > living(grpo) + 0.5


# ---- closed forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", bandits.DIRECTIONS)
@pytest.mark.parametrize("beta", [0.15, 0.4, 1.0, 3.0])
def test_the_flow_on_expected_reward_converges_to_the_closed_form(direction, beta):
    q, reward = random_table(4)
    path = bandits.flow(table(q, reward), "reward", divergences.get(direction), beta, steps=6000, step_size=0.5)
    best = bandits.optimum(q, reward, beta, direction)
    assert (path.probs[-1] - best).abs().max() < 1e-3
    assert (path.probs[0] - best).abs().max() > 0.01


@pytest.mark.parametrize("direction", bandits.DIRECTIONS)
@pytest.mark.parametrize("beta", [0.01, 0.3, 10.0])
def test_no_policy_near_by_does_better_than_the_closed_form(direction, beta):
    q, reward = random_table(5, contexts=20, scale=2.0)
    best, divergence = bandits.optimum(q, reward, beta, direction), divergences.get(direction)
    value = lambda p: (p * reward).sum(-1) - beta * divergence.exact(p, q)
    assert torch.allclose(best.sum(-1), torch.ones(20).double(), atol=1e-12)
    for seed in range(20):
        other = torch.softmax(best.log() + 0.3 * random_table(seed, contexts=20)[1], -1)
        assert (value(best) >= value(other) - 1e-12).all()


@pytest.mark.parametrize("direction", bandits.DIRECTIONS)
@pytest.mark.parametrize("beta", [0.02, 0.2, 2.0])
def test_with_equal_rewards_both_directions_keep_the_ratios_among_right_answers(direction, beta):
    q, reward = random_table(6, scale=2.0)
    reward = (reward > 0.5).double()
    best = bandits.optimum(q, reward, beta, direction)
    for mask in (reward > 0, reward == 0):
        ratio = torch.where(mask, best / q, math.nan)
        assert torch.allclose(ratio.nan_to_num(0).amax(-1), ratio.nan_to_num(math.inf).amin(-1), rtol=1e-9)
    kept = bandits.effective_correct(best, reward > 0)
    assert torch.allclose(kept, bandits.effective_correct(q, reward > 0))


@pytest.mark.parametrize("name", SMOOTH)
def test_every_smooth_divergence_keeps_the_ratios_when_rewards_are_equal(name):
    q, reward = torch.tensor([[0.4, 0.08, 0.02, 0.3, 0.2]]).double(), torch.tensor([[1.0, 1, 1, 0, 0]])
    p = bandits.flow(table(q, reward), "reward", divergences.get(name), 0.3, steps=4000).probs[-1, 0]
    assert (p[0] / p[1]).item() == pytest.approx(5, rel=0.02)
    assert (p[1] / p[2]).item() == pytest.approx(4, rel=0.02)


def test_without_a_penalty_the_same_flow_breaks_the_ratios():
    q, reward = torch.tensor([[0.4, 0.08, 0.02, 0.3, 0.2]]).double(), torch.tensor([[1.0, 1, 1, 0, 0]])
    p = bandits.flow(table(q, reward), "reward").probs[-1, 0]
    assert p[0] / p[1] > 50


def test_with_unequal_rewards_both_collapse_when_beta_is_small_reverse_kl_exponentially():
    """A right answer worth .9 beside one worth 1: what is left of it, relative to the best one, with equal q."""
    q, reward = torch.tensor([[0.25, 0.25, 0.5], [1.0, 0.9, 0.0]], dtype=torch.float64)
    left = {d: [bandits.optimum(q, reward, b, d)[1].item() for b in (1.0, 0.1, 0.01)] for d in bandits.DIRECTIONS}
    for values in left.values():
        assert values[0] > values[2] and values[2] < 0.05  # weak penalties keep little, in either direction
    ratio = [bandits.optimum(q, reward, b, "reverse_kl") for b in (0.1, 0.01)]
    assert [(p[1] / p[0]).item() for p in ratio] == pytest.approx([math.exp(-1), math.exp(-10)])
    assert left["forward_kl"][2] > 100 * left["reverse_kl"][2]


def test_at_equal_beta_forward_kl_pays_more_pass_at_1():
    q, reward = torch.tensor([0.15, 0.1, 0.05, 0.7]).double(), torch.tensor([1.0, 1, 1, 0]).double()
    wrong = {d: bandits.optimum(q, reward, 0.1, d)[3].item() for d in bandits.DIRECTIONS}
    assert wrong["forward_kl"] > 0.05
    assert wrong["reverse_kl"] < 1e-3
    odds = 0.7 / (0.3 * math.exp(1 / 0.1))
    assert wrong["reverse_kl"] == pytest.approx(odds / (1 + odds))


def test_grpo_ends_nearer_to_certainty_than_expected_reward_does():
    """Its optimum under reverse KL solves logit(P) - logit(Q) = 1 / (beta sqrt(P (1 - P)))."""
    q, reward, beta = torch.tensor([[0.2, 0.1, 0.7]]).double(), torch.tensor([[1.0, 1, 0]]), 1.5
    penalty = divergences.get("reverse_kl")
    ends = {
        o: bandits.flow(table(q, reward), o, penalty, beta, steps=3000).p_correct()[-1, 0] for o in bandits.OBJECTIVES
    }
    assert ends["grpo"] > ends["reward"] + 0.05
    rise = ends["grpo"].logit() - torch.tensor(0.3).double().logit()
    assert rise.item() == pytest.approx(1 / (beta * (ends["grpo"] * (1 - ends["grpo"])).sqrt().item()), rel=1e-4)


# ---- direction against strength -----------------------------------------------------------------------------------------


def test_strength_moves_more_than_direction(bandit):
    """At strengths that end at the same held-out Pass@1 the KLs differ in Pass@64 far less than either does along its sweep."""
    held, strengths = ~bandit.trained, [0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0]
    ends = {}
    for name in ("forward_kl", "reverse_kl"):
        path = bandits.flow(bandit, "grpo", divergences.get(name), strengths)
        ends[name] = torch.stack([path.pass_at_k(k, held)[-1] for k in (1, 64)], -1)
    swing = ends["reverse_kl"][:, 1].max() - ends["reverse_kl"][:, 1].min()
    gap = (ends["forward_kl"][:, None, 0] - ends["reverse_kl"][None, :, 0]).abs()
    i, j = (gap < 0.02).nonzero().T
    assert len(i) >= 3
    apart = (ends["forward_kl"][i, 1] - ends["reverse_kl"][j, 1]).abs().max()
    assert swing > 0.05 and apart < swing


def test_strengths_side_by_side_equal_strengths_one_by_one(bandit):
    js = divergences.get("js")
    both = bandits.flow(bandit, "grpo", js, [0.1, 1.0], steps=20, frames=3)
    assert both.probs.shape == (3, 2, 32, 64)
    for i, strength in enumerate((0.1, 1.0)):
        alone = bandits.flow(bandit, "grpo", js, strength, steps=20, frames=3)
        assert torch.allclose(both.probs[:, i], alone.probs, atol=1e-12)


def test_the_numbers_that_notebook_03_reads_off_its_front(bandit):
    held, at = ~bandit.trained, []
    strengths = torch.tensor([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 2])
    for name in ("forward_kl", "js", "alpha", "reverse_kl", "pearson_chi2"):
        divergence = divergences.get(name)
        path = bandits.flow(bandit, "grpo", divergence, (strengths / divergence.curvature).tolist())
        one, many = (path.pass_at_k(k, held)[-1] for k in (1, 64))
        i = (one > 0.75).nonzero().max().item() if (one > 0.75).any() else -1
        share = (one[i] - 0.75) / (one[i] - one[i + 1]) if i >= 0 else None
        at.append((many[i] + share * (many[i + 1] - many[i])).item() if i >= 0 else None)
    known = [value for value in at if value is not None]
    assert len(known) >= 4
    assert min(known) > 0.955 and max(known) < 0.985


def test_jensen_shannon_at_strength_one_as_notebook_03_says(bandit):
    path = bandits.flow(bandit, "grpo", divergences.get("js"), 1.0)
    ends = [path.pass_at_k(k, ~bandit.trained)[-1].item() for k in (1, 8, 64)]
    assert ends == pytest.approx([0.770, 0.935, 0.958], abs=2e-3)


# ---- the hybrid split ---------------------------------------------------------------------------------------------------


def test_without_rehearsal_d_pef_loses_right_answers_and_with_it_keeps_most(bandit):
    pef = bandit.perfect()
    bare, held = (
        bandits.flow(bandit, "grpo", divergences.get("js"), [0.0, 5.0], rehearse="perfect").probs[:, i] for i in (0, 1)
    )
    rich = lambda p: bandits.effective_correct(p, bandit.correct)[pef]
    rate = lambda p: (p * bandit.correct).sum(-1)[pef]
    assert rate(bare[0]).min() > 0.8
    assert rate(bare[-1]).min() < 0.1  # one context is all but forgotten
    assert (rate(bare[-1]) > 0.99).sum() == 2  # the two others gain: the winners are right there
    assert rate(held[-1]).min() > 0.65
    assert rich(held[-1]).mean() > 0.85 * rich(held[0]).mean() > 2 * rich(bare[-1]).mean() - 2


def test_rehearsing_d_pef_gives_held_out_contexts_little(bandit):
    held, js = ~bandit.trained, divergences.get("js")
    bare, path = (bandits.flow(bandit, "grpo", js, strength, rehearse="perfect") for strength in (0.0, 5.0))
    ends = [[p.pass_at_k(k, held)[-1].item() for k in (1, 8, 64)] for p in (bare, path)]
    assert ends[0] == pytest.approx([0.812, 0.831, 0.902], abs=2e-3)
    assert ends[1] == pytest.approx([0.804, 0.907, 0.940], abs=2e-3)
    for context, with_it in ((24, 0.18), (28, 0.15)):
        assert bare.p_correct()[-1, context] < 0.03
        assert path.p_correct()[-1, context].item() == pytest.approx(with_it, abs=0.01)


def test_a_strength_of_zero_is_the_control_without_rehearsal(bandit):
    none = bandits.flow(bandit, "grpo", rehearse="perfect", steps=20)
    zero = bandits.flow(bandit, "grpo", divergences.get("js"), 0.0, rehearse="perfect", steps=20)
    assert torch.equal(none.probs, zero.probs)


# ---- every divergence, and bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", divergences.names())
@pytest.mark.parametrize("rehearse", bandits.REHEARSALS)
def test_every_divergence_gives_a_policy_at_any_strength(bandit, name, rehearse):
    path = bandits.flow(bandit, "grpo", divergences.get(name), [0.01, 1.0, 30.0], rehearse=rehearse, frames=3)
    assert torch.isfinite(path.probs).all()
    assert torch.allclose(path.probs.sum(-1), torch.ones(3, 3, 32).double())


def test_a_divergence_of_ones_own_works_at_once(bandit):
    mine = divergences.Divergence("mine", lambda d: (torch.exp(d / 1.5) - 1) ** 2)
    kept = bandits.flow(bandit, "grpo", mine, 1.0)
    assert kept.pass_at_k(64, ~bandit.trained)[-1] > bandits.flow(bandit, "grpo").pass_at_k(64, ~bandit.trained)[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "ppo"}, "unknown objective"),
        ({"rehearse": "some"}, "unknown rehearsal"),
        ({"strength": -1.0}, "strength"),
        ({"strength": [[1.0]]}, "strength"),
        ({"steps": 0}, "1 step or more"),
        ({"step_size": 0.0}, "positive size"),
        ({"groups": 1}, "at least 2 answers"),
    ],
)
def test_flow_refuses_bad_input(bandit, change, words):
    with pytest.raises(ValueError, match=words):
        bandits.flow(bandit, **change)


def test_bandits_refuse_bad_input():
    with pytest.raises(ValueError, match="sharing"):
        bandits.make(sharing=1.5)
    with pytest.raises(ValueError, match="held_out"):
        bandits.make(contexts=4, held_out=4)
    with pytest.raises(ValueError, match=r"\[C, A\]"):
        Bandit(torch.zeros(2, 3), torch.zeros(2, 4), torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match="no context is trained"):
        Bandit(torch.zeros(2, 3), torch.zeros(2, 3), torch.eye(2), torch.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        bandits.pass_at_k(0.5, 0)


def test_optimum_refuses_bad_input():
    q = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="unknown direction"):
        bandits.optimum(q, q, 1.0, "sideways")
    with pytest.raises(ValueError, match="positive"):
        bandits.optimum(q, q, 0.0, "reverse_kl")
    with pytest.raises(ValueError, match="positive"):
        bandits.optimum(torch.tensor([1.0, 0.0]), q, 1.0, "forward_kl")
