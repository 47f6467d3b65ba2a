"""What the tests of sweeps share."""

import pytest

from dphrl_lite.study import frontier
from dphrl_lite.study.domains import Domain


@pytest.fixture
def small_domain():
    """Makes countdown with few problems, few answers, one step, but for what is given."""
    return _small_domain


def _small_domain(**settings) -> Domain:
    held_out = {split: {"cd3": 3} for split in ("validation", "test")} | {"probe": {"sort": 2}}
    few = {"trained": {"cd3": 24, "cd4": 8}, "held_out": held_out, "drawn": {"validation": 4, "test": 4, "probe": 2}}
    return Domain("countdown", **few | {"settings": {"steps": 1, "problems_per_step": 4}} | settings)


@pytest.fixture
def small(monkeypatch):
    """A sweep of seconds."""
    monkeypatch.setattr(frontier, "DOMAINS", {"countdown": _small_domain()})
