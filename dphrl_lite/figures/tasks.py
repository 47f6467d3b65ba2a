"""Figures and tables of verdicts and query results."""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite.figures.style import COLORS, ink, styled


def verdict(words: str, correct: bool) -> str:
    """A verdict as the title of a figure."""
    word = "right" if correct else "wrong"
    return f"<span style='color:{ink(COLORS[_VERDICTS[word]])}'><b>{word}</b></span>: {escape(words, quote=False)}"


def verdict_table(table: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """A table of verdicts to read: text to the left, right and wrong in words and colour, row numbers left out."""
    word = lambda value: ("wrong", "right")[value] if isinstance(value, bool | np.bool_) else value
    words = table.rename_axis(index=None).map(word)
    look = lambda value: f"color: {ink(COLORS[_VERDICTS[value]])}; font-weight: bold" if value in _VERDICTS else ""
    left = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top", "padding": ".3em .6em"}
    heads = [{"selector": "th", "props": [*left.items()]}]
    styled = words.style.format(na_rep="–", escape="html").set_properties(**left).set_table_styles(heads).map(look)
    return styled.hide() if pd.api.types.is_integer_dtype(table.index) else styled


_VERDICTS = {"right": "dph-f", "wrong": "grpo"}


def query_results(results: Sequence[tuple[str, pd.DataFrame | str]], title: str, shown: int = 8) -> go.Figure:
    """Results of queries as tables, two beside each other.

    Args:
        results: label and rows, or in words why there are none.
        title: above all, such as a `verdict`.
        shown: rows of each.
    """
    tables = [(words, pd.DataFrame({"no result": [t]}) if isinstance(t, str) else t) for words, t in results]
    labels = [words if "no result" in table else f"{words}: {len(table)} rows" for words, table in tables]
    lines = (len(tables) + 1) // 2
    titles = [label.replace(": 1 rows", ": 1 row") for label in labels]
    specs = [[{"type": "table"}] * 2] * lines
    figure = make_subplots(lines, 2, specs=specs, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.12)
    for index, (_, table) in enumerate(tables):
        look = {"align": "left", "line": {"color": "#DDDDDD"}}
        names = [f"<b>{escape(str(name), quote=False)}</b>" for name in table.columns]
        cells = [[escape(str(value)[:80], quote=False) for value in table[name][:shown]] for name in table.columns]
        head = {"values": names, "fill": {"color": "#EEEEEE"}, "height": 26, **look}
        body = {"values": cells, "fill": {"color": "white"}, "height": 24, **look}
        figure.add_table(header=head, cells=body, row=index // 2 + 1, col=index % 2 + 1)
    longest = min(shown, max(len(table) for _, table in tables))
    figure.update_annotations(font_size=14)
    return styled(figure, 90 + lines * (60 + 24 * max(longest, 3)), title, font_size=13).update_layout(
        margin={"l": 10, "r": 10, "t": 80, "b": 10}
    )
