"""Stage one: sample the untouched model once, split the problems, keep its correct answers for rehearsal.

Rollouts are a pandas table, one row per completion: problem_id, prompt, sample, completion, token_ids, logp,
logp_sampling, correct, distinct, reason. Knows nothing of losses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dphrl_lite.checkpoint import claim, digest, weights_digest, write_whole
from dphrl_lite.passk import whole_numbers
from dphrl_lite.sampling import Completion, check_settings, generate
from dphrl_lite.tasks import Problem, Task

COLUMNS = ["problem_id", "prompt", "sample", "completion", "token_ids", "logp", "logp_sampling", "correct"]
COLUMNS += ["distinct", "reason"]


def sample(
    policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int = 8,
    out: str | Path | None = None,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    problems_per_shard: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Draw `samples` completions of each problem, with log-probs, and verify each.

    Args:
        policy: a `models.Policy`.
        task: the verifier.
        problems: with unique ids.
        samples: completions per problem (K).
        out: folder for Parquet shards. A run that was stopped goes on where it was; None keeps all in memory.
        temperature, top_p: of the sampling distribution. Rehearsal needs 1 and 1, or `allow_mismatch` (see `train`).
        max_new_tokens: longest completion; the policy's default if None.
        seed: each problem's randomness comes from this and its id, not from its place.
        problems_per_shard: the unit that is computed, written and, after a kill, computed again.
        progress: show a progress bar.

    Returns:
        The table of rollouts, in the order of `problems`.

    Raises:
        ValueError: no problems, duplicate ids, or a problem without an answer.
        OtherRunError: `out` holds another run; nothing is overwritten.
    """
    settings = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens or policy.max_new_tokens,
        "seed": seed,
    }
    folder = _claim(out, policy, task, problems, settings, problems_per_shard)
    shards = [problems[i : i + problems_per_shard] for i in range(0, len(problems), problems_per_shard)]
    bar = tqdm(total=len(problems), desc=f"sampling {samples} each", unit="problem", disable=not progress)
    frames = []
    for index, shard in enumerate(shards):
        frames.append(_shard(folder, index, lambda shard=shard: _rollouts(policy, task, shard, settings)))
        bar.update(len(shard))
    bar.close()
    return pd.concat(frames, ignore_index=True)


def _claim(out, policy, task: Task, problems: Sequence[Problem], settings: dict, per_shard: int) -> Path | None:
    """The run's folder, None without one. Whatever can be wrong is found before the folder is touched."""
    check_problems(problems)
    check_settings(**{name: value for name, value in settings.items() if name != "seed"})
    if per_shard < 1:
        raise ValueError(f"problems_per_shard must be at least 1; got {per_shard}")
    for problem in problems:
        policy.encode(problem.prompt)
    if out is None:
        return None
    identity = {"kind": "presampling", "model": policy.name, "shard": per_shard} | task.identity()
    problem_hash = digest([asdict(p) for p in problems])
    return claim(out, identity | settings | {"weights": weights_digest(policy.model), "problems": problem_hash})


def _shard(folder: Path | None, index: int, compute) -> pd.DataFrame:
    """One shard: read if it is there, else computed, and written if there is a folder."""
    if folder is None:
        return compute()
    path = folder / f"shard-{index:05d}.parquet"
    if not path.is_file():
        write_whole(path, lambda temporary: compute().to_parquet(temporary, index=False))
    return pd.read_parquet(path)


def check_problems(problems: Sequence[Problem]):
    """Raise `ValueError` for an empty set, duplicate ids, or a problem without an answer, before anything is sampled."""
    if len(problems) == 0:
        raise ValueError("no problems given; expected at least one (is the split or the filter empty?)")
    ids = pd.Series([p.id for p in problems])
    if ids.duplicated().any():
        raise ValueError(f"problem ids must be unique; {ids[ids.duplicated()].iloc[0]!r} stands there more than once")
    for p in problems:
        if p.answer is None or not str(p.answer).strip():
            raise ValueError(
                f"problem {p.id!r} has no answer, so its completions cannot be verified; fill it in or drop it"
            )


def _rollouts(policy, task: Task, problems: Sequence[Problem], settings: dict) -> pd.DataFrame:
    settings = dict(settings)
    seed = settings.pop("seed")
    seeds = [seed_of(seed, p.id) for p in problems]
    groups = generate(policy, [policy.encode(p.prompt) for p in problems], seeds=seeds, **settings)
    rows = [row for p, group in zip(problems, groups, strict=True) for row in _verified(policy, task, p, group)]
    return pd.DataFrame(rows, columns=COLUMNS)


def seed_of(*parts) -> int:
    """A seed that belongs to a seed, a name, a step ...; 63 bits, the same on every machine."""
    return int(digest(*parts), 16) >> 1


def _verified(policy, task: Task, problem: Problem, group: list[Completion]) -> Iterator[tuple]:
    prompt = policy.render(problem.prompt)
    for i, c in enumerate(group):
        text = policy.decode(c.token_ids)
        v = task.verify(problem, text)
        logps = (np.float32(c.logp), np.float32(c.logp_sampling))
        yield problem.id, prompt, i, text, np.int32(c.token_ids), *logps, v.correct, v.distinct, v.reason


def counts(rollouts: pd.DataFrame) -> pd.DataFrame:
    """Per problem, in order of appearance: problem_id, n drawn, c correct, distinct correct solutions."""
    if not {"problem_id", "correct"} <= set(rollouts.columns):
        raise ValueError(
            f"expected a table of rollouts with problem_id and correct; got columns {list(rollouts.columns)}"
        )
    groups = rollouts.groupby("problem_id", sort=False)
    table = groups["correct"].agg(n="size", c="sum").astype(int)
    if "distinct" in rollouts:
        right = rollouts[rollouts["correct"].astype(bool)].groupby("problem_id")["distinct"].nunique()
        table["distinct"] = right.reindex(table.index, fill_value=0).astype(int)
    return table.reset_index()


@dataclass(frozen=True)
class Partition:
    """Three disjoint buckets of problem ids, and the rehearsal buffer.

    `perfect` is D_pef (at least `threshold` correct), `exploration` is D_exp (some correct, fewer than the threshold),
    `unsolved` none correct. `rehearsal` holds the correct reference completions of D_pef, as rows of the rollouts.
    """

    perfect: tuple
    exploration: tuple
    unsolved: tuple
    threshold: int
    rehearsal: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Table: bucket, problems, share."""
        sizes = [len(self.perfect), len(self.exploration), len(self.unsolved)]
        table = pd.DataFrame({"bucket": ["D_pef (perfect)", "D_exp (exploration)", "unsolved"], "problems": sizes})
        return table.assign(share=table["problems"] / max(1, sum(sizes)))


def partition(rollouts: pd.DataFrame, threshold: int = 6) -> Partition:
    """Split problems by how many of their K reference samples are correct.

    Args:
        rollouts: from `sample`.
        threshold: correct samples that put a problem into D_pef (release: 6 of 8 in its comments, 4 of 4 in its script).

    Raises:
        ValueError: threshold < 1, or a problem has fewer samples than the threshold (K < threshold).
    """
    table = counts(rollouts)
    split = partition_counts(table["n"], table["c"], threshold)
    ids = table["problem_id"].to_numpy()
    named = [tuple(ids[list(bucket)]) for bucket in (split.perfect, split.exploration, split.unsolved)]
    kept = rollouts["correct"].astype(bool) & rollouts["problem_id"].isin(named[0])
    return Partition(*named, threshold, rollouts[kept].reset_index(drop=True))


def partition_counts(n, c, threshold: int = 6) -> Partition:
    """The same split from counts alone: `n` samples (one number or one per problem), `c` of them correct `[problems]`.

    Returns:
        A `Partition` whose ids are positions in `c` and whose rehearsal is empty, since counts hold no completions.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(whole_numbers(n, "n")), np.atleast_1d(whole_numbers(c, "c")))
    if (c > n).any():
        raise ValueError("counts must satisfy 0 <= c <= n for every problem")
    if threshold < 1:
        raise ValueError(f"threshold is a number of correct samples, at least 1; got {threshold}")
    if (n < threshold).any():
        raise ValueError(
            f"threshold = {threshold} correct samples, but a problem has only K = {n.min()} samples; "
            "choose a threshold of at most K, or draw more samples"
        )
    masks = (c >= threshold, (c > 0) & (c < threshold), c == 0)
    buckets = [tuple(np.flatnonzero(mask).tolist()) for mask in masks]
    return Partition(*buckets, threshold, pd.DataFrame(columns=COLUMNS))
