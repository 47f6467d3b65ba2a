"""Paths: every run of a sweep evaluated as it goes on, with the size of the step as an axis beside method and strength.

A *path* is one training run with one method, strength, learning rate and seed, evaluated after each of `CHECKPOINTS` steps, and
after the last one also part of the way back to the reference's weights. Its cost and its distance from the reference, KL per
answer, stand beside its outcomes. Trials, folders and resuming are `frontier`'s; what may be concluded, `path_conclusions`'s.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from dphrl_lite import evaluation, models, presampling, training
from dphrl_lite.engine import batches, checkpoint
from dphrl_lite.errors import lookup
from dphrl_lite.evaluation import COLUMNS, ProblemSet
from dphrl_lite.models import DATA, Policy
from dphrl_lite.study import frontier
from dphrl_lite.study.frontier import Trial, Variant

PATHS = DATA / "paths"
CHECKPOINTS = {"countdown": (20, 60, 120, 200)}  # steps after which a path is evaluated
POINT = ["learning_rate", "steps", "back"]  # further columns of outcomes and runs; back: the share of the way back
SETS = {
    "countdown": {
        "validation": {"cd3": 120, "cd4": 180},
        "test": {"cd3": 241, "cd4": 400},
        "probe": {"sort": 100} | dict.fromkeys(("count", "most", "whose", "without"), 16),
    }
}  # of `frontier.HELD_OUT`, the first so many
RATES = (1e-5, 3e-5, 1e-4)
SLOW, USUAL = 3e-5, 1e-4
BACK = {"grpo": (0.3, 0.5), "grpo+pass@4": (0.3, 0.5), "dph-f": (0.3,)}
KL_SAMPLES = 4  # answers to each test problem that its KL is measured on
SEEDS = (0, 1, 2, 3, 4)
FEW = 3  # seeds of what no claim rests on


VARIANTS = frontier.VARIANTS | {
    # what is filtered: all that the reference said, wrong answers too, of D_pef or of all problems
    "dph-f+wrong": Variant("dph-f", {"rehearse_wrong": True}),
    "dph-f+all+wrong": Variant("dph-f", {"rehearse_exploration": True, "rehearse_wrong": True}),
    # two cures of 2026 in their simplest form: only what the reference seldom or never solved (after arXiv 2606.15455), and
    # equal right answers that share one reward (after 2605.00365)
    "grpo+seldom": Variant("grpo", {"explore_at_most": 2}),
    "grpo+distinct": Variant("grpo", train={"distinct_advantage": True}),
}


@dataclass(frozen=True)
class Line:
    """A method (or a variant of `frontier.VARIANTS`) at a strength and the learning rates that it is tried at.

    A `claim` rests on it: it gets all `SEEDS`, others `FEW`.
    """

    method: str
    strength: float | None
    rates: tuple[float, ...]
    claim: bool = False


LINES = [
    Line("grpo", None, RATES, claim=True),
    Line("dph-f", 0.3, (SLOW, USUAL), claim=True),
    Line("dph-js", 0.6, (SLOW, USUAL), claim=True),
    Line("rkl", 0.3, (SLOW, USUAL), claim=True),
    Line("sft", 0.3, (SLOW, USUAL), claim=True),
    Line("grpo+pass@4", None, (SLOW,), claim=True),
    Line("grpo-exp", None, RATES),
    # the divergence alone: same stored answers, same curvature
    Line("dph-reverse_kl", 0.3, (SLOW,)),
    Line("dph-hellinger", 0.6, (SLOW,)),
    Line("dph-pearson_chi2", 0.15, (SLOW,)),
    Line("rkl-exp", 0.3, (SLOW,)),  # what differs from rkl is what it explores
    *(Line(name, 0.3, (SLOW,)) for name in ("dph-f+all", "dph-f+wrong", "dph-f+all+wrong")),
    *(Line(name, None, (SLOW, USUAL)) for name in ("grpo+seldom", "grpo+distinct")),
    *(Line("grpo-entropy", strength, (SLOW,)) for strength in (0.003, 0.03)),
    *(
        Line(method, round(strength * unit, 2), (SLOW, USUAL))
        for strength in (0.1, 1.0)
        for method, unit in {"dph-f": 1, "dph-js": 2, "rkl": 1, "sft": 1}.items()
    ),
]


@dataclass(frozen=True)
class PathTrial(Trial):
    """One path: a trial at a learning rate."""

    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Its files' name."""
        rate = None if self.learning_rate is None else f"lr{self.learning_rate:g}"
        return frontier.run_name(self.seed, self.domain, self.method, self.strength, rate)

    def variant(self) -> Variant:
        """What its method's name means here."""
        return VARIANTS.get(self.method) or Variant(self.method)

    def run(self, folder: Path):
        """Train and evaluate from checkpoint to checkpoint; each is written, and a run that was killed goes on from there."""
        work, parts = folder / "work" / self.name, []
        for steps in (0,) if self.method == "base" else CHECKPOINTS[self.domain]:
            path = work / f"{steps}.parquet"
            if not path.is_file():
                table, costs = self._checkpoint(steps, folder, work / "run")
                work.mkdir(parents=True, exist_ok=True)
                checkpoint.write_whole(
                    path.with_suffix(".json"), lambda at, costs=costs: at.write_text(json.dumps(costs))
                )
                checkpoint.write_whole(path, lambda at, table=table: table.to_parquet(at, index=False))
            parts.append(path)
        costs = [cost for path in parts for cost in json.loads(path.with_suffix(".json").read_text())]
        table = pd.concat([pd.read_parquet(path) for path in parts], ignore_index=True)
        checkpoint.write_whole(folder / f"{self.name}.json", lambda at: at.write_text(json.dumps(costs)))
        checkpoint.write_whole(folder / f"{self.name}.parquet", lambda at: table.to_parquet(at, index=False))
        shutil.rmtree(work)

    def _checkpoint(self, steps: int, folder: Path, work: Path) -> tuple[pd.DataFrame, list[dict]]:
        """Outcomes and costs after so many steps, as trained and part of the way back."""
        stages = self.stages()
        if stages.train:
            rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
            stages = replace(stages, train=replace(stages.train, steps=steps, checkpoint_every=steps, **rate))
        trained = frontier.run_stages(self.domain, replace(stages, evaluate=None), folder, out=work)
        policy, start = trained.policy, models.load("tiny")
        last = bool(stages.train) and steps == CHECKPOINTS[self.domain][-1]
        tables, costs = [], []
        for back in (0.0, *(BACK.get(self.method, ()) if last else ())):
            there = policy.copy()
            if back:
                models.interpolate(there, 1 - back, start)
            table = evaluation.evaluate(there, _sets(self.domain), stages.evaluate, progress=False)
            point = asdict(self) | {"steps": steps, "back": back}
            tables.append(table.assign(**point).astype({"strength": float, "learning_rate": float}))
            entropy = float(table.loc[table["split"] == "test", "entropy"].mean())
            kl = {
                "kl" if inside else "kl_probe": kl_to_reference(
                    there, start, [part for part in _sets(self.domain) if part.split == ("test" if inside else "probe")]
                )
                for inside in (True, False)
            }
            costs.append(point | frontier.cost(trained) | {"entropy": entropy} | kl)
        return pd.concat(tables, ignore_index=True)[COLUMNS + POINT], costs


def kl_to_reference(
    policy: Policy, reference: Policy, sets: Sequence[ProblemSet], samples: int = KL_SAMPLES, seed: int = 2
) -> float:
    """KL(policy, reference) per answer, in nats: the mean over fresh answers of the sum over tokens of log(policy/reference).

    Unbiased, as both log-probs are of the distribution that the answers are drawn from; each problem counts once.

    Args:
        policy, reference: of one vocabulary.
        sets: the problems that are answered.
        samples: answers to each.
        seed: of the draw.
    """
    sums, count = 0.0, 0
    for part in sets:
        drawn = presampling.sample(policy, part.task, part.problems, samples, seed=seed, progress=False)
        stored = training.rehearsal_samples(policy, {p.id: p for p in part.problems}, drawn)
        tokens = batches.microbatch_tokens(None, len(policy.tokenizer))
        with torch.no_grad():
            calling = {"pad_id": reference.pad_id, "device": reference.device, "temperature": 1.0}
            for batch in batches.forward(reference.model, stored, tokens, **calling):
                # a table's log-probs are the writer's, here the policy's
                sums += float((batch.column("logp_ref") - batch.logp)[batch.mask].double().sum())
        count += len(stored)
    return sums / count


@cache
def _sets(domain: str) -> list[ProblemSet]:
    """The held-out problems of a domain: the first of those that `frontier` evaluates."""
    return [
        replace(part, problems=part.problems[: SETS[domain][split][part.name]])
        for split in SETS[domain]
        for part in frontier.held_out(domain, split)
        if part.name in SETS[domain][split]
    ]


def trials(
    domains: Sequence[str] = tuple(CHECKPOINTS), methods: Sequence[str] | None = None, seeds: Sequence[int] = SEEDS
) -> list[PathTrial]:
    """All paths, seed by seed, in the order of `LINES`: a sweep that is stopped has compared all methods on the seeds it did."""
    return [
        PathTrial(domain, line.method, line.strength, seed, rate)
        for seed in seeds
        for domain in domains
        for line in LINES
        if (methods is None or line.method in methods) and (line.claim or SEEDS.index(seed) < FEW)
        for rate in line.rates
    ]


def read(folder: str | Path = PATHS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The outcomes of paths, and what each of their points cost and how far it lies from the reference. As `frontier.read`."""
    return frontier.read(folder)


def run(out: str | Path, seeds: Sequence[int] = SEEDS, domains=None, methods=None, minutes=None, processes=None) -> int:
    """Run what `out` lacks of the paths, for so many minutes, and collect what is there. Returns how many are missing."""
    for method in methods or ():
        lookup({line.method: line for line in LINES}, "method of the paths", method)
    for domain in domains or ():
        lookup(CHECKPOINTS, "domain of the paths", domain)
    identity = {"kind": "paths", "checkpoints": CHECKPOINTS, "sets": SETS}
    wanted = trials(domains or tuple(CHECKPOINTS), methods, seeds)
    left = frontier.sweep(wanted, out, minutes, processes, identity)
    frontier.collect(out, PathTrial, COLUMNS + POINT)
    return left
