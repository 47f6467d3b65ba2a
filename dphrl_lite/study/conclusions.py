"""What may be concluded from the frontier's tables: scores, fronts, differences with bands, and verdicts on claims.

Tables in, tables out; no model, no run. How a band comes about, and what it knows of, is said at `_band`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, reduce
from itertools import pairwise, product

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.special import stdtr, stdtrit

from dphrl_lite.errors import lookup
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes, chance_forgets, clusters_of, compare, pass_at_k, share_band

RUN = ["domain", "split", "method", "strength", "seed"]
KS = (1, 4, 8, 16, 64)
RULE = "of a method's strengths the one with the highest validation mean of Pass@1 and Pass@64, averaged over seeds"
RESAMPLES, CONFIDENCE = 500, 0.95
INFERENCE = (
    f"Bands: {CONFIDENCE:.0%}, for the choice of seeds and of problems, whole clusters of problems drawn (a database's "
    "questions, the same numbers of countdown), paired; a method's strength is chosen again in each draw. `p` and "
    "verdicts are corrected by Holm for all comparisons of a table in one domain; bands stand as they are."
)
WITHIN = 0.01  # "as good as": one point
APART = 0.05  # fronts that share no Pass@1 in more of the draws are not comparable
Runs = tuple[str, float | None]  # a method at a strength
UNTRAINED = -1  # stands for the training seed of the base model, which has none


class NotComparable(ValueError):
    """Runs that have no training seed, or no problem, in common."""


# ---- scores ----------------------------------------------------------------------------------------------------------


def run_scores(table: pd.DataFrame, ks: Sequence[int] = KS) -> pd.DataFrame:
    """Pass@k and distinct right answers of every run and split, means over problems; NaN where fewer than k were drawn.

    Index: domain, split, method, strength, seed.
    """
    scored = table[[*RUN, "distinct"]].assign(**{f"Pass@{k}": estimates(table["n"], table["c"], k) for k in ks})
    return scored.groupby(RUN, observed=True, dropna=False, sort=False).mean()


def estimates(n, c, k: int) -> np.ndarray:
    """Pass@k of each row; NaN where fewer than k were drawn."""
    n = np.asarray(n)
    return np.where(n >= k, pass_at_k(n, c, np.minimum(k, n)), np.nan)


def comparable(table: pd.DataFrame, further: pd.DataFrame) -> pd.DataFrame:
    """Outcomes that `further` may be compared with, and `further` itself: the same problems and the same training seeds.

    Args:
        table: outcomes of the sweep.
        further: those of other runs (`frontier.own_run`), perhaps of fewer problems.

    Raises:
        ValueError: the sweep holds no trained run on these problems with these seeds.
    """
    names = dict.fromkeys(["domain", "split", "family", "method", "problem"], str)
    table, further = table.astype(names), further.astype(names)
    base = table["method"] == "base"
    known = table[base | table["seed"].isin(set(further["seed"]))].merge(further[_PROBLEM].drop_duplicates())
    mine = further[["domain", "method", "strength"]].drop_duplicates().assign(mine=True)
    known = known[known.merge(mine, "left")["mine"].isna().to_numpy()]  # a run that was made again stands there once
    if set(known["method"]) <= {"base"}:
        seeds = sorted(set(table.loc[~base, "seed"]))
        raise ValueError(
            f"the sweep has no such runs on these problems; its training seeds are {seeds}: train with one of them"
        )
    return pd.concat([known, further], ignore_index=True)


_PROBLEM = ["domain", "split", "problem"]


def choice(scores: pd.DataFrame) -> pd.DataFrame:
    """The strength of each method in each domain by `RULE`, over the seeds that all its strengths have (if there are any):
    domain, method, strength. Pass@8 stands for Pass@64 where fewer answers were drawn."""
    validation = scores.xs("validation", level="split")
    high = validation["Pass@64"].fillna(validation["Pass@8"]) if "Pass@8" in validation else validation["Pass@64"]
    runs = (validation["Pass@1"] + high).rename("merit").reset_index()
    method, count = ["domain", "method"], lambda by: runs.groupby(by, observed=True)["strength"].transform("nunique")
    runs["common"] = count([*method, "seed"]) == count(method)
    runs = runs[runs["common"] | ~runs.groupby(method, observed=True)["common"].transform("any")]
    best = runs.groupby([*method, "strength"], observed=True, dropna=False, sort=False)["merit"].mean()
    best = best.reset_index().sort_values("merit", ascending=False, kind="stable")
    return best.drop_duplicates(["domain", "method"])[["domain", "method", "strength"]].reset_index(drop=True)


def strengths(scores: pd.DataFrame, domain: str) -> dict[str, float | None]:
    """Method -> its strength in a domain by `RULE`."""
    best = choice(scores)
    rows = best[best["domain"] == domain]
    return {row.method: None if pd.isna(row.strength) else row.strength for row in rows.itertuples()}


class Sweep:
    """Outcomes as arrays, a row for each run and a column for each problem: made once, asked often.

    Whatever takes a table of outcomes takes a `Sweep` of it, too.

    Args:
        table: outcomes.
        cluster: a column that says which problems belong together; None: `passk.clusters_of` the problems' names does.
    """

    def __init__(self, table: pd.DataFrame, cluster: str | None = None):
        if cluster is not None:
            lookup(dict.fromkeys(table.columns), "column", cluster)
        self.table, self.cluster = table, cluster
        self.part, self.methods = cache(self._part), cache(self._methods)

    def _part(self, domain: str, split: str) -> "_Part":
        table = self.table[(self.table["domain"] == domain) & (self.table["split"] == split)]
        keys = ["method", "strength", "seed"]
        run = table.groupby(keys, observed=True, dropna=False, sort=False).ngroup().to_numpy()
        column, problems = pd.factorize(table["problem"].astype(object))
        grids = {name: np.full((run.max(initial=-1) + 1, len(problems)), np.nan) for name in ("n", "c", "distinct")}
        for name, grid in grids.items():
            grid[run, column] = table[name]
        if np.isfinite(grids["n"]).sum() < len(table):
            raise ValueError(f"a run of {domain!r}, {split}, has a problem twice; expected one row each")
        labels = table[self.cluster] if self.cluster else pd.Series(clusters_of(problems))[column]
        of = pd.Series(np.asarray(labels)).groupby(column).first()
        runs = table[keys].astype({"method": str}).drop_duplicates().reset_index(drop=True)
        return _Part(domain, split, runs, pd.Index(problems), pd.factorize(of)[0], grids)

    def _methods(self, domain: str) -> dict[str, list[float | None]]:
        """Method -> its strengths, [None] for one without."""
        pairs = self.table[["domain", "method", "strength"]].drop_duplicates()
        pairs = pairs[pairs["domain"] == domain].astype({"method": str})
        found = pairs.groupby("method", sort=False)["strength"]
        return {name: sorted(set(values.dropna())) or [None] for name, values in found}


@dataclass(frozen=True, eq=False)
class _Part:
    """One domain and split of a `Sweep`: runs, problems, each problem's cluster, and n, c, distinct `[runs, problems]`."""

    domain: str
    split: str
    runs: pd.DataFrame
    problems: pd.Index
    clusters: np.ndarray
    grids: Mapping[str, np.ndarray]
    known: dict = field(default_factory=dict)  # what `values` answered before

    def values(self, of: Runs, score: str) -> pd.DataFrame:
        """A score of every problem (columns) in every seed (rows) of a method at a strength."""
        if (of, score) not in self.known:
            self.known[of, score] = self._values(of, score)
        return self.known[of, score]

    def _values(self, of: Runs, score: str) -> pd.DataFrame:
        method, strength = of
        alone = strength is None or pd.isna(strength)
        at = self.runs["strength"].isna() if alone else np.isclose(self.runs["strength"], strength)
        rows = np.flatnonzero((self.runs["method"] == method) & at)
        if len(rows) == 0:
            known = sorted(set(self.runs["method"]))
            raise ValueError(
                f"no runs of {method!r} at {strength} in {self.domain!r}, {self.split}; methods there: {known}"
            )
        n, c, distinct = (self.grids[name][rows] for name in ("n", "c", "distinct"))
        if score != "distinct":
            there = np.isfinite(n)
            filled = (np.where(there, grid, 1).astype(int) for grid in (n, c))
            distinct = np.where(there, estimates(*filled, int(score.removeprefix("Pass@"))), np.nan)
        seeds = self.runs["seed"].to_numpy()[rows]
        grid = pd.DataFrame(distinct, pd.Index(seeds, name="seed"), self.problems).sort_index()
        return grid.set_axis([UNTRAINED]) if method == "base" and len(grid) == 1 else grid


def _sweep(table: "pd.DataFrame | Sweep") -> Sweep:
    return table if isinstance(table, Sweep) else Sweep(table)


def values(table, domain: str, runs: Runs, score: str = "Pass@64", split: str = "test") -> pd.DataFrame:
    """A score of every problem in every run of a method at a strength: rows seeds, columns problems.

    The base model's one row has the seed `UNTRAINED`: it may stand beside any.

    Args:
        table: outcomes, or a `Sweep`.
        domain, split: which problems.
        runs: method and strength; None for a method without one.
        score: "Pass@<k>", or "distinct".

    Raises:
        ValueError: there are no such runs.
    """
    return _sweep(table).part(domain, split).values(runs, score).dropna(axis=1, how="all")


# ---- bands -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _weights(units: int, stream: int) -> np.ndarray:
    """`[1 + 3 RESAMPLES, units]`: how often each seed or cluster counts. First all once, then drawn with the other kind,
    then for draws of seeds alone, then for draws of clusters alone (where the other kind counts once).

    One fewer than there are is drawn, with which the spread of a mean comes out without bias.
    """
    draws = np.ones((RESAMPLES, units))
    if units > 1:
        draws = np.random.default_rng(stream).multinomial(units - 1, np.full(units, 1 / units), RESAMPLES)
    once = np.ones((RESAMPLES, units))
    alone = [draws, once] if stream == 0 else [once, draws]
    return np.concatenate([np.ones((1, units)), draws, *alone])


@dataclass(frozen=True)
class _Sample:
    """What a comparison rests on: how many seeds, clusters and problems."""

    seeds: int
    clusters: int
    problems: int


def _draws(part: _Part, points: Sequence[tuple[Runs, str]], seeds: pd.Index) -> tuple[np.ndarray, _Sample]:
    """The mean of each (runs, score) `[points, 1 + 3 RESAMPLES]`: as it is, and in the draws of `_weights`, the same ones
    for all points. Only problems that all points have are used."""
    grids = [part.values(*point) for point in points]
    rows = [g.to_numpy() if UNTRAINED in g.index else g.loc[seeds].to_numpy() for g in grids]
    there = np.all([np.isfinite(row).all(0) for row in rows], axis=0)
    if not there.any():
        raise NotComparable("these runs have no problem in common; evaluate all that is compared on the same ones")
    clusters = pd.factorize(part.clusters[there])[0]
    member = np.zeros((there.sum(), clusters.max() + 1))
    member[np.arange(len(member)), clusters] = 1
    by_cluster = _weights(member.shape[1], stream=1 + (part.split != "test")).T
    means = np.concatenate([row[:, there] @ member for row in rows]) @ by_cluster / (member.sum(0) @ by_cluster)
    by_seed, found, at = _weights(len(seeds), stream=0).T, [], 0
    by_seed = by_seed / by_seed.sum(0)
    for row in rows:
        mine, at = means[at : at + len(row)], at + len(row)
        found.append(mine[0] if len(mine) == 1 else (mine * by_seed).sum(0))
    return np.stack(found), _Sample(len(seeds), member.shape[1], len(member))


def _common_seeds(part: _Part, runs: Iterable[Runs]) -> pd.Index:
    seeds = [part.values(of, "distinct").index for of in runs]
    trained = [index for index in seeds if UNTRAINED not in index]
    common = reduce(pd.Index.intersection, trained or [seeds[0]])
    if len(common) == 0:
        raise NotComparable("these runs have no seed in common; run the same ones of all that is compared")
    return common


def _band(draws: np.ndarray, sample: _Sample, share: bool = False, within: float = 0.0) -> dict[str, float]:
    """value, low, high, p, seeds, clusters of a statistic from its draws `[1 + 3 RESAMPLES]`.

    Its variance is that over seeds plus that over clusters, less what both count (their interaction: the noise of single
    answers, too). Student's t with Satterthwaite's degrees of freedom pays for few seeds or clusters. One problem more, that
    goes either way, gives width to a difference where all problems agree; a `share` has `share_band`. `p` is two-sided,
    against a value of `-within`. Of one seed the choice of seeds is not known, and the band leaves it out.
    """
    value, (both, by_seed, by_cluster) = draws[0], draws[1:].reshape(3, -1) - draws[0]
    if not np.isfinite(value):
        return {"value": value, "low": np.nan, "high": np.nan, "p": np.nan, "seeds": sample.seeds}
    seeds, clusters, shared = (np.nanmean(d**2) for d in (by_seed, by_cluster, both - by_seed - by_cluster))
    variance = max(seeds + clusters - shared, seeds, clusters)
    parts = seeds**2 / max(sample.seeds - 1, 1) + clusters**2 / max(sample.clusters - 1, 1)
    freedom = variance**2 / parts if parts > 0 else max(sample.clusters - 1, 1)
    if share:
        low, high = share_band(min(value, 1.0), variance, sample.problems, freedom, CONFIDENCE)
        return {"value": float(value), "low": low, "high": high, "p": np.nan, "seeds": sample.seeds}
    error = np.sqrt(variance + 1 / (sample.problems + 1) ** 2)
    half = error * stdtrit(freedom, (1 + CONFIDENCE) / 2)
    p = 2 * stdtr(freedom, -abs(value + within) / error)
    low, high = float(value - half), float(value + half)
    return {"value": float(value), "low": low, "high": high, "p": float(p), "seeds": sample.seeds}


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values corrected for how many there are (Holm 1979): below .05, all but one table in twenty are right throughout."""
    p = np.asarray(p, dtype=float)
    order, known = np.argsort(p), np.isfinite(p).sum()
    steps = p[order] * np.maximum(known - np.arange(len(p)), 1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def mean(table, domain: str, runs: Runs, score: str, split: str = "test") -> dict[str, float]:
    """A score of a method at a strength, over seeds and problems: value, low, high, seeds. Arguments as in `values`."""
    part = _sweep(table).part(domain, split)
    (draws,), sample = _draws(part, [(runs, score)], _common_seeds(part, [runs]))
    return _band(draws, sample, share=score != "distinct")


def difference(table, domain: str, first: Runs, second: Runs, score: str, split: str = "test") -> dict[str, float]:
    """A score of `first` minus that of `second`, on the problems and seeds that both have: value, low, high, p, seeds.

    Arguments as in `values`. Raises `NotComparable`.
    """
    return differences(table, domain, (second, first), score, split)[0]


def differences(table, domain: str, chain: Sequence[Runs], score: str, split: str = "test") -> list[dict[str, float]]:
    """A score of each in a chain of runs minus that of the one before, on the problems and seeds that all have."""
    part = _sweep(table).part(domain, split)
    draws, sample = _draws(part, [(runs, score) for runs in chain], _common_seeds(part, chain))
    return [_band(after - before, sample) for before, after in pairwise(draws)]


def best_difference(
    table,
    domain: str,
    first: str,
    second: str,
    score: str,
    split: str = "test",
    within: float = 0.0,
    at_least: float | None = None,
) -> dict[str, float]:
    """A score of method `first` minus that of `second`, each at the strength that `RULE` chooses, in every draw again.

    With `at_least` another rule chooses: the best of what is `highest` on validation among the strengths that reach this Pass@1
    there, or the highest Pass@1 where none does. On the seeds that all strengths of both have. Returns value, low, high, p
    (against `-within`), seeds.
    """
    sweep = _sweep(table)
    swept = sweep.methods(domain)
    points = [(name, at) for name in (first, second) for at in lookup(swept, "method", name)]
    parts = [sweep.part(domain, split), sweep.part(domain, "validation")]
    several = {name for name in (first, second) if len(swept[name]) > 1}
    seeds = _common_seeds(parts[0], points)
    draws, sample = _draws(parts[0], [(runs, score) for runs in points], seeds)
    names = np.array([name for name, _ in points])
    heights = {name: draws[names == name] for name in (first, second)}
    for name in several:
        mine = [(name, at) for at in swept[name]]
        merit, _ = _draws(parts[1], [(runs, k) for k in ("Pass@1", highest(sweep, domain)) for runs in mine], seeds)
        one, many = merit.reshape(2, len(mine), -1)
        best = (one + many if at_least is None else np.where(one >= at_least, 1 + many, one)).argmax(0)
        heights[name] = np.take_along_axis(heights[name], best[None], 0)
    return _band((heights[first] - heights[second])[0], sample, within=within)


def highest(table, domain: str) -> str:
    """The score that says what is solved at all: Pass@64, or Pass@8 where fewer than 64 answers were drawn."""
    table = _sweep(table).table
    drawn = table.loc[(table["domain"] == domain) & (table["split"] == "validation"), "n"]
    return "Pass@8" if drawn.min() < 64 else "Pass@64"


# ---- fronts ----------------------------------------------------------------------------------------------------------


def front(strength: Sequence[float | None], one: np.ndarray, many: np.ndarray, points: int = 101):
    """A method's front: Pass@1 and another score between its strengths, each a monotone cubic in the strength's logarithm.

    Straight lines from strength to strength run below a front that bends, and would favour whatever is compared with it
    between two strengths.

    Args:
        strength: of each row, one or several.
        one, many: Pass@1 and the score `[strengths, ...]`.
        points: along the front.

    Returns:
        Pass@1 and the score `[points, ...]`, or as they came for one strength.
    """
    if len(strength) == 1:
        return one, many
    log = np.log(np.asarray(strength, dtype=float))
    order, at = np.argsort(log), np.linspace(log.min(), log.max(), points)
    return tuple(PchipInterpolator(log[order], np.asarray(y)[order], axis=0)(at) for y in (one, many))


def front_difference(table, domain: str, first: str, second: str, score: str = "Pass@64") -> dict[str, float]:
    """A score of method `first` minus that of `second` where both have the same Pass@1, on the test problems.

    The difference of their fronts is averaged over the Pass@1 that both reach.

    Returns:
        value, low, high, p, seeds (those that all points have), `from_` and `to`, the Pass@1 compared, and `apart`, the
        share of draws in which the fronts share no Pass@1; NaN where they share none as they are.
    """
    sweep, swept = _sweep(table), _sweep(table).methods(domain)
    for name in (first, second):
        if name not in swept:
            raise ValueError(f"no runs of {name!r} in {domain!r}; there are {sorted(swept)}")
    part = sweep.part(domain, "test")
    points = [(name, at) for name in (first, second) for at in swept[name]]
    asked = [(runs, of) for of in ("Pass@1", score) for runs in points]
    draws, sample = _draws(part, asked, _common_seeds(part, points))
    ones, many = draws.reshape(2, len(points), -1)
    mine = np.array([name == first for name, _ in points])
    lines = [front(swept[name], ones[rows], many[rows]) for name, rows in ((first, mine), (second, ~mine))]
    gaps = np.array([_gap(*(axis[:, i] for line in lines for axis in line)) for i in range(draws.shape[1])])
    low, high = max(line[0][:, 0].min() for line in lines), min(line[0][:, 0].max() for line in lines)
    shared = {"from_": low, "to": high} if low <= high else {"from_": np.nan, "to": np.nan}
    return _band(gaps, sample) | shared | {"apart": float(np.isnan(gaps[1 : 1 + RESAMPLES]).mean())}


_STEPS = np.linspace(0, 1, 21)


def _gap(x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray) -> float:
    """The mean height of one front above another over the Pass@1 that both reach; NaN where there is none."""
    low, high = max(x.min(), other_x.min()), min(x.max(), other_x.max())
    if low > high:
        return np.nan
    at, order, other = low + (high - low) * _STEPS, np.argsort(x), np.argsort(other_x)
    return float(np.mean(np.interp(at, x[order], y[order]) - np.interp(at, other_x[other], other_y[other])))


def differ_in(first: str, second: str) -> str:
    """What two methods differ in besides their strength: "divergence" alone, or whatever else ("" where one is unknown)."""
    try:
        parts = [METHODS[_row(name)] for name in (first, second)]
    except ValueError:
        return ""
    aspects = {
        "problems": lambda m: m.on_policy,
        "clip": lambda m: (m.clip_low, m.clip_high),
        "sampling": lambda m: m.dynamic_sampling,
        "penalised answers": lambda m: m.penalty.split("_")[0],
        "divergence": lambda m: (m.penalty, m.divergence, None),
    }
    found = [aspect for aspect, of in aspects.items() if of(parts[0]) != of(parts[1])]
    extras = [name.split("+")[1:] for name in (first, second)]
    return ", ".join(found + [f"+{name}" for name in sorted(set(extras[0]) ^ set(extras[1]))])


def _row(name: str) -> str:
    plain = name.split("+")[0]
    return "dph-alpha" if plain.startswith("dph-alpha") else plain


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
    """The paper's claims (arXiv 2509.07430), and what others object, at one k.

    "as a method": the two differ in more than the divergence (`differ_in`), and so may not be told apart by it.
    """
    at, out = f"Pass@{k}", {"score": "Pass@1", "split": "probe"}
    alone = f"the divergence alone, at equal Pass@1: {{}} keeps more {at} than {{}}"
    return [
        Claim("GRPO raises Pass@1 over the base model", "grpo", "base", "Pass@1"),
        Claim(f"GRPO lowers {at} below the base model", "base", "grpo", at),
        Claim("GRPO forgets other tasks: Pass@1 below the base model", "base", "grpo", **out),
        Claim(f"DAPO is no cure: {at} below the base model", "base", "dapo", at),
        Claim(f"leaving D_pef out is no cure: {at} below the base model", "base", "grpo-exp", at),
        Claim(f"reverse KL is no cure: {at} below the base model", "base", "rkl", at),
        *(claim for name, method in (("DPH-F", "dph-f"), ("DPH-JS", "dph-js")) for claim in _cures(name, method, k)),
        Claim(f"as a method, at equal Pass@1, DPH-F has a higher {at} than k3", "dph-f", "rkl-k3", at, matched=True),
        Claim(f"at equal Pass@1, DPH-F has a higher {at} than plain SFT", "dph-f", "sft", at, matched=True),
        *(
            Claim(alone.format(*words), *names, at, matched=True)
            for names, words in {
                ("dph-js", "dph-f"): ("Jensen-Shannon", "forward KL"),
                ("dph-f", "dph-reverse_kl"): ("forward KL", "reverse KL"),
                ("dph-js", "dph-reverse_kl"): ("Jensen-Shannon", "reverse KL"),
            }.items()
        ),
    ]


def _cures(name: str, method: str, k: int) -> list[Claim]:
    at = f"Pass@{k}"
    return [
        Claim(f"{name} has a higher {at} than GRPO", method, "grpo", at),
        Claim(f"{name} keeps the base model's {at} (within a point)", method, "base", at, within=WITHIN),
        Claim(f"{name} reaches GRPO's Pass@1 (within a point)", method, "grpo", "Pass@1", within=WITHIN),
        Claim(f"{name} forgets less of other tasks than GRPO (Pass@1)", method, "grpo", "Pass@1", "probe"),
        Claim(
            f"as a method, at equal Pass@1, {name} has a higher {at} than reverse KL", method, "rkl", at, matched=True
        ),
    ]


def verdicts(table, k: int | Sequence[int] = 64, of: Iterable[Claim] | None = None) -> pd.DataFrame:
    """Which claims hold: domain, claim, verdict, difference (first minus second), low, high, p, seeds.

    A claim holds if the difference lies on its side, does not hold if on the other, with `p` below .05, and else cannot be
    told; p is corrected (`holm`) for all claims put to a domain, the interval is not. Fronts that share no Pass@1, in the runs or
    in more than `APART` of the draws, are not comparable. Claims about methods that were not run, or not swept, or have no
    seed in common, are left out.
    """
    sweep = _sweep(table)
    asked = (
        list(dict.fromkeys(claim for each in np.ravel(k) for claim in claims(int(each)))) if of is None else list(of)
    )
    rows = []
    for domain in dict.fromkeys(sweep.table["domain"]):
        counted = {name: len(at) for name, at in sweep.methods(domain).items()}
        for claim in asked:
            fewest = min(counted.get(name, 0) for name in (claim.first, claim.second))
            if fewest > claim.matched:
                with suppress(NotComparable):
                    rows.append({"domain": domain, "claim": claim.text} | _evidence(sweep, domain, claim))
    columns = ["domain", "claim", "verdict", "value", "low", "high", "p", "seeds", "within"]
    found = pd.DataFrame(rows, columns=columns)
    found["p"] = found.groupby("domain", sort=False)["p"].transform(holm)
    found["verdict"] = [_verdict(row) for row in found.itertuples()]
    return found.drop(columns="within").rename(columns={"value": "difference"})


def _evidence(sweep: Sweep, domain: str, claim: Claim) -> dict[str, float]:
    both = domain, claim.first, claim.second, claim.score
    if not claim.matched:
        return best_difference(sweep, *both, claim.split, claim.within) | {"within": claim.within}
    found = front_difference(sweep, *both)
    return found | {"within": 0.0} | ({} if found["apart"] <= APART else {"p": np.nan})


def _verdict(row) -> str:
    if np.isnan(row.p):
        return "not comparable"
    return "cannot be told" if row.p >= 1 - CONFIDENCE else "holds" if row.value > -row.within else "does not hold"


def verdict(low: float, high: float, within: float = 0.0) -> str:
    """What one band of a difference, alone, says about the claim that it is positive, or at least above `-within`.

    "not comparable": there is no band, because two fronts share no Pass@1.
    """
    if np.isnan(low):
        return "not comparable"
    if low > -within:
        return "holds"
    return "does not hold" if high < -within else "cannot be told"


# ---- the report ------------------------------------------------------------------------------------------------------


def scoreboard(table, runs: pd.DataFrame, domain: str, k: int = 32) -> pd.DataFrame:
    """Every method of a domain at its chosen strength, on the test problems, means over seeds.

    Columns: strength, seeds, Pass@k with bands, keep / forget / gain / never (expected numbers of problems at `k`, against the
    base model; for base itself `forget` is the floor, what a second draw of the same model forgets), distinct, entropy (nats a
    token), elsewhere (Pass@1 of the tasks that are not trained), and what the run took in all: tokens sampled and trained,
    completions that the reference scored. Seconds stand in `runs`, but belong to whatever else the machine did.
    """
    sweep = _sweep(table)
    best = strengths(run_scores(sweep.table, (1, 8, 64)), domain)
    rows = {name: _score_row(sweep, runs, domain, (name, best[name]), k) for name in sorted(best, key=rank)}
    return pd.DataFrame.from_dict(rows, orient="index")


def rank(name: str) -> tuple[int, str]:
    """Sorts names of methods: the base model, then as in `METHODS`, then variants by name."""
    known = ["base", *METHODS]
    return known.index(name) if name in known else len(known), name


def _score_row(sweep: Sweep, runs: pd.DataFrame, domain: str, of: Runs, k: int) -> dict:
    row = {"strength": of[1], "seeds": len(values(sweep, domain, of, "Pass@1"))}
    for each in KS:
        band = mean(sweep, domain, of, f"Pass@{each}")
        row |= {f"Pass@{each}": band["value"], f"low {each}": band["low"], f"high {each}": band["high"]}
    row |= _changes(sweep, domain, of, k)
    row["distinct"] = mean(sweep, domain, of, "distinct")["value"]
    row["elsewhere"] = mean(sweep, domain, of, "Pass@1", "probe")["value"]
    method, strength = of
    at = runs["strength"].isna() if strength is None else np.isclose(runs["strength"], strength)
    cost = runs[(runs["domain"] == domain) & (runs["method"] == method) & at]
    return row | cost[["entropy", "tokens", "tokens_trained", "reference_forwards"]].mean().to_dict()


def _changes(sweep: Sweep, domain: str, of: Runs, k: int) -> dict[str, float]:
    """Keep, forget, gain and never against the base model, means over seeds; for the base model against a second draw."""
    part = sweep.part(domain, "test")
    outcomes = lambda row: Outcomes.from_counts(part.grids["n"][row].astype(int), part.grids["c"][row].astype(int))
    names = part.runs["method"]
    base = outcomes(int(np.flatnonzero(names == "base")[0]))
    if of[0] == "base":
        lost, kept = chance_forgets(base, k), pass_at_k(base.n, base.c, k).sum()
        return {"keep": kept - lost, "forget": lost, "gain": lost, "never": len(base) - kept - lost}
    at = part.runs["strength"].isna() if of[1] is None else np.isclose(part.runs["strength"], of[1])
    rows = np.flatnonzero((names == of[0]) & at)
    return pd.DataFrame([compare(base, outcomes(int(row)), k) for row in rows]).mean().to_dict()


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
PAIRS += [(f"dph-{name}", "dph-f") for name in ("reverse_kl", "hellinger", "pearson_chi2")]
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


def at_equal_pass_at_1(table, domain: str, pairs=None, scores=("Pass@8", "Pass@64")) -> pd.DataFrame:
    """`front_difference` for each pair whose second method was swept; the first may be a single point, compared where it
    stands.

    Rows pairs, columns first, second, `differ in`, score, difference, low, high, p (corrected for all rows), seeds, from_, to,
    apart. Pairs that were not run, or have no seed in common, are left out.
    """
    sweep = _sweep(table)
    count = {name: len(at) for name, at in sweep.methods(domain).items()}
    pairs = [(a, b) for a, b in pairs or PAIRS + IDEAS if a in count and count.get(b, 0) > 1]
    rows = []
    for (a, b), score in product(pairs, scores):
        with suppress(NotComparable):
            row = {"first": a, "second": b, "differ in": differ_in(a, b), "score": score}
            rows.append(row | front_difference(sweep, domain, a, b, score))
    columns = ["first", "second", "differ in", "score", "value", "low", "high", "p", "seeds", "from_", "to", "apart"]
    found = pd.DataFrame(rows, columns=columns).rename(columns={"value": "difference"})
    return found.assign(p=holm(found["p"].where(found["apart"] <= APART)))


def against(
    table, domain: str, other: str, scores: Sequence[str] = ("Pass@1", "Pass@8", "Pass@64", "distinct")
) -> pd.DataFrame:
    """Every method minus the method `other`, on the test problems, each at the strength that `RULE` chooses.

    Rows (method, score), columns difference, low, high, p (corrected for all rows), seeds. Methods that have no seed in
    common with `other` are left out; empty where `other` was not run.
    """
    sweep, found = _sweep(table), {}
    names = sweep.methods(domain)
    for name, score in product(names if other in names else (), scores):
        with suppress(NotComparable):
            found[name, score] = best_difference(sweep, domain, name, other, score)
    rows = pd.MultiIndex.from_tuples(found, names=["method", "score"])
    columns = ["value", "low", "high", "p", "seeds"]
    table = pd.DataFrame(list(found.values()), rows, columns).rename(columns={"value": "difference"})
    trivial = rows.get_level_values("method") == other
    return table.assign(p=holm(table["p"].where(~trivial)))


def moonshot(table, domain: str) -> pd.DataFrame:
    """How far each method, at its chosen strength, is from GRPO's Pass@1 and from the base model's Pass@64 at once.

    Columns: `Pass@1 - GRPO`, `Pass@64 - base`, `worst` of the two; the best comes first. The goal is a worst above -.01. Empty
    where GRPO was not run. Bands are in `against`.
    """
    goals, sweep = {"Pass@1 - GRPO": ("grpo", "Pass@1"), "Pass@64 - base": ("base", "Pass@64")}, _sweep(table)
    gaps = {
        goal: against(sweep, domain, other, [score])["difference"].droplevel("score")
        for goal, (other, score) in goals.items()
    }
    found = pd.DataFrame(gaps).dropna()
    return found.assign(worst=found.min(axis=1)).sort_values("worst", ascending=False)


def report(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """All of it as text, domain by domain."""
    parts, sweep = [f"Strengths: {RULE}. {INFERENCE}"], Sweep(table)
    for domain in dict.fromkeys(table["domain"]):
        rows = runs[(runs["domain"] == domain) & (runs["method"] != "base")]
        seeds = rows.groupby(["method", "strength"], dropna=False)["seed"].nunique()
        head = f"{len(rows)} runs; of each method and strength {seeds.min()} to {seeds.max()} seeds"
        parts.append(f"\n## {domain}: {head if len(rows) else 'the base model alone'}")
        parts += [_clusters_in_words(sweep, domain)]
        parts += ["Bands of one seed know nothing of the choice of seeds."] * int(seeds.min() == 1)
        equal = at_equal_pass_at_1(sweep, domain)
        tables = {
            "Test problems, every method at its strength; `forget` of base is the floor": _banded(
                scoreboard(sweep, runs, domain)
            ),
            "Fronts: every strength": fronts(table, domain).reset_index(),
            f"At equal Pass@1: first minus second, {len(equal)} comparisons": equal,
            "GRPO's Pass@1 and the base model's Pass@64 at once": moonshot(sweep, domain),
        }
        for other in ("base", "grpo", "dph-f"):
            rows = against(sweep, domain, other)
            title = f"Every method at its strength minus {other}, {rows['p'].notna().sum()} comparisons (* p < .05)"
            tables[title] = differences_in_words(rows.drop(other, level="method", errors="ignore"))
        parts += [f"\n{title}\n{as_text(found)}" for title, found in tables.items() if len(found)]
    both = verdicts(sweep, (8, 64))
    parts.append(
        f"\n## Which claims hold here: {' and '.join(map(str, both.groupby('domain', sort=False)['p'].count()))} comparisons"
    )
    return "\n".join([*parts, as_text(both)])


def _clusters_in_words(sweep: Sweep, domain: str) -> str:
    part = sweep.part(domain, "test")
    return f"{len(part.problems)} test problems in {part.clusters.max() + 1} clusters."


def as_text(table: pd.DataFrame) -> str:
    """A table as a report shows it."""
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


def differences_in_words(found: pd.DataFrame) -> pd.DataFrame:
    """Rows (method, score) as a row for each method, a column for each score; a star where p is below .05."""
    stars = found["p"].lt(1 - CONFIDENCE).map({True: "*", False: " "})
    cells = _cells(found[["difference", "low", "high"]]) + stars.to_numpy(dtype=object)
    cells = pd.Series(cells, found.index, dtype=object).unstack()
    return cells.loc[sorted(cells.index, key=rank), found.index.unique("score")]


def _cells(bands: pd.DataFrame) -> np.ndarray:
    cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in bands.to_numpy()]
    return np.array(cells, dtype=object)
