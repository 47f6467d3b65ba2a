"""Stage two: hybrid training. The step and the loop, top to bottom, and nothing else.

    L = L_exp + eta * L_pef        L_exp: clipped policy gradient on fresh samples      L_pef: f(u) on stored samples

A step is: 1 draw problems, 2 sample, 3 verify, 4 advantages, 5 the two losses, 6 update, 7 log; the numbers stand in the code.
How this differs from the paper (arXiv 2509.07430) and its release, and why:

- The rehearsal buffer holds *all* correct reference samples of D_pef, not one fresh draw per problem: they are there
  (`presampling.partition(..., one_per_problem=True)`, `presampling.draw_again`).
- `f` is the canonical generator, f(1) = f'(1) = 0, exact in value and gradient; the release clamps log u.
- `rkl` has the true reverse-KL gradient (k2). What GRPO code and the release call reverse KL is here `rkl-k3`.
- `dph-js-definition` has both halves of the definition on every minibatch, and the gradient of their sum; the release omits
  the halves, applies the second term to one micro-batch in ten, and what it differentiates cancels in expectation.
- pi_old is the log-prob stored while sampling; the release computes it again. In float32 the two agree to 1e-5, which the
  first step checks; in lower precision pi_old is computed again where rounding parts them (`engine.precision`).
- A minibatch holds whole groups, and its share of the rehearsal batch; both terms are token means over the minibatch,
  whatever the number of micro-batches and processes. The release takes one mean over both, so that its eta acts at about an
  eighth (256 stored beside 2,048 fresh completions): `joint_mean` does so, too.
- The split keeps the draws that selected; the release draws the buffer afresh after the split and drops wrong ones
  (`draw_again`, `fresh_draw` in a recipe). Its rollouts and its buffer are drawn with top-p .9, the split with .95; here all
  with 1.
- Rewards are 0 or 1 (the release gives SQL up to .8 for parts: the task's `partial_credit`), two updates a step (three, the
  last on a quarter of the rows; `minibatches=3` makes three of equal size), no dual clip (c = 3: `dual_clip`), AdamW's betas
  .9 and .95 without decay (.9 and .999, .01: `adam_beta2`, `weight_decay`).
- Off unless asked for, and not in the paper: Pass@k advantages (`advantage_k`), equal right answers that share one reward
  (`distinct_advantage`), an eta that holds the penalty at a value (`penalty_target`), and the partition's `balance`,
  `rehearse_wrong` and `explore_at_most`.
- Two methods more than the paper's, for comparison: an entropy bonus (`grpo-entropy`) and k1 in the reward (`rkl-k1-reward`).
- Learning rate constant, no warm-up, no value model.
- Which problem comes when, and what is sampled for it, follows from the seed and the place in the data alone: a run that
  was killed goes on exactly, because there is no random state to lose.

What is not the method is called here and stands in `engine`: several processes (`processes`, `sharding`), micro-batches
(`batches`), rounding (`precision`), AdamW and its gradient (`optimizers`, `gradients`), files (`journal`, `checkpoint`).
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from dphrl_lite import divergences
from dphrl_lite.engine import batches, checkpoint, gradients, optimizers, precision, sharding, tracking
from dphrl_lite.engine.batches import MicroBatch, Stream, token_count
from dphrl_lite.engine.journal import LOG as LOG
from dphrl_lite.engine.journal import Journal
from dphrl_lite.engine.journal import read_log as read_log
from dphrl_lite.engine.logprobs import token_logps
from dphrl_lite.engine.processes import Processes
from dphrl_lite.errors import lookup
from dphrl_lite.metrics import METRICS, Averages, peak_memory_gb
from dphrl_lite.models import Policy, settle_threads
from dphrl_lite.objectives import (
    BUILT_IN,
    METHODS,
    Method,
    adapted_strength,
    clipped_loss,
    group_advantages,
    k1_advantages,
    pass_at_k_advantages,
    reference_penalty,
    rehearsal_divergence,
    rehearsal_loss,
    shared_rewards,
)
from dphrl_lite.presampling import Partition, check_problems, seed_of
from dphrl_lite.sampling import generate
from dphrl_lite.tasks import Problem, Task


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the defaults suit the tiny model. The comment behind a field is its help on the command line."""

    method: str  # a name from objectives.METHODS
    steps: int = 60  # training steps: each samples once and updates `minibatches` times
    seed: int = 0  # of data order and sampling
    strength: float | None = None  # eta or beta of the penalty; None: the method's own
    penalty_target: float | None = None  # nats per token at which to hold the penalty, from `strength` on; None: off
    alpha: float = 0.5  # alpha of dph-alpha
    learning_rate: float = 1e-4  # of AdamW; the paper's full 8B fine-tuning uses 1e-6
    problems_per_step: int = 32  # problems sampled on-policy per step
    samples: int = 16  # completions per problem (G)
    advantage_k: int = 1  # reward Pass@k of a problem's completions; 1: each completion on its own, as GRPO
    distinct_advantage: bool = False  # equal right answers of a group share one reward, so that each form counts alike
    dual_clip: float | None = None  # c of the bound c A where an advantage A is negative; the release has 3; None: off
    minibatches: int = 2  # optimizer updates per step
    rehearsal_per_step: int = 128  # stored completions per step, over all minibatches
    joint_mean: bool = False  # one mean over fresh and stored tokens, as the release has it: eta counts by their share
    microbatch_tokens: int | None = None  # padded tokens per forward pass; None: 16384, or 1 GiB of logits if fewer
    temperature: float = 1.0  # of sampling and of the training distribution alike
    max_new_tokens: int | None = None  # longest completion; None: the policy's own
    allow_mismatch: bool = False  # rehearse samples drawn with another temperature or top-p
    max_refills: int = 4  # dapo: how often a step may draw again for mixed groups
    optimizer: str = "auto"  # adamw, adamw-8bit or paged-adamw-8bit (bitsandbytes); auto: by how the policy is held
    adam_beta1: float = 0.9  # of AdamW: what is kept of the gradient's mean
    adam_beta2: float = 0.95  # of AdamW: what is kept of the squares' mean; the release has .999
    weight_decay: float = 0.0  # of AdamW, for all weights alike; the release has .01
    gradient_clip: float = 1.0  # largest norm of the whole gradient
    gradient_parts: bool = True  # log the two gradients apart; holds one more copy of the trained gradients
    checkpoint_every: int = 20  # steps between checkpoints, where there is a folder
    trackers: list[str] | None = None  # where else to log: tensorboard, wandb, mlflow, ... as accelerate knows them

    def __post_init__(self):
        lookup(METHODS, "method", self.method)
        lookup(optimizers.OPTIMIZERS, "optimizer", self.optimizer)
        tracking.check(self.trackers or ())
        counts = ("steps", "problems_per_step", "advantage_k", "minibatches", "rehearsal_per_step", "checkpoint_every")
        least = dict.fromkeys((*counts, "microbatch_tokens", "max_new_tokens"), 1) | {"samples": 2}
        least |= dict.fromkeys(("seed", "strength", "max_refills"), 0)
        values = {name: value for name, value in asdict(self).items() if value is not None}
        low = [name for name, value in least.items() if values.get(name, value) < value]
        low += [name for name in ("temperature", "gradient_clip", "penalty_target") if not values.get(name, 1) > 0]
        if low:
            raise ValueError(
                f"{low[0]} = {values[low[0]]} is too low, or no number: counts start at 1, temperature, gradient_clip and "
                "penalty_target above 0, seed, strength and max_refills at 0, and an advantage needs samples >= 2 to compare"
            )
        self._check_ranges()
        if self.advantage_k >= self.samples:
            raise ValueError(
                f"advantage_k = {self.advantage_k} with samples = {self.samples} compares nothing: it must be below samples, so "
                "that there are several groups of k completions; lower advantage_k or raise samples"
            )
        if self.distinct_advantage and self.advantage_k > 1:
            raise ValueError(
                f"distinct_advantage and advantage_k = {self.advantage_k} are both on, but Pass@k is defined for rewards of "
                "0 and 1, and shared ones lie between: switch one of the two off"
            )
        if self.penalty_target is not None and (
            METHODS[self.method].penalty in ("none", "entropy") or self.strength == 0
        ):
            raise ValueError(
                f"penalty_target = {self.penalty_target:g} has nothing to hold there: {self.method!r} has no penalty, or none "
                "above 0, or its strength is 0 and stays so; leave penalty_target out, or choose a method with a penalty and a "
                "strength above 0"
            )

    def _check_ranges(self):
        """Settings that are no counts."""
        high = METHODS[self.method].clip_high
        if self.dual_clip is not None and not self.dual_clip > 1 + high:
            raise ValueError(
                f"dual_clip = {self.dual_clip:g} must be above 1 + {high:g}, where the clip of {self.method!r} ends: the "
                "release's is 3, and None is none"
            )
        if not (0 <= self.adam_beta1 < 1 and 0 <= self.adam_beta2 < 1 and self.weight_decay >= 0):
            raise ValueError(
                f"adam_beta1 = {self.adam_beta1:g}, adam_beta2 = {self.adam_beta2:g}, weight_decay = {self.weight_decay:g}: "
                "expected betas from 0 to below 1 (the release has .9 and .999) and a decay of at least 0 (it has .01)"
            )


@dataclass
class Run:
    """What `train` gives back: the trained policy, the log (one row per step, columns as `METRICS`), and the settings.

    `strength` is the eta or beta that was used: the config's, or the method's own. With `penalty_target` it is where the run
    started; the log has each step's.
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
    in_place: bool = False,
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
        in_place: train `policy` itself, so that one model less is in memory.
        **settings: further fields of `TrainConfig`.

    Raises:
        ValueError: unknown method or setting, an empty D_exp or D_pef that the method needs, parts of other problems or of
            other weights, rehearsal drawn with another temperature or top-p.
        OtherRunError: `out` holds another run; nothing is overwritten.
        FloatingPointError, MemoryError, OSError: the gradient is not finite, memory or the disk is full. The last checkpoint
            is intact: the same call goes on from there.
    """
    for name in settings:
        lookup(TrainConfig.__dataclass_fields__, "setting of train()", name)
    config = TrainConfig(method=method, steps=steps, seed=seed, **settings)
    if (policy.adapter or in_place) and policy.trained:
        raise ValueError(
            "this policy (or its adapter) has been trained already, and a run starts from the untouched one: load it again"
        )
    check_inputs(problems, parts, config)
    with checkpoint.explained(out and Path(out)):  # the rehearsal buffer is looked through before the first step
        trainer = _Trainer(policy, task, problems, parts, config, in_place)
    records = trainer.run(out, on_step, progress)
    return Run(trainer.policy, pd.DataFrame(records, columns=list(METRICS)), config, trainer.strength)


# ---- what a step works on ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolicySample:
    """A fresh completion of the policy, with its log-probs under the policy that wrote it, pi_old."""

    prompt: list[int]
    token_ids: list[int]
    logp_old: list[float]
    reward: float = 0.0
    advantage: float = 0.0


@dataclass(frozen=True, eq=False)
class ReferenceSample:
    """A stored completion of the reference, with its log-probs under the reference, pi_ref."""

    prompt: list[int]
    token_ids: list[int]
    logp_ref: list[float]
    logp_sampling: list[float] = field(default_factory=list)  # under the distribution that it was drawn from


class Minibatch(NamedTuple):
    """What one update is computed on. `answers`: the policy's own to the rehearsal's prompts (`dph-js-definition`)."""

    exploration: list[PolicySample]
    rehearsal: list[ReferenceSample]
    answers: list[PolicySample]


def rehearsal_samples(policy: Policy, problems: dict[str, Problem], rehearsal: pd.DataFrame) -> list[ReferenceSample]:
    """The rehearsal buffer. A table's `logp` is the writer's, and the reference wrote this one: it is logp_ref."""
    if "prompt" not in rehearsal:  # otherwise it holds what the reference saw
        rehearsal = rehearsal.assign(prompt=[policy.render(problems[i].prompt) for i in rehearsal["problem_id"]])
    columns = (rehearsal[name] for name in ("prompt", "token_ids", "logp", "logp_sampling"))
    return [
        ReferenceSample(policy.tokenize(p), ids.tolist(), logp.tolist(), drawn.tolist())
        for p, ids, logp, drawn in zip(*columns, strict=True)
    ]


class _Trainer:
    """One run: policy, reference, the data and the places in it, the optimizer; the loop, and the hybrid step."""

    def __init__(self, policy: Policy, task: Task, problems, parts: Partition, config: TrainConfig, in_place: bool):
        self.method, self.task, self.config = METHODS[config.method], task, config
        self.strength = self.method.strength_of(config.strength)
        self.eta = self.strength  # of the step to come
        self.longest = config.max_new_tokens or policy.max_new_tokens
        by_id = {p.id: p for p in problems}
        exploration = [by_id[i] for i in explored_ids(self.method, parts)]
        self.prompts = {p.id: policy.encode(p.prompt) for p in exploration}
        self.processes = Processes(policy.device)
        optimizer = optimizers.choose(config.optimizer, policy.quantised, policy.device)
        self.manifest = manifest(task, exploration, parts, config) | {"optimizer": optimizer, "strength": self.strength}
        self.manifest |= {"max_new_tokens": self.longest, "weights": checkpoint.weights_digest(policy.model)}
        self.policy = policy if in_place else policy.copy()
        settle_threads(policy.model)
        self.reference = self._reference(policy, in_place)
        self.processes.shard(self.policy.model)
        weights = [p for p in self.policy.model.parameters() if p.requires_grad]
        precision.check_trained(weights)
        self.gradient = gradients.Gradient(weights, self.processes)
        betas = (config.adam_beta1, config.adam_beta2)
        self.optimizer = optimizers.make(optimizer, weights, config.learning_rate, betas, config.weight_decay)
        self.policy.reasons.append(f"optimizer {optimizer}: {optimizers.REASONS[optimizer]}")
        self.recompute = False  # pi_old by the training forward, where low precision parts it from sampling
        rehearsal = parts.rehearsal if self.method.rehearses else parts.rehearsal.iloc[:0]
        rehearsal = self._check_rehearsal(rehearsal_samples(policy, by_id, rehearsal))
        self.exploration, self.rehearsal = Stream(exploration, config.seed, 0), Stream(rehearsal, config.seed, 1)

    def run(self, out: str | Path | None, on_step: Callable[[dict], object] | None, progress: bool) -> list[dict]:
        """All steps that are not done yet. Returns the records of all steps, those of earlier calls included."""
        main, steps, journal = self.processes.main, self.config.steps, Journal(out, self.manifest, self.processes.state)
        state = journal.resume(steps, self.policy.model, self.optimizer)
        if state is not None:
            (self.exploration.place, self.rehearsal.place), self.recompute = state["places"], state["recompute"]
        first, self.policy.trained = len(journal.records), True
        label = {"initial": first, "total": steps, "desc": self.method.name, "disable": not (progress and main)}
        bar = tqdm(range(first, steps), **label)
        names = (self.config.trackers or ()) if main and first < steps else ()
        with tracking.Trackers(names, journal.folder, asdict(self.config) | {"strength": self.strength}) as trackers:
            for step in bar:
                self.eta = self._eta_after(journal.records)
                with checkpoint.explained(journal.folder):
                    record = self.step(step)
                    journal.add(record, self.policy.model, self.optimizer, self._state_after(step))
                trackers.log(record)
                bar.set_postfix(reward=f"{record['reward']:.2f}", entropy=f"{record['entropy']:.2f}")
                if main and on_step is not None:
                    on_step(record)
        self.policy.model.eval()
        sharding.unshard(self.policy.model)  # whoever gets it need not know that it was sharded
        return journal.records

    def _eta_after(self, records: list[dict]) -> float:
        """The next step's eta or beta. The log decides it, so that a run that was stopped goes on with the same one."""
        if not records or self.config.penalty_target is None:
            return self.strength
        return adapted_strength(records[-1]["strength"], records[-1]["penalty"], self.config.penalty_target)

    def _state_after(self, step: int) -> dict | None:
        """What a checkpoint holds besides weights, moments and log; None where no checkpoint is due."""
        due = (step + 1) % self.config.checkpoint_every == 0 or step + 1 == self.config.steps
        places = [self.exploration.place, self.rehearsal.place]
        return {"places": places, "recompute": self.recompute} if due else None

    # ---- the step ------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict:
        """Sample, verify, and update `minibatches` times on L_exp + eta * penalty. Returns the step's metrics."""
        start = time.perf_counter()
        groups, counts = self._explore()  # 1 draw problems, 2 sample, 3 verify, 4 advantages
        rehearsal = self.rehearsal.take(self.config.rehearsal_per_step * self.method.rehearses)  # 1, of the other batch
        answers = self.processes.map(self._answers, rehearsal) if self.method.mirrors else []
        minibatches = self._minibatches(step, groups, [sample for _, sample in rehearsal], answers)
        updates = [self._update(step, minibatch) for minibatch in minibatches]  # 5 the two losses, 6 update
        return self._record(step, counts, minibatches, updates, time.perf_counter() - start)  # 7 log

    def _explore(self) -> tuple[list[list[PolicySample]], dict]:
        """Stages 1 to 4: groups of completions with advantages, and what they show; dapo draws on until groups are mixed."""
        wanted, groups = self.config.problems_per_step, []
        for _ in range(1 + self.config.max_refills * self.method.dynamic_sampling):
            problems = self.exploration.take(wanted)  # 1 draw problems
            groups += self.processes.map(self._groups, problems)
            mixed = [any(c.advantage for c in group) for group in groups]
            if not self.method.dynamic_sampling or sum(mixed) >= wanted:
                break
        counts = {
            "reward": float(np.mean([[c.reward for c in group] for group in groups])),
            "zero_spread": 1 - float(np.mean(mixed)),
            "groups": len(groups),
            "tokens": sum(map(token_count, groups)),
        }
        if self.method.dynamic_sampling and any(mixed):
            groups = list(itertools.compress(groups, mixed))[:wanted]
        return groups, counts

    def _groups(self, problems: list[tuple[int, Problem]]) -> list[list[PolicySample]]:
        """Stages 2 to 4: a group of completions for each problem, which comes with its place in the data."""
        # 2 sample G completions of each problem, with a new seed at each visit
        prompts = [self.prompts[problem.id] for _, problem in problems]
        seeds = [seed_of(self.config.seed, place, problem.id) for place, problem in problems]
        groups = self._sample(prompts, seeds, self.config.samples)
        # 3 verify: the reward is 1 for a right completion, else 0, or what partial credit gives
        pairs = [(p, self.policy.decode(c.token_ids)) for (_, p), g in zip(problems, groups, strict=True) for c in g]
        verdicts = self.task.verify_all(pairs)
        rewards = torch.tensor([verdict.reward for verdict in verdicts]).view(-1, self.config.samples)
        # 4 advantages: each completion against its group
        advantages = self._advantages(rewards, [verdict.distinct for verdict in verdicts])
        columns = zip(groups, rewards.tolist(), advantages.tolist(), strict=True)
        return [[replace(s, reward=r, advantage=a) for s, r, a in zip(*group, strict=True)] for group in columns]

    def _advantages(self, rewards: torch.Tensor, forms: list[str | None]) -> torch.Tensor:
        """Stage 4: GRPO's, or one of its variants. `forms`: the canonical forms of all answers, group after group."""
        if self.config.advantage_k > 1:
            return pass_at_k_advantages(rewards, self.config.advantage_k)
        if self.config.distinct_advantage:
            rewards = shared_rewards(rewards, batches.split(forms, len(rewards)))
        return group_advantages(rewards)

    def _answers(self, rehearsal: list[tuple[int, ReferenceSample]]) -> list[PolicySample]:
        """`dph-js-definition`: the policy's own answer to the prompt of each rehearsal sample."""
        seeds = [seed_of(self.config.seed, place, "answer") for place, _ in rehearsal]
        groups = self._sample([sample.prompt for _, sample in rehearsal], seeds, 1)
        return list(itertools.chain(*groups))

    def _sample(self, prompts: list[list[int]], seeds: list[int], samples: int) -> list[list[PolicySample]]:
        """Completions of the policy as it is now. A completion's `logp` is the writer's: logp_old from here on."""
        settings = {"temperature": self.config.temperature, "training_temperature": self.config.temperature}
        self.policy.model.eval()
        with sharding.whole(self.policy.model):
            groups = generate(self.policy, prompts, samples, seeds=seeds, max_new_tokens=self.longest, **settings)
        return [[PolicySample(p, c.token_ids, c.logp) for c in group] for p, group in zip(prompts, groups, strict=True)]

    def _minibatches(self, step: int, groups: list, rehearsal: list, answers: list) -> list[Minibatch]:
        """Whole groups, and their share of the rehearsal."""
        pieces = [batches.split(samples, self.config.minibatches) for samples in (groups, rehearsal, answers)]
        exploration = self._check_pi_old(step, [list(itertools.chain(*piece)) for piece in pieces[0]])
        return [Minibatch(*parts) for parts in zip(exploration, *pieces[1:], strict=True)]

    def _update(self, step: int, minibatch: Minibatch) -> dict:
        """Stages 5 and 6: the gradient of L_exp + eta * penalty over one minibatch, and one step of the optimizer."""
        exploration, rehearsal, answers = minibatch
        if not exploration and not rehearsal:
            return {"gradient_norm": 0.0}  # dapo can run out of groups
        averages, parts = Averages(), {}
        self.gradient.clear()
        fresh, stored = self._weights(exploration, rehearsal)
        self._exploration_loss(exploration, averages, fresh)
        of_exploration = self.gradient.take() if rehearsal and self.config.gradient_parts else None
        self._rehearsal_loss(rehearsal, averages, stored)
        self._answer_loss(answers, averages)
        of_penalty = self.gradient.sum()
        if of_exploration is not None:  # the log shows the two apart
            parts = gradients.parts(of_exploration, of_penalty)
            self.gradient.put_back(of_exploration)
        norm = self.gradient.apply(self.optimizer, self.config.gradient_clip, step)  # 6 update
        return averages.result() | parts | {"gradient_norm": norm}

    def _weights(self, exploration: list[PolicySample], rehearsal: list[ReferenceSample]) -> tuple[float, float]:
        """What the means over fresh and over stored tokens are multiplied by."""
        if not self.config.joint_mean or self.method.mirrors:
            return 1.0, 1.0
        fresh = token_count(exploration) / token_count(exploration + rehearsal)
        return fresh, 1 - fresh

    def _exploration_loss(self, samples: list[PolicySample], averages: Averages, weight: float):
        """Stage 5, first loss: L_exp, the clipped policy gradient; with a penalty on fresh samples also beta times that."""
        method = self.method
        for part in self._forward(samples):
            logp_old, advantages = part.column("logp_old"), part.column("advantage")
            entropy, penalty = part.entropy[part.mask].mean(), None
            if method.needs_reference and not method.mirrors:
                logp_ref = self._logp_ref(part)
                penalty = reference_penalty(method, part.logp, logp_ref, part.mask)
                if method.penalty == "reward_k1":
                    advantages = k1_advantages(advantages, logp_old, logp_ref, part.mask, self.eta)
            elif method.penalty == "entropy":
                penalty = -entropy
            clip = (method.clip_low, method.clip_high, self.config.dual_clip)
            clipped = clipped_loss(part.logp, logp_old, advantages, part.mask, *clip)
            loss = clipped.loss if penalty is None else clipped.loss + self.eta * penalty
            (loss * part.share * weight).backward()
            values = {"loss_exploration": clipped.loss, "penalty": penalty, "entropy": entropy}
            averages.add(part.share, **values, clipped_low=clipped.clipped_low, clipped_high=clipped.clipped_high)

    def _rehearsal_loss(self, samples: list[ReferenceSample], averages: Averages, weight: float):
        """Stage 5, second loss: eta * L_pef, the mean of f(u) over the tokens of stored samples; no reference is asked."""
        with torch.set_grad_enabled(not self.method.mirrors):  # there the stored samples give the value alone
            for part in self._forward(samples):
                logp_ref = part.column("logp_ref")
                penalty = rehearsal_loss(self.method, part.logp, logp_ref, part.mask, self.config.alpha)
                if penalty.requires_grad:
                    (self.eta * penalty * part.share * weight).backward()
                averages.add(part.share, penalty=penalty)
                if part.share > 0:
                    averages.log_u.append(divergences.masked_log_ratio(part.logp.detach(), logp_ref, part.mask))

    def _answer_loss(self, samples: list[PolicySample], averages: Averages):
        """Stage 5, `dph-js-definition`: the other half of the divergence, on the policy's own answers."""
        for part in self._forward(samples):
            penalty = reference_penalty(self.method, part.logp, self._logp_ref(part), part.mask)
            (self.eta * penalty * part.share).backward()
            averages.add(part.share, penalty=penalty)

    def _record(self, step: int, counts: dict, minibatches: list[Minibatch], updates: list[dict], seconds: float):
        """Stage 7: one line of the log, as `METRICS` explains it."""
        columns = (list(itertools.chain(*samples)) for samples in zip(*minibatches, strict=True))
        exploration, rehearsal, answers = columns
        tokens = counts["tokens"] + token_count(answers)
        cost = {
            "tokens": tokens,
            "tokens_trained": token_count(exploration + rehearsal + answers),
            "reference_forwards": len(answers or exploration) * self.method.needs_reference,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "peak_memory_gb": max(self.processes.gather([peak_memory_gb(self.policy.device)])),
        }
        means = pd.DataFrame(updates).mean().dropna().to_dict()
        return dict.fromkeys(METRICS) | {"step": step + 1, "strength": self.eta} | counts | means | cost

    # ---- whose log-probs: the policy's, pi_old's, the reference's ------------------------------------------------

    def _forward(self, samples: Sequence, everywhere: bool = False, **changes) -> Iterator[MicroBatch]:
        """Micro-batches with the policy's log-probs as of now: this process's share, or all of them `everywhere`."""
        config, policy = self.config, self.policy
        tokens = batches.microbatch_tokens(config.microbatch_tokens, len(policy.tokenizer))
        settings = {"pad_id": policy.pad_id, "device": policy.device, "temperature": config.temperature}
        settings |= {"processes": None if everywhere else self.processes} | changes
        return batches.forward(policy.model, samples, tokens, **settings)

    def _logp_ref(self, part: MicroBatch) -> torch.Tensor:
        """The reference's log-probs of fresh completions: what DPH on stored samples never has to ask for."""
        with torch.no_grad(), self.reference() as model:
            return token_logps(model, part.batch, self.config.temperature)[0]

    def _reference(self, policy: Policy, in_place: bool) -> Callable:
        """A context in which the reference answers: the adapter off, a frozen model, or the policy that came in."""
        if self.processes.sharded and self.method.needs_reference and not policy.adapter:
            frozen = self.processes.shard(sharding.twin(policy.model))
            return lambda: nullcontext(frozen)
        of_its_own = self.method.needs_reference and (policy.adapter or in_place)
        return policy.reference() if of_its_own else lambda: nullcontext(policy.model)  # which stays as it came in

    @torch.no_grad()
    def _check_rehearsal(self, samples: list[ReferenceSample]) -> list[ReferenceSample]:
        """The rehearsal buffer, once it is sure that this policy wrote it: with logp_ref as it was stored, or computed again
        where low precision rounds, or where it is that of another temperature."""
        valid, probe = self.config.temperature == 1, samples[:: max(1, len(samples) // 256)]
        if probe:  # at the temperature of what is stored: other weights show whatever this run's own is
            differences = batches.differences(self._forward(probe, everywhere=True, temperature=1.0), "logp_ref")
            valid = precision.logps_agree(differences, self.policy.model, "the rehearsal samples") and valid
        if probe and self.config.temperature != 1 and not self.config.allow_mismatch:
            differences = batches.differences(self._forward(probe, everywhere=True), "logp_sampling")
            if torch.cat(differences).mean() > precision.ROUNDED:
                raise ValueError(
                    _BIASED.format(
                        f"the stored samples were not drawn at the training's temperature {self.config.temperature:g}"
                    )
                )
        return samples if valid else batches.with_logps(samples, self._forward(samples, everywhere=True), "logp_ref")

    @torch.no_grad()
    def _check_pi_old(self, step: int, minibatches: list[list[PolicySample]]) -> list[list[PolicySample]]:
        """The fresh completions with logp_old as sampling gave it. In the first step, does the training forward give the same?
        Where low precision rounds, it is computed again, in this and in each later step."""
        if step > 0 and not self.recompute:
            return minibatches
        parts = [list(self._forward(samples)) for samples in minibatches]
        if step == 0:
            differences = self.processes.gather(batches.differences(itertools.chain(*parts), "logp_old"))
            self.recompute = not precision.logps_agree(differences, self.policy.model, "the fresh completions")
        if not self.recompute:
            return minibatches
        return [batches.with_logps(*pair, "logp_old") for pair in zip(minibatches, parts, strict=True)]


# ---- before anything is written: do problems, partition and settings belong together? ---------------------------------------


def check_inputs(problems: Sequence[Problem], parts: Partition, config: TrainConfig):
    """Raise `ValueError` for what cannot be trained on."""
    method, known = METHODS[config.method], {p.id for p in problems}
    check_problems(problems)
    missing = [i for bucket in (parts.perfect, parts.exploration, parts.unsolved) for i in bucket if i not in known]
    if missing:
        raise ValueError(
            f"the partition names {len(missing)} problems that are not in `problems`, e.g. {missing[0]!r}; "
            "pass the problems that were pre-sampled"
        )
    if not explored_ids(method, parts):
        raise ValueError(
            f"D_exp is empty at threshold {parts.threshold}, so {method.name!r} has nothing to explore; "
            "raise the threshold or add harder problems"
        )
    if method.rehearses and len(parts.rehearsal) == 0:
        raise ValueError(
            f"D_pef is empty at threshold {parts.threshold}, so {method.name!r} has nothing to rehearse; "
            "lower the threshold, draw more samples, or add easier problems"
        )
    if method.rehearses and not config.allow_mismatch:
        _check_distribution(parts.rehearsal, config.temperature)


def explored_ids(method: Method, parts: Partition) -> list:
    """The ids of the problems that a method explores: with `explore_at_most` never those of D_pef."""
    everything = method.on_policy == "all" and parts.explore_at_most is None
    return [*parts.explored, *(parts.perfect if everything else ())]


_BIASED = (
    "{}, which biases u = policy/reference. Pre-sample and train at one temperature, best 1, with top_p 1, or pass "
    "allow_mismatch=True"
)


def _check_distribution(rehearsal: pd.DataFrame, temperature: float):
    """u = policy/reference is unbiased only on samples of the training distribution itself (method, section 3). Whether samples
    that were drawn at another temperature than 1 are those of the training's, only the model can tell: `_check_rehearsal`."""
    pairs = zip(rehearsal["logp"], rehearsal["logp_sampling"], strict=True)
    differ = np.mean([not np.allclose(a, b, atol=1e-4) for a, b in pairs])
    if temperature == 1 and differ > 0:
        raise ValueError(
            _BIASED.format(f"{differ:.0%} of the rehearsal samples were drawn with another temperature or top-p than 1")
        )
    if temperature != 1 and differ == 0:
        raise ValueError(
            _BIASED.format(f"training is at temperature {temperature:g}, the stored samples were drawn at 1")
        )


# settings that older folders do not know: where they have their usual value, the folder's run goes on
_LATER = ("joint_mean", "distinct_advantage", "dual_clip", "adam_beta1", "adam_beta2", "weight_decay")


def manifest(task: Task, explored: Sequence[Problem], parts: Partition, config: TrainConfig) -> dict:
    """What decides a run: its settings, the task's identity, a digest of the data, and the divergence's values."""
    rehearsal = [ids.tolist() for ids in parts.rehearsal["token_ids"]]
    data = checkpoint.digest([asdict(p) for p in explored], rehearsal)
    left_out = {"steps", "checkpoint_every", "trackers"}  # these may change
    usual = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
    left_out |= {name for name in _LATER if getattr(config, name) == usual[name]}
    settings = {name: value for name, value in asdict(config).items() if name not in left_out}
    identity, method = {"kind": "training"} | task.identity() | {"data": data} | settings, METHODS[config.method]
    if method.divergence:  # two divergences of one name are two runs
        f = rehearsal_divergence(method, config.alpha).f
        identity["f"] = f(torch.tensor([-9.0, -1.0, 0.5, 2.0])).tolist()
    elif method.name not in BUILT_IN:  # so are two methods
        identity["method_is"] = repr(replace(method, summary=""))
    return identity
