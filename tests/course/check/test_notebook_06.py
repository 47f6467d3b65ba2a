"""Wrong answers to the exercises of notebook 06, and what the hint must speak of."""

import torch

from dphrl_lite.course import check

EPS = 1e-6


def f(logp, logp_ref):
    return torch.expm1(logp - logp_ref) - (logp - logp_ref)


WRONG = [
    ("06-1", 1, "the hard problem alone"),
    ("06-1", 3, "still higher"),
    ("06-1", 64, "smaller k"),
    ("06-1", 2.5, "whole number"),
    ("06-2", -0.5, "wrong answer"),
    ("06-2", 0.75, "standard deviation"),
    ("06-2", 1.732, "4 − 1"),
    ("06-2", 3.0, "variance"),
    ("06-2", 1.0, "the mean"),
    ("06-2", 7.0, "three parts"),
    ("06-3", lambda r: (r - r.mean()) / (r.std() + EPS), "other problems"),
    ("06-3", lambda r: (r - r.mean(0)) / (r.std(0) + EPS), "Whose mean"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True), "no finite number"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / (r.std() + EPS), "whose standard deviation"),
    ("06-3", lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, correction=0, keepdim=True) + EPS), "n − 1"),
    ("06-3", lambda r: (r - r.mean(1)) / r.std(1), "RuntimeError"),
    ("06-3", lambda r: r.mean(1), "shape"),
    ("06-4", {"sft": 0, "dph-f": -1}, "At a minimum"),
    ("06-4", {"sft": 1, "dph-f": 0}, "positive slope"),
    ("06-4", {"sft": 0, "dph-f": 0}, "slope of −d"),
    ("06-4", {"sft": -1, "dph-f": -1}, "all three terms"),
    ("06-4", -1, "A dict with the keys"),
    ("06-5", lambda logp, ref, mask: f(logp, ref).mean(), "padding still counts"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).mean(), "but still counted"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).sum() / len(mask), "number of answers"),
    ("06-5", lambda logp, ref, mask: ((f(logp, ref) * mask).sum(1) / mask.sum(1)).mean(), "each answer first"),
    ("06-5", lambda logp, ref, mask: (f(logp, ref) * mask).sum(), "the sum over the tokens"),
    ("06-5", lambda logp, ref, mask: f(ref, logp)[mask].mean(), "upside down"),
    ("06-5", lambda logp, ref, mask: (logp - ref)[mask].mean(), "how many they are"),
]


def test_a_half_filled_dictionary_is_no_answer_yet():
    assert check.answer("06-4", {"sft": -1, "dph-f": ...}).right is None


def test_another_right_way_to_mend_a_function_is_right():
    masked = lambda logp, ref, mask: (f(logp, ref) * mask).sum() / mask.sum()
    grouped = lambda r: torch.stack([(row - row.mean()) / (row.std() + EPS) for row in r])
    assert check.answer("06-5", masked)
    assert check.answer("06-3", grouped)
