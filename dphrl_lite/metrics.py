"""The glossary of metrics, and their sums over micro-batches and processes. No loss is computed here: `training` does that and
reports what it saw; the log that holds them is `engine.journal`'s.
"""

import sys

import psutil
import torch
from accelerate.utils import gather_object
from torch import Tensor

from dphrl_lite import divergences

METRICS = {
    "step": "training steps done",
    "reward": "share of correct fresh completions (mean reward with partial credit); on D_exp it starts low by construction and "
    "should rise",
    "zero_spread": "share of groups all right or all wrong, which teach nothing (fewer wrong than `advantage_k` teach nothing "
    "either); rising towards 1 means little left to learn",
    "groups": "problems sampled; more than `problems_per_step` only where dapo draws again",
    "tokens": "completion tokens sampled",
    "tokens_trained": "completion tokens whose log-prob entered the loss: fresh ones, and stored ones where a method rehearses",
    "entropy": "mean entropy of the policy per fresh token, nats; a fast fall is diversity collapsing",
    "clipped_low": "share of tokens stopped by the lower clip; a few per cent at most",
    "clipped_high": "share of tokens stopped by the upper clip; a few per cent at most",
    "loss_exploration": "L_exp; near 0 by construction (advantages average to 0), so watch the reward instead",
    "penalty": "L_pef, or k1 / k2 / k3 on fresh answers, or minus the entropy (`grpo-entropy`): nats per token before eta or "
    "beta; starts at 0 for f(u), then settles at a small value",
    "strength": "eta or beta of the step; constant unless `penalty_target` moves it, then it should settle, as the penalty does",
    "log_u_mean": "mean log(policy/reference) on rehearsal; near 0 or a little above is healthy, a steady fall is forgetting",
    "log_u_low": "its 1st percentile: the reference's answers that are dying",
    "log_u_high": "its 99th percentile",
    "bounded_share": "share of rehearsal tokens beyond the bound on large positive log u; 0 in a healthy run",
    "gradient_norm": "norm of the whole gradient before clipping, mean over minibatches",
    "gradient_norm_exploration": "norm of L_exp's gradient alone (methods that rehearse), mean over minibatches",
    "gradient_norm_penalty": "norm of the gradient of eta L_pef alone; 0 before the first update, then a part of L_exp's; many "
    "times L_exp's means that eta is too large to learn",
    "gradient_cosine": "cosine of the two; a little below 0 is healthy, near -1 the two undo each other; noise in the first step",
    "reference_forwards": "completions pushed through the reference while training: 0 for every DPH method on stored samples",
    "seconds": "wall time of the step",
    "tokens_per_second": "fresh completion tokens per second of the whole step",
    "peak_memory_gb": "most memory that the process has held since it started, GB (GPU memory on a GPU); should stay level",
}


class Averages:
    """Sums of metrics over micro-batches, each weighted by its share of the tokens; None counts as absent."""

    def __init__(self):
        self.total: dict[str, float] = {}
        self.log_u: list[Tensor] = []

    def add(self, share: float, **values):
        """Add what one micro-batch showed."""
        for name, value in values.items():
            if value is not None:
                value = value.item() if isinstance(value, Tensor) else value
                self.total[name] = self.total.get(name, 0.0) + share * value

    def result(self) -> dict[str, float]:
        """The averages over all micro-batches of all processes, and the tails of log u."""
        total: dict[str, float] = {}
        for part in gather_object([self.total]):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        log_us = gather_object([x.cpu() for x in self.log_u])
        return total | (_tails(torch.cat(log_us)) if log_us else {})


def _tails(log_u: Tensor) -> dict[str, float]:
    low, high = torch.quantile(log_u, torch.tensor([0.01, 0.99]).to(log_u)).tolist()
    spread = {"log_u_mean": log_u.mean().item(), "log_u_low": low, "log_u_high": high}
    return spread | {"bounded_share": divergences.bounded_share(log_u)}


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held since the process started: by PyTorch on a GPU, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
