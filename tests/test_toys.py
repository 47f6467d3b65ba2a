"""The toy worlds against moments, symmetry, and an independent optimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dphrl_lite import divergences, toys


def test_gaussians_and_mixtures_are_normalised_with_the_right_moments():
    p = toys.gaussian(1.0, 0.7)
    mean = (p * toys.GRID).sum()
    assert p.sum().item() == pytest.approx(1)
    assert mean.item() == pytest.approx(1, abs=1e-3)
    assert ((p * (toys.GRID - mean) ** 2).sum().sqrt()).item() == pytest.approx(0.7, abs=1e-2)
    q = toys.two_modes(4.0, 0.3)
    assert q.sum().item() == pytest.approx(1)
    assert toys.mass_left(q) == pytest.approx(0.3, abs=1e-2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        toys.two_modes(4.0, 1.3)


def test_forward_kl_matches_the_moments_of_the_target():
    target = toys.two_modes(4.0, 0.3)
    fit = toys.best_fit("forward_kl", 0.5, 4.0, 0.3)
    mean = (target * toys.GRID).sum()
    std = (target * (toys.GRID - mean) ** 2).sum().sqrt()
    assert fit.mean == pytest.approx(mean.item(), abs=0.03)
    assert fit.width == pytest.approx(std.item(), rel=0.03)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js", "hellinger", "neyman_chi2"])
def test_the_search_is_as_good_as_an_optimiser_started_there(name):
    divergence, target = divergences.get(name), toys.two_modes(3.0, 0.6)
    fit = toys.fit_gaussian(divergence, target)
    value = lambda x: divergence.exact(toys.gaussian(x[0], np.exp(x[1])).clamp(min=1e-300), target).item()
    polished = minimize(value, [fit.mean, np.log(fit.width)], method="Nelder-Mead")
    assert fit.value == pytest.approx(value([fit.mean, np.log(fit.width)]))
    assert fit.value <= polished.fun * 1.01 + 1e-6


def test_who_covers_and_who_seeks():
    share = {n: toys.mass_left(toys.gaussian(f.mean, f.width)) for n, f in fits(weight=0.3).items()}
    assert 0.1 < share["forward_kl"] < 0.9
    assert share["reverse_kl"] < 0.1
    assert share["js"] < 0.1  # with unequal modes Jensen-Shannon seeks, as notebook 01 says
    share = {n: toys.mass_left(toys.gaussian(f.mean, f.width)) for n, f in fits(weight=0.5).items()}
    assert 0.1 < share["js"] < 0.9


def fits(weight):
    return {n: toys.best_fit(n, 0.5, 4.0, weight) for n in ("forward_kl", "reverse_kl", "js")}


def test_the_pulls_that_notebook_01_speaks_of():
    far = torch.tensor([-12.0])
    assert divergences.get("forward_kl").force(far).item() == pytest.approx(-1, abs=1e-4)
    for name in ("js", "alpha", "reverse_kl"):
        assert abs(divergences.get(name).force(far).item()) < 0.01
    q, p = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.55, 0.449, 0.001])
    values = {n: divergences.get(n).exact(p, q).item() for n in ("forward_kl", "js", "alpha", "reverse_kl")}
    assert max(values, key=values.get) == "forward_kl"
