"""What the subcommands of `dphrl` do. The fields of each class, and of the settings that it holds, are its flags.

Holds no logic of its own: the stages are `study.pipeline`'s. Loading this takes torch, and seconds: `cli` reads the flags' help
from the source instead.
"""

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from dphrl_lite import models, presampling, settings, training
from dphrl_lite.engine import checkpoint, sharding
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.settings import Recipe
from dphrl_lite.study import pipeline, reports
from dphrl_lite.study.pipeline import Stages
from dphrl_lite.training import TrainConfig


@dataclass(frozen=True)
class Share:
    """What one process of several does; no part of a recipe."""

    shard: str | None = None  # i/n, as in 0/4: compute every n-th shard from the i-th on, with others in `out`

    def pair(self) -> tuple[int, int] | None:
        """`shard` as two numbers; under `accelerate launch` each process has its own. None: there is only one."""
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if self.shard is None:
            return (int(os.environ["RANK"]), launched) if launched > 1 else None
        i, _, n = self.shard.partition("/")
        if not (i.isdecimal() and n.isdecimal()):
            raise ValueError(f"--shard must look like 0/4, the first of four shares; got {self.shard!r}")
        return int(i), int(n)


@dataclass(frozen=True)
class Machine:
    """An answer to what is said of this machine before anything is loaded; no part of a recipe."""

    anyway: bool = False  # go on although there is no GPU for the model, or the memory table says that it will not fit

    def check_device(self, name: str):
        """Raise `ValueError` where a profile of billions of parameters would have to compute without a GPU."""
        profile = models.PROFILES.get(name)
        if profile and profile.sizes and not self.anyway and not torch.cuda.is_available():
            raise ValueError(
                f"{name} ({profile.summary}) needs a CUDA GPU, and torch sees none here. Use a machine with one, try --model "
                "tiny or --model small, or go on with --anyway; `dphrl doctor` says what runs here"
            )

    def check_memory(self, recipe: Recipe, config: TrainConfig, problems, training: bool = True):
        """Print what will be needed of memory before anything is loaded; of several processes the main one, for itself."""
        from dphrl_lite.scale import memory

        alone = (
            int(os.environ.get("WORLD_SIZE", 1)) == 1
        )  # several share the weights, or a machine: the table is a hint
        text = memory.check(recipe.model, config, problems, training, recipe.nf4, self.anyway or not alone)
        if os.environ.get("RANK", "0") == "0":
            print(text if alone else f"{text}\n(of one process, without sharding)", file=sys.stderr)


@dataclass(frozen=True)
class Sampler:
    """What draws; no part of a recipe."""

    engine: Literal["kit", "vllm"] = "kit"  # what draws: the kit's own sampler, or vLLM in its environment
    vllm: list[str] | None = None  # further settings of vllm.LLM, as in tensor_parallel_size=2

    def __post_init__(self):
        _used("--vllm", self.vllm, self.engine == "vllm", "--engine vllm")

    def load(self, name: str, nf4: bool) -> models.Policy:
        """The policy, to be drawn from by the engine."""
        if self.engine == "kit":
            return models.load(name, nf4=nf4)
        from dphrl_lite.large import vllm

        return vllm.load(name, nf4=nf4, **settings.pairs(self.vllm or ()))

    def batches(self, config):
        """`config` with whole shards drawn at once by vLLM, which fills its own batches."""
        whole = {"problems_per_batch": config.problems_per_shard}
        return config if self.engine == "kit" else replace(config, **whole)


@dataclass(frozen=True)
class Engine:
    """What trains; no part of a recipe."""

    engine: Literal["kit", "trl"] = "kit"  # what trains: the kit's own trainer, or TRL's
    trl: list[str] | None = None  # further settings of TRL's GRPOConfig, as in use_vllm=true

    def __post_init__(self):
        _used("--trl", self.trl, self.engine == "trl", "--engine trl")

    def choose(self):
        """The function that trains."""
        if self.engine == "kit":
            return training.train
        from dphrl_lite.large import runs

        return partial(runs.train, trl=settings.pairs(self.trl or ()))


def _used(flag: str, value, used: bool, by: str):
    if value and not used:
        raise ValueError(f"{flag} has no effect without {by}: give both, or leave it out")


def is_shown() -> bool:
    """Whether this process shows progress bars: of several on one machine, the first."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


@dataclass(frozen=True)
class Presample:
    """Sample the reference, verify, and print how the problems fall."""

    recipe: Recipe
    presample: PresampleConfig
    partition: PartitionConfig
    share: Share
    machine: Machine
    sampler: Sampler

    def __call__(self):
        """Run it."""
        self.machine.check_device(self.recipe.model)
        task, problems = self.recipe.load_task(), self.recipe.load_problems()
        drawing = self.sampler.batches(self.presample)
        shard, folder = self.share.pair(), self.recipe.presampling
        presampling.partition_counts(drawing.samples, [0], self.partition.threshold)  # refuses an impossible one now
        shape = {"problems_per_step": drawing.problems_per_batch, "max_new_tokens": drawing.max_new_tokens}
        shape = TrainConfig("grpo", samples=max(2, drawing.samples), **shape)
        self.machine.check_memory(self.recipe, shape, problems, training=False)
        policy, stages = self.sampler.load(self.recipe.model, self.recipe.nf4), Stages(drawing, self.partition)
        result = pipeline.run(policy, stages, task, problems, rollouts=folder, shard=shard, progress=is_shown())
        print(f"{len(result.rollouts)} completions in {folder}")
        if result.parts:  # of several shares, whichever ends last
            print(result.parts.summary().to_string(index=False))


@dataclass(frozen=True)
class Train:
    """Train on the rollouts that `presample` wrote for the same recipe; save the policy and print the last step's metrics.

    `accelerate launch --multi_gpu --num_processes 2 -m dphrl_lite.cli train ...` runs it on two GPUs, or without any on two
    processes of the CPU.
    """

    recipe: Recipe
    partition: PartitionConfig
    train: TrainConfig
    machine: Machine
    trainer: Engine

    def __call__(self):
        """Run it."""
        self.machine.check_device(self.recipe.model)
        task, problems, rollouts = self.recipe.load_task(), self.recipe.load_problems(), self.recipe.presampling
        presampling.read_manifest(rollouts)  # refuses what was not pre-sampled now
        config, folder = self.recipe.run(self.train)
        if os.environ.get("RANK", "0") == "0":
            print(self.recipe.strength_words(self.train, config), file=sys.stderr)
        self.machine.check_memory(self.recipe, config, problems)
        policy = models.load(self.recipe.model, nf4=self.recipe.nf4, device=sharding.load_device())
        stages = Stages(partition=self.partition, train=config)
        calling = {"out": folder, "in_place": True, "trainer": self.trainer.choose()}
        result = pipeline.run(policy, stages, task, problems, rollouts=rollouts, **calling)
        if os.environ.get("RANK", "0") == "0":
            self._save(result, folder)

    def _save(self, result: pipeline.Result, folder: Path):
        from dphrl_lite.study import export

        log = result.training.log
        policy = folder / f"policy-{len(log):06d}"
        if not policy.exists():
            facts = export.facts(folder, self.recipe.presampling, self.recipe.problems, result.parts)
            checkpoint.write_whole(policy, lambda path: export.save(result.policy, path, *facts))
        last = log.iloc[-1].dropna().map("{:.6g}".format)
        print(f"{folder}, step {len(log)}:\n{last.to_string()}\npolicy: {policy}")


@dataclass(frozen=True)
class Evaluate:
    """Sample a policy on the recipe's problem sets; print Pass@k, and what has changed since another evaluation."""

    recipe: Recipe
    evaluate: EvaluateConfig
    share: Share
    machine: Machine
    sampler: Sampler
    policy: str | None = None  # folder (or hub id) of a trained policy; None: the recipe's model, untrained
    against: str | None = (
        None  # folder of the evaluation to compare with; None: the untrained model's, where it is there
    )

    def __call__(self):
        """Run it."""
        self.machine.check_device(self.recipe.model)
        sets, shard = settings.problem_sets(self.evaluate, self.recipe.skipped), self.share.pair()
        folder, names = self.recipe.evaluation(self.policy)
        base = self._base()
        policy = self.sampler.load(self.policy or self.recipe.model, self.recipe.nf4)
        stages = Stages(evaluate=self.sampler.batches(self.evaluate))
        calling = {"evaluation_out": folder, "shard": shard, "progress": is_shown()}
        table = pipeline.run(policy, stages, sets=sets, **calling, **names).outcomes
        if table is None:
            print(f"this share is in {folder}; the one that ends last prints the tables")
            return
        report = reports.report(table, self.evaluate, base)
        checkpoint.write_whole(folder / "report.md", lambda path: path.write_text(report, encoding="utf-8"))
        print(f"{folder}: {report}")
        if self.policy:
            from dphrl_lite.study import export

            export.add_scores(self.policy, report)

    def _base(self):
        """The outcomes to compare with, if there are any."""
        untrained = self.recipe.evaluation(None)[0]
        folder = self.against or (untrained if self.policy and any(untrained.glob("*.parquet")) else None)
        return pipeline.read_outcomes(folder) if folder else None


@dataclass(frozen=True)
class Export:
    """Merge a trained adapter into its base model, or make a data set to share of pre-sampled answers."""

    out: str  # a new folder, for the merged model or the data set
    policy: str | None = None  # folder of the adapter, as `dphrl train` saves it; None: rollouts are exported
    rollouts: str | None = None  # folder of the answers, as `dphrl presample` writes it; None: a policy is exported
    threshold: int = 6  # right answers that put a problem into D_pef, for the column `bucket` of rollouts
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # of the merged weights; None: as the base is stored

    def __call__(self):
        """Run it."""
        from dphrl_lite.study import export

        if (self.policy is None) == (self.rollouts is None):
            raise ValueError(
                "nothing to export, or too much: give --policy FOLDER or --rollouts FOLDER, one of the two"
            )
        _used("--dtype", self.dtype, self.policy is not None, "--policy")
        if self.rollouts:
            rows = export.rollouts(self.rollouts, self.out, self.threshold)
            print(f"{self.out}: {rows} answers; to share it: hf upload YOU/NAME {self.out} --repo-type dataset")
            return
        merged = export.merge(self.policy, self.out, self.dtype and getattr(torch, self.dtype))
        print(f"{self.out}: {merged.num_parameters():,} parameters in {merged.dtype}")


@dataclass(frozen=True)
class Experiment:
    """Print what a shipped comparison says, or run one into a folder; what is there already is read.

    first-look: the tiny model on countdown; multiplication: the small language model; base, GRPO and DPH-JS. frontier: every
    method and strength on countdown and SQL; paths: every method at several learning rates, evaluated as it goes on, with the
    small language model too; class: four short paths.
    """

    name: Positional[Literal["first-look", "multiplication", "frontier", "paths", "class"]]  # which comparison
    out: str | None = None  # folder in which everything is run; None: read the shipped outcomes
    steps: int | None = None  # training steps of each run (60; 15)
    seeds: list[int] | None = None  # training seeds (0 1 2; 0; 0 1 2 3 4)
    domains: list[str] | None = None  # of frontier: countdown, sql; of paths more (all)
    methods: list[str] | None = None  # of frontier or paths (all)
    minutes: float | None = None  # begin no run after so many; the same command goes on (no limit)
    processes: int | None = None  # runs at once (one per core)

    def __call__(self):
        """Run it."""
        from dphrl_lite.study import experiments

        experiment = experiments.EXPERIMENTS[self.name]
        settings = {name: x for name, x in vars(self).items() if x is not None and name not in ("name", "out")}
        if foreign := sorted(set(settings) - set(experiment.flags)):
            raise ValueError(f"{self.name} has no setting {', '.join(foreign)}; it has {', '.join(experiment.flags)}")
        if settings and not self.out:
            raise ValueError(f"{', '.join(settings)} decide a new comparison: give it a folder with --out")
        if not (self.out or experiment.shipped):
            raise ValueError(f"no runs of {self.name} are shipped: give it a folder with --out, and it is run there")
        if self.out:
            experiment.run(self.out, **settings)
        print(experiment.report(self.out or experiment.shipped))
