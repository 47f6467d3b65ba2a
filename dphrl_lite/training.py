"""Stage two: hybrid training. The step and the loop, top to bottom, and nothing else.

    L = L_exp + eta * L_pef        L_exp: clipped policy gradient on fresh samples      L_pef: f(u) on stored samples

How this differs from the paper (arXiv 2509.07430) and its release, and why:

- The rehearsal buffer holds *all* correct reference samples of D_pef, not one fresh draw per problem: they are there.
- `f` is the canonical generator, f(1) = f'(1) = 0, exact in value and gradient; the release clamps log u.
- `rkl` has the true reverse-KL gradient (k2). What GRPO code and the release call reverse KL is here `rkl-k3`.
- pi_old is the log-prob stored while sampling; the release computes it again. In float32 they agree to 1e-5.
- A minibatch holds whole groups, and its share of the rehearsal batch; both terms are token means over the minibatch.
- Left out so far: `dph-js-definition`, which samples D_pef's prompts as well.
- Learning rate constant, no warm-up, no entropy bonus, no value model, no KL in the reward.
- Which problem comes when, and what is sampled for it, follows from the seed and the place in the data alone: a run that
  was killed goes on exactly, because there is no random state to lose.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from dphrl_lite import checkpoint, divergences
from dphrl_lite.errors import lookup
from dphrl_lite.models import Policy
from dphrl_lite.objectives import (
    METHODS,
    Method,
    clipped_loss,
    group_advantages,
    reference_penalty,
    rehearsal_divergence,
    rehearsal_loss,
)
from dphrl_lite.presampling import Partition, check_problems, seed_of
from dphrl_lite.sampling import TokenBatch, collate, generate, pad, token_logps
from dphrl_lite.tasks import Problem, Task


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
    alpha: float = field(default=0.5, metadata={"help": "alpha of dph-alpha"})
    learning_rate: float = field(default=1e-4, metadata={"help": "of AdamW; the paper's full 8B fine-tuning uses 1e-6"})
    problems_per_step: int = field(default=32, metadata={"help": "problems sampled on-policy per step"})
    samples: int = field(default=16, metadata={"help": "completions per problem (G)"})
    minibatches: int = field(default=2, metadata={"help": "optimizer updates per step"})
    rehearsal_per_step: int = field(default=128, metadata={"help": "stored completions per step, over all minibatches"})
    microbatch: int = field(
        default=1024, metadata={"help": "completions per forward; changes memory, not the gradient"}
    )
    temperature: float = field(default=1.0, metadata={"help": "of sampling and of the training distribution alike"})
    max_new_tokens: int | None = field(default=None, metadata={"help": "longest completion; None: the policy's own"})
    keep_unsolved: bool = field(default=True, metadata={"help": "explore the unsolved problems together with D_exp"})
    allow_mismatch: bool = field(
        default=False, metadata={"help": "rehearse samples drawn with another temperature or top-p"}
    )
    max_refills: int = field(default=4, metadata={"help": "dapo: how often a step may draw again for mixed groups"})
    gradient_clip: float = field(default=1.0, metadata={"help": "largest norm of the whole gradient"})
    checkpoint_every: int = field(default=20, metadata={"help": "steps between checkpoints, where there is a folder"})


LOG = "log.jsonl"

METRICS = {
    "step": "training steps done",
    "reward": "share of correct fresh completions; on D_exp it starts low by construction and should rise",
    "zero_spread": "share of groups all right or all wrong, which teach nothing; rising towards 1 means little left to learn",
    "groups": "problems sampled; more than `problems_per_step` only where dapo draws again",
    "tokens": "completion tokens sampled",
    "entropy": "mean entropy of the policy per fresh token, nats; a fast fall is diversity collapsing",
    "clipped_low": "share of tokens stopped by the lower clip; a few per cent at most",
    "clipped_high": "share of tokens stopped by the upper clip; a few per cent at most",
    "loss_exploration": "L_exp; near 0 by construction (advantages average to 0), so watch the reward instead",
    "penalty": "L_pef, or k2 / k3: nats per token before eta or beta; starts at 0 for f(u), then settles at a small value",
    "log_u_mean": "mean log(policy/reference) on rehearsal; near 0 or a little above is healthy, a steady fall is forgetting",
    "log_u_low": "its 1st percentile: the reference's answers that are dying",
    "log_u_high": "its 99th percentile",
    "bounded_share": "share of rehearsal tokens beyond the bound on large positive log u; 0 in a healthy run",
    "gradient_norm": "norm of the whole gradient before clipping, mean over minibatches",
    "reference_forwards": "completions pushed through the reference while training: 0 for every DPH method",
    "seconds": "wall time of the step",
    "tokens_per_second": "fresh completion tokens per second of the whole step",
}


@dataclass
class Run:
    """What `train` gives back: the trained policy, the log (one row per step, columns as `METRICS`), and the settings.

    `strength` is the eta or beta that was used: the config's, or the method's own.
    """

    policy: Policy
    log: pd.DataFrame
    config: TrainConfig
    strength: float


def train(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    parts: Partition,
    method: str = "dph-js",
    steps: int = 60,
    seed: int = 0,
    out: str | Path | None = None,
    on_step: Callable[[dict], object] | None = None,
    progress: bool = True,
    **settings,
) -> Run:
    """Train a copy of `policy` (an adapter policy itself) with one method.

    Args:
        policy: the reference; `parts` must come from the same weights.
        task: the verifier that gives the reward.
        problems: the problems that were pre-sampled.
        parts: their partition, with the rehearsal buffer.
        method: a name from `objectives.METHODS`.
        steps: training steps; a finished run called again with more steps goes on.
        seed: of data order and sampling.
        out: folder for manifest, log.jsonl and checkpoints. A run that was stopped goes on from its last checkpoint.
        on_step: called with each step's metrics (dashboards).
        progress: show a progress bar.
        **settings: further fields of `TrainConfig`.

    Raises:
        ValueError: unknown method or setting, an empty D_exp or D_pef that the method needs, parts of other problems,
            rehearsal drawn with another temperature or top-p.
        OtherRunError: `out` holds another run; nothing is overwritten.
        FloatingPointError: the gradient is not finite; the last checkpoint is intact.
    """
    for name in settings:
        lookup(TrainConfig.__dataclass_fields__, "setting of train()", name)
    config = TrainConfig(method=method, steps=steps, seed=seed, **settings)
    if policy.adapter and policy.trained:
        raise ValueError(
            "this adapter has been trained already, and a run starts from a fresh one: load the policy again"
        )
    trainer = _Trainer(policy, task, problems, parts, config)
    folder = None if out is None else checkpoint.claim(out, trainer.manifest())
    records = trainer.resume(folder)
    bar = tqdm(range(len(records), steps), initial=len(records), total=steps, desc=method, disable=not progress)
    trainer.policy.trained = True
    for step in bar:
        records.append(trainer.step(step))
        bar.set_postfix(reward=f"{records[-1]['reward']:.2f}", entropy=f"{records[-1]['entropy']:.2f}")
        trainer.save(folder, records)
        if on_step is not None:
            on_step(records[-1])
    return Run(trainer.policy, pd.DataFrame(records, columns=list(METRICS)), config, trainer.strength)


class _Trainer:
    """One run: its policy, optimizer, the place in the data, and the hybrid step."""

    def __init__(self, policy: Policy, task: Task, problems: Sequence[Problem], parts: Partition, config: TrainConfig):
        self.method = METHODS[config.method]
        self.task, self.parts, self.config = task, parts, config
        _check(self.method, problems, parts, config)
        self.strength = self.method.strength if config.strength is None else config.strength
        self.weights = checkpoint.weights_digest(policy.model)
        by_id = {p.id: p for p in problems}
        chosen = [*parts.exploration, *(parts.unsolved if config.keep_unsolved else ())]
        chosen += parts.perfect if self.method.on_policy == "all" else ()
        self.problems = [by_id[i] for i in chosen]
        self.prompts = {p.id: policy.encode(p.prompt) for p in problems}
        self.exploration = _Order(len(self.problems), config.seed, 0)
        self.rehearsal = _Order(len(parts.rehearsal), config.seed, 1)
        self.reference = policy.reference() if self.method.needs_reference else nullcontext
        self.policy = policy.copy()
        if self.method.rehearses:
            self._check_origin()
        trainable = [p for p in self.policy.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    # ---- the step ------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict:
        """Sample, judge, and update `minibatches` times on L_exp + strength * penalty. Returns the step's metrics."""
        started = time.perf_counter()
        fresh, sampled = self._explore()
        stored = [self.parts.rehearsal.iloc[i] for i in self.rehearsal.take(self._rehearsal_size())]
        seen = []
        for group, rows in zip(
            _split(fresh, self.config.minibatches), _split(stored, self.config.minibatches), strict=True
        ):
            self.optimizer.zero_grad()
            metrics = self._exploration_backward([c for completions in group for c in completions])
            metrics |= self._rehearsal_backward(rows) if rows else {}
            metrics["gradient_norm"] = self._update(step)
            seen.append(metrics)
        merged = pd.DataFrame(seen).mean().to_dict()  # a minibatch may lack a term: dapo can run out of groups
        seconds = time.perf_counter() - started
        speed = {"seconds": seconds, "tokens_per_second": sampled["tokens"] / seconds}
        forwards = len(fresh) * self.config.samples if self.method.needs_reference else 0
        return dict.fromkeys(METRICS) | {"step": step + 1, "reference_forwards": forwards} | sampled | merged | speed

    def _explore(self) -> tuple[list[list["_Fresh"]], dict]:
        """Sample problems on-policy, verify, and turn rewards into advantages; dapo draws on until groups are mixed."""
        groups, rewards = [], []
        for _ in range(1 + self.config.max_refills * self.method.dynamic_sampling):
            place = self.exploration.place
            problems = [self.problems[i] for i in self.exploration.take(self.config.problems_per_step)]
            more = self._sample(problems, place)
            groups += more
            rewards += [[c.reward for c in group] for group in more]
            mixed = [len(set(r)) > 1 for r in rewards]
            if not self.method.dynamic_sampling or sum(mixed) >= self.config.problems_per_step:
                break
        sampled = {
            "reward": float(np.mean(rewards)),
            "zero_spread": 1 - float(np.mean(mixed)),
            "groups": len(groups),
            "tokens": sum(len(c.token_ids) for group in groups for c in group),
        }
        if self.method.dynamic_sampling and any(mixed):
            groups = [group for group, keep in zip(groups, mixed, strict=True) if keep][: self.config.problems_per_step]
        for group in groups:
            advantages = group_advantages(torch.tensor([[c.reward for c in group]]))[0].tolist()
            for completion, advantage in zip(group, advantages, strict=True):
                completion.advantage = advantage
        return groups, sampled

    def _sample(self, problems: Sequence[Problem], place: int) -> list[list["_Fresh"]]:
        config, policy = self.config, self.policy
        drawn = generate(
            policy,
            [self.prompts[p.id] for p in problems],
            config.samples,
            seeds=[seed_of(config.seed, place + i, p.id) for i, p in enumerate(problems)],  # new ones at each visit
            max_new_tokens=config.max_new_tokens or policy.max_new_tokens,
            temperature=config.temperature,
            training_temperature=config.temperature,
        )
        return [
            [_Fresh(self.prompts[p.id], c.token_ids, c.logp, self._reward(p, c.token_ids)) for c in group]
            for p, group in zip(problems, drawn, strict=True)
        ]

    def _reward(self, problem: Problem, token_ids: list[int]) -> float:
        return float(self.task.verify(problem, self.policy.decode(token_ids)).correct)

    def _exploration_backward(self, completions: list["_Fresh"]) -> dict:
        """Add the gradient of L_exp (and of k2 or k3, if the method has one) over one minibatch."""
        method, parts = self.method, _Mean()
        for rows, share in self._microbatches(completions):
            batch = self._batch([c.prompt for c in rows], [c.token_ids for c in rows])
            logp, entropy = token_logps(self.policy.model, batch, self.config.temperature)
            old = pad([c.logp for c in rows], 0.0).to(logp)
            advantages = torch.tensor([c.advantage for c in rows]).to(logp)
            clipped = clipped_loss(logp, old, advantages, batch.mask, method.clip_low, method.clip_high)
            loss, penalty = clipped.loss, None
            if method.needs_reference:
                penalty = reference_penalty(method, logp, self._reference_logp(batch), batch.mask)
                loss = loss + self.strength * penalty
            (loss * share).backward()
            values = {"loss_exploration": clipped.loss, "penalty": penalty, "entropy": entropy[batch.mask].mean()}
            parts.add(share, **values, clipped_low=clipped.clipped_low, clipped_high=clipped.clipped_high)
        return parts.total

    def _reference_logp(self, batch: TokenBatch) -> torch.Tensor:
        with torch.no_grad(), self.reference() as model:
            return token_logps(model, batch, self.config.temperature)[0]

    def _rehearsal_backward(self, rows: list) -> dict:
        """Add the gradient of strength * L_pef over one minibatch of stored reference samples."""
        parts, log_us = _Mean(), []
        for some, share in self._microbatches(rows):
            batch = self._batch([self.prompts[r.problem_id] for r in some], [r.token_ids.tolist() for r in some])
            logp, _ = token_logps(self.policy.model, batch, self.config.temperature)
            logp_ref = pad([r.logp.tolist() for r in some], 0.0).to(logp)
            penalty = rehearsal_loss(self.method, logp, logp_ref, batch.mask, self.config.alpha)
            (self.strength * penalty * share).backward()
            parts.add(share, penalty=penalty)
            log_us.append(divergences.masked_log_ratio(logp.detach(), logp_ref, batch.mask))
        log_u = torch.cat(log_us)
        low, high = torch.quantile(log_u, torch.tensor([0.01, 0.99]).to(log_u)).tolist()
        spread = {"log_u_mean": log_u.mean().item(), "log_u_low": low, "log_u_high": high}
        return parts.total | spread | {"bounded_share": divergences.bounded_share(log_u)}

    def _update(self, step: int) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.config.gradient_clip).item()
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {step + 1} is {norm}; it was not applied, and the last checkpoint is intact. "
                "Lower learning_rate or strength"
            )
        self.optimizer.step()
        return norm

    def _microbatches(self, rows: list) -> Iterator[tuple[list, float]]:
        """Slices of a minibatch with their share of its tokens, so that micro-batches add up to the token mean."""
        total = sum(len(row.token_ids) for row in rows)
        for start in range(0, len(rows), self.config.microbatch):
            some = rows[start : start + self.config.microbatch]
            yield some, sum(len(row.token_ids) for row in some) / total

    def _batch(self, prompts: list, completions: list) -> TokenBatch:
        return collate(prompts, completions, self.policy.pad_id, self.policy.device)

    def _rehearsal_size(self) -> int:
        return self.config.rehearsal_per_step if self.method.rehearses else 0

    def _check_origin(self):
        """Refuse rehearsal that another model wrote: at the start u = policy/reference must be 1."""
        rows = [self.parts.rehearsal.iloc[i] for i in range(min(16, len(self.parts.rehearsal)))]
        batch = self._batch([self.prompts[r.problem_id] for r in rows], [r.token_ids.tolist() for r in rows])
        with torch.no_grad():
            logp, _ = token_logps(self.policy.model.eval(), batch)
        log_u = divergences.masked_log_ratio(logp, pad([r.logp.tolist() for r in rows], 0.0).to(logp), batch.mask)
        if log_u.abs().mean() > 0.1:
            raise ValueError(
                f"these weights did not write the rehearsal samples: mean |log u| is {log_u.abs().mean():.2f} before the "
                "first step, where it should be 0. Pre-sample this policy, or load the one that was pre-sampled"
            )

    # ---- what is kept --------------------------------------------------------------------------------------------

    def manifest(self) -> dict:
        """Everything that decides the run; `steps` is left out, so that a run can be made longer."""
        settings = dataclasses.asdict(self.config) | {"strength": self.strength}
        kept = {k: v for k, v in settings.items() if k not in ("steps", "checkpoint_every")}
        rehearsal = [ids.tolist() for ids in self.parts.rehearsal["token_ids"]]
        data = checkpoint.digest([dataclasses.asdict(p) for p in self.problems], rehearsal)
        told = self.task.identity() | {"weights": self.weights, "data": data} | kept
        if self.method.divergence:  # two divergences of one name are two runs
            f = rehearsal_divergence(self.method, self.config.alpha).f
            told["f"] = f(torch.tensor([-9.0, -1.0, 0.5, 2.0])).tolist()
        return {"kind": "training"} | told

    def resume(self, folder: Path | None) -> list[dict]:
        """The records of the steps done so far, with policy, optimizer and data order as they were then."""
        state = folder and checkpoint.load_latest(folder, self.policy.model, self.optimizer)
        if not state:
            return []
        self.exploration.place, self.rehearsal.place = state["places"]
        if state["step"] > self.config.steps:
            raise ValueError(
                f"{folder} holds a run of {state['step']} steps, more than the {self.config.steps} asked for; "
                f"pass steps={state['step']} to read it, or choose another folder"
            )
        records = read_log(folder)[: state["step"]]
        self._write_log(folder, records)
        return records

    def save(self, folder: Path | None, records: list[dict]):
        """Append the step to log.jsonl; write a checkpoint every `checkpoint_every` steps and at the end."""
        if folder is None:
            return
        step = len(records)
        if step == 1:
            self._write_log(folder, [])  # of a start that never reached its first checkpoint
        with (folder / LOG).open("a") as log:
            log.write(json.dumps(records[-1]) + "\n")
        if step % self.config.checkpoint_every == 0 or step == self.config.steps:
            state = {"step": step, "places": [self.exploration.place, self.rehearsal.place]}
            checkpoint.save_step(folder, step, self.policy.model, self.optimizer, state)

    def _write_log(self, folder: Path, records: list[dict]):
        lines = [json.dumps(r) + "\n" for r in records]
        checkpoint.write_whole(folder / LOG, lambda temporary: temporary.write_text("".join(lines)))


def read_log(folder: str | Path) -> list[dict]:
    """The metrics written so far by a run in `folder`, one dict per step (see `METRICS`)."""
    path = Path(folder) / LOG
    if not path.is_file():
        raise FileNotFoundError(f"no training log at {path}; expected a folder that `train(..., out=folder)` wrote")
    *whole, _unfinished = path.read_text().split("\n")
    return [json.loads(line) for line in whole]


@dataclass
class _Fresh:
    """One on-policy completion."""

    prompt: list[int]
    token_ids: list[int]
    logp: list[float]
    reward: float
    advantage: float = 0.0


class _Order:
    """Positions 0 ... n - 1 in a new random order each epoch, as one endless row; `place` says how much was taken."""

    def __init__(self, n: int, *seed: int):
        self.n, self.seed, self.place = n, seed, 0

    def take(self, count: int) -> list[int]:
        if count and not self.n:
            raise ValueError("nothing to take from: the set is empty")
        positions = range(self.place, self.place + count)
        self.place += count
        epochs = {p // self.n: None for p in positions}
        orders = {e: np.random.default_rng([*self.seed, e]).permutation(self.n) for e in epochs}
        return [int(orders[p // self.n][p % self.n]) for p in positions]


class _Mean:
    """Weighted sums of metrics over micro-batches; None counts as absent."""

    def __init__(self):
        self.total: dict[str, float] = {}

    def add(self, share: float, **values):
        for name, value in values.items():
            if value is not None:
                value = value.item() if isinstance(value, torch.Tensor) else value
                self.total[name] = self.total.get(name, 0.0) + share * value


def _split(rows: list, pieces: int) -> list[list]:
    """`rows` in `pieces` runs of nearly equal length."""
    edges = np.linspace(0, len(rows), pieces + 1).round().astype(int)
    return [rows[a:b] for a, b in itertools.pairwise(edges)]


def _check(method: Method, problems: Sequence[Problem], parts: Partition, config: TrainConfig):
    """Refuse what cannot be trained on, before anything is written."""
    check_problems(problems)
    counted = ("steps", "problems_per_step", "minibatches", "rehearsal_per_step", "microbatch", "checkpoint_every")
    low = [name for name in counted if getattr(config, name) < 1]
    low += ["samples"] * (config.samples < 2) + ["temperature"] * (config.temperature <= 0)
    low += [name for name in ("seed", "strength", "max_refills") if (getattr(config, name) or 0) < 0]
    if low:
        raise ValueError(
            f"{low[0]} = {getattr(config, low[0])} is too low: counts start at 1, temperature above 0, seed, strength and "
            "max_refills at 0, and an advantage needs samples >= 2 to compare"
        )
    known = {p.id for p in problems}
    missing = [i for bucket in (parts.perfect, parts.exploration, parts.unsolved) for i in bucket if i not in known]
    if missing:
        raise ValueError(
            f"the partition names {len(missing)} problems that are not in `problems`, e.g. {missing[0]!r}; "
            "pass the problems that were pre-sampled"
        )
    explored = len(parts.exploration) + len(parts.unsolved) * config.keep_unsolved
    explored += len(parts.perfect) if method.on_policy == "all" else 0
    if explored == 0:
        raise ValueError(
            f"D_exp is empty at threshold {parts.threshold}, so {method.name!r} has nothing to explore; "
            "raise the threshold or add harder problems"
        )
    if method.rehearses:
        _check_rehearsal(method, parts, config)


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
        reasons.append(f"training is at temperature {config.temperature:g}, the stored log-probs are at 1")
    if reasons and not config.allow_mismatch:
        raise ValueError(
            f"{' and '.join(reasons)}, which biases u = policy/reference. Pre-sample with temperature 1 and top_p 1 and "
            "train at 1, or pass allow_mismatch=True"
        )
