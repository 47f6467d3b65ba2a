"""What rounding does to training: which weights can be trained, and whether stored log-probs are those of the model."""

import warnings
from collections.abc import Sequence

import torch

EXACT, ROUNDED, FOREIGN = 1e-5, 0.02, 0.2  # mean |difference| of log-probs, nats: see `logps_agree`


def logps_agree(differences: Sequence[torch.Tensor], model: torch.nn.Module, samples: str) -> bool:
    """Whether log-probs that were stored while sampling agree with those of the training forward, at the same weights.

    In float32 on a CPU both are one number up to 1e-5; a GPU may round float32, too (TF32), up to .02 is accepted there.
    In bfloat16 and float16 the two forwards round differently, with and without a cache: neither is nearer to float32, and
    no code can make them one. As noise in rho it averages out, and .02 is a tenth of the clip range: up to there it is
    accepted. Beyond, False says that they must be computed again with the training forward, and a warning tells.

    Args:
        differences: their absolute values, in nats, of some tokens each; what counts is the mean over all tokens.
        model: its parameters' dtype decides what is accepted.
        samples: what was compared, for the message.

    Raises:
        ValueError: more than that in float32, or more than .2 at any precision: other weights wrote these samples.
    """
    difference = torch.cat(list(differences)).mean().item()
    exact = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    limit = FOREIGN if not exact else EXACT if on_cpu else ROUNDED
    if not difference <= limit:  # not <=: nan, too
        raise ValueError(
            f"these weights did not write {samples}: mean |log u| is {difference:.2g} before the first step, where it should "
            f"be 0 (at most {limit:g}). Pre-sample this policy on this machine, or load the one that was "
            "pre-sampled; if it has dropout, load it with dropout 0"
        )
    if not exact and difference > ROUNDED:
        warnings.warn(
            f"{samples}: the stored log-probs differ from the training forward's by {difference:.3f} nats on average, as low "
            f"precision rounds (more than {ROUNDED:g}); they are computed again with the training forward",
            stacklevel=2,
        )
        return False
    return True


def check_trained(weights: Sequence[torch.nn.Parameter]):
    """Raise `ValueError` for weights that AdamW cannot train, and warn of those that lose most of what it does."""
    dtypes, advice = {p.dtype for p in weights}, "Load the policy with dtype=torch.float32, or with lora_rank=16"
    if torch.float16 in dtypes:
        raise ValueError(f"weights in float16 cannot be trained: AdamW's squares leave its range. {advice}")
    if torch.bfloat16 in dtypes:
        warnings.warn(
            "the weights that are trained are bfloat16, which keeps 8 bits: an update below 1/500 of a weight is lost, at "
            f"learning_rate 1e-6 nearly all. {advice}",
            stacklevel=2,
        )
