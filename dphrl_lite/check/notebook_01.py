"""Checks of the exercises of notebook 01, divergence geometry."""

import torch

from dphrl_lite import divergences
from dphrl_lite.check import Hint, choice, exercise

REFERENCE, DYING = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.55, 0.449, 0.001])  # as in the notebook
COMPARED = ("forward_kl", "js", "alpha", "reverse_kl")


@exercise("01-1")
def largest(given):
    """Predict which divergence charges most for the dying answer."""
    values = {name: divergences.get(name).exact(DYING, REFERENCE).item() for name in COMPARED}
    if choice(given, COMPARED) != max(values, key=values.get):
        raise Hint(
            "The third answer has u = p/q close to 0. Which f(u) in the table grows without bound as u falls to 0?"
        )
    return "Now run the next cell and see by how much."
