"""Wrong answers to the exercises of notebook 07, and what the hint must speak of."""

import pytest
import torch

from dphrl_lite.course import check
from dphrl_lite.scale import quantisation


def by_matrix(weight, block=64):
    largest = weight.abs().max()
    return (weight / largest * 7).round() / 7 * largest


def scaled(weight, largest):
    return (weight / largest * 7).round() / 7 * largest


def by_row(weight, block=64):
    return scaled(weight, weight.abs().amax(1, keepdim=True).clamp_min(1e-12))


def with_nan(weight, block=64):
    rows = weight.reshape(-1, block)
    return scaled(rows, rows.abs().amax(1, keepdim=True)).reshape(weight.shape)


def without_sign(weight, block=64):
    rows = weight.reshape(-1, block)
    return (rows / rows.amax(1, keepdim=True).clamp_min(1e-12) * 7).round().clamp(-7, 7).reshape(weight.shape) / 7


def signed(weight, block=64):
    rows = weight.reshape(-1, block)
    largest = rows.amax(1, keepdim=True).clamp_min(1e-12)
    return ((rows / largest * 7).round().clamp(-7, 7) / 7 * largest).reshape(weight.shape)


def of_64(weight, block=64):
    return quantisation.round_trip(weight, "int4", 64)


ONE = 7.6 * 4
HELD = {"all weights, dph-js": 1, "all weights, rkl": 2, "adapter, dph-js": 1, "adapter, rkl": 1}
WRONG = [
    ("07-1", ONE, "one copy"),
    ("07-1", 3 * ONE, "two moments"),
    ("07-1", 4 * ONE, "One of the five is missing"),
    ("07-1", 2.5 * ONE, "16 bits"),
    ("07-1", 5 * 7.6, "How many bytes"),
    ("07-1", 40 * ONE, "gigabits"),
    ("07-1", 5 * ONE / 1.073741824, "10⁹ bytes"),
    ("07-1", 7, "Copies x numbers"),
    ("07-2", by_matrix, "Who shares a scale"),
    ("07-2", by_row, "Each row"),
    ("07-2", with_nan, "nan"),
    ("07-2", without_sign, "Multiply by it again"),
    ("07-2", signed, "taken by its size"),
    ("07-2", of_64, "blocks of 32"),
    ("07-2", lambda weight, block: quantisation.scaled(weight, block), "shape that they had"),
    ("07-3", 9 / 11, "sum of their squares"),
    ("07-3", (45 / 49) ** 0.5, "share of the norm"),
    ("07-3", 4 / 49, "what is lost"),
    ("07-3", 36 / 49, "rank 1"),
    ("07-3", 9 / 49, "second alone"),
    ("07-3", 4500 / 49, "not per cent"),
    ("07-3", 0.5, "Square the singular values"),
    ("07-4", HELD | {"adapter, rkl": 2}, "switched off"),
    ("07-4", HELD | {"all weights, rkl": 1}, "before training"),
    ("07-4", HELD | {"all weights, dph-js": 2}, "are stored"),
    ("07-4", HELD | {"adapter, dph-js": 0}, "are stored"),
    ("07-4", {"adapter": 1}, "A dict with the keys"),
    ("07-5", 2048, "not worth the same"),
    ("07-5", 6144, "The other way round"),
    ("07-5", 128 / 3, "Those are problems"),
    ("07-5", 256, "the default"),
    ("07-5", 512, "at 6N"),
    ("07-5", 1000, "equal to that of rehearsal"),
]


RIGHT = [
    ("07-1", 152),
    ("07-1", 5 * ONE),
    ("07-3", 45 / 49),
    ("07-3", 0.918),
    ("07-4", HELD),
    ("07-5", 683),
    ("07-5", 2048 / 3),
]


@pytest.mark.parametrize(("exercise", "given"), RIGHT)
def test_a_right_answer_passes_as_does_one_that_is_rounded(exercise, given):
    assert check.answer(exercise, given)


def test_a_mended_round_trip_passes_whatever_it_does_with_tensors():
    assert check.answer("07-2", lambda weight, block: quantisation.round_trip(weight, "int4", block).to(torch.float64))
