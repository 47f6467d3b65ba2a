"""Widgets of pre-sampling: where the threshold falls, and the answers themselves."""

import ipywidgets
import pandas as pd

from dphrl_lite import figures, presampling
from dphrl_lite.widgets.controls import checkbox, dropdown, wide
from dphrl_lite.widgets.live import Live


def partition_explorer(rollouts: pd.DataFrame, threshold: int = 6) -> Live:
    """Slide the threshold, switch what is explored and rehearsed; problems move, and the buffer grows or shrinks.

    `rollouts` as `presampling.sample` gives.
    """
    counts = presampling.counts(rollouts)
    most = int(counts["n"].min())
    controls = {
        "threshold": ipywidgets.IntSlider(threshold, 1, most, description="threshold", **wide(420)),
        "keep_unsolved": checkbox("explore the unsolved problems", True),
        "one_per_problem": checkbox("rehearse one answer per problem", False),
        "rehearse_exploration": checkbox("rehearse D_exp's right answers too", False),
    }

    def build(**switches):
        return figures.partition_histogram(counts, presampling.partition(rollouts, **switches))

    return Live(controls, build)


def rollout_browser(rollouts: pd.DataFrame, tokenizer) -> Live:
    """Choose a problem and one of its K completions: all verdicts, and the tokens coloured by their log-probability."""
    counts = presampling.counts(rollouts)
    labels = [(f"{row.problem_id}: {row.c} of {row.n} correct", row.problem_id) for row in counts.itertuples()]
    groups = dict(list(rollouts.groupby("problem_id", sort=False)))
    most = int(counts["n"].max())
    controls = {
        "problem": dropdown("problem", labels, labels[0][1], pixels=420),
        "completion": ipywidgets.IntSlider(1, 1, most, description="completion", **wide(420)),
    }

    def build(problem, completion):
        rows = groups[problem].head(completion)
        row = rows.iloc[-1]
        tokens = [tokenizer.decode([token]) for token in row["token_ids"]]
        table = figures.completion_table(groups[problem], len(rows))
        return table.to_html(), figures.token_grid(tokens, row["logp"], f"Completion {len(rows)}, token by token")

    return Live(controls, build)
