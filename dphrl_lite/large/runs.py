"""A run of the kit on TRL: the settings of `training.train`, its manifest, log and result, with `large.trl` underneath.

What a step computes stands in `large.trl`; checkpoints are TRL's, in the run's folder.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from dphrl_lite.engine import batches, checkpoint, optimizers
from dphrl_lite.engine.journal import LOG
from dphrl_lite.errors import lookup
from dphrl_lite.large.trl import DPHConfig, DPHTrainer, carried
from dphrl_lite.metrics import METRICS, peak_memory_gb
from dphrl_lite.models import Policy, settle_threads
from dphrl_lite.presampling import Partition
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.training import Run, TrainConfig, explored_ids, manifest

OPTIMIZERS = {"adamw": "adamw_torch", "adamw-8bit": "adamw_bnb_8bit", "paged-adamw-8bit": "paged_adamw_8bit"}
_LAST = "trainer_state.json"  # what a checkpoint of TRL's ends with
_NAMES = {"grad_norm": "gradient_norm", "frac_reward_zero_std": "zero_spread"}
_NAMES |= {"clip_ratio/low_mean": "clipped_low", "clip_ratio/high_mean": "clipped_high"}


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
    trl: Mapping[str, object] | None = None,
    **settings,
) -> Run:
    """`training.train` by TRL: arguments, folder, log and result are the same. `trl` are further settings of GRPOConfig.

    The kit's sampler draws, unless `trl` has `use_vllm`, or `kit_sampler=False` for TRL's own, which sharding needs.

    Raises:
        ValueError: besides what `training.train` refuses, a method or setting that TRL cannot carry.
    """
    config = TrainConfig(method=method, steps=steps, seed=seed, **settings)
    policy = policy if in_place or policy.adapter else policy.copy()
    settle_threads(policy.model)
    more = {"kit_sampler": not (trl or {}).get("use_vllm")} | ({} if out else {"save_strategy": "no"}) | dict(trl or {})
    for name in more:
        lookup(DPHConfig.__dataclass_fields__, "setting of TRL's GRPOConfig", name)
    with ExitStack() as stack:
        folder = Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        args = DPHConfig(str(folder), **translated(config, policy, problems) | more)
        state = PartialState()
        if out is not None:
            identity = _manifest(policy, task, problems, parts, config, args) | {"trl": more}
            with state.main_process_first():
                checkpoint.claim(folder, identity)
        newest, records = _resumed(folder, config)
        shown = {"total": steps, "desc": f"{method}, TRL", "disable": not (progress and state.is_main_process)}
        ledger = _Ledger(folder, records, config.minibatches, stack.enter_context(tqdm(**shown)), on_step)
        ledger.trainer = trainer = DPHTrainer(policy, task, problems, parts, args, callbacks=[ledger])
        trainer.remove_callback(PrinterCallback)
        if trainer.sharded:
            raise NotImplementedError(
                "dphrl train saves a whole policy, and here each process holds a part of the weights: write a script with "
                "DPHTrainer and trainer.save_model, as docs/scale.md shows"
            )
        with checkpoint.explained(out and folder):
            trainer.train(resume_from_checkpoint=newest)
    policy.model, policy.trained = trainer.accelerator.unwrap_model(trainer.model).eval(), True
    return Run(policy, pd.DataFrame(records, columns=list(METRICS)), config, args.strength)


def _resumed(folder: Path, config: TrainConfig) -> tuple[str | None, list[dict]]:
    """The newest of TRL's checkpoints in `folder` that was written to its end, and the records that it holds, one per step."""
    whole = {int(path.parent.name.rsplit("-", 1)[1]): path for path in folder.glob(f"checkpoint-[0-9]*/{_LAST}")}
    if not whole:
        return None, []
    newest = whole[max(whole)]
    try:
        state = TrainerState.load_from_json(str(newest))
        records = state.stateful_callbacks[_Ledger.__name__]["attributes"]["records"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{newest} is damaged, or not of this trainer ({error!r}): delete its folder, {newest.parent}, and run the same "
            "training again"
        ) from error
    if len(records) > config.steps:
        raise ValueError(
            f"{folder} holds a run of {len(records)} steps, more than the {config.steps} asked for; pass steps={len(records)}"
        )
    return str(newest.parent), records


def translated(config: TrainConfig, policy: Policy, problems: Sequence[Problem]) -> dict:
    """The settings of `DPHConfig` that make TRL's step the kit's: the same rows in each update, in forwards of the same size.

    Raises:
        ValueError: a setting that TRL has no counterpart of, or batches that do not divide evenly.
    """
    carried(config.method)
    usual = {"penalty_target": None, "advantage_k": 1, "joint_mean": False, "distinct_advantage": False}
    usual |= {"trackers": None, "weight_decay": 0.0}  # TRL's decay spares biases and norms
    foreign = [name for name, value in usual.items() if getattr(config, name) != value]
    if foreign:
        raise ValueError(
            f"TRL cannot carry {', '.join(foreign)}: leave it out (trackers: TRL's report_to), or use the kit's own trainer"
        )
    longest = config.max_new_tokens or policy.max_new_tokens
    processes, updates = int(os.environ.get("WORLD_SIZE", 1)), config.minibatches
    rows, uneven = divmod(config.problems_per_step * config.samples, updates * processes)
    if uneven or config.rehearsal_per_step % updates or config.problems_per_step % processes:
        raise ValueError(
            f"TRL needs even batches: problems_per_step = {config.problems_per_step} divisible by {processes} processes, times "
            f"samples = {config.samples} by minibatches = {updates}, and rehearsal_per_step = {config.rehearsal_per_step}, too"
        )
    width = longest + max(len(policy.encode(p.prompt)) for p in problems)
    at_once = max(1, batches.microbatch_tokens(config.microbatch_tokens, len(policy.tokenizer)) // width)
    size = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= at_once)
    low = next(p for p in policy.model.parameters() if p.is_floating_point()).dtype == torch.bfloat16
    arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": rows // size}
    arguments |= {"steps_per_generation": rows // size * updates, "num_generations": config.samples}
    arguments |= {
        "max_steps": config.steps * updates,
        "save_steps": config.checkpoint_every * updates,
        "save_total_limit": 1,
    }
    arguments |= {"method": config.method, "strength": config.strength, "alpha": config.alpha, "seed": config.seed}
    arguments |= {"rehearsal_batch_size": config.rehearsal_per_step // updates, "allow_mismatch": config.allow_mismatch}
    arguments |= {"max_completion_length": longest, "temperature": config.temperature, "bf16": low}
    optim = OPTIMIZERS[optimizers.choose(config.optimizer, policy.quantised, policy.device)]
    arguments |= {
        "optim": optim,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
    }
    arguments |= {"adam_beta1": config.adam_beta1, "adam_beta2": config.adam_beta2, "delta": config.dual_clip}
    arguments |= {"max_grad_norm": config.gradient_clip, "use_cpu": policy.device.type == "cpu"}
    return arguments | {"gradient_checkpointing": False, "logging_steps": 1, "report_to": "none", "disable_tqdm": True}


def _manifest(policy: Policy, task: Task, problems, parts: Partition, config: TrainConfig, args: DPHConfig) -> dict:
    method, by_id = carried(config.method), {p.id: p for p in problems}
    chosen = [by_id[i] for i in explored_ids(method, parts)]
    resolved = {
        "strength": args.strength,
        "max_new_tokens": args.max_completion_length,
        "optimizer": args.optim,
        "engine": "trl",
    }
    return manifest(task, chosen, parts, config) | resolved | {"weights": checkpoint.weights_digest(policy.model)}


class _Ledger(TrainerCallback, ExportableState):
    """Writes log.jsonl: one record, with the columns of `METRICS`, of the updates that share a generation.

    TRL's checkpoints hold the records, too, as the kit's do: what the log says otherwise is corrected from there.
    """

    def __init__(self, folder: Path, records: list[dict], updates: int, bar: tqdm, on_step: Callable | None):
        self.folder, self.records, self.updates, self.bar, self.on_step = folder, records, updates, bar, on_step
        self.logs: list[dict] = []

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {"args": {}, "attributes": {"records": self.records}}

    def on_train_begin(self, args, state, control, **_):
        """The log begins with what the checkpoint knows."""
        self.started = time.perf_counter()
        self.bar.update(len(self.records) - self.bar.n)
        if state.is_world_process_zero:
            text = "".join(json.dumps(record) + "\n" for record in self.records)
            checkpoint.write_whole(self.folder / LOG, lambda temporary: temporary.write_text(text))

    def on_log(self, args, state, control, logs, **_):
        """Collect; after the last update of a step add its record."""
        if "loss" not in logs:
            return  # the summary at the end
        self.logs.append({_NAMES.get(name, name): x for name, x in logs.items() if isinstance(x, (int, float))})
        if len(self.logs) < self.updates:
            return
        record, self.logs = self._record(args), []
        self.records.append(record)
        self.bar.set_postfix(reward=f"{record['reward']:.2f}", entropy=f"{record['entropy']:.2f}", refresh=False)
        self.bar.update()
        if state.is_world_process_zero:
            with (self.folder / LOG).open("a") as log:
                log.write(json.dumps(record) + "\n")
            if self.on_step is not None:
                self.on_step(record)

    def _record(self, args) -> dict:
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        means = pd.DataFrame(self.logs).mean().to_dict()
        tokens = round(means["completions/mean_length"] * args.generation_batch_size)
        theirs = {name: means[name] for name in METRICS if name in means and name != "step"}
        own = {"step": len(self.records) + 1, "strength": args.strength, "tokens": tokens, "reference_forwards": 0}
        own |= {"groups": args.generation_batch_size // args.num_generations, "tokens_per_second": tokens / seconds}
        own |= {"tokens_trained": tokens * args.num_iterations + self.trainer.rehearsed, "seconds": seconds}
        self.trainer.rehearsed = 0
        own["peak_memory_gb"] = max(gather_object([peak_memory_gb(args.device)]))
        return dict.fromkeys(METRICS) | theirs | own
