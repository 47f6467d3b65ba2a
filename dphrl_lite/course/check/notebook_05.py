"""Checks of the exercises of notebook 05, pre-sampling."""

import math

import numpy as np
import pandas as pd
import torch

from dphrl_lite import divergences, presampling
from dphrl_lite.course.check import Hint, call, close, exercise, nearest, number, parts

VERDICTS = {"A": "11110000", "B": "01111111", "C": "11111100", "D": "11100111", "E": "00000001", "F": "00000000"}
RULES = {"6 of 8": (8, 6), "4 of the first 4": (4, 4)}  # answers that are looked at, threshold


@exercise("05-1")
def two_rules(given):
    """By hand: which problems are near-perfect under the two rules of the release?"""
    for (rule, (looked_at, threshold)), names in zip(RULES.items(), parts(given, RULES), strict=True):
        if not isinstance(names, list | tuple | set | str) or not set(names) <= set(VERDICTS):
            raise Hint(f"Under {rule!r}, give a list of letters out of {', '.join(VERDICTS)}.")
        right = [verdicts[:looked_at].count("1") for verdicts in VERDICTS.values()]
        perfect = presampling.partition_counts(looked_at, right, threshold).perfect
        for place, name in enumerate(VERDICTS):
            if name in names and place not in perfect:
                raise Hint(f"{rule}: {name} has {right[place]} right among the {looked_at} that this rule looks at.")
            if name not in names and place in perfect:
                raise Hint(f"{rule}: {name} is missing. The rule says at least, and does not look beyond its answers.")
    return "Neither rule contains the other: the script's is shorter, not stricter."


def at_least(threshold: int, samples: int, rate: float = 0.5) -> float:
    """The chance of so many right answers or more."""
    counts = range(threshold, samples + 1)
    return sum(math.comb(samples, c) * rate**c * (1 - rate) ** (samples - c) for c in counts)


@exercise("05-2")
def by_luck(given):
    """Compute how often a problem that is solved every other time looks near-perfect."""
    thresholds = {8: 6, 32: 24}
    for (samples, threshold), value in zip(thresholds.items(), parts(given, thresholds), strict=True):
        value, luck = number(value), at_least(threshold, samples)
        if close(value, luck, min(0.003, luck / 5)):
            continue
        typical = {
            luck - at_least(threshold + 1, samples): "That is the chance of exactly that many. More would do as well.",
            at_least(threshold + 1, samples): "That is the chance of more than the threshold. At least is asked for.",
            1 - luck: "That is the chance of fewer: the problem does not look near-perfect.",
            0.5**threshold: "You ask for so many in a row. Which of the answers are right does not matter.",
            100 * luck: "Give a probability between 0 and 1, not per cent.",
        }
        hint = nearest(value, typical, "Sum the binomial terms from the threshold on.")
        raise Hint(f"K = {samples}: {hint}")
    return "Four times as many samples, and luck has nearly gone: that is what a larger K buys."


def rollouts(**right: int) -> pd.DataFrame:
    """Eight answers to each problem, so many of them right, not the first ones."""
    rows = [(name, i, i >= 8 - c) for name, c in right.items() for i in range(8)]
    return pd.DataFrame(rows, columns=["problem_id", "sample", "correct"])


@exercise("05-3")
def buffer(given):
    """Mend a rehearsal buffer that holds wrong answers and drops problems at the threshold."""
    drawn = rollouts(a=8, b=6, c=5, d=0, e=7)
    for table, threshold in ((drawn, 6), (drawn, 5), (drawn, 8), (rollouts(c=5, d=0), 6)):
        kept = call(given, table, threshold)
        if not isinstance(kept, pd.DataFrame) or not set(table.columns) <= set(kept.columns):
            raise Hint("Your function has to return rows of the table `rollouts`, with all their columns.")
        _compare(kept, table, threshold)
    return "Right answers to problems of D_pef, and nothing else."


def _compare(kept: pd.DataFrame, table: pd.DataFrame, threshold: int):
    found, all_rows = (set(zip(t["problem_id"], t["sample"], strict=True)) for t in (kept, table[table["correct"]]))
    rehearsal = presampling.partition(table, threshold).rehearsal
    wanted = set(zip(rehearsal["problem_id"], rehearsal["sample"], strict=True))
    right = table.groupby("problem_id")["correct"].sum()
    if found - all_rows:
        raise Hint("The buffer holds wrong answers. To what would the policy be held?")
    if missing := {name for name, _ in wanted - found}:
        count = min(right[name] for name in missing)
        raise Hint(f"At threshold {threshold} the answers to a problem with {count} right of 8 are missing.")
    if extra := {name for name, _ in found - wanted}:
        count = min(right[name] for name in extra)
        raise Hint(f"At threshold {threshold} the buffer holds answers to a problem with {count} right of 8.")
    if len(kept) != len(wanted):
        raise Hint("Some answers are in your buffer twice.")


TOKENS = ("3", "*", "2", "+", "8", "-", "1", "<eos>")


@exercise("05-4")
def halved(given):
    """Predict what the penalty says when each of an answer's tokens has become half as likely."""
    tokens, f = len(TOKENS), divergences.get("js").f
    at = lambda log_u: f(torch.tensor(log_u)).item()
    whole, penalty = map(number, parts(given, ("whole answer", "penalty")))
    if not close(whole, 0.5**tokens, 1e-4):
        typical = {0.5: "that is one token", 0.5 ** (tokens - 1): "stopping is a token, too"}
        typical |= {
            tokens * 0.5: "probabilities of tokens multiply",
            2.0**tokens: "policy over reference, not the other way round",
        }
        typical |= {tokens * math.log(0.5): "that is log u; u is asked for"}
        why = nearest(whole, typical, "what does each token contribute to the answer's probability?", 1e-4)
        raise Hint(f"`whole answer`: {why}.")
    if not close(penalty, at(math.log(0.5)), 1e-3):
        typical = {tokens * at(math.log(0.5)): "the penalty is a mean over tokens, not a sum"}
        typical |= {
            at(tokens * math.log(0.5)): "f is taken of each token's u, then the mean; not of the whole answer's u"
        }
        typical |= {at(0.5): "`f` takes log u, not u"}
        why = nearest(penalty, typical, "put the log u of one token into `divergences.get('js').f`")
        raise Hint(f"`penalty`: {why}.")
    return (
        "The penalty sees tokens: an answer that has become so rare costs no more than one token would that lost half."
    )


TOP_P, NEXT = 0.95, (0.90, 0.06, 0.04)


@exercise("05-5")
def top_p(given):
    """By hand: the ratio of an untrained policy to log-probabilities that were stored under top-p."""
    before = np.cumsum(NEXT) - NEXT
    kept = sum(p for p, earlier in zip(NEXT, before, strict=True) if earlier < TOP_P)
    u, value = NEXT[0] / (NEXT[0] / kept), number(given)
    if close(value, u, 1e-3):
        return "Every token that was drawn looks as if training had made it rarer. Nothing was trained."
    typical = {
        1.0: "That holds where the stored log-probability is `logp`. Here it is the one that the token was drawn with.",
        1 / u: "Policy over what is stored, not the other way round.",
        TOP_P: "The nucleus reaches top-p, and may exceed it. Which tokens are in it, and how likely are they together?",
        NEXT[0]: "Drawn from the nucleus, the first token is more likely than that: divide by what was kept.",
        NEXT[0] / kept: "That is the probability that it was drawn with. What is the policy's, divided by it?",
        math.log(u): "That is log u; u is asked for.",
    }
    raise Hint(nearest(value, typical, "Which tokens can be drawn at all, and how likely is each then?", 1e-3))
