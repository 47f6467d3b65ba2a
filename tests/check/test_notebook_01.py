"""Wrong answers to the exercises of notebook 01, and what the hint must speak of."""

import pytest

from dphrl_lite import check

WRONG = [
    ("01-1", "reverse_kl", "without bound"),
    ("01-1", "js", "without bound"),
    ("01-1", "wasserstein", "Choose one of"),
]


@pytest.mark.parametrize(("exercise", "given", "told"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(exercise, given, told):
    result = check.answer(exercise, given)
    assert result.right is False
    assert told in result.message
