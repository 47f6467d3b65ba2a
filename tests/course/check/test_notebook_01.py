"""Wrong answers to the exercises of notebook 01, and what the hint must speak of."""

import math

import torch

PRICE = {"forward_kl": math.inf, "reverse_kl": -math.log(0.7)}
WRONG = [
    ("01-1", "reverse_kl", "without bound"),
    ("01-1", "js", "without bound"),
    ("01-1", "wasserstein", "Choose one of"),
    ("01-2", {"forward_kl": 0.36, "reverse_kl": math.inf}, "other direction"),
    ("01-2", PRICE | {"forward_kl": 0.3}, "forward_kl: look at the term of C"),
    ("01-2", PRICE | {"reverse_kl": math.log(0.7)}, "sign"),
    ("01-2", PRICE | {"reverse_kl": -math.log2(0.7)}, "in bits"),
    ("01-2", PRICE | {"reverse_kl": -0.7 * math.log(0.7)}, "weighted with q"),
    ("01-2", PRICE | {"reverse_kl": math.inf}, "0 log 0"),
    ("01-2", PRICE | {"reverse_kl": -math.log(0.3)}, "keeping C alone"),
    ("01-2", PRICE | {"reverse_kl": 5.0}, "the same for A and for B"),
    ("01-2", math.inf, "A dict with the keys"),
    ("01-3", 0.05, "wrong way round"),
    ("01-3", 0.1, "at one η"),
    ("01-3", 1.0, "has to be the same for both"),
    ("01-4", 0.35, "seeks one mode"),
    ("01-4", 0.5, "further to the left"),
    ("01-4", 40, "a share between"),
    ("01-4", 0.42, "in steps of 0.05"),
    ("01-5", lambda log_u: (torch.sqrt(log_u) - 1) ** 2, "u, or log u"),
    ("01-5", lambda log_u: (log_u / 2 - 1) ** 2, "u, or log u"),
    ("01-5", lambda log_u: (torch.exp(log_u) - 1) ** 2, "Where is the root"),
    ("01-5", lambda log_u: log_u / log_u.exp().sqrt() * (log_u > -1) / (log_u > -1), "nan or inf"),
    ("01-5", lambda log_u: (log_u / 2) ** 2, "charges 1"),
    ("01-5", lambda log_u: 0.0, "as many values"),
]
