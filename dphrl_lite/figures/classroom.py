"""Figures of a class: how far it is, what it is stuck at, how it voted."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dphrl_lite.figures.style import BUCKETS, color, styled


def class_progress(table: pd.DataFrame) -> go.Figure:
    """The exercises that students left open, and their votes, the most frequent first.

    Args:
        table: from `check.collected`: notebook, right, of, open (a list), vote; a row for each pasted line.
    """
    lines, votes = table[table["notebook"].notna()], table["vote"].dropna().value_counts()[::-1]
    students = lines["notebook"].value_counts()  # lines of each notebook
    titles = ["exercises still open", "votes"][: 1 + (len(votes) > 0)]
    figure = make_subplots(cols=len(titles), subplot_titles=titles, horizontal_spacing=0.16)
    stuck = lines["open"].explode().dropna().value_counts().sort_index(ascending=False)
    shares = [count / students[name.partition("-")[0]] for name, count in stuck.items()]
    hover = "%{y}: open for %{customdata} of %{meta}<extra></extra>"
    figure.add_bar(
        **{"x": shares, "y": list(stuck.index), "orientation": "h", "customdata": stuck.tolist()},
        meta=" and ".join(f"{n} lines of {name}" for name, n in students.sort_index().items()),
        **{"marker": {"color": BUCKETS["D_exp"]}, "hovertemplate": hover, "showlegend": False},
    )
    figure.update_xaxes(title_text="share of the notebook's lines", tickformat=".0%", range=[0, 1], col=1)
    if len(votes):
        look = {"color": [color(name) for name in votes.index]}
        figure.add_bar(x=votes, y=list(votes.index), orientation="h", marker=look, showlegend=False, row=1, col=2)
        figure.update_xaxes(title_text="votes", rangemode="tozero", col=2)
    figure.update_yaxes(type="category")
    done = (lines["right"] == lines["of"]).sum()
    title = f"{len(lines)} lines, {done} of them with every exercise right"
    return styled(figure, max(320, 120 + 26 * max(len(stuck), len(votes))), title)
