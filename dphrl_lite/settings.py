"""What decides a run: recipes, and the names that runs have in files and folders.

A recipe is a YAML file whose keys are the fields of dataclasses. Its top level says which model and which data (`Recipe`);
each section holds the settings of one stage (`SECTIONS`). Here it is read and checked; flags are `cli`'s. Nothing is run.
"""

import ast
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import yaml

from dphrl_lite import tasks
from dphrl_lite.engine import checkpoint
from dphrl_lite.errors import lookup, unknown
from dphrl_lite.evaluation import EvaluateConfig, ProblemSet
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.tasks.problems import MAPPINGS
from dphrl_lite.training import TrainConfig


def run_name(seed: int | None, *parts: str | float | None) -> str:
    """What files and folders call a run: those of its parts that are given, and the training seed."""
    text = [part if isinstance(part, str) else f"{part:g}" for part in parts if part is not None]
    return "-".join([*text, f"seed{seed}"] if seed is not None else text)


def method_name(method: str, alpha: float | None) -> str:
    """What tables and folders call a method: its name, for `dph-alpha` with its alpha."""
    return run_name(None, method, alpha) if method == "dph-alpha" else method


@cache
def _task(name: str, *settings: tuple[str, object]) -> Task:
    """One task for all problem sets with the same settings: it has processes of its own."""
    return tasks.get(name, **dict(settings))


@dataclass(frozen=True)
class Data:
    """Problems and their verifier: the top level of a recipe, and each problem set. Paths start where the command is given."""

    task: str = "countdown"  # arithmetic, countdown, sql or math
    databases: str | None = None  # sql: the folder of databases
    comparison: str | None = None  # sql: bag (Spider's rule) or set (BIRD's)
    time_limit: float | None = None  # sql, math: seconds for one verdict
    row_limit: int | None = None  # sql: rows that a query may return
    partial_credit: bool = False  # sql: a wrong query with right columns has a reward of up to .8, as in the release
    problems: list[str] = field(
        default_factory=lambda: ["countdown:cd3", "countdown:cd4"]
    )  # files, hub data sets (name:config)
    columns: list[str] | None = (
        None  # a mapping's name such as spider, or pairs such as prompt=question; None: by the source
    )
    split: str | None = None  # split of the sources
    limit: int | None = None  # problems taken from each source; None: all
    skip_broken: bool = (
        False  # leave out problems without an answer, or whose own answer fails (a gold query with an error)
    )

    def load_task(self) -> Task:
        """The verifier. Raises `ValueError` for a setting that the task does not have."""
        known = {
            "sql": ("databases", "comparison", "time_limit", "row_limit", "partial_credit"),
            "math": ("time_limit",),
        }
        limits = {name: getattr(self, name) for name in known["sql"] if getattr(self, name) not in (None, False)}
        foreign = limits.keys() - set(known.get(self.task, ()))
        if foreign:
            raise ValueError(
                f"the task {self.task!r} has no {' and no '.join(sorted(foreign))}: leave it out of the recipe"
            )
        return _task(self.task, *limits.items())

    def load_problems(self, skipped: str | Path | None = None) -> list[Problem]:
        """The problems of all sources, one source after the other; with `skip_broken` those that can be verified.

        Which cannot is determined once and noted in the folder `skipped`: a query may end in time on one day only.
        """
        if not self.problems:
            raise ValueError("problems names no source; expected one or more, such as countdown:cd3")
        problems = [problem for source in self.problems for problem in self._source(source)]
        if not self.skip_broken:
            return problems
        broken = self._broken(problems, skipped)
        print(f"{', '.join(self.problems)}: {len(broken)} of {len(problems)} answers fail, their problems are left out")
        return [problem for problem in problems if problem.id not in broken]

    def _broken(self, problems: list[Problem], skipped: str | Path | None) -> list[str]:
        task = self.load_task()
        find = lambda: sorted({p.id for p in problems} - {p.id for p in task.usable(problems)})
        if skipped is None:
            return find()
        key = checkpoint.digest([asdict(p) for p in problems], task.identity())
        path = Path(skipped) / f"{Path(self.problems[0]).stem}-{key}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(find())
            checkpoint.write_whole(path, lambda temporary: temporary.write_text(text), overwrite=False)
        return json.loads(path.read_text())

    def _source(self, source: str) -> list[Problem]:
        columns = self.columns
        if columns:
            named = [name for name in columns if "=" not in name]
            if len(named) > 1 or (len(columns) > 1 and set(named) - MAPPINGS.keys()):
                raise ValueError(
                    f"columns {columns} must be one mapping's name, pairs such as prompt=question, or both"
                )
            mapping = lookup(MAPPINGS, "column mapping", named[0]) if named else {}
            columns = mapping | dict(pair.split("=", 1) for pair in columns if "=" in pair)
        settings = {"split": self.split, "columns": columns, "databases": self.databases}
        return tasks.load_problems(source, limit=self.limit, skip_unanswered=self.skip_broken, **settings)


_ALPHA = "\nalpha = {0.alpha:g} means nothing to {0.method}: it is dph-alpha's"


@dataclass(frozen=True)
class Recipe(Data):
    """Model and training data: the top level of a recipe."""

    model: str = "tiny"  # a profile, a folder, or a hub id
    nf4: bool = False  # hold the weights in 4 bits and train a LoRA adapter
    out: str = "runs/recipe"  # folder for everything this recipe makes
    strengths: list[str] | None = None  # eta or beta by method, as in dph-js=0.2: taken where `strength` is not given

    def __post_init__(self):
        object.__setattr__(self, "out", str(Path(self.out).expanduser()))  # `~` of a recipe, which no shell expands

    @property
    def presampling(self) -> Path:
        """The folder of the rollouts."""
        return Path(self.out) / "presampling"

    def load_problems(self, skipped: str | Path | None = None) -> list[Problem]:
        """As `Data.load_problems`; what is left out is noted under `out`."""
        return super().load_problems(skipped or self.skipped)

    @property
    def skipped(self) -> Path:
        """The folder that notes which problems are left out."""
        return Path(self.out) / "skipped"

    def evaluation(self, policy: str | None) -> tuple[Path, dict]:
        """The folder of a policy's evaluation (None: the untrained model's), and the run that the policy comes from."""
        folder = Path(self.out) / "evaluation"
        if policy is None:
            return folder / "base", {}
        path = Path(policy).resolve()
        run = checkpoint.read_manifest(path.parent)
        if run.get("kind") != "training":
            return folder / path.name, {"method": path.name}
        columns = {"method": method_name(run["method"], run["alpha"]), "strength": run["strength"], "seed": run["seed"]}
        return folder / f"{path.parent.name}-{path.name}", columns

    def run(self, config: TrainConfig) -> tuple[TrainConfig, Path]:
        """A run of this recipe: `config` with the method's strength from `strengths`, and the folder that belongs to it.

        The folder is named by the method (with its alpha), a strength that was given for this run, and the seed. A strength
        means nothing to a method without a penalty, and is left out there.
        """
        mark, strengths = config.strength, self._strengths()
        if METHODS[config.method].penalty == "none":
            mark, config = None, dataclasses.replace(config, strength=None)
        elif mark is None:
            config = dataclasses.replace(config, strength=strengths.get(config.method))
        else:
            mark = f"strength{mark:g}"
        return config, Path(self.out) / run_name(config.seed, method_name(config.method, config.alpha), mark)

    def strength_words(self, given: TrainConfig, used: TrainConfig) -> str:
        """Which eta or beta a run uses, and whose choice that is; `used` is what `run` makes of `given`."""
        method = METHODS[used.method]
        alone = "" if given.alpha == TrainConfig.alpha or method.divergence == "alpha" else _ALPHA.format(given)
        if method.penalty == "none":
            left_out = "" if given.strength is None else f": {given.strength:g} is left out"
            return f"{method.name} has no penalty, and no strength{left_out}{alone}"
        whose = "as given for this run" if given.strength is not None else "from `strengths` of the recipe"
        own = (
            "the method has none of its own" if method.strength is None else f"the method's own is {method.strength:g}"
        )
        whose = own if used.strength is None else f"{whose}; {own}"
        return f"strength of {method.name}: {method.strength_of(used.strength):g} ({whose}){alone}"

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


def read(path: str | Path) -> dict[type, dict]:
    """A recipe as values by field, for each dataclass that it has settings of. The whole recipe is checked, used or not.

    Raises:
        ValueError: an unknown key or section, or a value of the wrong type; the message names it, the file, and what is
            known. `FileNotFoundError` for a missing recipe.
    """
    recipe = _yaml(path, "recipe", "recipes/miniature.yaml")
    sections = {name: recipe.pop(name) or {} for name in SECTIONS if name in recipe}
    stages = {SECTIONS[name]: _values(s, SECTIONS[name], f"{path}, section {name!r}") for name, s in sections.items()}
    return {Recipe: _values(recipe, Recipe, f"{path}", SECTIONS)} | stages


def load(path: str | Path, *stages: type) -> tuple:
    """The recipe at `path`, and the settings of some stages (classes of `SECTIONS`). Raises as `read` does."""
    values = read(path)
    try:
        return tuple(stage(**values.get(stage, {})) for stage in (Recipe, *stages))
    except TypeError as error:
        raise ValueError(f"{path} lacks a setting: {error}") from error


def pairs(given: Sequence[str]) -> dict[str, object]:
    """`["use_vllm=true", "beta=0"]` as keywords for another library. A value is a Python literal, true, false, or else text."""
    words, values = {"true": True, "false": False}, {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{pair!r} sets nothing; expected a name and a value, as in use_vllm=true")
        try:
            values[name] = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def problem_sets(config: EvaluateConfig, skipped: str | Path | None = None) -> list[ProblemSet]:
    """The problem sets that `config` names, from its file of sets: those in domain, then those out of domain.

    Raises:
        FileNotFoundError: no such file. ValueError: a set that is not in it or is named twice, and as `read` does for a
            key that no set has; the message names file, set and key. And what loading problems raises.
    """
    file = _yaml(config.sets, "file of problem sets", "recipes/sets/countdown.yaml")
    known = {name: Data(**_values(values or {}, Data, f"{config.sets}, set {name!r}")) for name, values in file.items()}
    names = [*config.in_domain, *config.out_of_domain]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"in_domain and out_of_domain must name one problem set or more, each once; got {names}")
    chosen = {name: lookup(known, f"problem set in {config.sets}:", name) for name in names}
    return [ProblemSet(n, d.load_task(), d.load_problems(skipped), n in config.in_domain) for n, d in chosen.items()]


def _yaml(path: str | Path, what: str, example: str) -> dict:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}; expected a YAML file such as {example}")
    try:
        content = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}; correct it there") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines; found {type(content).__name__}")
    return content


def _values(section: object, stage: type, where: str, sections: Mapping = {}) -> dict:
    """`section` as values of the fields of the dataclass `stage`, each of its type."""
    if not isinstance(section, dict):
        raise ValueError(f"{where} must hold 'key: value' lines; found {section!r}")
    kinds = get_type_hints(stage)
    known = {f.name: kinds[f.name] for f in fields(stage)}
    if strange := [key for key in section if key not in known]:
        raise unknown(f"key in {where}:", strange[0], [*known, *sections])
    values = {}
    for key, value in section.items():
        try:
            values[key] = typed(value, known[key])
        except (TypeError, ValueError) as error:
            kind = known[key] if get_origin(known[key]) else known[key].__name__
            raise ValueError(f"{where}: {key} must be of type {kind}; got {value!r}") from error
    return values


def typed(value, kind):
    """A value from YAML as the type of its field; `TypeError` or `ValueError` where it is none.

    One value may stand for a list of one, a mapping for a list of pairs such as dph-js=0.2, and 1e-5, which YAML takes for
    text, for a number.
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    items = next((get_args(k)[0] for k in kinds if get_origin(k) is list), None)
    if items:
        pairs = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        return [typed(item, items) for item in (pairs if isinstance(pairs, list) else [pairs])]
    if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{value!r} is not {kind}")
    return value
