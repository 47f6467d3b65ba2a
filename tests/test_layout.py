"""The floor plan: what a part of the method needs, and no more. The arrows between rooms are kept by `lint-imports`."""

import subprocess
import sys

import pytest

HEAVY = ["accelerate", "datasets", "ipywidgets", "matplotlib", "plotly", "transformers"]


@pytest.mark.parametrize("module", ["divergences", "passk"])
def test_mathematics_alone_loads_neither_models_nor_figures(module):
    loaded = f"import sys; from dphrl_lite import {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_are_found_under_their_old_names():
    import dphrl_lite

    assert dphrl_lite.toys.__name__ == "dphrl_lite.lab.toys"
    assert dphrl_lite.frontier.__name__ == "dphrl_lite.study.frontier"
    with pytest.raises(AttributeError, match="no attribute 'toyz'"):
        dphrl_lite.toyz  # noqa: B018
