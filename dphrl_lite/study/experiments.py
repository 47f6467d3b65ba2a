"""Runs side by side: the miniature's problems, and tables of outcomes of several runs. The method itself lives in `training`.

Outcomes are a pandas table, one row per model and problem, with the columns `COLUMNS`; on disk they are Parquet. They
hold counts only, so that every figure can be drawn again, by anyone, without a model.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from dphrl_lite import evaluation, models, presampling, settings, tasks, training
from dphrl_lite.engine.checkpoint import claim, weights_digest, write_whole
from dphrl_lite.evaluation import COLUMNS, EvaluateConfig, ProblemSet
from dphrl_lite.models import DATA, Policy
from dphrl_lite.passk import Outcomes
from dphrl_lite.presampling import Partition, PartitionConfig, PresampleConfig
from dphrl_lite.study import conclusions, frontier, path_conclusions, paths, pipeline
from dphrl_lite.study.pipeline import Stages
from dphrl_lite.tasks import Problem, Task, arithmetic
from dphrl_lite.tasks.countdown import problems
from dphrl_lite.training import TrainConfig

FIRST_LOOK = DATA / "runs" / "first_look"
MULTIPLICATION = DATA / "runs" / "multiplication"
RECIPES = DATA.parent / "recipes"
KS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Miniature:
    """Problems to train on, and held-out problems by family, none of whose sets of numbers is trained on.

    Families that RL never trains (of countdown `sort`) show what is forgotten.
    """

    task: Task
    train: list[Problem]
    test: dict[str, list[Problem]]


def miniature(train: int = 400, test: int = 200, seed: int = 0) -> Miniature:
    """Countdown: `train` problems of each of cd3 and cd4, and `test` held-out ones of each of cd3, cd4 and sort."""
    chosen = [p for family in ("cd3", "cd4") for p in problems(family, train, seed=seed)]
    held_out = {family: problems(family, test, split="test", seed=seed + 1) for family in ("cd3", "cd4", "sort")}
    return Miniature(tasks.get("countdown"), chosen, held_out)


def problem_sets(task: Task, families: Mapping[str, Sequence[Problem]]) -> list[ProblemSet]:
    """Families of problems of one task as `evaluation` takes them. Raises `ValueError` where there are none."""
    if not families:
        raise ValueError("no families of problems given; expected a dict such as {'cd3': [...problems...]}")
    return [ProblemSet(family, task, members) for family, members in families.items()]


def evaluate(
    policy: Policy,
    task: Task,
    families: Mapping[str, Sequence[Problem]],
    method: str = "base",
    strength: float | None = None,
    seed: int = 0,
    samples: int = 64,
    progress: bool = True,
    **settings,
) -> pd.DataFrame:
    """Draw `samples` answers to every problem at temperature 1 and count the right ones.

    Args:
        policy: what is evaluated.
        task: the verifier.
        families: family name -> problems.
        method, strength, seed: how the policy was trained; they become columns, so that tables can be put together.
        samples: answers per problem; Pass@k can be estimated up to k = samples.
        progress: show a progress bar.
        **settings: further fields of `EvaluateConfig`.

    Returns:
        An outcomes table.
    """
    sets, config = problem_sets(task, families), EvaluateConfig(samples=samples, greedy=False, **settings)
    names = {"method": method, "strength": strength, "seed": seed}
    return evaluation.evaluate(policy, sets, config, progress=progress, **names)[COLUMNS]


def by_family(table: pd.DataFrame, seed: int | None = None) -> dict[str, dict[str, Outcomes]]:
    """An outcomes table as family -> model -> `Outcomes`, for figures and widgets.

    Args:
        table: from `evaluate`, or read from Parquet.
        seed: which training seed to take where there are several; the smallest if None. The base model has no seed.

    Returns:
        Models are named by method, with the strength where a method was trained at several.

    Raises:
        ValueError: columns are missing, or no run has that seed.
    """
    families: dict[str, dict[str, Outcomes]] = {}
    for (family, model), rows in _labelled(table).groupby(["family", "model"], sort=False):
        seeds = sorted(set(rows["seed"]))
        if seed is not None and len(seeds) > 1 and seed not in seeds:
            raise ValueError(f"no run of {model!r} has seed {seed}; there are {seeds}")
        rows = rows[rows["seed"] == (seed if seed in seeds else seeds[0])]
        families.setdefault(family, {})[model] = Outcomes.from_counts(rows["n"], rows["c"], rows["problem"])
    return families


def summary(table: pd.DataFrame, ks: Sequence[int] = KS) -> pd.DataFrame:
    """Pass@k by family and model: the mean over problems and seeds, and the mean number of distinct right answers."""
    rows = []
    for (family, model, seed), part in _labelled(table).groupby(["family", "model", "seed"], sort=False):
        values = Outcomes.from_counts(part["n"], part["c"]).pass_at_k(ks)["mean"]
        scores = {f"Pass@{k}": value for k, value in zip(ks, values, strict=True)}
        rows.append({"family": family, "model": model, "seed": seed} | scores | {"distinct": part["distinct"].mean()})
    grouped = pd.DataFrame(rows).groupby(["family", "model"], sort=False)
    table = grouped.mean().drop(columns="seed").assign(seeds=grouped.size())
    return table.sort_index(level="family", sort_remaining=False, kind="stable")


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `model`, and families told apart where several domains or splits share a name."""
    missing = set(COLUMNS) - set(table.columns)
    if missing:
        raise ValueError(f"an outcomes table needs the columns {COLUMNS}; missing: {sorted(missing)}")
    table = table.astype(dict.fromkeys(["domain", "split", "family", "method"], str))
    strengths = table.groupby("method")["strength"].transform("nunique")
    at = table["method"] + " at " + table["strength"].map(lambda strength: "" if pd.isna(strength) else f"{strength:g}")
    family = table["family"]
    for column in ("split", "domain"):
        family = table[column] + "/" + family if table[column].nunique() > 1 else family
    return table.assign(model=table["method"].where(strengths <= 1, at), family=family)


def solution_counts(
    policies: Mapping[str, Policy], task: Task, problem: Problem, samples: int = 512, by: str = "distinct"
) -> pd.DataFrame:
    """How many of `samples` answers to one problem gave each different right one: rows answers, columns models.

    Answers are told apart by "distinct", the verifier's canonical form, or by "completion", as they are written.
    """
    counts = {}
    for name, policy in policies.items():
        rollouts = presampling.sample(policy, task, [problem], samples, seed=2, progress=False)
        counts[name] = rollouts[rollouts["correct"]][by].value_counts()
    table = pd.DataFrame(counts).fillna(0).astype(int)
    return table.sort_values(list(table), ascending=False)


def first_look(
    out: str | Path = FIRST_LOOK,
    methods: Sequence[str] = ("grpo", "grpo-exp", "dph-js"),
    steps: int = 60,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 64,
) -> pd.DataFrame:
    """Base model, GRPO, its control on D_exp alone, and DPH-JS on the miniature, over several seeds.

    Each run's outcomes are written when it ends; called again, what is there is read, and only the rest is run.

    Returns:
        The outcomes of all runs. Raises `OtherRunError` if `out` holds a comparison with other settings.
    """
    stages = Stages(PresampleConfig(), PartitionConfig(), TrainConfig("grpo"), EvaluateConfig(greedy=False))
    return Comparison("first look", models.load("tiny"), miniature(), stages).run(out, methods, steps, seeds, samples)


def multiplication(
    out: str | Path,
    methods: Sequence[str] = ("grpo", "dph-js"),
    steps: int | None = None,
    seeds: Sequence[int] = (0,),
    samples: int = 64,
    recipe: str | Path = RECIPES / "small_multiplication.yaml",
) -> pd.DataFrame:
    """Base model, GRPO and DPH-JS with the small language model; addition and subtraction are never trained.

    The settings are those of `recipe`. Rollouts and checkpoints go into its `out`, where `dphrl presample` and `dphrl train`
    put them too, and a run that was stopped goes on from there; outcomes, logs and the partition go into this `out`.

    Returns:
        As `first_look`.
    """
    chosen, *configs = settings.load(recipe, PresampleConfig, PartitionConfig, TrainConfig)
    train = configs[-1]
    drawing = {"max_new_tokens": train.max_new_tokens, "problems_per_batch": 4}  # more would need more than training
    test = {family: arithmetic.problems(family, n, "test") for family, n in arithmetic.TESTED.items()}
    decided = {name: x for name, x in asdict(train).items() if name not in ("method", "steps", "seed")}
    comparison = Comparison(
        "multiplication",
        models.load(chosen.model, nf4=chosen.nf4),
        Miniature(chosen.load_task(), chosen.load_problems(), test),
        Stages(*configs, EvaluateConfig(greedy=False, **drawing)),
        {"train": decided, "evaluate": drawing},
        Path(chosen.out),
        chosen.presampling,
    )
    return comparison.run(out, methods, steps or train.steps, seeds, samples)


@dataclass(frozen=True)
class Comparison:
    """The base model, and every method and seed, on the same problems.

    `stages` holds the settings of all runs but for their method, steps and seed; `manifest` says which of them are compared
    when the comparison goes on. `work` is the folder of checkpoints, `rollouts` that of the reference's answers; without
    them runs leave no more than their outcomes.
    """

    kind: str
    policy: Policy
    data: Miniature
    stages: Stages
    manifest: Mapping = field(default_factory=dict)
    work: Path | None = None
    rollouts: Path | None = None

    def run(self, out, methods: Sequence[str], steps: int, seeds: Sequence[int], samples: int) -> pd.DataFrame:
        """The outcomes of all runs; what is in `out` is read, the rest is run."""
        chosen = {"steps": steps, "samples": samples, "methods": list(methods), "seeds": list(seeds)}
        weights = weights_digest(self.policy.model)
        folder = claim(out, {"kind": self.kind, "weights": weights} | chosen | dict(self.manifest))
        evaluated = replace(self.stages.evaluate, samples=samples)
        tables = [_once(folder / "base.parquet", partial(self._outcomes, Stages(evaluate=evaluated)))]
        for method in methods:
            for seed in seeds:
                train = replace(self.stages.train, method=method, steps=steps, seed=seed)
                one = partial(self._trained, Stages(train=train, evaluate=evaluated), folder)
                tables.append(_once(folder / f"{settings.run_name(seed, method)}.parquet", one))
        return pd.concat(tables, ignore_index=True)

    def _outcomes(self, stages: Stages, **calling) -> pd.DataFrame:
        data, sets = self.data, problem_sets(self.data.task, self.data.test)
        return pipeline.run(self.policy, stages, data.task, data.train, sets, **calling).outcomes[COLUMNS]

    def _trained(self, stages: Stages, folder: Path) -> pd.DataFrame:
        name = settings.run_name(stages.train.seed, stages.train.method)
        if self.work is None:
            return self._outcomes(stages, parts=self.parts)
        table = self._outcomes(stages, parts=self.parts, out=self.work / name)
        write_whole(folder / "partition.csv", lambda path: self.parts.summary().to_csv(path, index=False))
        write_whole(folder / f"{name}.jsonl", partial(shutil.copy, self.work / name / training.LOG))
        return table

    @cached_property
    def parts(self) -> Partition:
        """The partition of the training problems; their answers are drawn once, if a run is missing."""
        drawing = Stages(self.stages.presample, self.stages.partition)
        return pipeline.run(self.policy, drawing, self.data.task, self.data.train, rollouts=self.rollouts).parts


def _once(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    if not path.is_file():
        write_whole(path, lambda temporary: compute().to_parquet(temporary, index=False))
    return pd.read_parquet(path)


def read_outcomes(folder: str | Path = FIRST_LOOK) -> pd.DataFrame:
    """As `pipeline.read_outcomes`, by default those that are shipped of the first look."""
    return pipeline.read_outcomes(folder)


@dataclass(frozen=True)
class Experiment:
    """`run(out, **flags)` runs into a folder what is missing there; `report(folder)` says in text what was found."""

    run: Callable
    shipped: Path | None
    report: Callable[[str | Path], str]
    flags: tuple[str, ...]


def _summary(folder: str | Path) -> str:
    return summary(read_outcomes(folder)).round(3).to_string()


def _path_conclusions(folder: str | Path) -> str:
    return path_conclusions.report(*frontier.read(folder))


def _conclusions(folder: str | Path) -> str:
    text = conclusions.report(*frontier.read(folder))
    shipped = Path(folder) == frontier.FRONTIER and (paths.PATHS / pipeline.OUTCOMES).is_file()
    return f"{text}\n\n# With the learning rate as an axis\n{_path_conclusions(paths.PATHS)}" if shipped else text


def _class_scores(folder: str | Path) -> str:
    scores = path_conclusions.mean_scores(frontier.read(folder)[0], paths.CLASS)
    return conclusions.as_text(scores.set_index("line")[["Pass@1", "Pass@8", "Pass@64"]])


_CHUNKS = ("minutes", "processes")
EXPERIMENTS = {
    "first-look": Experiment(first_look, FIRST_LOOK, _summary, ("steps", "seeds")),
    "multiplication": Experiment(multiplication, MULTIPLICATION, _summary, ("steps", "seeds")),
    "frontier": Experiment(frontier.run, frontier.FRONTIER, _conclusions, ("seeds", "domains", "methods", *_CHUNKS)),
    "paths": Experiment(paths.run, paths.PATHS, _path_conclusions, ("seeds", "domains", "methods", *_CHUNKS)),
    "class": Experiment(paths.run_class, None, _class_scores, _CHUNKS),
}
