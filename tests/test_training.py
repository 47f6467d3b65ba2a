"""Hybrid training, in runs of a few steps: what is logged, what is left untouched, what survives a kill, what is refused."""

import copy
import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import torch

from dphrl_lite import objectives, presampling, training
from dphrl_lite.divergences import Divergence
from dphrl_lite.engine import batches, precision
from dphrl_lite.engine.checkpoint import OtherRunError, weights_digest
from dphrl_lite.sampling import collate, pad, token_logps
from dphrl_lite.tasks import Problem, Task, Verdict
from dphrl_lite.training import METRICS, TrainConfig

QUICK = {"steps": 3, "problems_per_step": 6, "samples": 4, "rehearsal_per_step": 8, "progress": False}
REHEARSING = ("sft", "dph-f", "dph-js", "dph-alpha", "dph-js-definition")
METHODS = ("grpo", "grpo-exp", "dapo", "rkl", "rkl-k3", "rkl-k1-reward", "grpo-entropy", *REHEARSING)
OF_MACHINE = ["seconds", "tokens_per_second", "peak_memory_gb"]
OF_REHEARSAL = {"log_u_mean", "log_u_low", "log_u_high", "bounded_share"}
OF_REHEARSAL |= {"gradient_norm_exploration", "gradient_norm_penalty", "gradient_cosine"}


@pytest.fixture
def train(tiny, countdown, few_problems, parts):
    """`training.train` on the shared problems, quickly; everything can be replaced."""

    def quick(method="dph-js", policy=tiny, task=countdown, problems=few_problems, parts=parts, **settings):
        return training.train(policy, task, problems, parts, method=method, **QUICK | settings)

    return quick


@pytest.fixture
def mine(registry):
    registry(Divergence(name="mine", f=lambda d: d.expm1() ** 2 / 2))
    return "dph-mine"


def assert_same(a, b):
    """Two runs with the same weights and the same log, to the last bit."""
    for (name, x), y in zip(a.policy.model.state_dict().items(), b.policy.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
    assert timeless(a.log) == timeless(b.log)


def timeless(log):
    """The log without wall time, as text: None and NaN alike."""
    return log.drop(columns=OF_MACHINE).astype(float).to_json(double_precision=15)


def everything_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def distance(policy, other):
    pairs = zip(policy.model.parameters(), other.model.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


# ---- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_logs_what_is_documented(train, tiny, tmp_path, method):
    before = weights_digest(tiny.model)
    run = train(method, out=tmp_path)
    assert list(run.log.columns) == list(METRICS)
    assert all(set(json.loads(line)) == set(METRICS) for line in (tmp_path / "log.jsonl").open())
    assert run.log["step"].tolist() == [1, 2, 3]
    held = method.startswith("rkl") or method == "grpo-entropy"
    silent = set() if method in REHEARSING else OF_REHEARSAL | (set() if held else {"penalty"})
    assert {name for name in METRICS if run.log[name].isna().any()} == silent
    assert distance(run.policy, tiny) > 1e-5  # it learned something ...
    assert weights_digest(tiny.model) == before  # ... and left the policy that came in as it was
    assert all(p.grad is None for p in tiny.model.parameters())
    assert run.config.method == method


def test_a_registered_divergence_trains(train, mine):
    run = train(mine)
    assert (run.log["penalty"] >= 0).all()
    assert run.log["penalty"].iloc[-1] > 0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_who_asks_the_reference_and_how_many_models_are_held(train, tiny, monkeypatch, method, in_place):
    """A DPH method on stored samples holds the policy and nothing else."""
    copies, real = [], copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda x, *rest: copies.append(type(x)) or real(x, *rest))
    policy = tiny.copy()
    copies.clear()
    run = train(method, policy=policy, steps=1, in_place=in_place)
    asked = {"rkl": 24, "rkl-k3": 24, "rkl-k1-reward": 24, "dph-js-definition": 8}.get(method, 0)
    assert run.log["reference_forwards"].tolist() == [asked]
    # in place, the reference of those that ask is a copy; otherwise the policy that came in is the reference
    assert copies.count(type(tiny.model)) == (1 if asked else 0) if in_place else 1
    assert (run.policy is policy) == in_place


def test_a_policy_trained_in_place_is_no_reference_any_more(train, tiny):
    policy = tiny.copy()
    assert_same(train(policy=policy, in_place=True), train())
    with pytest.raises(ValueError, match="trained already"):
        train(policy=policy, in_place=True)


def test_log_and_penalty_start_at_the_reference(train):
    log = train("dph-js", steps=1, minibatches=1).log.iloc[0]
    for name in ("penalty", "log_u_mean", "log_u_low", "log_u_high", "clipped_low", "clipped_high"):
        assert log[name] == pytest.approx(0, abs=1e-5), name
    assert train("rkl", steps=1, minibatches=1).log["penalty"].iloc[0] == pytest.approx(0, abs=1e-8)


class Recording(Task):
    """A task that remembers what was asked."""

    def __init__(self, task):
        self.task, self.name, self.seen = task, task.name, []

    def verify_all(self, pairs):
        pairs = list(pairs)
        self.seen += [(problem.id, completion) for problem, completion in pairs]
        return super().verify_all(pairs)

    def check(self, problem, completion):
        return self.task.check(problem, completion)


@pytest.mark.parametrize("method", ["dph-js", "sft", "grpo-exp", "grpo"])
@pytest.mark.parametrize("keep_unsolved", [True, False])
def test_which_problems_are_sampled(train, countdown, parts, method, keep_unsolved):
    task = Recording(countdown)
    switched = dataclasses.replace(parts, keep_unsolved=keep_unsolved)
    train(method, task=task, problems_per_step=16, parts=switched)
    allowed = set(parts.exploration) | set(parts.unsolved if keep_unsolved else ())
    allowed |= set(parts.perfect if method == "grpo" else ())
    assert {name for name, _ in task.seen} == allowed  # 48 places for at most 32 problems: all of them, and no other


def test_reward_and_spread_are_those_of_the_verdicts(train, countdown, few_problems):
    task, by_id = Recording(countdown), {p.id: p for p in few_problems}
    log = train("grpo", task=task, steps=1).log.iloc[0]
    right = np.array([countdown.verify(by_id[name], text).correct for name, text in task.seen]).reshape(6, 4)
    assert log["reward"] == pytest.approx(right.mean())
    assert log["zero_spread"] == pytest.approx(np.mean(right.all(1) | ~right.any(1)))
    assert log["groups"] == 6


def test_a_problem_that_comes_again_in_a_step_is_sampled_anew(train, countdown, parts, few_problems):
    one = dataclasses.replace(parts, exploration=parts.exploration[-1:], unsolved=())
    task = Recording(countdown)
    train("grpo-exp", task=task, parts=one, steps=1, problems_per_step=4, samples=8)
    groups = [tuple(text for _, text in task.seen[i : i + 8]) for i in range(0, 32, 8)]
    assert len(set(groups)) == 4


def test_dapo_draws_until_groups_are_mixed(train):
    log = train("dapo", max_refills=3, samples=2).log
    assert (log["groups"] % 6 == 0).all()
    assert log["groups"].max() > 6
    assert log["groups"].max() <= 24
    assert (train("dapo", max_refills=0, samples=2).log["groups"] == 6).all()


def test_with_advantage_k_a_step_has_the_gradient_of_pass_at_k(train, double, countdown, monkeypatch):
    """One update from pi_old, where rho is 1: minus the token mean of A grad log pi, A by counting the pairs of each group."""
    policy, problems, parts = double
    watch = Watch(monkeypatch)
    settings = {"problems": problems, "parts": parts, "steps": 1, "minibatches": 1, "gradient_clip": 1e9}
    log = train("grpo-exp", policy=policy, advantage_k=2, microbatch_tokens=1, **settings).log.iloc[0]
    (forwards, _, found), by_prompt = watch.updates[0], {tuple(policy.encode(p.prompt)): p for p in problems}
    rows = [row for prompts, answers in forwards for row in zip(prompts, answers, strict=True)][
        -24:
    ]  # after the check of pi_old
    right = [countdown.verify(by_prompt[tuple(p)], policy.decode(ids)).correct for p, ids in rows]
    losses, teaching = [], 0
    for start in range(0, 24, 4):
        group = right[start : start + 4]
        pairs = {(i, j): float(group[i] or group[j]) for i in range(4) for j in range(i)}
        mean, deviation = np.mean(list(pairs.values())), np.std(list(pairs.values()))
        teaching += deviation > 0
        for i in range(4):
            own = np.mean([reward for pair, reward in pairs.items() if i in pair])
            advantage = (own - mean) / deviation if deviation else 0.0
            losses.append(-advantage * one_by_one(policy, *rows[start + i]).sum() / sum(len(ids) for _, ids in rows))
    truth = torch.autograd.grad(sum(losses), list(policy.model.parameters()))
    scale = max(g.abs().max() for g in truth).item()
    assert scale > 0.01
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6 * scale) for a, b in zip(found, truth, strict=True))
    assert log["zero_spread"] == pytest.approx(1 - teaching / 6)
    assert any(sum(right[i : i + 4]) == 3 for i in range(0, 24, 4))  # one wrong: all pairs pass, nothing to learn


def test_with_distinct_advantage_equal_right_answers_of_a_group_share_a_reward(train, monkeypatch):
    seen, real = [], training.shared_rewards
    monkeypatch.setattr(training, "shared_rewards", lambda *given: seen.append(given) or real(*given))
    run, plain = train("grpo", steps=1, distinct_advantage=True), train("grpo", steps=1)
    assert distance(run.policy, plain.policy) > 0
    assert run.log["reward"].tolist() == plain.log["reward"].tolist()  # still the share of right answers
    ((rewards, forms),) = seen
    assert rewards.shape == (6, 4) and [len(row) for row in forms] == [4] * 6
    assert all(form or not right for row, fs in zip(rewards, forms, strict=True)
               for right, form in zip(row, fs, strict=True))  # fmt: skip
    with pytest.raises(ValueError, match="distinct_advantage and advantage_k = 2 are both on"):
        train("grpo", distinct_advantage=True, advantage_k=2)


def test_settings_that_came_later_leave_older_folders_as_they_are(train, parts, countdown, few_problems):
    told = lambda **more: training.manifest(countdown, few_problems, parts, TrainConfig("grpo", **more))
    plain, changes = told(), {"joint_mean": True, "distinct_advantage": True, "dual_clip": 3.0}
    changes |= {"adam_beta1": 0.8, "adam_beta2": 0.999, "weight_decay": 0.01}
    assert set(changes) == set(training._LATER)
    assert not set(changes) & set(plain)
    for name, value in changes.items():
        assert told(**{name: value}) == plain | {name: value}


@pytest.mark.parametrize("method", ["grpo", "dph-f"])
def test_only_what_the_reference_seldom_solved_is_explored(train, countdown, rollouts, method):
    seldom = presampling.partition(rollouts, threshold=6, explore_at_most=2)
    task, c = Recording(countdown), presampling.counts(rollouts).set_index("problem_id")["c"]
    train(method, task=task, problems_per_step=16, parts=seldom)
    assert {name for name, _ in task.seen} == set(c[c <= 2].index)


def test_all_that_the_reference_said_is_rehearsed(train, rollouts):
    whole = presampling.partition(rollouts, threshold=6, rehearse_exploration=True, rehearse_wrong=True)
    assert len(whole.rehearsal) == len(rollouts)
    assert train("dph-f", parts=whole).log["penalty"].iloc[-1] > 0


def test_the_settings_of_the_release_reach_the_optimizer_and_the_loss(train, monkeypatch):
    asked, real = [], training.clipped_loss
    monkeypatch.setattr(training, "clipped_loss", lambda *given: asked.append(given[-1]) or real(*given))
    made, make = [], training.optimizers.make
    monkeypatch.setattr(training.optimizers, "make", lambda *given: made.append(make(*given)) or made[-1])
    release = {"dual_clip": 3.0, "adam_beta2": 0.999, "weight_decay": 0.01, "minibatches": 3}
    run = train("dph-f", steps=1, **release)
    assert set(asked) == {3.0} and len(asked) == 3
    (optimizer,) = made
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.9, 0.999), 0.01)
    assert distance(run.policy, train("dph-f", steps=1, minibatches=3).policy) > 0


@pytest.mark.parametrize(("settings", "why"), [({"dual_clip": 1.28}, "dual_clip = 1.28 must be above 1"),
                                               ({"adam_beta2": 1.0}, "adam_beta2 = 1.*expected betas"),
                                               ({"weight_decay": -0.1}, "weight_decay = -0.1.*at least 0")])  # fmt: skip
def test_impossible_settings_of_the_release_are_refused(train, settings, why):
    with pytest.raises(ValueError, match=why):
        train("dph-f", **settings)


def test_dapo_draws_on_past_groups_that_pass_at_k_cannot_tell_apart(train):
    plain, pairs = (train("dapo", max_refills=9, samples=4, advantage_k=k).log for k in (1, 2))
    assert pairs["groups"].sum() > plain["groups"].sum()


@pytest.mark.parametrize("minibatches", [1, 3, 5])
def test_dapo_with_fewer_mixed_groups_than_minibatches(train, minibatches):
    log = train("dapo", problems_per_step=2, samples=2, max_refills=0, minibatches=minibatches).log
    assert log["gradient_norm"].notna().all()


# ---- equalities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*REHEARSING, "dph-hellinger", "dph-neyman_chi2"])
def test_without_strength_every_hybrid_method_is_grpo_on_exploration(train, method):
    hybrid, plain = train(method, strength=0.0), train("grpo-exp")
    for a, b in zip(hybrid.policy.model.parameters(), plain.policy.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert hybrid.log["reward"].tolist() == plain.log["reward"].tolist()


def test_the_strength_is_the_methods_own_unless_set(train):
    assert_same(train("dph-js"), train("dph-js", strength=2.0))
    assert distance(train("dph-js").policy, train("dph-js", strength=0.5).policy) > 0


@pytest.mark.parametrize("method", ["sft", "dph-js", "rkl", "dph-js-definition"])
def test_the_penalty_target_moves_the_strength_by_the_logged_penalty(train, method):
    log = train(method, strength=0.7, penalty_target=1e-3, learning_rate=1e-3, steps=5).log
    strength = 0.7
    for logged, penalty in zip(log["strength"], log["penalty"], strict=True):
        assert logged == pytest.approx(strength, rel=1e-12)
        strength *= np.exp(0.2 * np.clip(penalty / 1e-3 - 1, -0.5, 0.5))
    assert log["strength"].nunique() > 2
    assert train(method, strength=0.7).log["strength"].tolist() == [0.7] * 3


@pytest.mark.parametrize("method", ["dph-js", "rkl", "dph-js-definition"])
def test_the_strength_that_is_logged_is_the_one_that_trains(train, double, method):
    """In the first update from the reference no penalty has a gradient, so that only the second step knows of a strength."""
    policy, problems, parts = double
    quick = {"policy": policy, "problems": problems, "parts": parts, "steps": 2, "minibatches": 1}
    moved = train(method, strength=2.0, penalty_target=0.5, **quick)
    fixed = [train(method, strength=strength, **quick) for strength in (2.0, 2 * np.exp(-0.1))]
    assert moved.log["strength"].tolist() == [2.0, pytest.approx(2 * np.exp(-0.1))]
    other, same = (distance(moved.policy, run.policy) for run in fixed)
    assert same < 0.05 * other  # not 0 for dph-js: stored log-probs are float32
    assert moved.strength == 2.0


def test_alpha_of_one_is_forward_kl(train):
    assert distance(train("dph-alpha", alpha=1.0).policy, train("dph-f").policy) < 1e-6
    assert distance(train("dph-alpha", alpha=0.2).policy, train("dph-f").policy) > 1e-6


@pytest.mark.parametrize("method", ["dph-js", "rkl", "dph-js-definition"])
def test_micro_batches_change_memory_and_nothing_else(train, method):
    whole, pieces = (train(method, microbatch_tokens=n, steps=2) for n in (None, 100))
    assert distance(whole.policy, pieces.policy) < 1e-5
    for name in set(METRICS) - set(OF_MACHINE) - {"log_u_low", "log_u_high", "gradient_cosine"}:
        a, b = (run.log[name].astype(float) for run in (whole, pieces))
        assert np.allclose(a, b, atol=1e-5, equal_nan=True), name


def test_a_run_follows_from_its_seed(train):
    torch.rand(5)
    first = train()
    np.random.rand(5)
    torch.rand(7)
    assert_same(train(), first)
    assert distance(train(seed=1).policy, first.policy) > 0


class Watch:
    """The gradient of every update, and the completions and weights it was computed from."""

    def __init__(self, monkeypatch):
        self.forwards, self.updates = [], []
        collate, step = batches.collate, torch.optim.AdamW.step

        def watched_collate(prompts, answers, *rest):
            self.forwards.append((prompts, answers))
            return collate(prompts, answers, *rest)

        def watched_step(optimizer, *rest):
            parameters = optimizer.param_groups[0]["params"]
            self.updates.append((self.forwards, [p.detach().clone() for p in parameters], [p.grad for p in parameters]))
            self.forwards = []
            return step(optimizer, *rest)

        monkeypatch.setattr(batches, "collate", watched_collate)
        monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)


@pytest.fixture(scope="module")
def double():
    """The tiny policy in float64, and what it wrote."""
    from dphrl_lite import models, tasks
    from dphrl_lite.tasks.countdown import problems

    policy, chosen = models.load("tiny", dtype=torch.float64), problems("cd3", 24, seed=1)
    return (
        policy,
        chosen,
        presampling.partition(presampling.sample(policy, tasks.get("countdown"), chosen, progress=False)),
    )


FORMULAS = {  # of one token: log u, and log pi_theta with its gradient; method, sections 2 and 3
    "rkl": lambda d, logp: d**2 / 2,
    "rkl-k3": lambda d, logp: (-d).exp() - 1 + d,
    "sft": lambda d, logp: -d,
    "dph-f": lambda d, logp: d.exp() - 1 - d,
    "dph-js": lambda d, logp: d.exp() * d - (d.exp() + 1) * ((d.exp() + 1) / 2).log(),
    "dph-alpha": lambda d, logp: ((d / 2).exp() - d.exp() / 2 - 0.5) / -0.25,
    "dph-js-definition": lambda d, logp: (2 / (1 + (-d).exp())).log().detach() / 2 * logp,
}


@pytest.mark.parametrize(
    ("method", "joint_mean"), [*((name, False) for name in METHODS), ("dph-f", True), ("dph-js", True), ("sft", True)]
)
@pytest.mark.parametrize("microbatch_tokens", [None, 1])
def test_every_update_has_the_gradient_of_the_method(
    train, double, countdown, monkeypatch, method, joint_mean, microbatch_tokens
):
    """The second update of a step, away from both pi_old and pi_ref, one completion at a time and in float64, from the
    formulas; in one padded batch, and row by row."""
    policy, problems, parts = double
    watch = Watch(monkeypatch)
    config = {"problems": problems, "parts": parts, "steps": 1, "gradient_clip": 1e9, "learning_rate": 3e-3}
    run = train(method, policy=policy, microbatch_tokens=microbatch_tokens, joint_mean=joint_mean, **config)
    forwards, weights, found = watch.updates[1]
    now = policy.copy()
    for parameter, value in zip(now.model.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    rows = [row for prompts, answers in forwards for row in zip(prompts, answers, strict=True)]
    by_prompt = {tuple(policy.encode(p.prompt)): p for p in problems}
    fresh, rest = rows[:12], rows[12:]  # three groups of four, then four stored ones, then the policy's own answers
    clip_high = 0.2 if method in ("grpo", "grpo-entropy") else 0.28
    tokens, stored, answers = (sum(len(ids) for _, ids in part) for part in (fresh, rest[:4], rest[4:]))
    if joint_mean:  # the release: one mean over all tokens of the batch
        tokens = stored = tokens + stored
    losses, weight = [], run.strength / stored if rest else 0
    for i, (prompt, ids) in enumerate(fresh):
        group = fresh[i // 4 * 4 : i // 4 * 4 + 4]
        rewards = torch.tensor(
            [float(countdown.verify(by_prompt[tuple(p)], policy.decode(x)).correct) for p, x in group]
        )
        advantage = ((rewards - rewards.mean()) / (rewards.std() + 1e-6))[i % 4]
        logp, ref = (one_by_one(model, prompt, ids) for model in (now, policy))
        rho = (logp - ref.detach()).exp()  # in the first step pi_old is the reference
        losses.append(-torch.minimum(rho * advantage, rho.clamp(0.8, 1 + clip_high) * advantage).sum() / tokens)
        if method == "grpo-entropy":
            losses.append(-run.strength * entropies(now, prompt, ids).sum() / tokens)
        elif method in ("rkl", "rkl-k3"):  # the reward's k1 is 0 where pi_old is the reference
            losses.append(run.strength * FORMULAS[method](logp - ref.detach(), logp).sum() / tokens)
    for i, (prompt, ids) in enumerate(rest):
        logp, ref = (one_by_one(model, prompt, ids) for model in (now, policy))
        if method != "dph-js-definition":
            losses.append(weight * FORMULAS[method](logp - ref.detach(), logp).sum())
        elif i >= 4:  # there the stored samples have no gradient
            losses.append(run.strength * FORMULAS[method](logp - ref.detach(), logp).sum() / answers)
    truth = torch.autograd.grad(sum(losses), list(now.model.parameters()))
    scale = max(g.abs().max() for g in truth)
    assert scale > 0.005
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * scale.item())


def one_by_one(policy, prompt, ids):
    """Log-probs of the tokens of one completion, without padding or any code of the kit."""
    return next_tokens(policy, prompt, ids).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


def next_tokens(policy, prompt, ids):
    return policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def entropies(policy, prompt, ids):
    logp = next_tokens(policy, prompt, ids)
    return -(logp.exp() * logp).sum(-1)


def test_k1_in_the_reward_trains_by_the_returns_of_the_policy_that_sampled(train, double, countdown, monkeypatch):
    """One update of the second step, where pi_old has left the reference: A - beta times the sum of log u to the end."""
    policy, problems, parts = double
    watch = Watch(monkeypatch)
    settings = {"problems": problems, "parts": parts, "steps": 2, "minibatches": 1, "gradient_clip": 1e9}
    settings |= {"learning_rate": 3e-3, "strength": 0.5}
    run = train("rkl-k1-reward", policy=policy, **settings)
    (forwards, weights, found), by_prompt = watch.updates[1], {tuple(policy.encode(p.prompt)): p for p in problems}
    now = policy.copy()
    for parameter, value in zip(now.model.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    rows = [row for prompts, answers in forwards for row in zip(prompts, answers, strict=True)]
    tokens, losses, k1 = sum(len(ids) for _, ids in rows), [], 0.0
    for i, (prompt, ids) in enumerate(rows):
        group = rows[i // 4 * 4 : i // 4 * 4 + 4]
        right = torch.tensor([float(countdown.verify(by_prompt[tuple(p)], policy.decode(x)).correct) for p, x in group])
        logp, ref = (one_by_one(model, prompt, ids) for model in (now, policy))
        log_u = (logp - ref).detach()
        returns = torch.stack([log_u[t:].sum() for t in range(len(ids))])
        advantage = ((right - right.mean()) / (right.std() + 1e-6))[i % 4] - 0.5 * returns
        losses.append(-(advantage * logp).sum() / tokens)  # rho is 1: one update a step
        k1 += log_u.sum().item() / tokens
    truth = torch.autograd.grad(sum(losses), list(now.model.parameters()))
    scale = max(g.abs().max() for g in truth).item()
    assert scale > 0.005
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6 * scale) for a, b in zip(found, truth, strict=True))
    assert run.log["penalty"].iloc[1] == pytest.approx(k1, rel=1e-6) and abs(k1) > 1e-3


def test_an_entropy_bonus_keeps_more_entropy_than_grpo(train):
    settings = {"steps": 6, "learning_rate": 1e-3}
    plain, bonus = train("grpo", **settings).log, train("grpo-entropy", strength=0.3, **settings).log
    assert bonus["entropy"].iloc[-1] > plain["entropy"].iloc[-1] + 0.01
    assert bonus["penalty"].tolist() == pytest.approx((-bonus["entropy"]).tolist())
    assert distance(train("grpo-entropy", strength=0.0).policy, train("grpo").policy) < 1e-6


@pytest.mark.parametrize("method", ["dph-js", "rkl"])
def test_eos_counts_once_also_where_it_is_the_padding(train, tiny, method):
    policy = dataclasses.replace(tiny.copy(), tokenizer=copy.deepcopy(tiny.tokenizer))
    assert tiny.pad_id != tiny.tokenizer.eos_token_id
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    assert_same(train(method, policy=policy), train(method))


def test_the_two_gradients_are_logged_apart_and_change_nothing(train):
    run, plain = train("dph-js"), train("dph-js", gradient_parts=False)
    assert distance(run.policy, plain.policy) < 1e-5
    assert plain.log["gradient_norm_penalty"].isna().all()
    log = train("dph-js", minibatches=1, steps=3, learning_rate=1e-3).log.iloc[-1]
    a, b, cosine = (log[f"gradient_{name}"] for name in ("norm_exploration", "norm_penalty", "cosine"))
    assert a > 0 < b
    assert log["gradient_norm"] ** 2 == pytest.approx(a**2 + b**2 + 2 * a * b * cosine, rel=1e-4)
    alone = train("grpo-exp", minibatches=1, steps=1).log["gradient_norm"].iloc[0]
    assert train("dph-js", minibatches=1, steps=1).log["gradient_norm_exploration"].iloc[0] == pytest.approx(alone)


def test_tokens_and_memory_are_counted(train):
    for method, more in (("grpo", False), ("dph-js", True), ("dph-js-definition", True)):
        log = train(method, steps=1).log.iloc[0]
        assert (log["tokens_trained"] > log["tokens"]) == more
        assert 0.05 < log["peak_memory_gb"] < 50


def test_one_step_against_autograd_on_the_whole_batch(train, tiny, parts, few_problems):
    """SFT with no learning signal from exploration: the first gradient is that of the cross-entropy of the batch."""
    everything = len(parts.rehearsal)
    config = {"steps": 1, "minibatches": 1, "rehearsal_per_step": everything, "task": Never(), "strength": 0.5}
    log = train("sft", **config).log.iloc[0]
    policy = tiny.copy()
    logp, _, mask = on_rehearsal(policy, parts, few_problems)
    (-0.5 * logp[mask].mean()).backward()
    squares = sum(p.grad.square().sum() for p in policy.model.parameters())
    assert log["gradient_norm"] == pytest.approx(squares.sqrt().item(), rel=1e-3)
    assert log["gradient_norm_exploration"] == 0  # all groups are wrong, and teach nothing
    assert log["zero_spread"] == 1


class Never(Task):
    """Nothing is ever correct."""

    name = "never"

    def check(self, problem, completion):
        return Verdict(False, completion, "no")


def on_rehearsal(policy, parts, problems):
    """logp, stored logp and mask of the whole rehearsal buffer."""
    by_id, table = {p.id: p for p in problems}, parts.rehearsal
    prompts = [policy.encode(by_id[name].prompt) for name in table["problem_id"]]
    batch = collate(prompts, [ids.tolist() for ids in table["token_ids"]], policy.pad_id)
    return token_logps(policy.model, batch)[0], pad([x.tolist() for x in table["logp"]], 0.0), batch.mask


# ---- folders: kill, resume, go on, refuse -----------------------------------------------------------------------------


def stop_after(step):
    def on_step(record):
        if record["step"] == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize(
    ("method", "stop", "every"), [("dph-js", 2, 1), ("dph-js", 3, 2), ("grpo", 1, 3), ("dapo", 3, 2)]
)
def test_a_killed_run_goes_on_to_the_same_bits(train, tmp_path, method, stop, every):
    config = {"steps": 4, "checkpoint_every": every}
    with pytest.raises(KeyboardInterrupt):
        train(method, out=tmp_path, on_step=stop_after(stop), **config)
    assert len(training.read_log(tmp_path)) == stop
    resumed = []
    run = train(method, out=tmp_path, on_step=lambda record: resumed.append(record["step"]), **config)
    assert resumed == list(range(stop // every * every + 1, 5))  # from the last checkpoint on
    assert_same(run, train(method, **config))
    assert timeless(run.log) == timeless(type(run.log)(training.read_log(tmp_path)))


@pytest.mark.parametrize("method", ["dph-js", "rkl"])
def test_a_killed_run_goes_on_with_the_strength_that_it_had_come_to(train, tmp_path, method):
    config = {"steps": 5, "checkpoint_every": 2, "penalty_target": 0.004, "learning_rate": 1e-3}
    with pytest.raises(KeyboardInterrupt):
        train(method, out=tmp_path, on_step=stop_after(3), **config)
    run, whole = train(method, out=tmp_path, **config), train(method, **config)
    assert_same(run, whole)
    assert whole.log["strength"].nunique() == 5
    assert run.strength == whole.strength == whole.log["strength"][0]
    assert_same(train(method, out=tmp_path, **config | {"steps": 7}), train(method, **config | {"steps": 7}))


def test_what_a_kill_left_half_written_is_not_taken_for_real(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path, on_step=stop_after(2), checkpoint_every=1)
    half = tmp_path / ".step-000003.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".log.jsonl.partial").write_text('{"step": ')
    assert_same(train(out=tmp_path, checkpoint_every=1), train())
    assert not half.exists()


def test_a_finished_run_is_read_not_repeated(train, tmp_path):
    first = train(out=tmp_path)
    before = everything_in(tmp_path)
    assert_same(train(out=tmp_path, on_step=lambda record: pytest.fail("a step was done again")), first)
    assert everything_in(tmp_path) == before


def test_a_finished_run_can_be_made_longer(train, tmp_path):
    train(out=tmp_path, steps=2)
    run = train(out=tmp_path, steps=4)
    assert_same(run, train(steps=4))
    assert run.log["step"].tolist() == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-000004"]  # older checkpoints are dropped


@pytest.mark.parametrize("change", [
    {"method": "dph-f"}, {"seed": 1}, {"learning_rate": 2e-4}, {"strength": 0.5}, {"samples": 8}, {"minibatches": 1},
    {"rehearsal_per_step": 4}, {"gradient_clip": 2.0}, {"max_new_tokens": 9}, {"microbatch_tokens": 99},
    {"advantage_k": 2}, {"penalty_target": 0.01},
])  # fmt: skip
def test_another_configs_folder_is_left_as_it_is(train, tmp_path, change):
    train(out=tmp_path, steps=1)
    before = everything_in(tmp_path)
    ((name, value),) = change.items()
    with pytest.raises(OtherRunError, match=f"{name}: there .*, asked for {value!r}"):
        train(out=tmp_path, **{"steps": 1} | change)
    assert everything_in(tmp_path) == before


def test_other_data_or_weights_are_another_run(train, tiny, tmp_path, parts):
    train(out=tmp_path, steps=1)
    before = everything_in(tmp_path)
    fewer = dataclasses.replace(parts, rehearsal=parts.rehearsal.iloc[1:])
    with pytest.raises(OtherRunError, match="data: there"):
        train(out=tmp_path, parts=fewer)
    with pytest.raises(OtherRunError, match="max_new_tokens: there"):  # the policy's own, where the run sets none
        train(out=tmp_path, policy=dataclasses.replace(tiny, max_new_tokens=9))
    other = tiny.copy()
    next(other.model.parameters()).data[0, 0] += 1
    with pytest.raises(OtherRunError, match="weights: there"):
        train(out=tmp_path, policy=other)
    assert everything_in(tmp_path) == before


def test_another_method_of_the_same_name_is_another_run(train, tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "_FIXED", dict(objectives._FIXED))
    for penalty in ("rehearsal_ce", "reference_k3"):
        objectives.register(objectives.Method("mine", "exploration", "made here", penalty=penalty, strength=1.0))
        if penalty == "rehearsal_ce":
            train(method="mine", out=tmp_path, steps=1)
    with pytest.raises(OtherRunError, match="method_is: there"):
        train(method="mine", out=tmp_path, steps=1)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(train, tmp_path, name):
    train(out=tmp_path, steps=1)
    (tmp_path / "step-tmp").mkdir()  # somebody else's
    (tmp_path / "step-000001" / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=r"step-000001 is damaged .*delete that folder"):
        train(out=tmp_path, steps=2)


@pytest.mark.parametrize("name", ["gradient_clip", "penalty_target", "temperature"])
def test_a_setting_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} = nan is too low, or no number"):
        training.TrainConfig("dph-js", **{name: float("nan")})


def test_a_balanced_rehearsal_trains_and_is_another_run(train, rollouts, tmp_path):
    plain, balanced = (presampling.partition(rollouts, 3, balance=on) for on in (False, True))
    runs = [train(parts=parts, out=tmp_path / name) for name, parts in (("plain", plain), ("balanced", balanced))]
    assert distance(*(run.policy for run in runs)) > 0
    with pytest.raises(OtherRunError, match="data: there"):
        train(parts=balanced, out=tmp_path / "plain")


def test_a_folder_of_somebody_else_is_refused(train, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OtherRunError, match="not a run of this kit"):
        train(out=tmp_path)
    assert everything_in(tmp_path) == {"thesis.tex": b"years of work"}


def test_fewer_steps_than_are_done_are_refused(train, tmp_path):
    train(out=tmp_path, steps=3)
    before = everything_in(tmp_path)
    with pytest.raises(ValueError, match="holds a run of 3 steps, more than the 2 asked for"):
        train(out=tmp_path, steps=2)
    assert everything_in(tmp_path) == before


def test_a_line_that_is_still_being_written_is_not_read(tmp_path):
    (tmp_path / training.LOG).write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert training.read_log(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_log_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training log"):
        training.read_log(tmp_path)


def test_a_gradient_that_is_no_number_stops_the_run_and_spares_the_checkpoint(train, tmp_path, monkeypatch):
    train(out=tmp_path, steps=2)
    before, real = everything_in(tmp_path), training.rehearsal_loss
    monkeypatch.setattr(training, "rehearsal_loss", lambda *args: real(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 3 is nan"):
        train(out=tmp_path, steps=4)
    assert everything_in(tmp_path) == before
    monkeypatch.undo()
    assert_same(train(out=tmp_path, steps=4), train(steps=4))


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def full_disk_of_safetensors(*_, **__):
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def full_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def full_memory_of_the_cpu(*_, **__):
    torch.empty(2**50)


@pytest.mark.parametrize(("where", "fails", "error", "says"), [
    ("dphrl_lite.engine.checkpoint.save_file", full_disk, OSError, "the disk is full"),
    ("dphrl_lite.engine.checkpoint.save_file", full_disk_of_safetensors, OSError, "the disk is full"),
    ("dphrl_lite.engine.journal.Journal.add", full_disk, OSError, "the disk is full"),
    ("dphrl_lite.training.generate", full_memory, MemoryError, "out of memory .*microbatch_tokens"),
    ("dphrl_lite.training.clipped_loss", full_memory_of_the_cpu, MemoryError, "out of memory .*microbatch_tokens"),
])  # fmt: skip
def test_a_full_disk_or_memory_stops_with_clear_words_and_the_run_goes_on(train, tmp_path, monkeypatch, where, fails,
                                                                          error, says):  # fmt: skip
    train(out=tmp_path, steps=2)
    before = {name: text for name, text in everything_in(tmp_path).items() if name != "log.jsonl"}
    with monkeypatch.context() as patch, pytest.raises(error, match=says) as raised:
        patch.setattr(where, fails)
        train(out=tmp_path, steps=4, checkpoint_every=1)
    assert f"the last checkpoint in {tmp_path} is intact" in str(raised.value)
    after = everything_in(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not list(tmp_path.glob(".*partial"))  # which would keep the disk full
    assert_same(train(out=tmp_path, steps=4), train(steps=4))


def test_out_of_memory_before_the_first_step_names_the_setting(train, tmp_path, monkeypatch):
    monkeypatch.setattr(training.batches, "differences", full_memory)
    with pytest.raises(MemoryError, match=r"no checkpoint yet.*Lower microbatch_tokens"):
        train(out=tmp_path / "run")


def test_out_of_memory_without_a_folder_says_so(train, monkeypatch):
    monkeypatch.setattr(training, "generate", full_memory)
    with pytest.raises(MemoryError, match="no folder to go on from"):
        train()


@pytest.mark.parametrize("damage", [
    lambda text: text[: len(text) // 2],  # cut in the middle of a line
    lambda text: text.replace("step", "st\x00p\n", 1),
    lambda text: "",
    lambda text: text + text,
    None,
])  # fmt: skip
def test_a_damaged_log_is_healed_from_the_checkpoint(train, tmp_path, damage):
    train(out=tmp_path, steps=3)
    log, before = tmp_path / training.LOG, everything_in(tmp_path)
    log.write_text(damage(log.read_text())) if damage else log.unlink()
    assert everything_in(tmp_path) != before
    train(out=tmp_path, steps=3)
    assert everything_in(tmp_path) == before


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / training.LOG).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is damaged.* heals the log"):
        training.read_log(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_moments_a_run_ends_with_the_same_bits(train, tmp_path):
    """kill -9, wherever it is: in a step, in a checkpoint, in the removal of an old one. All of it comes back."""
    config = {"method": "dph-js", "steps": 8, "checkpoint_every": 1, "samples": 2}
    started = time.monotonic()
    whole = train(out=tmp_path / "whole", **config)
    duration = time.monotonic() - started
    rng, folder, reached = np.random.default_rng(0), tmp_path / "killed", []
    names = lambda: {p.name for p in folder.glob("step-*")}
    for kill in range(20):
        before = names()
        if (child := os.fork()) == 0:
            try:
                train(out=folder, **config)
            finally:
                os._exit(0)
        if kill % 2:  # around the moment when a checkpoint takes the place of the last
            until = time.monotonic() + 60
            while names() <= before and time.monotonic() < until:
                time.sleep(1e-4)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, duration / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached.append(max([int(p.name[5:]) for p in folder.glob("step-*")], default=0))
        if reached[-1] == config["steps"]:
            shutil.rmtree(folder)  # done: begin again
    assert len(set(reached)) > 3  # the kills came at different places
    assert_same(train(out=folder, **config), whole)
    for name, text in everything_in(tmp_path / "whole").items():
        if name not in ("log.jsonl", "step-000008/state.json"):  # which hold seconds
            assert (folder / name).read_bytes() == text, name
    assert timeless(type(whole.log)(training.read_log(folder))) == timeless(whole.log)


@pytest.mark.parametrize("settings", [{"learning_rate": float("inf")}, {"strength": float("nan")}, {"strength": 1e38}])
def test_overflow_is_named_whichever_way_it_comes(train, settings):
    with pytest.raises(FloatingPointError, match="ower learning_rate or strength"):
        train(**settings)


def test_the_progress_bar_of_a_resumed_run_counts_what_is_left(train, tmp_path, monkeypatch):
    bars, shown, real = [], [], training.tqdm
    monkeypatch.setattr(training, "tqdm", lambda *a, **k: bars.append(real(*a, **k, miniters=1)) or bars[-1])
    train("grpo", out=tmp_path, steps=2, progress=True)
    seen = lambda record: shown.append(bars[-1].format_dict | {"n": record["step"]})
    run = train("grpo", out=tmp_path, steps=5, progress=True, on_step=seen)
    assert [(bar["initial"], bar["n"], bar["total"]) for bar in shown] == [(2, 3, 5), (2, 4, 5), (2, 5, 5)]
    last = run.log.iloc[-1]
    assert bars[-1].postfix == f"entropy={last['entropy']:.2f}, reward={last['reward']:.2f}"
    # two steps took 20 s since the resumption, so the one that is left takes 10 s: not 5 s, as if four had
    assert "[00:20<00:10," in real.format_meter(**shown[1] | {"elapsed": 20.0, "rate": None, "ncols": None})


# ---- several processes -----------------------------------------------------------------------------------------------

TWO = """
import os, sys, torch
from dphrl_lite import models, presampling, tasks, training
from dphrl_lite.engine import logprobs
from dphrl_lite.tasks.countdown import problems

torch.set_num_threads(1)
logprobs.LOGITS_BYTES = 10_000  # in chunks here, at once in the one process
policy, task, chosen = models.load("tiny", dtype=torch.float64), tasks.get("countdown"), problems("cd3", 24, seed=1)
parts = presampling.partition(presampling.sample(policy, task, chosen, progress=False))
for method in sys.argv[2:]:
    steps = []
    run = training.train(policy, task, chosen, parts, method, out=f"{sys.argv[1]}/{method}", on_step=steps.append, **SETTINGS)
    assert len(run.log) == 2
    assert len(steps) == (2 if run.policy is not None and torch.distributed.get_rank() == 0 else 0)
    assert torch.distributed.get_world_size() == 2
    assert hasattr(run.policy.model, "unshard") == (os.environ["ACCELERATE_USE_FSDP"] == "true")
"""


@pytest.mark.parametrize("sharded", ["false", "true"])
def test_two_processes_train_like_one(double, countdown, tmp_path, sharded):
    """Same global batch, same parameters: sums over processes are token means of the whole, whoever holds which token; and
    so where each holds one half of the weights only."""
    policy, problems, parts = double
    methods = ["dph-js", "dapo", "rkl", "dph-js-definition"]
    settings = {"steps": 2, "problems_per_step": 7, "samples": 3, "rehearsal_per_step": 9, "microbatch_tokens": 120}
    script = tmp_path / "two.py"
    script.write_text(TWO.replace("SETTINGS", repr(settings)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["ACCELERATE_USE_FSDP"] = sharded
    done = subprocess.run(
        [*launch, str(tmp_path), *methods], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(" 0/2 [00:00<?, ?it/s]") == len(methods)  # one bar a run, not two
    for method in methods:
        one = training.train(policy, countdown, problems, parts, method, progress=False, **settings)
        two = training.train(
            policy, countdown, problems, parts, method, progress=False, out=tmp_path / method, **settings
        )
        assert distance(one.policy, two.policy) < 1e-6
        for name in set(METRICS) - set(OF_MACHINE) - {"gradient_cosine"}:
            a, b = (run.log[name].astype(float) for run in (one, two))
            assert np.allclose(a, b, atol=1e-5, equal_nan=True), (method, name)
    longer = settings | {"steps": 3}  # begun by two processes, ended by one
    ended = training.train(policy, countdown, problems, parts, method, progress=False, out=tmp_path / method, **longer)
    whole = training.train(policy, countdown, problems, parts, method, progress=False, **longer)
    assert distance(ended.policy, whole.policy) < 1e-6


# ---- refusals --------------------------------------------------------------------------------------------------------


def emptied(parts, **buckets):
    kept = parts.rehearsal if buckets.get("perfect", parts.perfect) else parts.rehearsal.iloc[:0]
    return dataclasses.replace(parts, rehearsal=kept, **buckets)


@pytest.mark.parametrize("method", REHEARSING)
def test_an_empty_d_pef_is_refused(train, parts, tmp_path, method):
    with pytest.raises(ValueError, match="D_pef is empty at threshold 6"):
        train(method, parts=emptied(parts, perfect=()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_rehearsal_an_empty_d_pef_is_no_matter(train, parts):
    assert len(train("grpo-exp", parts=emptied(parts, perfect=()), steps=1).log) == 1


@pytest.mark.parametrize(("method", "buckets"), [
    ("dph-js", {"exploration": ()}), ("grpo-exp", {"exploration": ()}), ("grpo", {"exploration": (), "perfect": ()}),
])  # fmt: skip
def test_an_empty_d_exp_is_refused(train, parts, tmp_path, method, buckets):
    with pytest.raises(ValueError, match="D_exp is empty at threshold 6"):
        train(method, parts=emptied(parts, keep_unsolved=False, **buckets), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_unsolved_alone_can_be_explored(train, parts):
    assert len(train(parts=emptied(parts, exploration=()), steps=1).log) == 1


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"temperature": 0.8}])
def test_rehearsal_from_another_distribution_is_refused_unless_allowed(train, tiny, countdown, few_problems, tmp_path,
                                                                       settings):  # fmt: skip
    table = presampling.sample(tiny, countdown, few_problems, samples=8, progress=False, **settings)
    parts = presampling.partition(table, 6)
    with pytest.raises(ValueError, match="temperature or top-p"):
        train(parts=parts, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(train("grpo-exp", parts=parts, steps=1).log) == 1  # which rehearses nothing
    allowed = train(parts=parts, steps=1, minibatches=1, allow_mismatch=True).log.iloc[0]
    assert allowed["log_u_high"] == pytest.approx(0, abs=1e-5)  # u is a ratio of training distributions all the same
    assert allowed["log_u_low"] == pytest.approx(0, abs=1e-5)


def test_training_at_another_temperature_than_the_stored_logps_is_a_mismatch(train):
    with pytest.raises(ValueError, match=r"training is at temperature 0\.7"):
        train(temperature=0.7)
    allowed = train(temperature=0.7, allow_mismatch=True, steps=1, minibatches=1).log.iloc[0]
    for name in ("penalty", "log_u_low", "log_u_high"):  # u is 1 at the start: both log-probs are at 0.7
        assert allowed[name] == pytest.approx(0, abs=1e-5), name
    assert len(train("grpo", temperature=0.7, steps=1).log) == 1


def test_rehearsal_that_another_model_wrote_is_refused(train, tiny, tmp_path):
    other = tiny.copy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="did not write the rehearsal samples"):
        train(policy=other, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_rehearsal_keeps_its_prompts_where_the_chat_template_writes_another_day(train, tiny, parts):
    policy = dataclasses.replace(tiny.copy(), tokenizer=copy.deepcopy(tiny.tokenizer))
    policy.tokenizer.chat_template = "1 {{ messages[0]['content'] }}"
    log = train(policy=policy, steps=1, minibatches=1).log.iloc[0]
    assert max(abs(log["log_u_low"]), abs(log["log_u_high"])) < 1e-5
    bare = dataclasses.replace(parts, rehearsal=parts.rehearsal.drop(columns="prompt"))
    assert_same(train(parts=bare), train())


def shifted(parts, by):
    """`parts` whose stored log-probs are off by `by` in turn up and down."""
    moved = [x + by * (-1) ** np.arange(len(x)) for x in parts.rehearsal["logp"]]
    return dataclasses.replace(parts, rehearsal=parts.rehearsal.assign(logp=moved, logp_sampling=moved))


def test_in_float32_stored_logps_must_be_those_of_the_training_forward(train, parts, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"rehearsal samples: mean \|log u\| is 2e-05 .* \(at most 1e-05\)"):
        train(parts=shifted(parts, 2e-5), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    real = training.generate
    off = lambda *a, **k: [[dataclasses.replace(c, logp=[x - 2e-5 for x in c.logp]) for c in g] for g in real(*a, **k)]
    monkeypatch.setattr(training, "generate", off)
    with pytest.raises(ValueError, match="did not write the fresh completions"):
        train("grpo")


@pytest.fixture
def rough(countdown, few_problems):
    """The tiny policy in bfloat16, and what it wrote."""
    from dphrl_lite import models

    policy = models.load("tiny", dtype=torch.bfloat16)
    return policy, presampling.partition(presampling.sample(policy, countdown, few_problems, progress=False))


def test_in_bfloat16_logps_that_rounding_parts_are_computed_again_and_it_is_said(train, rough, monkeypatch, recwarn):
    policy, parts = rough
    quick = {"policy": policy, "steps": 1, "minibatches": 1}
    with monkeypatch.context() as untouched:  # within the tolerance: taken as they are
        untouched.setattr(training.batches, "with_logps", lambda *_: pytest.fail("computed again"))
        train(parts=shifted(parts, 0.01), **quick)
    assert not [w for w in recwarn if "computed again" in str(w.message)]
    with pytest.warns(UserWarning, match=r"rehearsal samples: .* differ .* by 0\.05\d nats .* computed again"):
        log = train(parts=shifted(parts, 0.05), **quick).log.iloc[0]
    assert log["penalty"] < 1e-4
    assert max(abs(log["log_u_low"]), abs(log["log_u_high"])) < 0.02  # padded otherwise in batches of another size
    with pytest.raises(ValueError, match=r"did not write the rehearsal samples.*\(at most 0\.2\)"):
        train(parts=shifted(parts, 0.5), **quick)
    real = training.generate
    off = lambda *a, **k: [[dataclasses.replace(c, logp=[x - 0.5 for x in c.logp]) for c in g] for g in real(*a, **k)]
    half = lambda *a, **k: [[dataclasses.replace(c, logp=[x - 0.1 for x in c.logp]) for c in g] for g in real(*a, **k)]
    monkeypatch.setattr(training, "generate", off)
    with pytest.raises(ValueError, match="did not write the fresh completions"):
        train("grpo", **quick)
    monkeypatch.setattr(training, "generate", half)
    with pytest.warns(UserWarning, match="fresh completions: .* computed again"):
        log = train("grpo", **quick | {"steps": 2}).log
    assert (log["loss_exploration"].abs() < 1e-2).all()
    assert log[["clipped_low", "clipped_high"]].to_numpy().max() == 0  # rho is 1 in every step, not exp(.1)


def test_weights_of_16_bits_that_are_trained_are_named(train, rough):
    policy, parts = rough
    with pytest.warns(UserWarning, match="trained are bfloat16.* lost.*dtype=torch.float32, or with lora_rank=16"):
        train(parts=parts, policy=policy, steps=1)
    half = policy.copy()
    half.model.half()
    with pytest.raises(ValueError, match="float16 cannot be trained"):
        train("grpo", policy=half)


def test_a_gpu_may_round_float32_too():
    where = lambda device: torch.nn.Linear(1, 1, device=device)
    assert precision.logps_agree([torch.tensor([1e-3])], where("meta"), "what")
    for gap, device, limit in ((1e-3, "cpu", "1e-05"), (0.03, "meta", "0.02")):
        with pytest.raises(ValueError, match=rf"\(at most {limit}\)"):
            precision.logps_agree([torch.tensor([gap])], where(device), "what")


def test_a_redefined_divergence_is_another_run(train, registry, tmp_path):
    registry(Divergence(name="mine", f=lambda d: d.expm1() ** 2 / 2))
    train(method="dph-mine", out=tmp_path)
    registry(Divergence(name="mine", f=lambda d: 4 * (d / 2).expm1() ** 2))
    with pytest.raises(OtherRunError, match="f: there"):
        train(method="dph-mine", out=tmp_path, strength=0.5)


def test_unknown_names_list_the_valid_ones(train, tmp_path):
    with pytest.raises(ValueError, match="dapo, dph-alpha, dph-f"):
        train("dph-jss", out=tmp_path / "run")
    with pytest.raises(ValueError, match="learning_rate") as error:
        train(learning_rat=1.0, out=tmp_path / "run")
    assert "Did you mean 'learning_rate'" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [
    {"samples": 1}, {"temperature": 0.0}, {"steps": -1}, {"seed": -1}, {"strength": -1.0}, {"max_refills": -1},
    {"minibatches": 0}, {"problems_per_step": 0}, {"microbatch_tokens": 0}, {"max_new_tokens": 0},
    {"gradient_clip": -1.0}, {"advantage_k": 0}, {"penalty_target": 0.0},
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(train, tmp_path, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name} = {value} is too low"):
        train("grpo", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("k", [4, 5])
def test_pass_at_k_of_all_completions_is_refused(train, tmp_path, k):
    with pytest.raises(ValueError, match=f"advantage_k = {k} with samples = 4 compares nothing"):
        train("grpo", out=tmp_path / "run", samples=4, advantage_k=k)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "settings"), [("grpo", {}), ("dapo", {}), ("grpo-entropy", {}), ("dph-js", {"strength": 0.0})]
)
def test_a_penalty_target_without_a_penalty_is_refused(train, tmp_path, method, settings):
    with pytest.raises(ValueError, match=f"penalty_target = 0.02 has nothing to hold .*'{method}' has no penalty, or"):
        train(method, out=tmp_path / "run", penalty_target=0.02, **settings)
    assert not (tmp_path / "run").exists()


def test_problems_and_partition_must_belong_together(train, few_problems, tmp_path):
    with pytest.raises(ValueError, match="names 2 problems that are not in `problems`"):
        train(problems=few_problems[:-2], out=tmp_path / "run")
    with pytest.raises(ValueError, match="more than once"):
        train(problems=[*few_problems, few_problems[0]], out=tmp_path / "run")
    with pytest.raises(ValueError, match="has no answer"):
        train(problems=[*few_problems, Problem("bare", "sort 17 =", "")], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_setting_and_metric_is_explained():
    lines = inspect.getsource(TrainConfig).splitlines()
    for field in dataclasses.fields(TrainConfig):
        assert any(re.match(rf"    {field.name}: .*  # \w", line) for line in lines), field.name
    assert all(METRICS.values())


# ---- does it learn? --------------------------------------------------------------------------------------------------

LEARN = {"steps": 12, "learning_rate": 3e-4, "problems_per_step": 8, "samples": 16, "rehearsal_per_step": 32}


def test_grpo_raises_the_reward(train, tiny, countdown, few_problems):
    solved = lambda policy: presampling.sample(policy, countdown, few_problems, 16, seed=99, progress=False)["correct"]
    before, after = solved(tiny).mean(), solved(train("grpo", **LEARN).policy).mean()
    assert after > before + 0.05  # from .43 to .55 at the least, over several seeds


def test_dph_js_stays_nearer_to_the_reference_than_the_control(train, parts, few_problems):
    drift = {}
    for method in ("grpo-exp", "dph-js"):
        logp, stored, mask = on_rehearsal(train(method, **LEARN).policy, parts, few_problems)
        drift[method] = (logp - stored)[mask].abs().mean().item()
    assert drift["dph-js"] < 0.7 * drift["grpo-exp"]  # .04 to .07 against .14 to .24, over several seeds


def test_a_penalty_target_finds_its_strength_from_both_sides(train):
    learn = LEARN | {"samples": 4, "steps": 30}
    weak, strong = (train(strength=strength, penalty_target=0.01, **learn).log for strength in (0.1, 8.0))
    assert (
        1 / 3 < weak["strength"].iloc[-1] / strong["strength"].iloc[-1] < 3
    )  # .9 to 2, over several seeds; 1/80 at first
    held = train(strength=8.0, **learn).log["penalty"]
    assert strong["penalty"][-10:].mean() > 2 * held[-10:].mean()  # 3 to 7 times, over several seeds


def test_an_adapter_trains_and_resumes_while_its_base_stays(train, tmp_path):
    pytest.importorskip("peft")
    from dphrl_lite import models

    start = lambda: models.load(models.PROFILES["tiny"].source, lora_rank=4)
    config = {"steps": 2, "max_new_tokens": 12, "checkpoint_every": 1}
    policy = start()
    base = {n: copy.deepcopy(p) for n, p in policy.model.named_parameters() if not p.requires_grad}
    with pytest.raises(KeyboardInterrupt):
        train("rkl", policy=policy, out=tmp_path, on_step=stop_after(1), **config)
    run = train("rkl", policy=start(), out=tmp_path, **config)
    assert_same(run, train("rkl", policy=start(), **config))
    assert all(torch.equal(dict(run.policy.model.named_parameters())[name], p) for name, p in base.items())
    assert run.log["penalty"].iloc[-1] > 0  # the reference is the base, not the adapter
    with pytest.raises(ValueError, match="trained already"):  # it would start from the end of the first run
        train("dph-js", policy=run.policy, **config)


def test_qlora_asks_its_own_base_and_resumes_with_8_bit_moments(train, countdown, few_problems, tmp_path, monkeypatch):
    """NF4 from end to end: no second model for a reference, moments in 8 bits, and a run that goes on bit for bit."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    from dphrl_lite import models

    load = lambda: models.load("tiny", nf4=True, lora_rank=64)
    start = load()
    drawn = presampling.partition(
        presampling.sample(start, countdown, few_problems, samples=8, progress=False), threshold=6
    )
    monkeypatch.setattr(copy, "deepcopy", no_model(copy.deepcopy))
    settings = {"parts": drawn, "method": "dph-js-definition", "checkpoint_every": 1, "learning_rate": 1e-3}
    whole = train(policy=start, steps=2, **settings)
    assert (whole.log["reference_forwards"] > 0).all()
    assert any("optimizer adamw-8bit" in reason for reason in start.reasons)
    train(policy=load(), steps=1, out=tmp_path, **settings)
    with safetensors.safe_open(next(tmp_path.glob("step-*")) / "optimizer.safetensors", "pt") as moments:
        assert torch.uint8 in {moments.get_tensor(name).dtype for name in moments.keys()}  # noqa: SIM118
    assert_same(train(policy=load(), steps=2, out=tmp_path, **settings), whole)


def no_model(deepcopy):
    def checked(x, *rest):
        assert not isinstance(x, torch.nn.Module)
        return deepcopy(x, *rest)

    return checked


def test_rehearsal_drawn_at_the_training_temperature_is_not_called_biased(train, tiny, countdown, few_problems, parts):
    settings = {"samples": 8, "max_new_tokens": 16, "progress": False}
    for drawn in (0.7, 1.3):
        rollouts = presampling.sample(tiny, countdown, few_problems, temperature=drawn, **settings)
        mixed = dataclasses.replace(parts, rehearsal=rollouts[rollouts["correct"]])
        assert len(mixed.rehearsal)
        if drawn == 0.7:
            assert len(train(parts=mixed, temperature=0.7, steps=1).log) == 1
        else:
            with pytest.raises(ValueError, match=r"not drawn at the training's temperature 0\.7"):
                train(parts=mixed, temperature=0.7, steps=1)


def test_foreign_weights_are_refused_at_any_temperature(train, tiny, parts):
    other = tiny.copy()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="did not write the rehearsal samples"):
        train(policy=other, temperature=0.7, allow_mismatch=True, steps=1)
