"""Recipes and flags: one mechanism for every subcommand, from dataclasses whose fields are the YAML keys and the flags.

A recipe is a YAML file. Its top level says which model and which data (`Recipe`); each section holds the settings of one
stage (`SECTIONS`). Flags override the file. Nothing is run here.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from dphrl_lite import tasks
from dphrl_lite.errors import unknown
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.training import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Model and data: the top level of a recipe. Relative paths start where the command is given."""

    model: str = field(default="tiny", metadata={"help": "a profile, a folder, or a hub id"})
    nf4: bool = field(default=False, metadata={"help": "hold the weights in 4 bits and train a LoRA adapter"})
    task: str = field(default="countdown", metadata={"help": "arithmetic, countdown, sql or math"})
    databases: str | None = field(default=None, metadata={"help": "sql: the folder of databases"})
    comparison: str | None = field(default=None, metadata={"help": "sql: bag (Spider's rule) or set (BIRD's)"})
    time_limit: float | None = field(default=None, metadata={"help": "sql, math: seconds for one verdict"})
    row_limit: int | None = field(default=None, metadata={"help": "sql: rows that a query may return"})
    problems: list[str] = field(
        default_factory=lambda: ["countdown:cd3", "countdown:cd4"],
        metadata={
            "help": "one or more sources as `load_problems` takes them: files, hub data sets (name:config), countdown:cd3"
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "a ready-made mapping such as spider, or pairs such as prompt=question; None: by the name of the source"
        },
    )
    split: str | None = field(default=None, metadata={"help": "split of the sources"})
    limit: int | None = field(default=None, metadata={"help": "problems taken from each source; None: all"})
    out: str = field(default="runs/recipe", metadata={"help": "folder for everything this recipe makes"})

    @property
    def presampling(self) -> Path:
        """The folder of the rollouts."""
        return Path(self.out) / "presampling"

    def load_task(self) -> Task:
        """The verifier. Raises `ValueError` for a setting that the task does not have."""
        known = {"sql": ("databases", "comparison", "time_limit", "row_limit"), "math": ("time_limit",)}
        given = {name: getattr(self, name) for name in known["sql"] if getattr(self, name) is not None}
        strange = given.keys() - set(known.get(self.task, ()))
        if strange:
            raise ValueError(
                f"the task {self.task!r} has no {' and no '.join(sorted(strange))}: leave it out of the recipe"
            )
        return tasks.get(self.task, **given)

    def load_problems(self) -> list[Problem]:
        """The problems of all sources, one source after the other."""
        return [problem for source in self.problems for problem in self._source(source)]

    def _source(self, source: str) -> list[Problem]:
        columns = self.columns
        if columns:
            named = len(columns) == 1 and "=" not in columns[0]
            if not named and not all("=" in pair for pair in columns):
                raise ValueError(f"columns {columns} must be one mapping's name, or pairs such as prompt=question")
            columns = columns[0] if named else dict(pair.split("=", 1) for pair in columns)
        where = {"split": self.split, "columns": columns, "databases": self.databases}
        return tasks.load_problems(source, limit=self.limit, **where)


SECTIONS = {"presample": PresampleConfig, "partition": PartitionConfig, "train": TrainConfig}


class _Parser(HfArgumentParser):
    """Raises `ValueError` where argparse would end the program; the caller says what to do."""

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists what is known")


def parse(argv: Sequence[str], command: str, *stages: type) -> tuple:
    """Settings from `--config recipe.yaml` and flags, which override the file.

    Args:
        argv: what stands behind the subcommand.
        command: its name, for the help.
        stages: dataclasses that the command needs besides `Recipe`. Those in `SECTIONS` are filled from their section.

    Returns:
        A `Recipe` and one object of each stage.

    Raises:
        ValueError: an unknown key, section or flag, or a value of the wrong type; the message names it, the file, and
            what is known. `FileNotFoundError` for a missing recipe. The whole recipe is checked, used here or not.
    """
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config", metavar="RECIPE", help="a YAML file of settings, see recipes/; flags override it")
    chosen, flags = config.parse_known_args(argv)
    parser = _Parser([Recipe, *stages], prog=f"dphrl {command}", parents=[config], allow_abbrev=False)
    from_file = read(chosen.config) if chosen.config else {}
    flags = [flag for stage in (Recipe, *stages) for flag in from_file.get(stage, ())] + flags
    *found, strange = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)
    if strange:
        raise unknown(
            f"flag of dphrl {command}:", strange[0], [f for f in parser._option_string_actions if "_" not in f]
        )
    return tuple(found[: 1 + len(stages)])


def read(path: str | Path) -> dict[type, list[str]]:
    """A recipe as flags, by the dataclass that they belong to. Raises as `parse` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}; expected a YAML file such as recipes/miniature.yaml")
    try:
        given = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}; correct that place") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold 'key: value' lines; found {type(given).__name__}")
    sections = {name: given.pop(name) or {} for name in SECTIONS if name in given}
    found = {Recipe: list(_flags(given, Recipe, f"{path}", SECTIONS))}
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise ValueError(f"{path}: section {name!r} must hold 'key: value' lines; found {values!r}")
        found[SECTIONS[name]] = list(_flags(values, SECTIONS[name], f"{path}, section {name!r}"))
    return found


def _flags(given: dict, stage: type, where: str, besides: Sequence[str] = ()) -> Iterator[str]:
    """`given` as flags of the dataclass `stage`, each checked by the parser that will read it."""
    known = {f.name: f for f in dataclasses.fields(stage)}
    for key, value in given.items():
        if key not in known:
            raise unknown(f"key in {where}:", key, [*known, *besides])
        if value is None and known[key].default is None:
            continue
        flags = _as_flags(key, value)
        alone = dataclasses.make_dataclass("Alone", [(key, known[key].type, known[key])])
        try:
            _Parser(alone).parse_args_into_dataclasses(flags, look_for_args_file=False)
        except ValueError as error:
            kind = known[key].type
            kind = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"{where}: {key} must be of type {kind}; got {value!r}") from error
        yield from flags


def _as_flags(key: str, value) -> list[str]:
    if isinstance(value, dict):
        value = [f"{k}={v}" for k, v in value.items()]
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
