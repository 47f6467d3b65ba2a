"""Stage one: sample the untouched model once, split the problems, keep its correct answers for rehearsal.

Rollouts are a pandas table, one row per completion: problem_id, prompt (as the model saw it, chat template applied),
sample, completion, token_ids, logp, logp_sampling, correct, distinct, reason. Both log-probs are those of the model that wrote
the completion, so in stage one the reference's: the `logp` stored here is the logp_ref of u = pi_theta / pi_ref.

How a folder of rollouts survives a kill is `engine.shards`'s, what one costs `scale.costs`'s. Knows nothing of losses.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from dphrl_lite.engine import shards
from dphrl_lite.engine.checkpoint import MANIFEST, claim, digest, tokenizer_digest, versions, weights_digest
from dphrl_lite.engine.shards import load as load
from dphrl_lite.engine.shards import missing as missing
from dphrl_lite.engine.shards import read_manifest as read_manifest
from dphrl_lite.errors import lookup
from dphrl_lite.models import settle_threads
from dphrl_lite.passk import whole_numbers
from dphrl_lite.sampling import Completion, check_context, check_settings, generate
from dphrl_lite.tasks import Problem, Task
from dphrl_lite.tasks.base import NO_ANSWER

COLUMNS = ["problem_id", "prompt", "sample", "completion", "token_ids", "logp", "logp_sampling", "correct"]
COLUMNS += ["distinct", "reason"]


@dataclass(frozen=True)
class PresampleConfig:
    """Settings of pre-sampling. The comment behind a field is its help on the command line."""

    samples: int = 8  # completions per problem (K)
    temperature: float = 1.0  # of the sampling distribution; rehearsal needs 1
    top_p: float = 1.0  # nucleus sampling; rehearsal needs 1, for none
    max_new_tokens: int | None = None  # longest completion; None: the policy's own
    seed: int = 0  # each problem's randomness comes from this and its id
    problems_per_shard: int = 64  # what is written at once and, after a kill, computed again
    problems_per_batch: int = 1  # computed at once: more is faster on a GPU, but rounding then depends on neighbours


def sample(
    policy,
    task: Task,
    problems: Sequence[Problem],
    samples: int = 8,
    out: str | Path | None = None,
    *,
    shard: tuple[int, int] | None = None,
    progress: bool | str = True,
    **settings,
) -> pd.DataFrame:
    """Draw `samples` completions of each problem, with log-probs, and verify each.

    With `problems_per_batch=1` each problem is computed alone, so that its rows do not depend on which other problems
    are there, on their order, or on the size of shards: in float32 on one machine they are equal to the last bit.

    Args:
        policy: a `models.Policy`.
        task: the verifier.
        problems: with unique ids.
        samples: completions per problem (K).
        out: folder for Parquet shards. A run that was stopped goes on where it was; None keeps all in memory.
        shard: `(i, n)` computes every n-th shard from the i-th on, for n processes that share `out`. Folders of their own
            can be put together by copying their files into one.
        progress: show a progress bar; a text becomes its label.
        **settings: further fields of `PresampleConfig`.

    Returns:
        The table of rollouts, in the order of `problems`; with `shard` those of its share.

    Raises:
        ValueError: no problems, duplicate ids, a problem without an answer, an unknown or impossible setting.
        OtherRunError: `out` holds another run; nothing is overwritten.
    """
    for name in settings:
        lookup(PresampleConfig.__dataclass_fields__, "setting of sample()", name)
    config = PresampleConfig(samples, **settings)
    folder = _claim(out, policy, task, problems, config, shard)
    settle_threads(policy.model)
    size, (first, step) = config.problems_per_shard, shard or (0, 1)
    starts = range(first * size, len(problems), step * size)
    frames, total = [], sum(len(problems[start : start + size]) for start in starts)
    label = progress if isinstance(progress, str) else f"sampling {samples} each"
    with tqdm(total=total, desc=label, unit="problem", disable=not progress) as bar:
        for start in starts:
            rollouts = partial(_rollouts, policy, task, problems[start : start + size], config, bar)
            frames.append(shards.shard(folder, start // size, rollouts))
            bar.update(sum(map(len, frames)) // samples - bar.n)  # a shard that was read moves it too
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    if folder and not missing(folder):
        shards.write_totals(folder, table if shard is None else None)
    _warn_unread(table)
    return table


def _warn_unread(table: pd.DataFrame):
    """Say where most answers cannot be read: a right one among them counts as wrong, and nothing else would show it."""
    unread = (table["reason"] == NO_ANSWER).mean() if len(table) else 0
    if unread > 0.5:
        warnings.warn(
            f"in {unread:.0%} of {len(table)} completions no answer was found, so that they count as wrong, also where they "
            "are right. Ask for the form that the verifier reads: for mathematics with `columns: [math]` in the recipe, which "
            "appends a request for \\boxed{} to each prompt; or give longer completions (max_new_tokens)",
            stacklevel=3,
        )


def _claim(out, policy, task: Task, problems, config: PresampleConfig, shard) -> Path | None:
    """The run's folder, None without one. Whatever can be wrong is found before the folder is touched."""
    check_problems(problems)
    longest = config.max_new_tokens or policy.max_new_tokens
    check_settings(config.samples, longest, config.temperature, config.top_p)
    for name in ("problems_per_shard", "problems_per_batch", "max_new_tokens"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if shard is not None and (out is None or not 0 <= shard[0] < shard[1]):
        raise ValueError(f"shard (i, n) needs a folder `out` and 0 <= i < n; got {shard} and out={out}")
    lengths = [len(policy.encode(problem.prompt)) for problem in problems]  # refuses what the tokenizer cannot write
    check_context(policy, max(lengths), longest)
    first, step = shard or (0, 1)
    share = (p for i, p in enumerate(problems) if i // config.problems_per_shard % step == first)
    check_answers(task, list(share))
    if out is None:
        return None
    out = writable(out)
    identity = {"kind": "presampling", "model": policy.name} | task.identity() | asdict(config)
    identity |= {"max_new_tokens": longest, "problem_count": len(problems), "versions": versions()}
    identity |= {"weights": weights_digest(policy.model), "tokenizer": tokenizer_digest(policy.tokenizer)}
    if getattr(policy, "sampler", None) is not None:
        identity |= policy.sampler.identity()
    prompts = digest([policy.render(p.prompt) for p in problems])  # some chat templates write the date of the day
    return claim(out, identity | {"problems": digest([asdict(p) for p in problems]), "prompts": prompts})


def check_answers(task: Task, problems: Sequence[Problem]):
    """Raise `ValueError` where an answer's own verifier refuses it, such as a gold query that fails or takes too long."""
    refused = task.objections(problems)
    if refused:
        name, why = next(iter(refused.items()))
        raise ValueError(
            f"{len(refused)} of {len(problems)} problems have answers that their verifier cannot use, the first is problem "
            f"{name!r}: {why[:300]}; correct or drop them (in a recipe: skip_broken: true)"
        )


def writable(out: str | Path) -> Path:
    """The folder `out`, `~` written out. Raises `OSError` where no file can be made in it: found before hours are spent."""
    folder = Path(out).expanduser()
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if place.is_dir() and not os.access(place, os.W_OK):  # of a file, `claim` says what it is
        raise OSError(
            f"cannot write to {str(folder)!r}: {str(place)!r} is no folder that you may write to; choose another `out`"
        )
    return folder


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


def _rollouts(policy, task: Task, problems: Sequence[Problem], config: PresampleConfig, bar: tqdm) -> pd.DataFrame:
    """Draw and verify. One call of `generate` per batch: in one of several prompts the logits' last bits depend on all."""
    settings = {"temperature": config.temperature, "top_p": config.top_p}
    settings["max_new_tokens"] = config.max_new_tokens or policy.max_new_tokens
    rows = []
    for start in range(0, len(problems), config.problems_per_batch):
        some = problems[start : start + config.problems_per_batch]
        seeds = [seed_of(config.seed, p.id) for p in some]
        groups = generate(policy, [policy.encode(p.prompt) for p in some], config.samples, seeds=seeds, **settings)
        rows += [row for p, group in zip(some, groups, strict=True) for row in _verified(policy, task, p, group)]
        bar.update(len(some))
    return pd.DataFrame(rows, columns=COLUMNS)


def seed_of(*parts) -> int:
    """A seed that belongs to a seed, a name, a step ...; 63 bits, the same on every machine."""
    return int(digest(*parts), 16) >> 1


def _verified(policy, task: Task, problem: Problem, group: list[Completion]) -> Iterator[tuple]:
    prompt = policy.render(problem.prompt)
    texts = [policy.decode(c.token_ids) for c in group]
    verdicts = task.verify_all((problem, text) for text in texts)
    for i, (c, text, v) in enumerate(zip(group, texts, verdicts, strict=True)):
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
class PartitionConfig:
    """Switches of the partition. The comment behind a field is its help on the command line."""

    threshold: int = 6  # correct samples that put a problem into D_pef
    keep_unsolved: bool = True  # explore the unsolved problems together with D_exp
    one_per_problem: bool = False  # rehearse the first correct answer of a problem only, not all of them
    rehearse_exploration: bool = False  # rehearse the correct answers to problems of D_exp too
    balance: bool = False  # rehearse every problem equally often: its correct answers in turn until there are K of them
    rehearse_wrong: bool = False  # rehearse wrong answers too: all that the reference said
    explore_at_most: int | None = None  # explore only problems with at most so many correct samples; None: all of D_exp
    fresh_draw: int = 0  # rehearse so many answers per problem that are drawn after the split; 0: those that split

    def __post_init__(self):
        if self.fresh_draw < 0:
            raise ValueError(f"fresh_draw is a number of answers per problem, 0 for none; got {self.fresh_draw}")
        if self.explore_at_most is not None and not (not self.keep_unsolved) <= self.explore_at_most < self.threshold:
            raise ValueError(
                f"explore_at_most = {self.explore_at_most} leaves no choice: expected a number of correct samples below the "
                f"threshold {self.threshold} and at least 0, or 1 where the unsolved are dropped; None explores all of D_exp"
            )
        if self.balance and self.one_per_problem:
            raise ValueError(
                "balance and one_per_problem are both on, but one answer per problem is equally often already, and balance "
                "repeats all of a problem's correct answers: switch one of the two off"
            )


@dataclass(frozen=True)
class Partition:
    """Three disjoint buckets of problem ids, and the rehearsal buffer.

    `perfect` is D_pef (at least `threshold` correct), `exploration` is D_exp (some correct, fewer than the threshold),
    `unsolved` none correct. `rehearsal` holds reference completions, as rows of the rollouts: correct ones, unless
    `rehearse_wrong`. The switches are those given to `partition`; `unexplored` are the problems of D_exp that
    `explore_at_most` leaves out.
    """

    perfect: tuple
    exploration: tuple
    unsolved: tuple
    threshold: int
    rehearsal: pd.DataFrame
    keep_unsolved: bool = True
    one_per_problem: bool = False
    rehearse_exploration: bool = False
    balance: bool = False
    rehearse_wrong: bool = False
    explore_at_most: int | None = None
    fresh_draw: int = 0
    unexplored: tuple = ()

    @property
    def rehearsed(self) -> tuple:
        """Ids of the problems whose reference answers are rehearsed, as far as they have any that are wanted."""
        others = self.exploration + (self.unsolved if self.keep_unsolved else ())
        return self.perfect + (others if self.rehearse_exploration else ())

    @property
    def explored(self) -> tuple:
        """Ids of the problems for reinforcement learning: D_exp, and the unsolved ones unless they are dropped."""
        left_out = set(self.unexplored)
        return tuple(i for i in self.exploration if i not in left_out) + (self.unsolved if self.keep_unsolved else ())

    def summary(self) -> pd.DataFrame:
        """Table: bucket, problems, share, use in training, and completions in the rehearsal buffer."""
        buckets = {
            "D_pef (near-perfect)": self.perfect,
            "D_exp (exploration)": self.exploration,
            "unsolved": self.unsolved,
        }
        explored = "explored" if self.explore_at_most is None else f"explored up to {self.explore_at_most} correct"
        uses = ["rehearsed", explored + " and rehearsed" * self.rehearse_exploration]
        uses += ["explored" if self.keep_unsolved else "dropped"]
        uses[2] += " and rehearsed" * (self.rehearse_exploration and self.rehearse_wrong and self.keep_unsolved)
        table = pd.DataFrame({"bucket": list(buckets), "problems": [len(ids) for ids in buckets.values()]})
        table["share"] = table["problems"] / max(1, table["problems"].sum())
        rows = [self.rehearsal["problem_id"].isin(ids) for ids in buckets.values()]
        return table.assign(use=uses, rehearsal=[int(r.sum()) for r in rows])


def partition(
    rollouts: pd.DataFrame,
    threshold: int = 6,
    *,
    keep_unsolved: bool = True,
    one_per_problem: bool = False,
    rehearse_exploration: bool = False,
    balance: bool = False,
    rehearse_wrong: bool = False,
    explore_at_most: int | None = None,
) -> Partition:
    """Split problems by how many of their K reference samples are correct.

    Args:
        rollouts: from `sample` or `load`.
        threshold: correct samples that put a problem into D_pef (release: 6 of 8 in its comments, 4 of 4 in its script).
        keep_unsolved: whether problems without a correct sample are explored together with D_exp, or dropped.
        one_per_problem: rehearse one correct answer of a problem (the first drawn), as the release does, instead of all.
        rehearse_exploration: rehearse correct answers to problems of D_exp too, not of D_pef alone.
        balance: rehearse every problem equally often. The buffer repeats its correct answers in turn (first, second, third,
            first, ...) until they are K, the most samples that a problem has; so an answer weighs about K/c times as much,
            c the problem's correct answers. Not in the paper: it rehearses more what the reference seldom gets right.
        rehearse_wrong: rehearse wrong answers too. With `rehearse_exploration` the buffer is then all that the reference said, of
            the unsolved problems too unless they are dropped, filtered by no verdict: E[u] over it is 1. Not in the paper,
            where the buffer teaches right answers again; here it holds the policy to the reference whatever that said.
        explore_at_most: explore only problems with at most so many correct samples, below the threshold; the others of D_exp
            are left out, and D_pef is explored by no method. Not in the paper: training on what the reference seldom or
            never solved, and not on what it solves already.

    Raises:
        ValueError: threshold < 1, a problem has fewer samples than the threshold (K < threshold), both `balance` and
            `one_per_problem`, or an `explore_at_most` that is not below the threshold or explores nothing.
    """
    switches = PartitionConfig(
        threshold, keep_unsolved, one_per_problem, rehearse_exploration, balance, rehearse_wrong, explore_at_most
    )
    table = counts(rollouts)
    split, ids = partition_counts(table["n"], table["c"], threshold), table["problem_id"].to_numpy()
    buckets = (split.perfect, split.exploration, split.unsolved)
    perfect, exploration, unsolved = (tuple(ids[list(places)]) for places in buckets)
    easy = set(ids[table["c"] > (threshold if explore_at_most is None else explore_at_most)])
    unexplored = tuple(i for i in exploration if i in easy)
    parts = Partition(perfect, exploration, unsolved, rehearsal=rollouts, unexplored=unexplored, **asdict(switches))
    return replace(parts, rehearsal=_rehearsal(rollouts, parts))


def _rehearsal(rollouts: pd.DataFrame, parts: Partition) -> pd.DataFrame:
    """Those of the `rollouts` that are rehearsed, by the switches of `parts`."""
    wanted = rollouts["correct"].astype(bool) | parts.rehearse_wrong
    rehearsal = rollouts[wanted & rollouts["problem_id"].isin(parts.rehearsed)]
    if parts.one_per_problem:
        rehearsal = rehearsal.drop_duplicates("problem_id")
    rehearsal = rehearsal.reset_index(drop=True)
    if parts.balance:
        groups = (group.index for _, group in rehearsal.groupby("problem_id", sort=False))
        rows = [row for group in groups for row in np.resize(group, counts(rollouts)["n"].max())]
        rehearsal = rehearsal.iloc[rows].reset_index(drop=True)
    return rehearsal


def draw_again(
    policy,
    task: Task,
    problems: Sequence[Problem],
    parts: Partition,
    samples: int = 1,
    config: PresampleConfig | None = None,
    out: str | Path | None = None,
    progress: bool | str = True,
) -> Partition:
    """`parts` with a rehearsal buffer that is drawn after the split, wrong answers dropped: the release does so, with one draw.

    The draws that put a problem into D_pef were lucky on average, and would flatter it as the buffer, too: a problem that is
    solved every other time gets there with 6 of 8 right, and counts six times. Of fresh draws it has four in expectation. In
    numbers: the mean of u [right] over fresh draws is the policy's probability of a right answer; over those that selected it
    is that times E[c | c >= threshold] / E[c].

    Args:
        policy: the reference that was sampled. task, problems: as given to `sample`.
        parts: the split; its switches hold for the new answers as well.
        samples: draws per problem whose answers are rehearsed.
        config: how the split's answers were drawn; None: the defaults. Its `samples` is replaced, and its `seed` by another.
        out: the folder of the split's rollouts, None for none: the draws have a folder below it, by their number and the
            problems, and a killed draw goes on there.
        progress: as for `sample`.

    Raises:
        ValueError: fewer than one sample, a problem of the split that is not in `problems`, and what `sample` raises.
    """
    config, by_id = config or PresampleConfig(), {p.id: p for p in problems}
    lacking = [i for i in parts.rehearsed if i not in by_id]
    if lacking or samples < 1:
        raise ValueError(
            f"a fresh draw needs at least 1 sample and every problem that is rehearsed; got samples = {samples}, and "
            f"{len(lacking)} problems that are not in `problems`, such as {lacking[:1]}: pass the problems that were pre-sampled"
        )
    again = replace(config, samples=samples, seed=seed_of(config.seed, "fresh"))
    if parts.rehearsed:
        folder = out and Path(out) / f"fresh-{samples}-{digest(list(parts.rehearsed))}"
        label = progress and f"drawing {samples} afresh"
        asked = [by_id[i] for i in parts.rehearsed]
        done = folder and (folder / MANIFEST).is_file() and not missing(folder)  # then whichever sampler drew them
        rollouts = load(folder) if done else sample(policy, task, asked, out=folder, progress=label, **asdict(again))
        parts = replace(parts, rehearsal=_rehearsal(rollouts, parts))
    return replace(parts, fresh_draw=samples)


def config_of(folder: str | Path) -> PresampleConfig:
    """The settings that the rollouts in `folder` were drawn with."""
    told = read_manifest(folder)
    return PresampleConfig(**{name: told[name] for name in PresampleConfig.__dataclass_fields__})


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
