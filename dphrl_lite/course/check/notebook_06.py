"""Checks of the exercises of notebook 06, hybrid training."""

import numpy as np
import torch

from dphrl_lite import passk
from dphrl_lite.course.check import Hint, call, close, exercise, nearest, number, parts
from dphrl_lite.objectives import METHODS, group_advantages, rehearsal_loss

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
