"""From outcomes (who solved what, how often) to Pass@k, Cover@tau and keep / forget / gain. Knows nothing of models.

Not here: estimators that mislead, and models that guess (`lab.guessing`); tables that others made (`study.counts`).

Source of the estimator: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), eq. 1.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pandas as pd

_ROOM_OF = dict.fromkeys(("with_replacement", "with_guesses", "estimator_errors"), "lab.guessing")
_ROOM_OF |= dict.fromkeys(("read_counts", "by_model"), "study.counts")


def __getattr__(name: str):
    """What is beside the estimator, `passk.read_counts` and the like, is found in its room, and loaded then only."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dphrl_lite.{_ROOM_OF[name]}"), name)


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
# the kit's questions about one database
_DATABASE = re.compile(r"([^:]+):(?:count|different|filter|most|number|per|whose|without):\d+")
# arithmetic: the same two numbers, in another order or wording
_OPERANDS = re.compile(r"(multiplication|addition|subtraction):\d+:(\d+)-(\d+)")


def clusters_of(problem_ids: Iterable) -> list[str]:
    """What each problem shares with others, read from the kit's ids: the database of a question, the numbers of countdown or
    of a product.

    Problems that share it are solved or not together, so that bands draw it whole. Any other id stands for itself.
    """
    return [_cluster(str(name)) for name in problem_ids]


def _cluster(name: str) -> str:
    if match := _NUMBERS.fullmatch(name) or _DATABASE.fullmatch(name):
        return match[1]
    if match := _OPERANDS.fullmatch(name):
        family, *numbers = match.groups()
        return f"{family}:" + "-".join(sorted(numbers, key=int))
    return name


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
        codes = np.where(codes < 0, len(codes) + np.arange(len(codes)), codes)  # without a label, on its own
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
        return (self.c / self.n >= taus[..., None] - 1e-12).mean(-1)[()]


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
    from scipy.special import stdtrit  # a third of a second, for bands alone

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
