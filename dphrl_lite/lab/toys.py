"""Small worlds in which every divergence can be computed exactly: mixtures on a grid and their best Gaussian, flows on the
simplex, and the optimum of reward against penalty. Float64, no sampling.

The target plays the reference q, what is fitted or moved the policy p, as everywhere in the kit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dphrl_lite import divergences
from dphrl_lite.divergences import Divergence

GRID = torch.linspace(-10, 10, 251, dtype=torch.float64)
_MEANS, _LOG_WIDTHS = (-6.0, 6.0, 49), (-1.4, 1.5, 17)  # lowest, highest, number of candidates


def gaussian(mean: Tensor | float, width: Tensor | float) -> Tensor:
    """Probabilities of a Gaussian on `GRID` `[..., N]`, summing to 1; `mean` and `width` (standard deviation) broadcast."""
    mean, width = (torch.as_tensor(x, dtype=torch.float64)[..., None] for x in (mean, width))
    return torch.softmax(-(((GRID - mean) / width) ** 2) / 2, -1)


@dataclass(frozen=True)
class Modes:
    """A target: `count` Gaussian modes around 0, neighbours `distance` apart, each of standard deviation `width`.

    The leftmost holds `weight` of the mass, the others share the rest equally.
    """

    count: int = 2
    distance: float = 4.0
    weight: float = 0.5
    width: float = 0.6

    def __post_init__(self):
        if not 0 <= self.weight <= 1 or self.count < 2 or self.width <= 0 or self.distance < 0:
            raise ValueError(
                "a target needs count >= 2 modes, distance >= 0, width > 0, and weight, the left mode's share of the "
                f"mass, between 0 and 1; got {self}"
            )

    @property
    def centres(self) -> Tensor:
        """Where the modes stand `[count]`."""
        return self.distance * (torch.arange(self.count, dtype=torch.float64) - (self.count - 1) / 2)

    @property
    def weights(self) -> Tensor:
        """Each mode's share of the mass `[count]`."""
        rest = (1 - self.weight) / (self.count - 1)
        return torch.tensor([self.weight] + [rest] * (self.count - 1), dtype=torch.float64)

    def density(self) -> Tensor:
        """Probabilities on `GRID` `[N]`, summing to 1."""
        return self.weights @ gaussian(self.centres, self.width)

    def shares(self, p: Tensor) -> Tensor:
        """How much of a distribution on `GRID` lies nearest to each mode `[count]`."""
        nearest = (GRID[:, None] - self.centres).abs().argmin(-1)
        return torch.zeros(self.count, dtype=torch.float64).index_add(0, nearest, p)

    def off_target(self, p: Tensor) -> Tensor:
        """How much of a distribution on `GRID` `[..., N]` lies where the target has next to nothing (`is_off`), `[...]`."""
        return (p * self.is_off()).sum(-1)

    def is_off(self) -> Tensor:
        """Where on `GRID` the target has less than a twentieth of its highest density, bool `[N]`."""
        density = self.density()
        return density < 0.05 * density.max()


@dataclass(frozen=True)
class Fit:
    """The best Gaussian policy for a target: its mean, width, and the divergence left (nats)."""

    mean: float
    width: float
    value: float


def fit_gaussian(divergence: Divergence, target: Tensor) -> Fit:
    """The Gaussian p that minimises D_f(p || target), by exhaustive search over means and widths, then a finer one near by.

    Exhaustive, because a divergence that seeks modes has a local minimum at each of them.
    """
    # beyond double precision a Gaussian's tail is 0, and 0 under the target is infinitely bad or no matter at all
    target = target.clamp(min=1e-300)
    means, log_widths = (torch.linspace(*axis, dtype=torch.float64) for axis in (_MEANS, _LOG_WIDTHS))
    for finer in (False, True):
        mean, width = (axis.flatten() for axis in torch.meshgrid(means, log_widths.exp(), indexing="ij"))
        values = divergence.exact(gaussian(mean, width).clamp(min=1e-300), target)
        best = values.round(decimals=12).argmin()  # of equal ones the left, whatever a CPU makes of the last bits
        if not finer:
            means, log_widths = _around(means, mean[best]), _around(log_widths, width[best].log())
    return Fit(mean[best].item(), width[best].item(), values[best].item())


def _around(axis: Tensor, centre: Tensor) -> Tensor:
    """Eleven candidates between the neighbours of `centre` on `axis`."""
    step = axis[1] - axis[0]
    return centre + step * torch.linspace(-1, 1, 11, dtype=torch.float64)


@lru_cache(maxsize=512)
def best_fit(name: str, alpha: float = 0.5, target: Modes = Modes()) -> Fit:
    """`fit_gaussian` by divergence name, remembered: a slider asks for the same fit again and again."""
    return fit_gaussian(named(name, alpha), target.density())


def named(name: str, alpha: float = 0.5) -> Divergence:
    """The divergence `name`, with `alpha` where it takes one: what a dropdown and a slider say together."""
    return divergences.get(name, alpha=alpha if name == "alpha" else None)


# ---- the simplex: a categorical with all freedom -----------------------------------------------------------------------


def simplex_flow(divergence: Divergence, reference: Tensor, starts: Tensor, times: Tensor) -> Tensor:
    """Gradient flow of D_f(p || reference) in the logits of p, from several starts: what a penalty alone does over time.

    Args:
        divergence: what is descended.
        reference: q `[N]`, positive.
        starts: first values of p `[starts, N]`, positive.
        times: increasing times at which p is recorded `[T]`, from 0.

    Returns:
        p `[T, starts, N]`. Explicit steps of at most 0.1 in time, shortened where the gradient is steep.
    """
    logits, path = starts.to(torch.float64).log(), []
    now = 0.0
    for time in times.tolist():
        while now < time - 1e-12:
            step = min(0.1, time - now)
            logits, now = _downhill(divergence, reference, logits, step), now + step
        path.append(torch.softmax(logits, -1))
    return torch.stack(path)


def corner_flows(penalties: Mapping[str, Divergence], first: float, until: float) -> tuple[dict[str, Tensor], Tensor]:
    """`simplex_flow` of each penalty at times 0, 1, ... `until`, from three policies near the corners of a triangle `[T, 3, 3]`.

    Given with the reference `[3]`: `first` is its share of the first answer, and two thirds of the rest are the second's.
    """
    reference = torch.tensor([first, 2 * (1 - first) / 3, (1 - first) / 3], dtype=torch.float64)
    starts = 0.97 * torch.eye(3, dtype=torch.float64) + 0.01
    times = torch.arange(int(until) + 1, dtype=torch.float64)
    return {name: simplex_flow(penalty, reference, starts, times) for name, penalty in penalties.items()}, reference


def _downhill(divergence: Divergence, q: Tensor, logits: Tensor, step: float) -> Tensor:
    log_p = torch.log_softmax(logits, -1)
    pull = q * divergence.force(log_p - q.log())  # dD/dlog p
    gradient = pull - log_p.exp() * pull.sum(-1, keepdim=True)
    # a restoring force without bound (forward KL's is bounded, chi-square's is not) must not jump over the minimum
    largest = gradient.abs().amax(-1, keepdim=True).clamp(min=1)
    return logits - step * gradient / largest


# ---- reward against penalty ----------------------------------------------------------------------------------------------


def optimum(divergence: Divergence, reference: Tensor, reward: Tensor, strength: Tensor | float) -> Tensor:
    """The p that maximises E_p[reward] - strength * D_f(p || reference), by solving its first-order conditions.

    They read r_i - strength * f'(u_i) = lambda for every i with p_i = q_i u_i > 0, and sum_i q_i u_i = 1: f' is
    inverted on a fine grid of log u, and lambda found by bisection.

    Args:
        divergence: strictly convex near the solution.
        reference: q `[N]`, positive.
        reward: r `[N]`.
        strength: one or several, positive, `[...]`.

    Returns:
        p `[..., N]`, normalised.

    Raises:
        ValueError: a strength that is not positive.
    """
    strength = torch.as_tensor(strength, dtype=torch.float64)[..., None]
    if (strength <= 0).any():
        raise ValueError(
            f"strength must be positive (at 0 the optimum is the best reward alone); got {strength.min():g}"
        )
    log_u, slope = _slopes(divergence)
    # lambda lies among the rewards: below the least every u is above 1, above the greatest every u is below it
    low, high = reward.min() + 0 * strength, reward.max() + 0 * strength
    for _ in range(36):
        middle = (low + high) / 2
        mass = (reference * _inverse(slope, log_u, (reward - middle) / strength).exp()).sum(-1, keepdim=True)
        low, high = torch.where(mass > 1, middle, low), torch.where(mass > 1, high, middle)
    p = reference * _inverse(slope, log_u, (reward - (low + high) / 2) / strength).exp()
    return p / p.sum(-1, keepdim=True)


@lru_cache(maxsize=64)
def _slopes(divergence: Divergence) -> tuple[Tensor, Tensor]:
    """A fine grid of log u, and f'(u) on it, which increases."""
    log_u = torch.linspace(-60, 40, 20_001, dtype=torch.float64)
    return log_u, divergence.force(log_u) * torch.exp(-log_u)


def _inverse(slope: Tensor, log_u: Tensor, wanted: Tensor) -> Tensor:
    """log u at which f'(u) is `wanted`, between grid points by straight lines, at the ends the ends."""
    right = torch.searchsorted(slope, wanted.contiguous()).clamp(1, len(slope) - 1)
    left = right - 1
    share = (wanted - slope[left]) / (slope[right] - slope[left]).clamp(min=1e-300)
    return log_u[left] + share.clamp(0, 1) * (log_u[right] - log_u[left])
