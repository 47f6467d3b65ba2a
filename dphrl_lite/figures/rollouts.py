"""Completions to read: the verdicts of one problem's, and the tokens of one by how sure the reference was of them."""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dphrl_lite.figures.style import styled
from dphrl_lite.figures.tasks import verdict_table

# from a surprise to certainty; black text stays readable on each
_HUES = ("#E3782B", "#F3A04A", "#FBC98A", "#FDE7C7", "#FFFFFF")
_TICKS, _ACROSS = (0.01, 0.03, 0.1, 0.3, 1), 12


def completion_table(rows: pd.DataFrame, number: int) -> "pd.io.formats.style.Styler":
    """All completions of one problem with their verdicts; an arrow marks the one that is number `number`, from 1.

    Args:
        rows: of `presampling.sample`, of one problem.
        number: which completion is marked.
    """
    numbers = pd.Series(range(1, len(rows) + 1), rows.index).astype(str)
    columns = {
        "": numbers.where(numbers != str(number), "▶ " + numbers),
        "completion": rows["completion"],
        "verdict": rows["correct"],
        "canonical form, or why not": rows["distinct"].where(rows["correct"], rows["reason"]),
    }
    table = verdict_table(pd.DataFrame(columns).reset_index(drop=True))
    return table.set_caption(f"Prompt: {escape(rows['prompt'].iloc[0])}")


def token_grid(tokens: Sequence[str], logp: Sequence[float], title: str) -> go.Figure:
    """The tokens of a completion in reading order, coloured by probability, with their log-probabilities (nats).

    Args:
        tokens: as text.
        logp: of each token, nats.
        title: what is shown; their sum is added.
    """
    visible = [(t if t.strip() else t.replace(" ", "␣")).replace("\n", "⏎") for t in tokens]
    cells = [f"{escape(t, quote=False)}<br>{round(float(p), 2) + 0.0:.2f}" for t, p in zip(visible, logp, strict=True)]
    lines = -(-len(cells) // _ACROSS)
    grid = lambda values, blank: np.append(values, [blank] * (lines * _ACROSS - len(cells))).reshape(lines, _ACROSS)
    scale = {"colorscale": list(_HUES), "zmin": np.log(_TICKS[0]), "zmax": 0}
    scale["colorbar"] = {
        "title": {"text": "probability"},
        "lenmode": "pixels",  # of one line of tokens, too, it must hold its numbers
        "len": 130,
        "tickvals": np.log(_TICKS),
        "ticktext": list(map(str, _TICKS)),
    }
    style = {"xgap": 3, "ygap": 3, "textfont": {"color": "#111111", "size": 13}, "texttemplate": "%{text}"}
    style |= {"hovertemplate": "%{text} nats<extra></extra>", "name": ", ".join(cells).replace("<br>", " ")}
    figure = go.Figure(go.Heatmap(z=grid(logp, np.nan), text=grid(cells, ""), **style, **scale))
    figure.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    title = f"{title}; log-probabilities in nats, sum {sum(logp):.2f}"
    return styled(figure, 130 + 46 * lines, title, plot_bgcolor="#DDDDDD").update_layout(margin_l=10, margin_b=20)
