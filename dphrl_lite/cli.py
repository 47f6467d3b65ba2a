"""The command `dphrl`: one subcommand per line of COMMANDS. Each imports what it needs when it runs, so that
`dphrl doctor` works where packages are missing. Holds no logic of its own.
"""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Command:
    """A subcommand: its line of help, what runs it, and what adds its arguments.

    With `recipe` its flags are the fields of dataclasses, read by `settings.parse`, and `run` gets them as they stand.
    """

    help: str
    run: Callable[[argparse.Namespace | list[str]], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    recipe: bool = False


def run_doctor(arguments: argparse.Namespace) -> int:
    """Say what this machine can run, and why."""
    from dphrl_lite import doctor

    return doctor.main()


def run_experiment(arguments: argparse.Namespace) -> int:
    """Print what a shipped comparison found, or run one into a folder; what is there already is read."""
    from dphrl_lite.study import experiments

    experiment = experiments.EXPERIMENTS[arguments.name]
    asked = {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}
    if foreign := sorted(set(asked) - set(experiment.flags)):
        raise ValueError(f"{arguments.name} has no setting {', '.join(foreign)}; it has {', '.join(experiment.flags)}")
    if asked and not arguments.out:
        raise ValueError(f"{', '.join(asked)} decide a new comparison: give it a folder with --out")
    if not (arguments.out or experiment.shipped):
        raise ValueError(f"no runs of {arguments.name} are shipped: give it a folder with --out, and it is run there")
    if arguments.out:
        experiment.run(arguments.out, **asked)
    print(experiment.report(arguments.out or experiment.shipped))
    return 0


FLAGS = {
    "steps": {"type": int, "help": "training steps of each run (60; 15)"},
    "seeds": {"type": int, "nargs": "+", "help": "training seeds (0 1 2; 0; 0 1 2 3 4)"},
    "domains": {"nargs": "+", "help": "of the frontier: countdown, sql (both)"},
    "methods": {"nargs": "+", "help": "of the frontier (all)"},
    "minutes": {"type": float, "help": "begin no run after so many; the same command goes on (no limit)"},
    "processes": {"type": int, "help": "runs at once (one per core)"},
}


def add_experiment_arguments(parser: argparse.ArgumentParser):
    """The flags of `dphrl experiment`."""
    what = "first-look: the tiny model on countdown; multiplication: the small language model; base, GRPO and DPH-JS. "
    what += "frontier: every method and strength on countdown and SQL; frontier-class: five of those runs"
    parser.add_argument("name", choices=["first-look", "multiplication", "frontier", "frontier-class"], help=what)
    parser.add_argument("--out", help="folder in which everything is run (default: read the shipped outcomes)")
    for name, flag in FLAGS.items():
        parser.add_argument(f"--{name}", **flag)


@dataclass(frozen=True)
class Share:
    """What one process of several does; no part of a recipe."""

    shard: str | None = field(
        default=None,
        metadata={"help": "i/n, as in 0/4: compute every n-th shard from the i-th on, with others in `out`"},
    )

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
class Anyway:
    """An answer to the memory pre-flight; no part of a recipe."""

    anyway: bool = field(default=False, metadata={"help": "go on although the memory table says that it will not fit"})


def check_memory(*arguments, **settings):
    """Print what will be needed of memory before anything is loaded; of several processes the main one, for itself."""
    from dphrl_lite.scale import memory

    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # several share the weights, or a machine: the table is a hint
    settings["anyway"] = settings["anyway"] or not alone
    text = memory.check(*arguments, **settings)
    if os.environ.get("RANK", "0") == "0":
        print(text if alone else f"{text}\n(of one process, without sharding)", file=sys.stderr)


@dataclass(frozen=True)
class Evaluated(Share):
    """Which policy `dphrl evaluate` samples; no part of a recipe."""

    policy: str | None = field(
        default=None, metadata={"help": "folder (or hub id) of a trained policy; None: the recipe's model, untrained"}
    )
    against: str | None = field(
        default=None,
        metadata={"help": "folder of the evaluation to compare with; None: the untrained model's, where it is there"},
    )


def run_presample(argv: list[str]) -> int:
    """Sample the reference, verify, and print how the problems fall."""
    from dphrl_lite import models, presampling, settings, training

    stages = (presampling.PresampleConfig, presampling.PartitionConfig, Share, Anyway)
    recipe, config, switches, share, given = settings.parse(argv, "presample", *stages)
    task, problems, shard = recipe.load_task(), recipe.load_problems(), share.pair()
    presampling.partition_counts(config.samples, [0], switches.threshold)  # refuses an impossible threshold now
    shape = training.TrainConfig(
        "grpo",
        problems_per_step=config.problems_per_batch,
        samples=max(2, config.samples),
        max_new_tokens=config.max_new_tokens,
    )
    check_memory(recipe.model, shape, problems, training=False, nf4=recipe.nf4, anyway=given.anyway)
    policy = models.load(recipe.model, nf4=recipe.nf4)
    where = {"out": recipe.presampling, "shard": shard, "progress": is_shown()}
    rollouts = presampling.sample(policy, task, problems, **where, **asdict(config))
    print(f"{len(rollouts)} completions in {recipe.presampling}")
    if not presampling.missing(recipe.presampling):  # of several shares, whichever ends last
        rollouts = presampling.load(recipe.presampling) if shard else rollouts
        print(presampling.partition(rollouts, **asdict(switches)).summary().to_string(index=False))
    return 0


def is_shown() -> bool:
    """Whether this process shows progress bars: of several on one machine, the first."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_train(argv: list[str]) -> int:
    """Train on the rollouts that `presample` wrote for the same recipe; save the policy and print the last step's metrics.

    `accelerate launch --multi_gpu --num_processes 2 -m dphrl_lite.cli train ...` runs it on two GPUs, or without any on two
    processes of the CPU.
    """
    from dphrl_lite import models, presampling, settings, training
    from dphrl_lite.engine import checkpoint, sharding
    from dphrl_lite.study import export

    stages = (presampling.PartitionConfig, training.TrainConfig, Anyway)
    recipe, switches, config, given = settings.parse(argv, "train", *stages)
    task, problems = recipe.load_task(), recipe.load_problems()
    parts = presampling.partition(presampling.load(recipe.presampling), **asdict(switches))
    config, folder = recipe.run(config)
    check_memory(recipe.model, config, problems, nf4=recipe.nf4, anyway=given.anyway)
    policy = models.load(recipe.model, nf4=recipe.nf4, device=sharding.load_device())
    run = training.train(policy, task, problems, parts, out=folder, in_place=True, **asdict(config))
    if training.PartialState().is_main_process:
        saved = folder / f"policy-{len(run.log):06d}"
        if not saved.exists():
            told = export.facts(folder, recipe.presampling, recipe.problems, parts)
            checkpoint.write_whole(saved, lambda path: export.save(run.policy, path, *told))
        last = run.log.iloc[-1].dropna().map("{:.6g}".format)
        print(f"{folder}, step {len(run.log)}:\n{last.to_string()}\npolicy: {saved}")
    return 0


def run_evaluate(argv: list[str]) -> int:
    """Sample a policy on the recipe's problem sets; print Pass@k, and what has changed since another evaluation."""
    from dphrl_lite import evaluation, models, settings
    from dphrl_lite.engine import checkpoint
    from dphrl_lite.study import export

    recipe, config, chosen = settings.parse(argv, "evaluate", evaluation.EvaluateConfig, Evaluated)
    sets, shard = settings.problem_sets(config, recipe.skipped), chosen.pair()
    folder, run = recipe.evaluation(chosen.policy)
    untrained = recipe.evaluation(None)[0]
    other = chosen.against or (untrained if chosen.policy and any(untrained.glob("*.parquet")) else None)
    base = evaluation.read(other) if other else None
    policy = models.load(chosen.policy or recipe.model, nf4=recipe.nf4)
    table = evaluation.evaluate(policy, sets, config, folder, shard, is_shown(), **run)
    if table is None:
        print(f"this share is in {folder}; the one that ends last prints the tables")
        return 0
    report = evaluation.report(table, config, base)
    checkpoint.write_whole(folder / "report.md", lambda path: path.write_text(report))
    print(f"{folder}: {report}")
    if chosen.policy:
        export.add_scores(chosen.policy, report)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Merge a trained adapter into its base."""
    import torch

    from dphrl_lite.study import export

    merged = export.merge(arguments.policy, arguments.out, arguments.dtype and getattr(torch, arguments.dtype))
    print(f"{arguments.out}: {merged.num_parameters():,} parameters in {merged.dtype}")
    return 0


def add_export_arguments(parser: argparse.ArgumentParser):
    """The flags of `dphrl export`."""
    parser.add_argument("--policy", required=True, help="folder of the adapter, as `dphrl train` saves it")
    parser.add_argument("--out", required=True, help="a new folder for the merged model")
    help = "of the merged weights (default: as the base is stored)"
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help=help)


COMMANDS = {
    "presample": Command("sample the reference once and verify every answer", run_presample, recipe=True),
    "train": Command("train with one method on what presample wrote", run_train, recipe=True),
    "evaluate": Command("Pass@k of a policy on the recipe's problem sets", run_evaluate, recipe=True),
    "export": Command("merge a trained adapter into its base model", run_export, add_export_arguments),
    "experiment": Command("compare methods on one task and print Pass@k", run_experiment, add_experiment_arguments),
    "doctor": Command("say what this machine can run, and why", run_doctor),
}


def version() -> str:
    """The installed version, or a word that there is none."""
    try:
        return importlib.metadata.version("dphrl-lite")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: pip install -e ."


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand of `COMMANDS`."""
    parser = argparse.ArgumentParser(prog="dphrl", description="Learn, teach and research DPH-RL.")
    parser.add_argument("--version", action="version", version=f"dphrl-lite {version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        # a command with a recipe prints its own help: its flags are known only when torch and transformers are imported
        subparser = subparsers.add_parser(
            name, help=command.help, description=command.help, add_help=not command.recipe
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, command=name)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns its exit status; without a command prints the help."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    recipe = hasattr(arguments, "run") and COMMANDS[arguments.command].recipe
    if rest and not recipe:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    try:
        return arguments.run(rest if recipe else arguments)
    except (
        ValueError,
        OSError,
        ImportError,
        FloatingPointError,
        MemoryError,
        NotImplementedError,
    ) as error:  # the kit's own errors say what to do
        print(f"dphrl {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
