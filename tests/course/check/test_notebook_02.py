"""Wrong answers to the exercises of notebook 02, and what the hint must speak of."""

import torch

FILTERED = {"mean of u": 1.2, "P(correct)": "falls"}


def penalty(log_ratio, loss=lambda log_u: torch.exp(log_u) - 1 - log_u, mean=lambda f, mask: f[mask].mean()):
    """A penalty by its parts: log u, f, and how tokens are averaged."""
    return lambda logp, logp_ref, mask: mean(loss(log_ratio(logp, logp_ref)), mask)


right = lambda p, q: p - q
swapped = lambda p, q: q - p
forward = lambda log_u: torch.exp(log_u) - 1 - log_u
WRONG = [
    ("02-1", "k2", "Differentiate its loss"),
    ("02-1", "k3", "Differentiate its loss"),
    ("02-1", "k4", "Choose one of"),
    ("02-2", 0.29, "the sign"),
    ("02-2", -29, "How often is C drawn"),
    ("02-2", 29, "minus the factor"),
    ("02-2", -0.2871, "samples of A and B"),
    ("02-2", 0.99 * -29, "what do A and B do"),
    ("02-2", 7, "Sum over all three"),
    ("02-3", ["forward_kl", "k1-reward", "k2"], "k2: the square of a sum"),
    ("02-3", ["k3"], "its value stays"),
    ("02-3", ["forward_kl", "js"], "js: a bounded or curved"),
    ("02-3", ["js-definition", "js-naive"], "js-definition, js-naive: the mean"),
    ("02-3", ["forward_kl"], "not they alone"),
    ("02-3", {"k1-reward"}, "not they alone"),
    ("02-3", ["kl"], "list of names"),
    ("02-4", FILTERED | {"mean of u": 1}, "mean over all stored"),
    ("02-4", FILTERED | {"mean of u": 0.8333}, "upside down"),
    ("02-4", FILTERED | {"mean of u": 0.15}, "not a difference"),
    ("02-4", FILTERED | {"mean of u": 0.9}, "policy's P(correct)"),
    ("02-4", FILTERED | {"mean of u": 3}, "By which"),
    ("02-4", FILTERED | {"P(correct)": "rises"}, "which way is downhill"),
    ("02-4", FILTERED | {"P(correct)": "stays"}, "which way is downhill"),
    ("02-4", FILTERED | {"P(correct)": "down"}, "Choose one of"),
    ("02-5", penalty(swapped), "less likely than the reference has u < 1"),
    ("02-5", penalty(swapped, lambda log_u: -forward(log_u)), "negative"),
    ("02-5", penalty(right, lambda log_u: -forward(log_u)), "negative"),
    ("02-5", penalty(right, lambda log_u: -log_u), "plain -log u"),
    ("02-5", penalty(right, mean=lambda f, mask: f[mask].sum()), "not the sum"),
    ("02-5", penalty(right, mean=lambda f, mask: f.mean()), "padding"),
    ("02-5", penalty(right, lambda log_u: log_u**2 / 2), "log u = 0.1, 0.4, -0.5 your loss is"),
    ("02-5", penalty(right, lambda log_u: forward(log_u.clamp(min=-5))), "log u = -0.1, 0.5, -12.5 your loss is"),
    ("02-5", penalty(right, mean=lambda f, mask: f), "One number"),
    ("02-5", penalty(right, mean=lambda f, mask: f[mask].mean().item()), "no gradient"),
    ("02-5", penalty(right, lambda log_u: torch.exp(log_u).detach() - 1 - log_u), "its gradient is not"),
]
