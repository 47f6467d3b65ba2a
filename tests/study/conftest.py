"""What the tests of sweeps share."""

import pytest

from dphrl_lite.study import frontier


@pytest.fixture
def small(monkeypatch):
    """A sweep of seconds: few problems, few answers, one step."""
    monkeypatch.setattr(frontier, "TRAINED", {"countdown": {"cd3": 24, "cd4": 8}})
    monkeypatch.setattr(frontier, "SETTINGS", {"countdown": {"steps": 1, "problems_per_step": 4}})
    held_out = {split: {"cd3": 3} for split in ("validation", "test")} | {"probe": {"sort": 2}}
    monkeypatch.setattr(frontier, "HELD_OUT", {"countdown": held_out})
    monkeypatch.setattr(frontier, "DRAWN", {"validation": 4, "test": 4, "probe": 2})
    for cached in (frontier.held_out, frontier.training_problems):
        cached.cache_clear()
    yield
    for cached in (frontier.held_out, frontier.training_problems):
        cached.cache_clear()
