"""Checks of the exercises of notebook 01, divergence geometry."""

import math

import torch

from dphrl_lite import divergences, figures
from dphrl_lite.course.check import Hint, call, choice, close, exercise, nearest, number, parts
from dphrl_lite.lab import toys

REFERENCE, DYING = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.55, 0.449, 0.001])  # as in the notebook
COMPARED = ("forward_kl", "js", "alpha", "reverse_kl")
STEP, LEAST, MOST = 0.05, 0.05, 0.95  # of the explorer's slider of the left mode's mass


@exercise("01-1")
def largest(given):
    """Predict which divergence charges most for the dying answer."""
    values = {name: divergences.get(name).exact(DYING, REFERENCE).item() for name in COMPARED}
    if choice(given, COMPARED) != max(values, key=values.get):
        raise Hint("Answer C has u = p/q close to 0. Which f(u) in the table grows without bound as u falls to 0?")
    return "Now run the next cell and see by how much."


@exercise("01-2")
def price_of_dropping(given):
    """By hand: what the two KLs charge for a policy that has dropped answer C."""
    names = ("forward_kl", "reverse_kl")
    dropped = torch.cat([REFERENCE[:2], torch.zeros(1)]) / REFERENCE[:2].sum()
    prices = [divergences.get(name).exact(dropped, REFERENCE).item() for name in names]
    answers = [number(value) for value in parts(given, names)]
    if close(answers, prices[::-1], 0.01):
        raise Hint("The prices are those of the other direction each. Whose probabilities weight the logarithms in it?")
    if not close(answers[0], prices[0]):
        raise Hint("forward_kl: look at the term of C. It weighs q = 0.3; what is the logarithm of q/p when p is 0?")
    if math.isinf(answers[1]):
        raise Hint("reverse_kl: the term of C is p log(p/q) with p = 0, and 0 log 0 = 0.")
    typical = {
        -prices[1]: "its sign: u of A and B is above 1. No divergence is negative.",
        prices[1] / math.log(2): "that is in bits. A nat goes with the natural logarithm.",
        prices[1] * REFERENCE[:2].sum().item(): "you weighted with q. In this direction p weights, and p sums to 1.",
        -math.log(REFERENCE[2]): "that is the price of keeping C alone. Which u have A and B?",
    }
    if not close(answers[1], prices[1], 0.01):
        raise Hint(f"reverse_kl: {nearest(answers[1], typical, 'u is the same for A and for B. How large is it?')}")
    return "Dropping answers of mass m costs reverse KL no more than -log(1 - m): that is how it comes to seek modes."


@exercise("01-3")
def same_hold(given):
    """By hand: the strength of Jensen-Shannon that holds small steps as forward KL does at 0.1."""
    curvatures = [divergences.get(name).curvature for name in ("forward_kl", "js")]
    eta = 0.1 * curvatures[0] / curvatures[1]
    typical = {
        0.1
        * curvatures[1]
        / curvatures[0]: "that is the wrong way round. Does the flatter f need more strength, or less?",
        0.1: "at one η the two hold small steps differently: compare their rows in the column f″(1).",
    }
    if not close(number(given), eta, 1e-3):
        otherwise = "η f″(1) has to be the same for both. The table above has f″(1)."
        raise Hint(nearest(number(given), typical, otherwise))
    return "This is a fair first comparison, not the last word: far from u = 1 the two still differ."


def covers(weight: float) -> bool:
    """Whether Jensen-Shannon's best Gaussian covers both modes of the explorer's target."""
    target = toys.Modes(weight=weight)
    return figures.coverage(toys.best_fit("js", target=target), target).startswith("covers")


@exercise("01-4")
def lightest_covered_mode(given):
    """Read off the explorer: the lightest left mode that Jensen-Shannon still covers."""
    weight = number(given)
    if not LEAST <= weight <= MOST or not close(weight / STEP, round(weight / STEP)):
        raise Hint(f"Give a place of the slider, a share between {LEAST} and {MOST} in steps of {STEP}.")
    if not covers(weight):
        raise Hint("At that mass the best fit seeks one mode: read the line under the figure's title, step by step.")
    if weight > LEAST and covers(round(weight - STEP, 2)):
        raise Hint("It covers both there, and one step further to the left as well.")
    return "A bounded price covers only modes that are not too unequal. Forward KL covers at every place of the slider."


@exercise("01-5")
def hellinger(given):
    """Mend a squared Hellinger distance that takes log u for u."""
    log_u = torch.tensor([-30.0, -2.0, -0.5, 0.0, 0.7, 4.0], dtype=torch.float64)
    values, f = call(given, log_u), divergences.get("hellinger").f
    if not hasattr(values, "shape") or values.shape != log_u.shape:
        raise Hint("For a tensor of log u, return a tensor of as many values: work elementwise, with torch.")
    if close(values, f(log_u)):
        return "`Divergence` adds what makes it canonical, and `register` would take it."
    if close(values, divergences.get("pearson_chi2").f(log_u)):
        raise Hint("That is (u - 1)². Where is the root?")
    if not close(values[3], 0.0):
        raise Hint(
            f"At log u = 0, u is 1 and f has to be 0; yours gives {values[3]:.3g}. Is what comes in u, or log u?"
        )
    if not torch.isfinite(values).all():
        raise Hint("For some log u it gives nan or inf. What comes in is negative wherever p < q; u itself never is.")
    raise Hint(f"At u = 0 squared Hellinger charges 1; for log u = -30 yours gives {values[0]:.3g}.")
