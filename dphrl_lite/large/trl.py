"""DPH-RL inside TRL: `GRPOTrainer` with the rehearsal of stored reference answers, for as many GPUs as TRL can use.

    trainer = DPHTrainer(policy, task, problems, parts, DPHConfig("runs/trl", method="dph-js", max_steps=100))
    trainer.train()

Fresh answers, their reward, vLLM, DeepSpeed, FSDP, trackers and checkpoints are TRL's. Added here: D_exp and the verdicts as data
set and reward, and eta * f(u) on stored answers, in the forward pass that TRL makes anyway: the stored rows are stacked below the
fresh ones, because two forwards a step break under DDP or DeepSpeed with reentrant checkpointing. There is no reference model.

How a step differs from the kit's own (`training`): advantages are divided by std + 1e-4, not + 1e-6; minibatches mix the answers
to a problem; where a generation serves several updates, `loss_type="dapo"` divides each by their mean number of tokens.
"""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

from dphrl_lite import divergences
from dphrl_lite.engine import checkpoint, precision
from dphrl_lite.engine.batches import Stream, token_count
from dphrl_lite.engine.loading import no_future_warnings
from dphrl_lite.engine.logprobs import TokenBatch, collate, pad
from dphrl_lite.errors import lookup
from dphrl_lite.metrics import Averages
from dphrl_lite.models import Policy
from dphrl_lite.objectives import METHODS, Method, rehearsal_loss
from dphrl_lite.presampling import Partition, seed_of
from dphrl_lite.sampling import generate
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.training import ReferenceSample, check_inputs, explored_ids, rehearsal_samples

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError("TRL is needed to train with it: pip install -e '.[trl]'") from error

RESCORED = (
    "rehearsal_logp.npy"  # in the output folder: the stored answers' log-probs, where they had to be computed again
)
_NOT_CARRIED = {
    "reference_k2": "it needs the reference's log-probs of fresh answers, and TRL's own penalty (beta) is k3",
    "reference_k3": "TRL has it: GRPOTrainer with beta above 0, whose gradient depends on use_bias_correction_kl",
    "reward_k1": "it needs the reference's log-probs of fresh answers; TRL's RLOOTrainer has k1 in the reward (beta)",
    "entropy": "TRL has it: GRPOTrainer with entropy_coef",
    "js_definition": "it lets the policy answer the prompts of stored answers in each step, and TRL draws for D_exp alone",
}


def carried(name: str) -> Method:
    """The method `name`, if TRL can carry it. Raises `ValueError` with the reason if not."""
    method = lookup(METHODS, "method", name)
    reason = _NOT_CARRIED.get(method.penalty)
    if method.dynamic_sampling:
        reason = "TRL draws each batch once and has no refill of dynamic sampling"
    if reason:
        raise ValueError(
            f"TRL cannot carry the method {name!r}: {reason}. Use the kit's own trainer, or a method that rehearses, as dph-js"
        )
    return method


@dataclass
class DPHConfig(GRPOConfig):
    """TRL's `GRPOConfig` and the settings of the method. `epsilon` and `epsilon_high` are the method's unless given."""

    method: str = field(default="dph-js", metadata={"help": "a name from objectives.METHODS that TRL can carry"})
    strength: float | None = field(default=None, metadata={"help": "eta of the penalty; None: the method's own"})
    alpha: float = field(default=0.5, metadata={"help": "alpha of dph-alpha"})
    rehearsal_batch_size: int = field(
        default=64, metadata={"help": "stored answers per optimizer update, of all processes together"}
    )
    allow_mismatch: bool = field(
        default=False, metadata={"help": "rehearse samples drawn with another temperature or top-p"}
    )
    kit_sampler: bool = field(
        default=False,
        metadata={
            "help": "draw as the kit's own trainer does, from the seed and the place in the data; not when sharded"
        },
    )
    epsilon: float | None = field(default=None, metadata={"help": "lower clip; None: the method's"})
    disable_dropout: bool = field(default=True, metadata={"help": "u compares probabilities, which dropout would blur"})

    def __post_init__(self):
        method = carried(self.method)
        if self.beta:
            raise ValueError(
                f"beta = {self.beta:g} asks TRL for a reference model, which no method here needs: leave beta at 0, and set "
                "`strength` for the penalty"
            )
        if self.rehearsal_batch_size < 1 or (self.strength or 0) < 0:
            raise ValueError(
                f"rehearsal_batch_size = {self.rehearsal_batch_size} and strength = {self.strength}; expected at least 1 "
                "and at least 0"
            )
        self.strength = method.strength_of(self.strength)
        self.epsilon = method.clip_low if self.epsilon is None else self.epsilon
        self.epsilon_high = method.clip_high if self.epsilon_high is None else self.epsilon_high
        with no_future_warnings():  # of TRL's own way with transformers
            super().__post_init__()


class DPHTrainer(GRPOTrainer):
    """`GRPOTrainer` on D_exp with the rehearsal of a `Partition`.

    Args:
        model: a `models.Policy`, or what GRPOTrainer takes: a hub id, a folder, a model. It is trained in place, and is what
            was pre-sampled.
        task: the verifier; a right answer has the reward 1.
        problems: the problems that were pre-sampled.
        parts: their partition, with the rehearsal buffer.
        args: with `max_steps` the problems come in the order of the kit's own trainer, endlessly; else TRL shuffles D_exp.
        **grpo: any other keyword of GRPOTrainer, such as `peft_config`, `callbacks`; `reward_funcs` are added to the verdict's.

    Raises:
        ValueError: what `training.train` refuses of problems and partition; a D_exp smaller than one generation.
    """

    def __init__(
        self,
        model,
        task: Task,
        problems: Sequence[Problem],
        parts: Partition,
        args: DPHConfig | None = None,
        **grpo,
    ):
        args = DPHConfig() if args is None else args
        self.method, self.task = carried(args.method), task
        check_inputs(problems, parts, args)
        self.policy = _policy(model, grpo.pop("processing_class", None))
        if self.policy.trained:
            raise ValueError(
                "this policy has been trained already, and a run starts from the untouched one: load it again"
            )
        by_id = {p.id: p for p in problems}
        self.problems = [by_id[i] for i in explored_ids(self.method, parts)]
        rehearsal = parts.rehearsal if self.method.rehearses and args.strength > 0 else parts.rehearsal.iloc[:0]
        self.stored = rehearsal_samples(self.policy, by_id, rehearsal)
        self.settled = not self.stored  # whether the stored log-probs are known to be this forward's
        self._pending, self._stored_logp, self._update, self._seen = None, None, (-1, 0), Averages()
        self.rehearsed = 0  # stored tokens trained so far
        if args.kit_sampler:
            grpo["rollout_func"] = self._draw
        rewards = grpo.pop("reward_funcs", None) or []
        rewards = rewards if isinstance(rewards, list) else [rewards]
        given = {
            "model": model.model if isinstance(model, Policy) else model,
            "processing_class": self.policy.tokenizer,
        }
        given |= {"reward_funcs": [self.correct, *rewards], "train_dataset": self._dataset(args)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # may change: the tests would see it
            super().__init__(args=args, **given, **grpo)
        self.policy.model = self.model
        zero_3 = self.is_deepspeed_enabled and args.deepspeed_plugin.zero_stage == 3
        self.sharded = self.is_fsdp_enabled or zero_3
        if args.kit_sampler and self.sharded:
            raise ValueError(
                "kit_sampler draws from a whole model, which no process holds here; leave it off, or use_vllm"
            )

    # ---- data and reward -----------------------------------------------------------------------------------------

    def _dataset(self, args: DPHConfig) -> Dataset:
        """D_exp: prompts as TRL renders them, and positions in `problems`; in the kit's order where the steps are counted."""
        chat = (
            getattr(self.policy.tokenizer, "chat_template", None) is not None
        )  # TRL applies it, and no BOS comes double
        prompts = [[{"role": "user", "content": p.prompt}] if chat else p.prompt for p in self.problems]
        whole = Dataset.from_dict({"prompt": prompts, "problem": list(range(len(prompts)))})
        self.per_generation = args.generation_batch_size // args.num_generations
        if args.max_steps <= 0:
            if len(prompts) < self.per_generation or args.kit_sampler:
                raise ValueError(
                    f"without max_steps TRL reads D_exp in epochs: {len(prompts)} problems must fill a generation of "
                    f"{self.per_generation}, and kit_sampler cannot know their order; give max_steps"
                )
            return whole
        every = args.steps_per_generation * args.num_iterations
        generations = -(-args.max_steps * args.gradient_accumulation_steps // every)
        args.shuffle_dataset = False
        taken = Stream(range(len(prompts)), args.seed, 0).take(generations * self.per_generation)
        self.order = [int(i) for _, i in taken]
        return whole.select(self.order)

    def correct(self, completion_ids: list[list[int]], problem: list[int], **_) -> list[float]:
        """The reward: 1 for an answer that the task finds right, else 0, or what partial credit gives."""
        texts = map(self.policy.decode, completion_ids)
        verdicts = self.task.verify_all((self.problems[i], text) for i, text in zip(problem, texts, strict=True))
        return [verdict.reward for verdict in verdicts]

    def _draw(self, prompts: list, _trainer) -> dict:
        """This process's answers of a generation, by the kit's sampler: groups lie together, as TRL's data loader has them."""
        args, local = self.args, len(prompts) // self.num_generations
        every = args.steps_per_generation * args.num_iterations
        place = self.state.global_step * args.gradient_accumulation_steps // every * self.per_generation
        place += self.accelerator.process_index * local
        some = [self.problems[i] for i in self.order[place : place + local]]
        seeds = [seed_of(args.seed, place + i, p.id) for i, p in enumerate(some)]
        how = {"max_new_tokens": self.max_completion_length, "temperature": args.temperature, "top_p": args.top_p}
        how |= {"training_temperature": args.temperature, "seeds": seeds}
        encoded = [self.policy.encode(p.prompt) for p in some]
        groups = generate(self.policy, encoded, self.num_generations, **how)
        drawn = [c for group in groups for c in group]
        ids = [prompt for prompt in encoded for _ in range(self.num_generations)]
        return {"prompt_ids": ids, "completion_ids": [c.token_ids for c in drawn], "logprobs": [c.logp for c in drawn]}

    def _generate_and_score_completions(self, inputs):
        with no_future_warnings():  # TRL asks for a name of transformers that the newest release has renamed
            return super()._generate_and_score_completions(inputs)

    # ---- the loss ------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss of a micro-batch, and this micro-batch's part of eta * L_pef."""
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.settled:
            self._settle(model)
        rows, last, total = self._share()
        self._pending = self._batch(rows) if rows else None
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        processes = self.accelerator.num_processes  # whose gradients will be averaged
        self._seen.add(1 / processes, loss_exploration=loss.detach())
        if rows:
            loss = loss + self.args.strength * processes * self._penalty(rows, total).to(loss.dtype)
        if last:
            self.rehearsed += total
            for name, value in self._seen.result().items():
                self._metrics["train"][name].append(value)
            self._seen = Averages()
        return loss

    def _share(self) -> tuple[list[ReferenceSample], bool, int]:
        """This micro-batch's stored rows on this process, whether it is the update's last, and the update's stored tokens.

        Which rows come when follows from the number of the update alone, so that a run that goes on needs no state.
        """
        step, micro = self.state.global_step, self._update[1] + 1 if self._update[0] == self.state.global_step else 0
        self._update = step, micro
        pieces, state = self.current_gradient_accumulation_steps, self.accelerator
        if not self.stored:
            return [], micro + 1 == pieces, 0
        stream = Stream(self.stored, self.args.seed, 1)
        stream.place = step * self.args.rehearsal_batch_size
        rows = [stored for _, stored in stream.take(self.args.rehearsal_batch_size)]
        mine = rows[micro * state.num_processes + state.process_index :: pieces * state.num_processes]
        return mine, micro + 1 == pieces, token_count(rows)

    def _batch(self, rows: Sequence[ReferenceSample]) -> TokenBatch:
        return collate(
            [r.prompt for r in rows], [r.token_ids for r in rows], self.policy.pad_id, self.accelerator.device
        )

    def _penalty(self, rows: Sequence[ReferenceSample], total: int) -> Tensor:
        """These rows' part of L_pef, so that the parts of all micro-batches and processes add up to the token mean."""
        if self._pending is not None:
            self._pending = None
            raise RuntimeError(
                "TRL computed its loss without _get_per_token_logps_and_entropies, so no stored answer was rehearsed; a fused "
                "loss, such as Liger's, goes around it: switch it off (use_liger_kernel, use_liger_loss)"
            )
        logp, mask = self._stored_logp
        logp_ref = pad([r.logp_ref for r in rows], 0.0).to(logp)
        penalty, share = rehearsal_loss(self.method, logp, logp_ref, mask, self.args.alpha), token_count(rows) / total
        self._seen.add(share, penalty=penalty.detach())
        self._seen.log_u.append(divergences.masked_log_ratio(logp.detach(), logp_ref, mask))
        return penalty * share

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *rest, **more):
        """TRL's forward; where stored rows are pending they are stacked below the fresh ones, and split off again."""
        stored, self._pending = self._pending, None
        if stored is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **more
            )
        foreign = [k for k, v in more.items() if v is not None and not k.startswith(("compute_", "batch_size"))]
        if foreign:
            raise NotImplementedError(f"stored answers are text; got {', '.join(foreign)} besides. Use a text model")
        length = stored.mask.shape[1]
        keep = max(length, logits_to_keep)
        ids = _stacked(input_ids, logits_to_keep, stored.input_ids, length, self.policy.pad_id)
        seen = _stacked(attention_mask, logits_to_keep, stored.attention_mask.to(attention_mask), length, 0)
        logp, entropy, *others = super()._get_per_token_logps_and_entropies(model, ids, seen, keep, *rest, **more)
        fresh = len(input_ids)
        self._stored_logp = logp[fresh:, :length], stored.mask
        entropy = entropy if entropy is None else entropy[:fresh, :logits_to_keep]
        return logp[:fresh, :logits_to_keep], entropy, *others

    # ---- pi_ref --------------------------------------------------------------------------------------------------

    def _settle(self, model):
        """Before the first update: do the stored log-probs agree with this forward at the same weights? If not to the last
        digits, as in bfloat16, on 4-bit weights or after vLLM, all are computed again, and kept for a run that goes on."""
        self.settled, path = True, Path(self.args.output_dir) / RESCORED
        if self.state.global_step:  # the reference is gone; what it said is in the file, unless the stored ones agreed
            if path.is_file():
                self._take(np.load(path))
            return
        if self.accelerator.is_main_process:
            path.unlink(missing_ok=True)
        probe = self.stored[:: max(1, len(self.stored) // 256)]
        found = self._score(model, probe)
        gap = float(np.abs(found - np.concatenate([r.logp_ref for r in probe])).mean())
        if _agree(gap):
            return
        scores = self._score(model, self.stored)
        self._take(scores)
        if self.accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_whole(path, lambda temporary: temporary.write_bytes(_npy(scores)))

    def _take(self, scores: np.ndarray):
        ends = np.cumsum([len(row.token_ids) for row in self.stored])[:-1]
        pairs = zip(self.stored, np.split(scores, ends), strict=True)
        self.stored = [dataclasses.replace(row, logp_ref=logp.tolist()) for row, logp in pairs]

    @torch.no_grad()
    def _score(self, model, rows: Sequence[ReferenceSample]) -> np.ndarray:
        """Log-probs of all completion tokens of `rows`, one after the other, by the forward that trains. Each process scores
        its share; all make the same number of forwards, since who holds a part of the weights takes part in each."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        mine = [rows[i % len(rows)] for i in range(index, -(-len(rows) // processes) * processes, processes)]
        size, scores = self.args.per_device_train_batch_size, []
        model.eval()  # activations are not checkpointed then
        for start in range(0, len(mine), size):
            batch = self._batch(mine[start : start + size])
            length = batch.mask.shape[1]
            seen = batch.attention_mask.long()
            logp = self._get_per_token_logps_and_entropies(model, batch.input_ids, seen, length)[0]
            scores += [x[mask].double().cpu().numpy() for x, mask in zip(logp, batch.mask, strict=True)]
        model.train()
        shares = gather_object([scores])
        return np.concatenate([shares[i % processes][i // processes] for i in range(len(rows))])

    def _send_telemetry(self):
        """Nothing: what is trained here is nobody else's business."""


def _policy(model, tokenizer) -> Policy:
    """The kit's view of what is trained; its model is filled in where TRL loads it."""
    if isinstance(model, Policy):
        return model
    name = model if isinstance(model, str) else model.config.name_or_path
    return Policy(model, tokenizer or AutoTokenizer.from_pretrained(name, padding_side="left"), name)


def _stacked(upper: Tensor, right: int, lower: Tensor, lower_right: int, fill: int) -> Tensor:
    """Two batches of prompts (on the left) and `right` columns of completions (on the right) as one, filled up at both ends."""
    left, lower_left = upper.shape[1] - right, lower.shape[1] - lower_right
    widths = max(left, lower_left), max(right, lower_right)
    parts = (upper, left, right), (lower, lower_left, lower_right)
    filled = [torch.nn.functional.pad(x, (widths[0] - a, widths[1] - b), value=fill) for x, a, b in parts]
    return torch.cat(filled)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _agree(gap: float) -> bool:
    """Whether stored log-probs that lie `gap` nats a token from the training forward's can stand. Raises for foreign ones."""
    if not gap <= precision.FOREIGN:
        raise ValueError(
            f"these weights did not write the stored answers: mean |log u| is {gap:.2g} before the first step, where it should "
            f"be 0 (at most {precision.FOREIGN:g}). Pre-sample this model, or train the one that was pre-sampled"
        )
    if gap > precision.ROUNDED:
        warnings.warn(
            f"the stored log-probs differ from the training forward's by {gap:.3f} nats on average (more than "
            f"{precision.ROUNDED:g}): other precision or kernels drew them. They are computed again",
            stacklevel=2,
        )
    return gap <= precision.EXACT
