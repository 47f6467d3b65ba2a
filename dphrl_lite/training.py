"""Stage two: hybrid training. The step and the loop, top to bottom, and nothing else.

    L = L_exp + eta * L_pef        L_exp: clipped policy gradient on fresh samples      L_pef: f(u) on stored samples

How this differs from the paper (arXiv 2509.07430) and its release, and why:

- The rehearsal buffer holds *all* correct reference samples of D_pef, not one fresh draw per problem: they are there.
- `f` is the canonical generator, f(1) = f'(1) = 0, exact in value and gradient; the release clamps log u.
- `rkl` has the true reverse-KL gradient (k2). What GRPO code and the release call reverse KL is here `rkl-k3`.
- `dph-js-definition` has both halves of the definition on every minibatch, and the gradient of their sum; the release omits
  the halves, applies the second term to one micro-batch in ten, and what it differentiates cancels in expectation.
- pi_old is the log-prob stored while sampling; the release computes it again. In float32 the two agree to 1e-5, which the
  first step checks; in lower precision pi_old is computed again where rounding parts them (`preflight.agree`).
- A minibatch holds whole groups, and its share of the rehearsal batch; both terms are token means over the minibatch,
  whatever the number of micro-batches and processes.
- Off unless asked for, and not in the paper: Pass@k advantages (`advantage_k`), an eta that holds the penalty at a value
  (`penalty_target`), and a rehearsal of every problem equally often (`presampling.partition(..., balance=True)`).
- Learning rate constant, no warm-up, no entropy bonus, no value model, no KL in the reward.
- Which problem comes when, and what is sampled for it, follows from the seed and the place in the data alone: a run that
  was killed goes on exactly, because there is no random state to lose.

Under `accelerate launch` each process samples and trains its share of every batch, gradients are summed, and only the main
process writes. With `--multi_gpu` each holds a whole copy of the policy; with FSDP weights, gradients and optimizer are spread
over them (`sharding`), and the weights come together layer by layer to train and all at once to sample. What may be wrong
with the inputs stands in `preflight`, what is logged in `metrics`, and how files survive a kill in `checkpoint`.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from dphrl_lite import divergences, preflight
from dphrl_lite.batches import Forward, Order, Row, gaps, packed, split, take_over, token_count
from dphrl_lite.engine import checkpoint, sharding
from dphrl_lite.engine.tracking import Trackers
from dphrl_lite.errors import lookup
from dphrl_lite.metrics import LOG as LOG
from dphrl_lite.metrics import METRICS, Averages, Journal, gradient_parts, peak_memory_gb
from dphrl_lite.metrics import read_log as read_log
from dphrl_lite.models import Policy, settle_threads
from dphrl_lite.objectives import (
    METHODS,
    adapted_strength,
    clipped_loss,
    pass_at_k_advantages,
    reference_penalty,
    rehearsal_loss,
)
from dphrl_lite.preflight import TrainConfig
from dphrl_lite.presampling import Partition, seed_of
from dphrl_lite.sampling import TokenBatch, collate, generate, pad, token_logps
from dphrl_lite.tasks import Problem, Task


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
    trainer = _Trainer(policy, task, problems, parts, config, in_place)
    records = trainer.run(out, on_step, progress)
    return Run(trainer.policy, pd.DataFrame(records, columns=list(METRICS)), config, trainer.strength)


class _Trainer:
    """One run: its policy, optimizer, the place in the data, and the hybrid step."""

    def __init__(self, policy: Policy, task: Task, problems, parts: Partition, config: TrainConfig, in_place: bool):
        self.method, self.task, self.config = METHODS[config.method], task, config
        if (policy.adapter or in_place) and policy.trained:
            raise ValueError(
                "this policy (or its adapter) has been trained already, and a run starts from the untouched one: load it again"
            )
        preflight.check_inputs(self.method, problems, parts, config)
        launched = "WORLD_SIZE" in os.environ  # asked for the CPU, accelerate would keep the whole session there
        self.sharded = sharding.asked()
        on_cpu = policy.device.type == "cpu" and not (self.sharded and torch.cuda.is_available())
        self.state = PartialState(cpu=launched and on_cpu)
        self.strength = self.method.strength if config.strength is None else config.strength
        self.eta = self.strength  # of the step to come
        by_id = {p.id: p for p in problems}
        self.problems = [by_id[i] for i in preflight.on_policy_ids(self.method, parts)]
        self.prompts = {p.id: policy.encode(p.prompt) for p in self.problems}
        self.longest = config.max_new_tokens or policy.max_new_tokens
        told = {"strength": self.strength, "max_new_tokens": self.longest}
        told |= {"weights": checkpoint.weights_digest(policy.model)}
        told |= {"optimizer": preflight.optimizer_name(config, policy.quantised, policy.device)}
        self.manifest = preflight.manifest(task, self.method, self.problems, parts, config) | told
        self.policy = policy if in_place else policy.copy()
        settle_threads(policy.model)
        self.reference = self._reference(policy, in_place)
        if self.sharded:
            sharding.shard(self.policy.model, self.state.device)
        self.microbatch_tokens = preflight.microbatch_tokens(config, len(policy.tokenizer))
        table = parts.rehearsal if self.method.rehearses else parts.rehearsal.iloc[:0]
        if "prompt" not in table:  # otherwise it holds what the reference saw
            table = table.assign(prompt=[policy.render(by_id[i].prompt) for i in table["problem_id"]])
        columns = table["prompt"], table["token_ids"], table["logp"]
        self.stored = [Row(policy.tokenize(p), t.tolist(), x.tolist()) for p, t, x in zip(*columns, strict=True)]
        self.exploration = Order(len(self.problems), config.seed, 0)
        self.rehearsal = Order(len(self.stored), config.seed, 1)
        self.checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in self.policy.model.modules())
        self.recompute = False  # pi_old by the training forward, where low precision parts it from sampling
        self.trainable = [p for p in self.policy.model.parameters() if p.requires_grad]
        preflight.check_precision(self.trainable)
        self.optimizer = preflight.optimizer(self.policy, self.trainable, config)
        self._check_rehearsal()

    def _reference(self, policy: Policy, in_place: bool) -> Callable:
        """A context in which the reference answers: the adapter off, a frozen model, or the policy that came in."""
        if self.sharded and self.method.needs_reference and not policy.adapter:
            frozen = sharding.shard(sharding.twin(policy.model), self.state.device)
            return lambda: nullcontext(frozen)
        kept = self.method.needs_reference and (policy.adapter or in_place)
        return policy.reference() if kept else lambda: nullcontext(policy.model)  # which stays as it came in

    def run(self, out: str | Path | None, on_step: Callable[[dict], object] | None, progress: bool) -> list[dict]:
        """All steps that are not done yet. Returns the records of all steps, those of earlier calls included."""
        main, steps, journal = self.state.is_main_process, self.config.steps, Journal(out, self.manifest, self.state)
        kept = journal.resume(steps, self.policy.model, self.optimizer)
        if kept is not None:
            (self.exploration.place, self.rehearsal.place), self.recompute = kept["places"], kept["recompute"]
        records, done = journal.records, len(journal.records)
        bar = tqdm(
            range(done, steps), initial=done, total=steps, desc=self.method.name, disable=not (progress and main)
        )
        self.policy.trained = True
        names = (self.config.trackers or ()) if main and done < steps else ()
        with Trackers(names, journal.folder, asdict(self.config) | {"strength": self.strength}) as trackers:
            for step in bar:
                self.eta = self._eta_after(records)
                with checkpoint.explained(journal.folder):
                    record = self.step(step)
                    due = (step + 1) % self.config.checkpoint_every == 0 or step + 1 == steps
                    places = [self.exploration.place, self.rehearsal.place]
                    state = {"places": places, "recompute": self.recompute} if due else None
                    journal.add(record, self.policy.model, self.optimizer, state)
                trackers.log(record)
                bar.set_postfix(reward=f"{record['reward']:.2f}", entropy=f"{record['entropy']:.2f}")
                if main and on_step is not None:
                    on_step(record)
        self.policy.model.eval()
        sharding.unshard(self.policy.model)  # whoever gets it need not know that it was
        return records

    # ---- the step ------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict:
        """Sample, judge, and update `minibatches` times on L_exp + eta * penalty. Returns the step's metrics."""
        started = time.perf_counter()
        groups, sampled = self._explore()
        place = self.rehearsal.place
        stored = [self.stored[i] for i in self.rehearsal.take(self.config.rehearsal_per_step * self.method.rehearses)]
        answers = self._answer(stored, place) if self.method.mirrors else []
        pieces = [split(rows, self.config.minibatches) for rows in (groups, stored, answers)]
        pieces[0] = [list(itertools.chain(*piece)) for piece in pieces[0]]
        self._check_sampling(pieces[0], step)
        seen = [self._minibatch(step, *piece) for piece in zip(*pieces, strict=True)]
        merged = pd.DataFrame(seen).mean().dropna().to_dict()
        fresh = list(itertools.chain(*pieces[0]))
        sampled["tokens"] += token_count(answers)
        seconds = time.perf_counter() - started
        asked = answers if self.method.mirrors else fresh
        cost = {
            "tokens_trained": token_count(fresh + stored + answers),
            "reference_forwards": len(asked) if self.method.needs_reference else 0,
            "seconds": seconds,
            "tokens_per_second": sampled["tokens"] / seconds,
            "peak_memory_gb": max(gather_object([peak_memory_gb(self.policy.device)])),
        }
        return dict.fromkeys(METRICS) | {"step": step + 1, "strength": self.eta} | sampled | merged | cost

    def _eta_after(self, records: list[dict]) -> float:
        """The next step's eta or beta. The log decides it, so that a run that was stopped goes on with the same one."""
        if not records or self.config.penalty_target is None:
            return self.strength
        return adapted_strength(records[-1]["strength"], records[-1]["penalty"], self.config.penalty_target)

    def _explore(self) -> tuple[list[list[Row]], dict]:
        """Sample problems on-policy and verify; dapo draws on until groups have advantages."""
        groups = []
        for _ in range(1 + self.config.max_refills * self.method.dynamic_sampling):
            place = self.exploration.place
            problems = [self.problems[i] for i in self.exploration.take(self.config.problems_per_step)]
            groups += self._sample(problems, place)
            mixed = [any(row.advantage for row in group) for group in groups]
            if not self.method.dynamic_sampling or sum(mixed) >= self.config.problems_per_step:
                break
        sampled = {
            "reward": float(np.mean([[row.reward for row in group] for group in groups])),
            "zero_spread": 1 - float(np.mean(mixed)),
            "groups": len(groups),
            "tokens": sum(map(token_count, groups)),
        }
        if self.method.dynamic_sampling and any(mixed):
            groups = [group for group, keep in zip(groups, mixed, strict=True) if keep][: self.config.problems_per_step]
        return groups, sampled

    def _sample(self, problems: Sequence[Problem], place: int) -> list[list[Row]]:
        """A group for each problem, verified, with advantages. Each process draws its share and gets to know all."""
        seeds = [seed_of(self.config.seed, place + i, p.id) for i, p in enumerate(problems)]  # new ones at each visit
        mine = range(self.state.process_index, len(problems), self.state.num_processes)
        groups = self._draw([self.prompts[problems[i].id] for i in mine], [seeds[i] for i in mine], self.config.samples)
        pairs = [(problems[i], row) for i, group in zip(mine, groups, strict=True) for row in group]
        verdicts = self.task.verify_all((problem, self.policy.decode(row.token_ids)) for problem, row in pairs)
        for (_, row), verdict in zip(pairs, verdicts, strict=True):
            row.reward = float(verdict.correct)
        for group in groups:
            rewards = torch.tensor([[row.reward for row in group]])
            for row, advantage in zip(group, pass_at_k_advantages(rewards, self.config.advantage_k)[0], strict=True):
                row.advantage = advantage.item()
        return self._in_order(mine, groups)

    def _answer(self, stored: list[Row], place: int) -> list[Row]:
        """`dph-js-definition`: the policy's own answer to the prompt of each stored completion."""
        mine = range(self.state.process_index, len(stored), self.state.num_processes)
        seeds = [seed_of(self.config.seed, place + i, "answer") for i in mine]
        groups = self._draw([stored[i].prompt for i in mine], seeds, 1)
        return list(itertools.chain(*self._in_order(mine, groups)))

    def _draw(self, prompts: list[list[int]], seeds: list[int], samples: int) -> list[list[Row]]:
        settings = {"temperature": self.config.temperature, "training_temperature": self.config.temperature}
        self.policy.model.eval()
        with sharding.whole(self.policy.model):
            drawn = generate(self.policy, prompts, samples, seeds=seeds, max_new_tokens=self.longest, **settings)
        return [[Row(p, c.token_ids, c.logp) for c in group] for p, group in zip(prompts, drawn, strict=True)]

    def _in_order(self, mine: range, groups: list) -> list:
        """All processes' groups, in the order of the problems."""
        found = gather_object(list(zip(mine, groups, strict=True)))
        return [group for _, group in sorted(found, key=lambda pair: pair[0])]

    def _minibatch(self, step: int, fresh: list[Row], stored: list[Row], answers: list[Row]) -> dict:
        """One update on L_exp + eta * penalty."""
        if not fresh and not stored:
            return {"gradient_norm": 0.0}  # dapo can run out of groups
        self.optimizer.zero_grad()
        seen, parts = Averages(), {}
        self._exploration_backward(fresh, seen)
        first = self._set_gradient_aside() if stored and self.config.gradient_parts else None
        self._rehearsal_backward(stored, answers, seen)
        self._sum_over_processes()
        if first is not None:
            parts = gradient_parts(first, [p.grad for p in self.trainable])
            torch._foreach_add_([p.grad for p in self.trainable], first)
        return seen.result() | parts | {"gradient_norm": self._update(step)}

    def _exploration_backward(self, rows: list[Row], seen: Averages):
        """Add the gradient of L_exp (and of k2 or k3, if the method has one) over one minibatch."""
        method = self.method
        for part in self._forwards(rows):
            advantages, mask = torch.tensor([row.advantage for row in part.rows]).to(part.logp), part.batch.mask
            clipped = clipped_loss(part.logp, part.stored, advantages, mask, method.clip_low, method.clip_high)
            loss, penalty = clipped.loss, None
            if method.needs_reference and not method.mirrors:
                penalty = reference_penalty(method, part.logp, self._reference_logp(part.batch), mask)
                loss = loss + self.eta * penalty
            (loss * part.share).backward()
            values = {"loss_exploration": clipped.loss, "penalty": penalty, "entropy": part.entropy[mask].mean()}
            seen.add(part.share, **values, clipped_low=clipped.clipped_low, clipped_high=clipped.clipped_high)

    def _rehearsal_backward(self, stored: list[Row], answers: list[Row], seen: Averages):
        """Add the gradient of eta * L_pef over one minibatch of stored reference samples (and the policy's answers)."""
        with torch.set_grad_enabled(not self.method.mirrors):  # there the stored samples give the value alone
            for part in self._forwards(stored):
                penalty = rehearsal_loss(self.method, part.logp, part.stored, part.batch.mask, self.config.alpha)
                if penalty.requires_grad:
                    (self.eta * penalty * part.share).backward()
                seen.add(part.share, penalty=penalty)
                if part.share > 0:
                    log_u = divergences.masked_log_ratio(part.logp.detach(), part.stored, part.batch.mask)
                    seen.log_u.append(log_u)
        for part in self._forwards(answers):
            logp_ref = self._reference_logp(part.batch)
            penalty = reference_penalty(self.method, part.logp, logp_ref, part.batch.mask)
            (self.eta * penalty * part.share).backward()
            seen.add(part.share, penalty=penalty)

    def _forwards(self, rows: list[Row], every: bool = False) -> Iterator[Forward]:
        """This process's part of each micro-batch of a minibatch, or `every` row; the shares of all parts add up to 1."""
        processes, index = (1, 0) if every else (self.state.num_processes, self.state.process_index)
        # activations are checkpointed in train mode only; a dropout that this wakes up is found by `_check_sampling`
        self.policy.model.train(self.checkpointing)
        for some in packed(rows, self.microbatch_tokens * processes):
            mine = some[index::processes]
            share = token_count(mine) / token_count(rows)
            mine = mine or some[: self.sharded]  # all who hold a part of the weights take part, if with a share of 0
            if mine:
                prompts, answers = [row.prompt for row in mine], [row.token_ids for row in mine]
                batch = collate(prompts, answers, self.policy.pad_id, self.policy.device)
                logp, entropy = token_logps(self.policy.model, batch, self.config.temperature)
                stored = pad([row.logp for row in mine], 0.0).to(logp)
                yield Forward(mine, batch, logp, stored, entropy, share)

    def _update(self, step: int) -> float:
        norm = sharding.full(torch.nn.utils.clip_grad_norm_(self.trainable, self.config.gradient_clip)).item()
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {step + 1} is {norm}; it was not applied, and the last checkpoint is intact. "
                "Lower learning_rate or strength"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()  # sampling has better use for the memory
        return norm

    # ---- what the step needs -------------------------------------------------------------------------------------

    def _set_gradient_aside(self) -> list[torch.Tensor]:
        """L_exp's gradient, summed over processes, taken out of the model so that the penalty's comes to stand alone."""
        self._sum_over_processes()
        gradient = [p.grad for p in self.trainable]
        self.optimizer.zero_grad()
        return gradient

    def _sum_over_processes(self):
        for p in self.trainable:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if self.state.num_processes > 1 and not self.sharded:
                torch.distributed.all_reduce(p.grad)

    def _reference_logp(self, batch: TokenBatch) -> torch.Tensor:
        with torch.no_grad(), self.reference() as model:
            return token_logps(model, batch, self.config.temperature)[0]

    def _check_rehearsal(self):
        """Before the start: did this policy write the stored samples? Take its log-probs anew where low precision rounds, or
        where they are those of another temperature."""
        kept, probe = self.config.temperature == 1, self.stored[:: max(1, len(self.stored) // 256)]
        if probe and kept:
            parts = self._without_gradient([probe], every=True)
            kept = preflight.agree(torch.cat(gaps(parts)).mean().item(), self.policy.model, "the rehearsal samples")
        if not kept:
            take_over(self._without_gradient([self.stored], every=True))

    def _check_sampling(self, minibatches: list[list[Row]], step: int):
        """First step: does the training forward give pi_old as sampling did? Where low precision rounds, take it anew."""
        if step == 0 or self.recompute:
            parts = self._without_gradient(minibatches)
            if step == 0:
                found = torch.cat(gather_object(gaps(parts))).mean().item()
                self.recompute = not preflight.agree(found, self.policy.model, "the fresh completions")
            if self.recompute:
                take_over(parts)

    @torch.no_grad()
    def _without_gradient(self, minibatches: list[list[Row]], every: bool = False) -> list[Forward]:
        return [part for rows in minibatches for part in self._forwards(rows, every)]
