"""Wrong answers to the exercises of notebook 03, and what the hint must speak of."""

import math

KEPT = {"reverse_kl": 4.0, "forward_kl": 4.0}
WRONG = [
    ("03-1", 0.163, "standard deviation"),
    ("03-1", 0.16, "likelier right answer"),
    ("03-1", -0.08, "the sign"),
    ("03-1", 0.2, "sum over all b"),
    ("03-1", 0.4, "How often is it sampled"),
    ("03-1", -0.12, "of a wrong answer"),
    ("03-1", 3, "Put p and r"),
    ("03-2", 16, "which logits rise"),
    ("03-2", 32, "which logits rise"),
    ("03-2", 0.5, "number of contexts"),
    ("03-2", 33, "between 0 and 32"),
    ("03-3", lambda p, k: 1 - (1 - p.mean()) ** k, "lend its answers"),
    ("03-3", lambda p, k: 1 - (1 - p).mean() ** k, "lend its answers"),
    ("03-3", lambda p, k: 1 - (1 - p) ** k, "each context's own"),
    ("03-3", lambda p, k: (1 - (1 - p) ** k).sum(), "not a mean"),
    ("03-3", lambda p, k: (p**k).mean(), "all k answers are right"),
    ("03-3", lambda p, k: p.mean(), "in a single context"),
    ("03-4", KEPT | {"reverse_kl": 0.25}, "reverse_kl: that is the second over the first"),
    ("03-4", KEPT | {"forward_kl": 0.25}, "forward_kl: that is the second over the first"),
    ("03-4", KEPT | {"forward_kl": 1}, "different q"),
    ("03-4", KEPT | {"reverse_kl": math.exp(10)}, "right over wrong"),
    ("03-4", KEPT | {"reverse_kl": 4 * math.exp(10)}, "stands in both"),
    ("03-4", KEPT | {"reverse_kl": math.inf}, "reverse_kl: by what"),
    ("03-4", 4, "A dict with the keys"),
    ("03-5", 1, "too strong"),
    ("03-5", 0.5, "too strong"),
    ("03-5", 0, "too weak"),
    ("03-5", -1, "from 0 up"),
    ("03-6", 0, "Is that answer right"),
    ("03-6", 15, "Is that answer right"),
    ("03-6", 4, "Choose one of"),
]
