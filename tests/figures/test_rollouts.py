"""Completions to read: which is marked, what is escaped, and that every token has its colour's number."""

import numpy as np
import pandas as pd
import pytest

from dphrl_lite import figures
from dphrl_lite.figures import page

ROWS = pd.DataFrame(
    {
        "prompt": ["<b>1</b>"] * 2,
        "completion": ["<script>", "1 + 2"],
        "correct": [False, True],
        "distinct": [None, "1+2"],
        "reason": ["a < b", ""],
    },
    index=[16, 17],  # rows of a longer table
)


def test_a_completion_is_marked_and_nothing_of_it_is_markup():
    html = figures.completion_table(ROWS, 1).to_html()
    assert "<script>" not in html and "<b>1</b>" not in html and "a &lt; b" in html and "1+2" in html
    assert html.count("▶") == 1 and html.index("▶ 1") < html.index("wrong") < html.index("right")


def test_every_token_stands_in_reading_order_with_its_log_probability():
    tokens, logp = [f"t{i}" for i in range(14)], -np.arange(14.0)
    figure = figures.token_grid(tokens, logp, "Completion 1")
    (grid,) = figure.data
    assert grid.z.shape == grid.text.shape == (2, 12)
    assert np.array_equal(grid.z.ravel()[:14], logp) and np.isnan(grid.z.ravel()[14:]).all()
    assert grid.text[1, 1] == "t13<br>-13.00" and grid.text[1, 2] == ""
    assert f"sum {logp.sum():.2f}" in figure.layout.title.text
    assert "t12 -12.00, t13 -13.00" in page.alt_text(figure.to_dict())  # for those who see no colours


@pytest.mark.parametrize(("token", "visible"), [("<eos>", "&lt;eos&gt;"), ("\n", "⏎"), (" ", "␣"), (" a\n", " a⏎")])
def test_tokens_that_are_blank_or_markup_can_be_read(token, visible):
    assert figures.token_grid([token], [-0.0], "").data[0].text[0, 0] == f"{visible}<br>0.00"
