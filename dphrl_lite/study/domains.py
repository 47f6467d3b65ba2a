"""Where a sweep trains and tests: of each domain the model, the problems of every split, and the settings of its runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dphrl_lite import models, tasks
from dphrl_lite.evaluation import EvaluateConfig, ProblemSet
from dphrl_lite.models import DATA, Policy
from dphrl_lite.presampling import PresampleConfig
from dphrl_lite.tasks import Problem, Task, arithmetic, countdown, minisql

DRAWN = {"validation": 64, "test": 64, "probe": 16}  # answers to each problem
SQL = tuple(minisql.FORMS)


@dataclass(frozen=True, eq=False)
class Domain:
    """One of a sweep's domains. Families of problems are those of countdown, of miniature text-to-SQL and of arithmetic; None
    for a number of problems takes all that there are.

    "validation" chooses, "test" is reported, and "probe" holds what training in this domain never sees.
    """

    name: str
    trained: Mapping[str, int | None]  # family -> how many problems are pre-sampled, split and trained on
    held_out: Mapping[str, Mapping[str, int | None]]  # split -> family -> how many problems
    settings: Mapping  # of training, beyond `TrainConfig`'s defaults
    threshold: int = 6  # of 8 answers, from which a problem belongs to D_pef
    drawn: Mapping[str, int] = field(default_factory=lambda: DRAWN)  # split -> answers to each problem
    model: str = "tiny"
    drawing: Mapping = field(default_factory=lambda: {"problems_per_batch": 16})  # of `PresampleConfig`
    generation: Mapping = field(
        default_factory=dict
    )  # of `EvaluateConfig`, and of the answers that a KL is measured on
    sources: Mapping[str, str] = field(
        default_factory=dict
    )  # split -> the generators' name for it; a probe's is "test"

    @property
    def steps(self) -> int:
        """How long its runs are."""
        return self.settings["steps"]

    @cached_property
    def policy(self) -> Policy:
        """The untouched model."""
        return models.load(self.model)

    @cached_property
    def task(self) -> Task:
        """Who judges the training problems."""
        return _task(next(iter(self.trained)))

    @cached_property
    def problems(self) -> list[Problem]:
        """The training problems, in the order of their families."""
        source = self.sources.get("train", "train")
        return [p for family, count in self.trained.items() for p in _home(family).problems(family, count, source)]

    @cached_property
    def sets(self) -> dict[str, list[ProblemSet]]:
        """The held-out problems of every split."""
        return {split: [self._set(split, family) for family in families] for split, families in self.held_out.items()}

    def _set(self, split: str, family: str) -> ProblemSet:
        source = self.sources.get(split, "test" if split == "probe" else split)
        problems = _home(family).problems(family, self.held_out[split][family], source)
        return ProblemSet(family, _task(family), problems, split != "probe", split, self.drawn[split])

    @property
    def every_set(self) -> list[ProblemSet]:
        """The held-out problems of all splits."""
        return [part for split in self.drawn for part in self.sets[split]]

    @property
    def presample(self) -> PresampleConfig:
        """How the reference's answers to the training problems are drawn."""
        return PresampleConfig(**self.drawing)

    @property
    def evaluate(self) -> EvaluateConfig:
        """How held-out problems are answered."""
        return EvaluateConfig(greedy=False, **self.generation)


def _home(family: str):
    return minisql if family in SQL else arithmetic if family in arithmetic.FAMILIES else countdown


def _task(family: str) -> Task:
    home = _home(family)
    return (
        tasks.get("sql", databases=DATA / "minisql") if home is minisql else tasks.get(home.__name__.rpartition(".")[2])
    )
