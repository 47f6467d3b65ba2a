"""What is a thought's tag, and what is a comparison in a query."""

import pytest

from dphrl_lite.tasks.completions import without_thoughts


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM t WHERE score < analysis AND reason > 1",
        "WHERE a <reason AND b> 1",
        "WHERE a < think > b",
        "if x < cot\nthen y > 1",
    ],
)
def test_a_comparison_with_a_column_named_like_a_thought_is_no_tag(text):
    assert without_thoughts(text) == (text, False)


@pytest.mark.parametrize("tag", ["<think>", '<think duration="3 s">', "<Reasoning  id=1 >", "<thinking\n>"])
def test_a_tag_may_have_attributes(tag):
    assert without_thoughts(f"{tag}a</{tag[1:].split()[0].strip('>')}>b") == ("\nb", False)
