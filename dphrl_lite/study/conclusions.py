"""What may be concluded from the frontier's tables: scores, fronts, differences with bands, and verdicts on claims.

Tables in, tables out; no model, no run. Bands are 95 % percentile bootstraps that draw seeds and problems again, the same
ones for all that is compared. They know of the choice of seeds and problems, and of nothing else.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product

import numpy as np
import pandas as pd

from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes, bootstrap_weights, compare, pass_at_k

RUN = ["domain", "split", "method", "strength", "seed"]
KS = (1, 4, 8, 16, 64)
RULE = "of a method's strengths the one with the highest validation mean of Pass@1 and Pass@64, averaged over seeds"
RESAMPLES, CONFIDENCE = 1000, 0.95
WITHIN = 0.01  # "as good as": one point
Runs = tuple[str, float | None]  # a method at a strength
UNTRAINED = -1  # stands for the training seed of the base model, which has none


class NotComparable(ValueError):
    """Runs that have no training seed, or no problem, in common."""


# ---- scores ----------------------------------------------------------------------------------------------------------


def run_scores(table: pd.DataFrame, ks: Sequence[int] = KS) -> pd.DataFrame:
    """Pass@k and distinct right answers of every run and split, means over problems; NaN where fewer than k were drawn.

    Index: domain, split, method, strength, seed.
    """
    scored = table[[*RUN, "distinct"]].assign(**{f"Pass@{k}": _pass_at_k(table, k) for k in ks})
    return scored.groupby(RUN, observed=True, dropna=False, sort=False).mean()


def _pass_at_k(table: pd.DataFrame, k: int) -> np.ndarray:
    n = table["n"].to_numpy()
    return np.where(n >= k, pass_at_k(n, table["c"], np.minimum(k, n)), np.nan)


def beside(table: pd.DataFrame, placed: pd.DataFrame) -> pd.DataFrame:
    """Outcomes that `placed` may be compared with, and `placed` itself: the same problems and the same training seeds.

    Args:
        table: outcomes of the sweep.
        placed: those of further runs (`frontier.own_run`), perhaps of fewer problems.

    Raises:
        ValueError: the sweep holds no trained run on these problems with these seeds.
    """
    names = dict.fromkeys(["domain", "split", "family", "method", "problem"], str)
    table, placed = table.astype(names), placed.astype(names)
    base = table["method"] == "base"
    known = table[base | table["seed"].isin(set(placed["seed"]))].merge(placed[_PROBLEM].drop_duplicates())
    mine = placed[["domain", "method", "strength"]].drop_duplicates().assign(mine=True)
    known = known[known.merge(mine, "left")["mine"].isna().to_numpy()]  # a run that was placed again stands there once
    if set(known["method"]) <= {"base"}:
        seeds = sorted(set(table.loc[~base, "seed"]))
        raise ValueError(
            f"the sweep has no such runs on these problems; its training seeds are {seeds}: place one of them"
        )
    return pd.concat([known, placed], ignore_index=True)


_PROBLEM = ["domain", "split", "problem"]


def chosen(scores: pd.DataFrame) -> pd.DataFrame:
    """The strength of each method in each domain by `RULE`, over the seeds that all its strengths have (if there are any):
    domain, method, strength."""
    validation = scores.xs("validation", level="split")
    runs = (validation["Pass@1"] + validation["Pass@64"]).rename("merit").reset_index()
    method, count = ["domain", "method"], lambda by: runs.groupby(by, observed=True)["strength"].transform("nunique")
    runs["common"] = count([*method, "seed"]) == count(method)
    runs = runs[runs["common"] | ~runs.groupby(method, observed=True)["common"].transform("any")]
    best = runs.groupby([*method, "strength"], observed=True, dropna=False, sort=False)["merit"].mean()
    best = best.reset_index().sort_values("merit", ascending=False, kind="stable")
    return best.drop_duplicates(["domain", "method"])[["domain", "method", "strength"]].reset_index(drop=True)


def strengths(scores: pd.DataFrame, domain: str) -> dict[str, float | None]:
    """Method -> its strength in a domain by `RULE`."""
    best = chosen(scores)
    rows = best[best["domain"] == domain]
    return {row.method: None if pd.isna(row.strength) else row.strength for row in rows.itertuples()}


def values(table: pd.DataFrame, domain: str, runs: Runs, score: str = "Pass@64", split: str = "test") -> pd.DataFrame:
    """A score of every problem in every run of a method at a strength: rows seeds, columns problems.

    The base model's one row has the seed `UNTRAINED`: it may stand beside any.

    Args:
        table: outcomes.
        domain, split: which problems.
        runs: method and strength; None for a method without one.
        score: "Pass@<k>", or "distinct".

    Raises:
        ValueError: there are no such runs.
    """
    method, strength = runs
    part = table[_of(table, domain, runs) & (table["split"] == split)]
    if part.empty:
        known = sorted(set(table.loc[table["domain"] == domain, "method"]))
        raise ValueError(f"no runs of {method!r} at {strength} in {domain!r}, {split}; methods there: {known}")
    found = part["distinct"] if score == "distinct" else _pass_at_k(part, int(score.removeprefix("Pass@")))
    scored = pd.DataFrame({"seed": part["seed"], "problem": part["problem"].astype(object), "score": found})
    grid = scored.pivot(index="seed", columns="problem", values="score")
    return grid.set_axis([UNTRAINED]) if method == "base" and len(grid) == 1 else grid


def _of(frame: pd.DataFrame, domain: str, runs: Runs) -> pd.Series:
    """Which rows are of a method at a strength."""
    method, strength = runs
    alone = strength is None or pd.isna(strength)
    at = frame["strength"].isna() if alone else np.isclose(frame["strength"], strength)
    return (frame["domain"] == domain) & (frame["method"] == method) & at


# ---- differences -----------------------------------------------------------------------------------------------------


def _resampled(grids: Sequence[pd.DataFrame]) -> tuple[list[np.ndarray], int]:
    """Each grid's mean, and after it its means in `RESAMPLES` draws of seeds and problems, the same ones for all grids.

    Only seeds and problems that all grids have are used. Returns the means, and how many seeds there are.
    """
    seeds = reduce(pd.Index.intersection, [g.index for g in grids if UNTRAINED not in g.index] or [grids[0].index])
    problems = reduce(pd.Index.intersection, [grid.columns for grid in grids])
    if len(seeds) == 0 or len(problems) == 0:
        raise NotComparable(
            "these runs have no seed, or no problem, in common; run the same ones of all that is compared"
        )
    by_seed, by_problem = _shares(len(seeds), seed=0), _shares(len(problems), seed=1)
    means = []
    for grid in grids:
        rows = grid[problems] if UNTRAINED in grid.index else grid.loc[seeds, problems]
        means.append(((by_seed @ np.broadcast_to(rows, (len(seeds), len(problems)))) * by_problem).sum(1))
    return means, len(seeds)


def _shares(count: int, seed: int) -> np.ndarray:
    """`[1 + RESAMPLES, count]`: the share of each seed or problem, first in all that there are, then in each draw."""
    return np.concatenate([np.full((1, count), 1 / count), bootstrap_weights(count, RESAMPLES, seed).T])


def _band(means: np.ndarray, seeds: int) -> dict[str, float]:
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.nanquantile(means[1:], tails) if np.isfinite(means[0]) else (np.nan, np.nan)
    return {"value": float(means[0]), "low": float(low), "high": float(high), "seeds": seeds}


def mean(table: pd.DataFrame, domain: str, runs: Runs, score: str, split: str = "test") -> dict[str, float]:
    """A score of a method at a strength, over seeds and problems: value, low, high, seeds. Arguments as in `values`."""
    (means,), seeds = _resampled([values(table, domain, runs, score, split)])
    return _band(means, seeds)


def difference(
    table: pd.DataFrame, domain: str, first: Runs, second: Runs, score: str, split: str = "test"
) -> dict[str, float]:
    """A score of `first` minus that of `second`, on the problems and seeds that both have: value, low, high, seeds.

    Arguments as in `values`. Raises `NotComparable`.
    """
    return differences(table, domain, (second, first), score, split)[0]


def differences(
    table: pd.DataFrame, domain: str, chain: Sequence[Runs], score: str, split: str = "test"
) -> list[dict[str, float]]:
    """A score of each in a chain of runs minus that of the one before, on the problems and seeds that all have."""
    means, seeds = _resampled([values(table, domain, runs, score, split) for runs in chain])
    return [_band(after - before, seeds) for before, after in pairwise(means)]


def matched(table: pd.DataFrame, domain: str, first: str, second: str, score: str = "Pass@64") -> dict[str, float]:
    """A score of method `first` minus that of `second` where both have the same Pass@1, on the test problems.

    Each method's strengths, averaged over seeds and joined by straight lines, are its front. The difference is averaged over
    the Pass@1 that both fronts reach.

    Returns:
        value, low, high, seeds (those that all points have), and `from_` and `to`, the Pass@1 compared; NaN where the fronts
        share none.
    """
    points = [(method, at) for method in (first, second) for at in _swept(table, domain, method)]
    grids = [values(table, domain, runs, of) for of in ("Pass@1", score) for runs in points]
    resampled, seeds = _resampled(grids)
    means = np.stack(resampled).reshape(2, len(points), -1)  # [Pass@1 and score, point, draw]
    mine = np.array([method == first for method, _ in points])
    drawn = [_between(means[:, mine, i], means[:, ~mine, i]) for i in range(means.shape[2])]
    return _band(np.array([value for value, *_ in drawn]), seeds) | {"from_": drawn[0][1], "to": drawn[0][2]}


def _swept(table: pd.DataFrame, domain: str, method: str) -> list[float]:
    rows = table[(table["domain"] == domain) & (table["method"] == method)]
    if rows.empty:
        raise ValueError(f"no runs of {method!r} in {domain!r}; there are {sorted(set(table['method']))}")
    return sorted(set(rows["strength"].dropna())) or [None]


def _between(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The mean height of one front `[2, strengths]` above another where they overlap, and the overlap's ends."""
    first, second = (front[:, front[0].argsort()] for front in (first, second))
    low, high = max(first[0, 0], second[0, 0]), min(first[0, -1], second[0, -1])
    if low > high:
        return np.nan, np.nan, np.nan
    at = np.linspace(low, high, 21)
    return float(np.mean(np.interp(at, *first) - np.interp(at, *second))), float(low), float(high)


# ---- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """`first` scores higher than `second`; with `within`, at most so much lower. Both are methods at their chosen strengths,
    or, if `matched`, at equal Pass@1."""

    text: str
    first: str
    second: str
    score: str
    split: str = "test"
    within: float = 0.0
    matched: bool = False


def claims(k: int = 64) -> list[Claim]:
    """The paper's claims (arXiv 2509.07430), and what others object, at one k."""
    at, out = f"Pass@{k}", {"score": "Pass@1", "split": "probe"}
    return [
        Claim("GRPO raises Pass@1 over the base model", "grpo", "base", "Pass@1"),
        Claim(f"GRPO lowers {at} below the base model", "base", "grpo", at),
        Claim("GRPO forgets other tasks: Pass@1 below the base model", "base", "grpo", **out),
        Claim(f"DAPO is no cure: {at} below the base model", "base", "dapo", at),
        Claim(f"leaving D_pef out is no cure: {at} below the base model", "base", "grpo-exp", at),
        Claim(f"reverse KL is no cure: {at} below the base model", "base", "rkl", at),
        *(claim for name, method in (("DPH-F", "dph-f"), ("DPH-JS", "dph-js")) for claim in _cures(name, method, k)),
        Claim(f"at equal Pass@1, DPH-F has a higher {at} than k3", "dph-f", "rkl-k3", at, matched=True),
        Claim(f"at equal Pass@1, DPH-F has a higher {at} than plain SFT", "dph-f", "sft", at, matched=True),
        Claim(f"at equal Pass@1, DPH-JS has a higher {at} than DPH-F", "dph-js", "dph-f", at, matched=True),
    ]


def _cures(name: str, method: str, k: int) -> list[Claim]:
    at = f"Pass@{k}"
    return [
        Claim(f"{name} has a higher {at} than GRPO", method, "grpo", at),
        Claim(f"{name} keeps the base model's {at} (within a point)", method, "base", at, within=WITHIN),
        Claim(f"{name} reaches GRPO's Pass@1 (within a point)", method, "grpo", "Pass@1", within=WITHIN),
        Claim(f"{name} forgets less of other tasks than GRPO (Pass@1)", method, "grpo", "Pass@1", "probe"),
        Claim(f"at equal Pass@1, {name} has a higher {at} than reverse KL", method, "rkl", at, matched=True),
    ]


def verdicts(table: pd.DataFrame, k: int = 64, of: Iterable[Claim] | None = None) -> pd.DataFrame:
    """Which claims hold: domain, claim, verdict, difference (first minus second), low, high, seeds.

    A claim holds if the whole band lies on its side, does not hold if the whole band lies on the other side, and else cannot
    be told; fronts that share no Pass@1 are not comparable. Strengths are those of `chosen`. Claims about methods that were
    not run, or not swept, or have no seed in common, are left out.
    """
    scores, rows = run_scores(table, (1, 64)), []
    for domain, part in table.groupby("domain", observed=True, sort=False):
        counted = part.groupby("method", observed=True)["strength"].nunique()
        for claim in claims(k) if of is None else of:
            both = [claim.first, claim.second]
            if not set(both) <= set(counted.index) or (claim.matched and counted[both].min() < 2):
                continue
            try:
                found = _found(table, domain, claim, strengths(scores, domain))
            except NotComparable:
                continue
            row = {"domain": domain, "claim": claim.text, "verdict": verdict(found["low"], found["high"], claim.within)}
            rows.append(row | found)
    columns = ["domain", "claim", "verdict", "value", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "difference"})


def _found(table: pd.DataFrame, domain: str, claim: Claim, best: dict) -> dict[str, float]:
    if claim.matched:
        return matched(table, domain, claim.first, claim.second, claim.score)
    ends = ((name, best[name]) for name in (claim.first, claim.second))
    return difference(table, domain, *ends, claim.score, claim.split)


def verdict(low: float, high: float, within: float = 0.0) -> str:
    """What a band of a difference says about the claim that it is positive, or at least above `-within`.

    "not comparable": there is no band, because two fronts share no Pass@1.
    """
    if np.isnan(low):
        return "not comparable"
    if low > -within:
        return "holds"
    return "does not hold" if high < -within else "cannot be told"


# ---- the report ------------------------------------------------------------------------------------------------------


def scoreboard(table: pd.DataFrame, runs: pd.DataFrame, domain: str, k: int = 64) -> pd.DataFrame:
    """Every method of a domain at its chosen strength, on the test problems, means over seeds.

    Columns: strength, seeds, Pass@k with bands, keep / forget / gain / never (expected numbers of problems at `k`, against the
    base model), distinct, entropy (nats a token), elsewhere (Pass@1 of the tasks that are not trained), and what the run
    took in all: tokens sampled and trained, completions that the reference scored. Seconds stand in `runs`, but belong to
    whatever else the machine did.
    """
    best = strengths(run_scores(table, (1, 64)), domain)
    rows = {name: _row(table, runs, domain, (name, best[name]), k) for name in sorted(best, key=rank)}
    return pd.DataFrame.from_dict(rows, orient="index")


def rank(name: str) -> tuple[int, str]:
    """Sorts names of methods: the base model, then as in `METHODS`, then variants by name."""
    known = ["base", *METHODS]
    return known.index(name) if name in known else len(known), name


def _row(table: pd.DataFrame, runs: pd.DataFrame, domain: str, of: Runs, k: int) -> dict:
    row = {"strength": of[1], "seeds": len(values(table, domain, of, "Pass@1"))}
    for each in KS:
        band = mean(table, domain, of, f"Pass@{each}")
        row |= {f"Pass@{each}": band["value"], f"low {each}": band["low"], f"high {each}": band["high"]}
    row |= _changes(table, domain, of, k)
    row["distinct"] = mean(table, domain, of, "distinct")["value"]
    row["elsewhere"] = mean(table, domain, of, "Pass@1", "probe")["value"]
    cost = runs[_of(runs, domain, of)]
    return row | cost[["entropy", "tokens", "tokens_trained", "reference_forwards"]].mean().to_dict()


def _changes(table: pd.DataFrame, domain: str, of: Runs, k: int) -> dict[str, float]:
    """Keep, forget, gain and never against the base model, means over seeds."""
    part = table[table["split"] == "test"]
    mine = part[_of(part, domain, of)]
    counted = lambda rows: Outcomes.from_counts(rows["n"], rows["c"], rows["problem"])
    base = counted(part[_of(part, domain, ("base", None))])
    return pd.DataFrame([compare(base, counted(rows), k) for _, rows in mine.groupby("seed")]).mean().to_dict()


def fronts(table: pd.DataFrame, domain: str, ks: Sequence[int] = (1, 8, 64)) -> pd.DataFrame:
    """Every method and strength of a domain on the test problems: means over seeds of Pass@k and distinct, standard deviations
    over seeds, and how many seeds there are."""
    scores = (
        run_scores(table, ks)
        .loc[domain]
        .xs("test", level="split")
        .groupby(["method", "strength"], dropna=False, observed=True)
    )
    spread = scores.std().add_prefix("sd ")
    return scores.mean().join(spread).assign(seeds=scores.size())


PAIRS = [(dph, other) for dph in ("dph-f", "dph-js") for other in ("rkl", "rkl-k3", "sft")]
PAIRS += [("dph-js", "dph-f"), ("rkl", "rkl-k3"), *((f"dph-alpha-{alpha}", "dph-f") for alpha in (0.2, 0.5, 0.8))]
PAIRS += [("dph-js-definition", "dph-js")]
IDEAS = [
    ("dph-f+all", "dph-f"),
    ("dph-f+all", "rkl-k3"),
    *(("dph-f+balanced", other) for other in ("dph-f", "dph-f+all")),
    ("dph-f+3of8", "dph-f"),
    ("dph-f+all+pass@4", "dph-f+all"),
    ("dph-f+pass@2", "dph-f"),
    ("dph-f+wise", "dph-f"),
    ("dph-f+wise", "grpo+wise"),
    *(("grpo+wise", other) for other in ("dph-f", "rkl", "sft")),
    ("grpo+wise+4x", "dph-f"),
]
IDEAS += [(name, "dph-f") for name in ("dph-f+one", "dph-f+target", "grpo+pass@2", "grpo+pass@4", "grpo+pass@8")]


def at_equal_pass_at_1(table: pd.DataFrame, domain: str, pairs=None, scores=("Pass@8", "Pass@64")) -> pd.DataFrame:
    """`matched` for each pair whose second method was swept; the first may be a single point, compared where it stands.

    Rows pairs, columns first, second, score, difference, low, high, seeds, from_, to. Pairs that were not run, or have no
    seed in common, are left out.
    """
    points = table[table["domain"] == domain].groupby("method", observed=True)["strength"].nunique()
    pairs = [(a, b) for a, b in pairs or PAIRS + IDEAS if a in points.index and points.get(b, 0) > 1]
    rows = []
    for (a, b), score in product(pairs, scores):
        with suppress(NotComparable):
            rows.append({"first": a, "second": b, "score": score} | matched(table, domain, a, b, score))
    found = pd.DataFrame(rows, columns=["first", "second", "score", "value", "low", "high", "seeds", "from_", "to"])
    return found.rename(columns={"value": "difference"})


def against(
    table: pd.DataFrame, domain: str, other: str, scores: Sequence[str] = ("Pass@1", "Pass@8", "Pass@64", "distinct")
) -> pd.DataFrame:
    """Every method at its chosen strength minus the method `other` at its own, on the test problems.

    Rows (method, score), columns difference, low, high, seeds. Methods that have no seed in common with
    `other` are left out; empty where `other` was not run.
    """
    best, part = strengths(run_scores(table, (1, 64)), domain), table[table["domain"] == domain]
    found = {}
    for name, score in product(best if other in best else (), scores):
        with suppress(NotComparable):
            found[name, score] = difference(part, domain, (name, best[name]), (other, best[other]), score)
    rows = pd.MultiIndex.from_tuples(found, names=["method", "score"])
    columns = ["value", "low", "high", "seeds"]
    return pd.DataFrame(list(found.values()), rows, columns).rename(columns={"value": "difference"})


def moonshot(table: pd.DataFrame, domain: str) -> pd.DataFrame:
    """How far each method, at its chosen strength, is from GRPO's Pass@1 and from the base model's Pass@64 at once.

    Columns: `Pass@1 - GRPO`, `Pass@64 - base`, `worst` of the two; the best comes first. The goal is a worst above -.01. Empty
    where GRPO was not run. Bands are in `against`.
    """
    goals = {"Pass@1 - GRPO": ("grpo", "Pass@1"), "Pass@64 - base": ("base", "Pass@64")}
    gaps = {
        goal: against(table, domain, other, [score])["difference"].droplevel("score")
        for goal, (other, score) in goals.items()
    }
    found = pd.DataFrame(gaps).dropna()
    return found.assign(worst=found.min(axis=1)).sort_values("worst", ascending=False)


def report(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """All of it as text, domain by domain."""
    parts = [f"Strengths: {RULE}. Bands: {CONFIDENCE:.0%}, over seeds and problems."]
    for domain in dict.fromkeys(table["domain"]):
        rows = runs[(runs["domain"] == domain) & (runs["method"] != "base")]
        seeds = rows.groupby(["method", "strength"], dropna=False)["seed"].nunique()
        told = f"{len(rows)} runs; of each method and strength {seeds.min()} to {seeds.max()} seeds"
        parts.append(f"\n## {domain}: {told if len(rows) else 'the base model alone'}")
        parts += ["Bands of one seed know nothing of the choice of seeds."] * int(seeds.min() == 1)
        tables = {
            "Test problems, every method at its strength": _banded(scoreboard(table, runs, domain)),
            "Fronts: every strength": fronts(table, domain).reset_index(),
            "At equal Pass@1: first minus second": at_equal_pass_at_1(table, domain),
            "GRPO's Pass@1 and the base model's Pass@64 at once": moonshot(table, domain),
        }
        for other in ("base", "grpo", "dph-f"):
            tables[f"Every method at its strength minus {other}"] = _differences(against(table, domain, other), other)
        parts += [f"\n{title}\n{_text(found)}" for title, found in tables.items() if len(found)]
    both = pd.concat([verdicts(table, k) for k in (8, 64)]).drop_duplicates(["domain", "claim"])
    return "\n".join([*parts, "\n## Which claims hold here", _text(both.sort_values("domain", kind="stable"))])


def _text(table: pd.DataFrame) -> str:
    numbered = pd.api.types.is_integer_dtype(table.index)
    return table.rename_axis(index=None, columns=None).to_string(
        index=not numbered, float_format="{:.3f}".format, na_rep=""
    )


def _banded(board: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard with each Pass@k and its band in one cell."""
    for k in KS:
        bands = board[[f"Pass@{k}", f"low {k}", f"high {k}"]]
        board = board.assign(**{f"Pass@{k}": _cells(bands)}).drop(columns=[f"low {k}", f"high {k}"])
    return board


def _differences(found: pd.DataFrame, other: str) -> pd.DataFrame:
    """`against` with a row for each method but `other`, a column for each score."""
    cells = pd.Series(_cells(found[["difference", "low", "high"]]), found.index, dtype=object).unstack()
    methods = sorted(cells.index.drop(other, errors="ignore"), key=rank)
    return cells.loc[methods, found.index.unique("score")]


def _cells(bands: pd.DataFrame) -> list[str]:
    return [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in bands.to_numpy()]
