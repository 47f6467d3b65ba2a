"""The command `dphrl`: one subcommand per line of COMMANDS. Each imports what it needs when it runs, so that
`dphrl doctor` works where packages are missing. Holds no logic of its own.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand: its line of help, what runs it, and what adds its arguments."""

    help: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def run_doctor(arguments: argparse.Namespace) -> int:
    """Say what this machine can run, and why."""
    from dphrl_lite import doctor

    return doctor.main()


def run_experiment(arguments: argparse.Namespace) -> int:
    """Run a comparison, or read it where its outcomes are there already, and print Pass@k."""
    from dphrl_lite import experiments

    table = experiments.first_look(
        arguments.out or experiments.FIRST_LOOK, steps=arguments.steps, seeds=arguments.seeds
    )
    print(experiments.summary(table).round(3).to_string())
    return 0


def add_experiment_arguments(parser: argparse.ArgumentParser):
    """The flags of `dphrl experiment`."""
    parser.add_argument("name", choices=["first-look"], help="first-look: base, GRPO and DPH-JS on countdown")
    parser.add_argument("--out", help="folder for the outcomes (default: the shipped ones in data/runs/first_look)")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")


COMMANDS = {
    "experiment": Command(
        "compare methods on the miniature and print Pass@k", run_experiment, add_experiment_arguments
    ),
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
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, command=name)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns its exit status; without a command prints the help."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    try:
        return arguments.run(arguments)
    except (ValueError, FileNotFoundError, ImportError) as error:  # the kit's own errors say what to do
        print(f"dphrl {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
