"""The command `dphrl`: finds the subcommand, its flags (tyro), and its help. What a subcommand does stands in `commands`.

Imports nothing but the standard library at the top: `dphrl doctor` works where packages are missing, and help needs no torch:
it is read from the source of the classes whose fields are the flags.
"""

import argparse
import ast
import importlib.metadata
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path

from dphrl_lite import doctor
from dphrl_lite.errors import lookup

PACKAGE = Path(__file__).parent
COMMANDS = {
    "presample": "sample the reference once and verify every answer",
    "train": "train with one method on what presample wrote",
    "evaluate": "Pass@k of a policy on the recipe's problem sets",
    "export": "merge a trained adapter into its base model, or make a data set of pre-sampled answers",
    "experiment": "compare methods on one task and print Pass@k",
    "doctor": "say what this machine can run, and why",
}
CONFIG = "a YAML file of settings, see recipes/; flags override it"
OWN_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, NotImplementedError)  # say what to do


# ---- flags -----------------------------------------------------------------------------------------------------------


def parse(command: str, argv: Sequence[str]):
    """The object of `commands` that `--config recipe.yaml` and flags, which override the file, describe.

    Raises:
        ValueError, FileNotFoundError: what is wrong in the recipe. SystemExit: a wrong flag, after tyro has said which.
    """
    import tyro

    from dphrl_lite import commands, settings

    kind, recipe = getattr(commands, command.capitalize()), {}
    if settings.Recipe in (f.type for f in fields(kind)):
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config.add_argument("--config")
        chosen, argv = config.parse_known_args(argv)
        recipe = settings.read(chosen.config) if chosen.config else {}
    stages = {f.name: _defaults(f.type, recipe.get(f.type, {})) for f in fields(kind) if is_dataclass(f.type)}
    flat = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(
        kind, args=argv, default=_defaults(kind, stages), prog=f"dphrl {command}", add_help=False, config=flat
    )


def _defaults(kind: type, values: dict):
    """An instance that tyro takes defaults from: not checked, as flags may change it; what is required may be missing."""
    import tyro

    instance = object.__new__(kind)
    for f in fields(kind):
        usual = f.default_factory() if f.default_factory is not MISSING else f.default
        object.__setattr__(instance, f.name, values.get(f.name, tyro.MISSING if usual is MISSING else usual))
    return instance


# ---- help ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
    """A field as it stands in the source."""

    name: str
    kind: str
    default: str | None  # None: it is required
    help: str

    @property
    def usage(self) -> str:
        """How it is given."""
        if self.kind.startswith("Positional"):
            return self.kind.removeprefix("Positional")[1:-1]
        name = self.name.replace("_", "-")
        return f"--{name}, --no-{name}" if self.kind == "bool" else f"--{name}  {self.kind.removesuffix(' | None')}"

    @property
    def explanation(self) -> str:
        """What it is, and its default where that is not said."""
        default = "required" if self.default is None else f"default: {self.default}"
        return self.help if "None: " in self.help else f"{self.help} ({default})"


@cache
def _source(module: str) -> tuple[ast.Module, list[str], dict[str, str]]:
    """The tree and the lines of a module of this package, and the module that each imported name comes from."""
    text = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return tree, text.splitlines(), {alias.name: node.module for node in froms for alias in node.names}


def flags(name: str, module: str = "dphrl_lite.commands") -> Iterator[Flag]:
    """The fields of a dataclass, those that it inherits first; a field that is such a class stands for its fields."""
    tree, lines, modules = _source(module)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        yield from flags(name, modules[name])
        return
    for base in classes[name].bases:
        yield from flags(base.id, module)
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign):
            kind = ast.unparse(node.annotation)
            if kind in classes or modules.get(kind, "").startswith("dphrl_lite"):
                yield from flags(kind, module)
            else:
                yield _flag(node, kind, lines)


def _flag(node: ast.AnnAssign, kind: str, lines: list[str]) -> Flag:
    """A field with its trailing comment, on whichever of its lines that stands."""
    help = "".join(line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno])
    default = node.value and re.sub(r"field\(default_factory=lambda: (.*)\)", r"\1", ast.unparse(node.value))
    return Flag(node.target.id, kind, default, help)


def methods() -> dict[str, str]:
    """Method -> what it does, from the source of `objectives`; "dph-..." is any divergence that is registered."""
    tree, *_ = _source("dphrl_lite.objectives")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Method"]
    fixed = {node.args[0].value: node.args[2].value for node in calls if isinstance(node.args[0], ast.Constant)}
    shorts = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_SHORT")
    rehearsing = {name: f"rehearsal of D_pef with f(u), {f}" for name, f in ast.literal_eval(shorts).items()}
    return fixed | rehearsing | {"dph-NAME": "the same with another registered divergence, such as dph-hellinger"}


def describe(command: str) -> str:
    """The help of a subcommand."""
    known = list(flags(command.capitalize())) if command != "doctor" else []
    if any(flag.name == "model" for flag in known):
        known.insert(0, Flag("config", "str", "None", CONFIG))
    lines = [f"usage: dphrl {command} [flags]", "", COMMANDS[command], ""]
    width = min(120, shutil.get_terminal_size((100, 0)).columns)
    for flag in known:
        lines += [
            f"  {flag.usage}",
            *textwrap.wrap(flag.explanation, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]
        if flag.name == "method":
            lines += [f"        {name:<18} {summary}" for name, summary in methods().items()]
    return "\n".join(lines)


def overview() -> str:
    """The help of `dphrl`."""
    commands = "\n".join(f"  {name:<12} {help}" for name, help in COMMANDS.items())
    return (
        f"usage: dphrl COMMAND [flags]\n\nLearn, teach and research DPH-RL. Commands:\n{commands}\n\n"
        "`dphrl COMMAND --help` lists a command's flags, `dphrl --version` says which version is installed."
    )


def version() -> str:
    """The installed version, or a word that there is none."""
    try:
        return importlib.metadata.version("dphrl-lite")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: pip install -e ."


def run(command: str, argv: list[str]) -> int:
    """Run one command, or print its help. Returns its exit status."""
    lookup(COMMANDS, "command of dphrl", command)
    if {"-h", "--help"} & set(argv):
        print(describe(command))
        return 0
    if command != "doctor":
        parse(command, argv)()
        return 0
    if argv[:1] == ["--as"] and len(argv) == 2:
        from dphrl_lite.scale import memory

        print(memory.on_card(argv[1]))
        return 0
    if argv:
        raise ValueError(f"doctor takes no flags but --as CARD (t4), a card that is not here; got {' '.join(argv)}")
    return doctor.main()


def main(argv: list[str] | None = None) -> int:
    """Run one command, without one print the help. Returns the exit status: 2 where something is wrong with the request."""
    command, *argv = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "--version"):
        print(f"dphrl-lite {version()}" if command == "--version" else overview())
        return 0
    try:
        return run(command, argv)
    except SystemExit as stop:  # tyro's, after it has said what is wrong
        return stop.code
    except OWN_ERRORS as error:
        print(f"dphrl {command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
