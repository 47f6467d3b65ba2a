"""Recipes and flags: one mechanism for every subcommand, from dataclasses whose fields are the YAML keys and the flags.

A recipe is a YAML file. Its top level says which model and which data (`Recipe`); each section holds the settings of one
stage (`SECTIONS`). Flags override the file. Nothing is run here.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from dphrl_lite import tasks
from dphrl_lite.engine import checkpoint
from dphrl_lite.errors import lookup, unknown
from dphrl_lite.evaluation import EvaluateConfig, ProblemSet, run_name
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.training import TrainConfig


@cache
def _task(name: str, *settings: tuple[str, object]) -> Task:
    """One task for all problem sets with the same settings: it has processes of its own."""
    return tasks.get(name, **dict(settings))


@dataclass(frozen=True)
class Data:
    """Problems and their verifier: the top level of a recipe, and each problem set. Paths start where the command is given."""

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
    skip_broken: bool = field(
        default=False,
        metadata={
            "help": "leave out problems without an answer, or whose own answer fails, such as a gold query with an error"
        },
    )

    def load_task(self) -> Task:
        """The verifier. Raises `ValueError` for a setting that the task does not have."""
        known = {"sql": ("databases", "comparison", "time_limit", "row_limit"), "math": ("time_limit",)}
        given = {name: getattr(self, name) for name in known["sql"] if getattr(self, name) is not None}
        strange = given.keys() - set(known.get(self.task, ()))
        if strange:
            raise ValueError(
                f"the task {self.task!r} has no {' and no '.join(sorted(strange))}: leave it out of the recipe"
            )
        return _task(self.task, *given.items())

    def load_problems(self, skipped: str | Path | None = None) -> list[Problem]:
        """The problems of all sources, one source after the other; with `skip_broken` those that can be verified.

        Which cannot is found once and noted in the folder `skipped`: a query may end in time on one day only.
        """
        if not self.problems:
            raise ValueError("problems names no source; expected one or more, such as countdown:cd3")
        found = [problem for source in self.problems for problem in self._source(source)]
        if not self.skip_broken:
            return found
        broken = self._broken(found, skipped)
        print(f"{', '.join(self.problems)}: {len(broken)} of {len(found)} answers fail, their problems are left out")
        return [problem for problem in found if problem.id not in broken]

    def _broken(self, problems: list[Problem], skipped: str | Path | None) -> list[str]:
        task = self.load_task()
        find = lambda: sorted({p.id for p in problems} - {p.id for p in task.usable(problems)})
        if skipped is None:
            return find()
        key = checkpoint.digest([dataclasses.asdict(p) for p in problems], task.identity())
        path = Path(skipped) / f"{Path(self.problems[0]).stem}-{key}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(find())
            checkpoint.write_whole(path, lambda temporary: temporary.write_text(text), overwrite=False)
        return json.loads(path.read_text())

    def _source(self, source: str) -> list[Problem]:
        columns = self.columns
        if columns:
            named = len(columns) == 1 and "=" not in columns[0]
            if not named and not all("=" in pair for pair in columns):
                raise ValueError(f"columns {columns} must be one mapping's name, or pairs such as prompt=question")
            columns = columns[0] if named else dict(pair.split("=", 1) for pair in columns)
        where = {"split": self.split, "columns": columns, "databases": self.databases}
        return tasks.load_problems(source, limit=self.limit, skip_unanswered=self.skip_broken, **where)


@dataclass(frozen=True)
class Recipe(Data):
    """Model and training data: the top level of a recipe."""

    model: str = field(default="tiny", metadata={"help": "a profile, a folder, or a hub id"})
    nf4: bool = field(default=False, metadata={"help": "hold the weights in 4 bits and train a LoRA adapter"})
    out: str = field(default="runs/recipe", metadata={"help": "folder for everything this recipe makes"})
    strengths: list[str] | None = field(
        default=None, metadata={"help": "eta or beta by method, as in dph-js=0.2: taken where `strength` is not given"}
    )

    @property
    def presampling(self) -> Path:
        """The folder of the rollouts."""
        return Path(self.out) / "presampling"

    @property
    def skipped(self) -> Path:
        """The folder that notes which problems are left out."""
        return Path(self.out) / "skipped"

    def load_problems(self, skipped: str | Path | None = None) -> list[Problem]:
        """As `Data.load_problems`; what is left out is noted under `out`."""
        return super().load_problems(skipped or self.skipped)

    def evaluation(self, policy: str | None) -> tuple[Path, dict]:
        """The folder of a policy's evaluation (None: the untrained model's), and the run that the policy comes from."""
        if policy is None:
            return Path(self.out) / "evaluation" / "base", {}
        path = Path(policy).resolve()
        told = checkpoint.read_manifest(path.parent)
        if told.get("kind") != "training":
            return Path(self.out) / "evaluation" / path.name, {"method": path.name}
        run = {"method": run_name(told["method"], told["alpha"]), "strength": told["strength"], "seed": told["seed"]}
        return Path(self.out) / "evaluation" / f"{path.parent.name}-{path.name}", run

    def run(self, config: TrainConfig) -> tuple[TrainConfig, Path]:
        """A run of this recipe: `config` with the method's strength from `strengths`, and the folder that belongs to it.

        The folder is named by the method (with its alpha), a strength that was given for this run, and the seed.
        """
        name, strengths = run_name(config.method, config.alpha), self._strengths()
        if config.strength is None:
            config = dataclasses.replace(config, strength=strengths.get(config.method))
        else:
            name += f"-strength{config.strength:g}"
        return config, Path(self.out) / f"{name}-seed{config.seed}"

    def _strengths(self) -> dict[str, float]:
        pairs = [pair.partition("=") for pair in self.strengths or ()]
        try:
            return {lookup(METHODS, "method", name).name: float(strength) for name, _, strength in pairs}
        except ValueError as error:
            raise ValueError(f"strengths {self.strengths}: {error}; expected pairs such as dph-js=0.2") from error


SECTIONS = {
    "presample": PresampleConfig,
    "partition": PartitionConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}


class _Parser(HfArgumentParser):
    """Raises `ValueError` where argparse would end the program; the caller says what to do. A list may be empty."""

    def add_argument(self, *flags: str, **how) -> argparse.Action:
        if how.get("nargs") == "+":
            how["nargs"] = "*"
        if any(flag.startswith("--no_") for flag in flags):  # it comes with the help of the setting that it turns off
            how["help"] = f"not: {how.get('help', flags[0])}"
        return super().add_argument(*flags, **how)

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
    given = _yaml(path, "recipe", "recipes/miniature.yaml")
    sections = {name: given.pop(name) or {} for name in SECTIONS if name in given}
    found = {Recipe: list(_flags(given, Recipe, f"{path}", SECTIONS))}
    for name, values in sections.items():
        found[SECTIONS[name]] = list(_flags(values, SECTIONS[name], f"{path}, section {name!r}"))
    return found


def problem_sets(config: EvaluateConfig, skipped: str | Path | None = None) -> list[ProblemSet]:
    """The problem sets that `config` names, from its file of sets: those in domain, then those out of domain.

    Raises:
        FileNotFoundError: no such file. ValueError: a set that is not in it or is named twice, and as `parse` does for a
            key that no set has; the message names file, set and key. And what loading problems raises.
    """
    given = _yaml(config.sets, "file of problem sets", "recipes/sets/countdown.yaml")
    read = {name: list(_flags(values or {}, Data, f"{config.sets}, set {name!r}")) for name, values in given.items()}
    names = [*config.in_domain, *config.out_of_domain]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"in_domain and out_of_domain must name one problem set or more, each once; got {names}")
    for name in names:
        lookup(read, f"problem set in {config.sets}:", name)
    chosen = {
        name: _Parser(Data).parse_args_into_dataclasses(read[name], look_for_args_file=False)[0] for name in names
    }
    return [ProblemSet(n, d.load_task(), d.load_problems(skipped), n in config.in_domain) for n, d in chosen.items()]


def _yaml(path: str | Path, what: str, example: str) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; expected a YAML file such as {example}")
    try:
        given = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}; correct that place") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold 'key: value' lines; found {type(given).__name__}")
    return given


def _flags(given: object, stage: type, where: str, besides: Sequence[str] = ()) -> Iterator[str]:
    """`given` as flags of the dataclass `stage`, each checked by the parser that will read it."""
    if not isinstance(given, dict):
        raise ValueError(f"{where} must hold 'key: value' lines; found {given!r}")
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
