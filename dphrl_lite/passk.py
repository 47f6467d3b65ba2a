"""From outcomes (who solved what, how often) to Pass@k, Cover@tau and keep / forget / gain. Knows nothing of models.

Source of the estimator: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), eq. 1.
"""

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit


def pass_at_k(n, c, k) -> np.ndarray | float:
    """The unbiased Pass@k = 1 - C(n - c, k) / C(n, k): the chance that k of the n samples, drawn without replacement,
    hold at least one of the c correct ones.

    Args:
        n: samples drawn per problem (integers; n, c and k broadcast).
        c: how many of them are correct.
        k: how many one may submit.

    Returns:
        Array of the broadcast shape, or a float for scalars.

    Raises:
        ValueError: where k < 1, k > n, c > n, or a number is negative or not whole.
    """
    n, c, k = np.broadcast_arrays(*(whole_numbers(x, name) for x, name in ((n, "n"), (c, "c"), (k, "k"))))
    if (c > n).any():
        raise ValueError(f"more correct than drawn: c = {c[c > n].flat[0]} of n = {n[c > n].flat[0]}; expected c <= n")
    if (k < 1).any() or (k > n).any():
        bad = (k < 1) | (k > n)
        raise ValueError(
            f"k must lie between 1 and n: got k = {k[bad].flat[0]} with n = {n[bad].flat[0]} samples; draw more"
        )
    none_correct = np.ones(n.shape)
    for i in range(int(k.max(initial=0))):
        factor = np.clip(n - c - i, 0, None) / np.maximum(n - i, 1)
        none_correct = np.where(i < k, none_correct * factor, none_correct)
    return (1.0 - none_correct)[()]


def with_replacement(n, c, k) -> np.ndarray | float:
    """The plug-in Pass@k = 1 - (1 - c/n)^k, as if the k were drawn from the n samples with replacement: too low on average.

    1 - (1 - p)^k is concave in p, so that its mean over the noise of c/n lies below its value at p. Arguments, result and
    errors as `pass_at_k`.
    """
    pass_at_k(n, c, k)  # refuses what is impossible
    return 1.0 - (1.0 - np.asarray(c) / np.asarray(n)) ** np.asarray(k)


def with_guesses(n, c, k: int, guess, share: float) -> np.ndarray:
    """Pass@k of a model that replaces a `share` of its answers by blind guesses, unbiased as `pass_at_k`.

    Of k answers j are the model's own, binomially; all miss with chance (1 - Pass@j) (1 - guess)^(k - j).

    Args:
        n, c: samples of each problem and how many are right `[problems]`.
        k: at most the smallest n.
        guess: the chance that a guess is right, per problem `[problems]` or one for all.
        share: of the answers that are guesses, between 0 and 1.

    Returns:
        Pass@k of each problem.

    Raises:
        ValueError: as `pass_at_k`, or `guess` or `share` is no probability.
    """
    guess = np.asarray(guess, dtype=float)
    if not ((guess >= 0) & (guess <= 1)).all() or not 0 <= share <= 1:
        raise ValueError(f"guess and share must lie between 0 and 1; got guesses {guess} and share {share}")
    n, c, guess = (np.ravel(x)[:, None] for x in np.broadcast_arrays(n, c, guess))
    own = np.arange(k + 1)
    missed = np.where(own > 0, 1 - pass_at_k(n, c, np.maximum(own, 1)), 1.0) * (1 - guess) ** (k - own)
    return 1 - missed @ (_binomial(1 - share, k, own) if 0 < share < 1 else (own == (0 if share else k)) * 1.0)


def estimator_errors(rates, n: int, ks: Iterable[int]) -> pd.DataFrame:
    """Bias and standard deviation of three estimators of mean Pass@k where the truth is known. Exact: nothing is drawn.

    "unbiased" is `pass_at_k`, "with replacement" the plug-in, "first k" asks whether any of the first k samples is right.

    Args:
        rates: true chance of a right answer, per problem.
        n: samples of each problem; c of them are right, binomially.
        ks: each at most n.

    Returns:
        Table with k, estimator, truth, bias (expected value minus truth) and std, all of the mean over the problems.

    Raises:
        ValueError: a rate is no probability, or a k is larger than n.
    """
    rates, ks = np.ravel(np.asarray(rates, dtype=float)), list(ks)
    if len(rates) == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"rates must hold chances between 0 and 1, one per problem; got {rates}")
    c, rows = np.arange(n + 1), []
    chance = _binomial(rates[:, None], n, c)
    for k in ks:
        truth = 1 - (1 - rates) ** k
        for name, estimate in (("unbiased", pass_at_k), ("with replacement", with_replacement)):
            value = estimate(n, c, k)
            mean, square = chance @ value, chance @ value**2
            rows.append((k, name, truth.mean(), (mean - truth).mean(), _std_of_mean(square - mean**2)))
        rows.append((k, "first k", truth.mean(), 0.0, _std_of_mean(truth * (1 - truth))))
    return pd.DataFrame(rows, columns=["k", "estimator", "truth", "bias", "std"])


def _binomial(p: np.ndarray, n: int, c: np.ndarray) -> np.ndarray:
    """Chance of c right ones of n, by logarithms: large n do not overflow."""
    ways = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in c])
    logs = (np.log(np.clip(x, 1e-300, 1)) for x in (p, 1 - p))
    return np.exp(ways + c * next(logs) + (n - c) * next(logs))


def _std_of_mean(variances: np.ndarray) -> float:
    return float(np.sqrt(np.clip(variances, 0, None).sum()) / len(variances))


def whole_numbers(x, name: str) -> np.ndarray:
    """`x` as an integer array; `ValueError` for anything but finite whole numbers >= 0."""
    x = np.asarray(x)
    if (
        x.dtype == bool
        or not np.issubdtype(x.dtype, np.number)
        or not np.isfinite(x).all()
        or not np.all(x == np.floor(x))
        or (x < 0).any()
    ):
        raise ValueError(f"{name} must hold whole numbers >= 0; got {x!r}")
    return x.astype(np.int64)


_NUMBERS = re.compile(r"(cd\d+:[\d-]+):\d+")  # countdown: the same numbers, other targets
_DATABASE = re.compile(r"([^:]+):[^:]+:\d+")  # SQL: the same database, another question


def clusters_of(problem_ids: Iterable) -> list[str]:
    """What each problem shares with others, read from the kit's ids: the database of a question, the numbers of countdown.

    Problems that share it are solved or not together, so that bands draw it whole. Any other id stands for itself.
    """
    shared = lambda name: _NUMBERS.fullmatch(name) or _DATABASE.fullmatch(name)
    return [found.group(1) if (found := shared(str(name))) else str(name) for name in problem_ids]


@dataclass(frozen=True, eq=False, init=False)
class Outcomes:
    """Correct and drawn samples per problem.

    `Outcomes(correct)` takes a bool array `[problems, samples]`; `Outcomes.from_counts(n, c)` takes counts, and n may
    differ between problems. `problem_ids` (optional, any hashables) let `compare` match problems by name. `clusters`
    (optional, one label a problem) says which problems belong together; without it `clusters_of` the ids does.
    """

    n: np.ndarray
    c: np.ndarray
    problem_ids: tuple | None
    clusters: np.ndarray

    def __init__(self, correct, problem_ids: Iterable | None = None, clusters: Iterable | None = None):
        try:
            correct = np.asarray(correct)
        except ValueError:  # rows of different length
            correct = np.empty(0)
        if correct.ndim != 2 or not np.isin(correct, (0, 1)).all():
            raise ValueError(
                f"correct must be a bool array [problems, samples]; got shape {correct.shape} of {correct.dtype}. "
                "For problems with different numbers of samples use Outcomes.from_counts(n, c)"
            )
        self._fill(np.full(len(correct), correct.shape[1]), correct.sum(1), problem_ids, clusters)

    @classmethod
    def from_counts(cls, n, c, problem_ids: Iterable | None = None, clusters: Iterable | None = None) -> "Outcomes":
        """Outcomes from counts: `n` samples drawn (one number or one per problem), `c` of them correct `[problems]`."""
        self = cls.__new__(cls)
        self._fill(n, c, problem_ids, clusters)
        return self

    def _fill(self, n, c, problem_ids, clusters):
        n, c = np.atleast_1d(whole_numbers(n, "n")), np.atleast_1d(whole_numbers(c, "c"))
        if len(n) not in (1, len(c)):
            raise ValueError(f"n must be one number or one per problem; got {len(n)} numbers for {len(c)} problems")
        n = np.broadcast_to(n, c.shape)
        ids = None if problem_ids is None else tuple(problem_ids)
        if len(c) == 0 or (n < 1).any():
            raise ValueError("outcomes need at least one problem, and at least one sample of each")
        if (c > n).any():
            raise ValueError(f"more correct than drawn in problem {int(np.argmax(c > n))}; expected c <= n")
        if ids is not None and (len(ids) != len(c) or len(set(ids)) != len(ids)):
            raise ValueError(
                f"problem_ids must name each of the {len(c)} problems once; got {len(set(ids))} different ids"
            )
        labels = list(clusters if clusters is not None else clusters_of(ids if ids is not None else range(len(c))))
        if len(labels) != len(c):
            raise ValueError(f"clusters must hold one label for each of the {len(c)} problems; got {len(labels)}")
        codes = pd.factorize(pd.Series(labels, dtype=object))[0]
        for name, value in (("n", n.copy()), ("c", c.copy()), ("problem_ids", ids), ("clusters", codes)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.c)

    def __repr__(self) -> str:
        drawn = str(self.n.min()) if self.n.min() == self.n.max() else f"{self.n.min()} to {self.n.max()}"
        return f"Outcomes({len(self)} problems, {drawn} samples each, {self.c.sum() / self.n.sum():.1%} correct)"

    def pass_at_k(self, ks, confidence: float = 0.95, drop_short: bool = False) -> pd.DataFrame:
        """Unbiased Pass@k averaged over problems, with bands for the choice of problems, clusters whole (`share_band`).

        Args:
            ks: one k or several.
            confidence: coverage of the band, e.g. 0.95.
            drop_short: leave out problems with n < k, and say in the column `dropped` how many (default: an error).

        Returns:
            pandas table: k, mean, low, high, problems, clusters, dropped. The bands know nothing of training seeds.

        Raises:
            ValueError: a problem has n < k and `drop_short` is off, or no problem is left.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"need 0 < confidence < 1 (0.95 for 95 %); got {confidence=}")
        rows = [self._one_k(int(k), confidence, drop_short) for k in np.ravel(whole_numbers(ks, "k"))]
        return pd.DataFrame(rows, columns=["k", "mean", "low", "high", "problems", "clusters", "dropped"])

    def _one_k(self, k, confidence, drop_short):
        enough = self.n >= k
        if not enough.all() and not drop_short:
            raise ValueError(
                f"{(~enough).sum()} of {len(self)} problems have fewer than k = {k} samples (the smallest has "
                f"{self.n.min()}): ask for a smaller k, draw more, or pass drop_short=True to leave them out"
            )
        if not enough.any():
            raise ValueError(f"no problem has k = {k} samples; the most drawn is {self.n.max()}")
        values = pass_at_k(self.n[enough], self.c[enough], k)
        mean, problems = values.mean(), len(values)
        sums = np.bincount(self.clusters[enough], values - mean)  # over each cluster
        count = len(np.unique(self.clusters[enough]))
        variance = count / max(count - 1, 1) * (sums**2).sum() / problems**2
        low, high = share_band(mean, variance, problems, count - 1, confidence)
        return k, mean, low, high, problems, count, int((~enough).sum())

    def cover_at(self, taus) -> np.ndarray | float:
        """Cover@tau: share of problems with c/n >= tau (arXiv 2510.08325); the shape of `taus`, each in [0, 1]."""
        taus = np.asarray(taus, dtype=float)
        if not ((taus >= 0) & (taus <= 1)).all():
            raise ValueError(f"tau is a share of correct samples, between 0 and 1; got {taus}")
        return (self.c / self.n >= taus[..., None]).mean(-1)[()]


def powers(outcomes: Iterable[Outcomes]) -> list[int]:
    """The powers of two up to the fewest samples of a problem: the k that all of these can be asked for."""
    fewest = min(int(out.n.min()) for out in outcomes)
    return [2**i for i in range(fewest.bit_length())]


def share_band(mean: float, variance: float, problems: int, freedom: float, confidence: float) -> tuple[float, float]:
    """The band of a mean share (Wilson's, with the spread that was seen): it has width at 0 and 1, too.

    Wilson's band supposes that a problem is solved or not. Here its number of problems is multiplied by mean (1 - mean) /
    (problems x variance): shares between 0 and 1 scatter less, clusters more. Where failures (or successes) are few, their
    spread is unknown, so that one more is counted that is whole.

    Args:
        mean: between 0 and 1.
        variance: of that mean, over clusters (and seeds).
        problems: how many.
        freedom: degrees of freedom of the variance, for Student's t.
        confidence: e.g. .95.

    Returns:
        low, high.
    """
    rare, whole = problems * min(mean, 1 - mean), mean * (1 - mean)
    ratio = problems * variance / whole if whole > 0 else 0.0
    count = problems * (rare + 1) / (rare * ratio + 1)
    square = float(stdtrit(max(freedom, 1), (1 + confidence) / 2)) ** 2 / count
    middle, half = mean + square / 2, math.sqrt(square * whole + square**2 / 4)
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def compare(base: Outcomes, trained: Outcomes, k: int) -> pd.Series:
    """Expected numbers of problems kept, forgotten, gained and never solved with k samples, trained against base.

    With b and t a problem's unbiased Pass@k before and after, keep sums b t, forget b (1 - t), gain (1 - b) t and never
    (1 - b)(1 - t): the expected counts when k fresh samples are drawn from each model. Problems are matched by
    `problem_ids` where both have them, else by position.

    Returns:
        pandas Series with keep, forget, gain, never; they add up to the number of problems.

    Raises:
        ValueError: the two do not hold the same problems, or k is larger than n.
    """
    if np.ndim(k) != 0:
        raise ValueError(f"compare takes one k at a time; got {k!r}")
    order = _order(base, trained)
    b, t = pass_at_k(base.n, base.c, k), pass_at_k(trained.n, trained.c, k)[order]
    counts = {"keep": b * t, "forget": b * (1 - t), "gain": (1 - b) * t, "never": (1 - b) * (1 - t)}
    return pd.Series({name: float(value.sum()) for name, value in counts.items()})


def chance_forgets(out: Outcomes, k: int) -> float:
    """The expected number of problems that `compare` calls forgotten between two draws of k samples from *one* model.

    Solved in the first k and not in the next k: Pass@2k - Pass@k of each problem. It is the floor of "forgotten".

    Raises:
        ValueError: fewer than 2 k samples of a problem.
    """
    return float((pass_at_k(out.n, out.c, 2 * k) - pass_at_k(out.n, out.c, k)).sum())


def crossing(base: Outcomes, trained: Outcomes, ks: Iterable[int] | None = None) -> int | None:
    """The smallest k at which the trained model's Pass@k lies below the base model's, or None if it never does.

    Args:
        base, trained: outcomes of the same problems, matched as in `compare`.
        ks: the k that are looked at; None: every k up to the fewest samples of a problem.

    Returns:
        k of the first crossing: 1 where the trained model is worse from the start. Of the two means, without their bands.

    Raises:
        ValueError: the two do not hold the same problems, there is no k, or a k is larger than n.
    """
    _order(base, trained)
    fewest = int(min(base.n.min(), trained.n.min()))
    ks = np.arange(1, fewest + 1) if ks is None else np.unique(whole_numbers(list(ks), "k"))
    if len(ks) == 0:
        raise ValueError("ks is empty; expected at least one k, or None for every k up to the fewest samples")
    means = [pass_at_k(out.n[:, None], out.c[:, None], ks).mean(0) for out in (base, trained)]
    below = means[1] < means[0] - 1e-12  # equal counts in another order are no crossing
    return int(ks[np.argmax(below)]) if below.any() else None


def _order(base: Outcomes, trained: Outcomes) -> np.ndarray:
    """Places in `trained` of the problems of `base`, in its order; `ValueError` where they are not the same problems."""
    if base.problem_ids is not None and trained.problem_ids is not None:
        if odd := set(base.problem_ids) ^ set(trained.problem_ids):
            raise ValueError(
                f"base and trained must hold the same problems; {len(odd)} differ, e.g. {next(iter(odd))!r}"
            )
        place = {name: i for i, name in enumerate(trained.problem_ids)}
        return np.array([place[name] for name in base.problem_ids])
    if len(base) != len(trained):
        raise ValueError(f"base has {len(base)} problems and trained {len(trained)}; evaluate both on the same set")
    return np.arange(len(trained))


def died(counts: pd.DataFrame, base: str = "base", often: int = 8) -> pd.DataFrame:
    """How many of the answers that `base` gave at least `often` times each other model never gave.

    Were such an answer as likely as before, as many samples would miss it in fewer than exp(-often) of all cases.

    Args:
        counts: rows different right answers to one problem, columns models: how many of equally many samples gave it.
        base: the model that the others are compared with.
        often: fewer could be chance.

    Returns:
        Table by model: died, and of how many.
    """
    alive = counts[counts[base] >= often].drop(columns=base)
    return pd.DataFrame({"died": (alive == 0).sum(), "of": len(alive)})


# ---- anyone's counts -------------------------------------------------------------------------------------------------

_WANTED = (
    "expected a table with the columns n (answers drawn) and c (right ones), one row per problem and model, and if there "
    "are several also problem and model (or method, strength, seed); optional: family, cluster, distinct. Or single answers: "
    "lm-eval's samples, lighteval's details, verl's dumps, or any column problem beside a column correct of 0 and 1"
)
_PROBLEMS = ("problem", "doc_hash", "doc_id", "input", "prompt", "id")  # lm-eval, verl; lighteval: doc["id"]
_VERDICTS = ("correct", "acc", "exact_match", "extractive_match", "score")  # lighteval: in metric


def read_counts(source: str | Path | bytes, correct: str | None = None) -> pd.DataFrame:
    """A table of counts, whoever made it: CSV, JSON lines or Parquet, told apart by their content.

    Single answers are counted: rows of lm-eval's `--log_samples` (each of its filters is a model; run it several times for
    several answers), of lighteval's details, of verl's dumps of rollouts or validation (give one step's), or any others.

    Args:
        source: a file; its bytes; or a folder, of which all `*.parquet`, or else all `*.jsonl`, are read.
        correct: of single answers, the column (or lighteval's metric) that is 1 for a right one; None: the first known one.

    Returns:
        Table with model, family, problem, n, c, and cluster and distinct where they are given. Runs of one method at several
        strengths or seeds are models of their own. Without a column `problem`, problems are numbered by their place.

    Raises:
        FileNotFoundError: there is no such file, or no `*.parquet` in the folder.
        ValueError: not a table, columns are missing, or rows are impossible; the message says which and why.
    """
    table = _parsed(source).rename(columns=lambda name: str(name).strip())
    table = table if {"n", "c"} & set(table) or table.empty else _counted(table, correct)
    if missing := {"n", "c"} - set(table):
        raise ValueError(f"no column {' and no column '.join(sorted(missing))} among {list(table)}: {_WANTED}")
    if table.empty:
        raise ValueError(f"the table has no rows: {_WANTED}")
    numbers = {name: _whole_column(table, name) for name in ("n", "c", "distinct") if name in table}
    found = pd.DataFrame({"model": _model_names(table), "family": table.get("family", pd.Series("", table.index))})
    more = {name: table[name].astype(str) for name in ("cluster",) if name in table}
    found = found.astype(str).assign(problem=table.get("problem"), **more, **numbers)
    groups = ["model", "family"]
    found["problem"] = (found.groupby(groups).cumcount() if "problem" not in table else found["problem"]).astype(str)
    _refuse(found, found["n"] < 1, "n = 0: expected at least one answer to each problem")
    _refuse(found, found["c"] > found["n"], "more right answers than were drawn; expected c <= n")
    _refuse(
        found,
        found.duplicated([*groups, "problem"]),
        "its problem stands there before, for the same model: expected one row each; name the runs in model or seed",
    )
    return found[[*groups, "problem", *more, *numbers]]


def _counted(table: pd.DataFrame, correct: str | None) -> pd.DataFrame:
    """Single answers as counts; a table without a problem or a verdict as it came."""
    rows = table.copy()
    for name, kept in (("metric", _VERDICTS if correct is None else (correct,)), ("doc", ("id",))):
        if name in rows and isinstance(rows[name].iloc[0], dict):  # as lighteval has them
            inside = pd.DataFrame(rows[name].tolist(), rows.index)
            rows = rows.assign(**{column: inside[column] for column in kept if column in inside})
    problem = next((name for name in _PROBLEMS if name in rows), None)
    verdict = correct or next((name for name in _VERDICTS if name in rows), None)
    if problem is None or verdict not in rows:
        return table
    right = pd.to_numeric(rows[verdict], errors="coerce")
    _refuse(
        rows, ~right.isin((0, 1)), f"{verdict} must be 1 for a right answer and 0 for a wrong one; name another column"
    )
    rows = rows.assign(model=rows["filter"]) if "filter" in rows and "model" not in rows else rows  # lm-eval
    keys = [name for name in ("model", "method", "strength", "seed", "family", "cluster") if name in rows]
    groups = right.groupby([rows[name].rename(name) for name in keys] + [rows[problem].rename("problem")], sort=False)
    return groups.agg(n="count", c="sum").reset_index()


def _parsed(source: str | Path | bytes) -> pd.DataFrame:
    if not isinstance(source, bytes):
        inside = (sorted(Path(source).glob(kind)) for kind in ("*.parquet", "*.jsonl"))
        paths = next(filter(None, inside), []) if Path(source).is_dir() else [Path(source)]
        if not paths or not paths[0].is_file():
            raise FileNotFoundError(
                f"no table at {source}: expected a CSV, JSON lines or Parquet file, or a folder of them"
            )
        return pd.concat([_parsed(path.read_bytes()) for path in paths], ignore_index=True)
    stream, head = io.BytesIO(source), source.lstrip()[:1]
    first = source.split(b"\n", 1)[0]
    try:
        if source[:4] == b"PAR1":
            return pd.read_parquet(stream)
        if head in (b"{", b"["):
            return pd.read_json(stream, lines=head == b"{")
        return pd.read_csv(stream, sep=max(",;\t", key=lambda sep: first.count(sep.encode())))
    except (ValueError, OSError) as error:  # pandas' and Arrow's own errors are ValueErrors or OSErrors
        raise ValueError(f"this is neither CSV nor JSON lines nor Parquet ({error}): {_WANTED}") from error


def _whole_column(table: pd.DataFrame, name: str) -> pd.Series:
    numbers = pd.to_numeric(table[name], errors="coerce")
    _refuse(table, ~((numbers >= 0) & (numbers % 1 == 0)), f"{name} must be a whole number >= 0")
    return numbers.astype("int64")


def _refuse(table: pd.DataFrame, bad: pd.Series, why: str):
    if bad.any():
        place = int(np.argmax(bad))
        row = ", ".join(f"{name} {table[name].iloc[place]}" for name in ("model", "problem", "n", "c") if name in table)
        raise ValueError(f"{bad.sum()} of {len(table)} rows are wrong, the first is row {place + 1} ({row}): {why}")


def _model_names(table: pd.DataFrame) -> pd.Series:
    """`model` or `method`, with the strength and the seed where one of them has several."""
    name = table.get("model", table.get("method", pd.Series("model", table.index))).astype(str)
    for column, word in (("strength", " at "), ("seed", ", seed ")):
        if column in table:
            several = table[column].groupby(name).transform("nunique") > 1
            name = name.where(~several, name + word + table[column].astype(str))
    return name


def by_model(counts: pd.DataFrame, family: str | None = None) -> dict[str, Outcomes]:
    """Model -> `Outcomes` of a table from `read_counts`, of one family of problems or of all."""
    part = counts if family is None else counts[counts["family"] == family]
    names = part["family"] + "/" + part["problem"]
    groups = part.assign(name=names).groupby("model", sort=False)
    shared = lambda rows: rows["cluster"] if "cluster" in rows else clusters_of(rows["problem"])
    return {model: Outcomes.from_counts(rows["n"], rows["c"], rows["name"], shared(rows)) for model, rows in groups}
