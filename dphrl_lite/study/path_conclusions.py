"""What may be concluded from paths: at each method's best learning rate and at one, at equal Pass@1, at equal cost, by distance.

Bands, choice on validation and verdicts are `conclusions`'s; here is only what of a path stands for what: `lines` follows
single runs along their steps, `configurations` lets every combination of strength, learning rate, steps and way back
compete. Tables in, tables out.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise, product

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from dphrl_lite.study import conclusions
from dphrl_lite.study.conclusions import CONFIDENCE, NotComparable, Sweep, holm

POINT = ["method", "strength", "learning_rate", "steps", "back"]  # a configuration
SCORES = ("Pass@1", "Pass@8", "Pass@64")
ENOUGH = 3  # seeds with which a configuration may be chosen, or as many as any of its method has
RULE = (
    "of a method's configurations (strength, learning rate, steps, way back) the one with the highest validation mean of Pass@1 "
    "and Pass@64 (Pass@8 where fewer than 64 answers are drawn), averaged over seeds"
)


def method_of(table: pd.DataFrame) -> pd.Series:
    """What a row counts for: its method, with `+wise` where it went part of the way back."""
    names = table["method"].astype(str)
    return names.where(table["back"] == 0, names + "+wise")


def label(table: pd.DataFrame) -> pd.Series:
    """Lines in words, such as `dph-f 0.3 at 3e-05`: method, strength, learning rate, and the share of the way back."""
    strength = table["strength"].map(lambda value: "" if pd.isna(value) else f" {value:g}").astype(str)
    rate = table["learning_rate"].map(lambda value: "" if pd.isna(value) else f" at {value:g}").astype(str)
    back = table["back"].map(lambda value: f", {value:g} back" if value else "").astype(str)
    return table["method"].astype(str) + strength + rate + back


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """Outcomes whose methods are lines and whose strengths are steps, so that a front is the curve of a run."""
    steps = table["steps"].astype(float)
    return table.assign(method=label(table), strength=steps.where((steps > 0) & (table["back"] == 0)))


def configurations(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Outcomes in which a method's strengths are the numbers of its configurations; and what stands behind each number.

    A method that has but one configuration has no number. Those with fewer than `ENOUGH` seeds are left out, unless all of
    the method's are such.

    Returns:
        The outcomes, and a row for each domain, method and number with the columns of POINT and seeds.
    """
    table = table.assign(of=method_of(table)).astype({"method": str})
    runs = table[["domain", "of", *POINT, "seed"]].drop_duplicates()
    behind = runs.groupby(["domain", "of", *POINT], dropna=False, observed=True).size().rename("seeds").reset_index()
    group = behind.groupby(["domain", "of"], observed=True)
    behind = behind[behind["seeds"] >= group["seeds"].transform("max").clip(upper=ENOUGH)]
    group = behind.groupby(["domain", "of"], observed=True)
    number = (group.cumcount() + 1.0).where(group["seeds"].transform("size") > 1)
    behind = behind.assign(number=number)
    outcomes = table.merge(behind.drop(columns="seeds"), on=["domain", "of", *POINT])
    outcomes = outcomes.assign(method=outcomes["of"], strength=outcomes["number"]).drop(columns=["of", "number"])
    return outcomes, behind.rename(columns={"method": "trained"}).rename(columns={"of": "method"})


def cost(runs: pd.DataFrame) -> pd.Series:
    """What runs took, in forward passes of one token: 1 for a token sampled, 3 for one trained (the backward pass is two), and 1
    more for each that the reference scored."""
    filled = runs[["tokens", "tokens_trained", "reference_forwards"]].fillna(0)
    return filled["tokens"] * (1 + (filled["reference_forwards"] > 0)) + 3 * filled["tokens_trained"]


def affordable(table: pd.DataFrame, runs: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The outcomes of configurations whose runs take at most `budget`, in the unit of `cost`, on the mean of their seeds."""
    keys, names = ["domain", *POINT], {"domain": str, "method": str}
    spent = runs.assign(cost=cost(runs)).astype(names).groupby(keys, dropna=False)["cost"].mean()
    return table.astype(names).merge(spent[spent <= budget].index.to_frame(index=False), on=keys)


def mean_scores(table: pd.DataFrame, domain: str, split: str = "test", ks: Sequence[int] = (1, 8, 64)) -> pd.DataFrame:
    """Every configuration's Pass@k, means over seeds and problems: line (in words), POINT, seeds, Pass@k."""
    some = table[(table["domain"] == domain) & (table["split"] == split)].astype({"method": str})
    columns = {f"Pass@{k}": conclusions.estimates(some["n"], some["c"], k) for k in ks}
    by_run = some.assign(**columns).groupby([*POINT, "seed"], dropna=False)[list(columns)].mean()
    grouped = by_run.groupby(POINT, dropna=False)
    found = grouped.mean().assign(seeds=grouped.size()).reset_index()
    order = found["method"].map(conclusions.rank)
    found = found.assign(line=label(found)).iloc[np.argsort(order, kind="stable")]
    return found.reset_index(drop=True)


def every_point(table: pd.DataFrame, runs: pd.DataFrame, domain: str) -> pd.DataFrame:
    """`mean_scores` line by line, with the distance in nats per answer and the cost in millions, means over seeds."""
    measured = runs[runs["domain"] == domain].astype({"method": str})
    measured = (
        measured.assign(**{"M passes": cost(measured) / 1e6}).groupby(POINT, dropna=False)[["kl", "M passes"]].mean()
    )
    found = mean_scores(table, domain).merge(measured.reset_index(), on=POINT)
    return found[["line", "steps", "seeds", *SCORES, "kl", "M passes"]].dropna(axis="columns", how="all")


def best(table: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Every method's configuration that `RULE` chooses, with its scores on the test problems.

    Columns: strength, learning_rate, steps, back, seeds, Pass@1, Pass@8, Pass@64, and elsewhere, Pass@1 of what is not trained.
    """
    outcomes, behind = configurations(table)
    sweep, rows = Sweep(outcomes), {}
    chosen = conclusions.strengths(conclusions.run_scores(outcomes, (1, 8, 64)), domain)
    for name in sorted(chosen, key=conclusions.rank):
        of = name, chosen[name]
        mine = behind[(behind["domain"] == domain) & (behind["method"] == name)]
        mine = mine[mine["number"].isna() if of[1] is None else mine["number"] == of[1]].iloc[0]
        scores = {score: conclusions.mean(sweep, domain, of, score)["value"] for score in _drawn(sweep, domain)}
        scores["elsewhere"] = conclusions.mean(sweep, domain, of, "Pass@1", "probe")["value"]
        rows[name] = mine[[*POINT[1:], "seeds"]].to_dict() | scores
    return pd.DataFrame.from_dict(rows, orient="index")


def at_equal(table: pd.DataFrame, domain: str, target: float, other: str = "grpo") -> pd.DataFrame:
    """What loses least at equal Pass@1: every method minus `other`, each at the configuration with the best of what is
    `conclusions.highest` on validation among those that reach `target` there, chosen in every draw again.

    Rows (method, score), columns difference, low, high, p (corrected for all rows), seeds. Methods of which no configuration
    reaches the target on validation are left out, and all are where `other` does not.
    """
    outcomes, _ = configurations(table)
    validation = conclusions.run_scores(outcomes, (1,)).loc[domain].xs("validation", level="split")["Pass@1"]
    means = validation.groupby(["method", "strength"], dropna=False, observed=True).mean()
    highest = means.groupby("method").max()
    return _against(outcomes, domain, other, highest.index[highest >= target], at_least=target)


def at_equal_cost(
    table: pd.DataFrame, runs: pd.DataFrame, domain: str, budget: float, other: str = "grpo"
) -> pd.DataFrame:
    """What loses least at equal cost: as `at_equal`, each at what `RULE` chooses of the configurations within the budget."""
    outcomes, _ = configurations(affordable(table, runs, budget))
    return _against(outcomes, domain, other, outcomes.loc[outcomes["domain"] == domain, "method"].unique())


def _drawn(sweep: Sweep, domain: str) -> tuple[str, ...]:
    return SCORES[: SCORES.index(conclusions.highest(sweep, domain)) + 1]


def _against(outcomes: pd.DataFrame, domain: str, other: str, names, **rule) -> pd.DataFrame:
    sweep, rows = Sweep(outcomes), {}
    rivals = sorted(set(names) - {other, "base"}, key=conclusions.rank) if other in names else []
    for name, score in product(rivals, _drawn(sweep, domain)):
        with suppress(NotComparable):
            rows[name, score] = conclusions.best_difference(sweep, domain, name, other, score, **rule)
    return _corrected(rows, ["method", "score"])


def line_differences(
    table: pd.DataFrame,
    domain: str,
    pairs: Sequence[tuple[str, str]] | None = None,
    scores: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Path against path where both have the same Pass@1: what a choice between configurations is too coarse to see.

    Args:
        table: outcomes.
        domain: of which.
        pairs: of lines, as `label` names them; None: every line minus plain grpo at its own learning rate, plain grpo at each
            rate minus that at the next larger, dph-f at the larger rates minus grpo at the next smaller, and each divergence
            on the same stored answers minus dph-f.
        scores: such as Pass@64; None: Pass@8 and `conclusions.highest`.

    Returns:
        As `conclusions.at_equal_pass_at_1`, with a column domain.
    """
    along = lines(table[table["domain"] == domain])
    swept = along.groupby("method")["strength"].nunique()
    pairs = [pair for pair in (_pairs(along) if pairs is None else pairs) if swept.reindex(pair).gt(1).all()]
    scores = scores or list(dict.fromkeys(("Pass@8", conclusions.highest(table, domain))))
    return conclusions.at_equal_pass_at_1(along, domain, pairs, scores).assign(domain=domain)


def _pairs(along: pd.DataFrame) -> list[tuple[str, str]]:
    rates = [f"{rate:g}" for rate in sorted(along["learning_rate"].dropna().unique())]
    found = [(f"grpo at {small}", f"grpo at {large}") for small, large in pairwise(rates)]
    found += [(f"dph-f 0.3 at {large}", f"grpo at {small}") for small, large in pairwise(rates)]
    named = along.loc[along["method"].str.contains(" at "), "method"].unique()
    ends = [(name, name.rpartition(" at ")[2]) for name in sorted(named, key=conclusions.rank)]
    found += [(name, f"grpo at {rate}") for name, rate in ends if not name.startswith("grpo at ")]
    alone = ("dph-js", "dph-reverse_kl", "dph-hellinger", "dph-pearson_chi2")
    return found + [
        (name, f"dph-f 0.3 at {rate}") for name, rate in ends if name.startswith(alone) and rate in rates[-2:-1]
    ]


def where_it_helps(table: pd.DataFrame, methods: Sequence[str] = ("dph-f", "dph-js", "rkl", "sft")) -> pd.DataFrame:
    """In which domain a penalty adds something: each minus plain grpo at its own learning rate, in two places.

    Returns:
        Rows (domain, line, score). The score is what is `conclusions.highest`, along both paths at equal Pass@1; or "other
        tasks", their Pass@1 after the last step. Columns difference, low, high, p (corrected for all rows), seeds, and how
        much higher Pass@1 is after the last step.
    """
    rows = {}
    for domain in dict.fromkeys(table["domain"]):
        along = lines(table[table["domain"] == domain])
        sweep, score = Sweep(along), conclusions.highest(along, domain)
        swept, last = sweep.methods(domain), along["strength"].max()
        for name in sorted(swept, key=conclusions.rank):
            plain = f"grpo at {name.rpartition(' at ')[2]}"
            if name.split(" ")[0] not in methods or name.endswith(" back") or plain not in swept:
                continue
            runs = (name, last), (plain, last)
            with suppress(NotComparable):
                one = conclusions.difference(sweep, domain, *runs, "Pass@1")["value"]
                front = conclusions.front_difference(sweep, domain, name, plain, score)
                rows[domain, name, score] = front | {"Pass@1 in the end": one}
                elsewhere = conclusions.difference(sweep, domain, *runs, "Pass@1", "probe")
                rows[domain, name, "other tasks"] = elsewhere | {"Pass@1 in the end": one}
    return _corrected(rows, ["domain", "line", "score"], ["Pass@1 in the end"])


def smaller_step(table: pd.DataFrame) -> pd.DataFrame:
    """Plain grpo at each learning rate minus plain grpo at the next larger one, both after their last step, in every domain.

    Returns:
        Rows (domain, first, second, score): Pass@1, what is `conclusions.highest`, and "other tasks", their Pass@1. Columns
        difference, low, high, p (corrected for all rows), seeds.
    """
    rows = {}
    for domain in dict.fromkeys(table["domain"]):
        along = lines(table[table["domain"] == domain])
        sweep, last = Sweep(along), along["strength"].max()
        asked = {"Pass@1": ("Pass@1",), conclusions.highest(along, domain): (), "other tasks": ("Pass@1", "probe")}
        plain = [f"grpo at {rate:g}" for rate in sorted(along["learning_rate"].dropna().unique())]
        for first, second in pairwise(name for name in plain if name in sweep.methods(domain)):
            for score, where in asked.items():
                with suppress(NotComparable):
                    found = conclusions.difference(sweep, domain, (first, last), (second, last), *(where or (score,)))
                    rows[domain, first, second, score] = found
    return _corrected(rows, ["domain", "first", "second", "score"])


def _corrected(rows: dict[tuple, dict], names: Sequence[str], further: Sequence[str] = ()) -> pd.DataFrame:
    index, columns = pd.MultiIndex.from_tuples(rows, names=names), ["value", "low", "high", "p", "seeds", *further]
    found = pd.DataFrame(list(rows.values()), index, columns).rename(columns={"value": "difference"})
    return found.assign(p=holm(found["p"]))


def within_a_point(table: pd.DataFrame, domain: str) -> pd.DataFrame:
    """How near each method's nearest configuration comes to the best of `grpo` at one try and to the base model elsewhere.

    Nearness is the worst of three margins: Pass@1 minus that of grpo's best configuration, `conclusions.highest` minus the base
    model's, and Pass@1 on other tasks minus the base model's. The first two choose, on validation; all three are reported on the
    test problems, means over seeds. The goal is a worst above -.01.

    Returns:
        Rows methods, the best first: the columns of POINT but for the method, seeds, the three margins, worst, and grpo's choice.
    """
    mine, high = table[table["domain"] == domain], conclusions.highest(table, domain)
    outcomes, behind = configurations(mine)
    scores = conclusions.run_scores(outcomes, (1, 8, 64)).loc[domain].reset_index()
    means = scores.groupby(["split", "method", "strength"], dropna=False, observed=True)[["Pass@1", high]].mean()
    margins = {}
    for split in ("validation", "test", "probe"):
        of = means.loc[split]
        best = of.loc["grpo", "Pass@1"].max() if "grpo" in of.index.unique("method") else np.nan
        margins[split] = of - pd.Series({"Pass@1": best, high: of.loc["base", high].iloc[0]})
        margins[split]["elsewhere"] = of["Pass@1"] - of.loc["base", "Pass@1"].iloc[0]
    chosen = margins["validation"][["Pass@1", high]].min(axis=1).rename("chosen by").drop("base", level="method")
    found = margins["test"].assign(elsewhere=margins["probe"]["elsewhere"]).loc[chosen.index]
    found = found.rename(columns={"Pass@1": "Pass@1 - grpo", high: f"{high} - base", "elsewhere": "other tasks - base"})
    found = found.assign(worst=found.min(axis=1), by=chosen).sort_values("by", ascending=False).reset_index()
    found = found.drop_duplicates("method").drop(columns="by")
    known = behind[behind["domain"] == domain].rename(columns={"number": "strength", "strength": "at"})
    found = found.merge(known.drop(columns=["domain", "trained"]), on=["method", "strength"])
    order = ["at", *POINT[2:], "seeds"]
    found = found.drop(columns="strength").set_index("method").rename_axis(index=None)
    return found[[*order, *(name for name in found if name not in order)]].rename(columns={"at": "strength"})


_SLOWEST, _SLOW, _USUAL = 3, 2, 1  # learning rates of a domain, counted from the largest
# what differs between lines that are compared, and those lines: method, strength, learning rate
FACTORS = {
    "size of the step": [("grpo", None, rate) for rate in (_SLOWEST, _SLOW, _USUAL)],
    "size of the step, with dph-f": [("dph-f", 0.3, rate) for rate in (_SLOW, _USUAL)],
    "strength of dph-f": [("dph-f", strength, _SLOW) for strength in (0.1, 0.3, 1.0)],
    "a penalty, and which": [("grpo", None, _SLOW), *((name, 0.3, _SLOW) for name in ("dph-f", "rkl", "sft"))],
    "the divergence alone": [
        *(("dph-f", 0.3, _SLOW), ("dph-js", 0.6, _SLOW), ("dph-reverse_kl", 0.3, _SLOW)),
        *(("dph-hellinger", 0.6, _SLOW), ("dph-pearson_chi2", 0.15, _SLOW)),
    ],
    "which stored answers": [(name, 0.3, _SLOW) for name in ("dph-f", "dph-f+all", "dph-f+wrong", "dph-f+all+wrong")],
    "what is explored": [(name, None, _SLOW) for name in ("grpo", "grpo-exp", "grpo+seldom")],
    "what is rewarded": [
        *(("grpo", None, _SLOW), ("grpo+pass@4", None, _SLOW), ("grpo+distinct", None, _SLOW)),
        *(("grpo-entropy", 0.003, _SLOW), ("grpo-entropy", 0.03, _SLOW)),
    ],
}


def at_one_height(scores: pd.DataFrame, target: float, score: str = "Pass@64") -> pd.Series:
    """Another score where each line's Pass@1 first reaches `target`, straight between evaluated points from the base model on.

    Args:
        scores: from `mean_scores`, or of one seed.
        target: Pass@1.
        score: the column that is read.

    Returns:
        Line -> score; NaN where it never gets there.
    """
    base = scores[scores["method"] == "base"].iloc[0]
    found = {}
    for line, part in scores[(scores["method"] != "base") & (scores["back"] == 0)].groupby("line", sort=False):
        part = part.sort_values("steps")
        one, many = np.r_[base["Pass@1"], part["Pass@1"]], np.r_[base[score], part[score]]
        after = np.flatnonzero(one >= target)
        found[line] = (
            np.nan
            if not len(after) or not after[0]
            else np.interp(target, one[after[0] - 1 : after[0] + 1], many[after[0] - 1 : after[0] + 1])
        )
    return pd.Series(found, dtype=float)


def ranking(table: pd.DataFrame, domain: str, target: float, score: str = "Pass@64") -> pd.DataFrame:
    """What decides how much is lost at equal Pass@1: for each of FACTORS the lines' `score` where Pass@1 is `target`.

    The last row is the floor: how far seeds of one line (grpo at the slow step) lie apart, so what a factor has to exceed.

    Returns:
        Rows factors, the widest first: spread (highest minus lowest), best and worst line, lines (that get there), seeds (of the
        line that has fewest).
    """
    mine = table[table["domain"] == domain]
    scores = mean_scores(mine, domain)
    reached, seeds = at_one_height(scores, target, score), scores.groupby("line")["seeds"].min()
    rates = sorted(scores["learning_rate"].dropna().unique(), reverse=True)
    rows = {}
    for factor, points in FACTORS.items():
        asked = pd.DataFrame(points, columns=["method", "strength", "learning_rate"]).astype({"strength": float})
        asked = asked[asked["learning_rate"] <= len(rates)]
        asked = asked.assign(learning_rate=[rates[i - 1] for i in asked["learning_rate"]], back=0.0)
        rows[factor] = reached.reindex(label(asked)).dropna()
    slow = mine["learning_rate"].isin(rates[_SLOW - 1 : _SLOW]) & (mine["method"] == "grpo")
    each = {
        seed: mine[(slow & (mine["seed"] == seed)) | (mine["method"] == "base")]
        for seed in mine.loc[slow, "seed"].unique()
    }
    alone = {seed: at_one_height(mean_scores(part, domain), target, score) for seed, part in each.items()}
    floor = pd.Series({f"seed {seed}": found.iloc[0] for seed, found in alone.items()}, dtype=float).dropna()
    found = {
        factor: _spread(heights, int(seeds[heights.index].min()))
        for factor, heights in rows.items()
        if len(heights) > 1
    }
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]["spread"]))
    if len(floor) > 1:
        ordered["floor: seeds of grpo"] = _spread(floor, len(floor))
    return pd.DataFrame.from_dict(ordered, orient="index")


def _spread(heights: pd.Series, seeds: int) -> dict:
    ends = {"best": heights.idxmax(), "worst": heights.idxmin()}
    return {"spread": heights.max() - heights.min()} | ends | {"lines": len(heights), "seeds": seeds}


# ---- distance --------------------------------------------------------------------------------------------------------

LOSSES = {"lost": "{score} lost on the test problems", "lost elsewhere": "Pass@1 lost on other tasks"}


def distances(table: pd.DataFrame, runs: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Every evaluated point of every run: POINT, seed, kl, kl_probe (nats per answer), what was lost against the base model
    (columns of LOSSES), of which score (Pass@64, or Pass@8 where fewer were drawn), and Pass@1."""
    table, score = table[table["domain"] == domain], conclusions.highest(table, domain)
    scores = _by_point(table, score)
    base = scores[scores["method"] == "base"].iloc[0]
    trained = scores[scores["method"] != "base"]
    lost = {"lost": base[score] - trained[score], "lost elsewhere": base["elsewhere"] - trained["elsewhere"]}
    measured = runs.loc[runs["domain"] == domain, [*POINT, "seed", "kl", "kl_probe"]].astype({"method": str})
    return trained.assign(**lost, score=score).merge(measured, on=[*POINT, "seed"])


def _by_point(table: pd.DataFrame, score: str) -> pd.DataFrame:
    keys = [*POINT, "seed"]
    counts = table.astype({"method": str, "split": str})
    counts = counts.assign(**{f"Pass@{k}": conclusions.estimates(counts["n"], counts["c"], k) for k in (1, 8, 64)})
    means = counts.groupby([*keys, "split"], dropna=False)[list(dict.fromkeys(("Pass@1", score)))].mean().reset_index()
    test, probe = (means[means["split"] == split].drop(columns="split") for split in ("test", "probe"))
    elsewhere = probe[[*keys, "Pass@1"]].rename(columns={"Pass@1": "elsewhere"})
    return test.merge(elsewhere, on=keys)


def curve(kl: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """What is lost as a function of the distance: the least squares of a sqrt(kl) + b kl + c kl^2, which starts at nothing lost.

    Returns (a, b, c).
    """
    return np.linalg.lstsq(_basis(kl), np.asarray(lost, dtype=float), rcond=None)[0]


def _basis(kl) -> np.ndarray:
    kl = np.clip(np.asarray(kl, dtype=float), 0, None)
    return np.stack([np.sqrt(kl), kl, kl**2], axis=-1)


def on_curve(kl, coefficients: np.ndarray) -> np.ndarray:
    """What the curve says is lost at a distance."""
    return _basis(kl) @ coefficients


def leaves(points: pd.DataFrame, loss: str = "lost") -> tuple[pd.DataFrame, float]:
    """Does a method lie off the one curve of loss against KL? And how much of the loss the curve explains.

    The curve is fitted to all points but the method's own. A seed's deviation is the mean over its points; bands are Student's
    over seeds, and do not know of the choice of problems.

    Returns:
        Rows methods (`+wise` apart): off (what is lost above what others lose at this distance: positive is worse), low, high,
        p (corrected), seeds; and R^2 of the curve of all points.
    """
    kl, lost, name = points["kl"].to_numpy(), points[loss].to_numpy(), method_of(points).to_numpy()
    explained = 1 - ((lost - on_curve(kl, curve(kl, lost))) ** 2).sum() / ((lost - lost.mean()) ** 2).sum()
    rows = {}
    for method in sorted(set(name), key=conclusions.rank):
        mine = name == method
        if mine.all():
            continue
        off = lost[mine] - on_curve(kl[mine], curve(kl[~mine], lost[~mine]))
        by_seed = pd.Series(off).groupby(points["seed"].to_numpy()[mine]).mean()
        error, freedom = by_seed.std() / np.sqrt(len(by_seed)), len(by_seed) - 1
        half = error * stdtrit(freedom, (1 + CONFIDENCE) / 2) if freedom else np.nan
        with np.errstate(divide="ignore", invalid="ignore"):  # seeds may agree to the last digit
            p = 2 * stdtr(freedom, -abs(by_seed.mean()) / error) if freedom else np.nan
        rows[method] = {"off": by_seed.mean(), "low": by_seed.mean() - half, "high": by_seed.mean() + half, "p": p}
        rows[method]["seeds"] = len(by_seed)
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["off", "low", "high", "p", "seeds"])
    return found.assign(p=holm(found["p"])), float(explained)


# ---- the report ------------------------------------------------------------------------------------------------------


def verdicts(table: pd.DataFrame, rate: float | None = None, ks: Sequence[int] = (8, 64)) -> pd.DataFrame:
    """`conclusions.verdicts` at one learning rate, after the most steps, or (None) with each method at its best configuration:
    claims at equal Pass@1 are then left to `at_equal`."""
    if rate is not None:
        last = table.groupby("domain", observed=True)["steps"].transform("max")
        usual = np.isclose(table["learning_rate"], rate) & (table["steps"] == last) & (table["back"] == 0)
        return conclusions.verdicts(table[usual | (table["method"] == "base")], ks)
    claims = list(dict.fromkeys(claim for k in ks for claim in conclusions.claims(k) if not claim.matched))
    return conclusions.verdicts(configurations(table)[0], of=claims)


def report(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """All of it as text, domain by domain."""
    parts = [f"Choice: {RULE}. {conclusions.INFERENCE}"]
    for domain in dict.fromkeys(table["domain"]):
        parts += _of_domain(table[table["domain"] == domain], runs[runs["domain"] == domain], domain)
    step = "What a smaller step does: plain grpo minus plain grpo at the next larger rate, after the last step"
    across = {
        "Where a penalty adds something: minus plain grpo at the same learning rate": where_it_helps(table),
        step: smaller_step(table),
    }
    for title, found in across.items():
        if len(found):
            parts.append(
                f"\n## {title}, {found['p'].count()} comparisons with a p\n{conclusions.as_text(found.reset_index())}"
            )
    return "\n".join(parts)


def _of_domain(mine: pd.DataFrame, runs: pd.DataFrame, domain: str) -> list[str]:
    ran = runs[runs["method"] != "base"]
    paths = ran[["method", "strength", "learning_rate", "seed"]].drop_duplicates()
    parts = [f"\n## {domain}: {len(paths)} paths, {len(ran)} points evaluated"]
    if paths.empty:
        return parts
    tables = {"Every method at its configuration": best(mine, domain)}
    if ((ran["method"] == "grpo") & (ran["back"] == 0)).any():
        tables |= _beside_grpo(mine, ran, domain)
    tables["Every evaluated point"] = every_point(mine, runs, domain)
    found = line_differences(mine, domain).drop(columns=["domain", "differ in", "apart"])
    tables[f"Path against path at equal Pass@1: first minus second, {found['p'].count()} comparisons with a p"] = found
    points = distances(mine, ran, domain)
    for loss, words in LOSSES.items():
        found, explained = leaves(points, loss)
        lost = words.format(score=conclusions.highest(mine, domain))
        title = f"{lost}, by KL(policy, reference) per answer: one curve explains {explained:.0%}"
        tables[f"{title}; who leaves it (bands: seeds alone)"] = found
    parts += [f"\n{title}\n{_as_text(found)}" for title, found in tables.items()]
    ks = tuple(int(score.removeprefix("Pass@")) for score in _drawn(Sweep(mine), domain)[1:])
    for rate in (None, *sorted(ran["learning_rate"].dropna().unique())):
        where = "each method at its best configuration" if rate is None else f"learning rate {rate:g} throughout"
        found = verdicts(mine, rate, ks)
        if len(found):
            parts.append(f"\nWhich claims hold, {where}\n{conclusions.as_text(found)}")
    return parts


def _beside_grpo(mine: pd.DataFrame, ran: pd.DataFrame, domain: str) -> dict[str, pd.DataFrame]:
    """Everything against plain grpo, at equal Pass@1 and at equal cost, by title."""
    tables, high = {}, conclusions.highest(mine, domain)
    one = _by_point(mine, "Pass@1")
    base = one.loc[one["method"] == "base", "Pass@1"].mean()
    top = one[one["method"] == "grpo"].groupby(POINT, dropna=False)["Pass@1"].mean().max()
    for share in (0.5, 0.8, 0.95):  # of the way from the base model to the best Pass@1 that grpo reaches
        target = round(base + share * (top - base), 3)
        title = f"What loses least at equal Pass@1, validation Pass@1 of {target:g} or more: minus grpo (* p < .05)"
        tables[title] = at_equal(mine, domain, target)
        title = f"What decides how much is lost: {high} of single lines at Pass@1 = {target:g}"
        tables[title] = ranking(mine, domain, target, high)
    tables["Within a point of grpo's Pass@1 and of the base model elsewhere?"] = within_a_point(mine, domain)
    plain = ran[(ran["method"] == "grpo") & (ran["back"] == 0)]
    for steps, spent in plain.assign(cost=cost(plain)).groupby("steps")["cost"].mean().items():
        title = f"What loses least at the cost of grpo's {steps} steps ({spent / 1e6:.1f} M forward passes): minus grpo"
        tables[title] = at_equal_cost(mine, ran, domain, spent * 1.02)
    return tables


def _as_text(found: pd.DataFrame) -> str:
    if found.empty:
        return "no two methods get there"
    if isinstance(found.index, pd.MultiIndex):
        found = conclusions.differences_in_words(found)
    if "learning_rate" in found:
        rates = found["learning_rate"].map(lambda rate: "" if pd.isna(rate) else f"{rate:g}")
        found = found.assign(learning_rate=rates)
    return conclusions.as_text(found)
