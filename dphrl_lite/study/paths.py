"""Paths: every run of a sweep evaluated as it goes on, with the size of the step as an axis beside method and strength.

A *path* is one training run with one method, strength, learning rate and seed, evaluated after some of its steps, and
after the last one also part of the way back to the reference's weights. Its cost and its distance from the reference, KL per
answer, stand beside its outcomes. Trials, folders and resuming are `frontier`'s; what may be concluded, `path_conclusions`'s.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
import torch

from dphrl_lite import evaluation, models, presampling, training
from dphrl_lite.engine import batches, checkpoint
from dphrl_lite.errors import lookup
from dphrl_lite.evaluation import COLUMNS, ProblemSet
from dphrl_lite.models import DATA, Policy
from dphrl_lite.study import frontier
from dphrl_lite.study.domains import Domain
from dphrl_lite.study.frontier import Trial, Variant

PATHS = DATA / "paths"
POINT = ["learning_rate", "steps", "back"]  # further columns of outcomes and runs; back: the share of the way back
SLOWEST, SLOW, USUAL = range(3)  # of a domain's learning rates
BACK = {"grpo": (0.3, 0.5), "grpo+pass@4": (0.3, 0.5), "dph-f": (0.3,)}


@dataclass(frozen=True, eq=False)
class Paths(Domain):
    """A domain in which runs are evaluated as they go on."""

    checkpoints: tuple[int, ...] = (20, 60, 120, 200)  # steps after which a path is evaluated
    rates: tuple[float, float, float] = (1e-5, 3e-5, 1e-4)  # a tenth, about a third, and all of the usual learning rate
    kl_answers: int = 4  # to each problem, on which KL(policy, reference) is measured
    back: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: BACK)  # method -> shares of the way back

    @property
    def steps(self) -> int:
        """How long its runs are."""
        return self.checkpoints[-1]


CLASS = "class"
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


_COUNTDOWN = Paths(
    "countdown",
    trained=frontier.DOMAINS["countdown"].trained,
    held_out={
        "validation": frontier.DOMAINS["countdown"].held_out["validation"],
        "test": {"cd3": 241, "cd4": 400},
        "probe": {"sort": 100} | dict.fromkeys(("count", "most", "whose", "without"), 16),
    },
    settings={},
)
DOMAINS = {
    domain.name: domain
    for domain in (
        _COUNTDOWN,
        # Pass@64 of SQL is near 1 for all, so that fewer answers are drawn, to questions about many databases
        Paths(
            "sql",
            trained=frontier.DOMAINS["sql"].trained,
            held_out=frontier.DOMAINS["sql"].held_out,
            settings={},
            drawn={"validation": 16, "test": 16, "probe": 16},
            kl_answers=1,
            sources={"test": "wide"},
            checkpoints=(10, 20, 40, 80),
            rates=(3e-5, 1e-4, 3e-4),
        ),
        # a real language model: `python data/make_small.py`, or the hub; the sizes of recipes/small_multiplication.yaml
        Paths(
            "multiplication",
            trained={"multiplication": None},
            held_out={
                "validation": {"multiplication": None},
                "test": {"multiplication": None},
                "probe": {"addition": None, "subtraction": None},
            },
            settings={
                "problems_per_step": 4,
                "samples": 8,
                "rehearsal_per_step": 8,
                "max_new_tokens": 16,
                "gradient_parts": False,
            },
            threshold=2,
            model="small",
            drawing={"max_new_tokens": 16, "problems_per_batch": 16},
            generation={"max_new_tokens": 16, "problems_per_batch": 4},  # more would need more memory than training
            sources={"train": "fit"},
            checkpoints=(10, 20),
            rates=(3e-6, 1e-5, 3e-5),
            back={"grpo": (0.3,)},
        ),
        # where might rehearsal add something that a smaller step does not? few problems, stale samples, long training
        replace(_COUNTDOWN, name="countdown-few", trained={"cd3": 40, "cd4": 40}, back={}),
        replace(_COUNTDOWN, name="countdown-stale", settings={"minibatches": 8}, back={}),
        replace(_COUNTDOWN, name="countdown-long", checkpoints=(200, 400, 600), back={}),
        # three minutes for a class
        replace(
            _COUNTDOWN,
            name="class",
            held_out={
                "validation": {"cd3": 10, "cd4": 10},
                "test": {"cd3": 60, "cd4": 90},
                "probe": {"sort": 20, "whose": 16},
            },
            checkpoints=(40,),
            back={},
        ),
    )
}


_MATCHED = {"dph-f": 0.3, "dph-js": 0.6, "rkl": 0.3, "sft": 0.3}  # strengths of one curvature


@dataclass(frozen=True)
class Line:
    """A method (or a variant of `VARIANTS`) at a strength and at some of its domain's learning rates.

    A `claim` rests on it: it gets all `SEEDS`, others `FEW`.
    """

    method: str
    strength: float | None
    rates: tuple[int, ...]
    claim: bool = False


CLAIMS = [
    Line("grpo", None, (SLOWEST, SLOW, USUAL), claim=True),
    *(Line(name, strength, (SLOW, USUAL), claim=True) for name, strength in _MATCHED.items()),
    Line("grpo+pass@4", None, (SLOW,), claim=True),
]
REGIMES = [Line("grpo", None, (SLOW, USUAL)), *(Line(name, _MATCHED[name], (SLOW, USUAL)) for name in ("dph-f", "rkl"))]
SWEPT = tuple(name for name in DOMAINS if name != CLASS)
LINES = dict.fromkeys(DOMAINS, REGIMES) | {
    CLASS: [
        Line("grpo", None, (SLOW, USUAL)),
        *(Line(name, _MATCHED[name], (USUAL,)) for name in ("rkl", "dph-f")),
    ],
    **{name: [*CLAIMS, Line("grpo-exp", None, (SLOW, USUAL))] for name in ("sql", "multiplication")},
    "countdown": [
        *CLAIMS,
        Line("grpo-exp", None, (SLOWEST, SLOW, USUAL)),
        # the divergence alone: same stored answers, same curvature
        Line("dph-reverse_kl", 0.3, (SLOW,)),
        Line("dph-hellinger", 0.6, (SLOW,)),
        Line("dph-pearson_chi2", 0.15, (SLOW,)),
        Line("rkl-exp", 0.3, (SLOW,)),  # what differs from rkl is what it explores
        *(Line(name, 0.3, (SLOW,)) for name in ("dph-f+all", "dph-f+wrong", "dph-f+all+wrong")),
        *(Line(name, None, (SLOW, USUAL)) for name in ("grpo+seldom", "grpo+distinct")),
        *(Line("grpo-entropy", strength, (SLOW,)) for strength in (0.003, 0.03)),
        # the best of three strengths: what DPH-F and DPH-JS claim rests on it
        *(
            Line(name, round(factor * strength, 2), (SLOW, USUAL), claim=name in ("dph-f", "dph-js"))
            for factor in (1 / 3, 10 / 3)
            for name, strength in _MATCHED.items()
        ),
    ],
}


@dataclass(frozen=True)
class PathTrial(Trial):
    """One path: a trial at a learning rate."""

    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Its files' name."""
        rate = None if self.learning_rate is None else f"lr{self.learning_rate:g}"
        return frontier.run_name(self.seed, self.domain, self.method, self.strength, rate)

    @property
    def where(self) -> Paths:
        """Its domain."""
        return DOMAINS[self.domain]

    def variant(self) -> Variant:
        """What its method's name means here."""
        return VARIANTS.get(self.method) or Variant(self.method)

    def run(self, folder: Path):
        """Train and evaluate from checkpoint to checkpoint; each is written, and a run that was killed goes on from there."""
        work, parts = folder / "work" / self.name, []
        for steps in (0,) if self.method == "base" else self.where.checkpoints:
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
        where, stages = self.where, self.stages()
        if stages.train:
            rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
            stages = replace(stages, train=replace(stages.train, steps=steps, checkpoint_every=steps, **rate))
        trained = frontier.run_stages(where, replace(stages, evaluate=None), folder, out=work)
        policy, start = trained.policy, where.policy
        last = bool(stages.train) and steps == where.checkpoints[-1]
        tables, costs = [], []
        for back in (0.0, *(where.back.get(self.method, ()) if last else ())):
            there = policy.copy()
            if back:
                models.interpolate(there, 1 - back, start)
            table = evaluation.evaluate(there, where.every_set, stages.evaluate, progress=False)
            point = asdict(self) | {"steps": steps, "back": back}
            tables.append(table.assign(**point).astype({"strength": float, "learning_rate": float}))
            entropy = float(table.loc[table["split"] == "test", "entropy"].mean())
            parts = {"kl": where.sets["test"], "kl_probe": where.sets["probe"]}
            drawn = where.kl_answers
            kl = {name: kl_to_reference(there, start, sets, drawn, **where.generation) for name, sets in parts.items()}
            costs.append(point | frontier.cost(trained) | {"entropy": entropy} | kl)
        return pd.concat(tables, ignore_index=True)[COLUMNS + POINT], costs


def kl_to_reference(
    policy: Policy, reference: Policy, sets: Sequence[ProblemSet], samples: int = 4, seed: int = 2, **drawing
) -> float:
    """KL(policy, reference) per answer, in nats: the mean over fresh answers of the sum over tokens of log(policy/reference).

    Unbiased, as both log-probs are of the distribution that the answers are drawn from; each problem counts once.

    Args:
        policy, reference: of one vocabulary.
        sets: the problems that are answered.
        samples: answers to each.
        seed: of the draw.
        **drawing: further fields of `PresampleConfig`.
    """
    sums, count = 0.0, 0
    for part in sets:
        drawn = presampling.sample(policy, part.task, part.problems, samples, seed=seed, progress=False, **drawing)
        stored = training.rehearsal_samples(policy, {p.id: p for p in part.problems}, drawn)
        tokens = batches.microbatch_tokens(None, len(policy.tokenizer))
        with torch.no_grad():
            calling = {"pad_id": reference.pad_id, "device": reference.device, "temperature": 1.0}
            for batch in batches.forward(reference.model, stored, tokens, **calling):
                # a table's log-probs are the writer's, here the policy's
                sums += float((batch.column("logp_ref") - batch.logp)[batch.mask].double().sum())
        count += len(stored)
    return sums / count


def trials(
    domains: Sequence[str] = SWEPT, methods: Sequence[str] | None = None, seeds: Sequence[int] = SEEDS
) -> list[PathTrial]:
    """All paths, seed by seed, in the order of `LINES`: a sweep that is stopped has compared all methods on the seeds it did."""
    return [
        PathTrial(domain, line.method, line.strength, seed, DOMAINS[domain].rates[rate])
        for seed in seeds
        for domain in domains
        for line in LINES[domain]
        if (methods is None or line.method in methods) and (line.claim or seed in SEEDS[:FEW])
        for rate in line.rates
    ]


def read(folder: str | Path = PATHS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The outcomes of paths, and what each of their points cost and how far it lies from the reference. As `frontier.read`."""
    return frontier.read(folder)


def run(out: str | Path, seeds: Sequence[int] = SEEDS, domains=None, methods=None, minutes=None, processes=None) -> int:
    """Run what `out` lacks of the paths, for so many minutes, and collect what is there. Returns how many are missing."""
    for method in methods or ():
        lookup({line.method: line for lines in LINES.values() for line in lines}, "method of the paths", method)
    for domain in domains or ():
        lookup(DOMAINS, "domain of the paths", domain)
    wanted = trials(domains or SWEPT, methods, seeds)
    left = frontier.sweep(wanted, out, minutes, processes, _identity())
    frontier.collect(out, PathTrial, COLUMNS + POINT)
    return left


def run_class(out: str | Path, minutes=None, processes=None) -> int:
    """The class version: four short paths, one seed."""
    return run(out, (0,), [CLASS], minutes=minutes, processes=processes)


def _identity() -> dict:
    return {
        "kind": "paths",
        "domains": {
            name: {part.name: getattr(domain, part.name) for part in fields(domain)} for name, domain in DOMAINS.items()
        },
    }
