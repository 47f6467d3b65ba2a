"""Completions to read: the verdicts of one problem's, and the tokens of one by how sure the reference was of them."""

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dphrl_lite.figures.style import styled
from dphrl_lite.figures.tasks import verdict_table

# from a surprise (log-probability `_LEAST` and below) to certainty; black text stays readable on each
_HUES = ("#E3782B", "#F3A04A", "#FBC98A", "#FDE7C7", "#FFFFFF")
_LEAST, _ACROSS = np.log(0.01), 12


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
    probabilities = [0.01, 0.03, 0.1, 0.3, 1]
    bar = {
        "title": {"text": "probability"},
        "tickvals": np.log(probabilities),
        "ticktext": list(map(str, probabilities)),
    }
    look = {"xgap": 3, "ygap": 3, "textfont": {"color": "#111111"}, "texttemplate": "%{text}", "colorbar": bar}
    scale = {"colorscale": [*zip(np.linspace(0, 1, len(_HUES)), _HUES, strict=True)], "zmin": _LEAST, "zmax": 0}
    said = ", ".join(cell.replace("<br>", " ") for cell in cells)
    hover = {"hovertemplate": "%{text} nats<extra></extra>"}
    figure = go.Figure(go.Heatmap(z=grid(logp, np.nan), text=grid(cells, ""), name=said, **look, **scale, **hover))
    figure.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")
    return styled(
        figure, 190 + 46 * lines, f"{title}; log-probabilities in nats, sum {sum(logp):.2f}", plot_bgcolor="#DDDDDD"
    )
