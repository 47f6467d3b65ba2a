"""Tests that need an NVIDIA GPU: `make test-gpu`. Elsewhere each is skipped, and says why."""

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def card():
    """There is one, or no test begins."""
    if "DPHRL_TEST_GPU" not in os.environ:
        pytest.skip("tests on a GPU are run by make test-gpu")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA GPU here")


@pytest.fixture(autouse=True)
def clean(card):
    """No test begins with what another has left on the card."""
    torch.cuda.empty_cache()
