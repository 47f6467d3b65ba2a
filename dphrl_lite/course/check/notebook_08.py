"""Checks of the exercises of notebook 08, Pass@k analysis. What is read off the shipped runs is judged by them."""

from functools import cache
from math import comb

import numpy as np

from dphrl_lite import passk
from dphrl_lite.course.check import Hint, call, choice, close, exercise, nearest, number, parts
from dphrl_lite.study import conclusions, frontier

COUNTS = ((64, 22, 4), (4, 1, 2), (16, 0, 8), (16, 16, 1), (64, 1, 64), (10, 8, 5))  # n, c, k; the last: k > n − c
FRONTS = {"A": ((0.40, 0.44), (0.97, 0.93)), "B": ((0.36, 0.42), (0.98, 0.92))}  # Pass@1, Pass@64, as in the notebook
VERDICTS = ("holds", "does not hold", "cannot be told")
INTERVALS = {
    "more than GRPO": (-0.004, 0.044, 0.0),
    "keeps base": (-0.008, 0.001, 0.01),
    "reaches GRPO": (-0.041, -0.019, 0.01),
}


@exercise("08-1")
def unbiased(given):
    """A function for Pass@k without replacement."""
    for n, c, k in COUNTS:
        found, truth = call(given, n, c, k), passk.pass_at_k(n, c, k)
        if close(found, truth, 1e-6):
            continue
        if close(found, passk.with_replacement(n, c, k), 1e-6):
            raise Hint(
                f"For n, c, k = {n}, {c}, {k}: this puts every answer back before the next is drawn. In how many ways can "
                "k different answers be drawn of n? In how many of them is none right?"
            )
        if close(found, 1 - truth, 1e-6):
            raise Hint("That is the chance that none of the k answers is right.")
        if close(found, 1 - comb(c, k) / comb(n, k), 1e-6):
            raise Hint("You count the draws of k right answers. Which answers are drawn where none is right?")
        raise Hint(
            f"For n, c, k = {n}, {c}, {k} the number is wrong. What happens where fewer than k answers are wrong?"
        )
    return "It is unbiased for every k up to n."


@cache
def _distinct(domain: str, method: str) -> float:
    return float(conclusions.values(frontier.read()[0], domain, (method, None), "distinct").to_numpy().mean())


@exercise("08-2")
def ways_kept(given):
    """The share of the base model's different right answers to sql that GRPO still gives."""
    share = number(given)
    base, grpo = (_distinct("sql", method) for method in ("base", "grpo"))
    elsewhere = _distinct("countdown", "grpo") / _distinct("countdown", "base")
    wrongs = {
        100 * grpo / base: "A share lies between 0 and 1; this looks like per cent.",
        base / grpo: "Which of the two stands below the line? The base model is the whole.",
        1 - grpo / base: "That is the share which was lost.",
        elsewhere: "That is countdown. Look at the rows of sql.",
    }
    if close(share, grpo / base, 0.015):
        return "Pass@64 hardly noticed: one way to be right is enough for it."
    if 0.95 < share <= 1:
        raise Hint("Nearly all: that is Pass@64, or the column next to the right one. Look at `distinct`.")
    general = "Two numbers of the column `distinct`, domain sql: divide the one of grpo by the one of base."
    raise Hint(nearest(share, wrongs, general, 0.015))


@exercise("08-3")
def forgotten_by_chance(given):
    """How many problems compare() calls forgotten when a model is compared with itself."""
    coins = passk.Outcomes.from_counts(64, [32] * 200)
    found, truth = number(given), passk.compare(coins, coins, 1)
    if close(found, truth["forget"], 0.005):
        return "And as many are gained. Forgetting means more than that: look at large k, or at forget minus gain."
    if found == 0:
        raise Hint(
            "The model is the same, but the two draws are not. Toss a coin for the first, and one for the second."
        )
    if close(found, truth["keep"] + truth["forget"], 0.005):
        raise Hint("So many are solved in the first draw. How many of those fail in the second?")
    if 0 < found < 1 or close(found, 100 * truth["forget"] / len(coins), 0.005):
        raise Hint("That is a share. A number of problems is asked for, of 200.")
    raise Hint(
        "A problem is forgotten if it is solved in the first draw and not in the second: two chances, multiplied."
    )


@exercise("08-4")
def at_equal_pass_at_1(given):
    """How far one front lies above another, over the Pass@1 that both reach."""
    found, (a, b) = number(given), FRONTS.values()
    at = np.linspace(max(a[0][0], b[0][0]), min(a[0][1], b[0][1]), 21)
    truth = float(np.mean(np.interp(at, *a) - np.interp(at, *b)))
    if close(found, truth, 0.002):
        return "Compared strength by strength the two looked the same; at equal Pass@1 they are not."
    if close(found, -truth, 0.002):
        raise Hint("The size is right. A minus B is asked for: which line is the upper one?")
    if close(found, 100 * truth, 0.002):
        raise Hint("Write it as a share, as Pass@64 is: .97, not 97.")
    if min(abs(found - gap) for gap in (0.0, a[1][0] - b[1][0], a[1][1] - b[1][1])) < 0.002:
        raise Hint(
            "You compare the points in pairs, but they stand at different Pass@1. Which Pass@1 do both lines reach?"
        )
    raise Hint("Draw both lines. At A's weaker Pass@1, how high is B's line? It lies between B's two points.")


@exercise("08-5")
def equal_cost(given):
    """How many steps two methods can take for the cost of 200 of GRPO's, in forward passes of one token."""
    fresh, stored, steps = 512, 128, 200
    grpo = fresh * (1 + 3)
    costs = {"rkl": fresh * (1 + 3 + 1), "dph-f": fresh * (1 + 3) + stored * 3}
    for (method, cost), said in zip(costs.items(), parts(given, costs), strict=True):
        found, truth = number(said), steps * grpo / cost
        if close(found, truth, 0.01):
            continue
        if close(found, steps * cost / grpo, 0.01):
            raise Hint(f"{method!r} is dearer by the step. Can it take more steps for the same cost, or fewer?")
        if method == "dph-f" and close(found, steps * grpo / (grpo + stored * 4), 0.01):
            raise Hint("'dph-f': the stored answers were sampled long ago. What do they still cost?")
        if method == "dph-f" and close(found, steps * grpo / (grpo + stored * 3 + fresh), 0.01):
            raise Hint("'dph-f': who scores its answers by the reference? Their log-probabilities are stored.")
        raise Hint(
            f"{method!r}: add up what an answer costs a step, times the number of answers; 200 of GRPO's steps cost "
            f"200 × 512 × (1 + 3)."
        )
    return "At equal steps the dearer methods had more computation: a fair table says which of the two is equal."


@exercise("08-6")
def verdicts(given):
    """What three intervals say about three claims."""
    for (claim, (low, high, within)), said in zip(INTERVALS.items(), parts(given, INTERVALS), strict=True):
        truth = conclusions.verdict(low, high, within)
        if choice(said, VERDICTS) == truth:
            continue
        if low <= -within <= high:
            raise Hint(f"{claim!r}: the interval holds differences that fit the claim, and others that do not.")
        if within and conclusions.verdict(low, high, 0) == said:
            raise Hint(f"{claim!r}: you may lose a point and still be right. Where does that put the border?")
        raise Hint(f"{claim!r}: mark the interval on a line. On which side of the claim's border does all of it lie?")
    return "An interval on both sides of the border is no evidence for either."
