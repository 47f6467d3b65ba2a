"""Writes the tables of paths in docs/results.md again, from data/paths: `python docs/tables.py` (about a minute).

A table stands below a line `<!-- table: NAME -->`, with a name of `TABLES`; the words around it are nobody's but a writer's.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dphrl_lite.study import path_conclusions, paths

PAGE = Path(__file__).with_name("results.md")
MARKED = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n\n)((?:\|.*\n)+)")
LEFT_OUT = r"0\.5 back|grpo-entropy 0\.003|rkl-exp"  # of countdown's lines, for length

Table = tuple[list[str], list[list[str]]]  # headings, rows


def at_the_end(outcomes: pd.DataFrame, runs: pd.DataFrame, domain: str, left_out: str = "(?!)") -> Table:
    """Scores of every line after its last step, its distance and its cost."""
    found = path_conclusions.every_point(outcomes, runs, domain)
    last = found["steps"].max()
    found = found[found["steps"].isin([0, last]) & ~found["line"].str.contains(left_out)]
    heads, rows = _scores(found)
    rows = [[*row, f"{million:.1f}"] for row, million in zip(rows, found["M passes"], strict=True)]
    return [f"line, after {last} steps", *heads, "cost, M"], rows


def at_every_point(outcomes: pd.DataFrame, runs: pd.DataFrame, domain: str) -> Table:
    """The same after all the steps that were evaluated, without the cost."""
    found = path_conclusions.every_point(outcomes, runs, domain)
    heads, rows = _scores(found)
    steps = found["steps"].astype(str)
    return ["line", "steps", *heads], [[row[0], step, *row[1:]] for row, step in zip(rows, steps, strict=True)]


def _scores(found: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    scores = [name for name in path_conclusions.SCORES if name in found]
    rows = [
        [f"`{row['line']}`", str(row["seeds"]), *(_share(row[name]) for name in scores), f"{abs(row['kl']):.2f}"]
        for row in found.to_dict("records")
    ]
    return ["seeds", *scores, "KL, nats"], rows


def equal_pass_at_1(outcomes: pd.DataFrame, runs: pd.DataFrame) -> Table:
    """Path against path on countdown."""
    found = path_conclusions.line_differences(outcomes, "countdown", scores=["Pass@64"])
    rows = [[f"`{row.first}`", f"`{row.second}`", *_points(row), f"{row.seeds:g}"] for row in found.itertuples()]
    return ["first", "second", "Pass@64", "interval", "seeds"], rows


def where_it_helps(outcomes: pd.DataFrame, runs: pd.DataFrame) -> Table:
    """Each penalty minus plain GRPO at its own learning rate."""
    found = path_conclusions.where_it_helps(outcomes).rename(columns={"Pass@1 in the end": "end"}).reset_index()
    rows = [
        [
            row.domain,
            f"`{row.line}`",
            row.score,
            *_points(row),
            "-" if pd.isna(row.p) else f"{row.p:.2f}",
            f"{row.seeds:g}",
            f"{100 * row.end:+.1f}",
        ]
        for row in found.itertuples()
    ]
    return ["domain", "line", "what", "difference", "interval", "p", "seeds", "Pass@1 in the end"], rows


def smaller_step(outcomes: pd.DataFrame, runs: pd.DataFrame) -> Table:
    """Plain GRPO at neighbouring learning rates."""
    found = path_conclusions.smaller_step(outcomes).reset_index()
    rows = [
        [row.domain, f"`{row.first}`", f"`{row.second}`", row.score, *_points(row), f"{row.p:.3f}", f"{row.seeds:g}"]
        for row in found.itertuples()
    ]
    return ["domain", "first", "second", "what", "difference", "interval", "p", "seeds"], rows


def _points(row) -> tuple[str, str]:
    if pd.isna(row.difference):
        return "-", "no common Pass@1"
    return f"{100 * row.difference:+.1f}", f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0").replace("1.000", "1")


TABLES: dict[str, Callable[[pd.DataFrame, pd.DataFrame], Table]] = {
    "countdown": lambda *of: at_the_end(*of, "countdown", LEFT_OUT),
    "equal-pass-at-1": equal_pass_at_1,
    "sql": lambda *of: at_the_end(*of, "sql"),
    "few": lambda *of: at_the_end(*of, "countdown-few"),
    "stale": lambda *of: at_the_end(*of, "countdown-stale"),
    "long": lambda *of: at_the_end(*of, "countdown-long"),
    "where-it-helps": where_it_helps,
    "smaller-step": smaller_step,
    "multiplication": lambda *of: at_every_point(*of, "multiplication"),
}


def renewed(text: str, outcomes: pd.DataFrame, runs: pd.DataFrame) -> str:
    """A page with its marked tables made again."""

    def again(found: re.Match) -> str:
        name, between, _ = found.groups()
        heads, rows = TABLES[name](outcomes, runs)
        lines = [heads, ["---"] * len(heads), *rows]
        return name + between + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    missing = set(TABLES) - {found[1] for found in MARKED.finditer(text)}
    if missing:
        raise ValueError(f"no table below a line <!-- table: NAME --> for {sorted(missing)}; write one, with any row")
    return MARKED.sub(again, text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), *paths.read(sys.argv[1] if len(sys.argv) > 1 else paths.PATHS)))
