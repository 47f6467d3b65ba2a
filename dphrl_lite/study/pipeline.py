"""One run from end to end: pre-sample, partition, train, evaluate; and the reader of the outcomes that runs leave.

The command line, the comparisons, the sweep and the training lab all call `run`. What each stage does stands in
`presampling`, `training` and `evaluation`; runs side by side in `experiments` and `frontier`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from dphrl_lite import evaluation, models, presampling, training
from dphrl_lite.evaluation import EvaluateConfig, ProblemSet
from dphrl_lite.models import Policy
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import Partition, PartitionConfig, PresampleConfig
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.training import Run, TrainConfig

OUTCOMES, RUNS = "outcomes.parquet", "runs.parquet"  # of a sweep: its outcomes collected, and what each run cost


@dataclass(frozen=True)
class Stages:
    """The settings of a run's stages; a stage without settings is not run.

    `back` is the share of the way from the trained weights to the reference's that is gone after training
    (`models.interpolate`).
    """

    presample: PresampleConfig | None = None
    partition: PartitionConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None
    back: float | None = None


@dataclass(frozen=True)
class Result:
    """What the stages made, None for those that were not run: the policy as it is now, rollouts, their partition, the
    training run, and outcomes. Where other shares are still at work, partition or outcomes are None as well."""

    policy: Policy
    rollouts: pd.DataFrame | None = None
    parts: Partition | None = None
    training: Run | None = None
    outcomes: pd.DataFrame | None = None


def run(
    policy: Policy,
    stages: Stages,
    task: Task | None = None,
    problems: Sequence[Problem] = (),
    sets: Sequence[ProblemSet] = (),
    *,
    parts: Partition | None = None,
    rollouts: str | Path | None = None,
    out: str | Path | None = None,
    evaluation_out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    in_place: bool = False,
    on_step: Callable[[dict], object] | None = None,
    progress: bool = True,
    trainer: Callable[..., Run] = training.train,
    **names,
) -> Result:
    """Run the stages that have settings, in their order. With folders, the same call goes on after a kill.

    Args:
        policy: the reference.
        stages: their settings.
        task, problems: what is pre-sampled and trained on, and its verifier.
        sets: what is evaluated.
        parts: a partition that was made already; None: `stages.partition` splits the rollouts.
        rollouts: the folder of the rollouts; without settings of pre-sampling they are read from it.
        out, evaluation_out: the folders of the training run and of the evaluation.
        shard: `(i, n)`, the share of sampling that falls to this process.
        in_place: train `policy` itself, not a copy.
        on_step, progress: as for `training.train`.
        trainer: what trains, with the arguments of `training.train`, such as `large.runs.train`.
        **names: columns of the outcomes; by default the trained method, its strength, and the seed.

    Raises:
        What `presampling.sample`, `presampling.partition`, `training.train` and `evaluation.evaluate` raise.
    """
    if stages.back is not None and in_place and not policy.adapter:
        raise ValueError("going back needs the weights from before training: leave in_place out")
    table, trained, outcomes = None, None, None
    if stages.presample:
        sampling = {"out": rollouts, "shard": shard, "progress": progress}
        table = presampling.sample(policy, task, problems, **sampling, **asdict(stages.presample))
    if stages.partition and parts is None and not (shard and presampling.missing(rollouts)):
        table = presampling.load(rollouts) if table is None or shard else table
        parts = _split(policy, stages, task, problems, table, rollouts, progress)
    if stages.train:
        calling = {"out": out, "on_step": on_step, "progress": progress, "in_place": in_place}
        trained = trainer(policy, task, problems, parts, **calling, **asdict(stages.train))
        if stages.back is not None:
            models.interpolate(trained.policy, 1 - stages.back, policy)
        run = {"method": stages.train.method, "strength": trained.strength, "seed": stages.train.seed}
        policy, names = trained.policy, run | names
    if stages.evaluate:
        outcomes = evaluation.evaluate(policy, sets, stages.evaluate, evaluation_out, shard, progress, **names)
    return Result(policy, table, parts, trained, outcomes)


def _split(policy, stages: Stages, task, problems, table: pd.DataFrame, rollouts, progress: bool) -> Partition:
    """The partition, with a buffer drawn afresh where that is asked for: as the rollouts were drawn."""
    switches = asdict(stages.partition)
    fresh = switches.pop("fresh_draw")
    parts = presampling.partition(table, **switches)
    if not fresh:
        return parts
    config = stages.presample or presampling.config_of(rollouts)
    return presampling.draw_again(policy, task, problems, parts, fresh, config, rollouts, progress)


def read_outcomes(folder: str | Path) -> pd.DataFrame:
    """All outcomes in a folder as one table, whoever wrote it: an evaluation, a comparison, or a sweep that was collected.

    The base model comes first, the methods in the order of `METHODS`. Raises `FileNotFoundError` where there are none.
    """
    folder = Path(folder)
    if (folder / OUTCOMES).is_file():
        return pd.read_parquet(folder / OUTCOMES)
    rank = {name: i for i, name in enumerate(["base", *METHODS])}
    paths = sorted(folder.glob("*.parquet"), key=lambda path: (rank.get(_method(path), len(rank)), path.stem))
    if not paths:
        raise FileNotFoundError(
            f"no outcomes (*.parquet) in {folder}; expected a folder that `dphrl evaluate` or `dphrl experiment ... --out` "
            "wrote, or that of notebook 06"
        )
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def _method(path: Path) -> str:
    return path.stem.split("-seed")[0]
