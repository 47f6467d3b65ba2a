"""The frontier: every method, strength and seed on both miniatures, and what may be concluded from the outcomes.

A *trial* trains the tiny model in one domain with one method, strength and seed, and evaluates it on problems that no
training saw. Trials are independent: they run in any order, in several processes, in chunks of any length, and each is
written whole or not at all. Everything from `read` on needs the tables alone.

Strengths are chosen on the validation problems by `RULE`, and reported on the test problems.
"""

import itertools
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dphrl_lite import checkpoint, evaluation, models, presampling, tasks, training
from dphrl_lite.evaluation import COLUMNS, EvaluateConfig, ProblemSet
from dphrl_lite.models import DATA
from dphrl_lite.passk import pass_at_k
from dphrl_lite.tasks import Problem, Task, countdown, minisql

FRONTIER = DATA / "frontier"
SEEDS, THRESHOLD = (0, 1, 2, 3, 4), 6
CURVATURES = (0.03, 0.1, 0.3, 1.0, 3.0)  # eta f''(1): equal values are the fair first comparison of divergences
SQL = tuple(minisql.FORMS)
RUN = ["domain", "split", "method", "strength", "seed"]
TRAINED = {"countdown": {"cd3": 400, "cd4": 400}, "sql": dict.fromkeys(SQL, 96)}  # problems of each family
SETTINGS = {"countdown": {"steps": 60}, "sql": {"steps": 40, "learning_rate": 3e-4}}  # of training, beyond its defaults
HELD_OUT = {
    "countdown": {
        "validation": {"cd3": 120, "cd4": 180},
        "test": {"cd3": 241, "cd4": 800},
        "probe": {"sort": 100} | dict.fromkeys(SQL, 16),
    },
    "sql": {
        "validation": dict.fromkeys(SQL, 25),
        "test": dict.fromkeys(SQL, 125),
        "probe": {"sort": 100, "cd3": 100, "cd4": 100},
    },
}
DRAWN = {"validation": 64, "test": 64, "probe": 16}  # answers to each problem


@dataclass(frozen=True)
class Variant:
    """A method with further settings of the partition and of training, under a name of its own."""

    method: str
    partition: Mapping = field(default_factory=dict)
    train: Mapping = field(default_factory=dict)


_ALL = {"rehearse_exploration": True}
_PASS_4 = {"advantage_k": 4}
IDEAS = {  # beyond the paper
    "dph-f+one": Variant("dph-f", {"one_per_problem": True}),  # as its release: one reference answer per problem
    "dph-f+all": Variant("dph-f", _ALL),
    "dph-f+balanced": Variant("dph-f", _ALL | {"balance": True}),
    "dph-f+target": Variant("dph-f", train={"penalty_target": 0.03}),
    "grpo+pass@4": Variant("grpo", train=_PASS_4),
    "dph-f+all+pass@4": Variant("dph-f", _ALL, _PASS_4),
}
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
        strength = "" if self.strength is None else f"-{self.strength:g}"
        return f"{self.domain}-{self.method}{strength}-seed{self.seed}"


def strengths() -> dict[str, tuple]:
    """Method -> its strengths: five where a front is drawn, else one, at matched curvature."""
    swept = dict.fromkeys(["rkl", "rkl-k3", "sft", "dph-f", "dph-f+all"], 1.0) | {"dph-js": 2.0}  # 1 / f''(1)
    fronts = {name: tuple(round(scale * c, 4) for c in CURVATURES) for name, scale in swept.items()}
    fronts |= dict.fromkeys(["dph-f+balanced", "dph-f+all+pass@4"], CURVATURES[1:4])
    single = dict.fromkeys(VARIANTS, 1.0) | {"dph-js-definition": 4.0, "dph-f+target": 0.3}
    single |= dict.fromkeys(["grpo", "grpo-exp", "dapo", "grpo+pass@4"])
    return {name: (strength,) for name, strength in single.items()} | fronts


def trials(domains: Sequence[str] = tuple(TRAINED), methods=None, seeds: Sequence[int] = SEEDS) -> list[Trial]:
    """All trials, seed by seed: a sweep that is stopped has compared all methods on the seeds that it did."""
    chosen = {name: values for name, values in strengths().items() if methods is None or name in methods}
    named = [(name, value) for name, values in chosen.items() for value in values]
    return [Trial(where, *name, seed) for seed, where, name in itertools.product(seeds, domains, named)]


# ---- one trial -------------------------------------------------------------------------------------------------------


@cache
def _sets(domain: str, split: str) -> list[ProblemSet]:
    """The held-out problems of a split; "probe" holds what reinforcement learning in this domain never trains."""
    families = HELD_OUT[domain][split].items()
    return [
        ProblemSet(family, _task(family), _home(family).problems(family, count, "test" if split == "probe" else split))
        for family, count in families
    ]


def _home(family: str):
    return minisql if family in SQL else countdown


@cache
def _task(family: str) -> Task:
    return tasks.get("sql", databases=DATA / "minisql") if family in SQL else tasks.get("countdown")


@cache
def training_problems(domain: str) -> list[Problem]:
    """What is pre-sampled, split and trained on in a domain."""
    return [p for family, count in TRAINED[domain].items() for p in _home(family).problems(family, count)]


def prepare(domain: str, folder: Path, progress: bool = False) -> pd.DataFrame:
    """The reference's answers to the training problems of a domain, drawn once and kept in `folder`."""
    where = {"out": folder / f"presampling-{domain}", "problems_per_batch": 16}
    where["progress"] = progress and f"pre-sampling {domain}"
    return presampling.sample(models.load("tiny"), _trained_task(domain), training_problems(domain), **where)


def _trained_task(domain: str) -> Task:
    return _task(next(iter(TRAINED[domain])))


def run_trial(trial: Trial, folder: Path):
    """Train and evaluate; writes the run's cost and then its outcomes."""
    policy, steps = models.load("tiny"), []
    if trial.method != "base":
        variant = VARIANTS.get(trial.method) or Variant(trial.method)
        parts = presampling.partition(prepare(trial.domain, folder), THRESHOLD, **variant.partition)
        settings = {"strength": trial.strength, "progress": False, "in_place": True}
        settings |= SETTINGS[trial.domain] | dict(variant.train) | {"seed": trial.seed}
        data = _trained_task(trial.domain), training_problems(trial.domain), parts
        steps = training.train(policy, *data, variant.method, **settings).log.to_dict("records")
    tables = [_evaluated(policy, trial.domain, split) for split in DRAWN]
    table = pd.concat(tables, ignore_index=True).assign(**asdict(trial)).astype({"strength": float})
    entropy = float(table.loc[table["split"] == "test", "entropy"].mean())
    text = json.dumps(asdict(trial) | _cost(steps) | {"entropy": entropy})
    checkpoint.write_whole(folder / f"{trial.name}.json", lambda path: path.write_text(text))
    checkpoint.write_whole(folder / f"{trial.name}.parquet", lambda path: table[COLUMNS].to_parquet(path, index=False))


def _evaluated(policy, domain: str, split: str) -> pd.DataFrame:
    config = EvaluateConfig(samples=DRAWN[split], greedy=False)
    tables = [evaluation.outcomes(policy, some, config, progress=False) for some in _sets(domain, split)]
    return pd.concat(tables, ignore_index=True).assign(split=split)


def _cost(steps: list[dict]) -> dict:
    """Sums over a run's steps; `reward` and `penalty` are means over the last ten."""
    log = pd.DataFrame(steps)
    if log.empty:
        return {}
    total = log[["seconds", "tokens", "tokens_trained", "reference_forwards"]].sum().to_dict()
    return total | log[["reward", "penalty"]].astype(float).tail(10).mean().dropna().to_dict()


# ---- the sweep -------------------------------------------------------------------------------------------------------


def sweep(
    wanted: Sequence[Trial], folder: str | Path, minutes: float | None = None, processes: int | None = None
) -> int:
    """Run the trials that `folder` lacks, each in one thread of one of `processes` processes.

    Args:
        wanted: from `trials`; the base model's own evaluation in each domain is added.
        folder: of this sweep alone; what is there is not run again.
        minutes: no trial is begun after that; None runs all.
        processes: at once; None: one per core.

    Returns:
        How many trials are still missing.
    """
    told = {"kind": "frontier", "threshold": THRESHOLD, "trained": TRAINED, "settings": SETTINGS}
    told |= {"held_out": HELD_OUT, "drawn": DRAWN}
    told |= {"weights": checkpoint.weights_digest(models.load("tiny").model), "versions": checkpoint.versions()}
    folder, until = checkpoint.claim(folder, told), time.time() + 60 * (np.inf if minutes is None else minutes)
    domains = dict.fromkeys(trial.domain for trial in wanted)
    for domain in domains:
        prepare(domain, folder, progress=True)
    wanted = [Trial(domain, "base", None, 0) for domain in domains] + list(wanted)
    missing = [trial for trial in wanted if not _outcomes(folder, trial).is_file()]
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="frontier", unit="run")
    with bar, ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(_in_time, trial, folder, until) for trial in missing]
        try:
            for done in as_completed(begun):
                bar.update(done.result())
        except BaseException:  # Ctrl-C too: those that run are finished, no other is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sum(not _outcomes(folder, trial).is_file() for trial in wanted)


def _in_time(trial: Trial, folder: Path, until: float) -> bool:
    if time.time() < until:
        run_trial(trial, folder)
        return True
    return False


def _outcomes(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial.name}.parquet"


def collect(folder: str | Path, out: str | Path = FRONTIER):
    """Put the outcomes and costs of a sweep's trials into two Parquet files, with its manifest: what is shipped."""
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.glob("*-seed*.parquet"))
    table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    runs = pd.DataFrame([json.loads(path.with_suffix(".json").read_text()) for path in paths])
    small = {"n": "int16", "c": "int16", "distinct": "int16", "seed": "int8"} | dict.fromkeys(COLUMNS[:4], "category")
    frames = {"outcomes": table.astype(small | {"problem": "category"}), "runs": runs}
    for name, frame in frames.items():
        checkpoint.write_whole(
            out / f"{name}.parquet", lambda path, f=frame: f.to_parquet(path, index=False, compression="zstd")
        )
    manifest = (folder / checkpoint.MANIFEST).read_bytes()
    checkpoint.write_whole(out / checkpoint.MANIFEST, lambda path: path.write_bytes(manifest))


# ---- what may be concluded -------------------------------------------------------------------------------------------


def read(folder: str | Path = FRONTIER) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The outcomes and the costs that `collect` wrote. Raises `FileNotFoundError` where there are none."""
    folder = Path(folder)
    if not (folder / "outcomes.parquet").is_file():
        raise FileNotFoundError(f"no outcomes.parquet in {folder}; run `dphrl experiment frontier` first")
    return tuple(pd.read_parquet(folder / f"{name}.parquet") for name in ("outcomes", "runs"))


def run_scores(table: pd.DataFrame, ks: Sequence[int] = (1, 4, 8, 16, 64)) -> pd.DataFrame:
    """Pass@k and distinct right answers of every run and split, means over problems; NaN where fewer than k were drawn.

    Index: domain, split, method, strength, seed.
    """
    scored = table[[*RUN, "distinct"]].assign(**{f"Pass@{k}": _pass_at_k(table, k) for k in ks})
    return scored.groupby(RUN, observed=True, dropna=False, sort=False).mean()


def _pass_at_k(table: pd.DataFrame, k: int) -> np.ndarray:
    n = table["n"].to_numpy()
    return np.where(n >= k, pass_at_k(n, table["c"], np.minimum(k, n)), np.nan)


def chosen(scores: pd.DataFrame) -> pd.DataFrame:
    """The strength of each method in each domain by `RULE`: domain, method, strength."""
    validation = scores.xs("validation", level="split")
    merit = (validation["Pass@1"] + validation["Pass@64"]).groupby(RUN[:1] + RUN[2:4], observed=True, dropna=False)
    best = merit.mean().rename("merit").reset_index().sort_values("merit", ascending=False, kind="stable")
    return best.drop_duplicates(["domain", "method"])[["domain", "method", "strength"]].reset_index(drop=True)


def matched(
    table: pd.DataFrame,
    domain: str,
    first: str,
    second: str,
    k: int = 64,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict:
    """Pass@k of `first` minus that of `second` where both have the same Pass@1, on the test problems.

    Each method's strengths, averaged over seeds and joined by straight lines, are its front. The difference is averaged over
    the Pass@1 that both fronts reach. The band comes from drawing seeds and problems again, the same for both.

    Returns:
        difference, low, high, and `from_` and `to`, the Pass@1 compared; NaN where the fronts share none.
    """
    grids = [_grid(table, domain, method, k) for method in (first, second)]
    seeds, problems = grids[0].shape[1], grids[0].shape[3]
    if grids[1].shape[1] != seeds:
        raise ValueError(f"{first} has {seeds} seeds and {second} {grids[1].shape[1]}; run the same ones of both")
    rng, every = np.random.default_rng(0), (np.arange(seeds), np.arange(problems))
    found, low, high = _between(*(_front(grid, *every) for grid in grids))
    drawn = []
    for _ in range(resamples):
        again = rng.integers(seeds, size=seeds), rng.integers(problems, size=problems)
        drawn.append(_between(*(_front(grid, *again) for grid in grids))[0])
    band = (
        np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        if np.isfinite(drawn).any()
        else [np.nan] * 2
    )
    return {"difference": found, "low": band[0], "high": band[1], "from_": low, "to": high}


def _grid(table: pd.DataFrame, domain: str, method: str, k: int) -> np.ndarray:
    """`[2, seeds, strengths, problems]`: Pass@1 and Pass@k of a method's runs."""
    part = table[(table["domain"] == domain) & (table["split"] == "test") & (table["method"] == method)]
    if part.empty:
        raise ValueError(f"no runs of {method!r} in {domain!r}; there are {sorted(set(table['method']))}")
    part = part.assign(one=_pass_at_k(part, 1), many=_pass_at_k(part, k)).sort_values(["seed", "strength", "problem"])
    shape = part["seed"].nunique(), part["strength"].nunique(), part["problem"].nunique()
    return part[["one", "many"]].to_numpy().T.reshape(2, *shape)


def _front(grid: np.ndarray, seeds: np.ndarray, problems: np.ndarray) -> np.ndarray:
    """`[2, strengths]`: the means over the drawn seeds and problems, by rising Pass@1."""
    front = grid[:, seeds].mean(1)[..., problems].mean(-1)
    return front[:, front[0].argsort()]


def _between(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """The mean height of one front above another where they overlap, and the overlap's ends."""
    low, high = max(first[0, 0], second[0, 0]), min(first[0, -1], second[0, -1])
    if low > high:
        return np.nan, np.nan, np.nan
    at = np.linspace(low, high, 21)
    return float(np.mean(np.interp(at, *first) - np.interp(at, *second))), low, high
