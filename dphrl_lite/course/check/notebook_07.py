"""Checks of the exercises of notebook 07, QLoRA at 7B."""

import torch

from dphrl_lite.course.check import Hint, call, close, exercise, nearest, number, parts
from dphrl_lite.objectives import METHODS
from dphrl_lite.scale import costs, lowrank, quantisation

PARAMETERS = 7.6e9


@exercise("07-1")
def held(given):
    """By hand: the memory of five float32 copies of the weights."""
    one, value = PARAMETERS * 4 / 1e9, number(given)
    if abs(value - 5 * one) <= 0.01 * 5 * one:
        return "And not one activation yet: the first bar below is longer."
    typical = {
        one: "That is one copy, the weights themselves. What else does the text count?",
        3 * one: "AdamW keeps two moments of each weight, and the reference is there, too.",
        4 * one: "One of the five is missing. Have you counted the reference model, and both moments?",
        5 * one / 2: "That would be 16 bits for each number. float32 has 32.",
        5 * one / 4: "That many billion numbers. How many bytes has each?",
        5 * one * 8: "Those are gigabits; a byte has 8 bits.",
        5 * one * 1e9 / 2**30: "Take a GB as 10⁹ bytes, as the kit does, not 2³⁰.",
    }
    raise Hint(nearest(value, typical, "Copies x numbers in each x bytes of each number, in units of 10⁹ bytes."))


@exercise("07-2")
def blocks(given):
    """Mend a round trip through four bits that has one scale for the whole matrix."""
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(7))
    weight[0, 3], weight[2, 64:] = -40.0, 0.0  # an outlier, and a block of zeros
    for block in (64, 32):
        back, wanted = call(given, weight, block), quantisation.round_trip(weight, "int4", block)
        if not torch.is_tensor(back) or back.shape != weight.shape:
            raise Hint("The weights have to come back as a tensor of the shape that they had.")
        if back.isnan().any():
            raise Hint("A block of zeros comes back as nan: its largest weight is 0. Divide by a tiny number instead.")
        if not close(back, wanted, 1e-5):
            raise Hint(_what_is_wrong(back, weight, block))
    return "Now the outlier spoils its own block only."


def _what_is_wrong(back: torch.Tensor, weight: torch.Tensor, block: int) -> str:
    if close(back, quantisation.round_trip(weight, "int4", weight.numel()), 1e-5):
        return (
            "One weight of 40 is the scale of all weights, and nearly all of them come back as 0. Who shares a scale?"
        )
    if close(back, quantisation.round_trip(weight, "int4", weight.shape[1]), 1e-5):
        return f"Each row has a scale of its own. Asked for is one for each {block} weights, the argument `block`."
    if back.abs().max() <= 1:
        return "The weights come back in units of their block's largest. Multiply by it again."
    if (back[0, :block] - quantisation.round_trip(weight, "int4", block)[0, :block]).abs().max() > 1:
        return "The outlier is negative and does not come back as it was. Is the largest weight taken by its size?"
    return f"With blocks of {block}, some weights come back otherwise than with a scale for each block of {block}."


SINGULAR = (6.0, 3.0, 2.0)


@exercise("07-3")
def kept(given):
    """By hand: what share of a change the best matrix of rank 2 keeps."""
    s, value = torch.tensor(SINGULAR), number(given)
    shares = lowrank.shares({"change": s})["change"]
    if close(value, shares[2], 0.003):
        return "Two of three directions, and nearly all of the change: squares count."
    typical = {
        (s[:2].sum() / s.sum()).item(): "You added singular values. The share is of ‖ΔW‖², the sum of their squares.",
        shares[2] ** 0.5: "That is the share of the norm. Its square is asked for.",
        1 - shares[2]: "That is what is lost.",
        shares[1]: "That is rank 1, the largest alone.",
        shares[2] - shares[1]: "That is the second alone. Rank 2 keeps the first as well.",
        100 * shares[2]: "Give a share between 0 and 1, not per cent.",
    }
    raise Hint(
        nearest(
            value, typical, "Square the singular values. Which squares does rank 2 keep, and what do all add up to?"
        )
    )


HELD = {f"{what}, {method}": (what, method) for what in ("all weights", "adapter") for method in ("dph-js", "rkl")}


@exercise("07-4")
def models_held(given):
    """Predict how many models are in memory, by what is trained and by which method."""
    for (name, (what, method)), count in zip(HELD.items(), parts(given, HELD), strict=True):
        models = 1 + (METHODS[method].needs_reference and what == "all weights")
        if number(count) == models:
            continue
        if not METHODS[method].needs_reference:
            raise Hint(f"{name!r}: for what would this method ask a reference model? Its log-probabilities are stored.")
        if what == "adapter":
            raise Hint(f"{name!r}: what is left of the policy when its adapter is switched off?")
        raise Hint(f"{name!r}: the weights have moved. Where are those from before training?")
    return "Now run the cells below and see."


@exercise("07-5")
def break_even(given):
    """Compute at how many rehearsed answers DPH-JS costs as much as reverse KL."""
    batch, value = costs.Batch(), number(given)
    fresh, read, train = batch.problems * batch.samples, costs.FORWARD, costs.TRAIN["qlora"]
    reference = costs.flops("rkl", 1.0, batch)["reference"]
    at = reference / costs.flops("dph-js", 1.0, costs.Batch(rehearsed=1))["rehearsal"]
    if abs(value - at) <= 1:
        return "Below it DPH-JS does less work than reverse KL, above it more. The release's 256 lie below."
    typical = {
        fresh: "Reading a token costs 2N, training on one 6N: they are not worth the same.",
        fresh * train / read: "The other way round: a rehearsed token costs more than one that the reference reads.",
        batch.problems * read / train: "Those are problems. Each has 16 answers, and the reference reads them all.",
        batch.rehearsed: "That is the default. At which number are the two costs equal?",
        fresh * read / (train + read): "Rehearsed tokens are trained on at 6N; that is all that they cost.",
    }
    raise Hint(
        nearest(
            value, typical, "Set the cost of the reference, over all fresh tokens, equal to that of rehearsal.", 0.002
        )
    )
