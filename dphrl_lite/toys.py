"""Small worlds in which every divergence can be computed exactly: distributions on a grid, and the best fit among Gaussians.

The target plays the reference q, the Gaussian the policy p, as everywhere in the kit. Float64, no sampling.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dphrl_lite import divergences
from dphrl_lite.divergences import Divergence

GRID = torch.linspace(-8, 8, 201, dtype=torch.float64)
_MEANS, _LOG_WIDTHS = (-4.0, 4.0, 33), (-1.1, 1.4, 16)  # lowest, highest, number of candidates


def gaussian(mean: Tensor | float, width: Tensor | float) -> Tensor:
    """Probabilities of a Gaussian on `GRID` `[..., N]`, summing to 1; `mean` and `width` (standard deviation) broadcast."""
    mean, width = (torch.as_tensor(x, dtype=torch.float64)[..., None] for x in (mean, width))
    return torch.softmax(-(((GRID - mean) / width) ** 2) / 2, -1)


def two_modes(distance: float, weight: float, width: float = 0.6) -> Tensor:
    """The target `[N]`: two Gaussian modes `distance` apart around 0, the left one holding `weight` of the mass."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is the left mode's share of the mass, between 0 and 1; got {weight}")
    return weight * gaussian(-distance / 2, width) + (1 - weight) * gaussian(distance / 2, width)


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
        best = values.argmin()
        if not finer:
            means, log_widths = _around(means, mean[best]), _around(log_widths, width[best].log())
    return Fit(mean[best].item(), width[best].item(), values[best].item())


def _around(axis: Tensor, centre: Tensor) -> Tensor:
    """Eleven candidates between the neighbours of `centre` on `axis`."""
    step = axis[1] - axis[0]
    return centre + step * torch.linspace(-1, 1, 11, dtype=torch.float64)


@lru_cache(maxsize=512)
def best_fit(name: str, alpha: float, distance: float, weight: float) -> Fit:
    """`fit_gaussian` by divergence name and target, remembered: a slider asks for the same fit again and again."""
    divergence = divergences.get(name, alpha=alpha if name == "alpha" else None)
    return fit_gaussian(divergence, two_modes(distance, weight))


def mass_left(p: Tensor) -> float:
    """Share of a distribution on `GRID` that lies left of 0, where the left mode stands."""
    return p[GRID < 0].sum().item() + p[GRID == 0].sum().item() / 2
