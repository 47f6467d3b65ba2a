"""Checks of the exercises of notebook 03, collapse in miniature."""

from functools import cache

import torch

from dphrl_lite import divergences
from dphrl_lite.course.check import Hint, call, choice, close, exercise, nearest, number, parts
from dphrl_lite.lab import bandits

P, REWARD = torch.tensor([0.4, 0.2, 0.3, 0.1]).double(), torch.tensor([1.0, 1, 0, 0]).double()  # as in the notebook
Q, BETA = torch.tensor([0.4, 0.1, 0.3, 0.2]).double(), 0.1  # of 03-4
NEAR = 0.01  # how near two Pass@1 count as equal in 03-5


@cache
def world() -> bandits.Bandit:
    """The bandit of the notebook."""
    return bandits.make()


@exercise("03-1")
def one_step(given):
    """By hand: the gradient of the expected reward on the logit of the rarer right answer."""
    value, gradient = number(given), bandits.reward_gradient(P, REWARD, "reward")
    solved, p = (P * REWARD).sum().item(), P[1].item()
    truth = gradient[1].item()
    typical = {
        bandits.reward_gradient(P, REWARD, "grpo")[1].item(): "that is divided by the standard deviation, as in GRPO.",
        gradient[0].item(): "that is of the likelier right answer; or you took the other right answer for a wrong one.",
        -truth: "the sign. A right answer wins logit.",
        p: "a raised logit takes probability from the others, right ones too: sum over all b.",
        1 - solved: "that is what one sample of it does. How often is it sampled?",
        -p * solved: "that is of a wrong answer as likely as this one.",
    }
    if not close(value, truth, 1e-3):
        raise Hint(
            nearest(value, typical, "Put p and r into the sum over b: each b gives r_b p_b ([a = b] - p_a).", 0.005)
        )
    return "In general p (r - P): the likelier right answer gains more, so the gap between their logits grows."


@exercise("03-2")
def fallen(given):
    """Predict in how many contexts Pass@64 falls when nothing is shared."""
    ends = bandits.flow(world().tabular(), "grpo", frames=2).p_correct()
    falls = int((bandits.pass_at_k(ends[1], 64) < bandits.pass_at_k(ends[0], 64)).sum())
    contexts = number(given)
    if contexts != round(contexts) or not 0 <= contexts <= len(ends[0]):
        raise Hint(f"A number of contexts is asked for, between 0 and {len(ends[0])}.")
    if contexts != falls:
        raise Hint(
            "A held-out context has parameters of its own, and nothing trains them. In a trained one, which logits rise in a "
            "step, and which fall? What does that do to P(correct)?"
        )
    return "Now see why, and what is lost all the same."


@exercise("03-3")
def mean_of_pass_at_k(given):
    """Mend a mean Pass@k that averages P(correct) first."""
    for p_correct, k in (([0.9, 0.0], 8), ([0.3, 0.6, 0.05], 4), ([0.5, 1.0, 0.0], 1), ([0.7], 64)):
        p_correct = torch.tensor(p_correct, dtype=torch.float64)
        value, each = call(given, p_correct, k), bandits.pass_at_k(p_correct, k)
        if close(value, each.mean()):
            continue
        where = f"P(correct) = {', '.join(f'{p:g}' for p in p_correct.tolist())} and k = {k}"
        if close(value, bandits.pass_at_k(p_correct.mean(), k)):
            raise Hint(
                f"For {where} yours gives {float(value):.3f}, as if the one context could lend its answers to the other, "
                "which is never solved. Which average has to come last?"
            )
        if close(value, each):
            raise Hint("That is each context's own Pass@k. Their mean is asked for.")
        if close(value, each.sum()):
            raise Hint("That is a sum over contexts, not a mean.")
        if close(value, (p_correct**k).mean()):
            raise Hint("That is the chance that all k answers are right. One right answer among k is enough.")
        raise Hint(f"It is not right for {where}. First compute Pass@k in a single context.")
    return "On GRPO's path it falls from .99 to .93, where the pooled one shows 1 before and after."


@exercise("03-4")
def kept_ratios(given):
    """By hand: the ratio of two right answers at the optimum of either direction."""
    for direction, ratio in zip(bandits.DIRECTIONS, parts(given, bandits.DIRECTIONS), strict=True):
        best = bandits.optimum(Q, REWARD, BETA, direction)
        truth = (best[0] / best[1]).item()
        typical = {
            1 / truth: "that is the second over the first.",
            1.0: "are both given the same mass? They start with different q.",
            torch.tensor(1 / BETA).exp().item(): "that is right over wrong, for answers that start alike.",
            truth * torch.tensor(1 / BETA).exp().item(): "both answers are right, so the exponential stands in both.",
        }
        value = number(ratio)
        if not close(value, truth, 1e-3):
            otherwise = "by what does the formula multiply q of each? Their rewards are equal."
            raise Hint(f"{direction}: {nearest(value, typical, otherwise)}")
    return "With equal rewards β does not even enter. The next figure shows it for every β."


@cache
def held_out_end(name: str, strength: float) -> dict[int, float]:
    """k -> Pass@k of the held-out contexts after training with a penalty."""
    path = bandits.flow(world(), "grpo", divergences.get(name), strength, frames=2)
    return {k: path.pass_at_k(k, ~world().trained)[-1].item() for k in (1, 64)}


@exercise("03-5")
def equal_outcome(given):
    """Compute the strength at which reverse KL ends at the Pass@1 of Jensen-Shannon at strength 1."""
    strength = number(given)
    if not 0 <= strength < 1000:
        raise Hint("A strength is a number from 0 up; those of the figure go from 0 to 2.")
    wanted, got = held_out_end("js", 1.0), held_out_end("reverse_kl", strength)
    if abs(got[1] - wanted[1]) > NEAR:
        why = "too strong" if got[1] < wanted[1] else "too weak"
        raise Hint(
            f"At strength {strength:g} reverse KL ends at a held-out Pass@1 of {got[1]:.3f}, Jensen-Shannon at {wanted[1]:.3f}: "
            f"the penalty is {why}."
        )
    return (
        f"Pass@1 {got[1]:.3f} and {wanted[1]:.3f}; Pass@64 {got[64]:.3f} (reverse KL) and {wanted[64]:.3f} (Jensen-Shannon). "
        f"At strength 1 reverse KL would end at {held_out_end('reverse_kl', 1.0)[64]:.3f} of Pass@64, paid for in Pass@1."
    )


@exercise("03-6")
def loses(given):
    """Predict which D_pef context RL on the others empties."""
    perfect = world().perfect().nonzero()[:, 0].tolist()
    ends = bandits.flow(world(), "grpo", rehearse="perfect", frames=2).p_correct()
    change = (ends[1] - ends[0])[perfect]
    if choice(given, perfect) != perfect[int(change.argmin())]:
        raise Hint(
            "Shared parameters push the winner of the other contexts here, too. Is that answer right in the context you chose?"
        )
    return "RL never saw that context. Now see what rehearsal does for it."
