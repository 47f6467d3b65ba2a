"""The frontier: every method, strength and seed on both miniatures.

A *trial* trains the tiny model in one domain with one method, strength and seed, and evaluates it on problems that no
training saw. Trials are independent: they run in any order, in several processes, in chunks of any length, and each is
written whole or not at all. What may be concluded from the outcomes: `conclusions`.
"""

import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dphrl_lite import models
from dphrl_lite.engine import checkpoint
from dphrl_lite.errors import lookup
from dphrl_lite.evaluation import COLUMNS, ProblemSet
from dphrl_lite.models import DATA
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import PartitionConfig
from dphrl_lite.settings import run_name
from dphrl_lite.study import pipeline
from dphrl_lite.study.domains import DRAWN, SQL, Domain
from dphrl_lite.study.pipeline import OUTCOMES, RUNS, Result, Stages
from dphrl_lite.training import TrainConfig

FRONTIER = DATA / "frontier"
SEEDS = (0, 1, 2, 3, 4)
CURVATURES = (0.03, 0.1, 0.3, 1.0, 3.0)  # eta f''(1): equal values are the fair first comparison of divergences
DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            "countdown",
            trained={"cd3": 400, "cd4": 400},
            held_out={
                "validation": {"cd3": 120, "cd4": 180},
                "test": {"cd3": 241, "cd4": 800},
                "probe": {"sort": 100} | dict.fromkeys(SQL, 16),
            },
            settings={"steps": 60},
        ),
        Domain(
            "sql",
            trained=dict.fromkeys(SQL, 96),
            held_out={
                "validation": dict.fromkeys(SQL, 25),
                "test": dict.fromkeys(SQL, 125),
                "probe": {"sort": 100, "cd3": 100, "cd4": 100},
            },
            settings={"steps": 40, "learning_rate": 3e-4},
        ),
    )
}


@dataclass(frozen=True)
class Variant:
    """A method with further settings of the partition and of training, under a name of its own.

    Training takes `longer` times the steps of its domain. Where `back` is given, the trained weights go part of the way back to
    the reference's (`models.interpolate`), and that part is what the trial's strength means; `back` is the usual one.
    """

    method: str
    partition: Mapping = field(default_factory=dict)
    train: Mapping = field(default_factory=dict)
    longer: int = 1
    back: float | None = None


PASS_KS = (2, 4, 8)
_ALL = {"rehearse_exploration": True}
IDEAS = {  # beyond the paper
    "dph-f+one": Variant("dph-f", {"one_per_problem": True}),  # as its release: one reference answer per problem
    "dph-f+all": Variant("dph-f", _ALL),
    "dph-f+balanced": Variant("dph-f", _ALL | {"balance": True}),
    "dph-f+3of8": Variant("dph-f", {"threshold": 3}),  # a D_pef that holds harder problems, too
    "dph-f+target": Variant("dph-f", train={"penalty_target": 0.03}),
    "dph-f+all+pass@4": Variant("dph-f", _ALL, {"advantage_k": 4}),
    "dph-f+pass@2": Variant("dph-f", train={"advantage_k": 2}),
    "grpo+wise": Variant("grpo", back=0.5),  # WiSE-FT: weights between the untouched and the trained model's
    "grpo+wise+4x": Variant("grpo", longer=4, back=0.6),
    "dph-f+wise": Variant("dph-f", train={"strength": 0.1}, back=0.4),
} | {f"grpo+pass@{k}": Variant("grpo", train={"advantage_k": k}) for k in PASS_KS}
VARIANTS = {f"dph-alpha-{alpha}": Variant("dph-alpha", train={"alpha": alpha}) for alpha in (0.2, 0.5, 0.8)} | IDEAS


@dataclass(frozen=True)
class Trial:
    """One run: train in `domain` with `method` (or a variant's name) at `strength`, None for a method without one."""

    domain: str
    method: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        """Its files' name."""
        return run_name(self.seed, self.domain, self.method, self.strength)

    @property
    def where(self) -> Domain:
        """Its domain."""
        return DOMAINS[self.domain]

    def variant(self) -> Variant:
        """What its method's name means."""
        return VARIANTS.get(self.method) or Variant(self.method)

    def run(self, folder: Path):
        """Write its outcomes and cost."""
        run_trial(self, folder)

    def stages(self, **settings) -> Stages:
        """Its settings of every stage; `settings` are further ones of training."""
        where = self.where
        if self.method == "base":
            return Stages(evaluate=where.evaluate)
        variant = self.variant()
        chosen = {"strength": self.strength if variant.back is None else None} | dict(where.settings)
        chosen |= {"seed": self.seed, "steps": variant.longer * where.steps}
        train = TrainConfig(variant.method, **chosen | dict(variant.train) | settings)
        partition = PartitionConfig(**{"threshold": where.threshold} | dict(variant.partition))
        return Stages(
            where.presample, partition, train, where.evaluate, None if variant.back is None else self.strength
        )


def strengths() -> dict[str, tuple]:
    """Method -> its strengths: several where a front is drawn, else one; at matched curvature, but for what goes `back`."""
    swept = dict.fromkeys(["rkl", "rkl-k3", "sft", "dph-f", "dph-f+all"], 1.0) | {"dph-js": 2.0}  # 1 / f''(1)
    fronts = {name: tuple(round(scale * c, 4) for c in CURVATURES) for name, scale in swept.items()}
    fronts |= dict.fromkeys(["dph-f+balanced", "dph-f+3of8", "dph-f+all+pass@4"], CURVATURES[1:4])
    fronts |= {"dph-f+pass@2": CURVATURES[:3], "grpo+wise": (0.3, 0.5, 0.7), "dph-f+wise": (0.3, 0.5)}
    single = dict.fromkeys(VARIANTS, 1.0) | {"dph-js-definition": 4.0, "dph-f+target": 0.3, "grpo+wise+4x": 0.6}
    single |= dict.fromkeys(["grpo", "grpo-exp", "dapo", *(f"grpo+pass@{k}" for k in PASS_KS)])
    return {name: (strength,) for name, strength in single.items()} | fronts


def trials(domains: Sequence[str] = tuple(DOMAINS), methods=None, seeds: Sequence[int] = SEEDS) -> list[Trial]:
    """All trials, seed by seed: a sweep that is stopped has compared all methods on the seeds that it did."""
    chosen = {name: values for name, values in strengths().items() if methods is None or name in methods}
    named = [(name, value) for name, values in chosen.items() for value in values]
    return [Trial(where, *name, seed) for seed, where, name in itertools.product(seeds, domains, named)]


# ---- one trial -------------------------------------------------------------------------------------------------------


def run_trial(trial: Trial, folder: Path):
    """Train and evaluate; writes the run's cost and then its outcomes."""
    result = run_stages(trial.where, trial.stages(), folder, trial.where.every_set)
    table = _labelled(result, trial)
    entropy = float(table.loc[table["split"] == "test", "entropy"].mean())
    text = json.dumps(asdict(trial) | cost(result) | {"entropy": entropy})
    checkpoint.write_whole(folder / f"{trial.name}.json", lambda path: path.write_text(text))
    checkpoint.write_whole(folder / f"{trial.name}.parquet", lambda path: table[COLUMNS].to_parquet(path, index=False))


def run_stages(
    domain: Domain, stages: Stages, folder: Path, sets: Sequence[ProblemSet] = (), progress: bool = False, **calling
) -> Result:
    """The pipeline in a domain; the reference's answers to its training problems are drawn once, into `folder`.

    `calling` goes on to `pipeline.run`.
    """
    calling |= {"rollouts": folder / f"presampling-{domain.name}", "progress": progress}
    return pipeline.run(domain.policy, stages, domain.task, domain.problems, sets, **calling)


def _labelled(result: Result, trial: Trial) -> pd.DataFrame:
    return result.outcomes.assign(**asdict(trial)).astype({"strength": float})


def own_run(
    method: str,
    strength: float | None = None,
    folder: str | Path = "runs/own",
    domain: str = "countdown",
    split: str = "test",
    steps: int | None = None,
    problems: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """One more run of any method, a registered divergence's too, trained and evaluated as the sweep's trials are.

    Training problems, settings, seeds and held-out problems are `run_trial`'s, so that the rows may be compared with those
    of the sweep, problem by problem (`conclusions.comparable`).

    Args:
        method: a name of `METHODS` or of `VARIANTS`.
        strength: eta or beta; None: the method's own.
        folder: where the reference's answers to the training problems are kept; nothing else is written.
        domain, split: where it trains, and on which held-out problems it is evaluated.
        steps: of training; None: as many as the sweep's runs. Fewer make a point that no front may be compared with.
        problems: of each family, the first so many; None: all.
        seed: of training.
        progress: show progress bars.

    Returns:
        An outcomes table, as `run_trial` writes.
    """
    variant = VARIANTS.get(method) or Variant(lookup(METHODS, "method", method).name)
    where = lookup(DOMAINS, "domain", domain)
    lookup(where.held_out, "split", split)
    own = METHODS[variant.method]
    if variant.back is not None:
        strength = variant.back if strength is None else float(strength)
    else:
        strength = None if own.penalty == "none" else own.strength_of(strength)
    trial = Trial(domain, method, strength, seed)
    sets = [replace(part, problems=part.problems[:problems]) for part in where.sets[split]]
    stages = trial.stages(**{} if steps is None else {"steps": steps})
    return _labelled(run_stages(where, stages, Path(folder), sets, progress), trial)[COLUMNS]


def cost(result: Result) -> dict:
    """Sums over a run's steps; `reward` and `penalty` are means over the last ten."""
    if result.training is None:
        return {}
    log = result.training.log
    total = log[["seconds", "tokens", "tokens_trained", "reference_forwards"]].sum().to_dict()
    return total | log[["reward", "penalty"]].astype(float).tail(10).mean().dropna().to_dict()


# ---- the sweep -------------------------------------------------------------------------------------------------------


def sweep(
    wanted: Sequence[Trial],
    folder: str | Path,
    minutes: float | None = None,
    processes: int | None = None,
    identity: Mapping | None = None,
) -> int:
    """Run the trials that `folder` lacks, each in one thread of one of `processes` processes.

    Args:
        wanted: from `trials`; the base model's own evaluation in each domain is added.
        folder: of this sweep alone; what is there is not run again, whether as files of a trial or collected.
        minutes: no trial is begun after that; None runs all.
        processes: at once; None: one per core.
        identity: what of the sweep may not change while it goes on; None: of this module's.

    Returns:
        How many trials are still missing.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes = {processes}: expected at least one, or none for one per core")
    manifest = {"versions": checkpoint.versions()} | dict(_identity() if identity is None else identity)
    manifest |= {"weights": checkpoint.weights_digest(models.load("tiny").model)}
    folder, until = checkpoint.claim(folder, manifest), time.time() + 60 * (np.inf if minutes is None else minutes)
    domains = {trial.domain: trial.where for trial in wanted}
    for domain in domains.values():  # before trials do at once
        run_stages(domain, Stages(domain.presample), folder, progress=True)
    kind = type(wanted[0]) if wanted else Trial
    wanted = [kind(domain, "base", None, 0) for domain in domains] + list(wanted)
    done = _done(folder, kind)
    missing = [trial for trial in wanted if trial.name not in done]
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="frontier", unit="run")
    with bar, ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        begun = [pool.submit(_in_time, trial, folder, until) for trial in missing]
        try:
            for run in as_completed(begun):
                bar.update(run.result())
        except BaseException:  # Ctrl-C too: those that run are finished, no other is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    done = _done(folder, kind)
    left = sum(trial.name not in done for trial in wanted)
    if left:
        print(f"{left} of {len(wanted)} runs are missing; the same command goes on with them", file=sys.stderr)
    return left


def _identity() -> dict:
    of = lambda part: {name: getattr(domain, part) for name, domain in DOMAINS.items()}
    settings = {part: of(part) for part in ("trained", "settings", "held_out")}
    return {"kind": "frontier", "threshold": DOMAINS["countdown"].threshold, "drawn": DRAWN} | settings


def _end_with_parent():
    """A killed sweep must not leave processes that go on in secret."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _in_time(trial: Trial, folder: Path, until: float) -> bool:
    if time.time() < until:
        trial.run(folder)
        return True
    return False


def _done(folder: Path, kind: type[Trial] = Trial) -> set[str]:
    """The names of the trials whose outcomes are in `folder`."""
    collected = _names(pd.read_parquet(folder / RUNS), kind) if (folder / RUNS).is_file() else []
    return {path.stem for path in folder.glob("*-seed*.parquet")} | set(collected)


def _names(runs: pd.DataFrame, kind: type[Trial] = Trial) -> list[str]:
    rows = runs[keys(kind)].astype(object)
    return [kind(**row).name for row in rows.where(rows.notna(), None).to_dict("records")]


def keys(kind: type[Trial]) -> list[str]:
    """The columns that tell a sweep's trials apart."""
    return [field.name for field in fields(kind)]


def run(out: str | Path, seeds: Sequence[int] = SEEDS, domains=None, methods=None, minutes=None, processes=None) -> int:
    """Run what `out` lacks of the sweep, for so many minutes, and collect what is there. Returns how many runs are missing."""
    for method in methods or ():
        lookup(strengths(), "method of the frontier", method)
    for domain in domains or ():
        lookup(DOMAINS, "domain", domain)
    left = sweep(trials(domains or tuple(DOMAINS), methods, seeds), out, minutes, processes)
    collect(out)
    return left


def collect(folder: str | Path, kind: type[Trial] = Trial, columns: Sequence[str] = COLUMNS):
    """Put the outcomes and costs of a sweep's trials into `outcomes.parquet` and `runs.parquet`, with those that are there."""
    folder, trial = Path(folder), keys(kind)
    paths = sorted(folder.glob("*-seed*.parquet"))
    if not paths:
        return
    tables = [pd.read_parquet(path) for path in paths]
    costs = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    rows = itertools.chain(*(cost if isinstance(cost, list) else [cost] for cost in costs))
    runs = pd.DataFrame(list(rows)).astype({"strength": float})
    if (folder / RUNS).is_file():
        table, before = read(folder)
        before = before[~pd.Series(_names(before, kind), before.index).isin([path.stem for path in paths])]
        tables.append(table.merge(before[trial].drop_duplicates())[list(columns)])
        runs = pd.concat([runs, before], ignore_index=True)
    small = {"n": "int16", "c": "int16", "distinct": "int16", "seed": "int32"} | dict.fromkeys(COLUMNS[:4], "category")
    table = pd.concat(tables, ignore_index=True).astype(small | {"problem": "category"})
    for name, frame in {OUTCOMES: table, RUNS: runs}.items():
        order = [name for name in (*trial, "steps", "back") if name in frame]
        ordered = frame.sort_values(order, kind="stable")  # however often the sweep was stopped
        write = lambda path, frame=ordered: frame.to_parquet(path, index=False, compression="zstd")
        checkpoint.write_whole(folder / name, write)


def read(folder: str | Path = FRONTIER) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The outcomes and the costs of a sweep's runs. Raises `FileNotFoundError` where there are none."""
    folder = Path(folder)
    if not (folder / OUTCOMES).is_file():
        raise FileNotFoundError(f"no {OUTCOMES} in {folder}; run `dphrl experiment frontier --out {folder}` first")
    return pipeline.read_outcomes(folder), pd.read_parquet(folder / RUNS)
