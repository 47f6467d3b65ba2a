"""The arithmetic of the debate (notebook 09): the paper's tables, and what objections can be put to in numbers.

Tables in, tables out; no language model, no run. What may be concluded from the sweep's outcomes: `conclusions`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from dphrl_lite import divergences
from dphrl_lite.errors import lookup
from dphrl_lite.lab import bandits
from dphrl_lite.lab.guessing import with_guesses
from dphrl_lite.models import DATA
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes
from dphrl_lite.study import conclusions
from dphrl_lite.tasks import countdown

PAPER = DATA / "paper" / "results.csv"
LEVERS = {
    "strength": "another strength, same divergence",
    "divergence": "another divergence, same strength",
    "matched": "another divergence, same Pass@1",
}
GUESSES = "guesses alone"
_STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


# ---- the paper's tables ----------------------------------------------------------------------------------------------


def paper_results() -> pd.DataFrame:
    """The tables of arXiv 2509.07430, retyped; one row per number.

    Columns: table ("sql", "math-out-of-domain", "js-eta"), model, benchmark, in_domain (bool), metric ("greedy",
    "pass@8", ...), label (the paper's name), method (the kit's), strength (eta, NaN where the table does not vary it),
    and percent.
    """
    return pd.read_csv(PAPER, true_values=["yes"], false_values=["no"])


def paper_column(paper: pd.DataFrame, table: str, model: str, benchmark: str, metric: str) -> pd.DataFrame:
    """One column of one of the paper's tables, base first, each row's label unlike the others'.

    A table without the base model gets its row from the model's main table. Arguments as the columns of `paper_results`.
    """
    rows = paper[(paper["model"] == model) & (paper["benchmark"] == benchmark) & (paper["metric"] == metric)]
    base = rows[rows["method"] == "base"].head(1)
    rows = pd.concat([base, rows[(rows["table"] == table) & (rows["method"] != "base")]])
    return rows.assign(label=_at(rows["label"], rows["strength"])).reset_index(drop=True)


def _at(names: pd.Series, strengths: pd.Series) -> list[str]:
    return [f"{a}, η = {eta:g}" if pd.notna(eta) else a for a, eta in zip(names, strengths, strict=True)]


def like_paper(
    scores: pd.DataFrame, domain: str, in_domain: bool, metric: str, every: str | None = None
) -> pd.DataFrame:
    """Our miniature in the form of `paper_column`: method, strength, percent, label.

    Means over seeds. In domain are the test problems, else the probe: tasks that this training never saw. Methods stand at
    the strength chosen on validation problems (`conclusions.RULE`); variants beyond the paper are left out. For "greedy"
    stands Pass@1, the chance of one answer at temperature 1. Where too few answers were drawn for the k, percent is NaN.

    Args:
        scores: from `conclusions.run_scores`, with the k that are asked for, 1 and 64.
        domain: which miniature.
        in_domain, metric: as in `paper_results`.
        every: instead of all methods, those whose name begins so, at every strength, and base.
    """
    column = "Pass@1" if metric == "greedy" else metric.replace("pass", "Pass")
    lookup(dict.fromkeys(scores.columns), "column of scores", column)
    part = scores.loc[domain].xs("test" if in_domain else "probe", level="split")[column]
    means = part.groupby(["method", "strength"], dropna=False, observed=True).mean().mul(100).rename("percent")
    found = means.reset_index().astype({"method": str})
    found = found.assign(label=_at(found["method"], found["strength"]))
    if every:
        kept = found["method"].eq("base") | found["method"].str.startswith(every)
    else:
        at = found["method"].map(conclusions.strengths(scores, domain)).astype(float)
        kept = np.isclose(found["strength"], at, equal_nan=True) & ~found["method"].str.contains("+", regex=False)
    return found[kept].sort_values("method", key=lambda names: names.map(conclusions.rank), kind="stable")


def exchange(one: pd.DataFrame, many: pd.DataFrame) -> pd.DataFrame:
    """What one answer gains and many lose, in points against base: label, method, one, many.

    Args:
        one, many: columns of one table, as `paper_column` and `like_paper` give them, with base.
    """
    both = one.merge(many, on=["label", "method"], suffixes=("_one", "_many"))
    base = both[both["method"] == "base"].iloc[0]
    points = {name: both[f"percent_{name}"] - base[f"percent_{name}"] for name in ("one", "many")}
    return both[["label", "method"]].assign(**points)


# ---- how much does direction matter? ---------------------------------------------------------------------------------


def bandit_points(
    seeds: Sequence[int],
    names: Sequence[str] = ("forward_kl", "js", "alpha", "reverse_kl"),
    strengths: Sequence[float] = _STRENGTHS,
    ks: Sequence[int] = (1, 8, 64),
    **settings,
) -> pd.DataFrame:
    """Held-out Pass@k and different right answers at the end of GRPO on bandits, each divergence at each strength; exact.

    Args:
        seeds: of `bandits.make`, a world each.
        names: divergences.
        strengths: eta f''(1): what each is multiplied by follows from its curvature.
        ks: of Pass@k, 1 among them; `distinct` counts among as many answers as the largest.
        **settings: of `bandits.flow`.

    Returns:
        Table with group ("bandits"), world, method, strength, Pass@k at each k, and distinct, as `levers` takes it.
    """
    tables = []
    for seed in seeds:
        bandit = bandits.make(seed=seed)
        for name in names:
            divergence = divergences.get(name)
            eta = (torch.tensor(strengths) / divergence.curvature).tolist()
            path = bandits.flow(bandit, "grpo", divergence, eta, frames=2, **settings)
            ends = {f"Pass@{j}": path.pass_at_k(j, ~bandit.trained)[-1].numpy() for j in ks}
            ways = bandits.distinct_correct(path.probs[-1], bandit.correct, max(ks))
            ends["distinct"] = ways[..., ~bandit.trained].mean(-1).numpy()
            tables.append(
                pd.DataFrame({"group": "bandits", "world": seed, "method": name, "strength": strengths} | ends)
            )
    return pd.concat(tables, ignore_index=True)


def run_points(scores: pd.DataFrame) -> pd.DataFrame:
    """The swept methods that differ in their divergence and in nothing else, on test problems in the form of `bandit_points`.

    They rehearse the same stored answers. Means over seeds; strengths are multiplied by the curvature f''(1), so that equal
    ones hold small steps equally hard.
    """
    rows = (
        scores.xs("test", level="split").groupby(["domain", "method", "strength"], observed=True).mean().reset_index()
    )
    rows = rows.rename(columns={"domain": "group"}).astype({"group": str, "method": str})
    swept = rows.groupby("method")["strength"].transform("nunique") > 1
    rows = rows[swept & rows["method"].isin([name for name in METHODS if METHODS[name].penalty == "rehearsal_f"])]
    curvature = rows["method"].map(lambda name: divergences.get(METHODS[name].divergence).curvature)
    return rows.assign(world=0, strength=(rows["strength"] * curvature).round(4))


def levers(points: pd.DataFrame, score: str = "Pass@64") -> pd.DataFrame:
    """How far a score moves when one thing is changed: rows groups of worlds, whose mean it is, columns the keys of `LEVERS`.

    strength: the range along one method's strengths, mean over methods. divergence: the range over methods at one strength,
    mean over strengths that all have. matched: the range over methods at one Pass@1, between their fronts
    (`conclusions.front`), mean over the Pass@1 that all reach; NaN if there is none. A range is never below 0: noise alone
    makes some.

    Args:
        points: table with group, world, method, strength, Pass@1 and the score.
        score: its column.
    """
    rows = {}
    for world, part in points.groupby(["group", "world"], sort=False):
        grid = part.pivot(index="strength", columns="method", values=score)
        fronts = [
            conclusions.front(*some[["strength", "Pass@1", score]].to_numpy().T) for _, some in part.groupby("method")
        ]
        low, high = max(one.min() for one, _ in fronts), min(one.max() for one, _ in fronts)
        at = np.linspace(low, high, 21)
        lines = [np.interp(at, one[one.argsort()], many[one.argsort()]) for one, many in fronts]
        matched = np.ptp(lines, axis=0).mean() if low <= high else np.nan
        spreads = np.ptp(grid, axis=0).mean(), np.ptp(grid.dropna(), axis=1).mean(), matched
        rows[world] = dict(zip(LEVERS, spreads, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index").groupby(level=0, sort=False).mean()


# ---- what does the gain consist of? ----------------------------------------------------------------------------------


def rungs(
    table: pd.DataFrame, domain: str, eta: float, scores: Sequence[str] = ("Pass@1", "Pass@8", "Pass@64")
) -> pd.DataFrame:
    """From the base model to DPH-F, step by step: step, score, value, low, high, seeds; differences on test problems.

    The changes: GRPO on all problems; D_pef left out of it, with a wider upper clip; its right answers rehearsed by
    cross-entropy at strength `eta`; f(u) of forward KL instead, at the same strength. The values of a score add up to that of
    DPH-F minus base, over the seeds that all five have.

    Args:
        table: outcomes.
        domain: which miniature.
        eta: a strength that both `sft` and `dph-f` were run at.
        scores: as `conclusions.values` takes them.

    Raises:
        ValueError: one of the five was not run there, or not at this strength.
    """
    steps = {
        "GRPO on everything": ("grpo", None),
        "leave D_pef out of GRPO": ("grpo-exp", None),
        "rehearse it by cross-entropy": ("sft", eta),
        "f(u) instead of cross-entropy": ("dph-f", eta),
    }
    chain, rows = [("base", None), *steps.values()], []
    for score in scores:
        bands = conclusions.differences(table, domain, chain, score)
        rows += [{"step": step, "score": score} | band for step, band in zip(steps, bands, strict=True)]
    return pd.DataFrame(rows)


# ---- what does a large k reward? -------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def guess_rates(problem_ids: tuple[str, ...]) -> np.ndarray:
    """The chance that a blind guess is right, per countdown problem: one of all expressions over its numbers, each used
    once, with + - * and no parentheses, all of them equally likely."""
    parts = [name.split(":") for name in problem_ids]
    rates = [countdown.guess_rate(tuple(map(int, numbers.split("-"))), int(target)) for _, numbers, target in parts]
    return np.array(rates)


def guessing_curves(models: Mapping[str, Outcomes], name: str, share: float) -> pd.DataFrame:
    """Pass@k and Cover@tau of models, of model `name` with a `share` of its answers replaced by guesses, and of guesses alone.

    Pass@k is unbiased; for Cover@tau a problem's share of right answers is taken as it was counted.

    Args:
        models: outcomes of the same countdown problems, with their ids.
        name: one of them.
        share: between 0 and 1.

    Returns:
        Table with model, measure ("Pass@k" or "Cover@τ"), x (k or tau) and y. The mixture is called "<name> + guesses".
    """
    lookup(models, "model", name)
    parts = {model: (out, 0.0) for model, out in models.items()}
    parts |= {f"{name} + guesses": (models[name], share), GUESSES: (models[name], 1.0)}
    most = int(min(out.n.min() for out in models.values()))
    taus, tables = np.arange(1, most + 1) / most, []
    for model, (out, part) in parts.items():
        ks = 2 ** np.arange(most.bit_length() + 4 * (model == GUESSES))  # of guesses every k is known
        passed = [_guessed(out, part, int(k)) for k in ks]
        rates = (1 - part) * out.c / out.n + part * guess_rates(out.problem_ids)
        covered = (rates[:, None] >= taus - 1e-12).mean(0)
        for measure, x, y in (("Pass@k", ks, passed), ("Cover@τ", taus, covered)):
            tables.append(pd.DataFrame({"model": model, "measure": measure, "x": x, "y": y}))
    return pd.concat(tables, ignore_index=True)


@lru_cache(maxsize=512)  # a slider asks for the same models again and again
def _guessed(out: Outcomes, share: float, k: int) -> float:
    guess = guess_rates(out.problem_ids)
    return float((1 - (1 - guess) ** k if share == 1 else with_guesses(out.n, out.c, k, guess, share)).mean())
