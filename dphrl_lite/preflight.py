"""The settings of a training run, and what is looked at before it starts: do problems, partition and policy belong together?

What is wrong is said before anything is written. Nothing is trained here.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dphrl_lite.engine import checkpoint, tracking
from dphrl_lite.errors import lookup
from dphrl_lite.models import Policy, need
from dphrl_lite.objectives import METHODS, Method, rehearsal_divergence
from dphrl_lite.presampling import Partition, check_problems
from dphrl_lite.tasks import Problem, Task

OPTIMIZERS = {"auto": "", "adamw": "", "adamw-8bit": "AdamW8bit", "paged-adamw-8bit": "PagedAdamW8bit"}
EXACT, ROUNDED, FOREIGN = 1e-5, 0.02, 0.2  # mean |difference| of log-probs, nats: see `agree`


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the defaults suit the tiny model. Each field's help stands in its metadata."""

    method: str = field(metadata={"help": "a name from objectives.METHODS"})
    steps: int = field(
        default=60, metadata={"help": "training steps: each samples once and updates `minibatches` times"}
    )
    seed: int = field(default=0, metadata={"help": "of data order and sampling"})
    strength: float | None = field(
        default=None, metadata={"help": "eta or beta of the penalty; None: the method's own"}
    )
    penalty_target: float | None = field(
        default=None,
        metadata={
            "help": "nats per token at which to hold the penalty: `strength` is where eta or beta starts; None: fixed"
        },
    )
    alpha: float = field(default=0.5, metadata={"help": "alpha of dph-alpha"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of AdamW; the paper's full 8B fine-tuning uses 1e-6"})
    problems_per_step: int = field(default=32, metadata={"help": "problems sampled on-policy per step"})
    samples: int = field(default=16, metadata={"help": "completions per problem (G)"})
    advantage_k: int = field(
        default=1, metadata={"help": "reward Pass@k of a problem's completions; 1: each completion on its own, as GRPO"}
    )
    minibatches: int = field(default=2, metadata={"help": "optimizer updates per step"})
    rehearsal_per_step: int = field(default=128, metadata={"help": "stored completions per step, over all minibatches"})
    microbatch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "padded tokens per forward: memory, not the gradient; None: 16384, or 1 GiB of logits if fewer"
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "of sampling and of the training distribution alike"})
    max_new_tokens: int | None = field(default=None, metadata={"help": "longest completion; None: the policy's own"})
    allow_mismatch: bool = field(
        default=False, metadata={"help": "rehearse samples drawn with another temperature or top-p"}
    )
    max_refills: int = field(default=4, metadata={"help": "dapo: how often a step may draw again for mixed groups"})
    optimizer: str = field(
        default="auto",
        metadata={"help": "adamw, adamw-8bit or paged-adamw-8bit (bitsandbytes); auto: by how the policy is held"},
    )
    gradient_clip: float = field(default=1.0, metadata={"help": "largest norm of the whole gradient"})
    gradient_parts: bool = field(
        default=True, metadata={"help": "log the two gradients apart; holds one more copy of the trained gradients"}
    )
    checkpoint_every: int = field(default=20, metadata={"help": "steps between checkpoints, where there is a folder"})
    trackers: list[str] | None = field(
        default=None,
        metadata={
            "help": "where else to log each step: tensorboard, wandb, mlflow, trackio, ... as accelerate knows them"
        },
    )

    def __post_init__(self):
        lookup(METHODS, "method", self.method)
        lookup(OPTIMIZERS, "optimizer", self.optimizer)
        tracking.check(self.trackers or ())
        counted = ("steps", "problems_per_step", "advantage_k", "minibatches", "rehearsal_per_step", "checkpoint_every")
        low = [name for name in counted if getattr(self, name) < 1]
        low += ["microbatch_tokens"] * (self.microbatch_tokens is not None and self.microbatch_tokens < 1)
        low += ["max_new_tokens"] * (self.max_new_tokens is not None and self.max_new_tokens < 1)
        low += ["samples"] * (self.samples < 2)
        low += [name for name in ("temperature", "gradient_clip") if getattr(self, name) <= 0]
        low += ["penalty_target"] * (self.penalty_target is not None and self.penalty_target <= 0)
        low += [name for name in ("seed", "strength", "max_refills") if (getattr(self, name) or 0) < 0]
        if low:
            raise ValueError(
                f"{low[0]} = {getattr(self, low[0])} is too low: counts start at 1, temperature, gradient_clip and "
                "penalty_target above 0, seed, strength and max_refills at 0, and an advantage needs samples >= 2 to compare"
            )
        if self.advantage_k >= self.samples:
            raise ValueError(
                f"advantage_k = {self.advantage_k} with samples = {self.samples} compares nothing: it must be below samples, so "
                "that there are several groups of k completions; lower advantage_k or raise samples"
            )
        if self.penalty_target is not None and (METHODS[self.method].penalty == "none" or self.strength == 0):
            raise ValueError(
                f"penalty_target = {self.penalty_target:g} has nothing to hold there: {self.method!r} has no penalty, or its "
                "strength is 0 and stays so; leave penalty_target out, or choose a method with a penalty and a strength above 0"
            )


def check_inputs(method: Method, problems: Sequence[Problem], parts: Partition, config: TrainConfig):
    """Raise `ValueError` for what cannot be trained on."""
    check_problems(problems)
    known = {p.id for p in problems}
    missing = [i for bucket in (parts.perfect, parts.exploration, parts.unsolved) for i in bucket if i not in known]
    if missing:
        raise ValueError(
            f"the partition names {len(missing)} problems that are not in `problems`, e.g. {missing[0]!r}; "
            "pass the problems that were pre-sampled"
        )
    if not on_policy_ids(method, parts):
        raise ValueError(
            f"D_exp is empty at threshold {parts.threshold}, so {method.name!r} has nothing to explore; "
            "raise the threshold or add harder problems"
        )
    if method.rehearses:
        _check_rehearsal(method, parts, config)


def on_policy_ids(method: Method, parts: Partition) -> list:
    """The ids of the problems that a method explores."""
    return [*parts.explored, *(parts.perfect if method.on_policy == "all" else ())]


def _check_rehearsal(method: Method, parts: Partition, config: TrainConfig):
    if len(parts.rehearsal) == 0:
        raise ValueError(
            f"D_pef is empty at threshold {parts.threshold}, so {method.name!r} has nothing to rehearse; "
            "lower the threshold, draw more samples, or add easier problems"
        )
    pairs = zip(parts.rehearsal["logp"], parts.rehearsal["logp_sampling"], strict=True)
    differ = np.mean([not np.allclose(a, b, atol=1e-4) for a, b in pairs])
    reasons = []
    if differ > 0:
        reasons.append(f"{differ:.0%} of the rehearsal samples were drawn with another temperature or top-p than 1")
    if config.temperature != 1:
        reasons.append(f"training is at temperature {config.temperature:g}, the stored samples were drawn at 1")
    if reasons and not config.allow_mismatch:
        raise ValueError(
            f"{' and '.join(reasons)}, which biases u = policy/reference. Pre-sample with temperature 1 and top_p 1 and "
            "train at 1, or pass allow_mismatch=True"
        )


def agree(gap: float, model: torch.nn.Module, what: str) -> bool:
    """Whether log-probs that were stored while sampling agree with those of the training forward, at the same weights.

    In float32 on a CPU both are one number up to 1e-5; a GPU may round float32, too (TF32), up to .02 is accepted there.
    In bfloat16 and float16 the two forwards round differently, with and without a cache: neither is nearer to float32, and
    no code can make them one. As noise in rho it averages out, and .02 is a tenth of the clip range: up to there it is
    accepted. Beyond, False says that they must be computed again with the training forward, and a warning tells.

    Args:
        gap: mean |difference| over tokens, in nats.
        model: its parameters' dtype decides what is accepted.
        what: what was compared, for the message.

    Raises:
        ValueError: more than that in float32, or more than .2 at any precision: other weights wrote these samples.
    """
    exact = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    limit = FOREIGN if not exact else EXACT if on_cpu else ROUNDED
    if not gap <= limit:  # not <=: nan, too
        raise ValueError(
            f"these weights did not write {what}: mean |log u| is {gap:.2g} before the first step, where it should be 0 "
            f"(at most {limit:g}). Pre-sample this policy on this machine, or load the one that was "
            "pre-sampled; if it has dropout, load it with dropout 0"
        )
    if not exact and gap > ROUNDED:
        warnings.warn(
            f"{what}: the stored log-probs differ from the training forward's by {gap:.3f} nats on average, as low "
            f"precision rounds (more than {ROUNDED:g}); they are computed again with the training forward",
            stacklevel=2,
        )
        return False
    return True


def check_precision(trainable: Sequence[torch.nn.Parameter]):
    """Raise `ValueError` for weights that AdamW cannot train, and warn of those that lose most of what it does."""
    dtypes, advice = {p.dtype for p in trainable}, "Load the policy with dtype=torch.float32, or with lora_rank=16"
    if torch.float16 in dtypes:
        raise ValueError(f"weights in float16 cannot be trained: AdamW's squares leave its range. {advice}")
    if torch.bfloat16 in dtypes:
        warnings.warn(
            "the weights that are trained are bfloat16, which keeps 8 bits: an update below 1/500 of a weight is lost, at "
            f"learning_rate 1e-6 nearly all. {advice}",
            stacklevel=2,
        )


def microbatch_tokens(config: TrainConfig, vocabulary: int) -> int:
    """Padded tokens per forward pass: the config's, or 16,384, or as many as have 1 GiB of logits if that is fewer."""
    return config.microbatch_tokens or min(16384, 2**28 // vocabulary)


def optimizer_name(config: TrainConfig, nf4: bool, device: torch.device) -> str:
    """The optimizer of a run: on "auto", AdamW in 8 bits for an adapter on NF4 weights, else AdamW. Only a GPU has pages."""
    name = ("paged-adamw-8bit" if nf4 else "adamw") if config.optimizer == "auto" else config.optimizer
    return "adamw-8bit" if name == "paged-adamw-8bit" and device.type != "cuda" else name


def optimizer(policy: Policy, trainable: Sequence[torch.nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW for `trainable`, betas .9 and .95, no weight decay; which one, and why, is added to `policy.reasons`.

    Raises:
        ImportError: 8 bits asked for and no bitsandbytes, with the command that installs it.
    """
    name = optimizer_name(config, policy.quantised, policy.device)
    why = {
        "adamw": "two float32 moments per trained weight",
        "adamw-8bit": "moments in 8 bits; paging them needs a GPU",
    }
    policy.reasons.append(
        f"optimizer {name}: {why.get(name, 'moments in 8 bits, moved to main memory when the GPU is full')}"
    )
    kind = torch.optim.AdamW if name == "adamw" else getattr(need("bitsandbytes").optim, OPTIMIZERS[name])
    return kind(trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)


def manifest(task: Task, method: Method, problems: Sequence[Problem], parts: Partition, config: TrainConfig) -> dict:
    """What decides a run: its settings, the task's identity, a digest of the data, and the divergence's values."""
    rehearsal = [ids.tolist() for ids in parts.rehearsal["token_ids"]]
    data = checkpoint.digest([dataclasses.asdict(p) for p in problems], rehearsal)
    settings = dataclasses.asdict(config)
    kept = {k: v for k, v in settings.items() if k not in ("steps", "checkpoint_every", "trackers")}  # these may change
    told = {"kind": "training"} | task.identity() | {"data": data} | kept
    if method.divergence:  # two divergences of one name are two runs
        f = rehearsal_divergence(method, config.alpha).f
        told["f"] = f(torch.tensor([-9.0, -1.0, 0.5, 2.0])).tolist()
    return told
