"""What all tests share: no network, no GPU, and the folder of real data where a developer has it."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "DPHRL_TEST_GPU" not in os.environ:  # what is expected is a CPU's, and processes that tests launch share no GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is absent."""
    folder = (Path(__file__).resolve().parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The shipped policy. Shared by all tests: sample it, copy it, never change it."""
    from dphrl_lite import models

    return models.load("tiny")


@pytest.fixture(scope="session")
def countdown():
    from dphrl_lite.tasks import get

    return get("countdown")


@pytest.fixture(scope="session")
def few_problems():
    """32 problems, of which the tiny model solves some always, some at times, and a few never."""
    from dphrl_lite.tasks.countdown import problems

    return problems("cd3", 24, seed=1) + problems("cd4", 8, seed=2)


@pytest.fixture(scope="session")
def rollouts(tiny, countdown, few_problems):
    from dphrl_lite import presampling

    return presampling.sample(tiny, countdown, few_problems, samples=8, progress=False)


@pytest.fixture(scope="session")
def parts(rollouts):
    from dphrl_lite import presampling

    return presampling.partition(rollouts, threshold=6)


@pytest.fixture
def registry():
    """`divergences.register`, undone after the test."""
    from dphrl_lite import divergences

    before = dict(divergences._REGISTRY)
    yield divergences.register
    divergences._REGISTRY.clear()
    divergences._REGISTRY.update(before)
