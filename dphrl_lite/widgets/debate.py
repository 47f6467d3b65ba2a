"""Widgets of the debate: what moves a score, what a gain consists of, guessing, the paper's own tables."""

from collections.abc import Mapping
from functools import cache, partial

import pandas as pd

from dphrl_lite import figures
from dphrl_lite.passk import Outcomes
from dphrl_lite.study import debate
from dphrl_lite.widgets.controls import choice, dropdown, offer, offers
from dphrl_lite.widgets.live import Live

_TABLES = {"sql": "SQL", "math-out-of-domain": "math, not trained on", "js-eta": "Jensen-Shannon at each η"}


def lever_explorer(points: pd.DataFrame) -> Live:
    """How far a score moves by strength, by divergence, and by divergence at equal Pass@1. `points` as `debate.levers`."""
    values = points.drop(columns=["group", "world", "method", "strength", "Pass@1"]).dropna(
        axis=1
    )  # that all groups have
    scores = sorted(values, key=lambda name: name != "distinct")
    controls = {"score": dropdown("score", scores, scores[-1])}
    return Live(controls, lambda score: figures.levers(debate.levers(points, score), score))


def rung_explorer(outcomes: pd.DataFrame, eta: float = 1.0) -> Live:
    """From the base model to DPH-F step by step: choose the domain and the strength of the rehearsal.

    `outcomes` of the sweep (`frontier.read`), with `sft` and `dph-f` at the same strengths.
    """
    rungs = cache(partial(debate.rungs, outcomes))
    strengths = sorted(set(outcomes.loc[outcomes["method"] == "sft", "strength"]))
    domains = list(map(str, outcomes["domain"].unique()))
    controls = {
        "domain": dropdown("domain", domains, domains[0]),
        "eta": choice("strength η", [(f"{strength:g}", strength) for strength in strengths], eta),
    }
    return Live(controls, lambda domain, eta: figures.rungs(rungs(domain, eta), f"{domain}, η = {eta:g}"))


def guess_lab(families: Mapping[str, Mapping[str, Outcomes]], model: str = "grpo", share: float = 0.1) -> Live:
    """Replace a share of a model's answers by blind guesses: what Pass@k and Cover@tau make of it.

    Args:
        families: family of countdown problems -> model -> `Outcomes` with problem ids.
        model: whose answers are replaced.
        share: of the answers.
    """
    first = next(iter(families))
    controls = {
        "family": dropdown("problems", families, first),
        "model": dropdown("model", families[first], model),
        "share": choice(
            "guesses", [(f"{x:.0%}", x) for x in (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)], share
        ),
    }
    offers(controls, ["family"], lambda: offer(controls["model"], families[controls["family"].value]))

    def build(family, model, share):
        title = f"{family}: {share:.0%} of the answers of {model} are blind guesses"
        return figures.guessing(debate.guessing_curves(families[family], model, share), title)

    return Live(controls, build)


def paper_explorer(paper: pd.DataFrame, scores: pd.DataFrame) -> Live:
    """The paper's tables and our miniature in the same form: choose table, benchmark and metric, and our domain.

    Args:
        paper: from `debate.paper_results`.
        scores: from `conclusions.run_scores`, with k = 1, 8, 16, 32 and 64.
    """
    tables = dict(list(paper.groupby(["table", "model"], sort=False)))
    like_paper = cache(partial(debate.like_paper, scores))
    labels = [(f"{_TABLES[table]}, {model}", (table, model)) for table, model in tables]
    domains = list(map(str, scores.index.unique("domain")))
    controls = {
        "table": dropdown("paper's table", labels, labels[0][1]),
        "benchmark": dropdown("benchmark", []),
        "metric": dropdown("metric", []),
        "domain": dropdown("our domain", domains, domains[0]),
    }

    def offer_rest():
        table = tables[controls["table"].value]
        offer(controls["benchmark"], table["benchmark"].unique(), prefer=1)
        rows = table[table["benchmark"] == controls["benchmark"].value]
        offer(controls["metric"], rows["metric"].unique(), prefer=9)

    offers(controls, ("table", "benchmark"), offer_rest)

    def build(table, benchmark, metric, domain):
        """The bars of one column and of ours, and where the table has both ends, points won against points lost."""
        rows = tables[table][tables[table]["benchmark"] == benchmark]
        metrics, every = list(rows["metric"].unique()), "dph-js" if table[0] == "js-eta" else None
        metric = metric if metric in metrics else metrics[-1]  # a benchmark was chosen, its metrics are about to follow
        in_domain = bool(rows["in_domain"].all())
        theirs = partial(debate.paper_column, paper, *table, benchmark)
        ours = lambda metric: like_paper(domain, in_domain, metric, every)
        where, score = "trained on" if in_domain else "not trained on", "Pass@1" if metric == "greedy" else metric
        titles = [f"the paper: {benchmark} ({where}), {metric}", f"ours: {domain} ({where}), {score}"]
        bars = figures.beside_paper(theirs(metric), ours(metric), titles)
        if "greedy" not in metrics:
            return bars, "<p>This table has one column for each benchmark: no exchange can be drawn.</p>"
        pairs = [debate.exchange(column("greedy"), column(metrics[-1])) for column in (theirs, ours)]
        return bars, figures.exchanges(*pairs, metrics[-1].removeprefix("pass@"))

    return Live(controls, build)
