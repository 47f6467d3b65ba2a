"""Checks of the exercises of notebook 06, hybrid training."""

from functools import cache

import numpy as np
import torch

from dphrl_lite import models, passk, presampling, tasks, training
from dphrl_lite.course.check import Hint, call, close, exercise, nearest, number, parts
from dphrl_lite.engine.batches import Stream
from dphrl_lite.objectives import METHODS, clipped_loss, group_advantages, rehearsal_loss
from dphrl_lite.presampling import seed_of
from dphrl_lite.sampling import collate, generate, pad, token_logps
from dphrl_lite.tasks.countdown import problems

BEFORE, AFTER = ([30], [5]), ([90], [1])  # right ones of 100, of two problems, as in the notebook
GROUPS = (
    torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]]),
    torch.tensor([[1.0, 1, 1, 1], [0, 0, 1, 0]]),  # a group that teaches nothing
    torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 1, 0]]),  # as many problems as answers
)


@exercise("06-1")
def first_crossing(given):
    """The first k at which the mean Pass@k of two problems is lower after training than before."""
    k, ks = number(given), np.arange(1, 65)
    if not (k.is_integer() and 1 <= k <= 64):
        raise Hint("k is a number of tries: a whole number from 1 to 64.")
    before, after = (passk.with_replacement(100, rates, ks).mean(0) for rates in (BEFORE, AFTER))
    below = after < before
    if k == 1:
        raise Hint("With one try the hard problem alone is worse off. The mean over both problems is asked for.")
    if not below[int(k) - 1]:
        raise Hint(f"With {k:.0f} tries the mean is still higher after training than before.")
    if k > ks[below.argmax()]:
        raise Hint(f"With {k:.0f} tries the mean is lower, but that begins at a smaller k.")
    return "The easy problem is solved either way by then; the hard one has lost its tries."


@exercise("06-2")
def advantage_by_hand(given):
    """The advantage of the one right answer in a group of four."""
    advantage, rewards = number(given), np.array([1.0, 0, 0, 0])
    right, wrong = group_advantages(torch.tensor(rewards)[None])[0, :2].tolist()
    centred = rewards[0] - rewards.mean()
    wrongs = {
        wrong: "That is the advantage of a wrong answer. What is r of the right one?",
        centred: "That is r minus the group mean. It still has to be divided by the group's standard deviation.",
        centred / rewards.std(): "Your std divides the sum of squares by 4. A sample's divides it by 4 − 1.",
        centred / rewards.var(ddof=1): "You divided by the variance. The standard deviation is its root.",
        1.0: "Is 1 the reward, or did you leave out the mean? A compares the reward with the group's mean.",
    }
    if close(advantage, right, 0.005):
        return "The three wrong answers share the same weight with the opposite sign."
    general = (
        "First the mean of the four rewards, then the four squared distances from it. A has three parts: r, mean, std."
    )
    raise Hint(nearest(advantage, wrongs, general))


@exercise("06-3")
def advantages_by_group(given):
    """A function whose advantages compare an answer with the answers to the same problem."""
    for rewards in GROUPS:
        found, truth = np.asarray(call(given, rewards), dtype=float), group_advantages(rewards)
        if found.shape != truth.shape:
            raise Hint(f"Rewards {tuple(truth.shape)} need as many advantages; yours have the shape {found.shape}.")
        if close(found, truth, 1e-3):
            continue
        if close(found, (rewards - rewards.mean()) / (rewards.std() + 1e-6), 1e-3):
            raise Hint(
                "One mean and one standard deviation for the whole batch: each answer is still compared with answers to "
                "other problems. Along which dimension of `rewards` lie the answers to one problem?"
            )
        if not np.isfinite(found).all():
            raise Hint("A group whose rewards are all equal gives no finite number. What is added to the std, and why?")
        if not close(found.sum(1), np.zeros(len(found)), 1e-3):
            raise Hint(
                "The advantages of a group must add up to 0; yours do not. Whose mean is subtracted (`keepdim`)?"
            )
        raise Hint("The means are right. By whose standard deviation do you divide, and by n − 1 or by n within it?")
    return "Each answer competes with the other answers to its own problem, and a group of equals is silent."


@exercise("06-4")
def slopes_at_the_start(given):
    """The slope of two penalties in log u where policy and reference are equal."""
    sft, dph = map(number, parts(given, ("sft", "dph-f")))
    truth = [_slope_at_one(METHODS[name]) for name in ("sft", "dph-f")]
    if close([sft, dph], truth, 1e-3):
        return "Cross-entropy pulls from the first step on; f(u) waits until the policy has moved."
    if close([dph, sft], truth, 1e-3):
        raise Hint("Which of the two penalties is smallest at u = 1? At a minimum the slope is 0.")
    if sft > 0:
        raise Hint("A positive slope: the loss rises with log u. Does −log u rise with log u?")
    if not close(sft, truth[0], 1e-3):
        raise Hint("Write d for log u. What is the slope of −d?")
    raise Hint("Write d for log u: u is e^d, so f is e^d − 1 − d. Differentiate all three terms, then put d = 0.")


def _slope_at_one(method) -> float:
    logp = torch.zeros(1, 1, requires_grad=True)
    rehearsal_loss(method, logp, torch.zeros(1, 1), torch.ones(1, 1)).backward()
    return logp.grad.item()


@exercise("06-5")
def penalty_without_padding(given):
    """A function that averages f(u) over the tokens of the answers, and over nothing else."""
    for logp, logp_ref, mask in _stored_answers():
        found, truth = call(given, logp, logp_ref, mask), rehearsal_loss(METHODS["dph-f"], logp, logp_ref, mask)
        if close(found, truth):
            continue
        f, swapped = (torch.expm1(d) - d for d in (logp - logp_ref, logp_ref - logp))
        wrongs = {
            "The padding still counts. Which positions does `mask` select?": f.mean(),
            "The padding is gone from the sum, but still counted: by how many do you divide?": (f * mask).mean(),
            "You divide by the number of answers. A mean over tokens divides by their number.": (f * mask).sum()
            / len(f),
            "You average each answer first, so that a token of a short answer weighs more. Here all tokens weigh the same.": (
                ((f * mask).sum(1) / mask.sum(1)).mean()
            ),
            "That is the sum over the tokens. L_pef is their mean.": (f * mask).sum(),
            "The padding is gone, but u is upside down: it is policy over reference.": swapped[mask].mean(),
        }
        for hint, value in wrongs.items():
            if close(found, value):
                raise Hint(hint)
        raise Hint(
            "One number is asked for: f(u) of the tokens that `mask` selects, their sum divided by how many they are."
        )
    return "An answer's loss no longer depends on how long its neighbours are."


def _stored_answers():
    """Log-probs of policy and reference and the mask: answers of 2 and 5 tokens, of equal length, and of one token alone."""
    draw = torch.Generator().manual_seed(6)
    for lengths in ((2, 5), (3, 3), (1, 4, 6)):
        logp, logp_ref = -2 * torch.rand(2, len(lengths), max(lengths), generator=draw)
        yield logp, logp_ref, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# ---- GRPO by hand: what the student wrote against the kit, on a few problems of its own ------------------------------------

COLUMNS = ("reward", "loss_exploration", "penalty", "gradient_norm")
SMALL = {"problems_per_step": 8, "samples": 8, "minibatches": 1, "rehearsal_per_step": 16}


@cache
def _world():
    """Policy, task, problems to explore, stored answers as triples, and the partition they come from."""
    policy, task, some = models.load("tiny"), tasks.get("countdown"), problems("cd3", 32)
    parts = presampling.partition(presampling.sample(policy, task, some, samples=8, progress=False), threshold=6)
    by_id, rehearsal = {p.id: p for p in some}, training.rehearsal_samples(policy, {}, parts.rehearsal)
    stored = [(c.prompt, c.token_ids, c.logp_ref) for c in rehearsal]
    return policy, task, [by_id[i] for i in training.explored_ids(METHODS["dph-f"], parts)], stored, parts, some


@exercise("06-6")
def clipped_loss_by_hand(given):
    """A function that computes L_exp."""
    for logp, logp_old, mask in _stored_answers():
        logp = logp_old + 3 * (logp - logp_old)  # far enough for the clip
        advantages = torch.linspace(-1, 1, len(mask)) + 0.3
        given_loss = call(given, logp, logp_old, advantages, mask)
        truth = clipped_loss(logp, logp_old, advantages, mask, 0.2, 0.28).loss
        if close(given_loss, truth):
            continue
        rho, a = (logp - logp_old).exp(), advantages[:, None].expand_as(mask)
        clipped = rho.clamp(0.8, 1.28)
        least = torch.minimum(rho * a, clipped * a)
        wrongs = {
            "The sign: an optimizer goes downhill, and this should rise.": least[mask].mean(),
            "Nothing is clipped. ρ counts between 0.8 and 1.28 only.": -(rho * a)[mask].mean(),
            "Clipped on both sides. The minimum of the unclipped and the clipped term is asked for.": -(clipped * a)[
                mask
            ].mean(),
            "The larger of the two terms is taken: an answer could gain without end.": -torch.maximum(
                rho * a, clipped * a
            )[mask].mean(),
            "The padding still counts. Which positions does `mask` select?": -least.mean(),
            "The padding is gone from the sum, but still counted: by how many do you divide?": -(least * mask).mean(),
            "ρ is upside down: it is the policy over the policy that sampled.": -torch.minimum(
                a / rho, (1 / rho).clamp(0.8, 1.28) * a
            )[mask].mean(),
        }
        for hint, value in wrongs.items():
            if close(given_loss, value):
                raise Hint(hint)
        raise Hint("ρ = exp(logp − logp_old), A of its answer, the smaller of two terms; minus their mean over tokens.")
    return "A token whose ρ has left the range in the direction that pays has no gradient any more."


@exercise("06-7")
def explored_by_hand(given):
    """A function for stages 2 to 4: fresh answers as triples, their advantages, and the mean reward."""
    policy, task, explored, *_ = _world()
    drawn = Stream(explored, 0, 0).take(4)
    value = call(given, policy, task, drawn)
    if not isinstance(value, tuple) or len(value) != 3:
        raise Hint("Three things are asked for: the fresh answers, their advantages, and the mean reward.")
    fresh, advantages, reward = value
    seeds = [seed_of(0, place, problem.id) for place, problem in drawn]
    prompts = [policy.encode(problem.prompt) for _, problem in drawn]
    groups = generate(policy, prompts, 8, seeds=seeds, max_new_tokens=40)
    texts = [(p, policy.decode(c.token_ids)) for (_, p), group in zip(drawn, groups, strict=True) for c in group]
    rewards = torch.tensor([[float(task.verify(*pair).correct) for pair in texts]]).view(4, 8)
    truth = [(prompt, c.token_ids, c.logp) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    if len(fresh) != len(truth):
        raise Hint(f"4 problems with 8 answers each make 32 triples; yours are {len(fresh)}.")
    if [list(c[1]) for c in fresh] != [c[1] for c in truth]:
        raise Hint("Stage 2: other answers than the kit draws. One seed per problem: `seed_of(0, place, problem.id)`.")
    if [list(c[0]) for c in fresh] != [c[0] for c in truth] or not all(
        close(c[2], other[2]) for c, other in zip(fresh, truth, strict=True)
    ):
        raise Hint(
            "A triple holds the prompt's tokens, the answer's tokens `c.token_ids`, and `c.logp`, in this order."
        )
    if not close(reward, rewards.mean()):
        raise Hint("Stage 3: the reward is 1 where the verdict is correct, else 0; the third thing is the mean of all.")
    if np.shape(advantages) != (32,):
        raise Hint(
            f"Stage 4: one advantage per answer, 32 in a row; yours have the shape {tuple(np.shape(advantages))}."
        )
    if not close(advantages, group_advantages(rewards).flatten(), 1e-3):
        raise Hint("Stage 4: is exercise 06-3 solved, and does a row of `rewards` hold the answers to one problem?")
    return "The same answers, to the token, and the same advantages as the kit's."


@exercise("06-8")
def scored_by_hand(given):
    """A function that gives log-probs as of now, those that triples hold, and the mask."""
    policy, _, _, stored, *_ = _world()
    value = call(given, policy, stored[:5])
    if not isinstance(value, tuple) or len(value) != 3:
        raise Hint("Three tensors are asked for: log-probs now, log-probs held, and the mask.")
    batch = collate([c[0] for c in stored[:5]], [c[1] for c in stored[:5]], policy.pad_id)
    truth = {
        "now": token_logps(policy.model, batch)[0],
        "held": pad([c[2] for c in stored[:5]], 0.0),
        "mask": batch.mask,
    }
    for (name, expected), tensor in zip(truth.items(), value, strict=True):
        if np.shape(tensor) != tuple(expected.shape):
            raise Hint(f"The shape of {name!r} is {tuple(np.shape(tensor))}, expected {tuple(expected.shape)}.")
        if not close(torch.as_tensor(tensor)[batch.mask], expected[batch.mask], 1e-5):
            raise Hint(
                f"{name!r} is not what is asked for. Prompts come first, then answers; `token_logps` returns two things."
            )
    if not torch.as_tensor(value[0]).requires_grad:
        raise Hint("The log-probs have no gradient any more: give them back as `token_logps` did.")
    return "The policy has not been trained yet, so the first two agree: u = 1 everywhere."


@exercise("06-9")
def trained_by_hand(given):
    """A training loop whose log is the kit's, to 1e-5, on five steps."""
    policy, task, explored, stored, partition, some = _world()
    log = call(given, policy.copy(), task, explored, stored, 5)
    if not isinstance(log, list) or not log or not all(isinstance(line, dict) for line in log):
        raise Hint("A list of five dicts is asked for, one a step.")
    lines = [parts(line, COLUMNS) for line in log]
    run = training.train(policy, task, some, partition, "dph-f", 5, progress=False, **SMALL)
    truth = run.log[list(COLUMNS)].to_numpy()
    if len(lines) != len(truth):
        raise Hint(f"Five steps make five dicts; yours are {len(lines)}.")
    for step, (line, expected) in enumerate(zip(lines, truth, strict=True), 1):
        for name, mine, theirs in zip(COLUMNS, map(number, line), expected, strict=True):
            if not close(mine, theirs, 1e-5):
                raise Hint(f"Step {step}: `{name}` is {mine:.6f}, the kit's {theirs:.6f}. {_why(step, name)}")
    return f"Five steps, four columns, no difference above 1e-5. The rewards: {truth[:, 0].round(3).tolist()}."


def _why(step: int, column: str) -> str:
    """What to look at where a loop by hand leaves the kit's log for the first time."""
    if step > 1:
        return "The first step agrees. So is it the update: its order, gradients left from before, the clip?"
    return {
        "reward": "Which problems are drawn (8 from `problems`), and what has become of `explore`?",
        "loss_exploration": "Whose log-probs go into L_exp, and with which advantages?",
        "penalty": "Before the first update it is 0: does L_pef get 16 answers from `rehearsal`, and the policy's own log-probs?",
        "gradient_norm": "The losses are right. Is the gradient that of L_exp + 1.0 · L_pef, and measured before it is clipped?",
    }[column]
