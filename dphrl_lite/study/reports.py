"""Tables of evaluations for people to read: scores of each set, what has changed since another evaluation, and both in Markdown.

What outcomes are is said in `evaluation`; which differences may be believed is `conclusions`'s.
"""

from collections.abc import Iterable

import pandas as pd

from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.passk import Outcomes, compare

GROUPS = {True: "in domain", False: "out of domain"}


def scores(table: pd.DataFrame, ks: Iterable[int], confidence: float = 0.95) -> pd.DataFrame:
    """Per set, those in domain first: problems, greedy, mean@n, Pass@k with `low k` and `high k`, cover@0.5, distinct.

    mean@n is the share of right answers among all n; cover@0.5 the share of problems of which at least half are right. A
    group of several sets gets a row with the mean over its sets, without a band.
    """
    rows = {}
    for group, name in GROUPS.items():
        families = table[table["in_domain"] == group].groupby("family", sort=False)
        for family, part in families:
            rows[name, family] = _scores(part, ks, confidence)
        if len(families) > 1:
            sets = pd.DataFrame([row for (of, _), row in rows.items() if of == name])
            mean = sets[[column for column in sets if not column.startswith(("low", "high"))]].mean()
            rows[name, "mean of sets"] = mean.to_dict() | {"problems": sets["problems"].sum()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _scores(part: pd.DataFrame, ks: Iterable[int], confidence: float) -> dict[str, float]:
    outcomes = Outcomes.from_counts(part["n"], part["c"], part["problem"])
    row = {"problems": len(part)} | ({"greedy": part["greedy"].mean()} if "greedy" in part else {})
    row[f"mean@{part['n'].max()}"] = (part["c"] / part["n"]).mean()
    for at in outcomes.pass_at_k(list(ks), confidence).itertuples():
        row |= {f"Pass@{at.k}": at.mean, f"low {at.k}": at.low, f"high {at.k}": at.high}
    return row | {"cover@0.5": float(outcomes.cover_at(0.5)), "distinct": part["distinct"].mean()}


def changes(base: pd.DataFrame, table: pd.DataFrame, k: int) -> pd.DataFrame:
    """Per set that both evaluated: expected problems kept, forgotten, gained and never solved with k answers.

    Raises:
        ValueError: no set in common, other problems in one of them, or fewer than k samples.
    """
    rows = {}
    for family, part in table.groupby("family", sort=False):
        other = base[base["family"] == family]
        if len(other):
            both = (Outcomes.from_counts(t["n"], t["c"], t["problem"]) for t in (other, part))
            try:
                rows[GROUPS[bool(part["in_domain"].iloc[0])], family] = compare(*both, k)
            except ValueError as error:
                raise ValueError(f"set {family!r}: {error}; evaluate both on the same problems") from error
    if not rows:
        raise ValueError(f"nothing to compare: the other evaluation has only the sets {sorted(set(base['family']))}")
    return pd.DataFrame.from_dict(rows, orient="index")


def report(table: pd.DataFrame, config: EvaluateConfig, base: pd.DataFrame | None = None) -> str:
    """The tables of an evaluation in Markdown; with the outcomes of `base`, what has changed since at the largest k.

    Where the two cannot be compared, the report says why.
    """
    text = f"{config.samples} answers to each problem at temperature {config.temperature:g}, top-p {config.top_p:g}; "
    text += (
        f"in brackets {config.confidence:.0%} bands for the choice of problems (those that share a database or numbers "
    )
    text += "are drawn whole); distinct: different right answers to one.\n"
    text += f"\n{markdown(scores(table, config.all_ks, config.confidence))}\n"
    if base is not None:
        text += _against(base, table, min(config.all_ks[-1], base["n"].min()))
    return text


def _against(base: pd.DataFrame, table: pd.DataFrame, k: int) -> str:
    name = base["method"].iloc[0]
    try:
        changed = markdown(changes(base, table, k))
    except ValueError as error:
        return f"\nNot compared with {name}: {error}.\n"
    than = f"{name}: expected number of problems solved with k = {k} answers"
    return f"\nAgainst {than} before and after (keep), only before (forget), only after (gain), never.\n\n{changed}\n"


def markdown(table: pd.DataFrame) -> str:
    """A table of `scores` or `changes` in Markdown, each Pass@k with its band."""
    columns = [column for column in table if not column.startswith(("low", "high"))]
    lines = [["", "set", *columns], ["---"] * (2 + len(columns))]
    lines += [[*map(str, index), *(_cell(row, column) for column in columns)] for index, row in table.iterrows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: pd.Series, column: str) -> str:
    if column in ("problems", "keep", "forget", "gain", "never"):
        return f"{row[column]:.0f}" if column == "problems" else f"{row[column]:.1f}"
    low, high = (row.get(column.replace("Pass@", end)) for end in ("low ", "high "))
    band = column.startswith("Pass@") and pd.notna(low)
    return f"{row[column]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if band else "")
