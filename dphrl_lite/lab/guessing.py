"""What misleads about Pass@k: estimators that are biased or noisy, and models that guess. Exact: nothing is drawn.

Not here: the estimator that counts (`passk.pass_at_k`).
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from dphrl_lite.passk import pass_at_k


def with_replacement(n, c, k) -> np.ndarray | float:
    """The plug-in Pass@k = 1 - (1 - c/n)^k, as if the k were drawn from the n samples with replacement: too low on average.

    1 - (1 - p)^k is concave in p, so that its mean over the noise of c/n lies below its value at p. Arguments, result and
    errors as `passk.pass_at_k`.
    """
    pass_at_k(n, c, k)  # refuses what is impossible
    return 1.0 - (1.0 - np.asarray(c) / np.asarray(n)) ** np.asarray(k)


def with_guesses(n, c, k: int, guess, share: float) -> np.ndarray:
    """Pass@k of a model that replaces a `share` of its answers by blind guesses, unbiased as `passk.pass_at_k`.

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
