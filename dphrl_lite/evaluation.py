"""What a policy can do: n samples and one greedy answer to every problem of named sets, counted.

Outcomes are a pandas table, one row per problem, with the columns `COLUMNS`, and those of `EXTRA` that there are: `in_domain`,
whether the set is of the kind that was trained on, `greedy`, whether the answer at temperature 0 is right, and `entropy`,
nats per token. They hold no answers. Drawing, verifying and resuming are `presampling`'s, the estimators `passk`'s, the
tables that people read `study.reports`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from dphrl_lite import presampling
from dphrl_lite.engine import checkpoint
from dphrl_lite.tasks import Problem, Task

COLUMNS = ["domain", "split", "family", "method", "strength", "seed", "problem", "n", "c", "distinct"]
EXTRA = ["in_domain", "greedy", "entropy"]  # columns besides
MANIFESTS = f"*/{checkpoint.MANIFEST}"


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    sets: str = "recipes/sets/countdown.yaml"  # a YAML file of problem sets: a name, then its data
    in_domain: list[str] = field(default_factory=lambda: ["cd3", "cd4"])  # names of sets like the training problems
    out_of_domain: list[str] = field(default_factory=lambda: ["sort"])  # names of sets that are never trained on
    samples: int = 16  # answers drawn per problem (n)
    ks: list[int] | None = None  # k of Pass@k, at most `samples`; None: 1, 2, 4 ... samples
    confidence: float = 0.95  # coverage of the bands for the choice of problems
    temperature: float = 1.0  # of the samples; 1 is the distribution that was trained
    top_p: float = 1.0  # nucleus of the samples; 1 for none
    greedy: bool = True  # draw one more answer, at temperature 0
    max_new_tokens: int | None = None  # longest answer; None: the policy's own
    seed: int = 1  # each problem's randomness comes from this and its id
    problems_per_shard: int = 64  # what is written at once and, after a kill, drawn again
    problems_per_batch: int = 16  # problems computed at once

    def __post_init__(self):
        if any(not 1 <= k <= self.samples for k in self.ks or ()):
            raise ValueError(
                f"ks {self.ks} must lie between 1 and samples = {self.samples}: leave some out, or draw more"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a share such as 0.95")

    @property
    def all_ks(self) -> list[int]:
        """`ks`, or powers of two up to `samples`."""
        return sorted(self.ks or {2**i for i in range(self.samples.bit_length())} | {self.samples})


@dataclass(frozen=True)
class ProblemSet:
    """Problems with the task that verifies them, under a name; `in_domain` if they are like the training problems.

    `samples` answers are drawn to each; None: as many as the evaluation's settings say.
    """

    name: str
    task: Task
    problems: Sequence[Problem]
    in_domain: bool = True
    split: str = "test"
    samples: int | None = None


def outcomes(
    policy, problems: ProblemSet, config: EvaluateConfig, out: str | Path | None = None, progress: bool | str = True
) -> pd.DataFrame:
    """Answers to one set, counted: problem, n, c, distinct, entropy, greedy, and the columns that name the set.

    Entropy is the mean of -log p over the samples' tokens, in nats: the policy's own, if drawn at temperature 1.

    Args:
        policy: a `models.Policy`.
        problems: the set.
        config: how answers are drawn; its `sets`, `in_domain` and `out_of_domain` are not looked at.
        out: folder for `samples` and `greedy`, both as `presampling.sample` writes them: a killed evaluation goes on there.
        progress: show a progress bar; a text becomes its label.
    """
    samples, *greedy = _draw(policy, problems, config, out, progress)
    table = presampling.counts(samples).rename(columns={"problem_id": "problem"})
    logps = samples.groupby("problem_id", sort=False)["logp"]
    table["entropy"] = logps.apply(lambda logp: -np.concatenate(list(logp)).mean()).to_numpy()
    if greedy:
        table["greedy"] = greedy[0]["correct"].astype(bool)  # both tables are in the problems' order
    names = {"domain": problems.task.name, "split": problems.split, "family": problems.name}
    return table.assign(**names, in_domain=problems.in_domain)


def _draw(policy, problems: ProblemSet, config: EvaluateConfig, out, progress, shard=None) -> list[pd.DataFrame]:
    """The rollouts of the samples and, if asked for, of the greedy answers."""
    shared = {"problems_per_shard": config.problems_per_shard, "problems_per_batch": config.problems_per_batch}
    shared |= {"max_new_tokens": config.max_new_tokens, "shard": shard, "seed": config.seed}
    samples = problems.samples or config.samples
    draws = {"samples": {"samples": samples, "temperature": config.temperature, "top_p": config.top_p}}
    draws |= {"greedy": {"samples": 1, "temperature": 0.0}} if config.greedy else {}
    label = progress if isinstance(progress, str) else problems.name
    tables = []
    for kind, settings in draws.items():
        settings |= {"out": out and Path(out) / kind, "progress": progress and f"{label}, {kind}"}
        tables.append(presampling.sample(policy, problems.task, problems.problems, **settings, **shared))
    return tables


def evaluate(
    policy,
    sets: Sequence[ProblemSet],
    config: EvaluateConfig,
    out: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
    **run,
) -> pd.DataFrame | None:
    """Evaluate on every set and write `<set>.parquet` into `out`, if there is one. The same call goes on after a kill.

    Args:
        policy, config: as in `outcomes`.
        sets: with different names, if there is a folder.
        out: one folder per policy; each set has its own below.
        shard: `(i, n)` draws the i-th of n shares; whichever share ends last puts all together.
        progress: show a progress bar for each set.
        **run: columns that say where the policy comes from: method, strength, seed (of training).

    Returns:
        The outcomes of all sets: `COLUMNS`, in_domain, greedy if drawn, and entropy. None while other shares are at work.

    Raises:
        OtherRunError: `out` holds an evaluation of another policy or with other settings; nothing is overwritten.
    """
    run = {"method": "base", "strength": None, "seed": 0} | run
    labels = [progress and f"{run['method']} [{i}/{len(sets)}] {part.name}" for i, part in enumerate(sets, 1)]
    names = [checkpoint.file_name(part.name) for part in sets]
    folders = [out and Path(out) / name for name in names]
    if shard is not None:
        for part, folder, label in zip(sets, folders, labels, strict=True):
            _draw(policy, part, config, folder, label, shard)
        if any(presampling.missing(manifest.parent) for folder in folders for manifest in folder.glob(MANIFESTS)):
            return None
        labels = [False] * len(sets)  # what is there is only read
    tables = []
    for part, name, folder, label in zip(sets, names, folders, labels, strict=True):
        table = outcomes(policy, part, config, folder, label).assign(**run)
        table = table[COLUMNS + [column for column in EXTRA if column in table]]
        if folder:
            write = lambda path, table=table: table.to_parquet(path, index=False)
            checkpoint.write_whole(Path(out) / f"{name}.parquet", write)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
