"""Pre-sampling: the table, the three buckets by hand, and folders that survive a kill and refuse strangers."""

import copy
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dphrl_lite import cli, models, presampling
from dphrl_lite.engine import shards
from dphrl_lite.engine.checkpoint import MANIFEST, OtherRunError, claim
from dphrl_lite.lab import worlds
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.sampling import generate
from dphrl_lite.tasks import Problem, Task, Verdict, get
from dphrl_lite.tasks.base import NO_ANSWER

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import kills

SETTINGS = {"samples": 4, "problems_per_shard": 4, "progress": False}


@pytest.fixture(scope="module")
def ten(few_problems):
    return few_problems[:6] + few_problems[-4:]


@pytest.fixture(scope="module")
def whole(tiny, countdown, ten):
    """The run that nothing interrupts."""
    return presampling.sample(tiny, countdown, ten, **SETTINGS)


def as_lists(table):
    """With arrays as lists, so that tables can be compared."""
    arrays = ["token_ids", "logp", "logp_sampling"]
    return table.assign(**{name: [x.tolist() for x in table[name]] for name in arrays})


def assert_same(a, b):
    pd.testing.assert_frame_equal(as_lists(a), as_lists(b))


def everything_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_holds_what_the_design_says(whole, ten):
    public = {"problem_id", "sample", "completion", "token_ids", "logp", "logp_sampling", "correct", "distinct"}
    assert public <= set(whole.columns)
    assert list(whole.columns) == presampling.COLUMNS
    assert whole["problem_id"].tolist() == [p.id for p in ten for _ in range(4)]
    assert whole["sample"].tolist() == [0, 1, 2, 3] * len(ten)


def test_each_row_is_its_completion_its_verdict_and_its_logps(whole, ten, tiny, countdown):
    by_id = {p.id: p for p in ten}
    for row in whole.itertuples():
        verdict = countdown.verify(by_id[row.problem_id], row.completion)
        distinct = None if pd.isna(row.distinct) else row.distinct
        assert (row.correct, distinct, row.reason) == (verdict.correct, verdict.distinct, verdict.reason)
        assert row.completion == tiny.tokenizer.decode(row.token_ids, skip_special_tokens=True)
        assert row.prompt == by_id[row.problem_id].prompt
        assert len(row.token_ids) == len(row.logp) == len(row.logp_sampling)
        assert (row.logp <= 0).all()


def test_top_p_shows_in_logp_sampling_alone(tiny, countdown, ten):
    table = presampling.sample(tiny, countdown, ten, **SETTINGS, top_p=0.7)
    logp, drawn = np.concatenate(table["logp"].tolist()), np.concatenate(table["logp_sampling"].tolist())
    assert (drawn >= logp - 1e-6).all()
    assert (drawn > logp + 0.05).any()


def test_a_folder_gives_the_same_table_as_memory(tiny, countdown, ten, whole, tmp_path):
    assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / "run"), whole)
    assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / "run"), whole)  # and read back


def by_problem(table):
    """Rows as a dict that knows no order, exact to the last bit of each log-prob."""
    exact = as_lists(table)
    return {(row.problem_id, row.sample): row[1:] for row in exact.itertuples()}


@pytest.mark.parametrize("order", ["as given", "reversed", "shuffled"])
@pytest.mark.parametrize("per_shard", [1, 3, 64])
def test_neither_shards_nor_order_change_a_bit(tiny, countdown, ten, whole, order, per_shard):
    turned = list(np.random.default_rng(0).permutation(10)) if order == "shuffled" else range(10)
    problems = [ten[i] for i in turned][:: -1 if order == "reversed" else 1]
    table = presampling.sample(tiny, countdown, problems, samples=4, problems_per_shard=per_shard, progress=False)
    assert table["problem_id"].tolist() == [p.id for p in problems for _ in range(4)]
    assert {key: row[1:] for key, row in by_problem(table).items()} == {
        k: row[1:] for k, row in by_problem(whole).items()
    }


@pytest.mark.parametrize("chosen", [[3], [0, 9], [9, 1, 5]])
def test_which_other_problems_are_there_changes_no_bit(tiny, countdown, ten, whole, chosen):
    table = presampling.sample(tiny, countdown, [ten[i] for i in chosen], samples=4, progress=False)
    everything = {key: row[1:] for key, row in by_problem(whole).items()}
    assert {key: row[1:] for key, row in by_problem(table).items()}.items() <= everything.items()


def test_several_problems_at_once_draw_the_same_up_to_rounding(tiny, countdown, ten, whole):
    table = presampling.sample(tiny, countdown, ten, **SETTINGS, problems_per_batch=3)
    assert table["completion"].tolist() == whole["completion"].tolist()
    assert np.allclose(np.concatenate(table["logp"].tolist()), np.concatenate(whole["logp"].tolist()), atol=1e-5)


@pytest.fixture
def chatty(tiny):
    """The tiny policy with a chat template, written with the few words that it knows."""
    policy = dataclasses.replace(tiny, tokenizer=copy.deepcopy(tiny.tokenizer))
    policy.tokenizer.chat_template = "{% for m in messages %}sort 7 = {{ m['content'] }}{% endfor %}"
    return policy


def test_the_prompt_is_stored_as_the_model_saw_it(tiny, chatty, countdown, ten, whole, tmp_path):
    table = presampling.sample(chatty, countdown, ten, **SETTINGS, out=tmp_path)
    assert table["prompt"].tolist() == [f"sort 7 = {p.prompt}" for p in ten for _ in range(4)]
    seen = [tiny.tokenizer(prompt)["input_ids"] for prompt in table["prompt"][::4]]
    assert seen == [chatty.encode(p.prompt) for p in ten]
    assert table["completion"].tolist() != whole["completion"].tolist()
    with pytest.raises(OtherRunError, match="prompts: there"):
        presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)


def test_seeds_draw_differently(tiny, countdown, ten, whole):
    other = presampling.sample(tiny, countdown, ten, **SETTINGS, seed=1)
    assert other["completion"].tolist() != whole["completion"].tolist()


def test_max_new_tokens_cuts(tiny, countdown, ten):
    table = presampling.sample(tiny, countdown, ten, **SETTINGS, max_new_tokens=3)
    assert table["token_ids"].map(len).max() == 3


@pytest.mark.parametrize(("edit", "message"), [
    (lambda ps: [], "at least one"),
    (lambda ps: [*ps, ps[0]], "more than once"),
    (lambda ps: [*ps, Problem("bare", "sort 17 =", "")], "'bare' has no answer"),
    (lambda ps: [*ps, Problem("bare", "sort 17 =", None)], "'bare' has no answer"),
    (lambda ps: [*ps, Problem("late", "sort 17 =", "many")], "'late': the answer must be a number"),
])  # fmt: skip
def test_unusable_problems_are_refused_before_anything_is_done(tiny, countdown, ten, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        presampling.sample(tiny, countdown, edit(ten), **SETTINGS, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- folders ---------------------------------------------------------------------------------------------------------


class Interrupted(Task):
    """A task that is stopped by Ctrl-C after some verifications."""

    def __init__(self, task, after):
        self.task, self.left, self.name = task, after, task.name

    def check(self, problem, completion):
        self.left -= bool(completion)  # without one, only the problem is checked
        if self.left < 0:
            raise KeyboardInterrupt
        return self.task.check(problem, completion)


@pytest.mark.parametrize(("shards", "more"), [(0, 0), (0, 5), (1, 0), (1, 1), (2, 6)])
def test_a_killed_run_goes_on_where_it_was(tiny, countdown, ten, whole, tmp_path, shards, more):
    different = whole[["problem_id", "completion"]].drop_duplicates()  # what comes twice is judged once
    judged = different.groupby(different.index // 16).size().tolist()  # in each shard of 4 problems with 4 samples
    assert more < judged[shards]
    after = sum(judged[:shards]) + more
    with pytest.raises(KeyboardInterrupt):
        presampling.sample(tiny, Interrupted(countdown, after), ten, **SETTINGS, out=tmp_path)
    written = {name: data for name, data in everything_in(tmp_path).items() if not name.startswith(".")}
    assert len(written) == 1 + shards  # the manifest and the whole shards
    still_needed = Interrupted(countdown, sum(judged[shards:]))
    assert_same(presampling.sample(tiny, still_needed, ten, **SETTINGS, out=tmp_path), whole)
    assert still_needed.left == 0  # whole shards were read, not drawn again
    assert written.items() <= everything_in(tmp_path).items()


def test_a_lost_shard_is_drawn_again_to_the_byte(tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    before = everything_in(tmp_path)
    (tmp_path / "shard-00001.parquet").unlink()
    (tmp_path / ".shard-00001.parquet.partial").write_bytes(b"half a shard")
    assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path), whole)
    assert everything_in(tmp_path) == before


def test_a_gold_query_that_fails_is_found_before_anything_is_drawn(tiny, tmp_path):
    sql = get("sql", databases=Path(__file__).parents[1] / "data/sql/databases")
    golds = ["SELECT 1", "SELECT * FROM nowhere"]
    problems = [Problem(gold, "sort 17 =", gold, {"db_id": "school"}) for gold in golds]
    with pytest.raises(ValueError, match=r"gold query of problem .*no such table: nowhere"):
        presampling.sample(tiny, sql, problems, samples=1, problems_per_shard=1, progress=False, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_is_named(tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    path = tmp_path / "shard-00000.parquet"
    written = path.read_bytes()
    for damaged in (written[:100], written[:100] + bytes(400) + written[500:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shard-00000\.parquet is damaged .*delete it"):
            presampling.load(tmp_path)
    path.unlink()
    assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path), whole)


def test_a_kill_while_claiming_the_folder_does_no_harm(tiny, countdown, ten, whole, tmp_path):
    (tmp_path / ".manifest.json.partial").write_text('{"kind": "presa')
    assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path), whole)


@pytest.mark.parametrize("change", [
    {"samples": 5}, {"temperature": 0.9}, {"top_p": 0.95}, {"seed": 1}, {"max_new_tokens": 5}, {"problems_per_shard": 5},
])  # fmt: skip
def test_another_runs_folder_is_left_as_it_is(tiny, countdown, ten, tmp_path, change):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    before = everything_in(tmp_path)
    with pytest.raises(OtherRunError, match="nothing was overwritten") as error:
        presampling.sample(tiny, countdown, ten, **SETTINGS | change, out=tmp_path)
    (value,) = change.values()
    assert f"asked for {value!r}" in str(error.value)
    assert everything_in(tmp_path) == before


def test_a_call_that_fails_leaves_the_folder_free_for_the_right_one(tiny, countdown, ten, tmp_path):
    unknown_words = [Problem("x", "banana", "1", {"numbers": [1]})]
    wrong = [(ten, {"samples": 0}), (ten, {"top_p": 2.0}), (unknown_words, {}), (ten, {"problems_per_shard": 0})]
    wrong += [(ten, {"max_new_tokens": 0})]
    for problems, change in wrong:
        with pytest.raises(ValueError, match=r"needs|cannot write|at least 1"):
            presampling.sample(tiny, countdown, problems, **SETTINGS | change, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / "run")


def test_other_rules_of_the_verifier_are_another_run(tiny, ten, tmp_path):
    task = get("math", time_limit=1)
    presampling.sample(tiny, task, ten[:1], **SETTINGS, out=tmp_path)
    with pytest.raises(OtherRunError, match="time_limit: there 1, asked for 2"):
        presampling.sample(tiny, get("math", time_limit=2), ten[:1], **SETTINGS, out=tmp_path)


def test_other_problems_or_other_weights_are_another_run(tiny, countdown, ten, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    with pytest.raises(OtherRunError, match="problems: there"):
        presampling.sample(tiny, countdown, ten[:-1], **SETTINGS, out=tmp_path)
    same_words = [dataclasses.replace(p, meta={**p.meta, "db_id": "another"}) for p in ten]
    with pytest.raises(OtherRunError, match="problems: there"):
        presampling.sample(tiny, countdown, same_words, **SETTINGS, out=tmp_path)
    other = tiny.copy()
    next(other.model.parameters()).data[0, 0] += 1
    with pytest.raises(OtherRunError, match="weights: there"):
        presampling.sample(other, countdown, ten, **SETTINGS, out=tmp_path)


def test_a_folder_of_somebody_else_is_refused(tiny, countdown, ten, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OtherRunError, match="not a run of this kit"):
        presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    assert everything_in(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(OtherRunError, match="not a run of this kit"):
        presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / "thesis.tex")


def test_the_manifest_says_what_decided_the_run(tiny, countdown, ten, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, temperature=0.9, top_p=0.8, out=tmp_path)
    manifest = presampling.read_manifest(tmp_path)
    told = {"model": "tiny", "task": "countdown", "seed": 0, "samples": 4, "temperature": 0.9, "top_p": 0.8}
    assert told.items() <= manifest.items()
    assert (manifest["max_new_tokens"], manifest["problem_count"], manifest["problems_per_shard"]) == (40, 10, 4)
    assert {"weights", "tokenizer", "problems", "prompts"} <= manifest.keys()
    assert {"dphrl-lite", "torch", "transformers", "python"} == manifest["versions"].keys()


def test_totals_come_when_all_is_there(tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path, shard=(0, 2))
    assert not (tmp_path / shards.TOTALS).exists()
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path, shard=(1, 2))
    tokens = sum(map(len, whole["token_ids"]))
    told = {"problems": 10, "completions": 40, "tokens": tokens, "correct": int(whole["correct"].sum())}
    assert json.loads((tmp_path / shards.TOTALS).read_text()) == told


def test_another_tokenizer_is_another_run(tiny, countdown, ten, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    other = dataclasses.replace(tiny, tokenizer=copy.deepcopy(tiny.tokenizer))
    other.tokenizer.add_tokens(["banana"])
    with pytest.raises(OtherRunError, match="tokenizer: there"):
        presampling.sample(other, countdown, ten, **SETTINGS, out=tmp_path)


def test_other_versions_are_said_and_lock_nobody_out(tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    (tmp_path / "shard-00001.parquet").unlink()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="torch: there '1.0'"):
        assert_same(presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path), whole)
    assert presampling.read_manifest(tmp_path)["versions"]["torch"] == "1.0"


def test_a_finished_folder_is_read_without_a_model(tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path)
    assert_same(presampling.load(tmp_path), whole)
    (tmp_path / "shard-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.parquet \(problems 4 to 7\)"):
        presampling.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no pre-sampling"):
        presampling.load(tmp_path / "nowhere")


# ---- shares of a cluster ---------------------------------------------------------------------------------------------


def draw_share(out, problems, share):
    """What one process of a cluster does."""
    warnings.simplefilter("error")
    presampling.sample(models.load("tiny"), get("countdown"), problems, **SETTINGS, out=out, shard=share)


def shards_in(folder):
    return {name: data for name, data in everything_in(folder).items() if not name.startswith(".")}


@pytest.fixture(scope="module")
def processes():
    """Fresh processes that start fast: forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(kills.PRELOAD)
    return context


def test_three_processes_in_one_folder_make_the_whole(processes, tiny, countdown, ten, whole, tmp_path):
    presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / "alone")
    shares = [processes.Process(target=draw_share, args=(tmp_path / "shared", ten, (i, 3))) for i in (2, 0, 1)]
    for process in shares:
        process.start()
    for process in shares:
        process.join(120)
    assert [process.exitcode for process in shares] == [0, 0, 0]
    assert shards_in(tmp_path / "shared") == shards_in(tmp_path / "alone")
    assert_same(presampling.load(tmp_path / "shared"), whole)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1::2])
def test_shares_in_any_order_and_in_folders_of_their_own(tiny, countdown, ten, whole, tmp_path, order):
    merged = tmp_path / "merged"
    merged.mkdir()
    for i in order:
        table = presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path / str(i), shard=(i, 3))
        assert table["problem_id"].tolist() == [p.id for p in ten[4 * i : 4 * i + 4] for _ in range(4)]
        for path in (tmp_path / str(i)).iterdir():
            (merged / path.name).write_bytes(path.read_bytes())
        if i != order[-1]:
            with pytest.raises(FileNotFoundError, match=f"shard-0000{order[-1]}"):
                presampling.load(merged)
    assert_same(presampling.load(merged), whole)


def test_of_many_that_claim_a_folder_at_once_one_kind_wins(tmp_path):
    for i in range(20):

        def begin(seed, folder=tmp_path / str(i)):
            try:
                return claim(folder, {"seed": seed}) and seed
            except OtherRunError:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = set(pool.map(begin, [0, 1] * 4)) - {None}
        assert won == {json.loads((tmp_path / str(i) / MANIFEST).read_text())["seed"]}
        assert [p.name for p in (tmp_path / str(i)).iterdir()] == [MANIFEST]


@pytest.mark.parametrize(("share", "out"), [((3, 3), "run"), ((-1, 3), "run"), ((0, 3), None)])
def test_a_share_that_cannot_be_is_refused(tiny, countdown, ten, tmp_path, share, out):
    with pytest.raises(ValueError, match="0 <= i < n"):
        presampling.sample(tiny, countdown, ten, **SETTINGS, out=out and tmp_path / out, shard=share)
    assert not (tmp_path / "run").exists()


def test_a_share_of_more_processes_than_shards_is_empty(tiny, countdown, ten, tmp_path):
    table = presampling.sample(tiny, countdown, ten, **SETTINGS, out=tmp_path, shard=(3, 4))
    assert (len(table), list(table.columns)) == (0, presampling.COLUMNS)


# ---- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is for POSIX systems")
def test_killed_anywhere_it_goes_on_to_the_same_bytes():
    rows = kills.trials(n=17, at_random=3)
    assert len(rows) == 20
    assert all(row["equal"] for row in rows), rows
    assert max(row["rows_again"] for row in rows) <= kills.PER_SHARD * kills.SAMPLES
    moments = " ".join(row["moment"] for row in rows)
    assert "inside the write of manifest.json" in moments
    assert "inside the write of shard" in moments


# ---- the partition ---------------------------------------------------------------------------------------------------


def table_of(counts, k=8):
    """Rollouts in which problem i has counts[i] of k correct, the right ones last."""
    rows = [(f"p{i}", s, f"{i}/{s}", s >= k - c, f"d{s % 2}") for i, c in enumerate(counts) for s in range(k)]
    return pd.DataFrame(rows, columns=["problem_id", "sample", "completion", "correct", "distinct"])


def test_partition_by_hand():
    parts = presampling.partition(table_of([8, 0, 5, 6, 1, 7]), threshold=6)
    assert parts.perfect == ("p0", "p3", "p5")
    assert parts.exploration == ("p2", "p4")
    assert parts.unsolved == ("p1",)
    kept = [f"0/{s}" for s in range(8)] + [f"3/{s}" for s in range(2, 8)] + [f"5/{s}" for s in range(1, 8)]
    assert parts.rehearsal["completion"].tolist() == kept
    assert parts.rehearsal["correct"].all()
    assert parts.summary()["problems"].tolist() == [3, 2, 1]
    assert parts.summary()["share"].tolist() == [0.5, pytest.approx(1 / 3), pytest.approx(1 / 6)]


@pytest.mark.parametrize("threshold", range(1, 9))
def test_buckets_are_disjoint_and_complete_at_every_threshold(threshold):
    counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0]
    parts = presampling.partition(table_of(counts), threshold)
    assert sorted(parts.perfect + parts.exploration + parts.unsolved) == sorted(f"p{i}" for i in range(len(counts)))
    assert len(parts.perfect) == sum(c >= threshold for c in counts)
    assert len(parts.unsolved) == 2
    assert set(parts.rehearsal["problem_id"]) == set(parts.perfect)
    assert len(parts.rehearsal) == sum(c for c in counts if c >= threshold)


def test_the_unsolved_are_kept_or_dropped():
    kept, dropped = (presampling.partition(table_of([8, 0, 5]), keep_unsolved=keep) for keep in (True, False))
    assert kept.explored == ("p2", "p1")
    assert dropped.explored == ("p2",)
    assert dropped.unsolved == kept.unsolved == ("p1",)
    assert dropped.summary()["use"].tolist() == ["rehearsed", "explored", "dropped"]


@pytest.mark.parametrize(("switches", "kept"), [
    ({}, ["0/2", "0/3", "0/4", "0/5", "0/6", "0/7"]),
    ({"one_per_problem": True}, ["0/2"]),
    ({"rehearse_exploration": True}, ["0/2", "0/3", "0/4", "0/5", "0/6", "0/7", "2/6", "2/7"]),
    ({"one_per_problem": True, "rehearse_exploration": True}, ["0/2", "2/6"]),
    ({"balance": True}, ["0/2", "0/3", "0/4", "0/5", "0/6", "0/7", "0/2", "0/3"]),
    ({"balance": True, "rehearse_exploration": True},
     ["0/2", "0/3", "0/4", "0/5", "0/6", "0/7", "0/2", "0/3", *["2/6", "2/7"] * 4]),
    ({"rehearse_wrong": True}, [f"0/{s}" for s in range(8)]),
    ({"rehearse_wrong": True, "one_per_problem": True}, ["0/0"]),
    ({"rehearse_wrong": True, "rehearse_exploration": True}, [f"{i}/{s}" for i in range(3) for s in range(8)]),
    ({"rehearse_wrong": True, "rehearse_exploration": True, "keep_unsolved": False},
     [f"{i}/{s}" for i in (0, 2) for s in range(8)]),
])  # fmt: skip
def test_what_is_rehearsed_is_switched(switches, kept):
    parts = presampling.partition(table_of([6, 0, 2]), threshold=6, **switches)
    assert parts.rehearsal["completion"].tolist() == kept
    assert parts.summary()["rehearsal"].sum() == len(kept)
    assert {name: getattr(parts, name) for name in switches} == switches
    assert (parts.perfect, parts.exploration, parts.unsolved) == (("p0",), ("p2",), ("p1",))


@pytest.mark.parametrize(("most", "explored"), [(None, "p1 p2 p4 p3"), (5, "p1 p2 p4 p3"), (2, "p1 p4 p3"), (0, "p3")])
def test_what_is_explored_is_switched(most, explored):
    parts = presampling.partition(table_of([6, 2, 5, 0, 1]), threshold=6, explore_at_most=most)
    assert parts.explored == tuple(explored.split())
    buckets = presampling.partition(table_of([6, 2, 5, 0, 1]), threshold=6)
    assert (parts.perfect, parts.exploration, parts.unsolved) == (
        buckets.perfect,
        buckets.exploration,
        buckets.unsolved,
    )
    assert parts.rehearsal.equals(buckets.rehearsal)
    assert parts.summary()["use"][1] == ("explored" if most is None else f"explored up to {most} correct")


@pytest.mark.parametrize("settings", [{"explore_at_most": 6}, {"explore_at_most": -1},
                                      {"explore_at_most": 0, "keep_unsolved": False}])  # fmt: skip
def test_a_bound_that_leaves_nothing_or_everything_to_explore_is_refused(settings):
    with pytest.raises(ValueError, match=f"explore_at_most = {settings['explore_at_most']} leaves no choice: expected"):
        presampling.partition(table_of([6, 0, 2]), threshold=6, **settings)


def test_a_balanced_buffer_holds_every_problem_equally_often_and_nothing_but_its_right_answers(rollouts):
    plain, balanced = (presampling.partition(rollouts, 3, balance=on) for on in (False, True))
    assert plain.rehearsal["problem_id"].nunique() > 3
    assert plain.rehearsal["problem_id"].value_counts().nunique() > 1
    assert balanced.rehearsal["problem_id"].value_counts().eq(8).all()
    assert balanced.rehearsal["problem_id"].unique().tolist() == plain.rehearsal["problem_id"].unique().tolist()
    often = balanced.rehearsal.value_counts(["problem_id", "sample"])
    assert set(often.index) == set(zip(plain.rehearsal["problem_id"], plain.rehearsal["sample"], strict=True))
    assert (often.groupby("problem_id").max() - often.groupby("problem_id").min() <= 1).all()
    assert_same(balanced.rehearsal.drop_duplicates(["problem_id", "sample"]).reset_index(drop=True), plain.rehearsal)


def test_problems_with_different_numbers_of_samples_are_balanced_to_the_most():
    table = pd.concat([table_of([8]), table_of([0, 3], k=4).iloc[4:]])
    parts = presampling.partition(table, 2, balance=True)
    assert parts.rehearsal["problem_id"].tolist() == ["p0"] * 8 + ["p1"] * 8


def test_nothing_to_rehearse_is_balanced_too():
    assert len(presampling.partition(table_of([0, 2]), 6, balance=True).rehearsal) == 0


def test_balance_of_one_answer_per_problem_is_refused(rollouts):
    for make in (presampling.PartitionConfig, lambda **on: presampling.partition(rollouts, 6, **on)):
        with pytest.raises(ValueError, match=r"balance and one_per_problem are both on.* switch one"):
            make(balance=True, one_per_problem=True)


@pytest.fixture
def enumerable(monkeypatch):
    """200 problems whose six answers have known probabilities, p of a policy and q of the reference, the first three right;
    drawn by `presampling.sample`, which asks no model here. Returns p and q `[problems, 6]`, and the problems."""
    known = [worlds.example(distance=0.5, seed=seed) for seed in range(200)]
    shift = torch.tensor([1.5, 1.5, 1.5, 0, 0, 0])  # so that some are solved often
    p, q = (torch.stack([(getattr(w, name) + shift).softmax(0) for w in known]) for name in ("policy", "reference"))
    problems = [Problem(f"p{i}", "", "1", {"row": i}) for i in range(200)]

    def draw(_policy, _task, asked, samples=8, seed=0, **_):
        rows = []
        for problem in asked:
            rng = np.random.default_rng([seed % 2**32, problem.meta["row"]])
            answers = rng.choice(6, samples, p=q[problem.meta["row"]].numpy())
            rows += [(problem.id, s, str(a), bool(a < 3), str(a)) for s, a in enumerate(answers)]
        return pd.DataFrame(rows, columns=["problem_id", "sample", "completion", "correct", "distinct"])

    monkeypatch.setattr(presampling, "sample", draw)
    return p, q, problems


def test_a_fresh_buffer_is_unbiased_where_the_draws_that_selected_flatter(enumerable):
    """Mean of u [right] over all draws to the problems of D_pef: the policy's probability of a right answer on fresh ones; that
    times E[c | c >= 6] / E[c] on those that selected, c binomial. Twenty splits."""
    p, q, problems = enumerable
    found, wanted = {"fresh": [], "selected": []}, {"fresh": [], "selected": []}
    c = torch.arange(9, dtype=torch.float64)
    for seed in range(20):
        config = PresampleConfig(seed=seed)
        parts = presampling.partition(presampling.sample(None, None, problems, seed=seed), threshold=6)
        again = presampling.draw_again(None, None, problems, parts, 8, config)
        assert (again.perfect, again.exploration, again.unsolved) == (parts.perfect, parts.exploration, parts.unsolved)
        chosen = [int(name[1:]) for name in parts.perfect]
        right = q[chosen][:, :3].sum(1)
        chance = torch.distributions.Binomial(8, right[:, None]).log_prob(c).exp()
        luck = (chance[:, 6:] * c[6:]).sum(1) / chance[:, 6:].sum(1) / (8 * right)
        truth = p[chosen][:, :3].sum(1)
        for name, buffer, expected in (("fresh", again, truth), ("selected", parts, truth * luck)):
            rows = [(int(i[1:]), int(a)) for i, a in buffer.rehearsal[["problem_id", "completion"]].to_numpy()]
            found[name].append(sum((p[i, a] / q[i, a]).item() for i, a in rows) / (8 * len(chosen)))
            wanted[name].append(expected.mean().item())
    for name in found:
        assert np.mean(found[name]) == pytest.approx(np.mean(wanted[name]), abs=0.01), name
    assert np.mean(found["selected"]) > np.mean(found["fresh"]) + 0.03


def test_a_fresh_draw_is_of_the_reference_and_goes_on(tiny, countdown, few_problems, rollouts, parts, tmp_path):
    given = (tiny, countdown, few_problems, parts, 2, PresampleConfig(), tmp_path)
    again = presampling.draw_again(*given, progress=False)
    assert again.rehearsal["correct"].all() and set(again.rehearsal["problem_id"]) <= set(parts.perfect)
    assert again.rehearsal.groupby("problem_id").size().max() <= 2 and again.fresh_draw == 2
    first = rollouts[rollouts["sample"] < 2].set_index(["problem_id", "sample"])["completion"]
    drawn = again.rehearsal.set_index(["problem_id", "sample"])["completion"]
    assert (drawn != first[drawn.index]).any()  # not the same draws again
    assert presampling.draw_again(None, *given[1:], progress=False).rehearsal.equals(again.rehearsal)  # read, not drawn
    whole = presampling.draw_again(*given[:3], dataclasses.replace(parts, rehearse_wrong=True), 2, progress=False)
    assert len(whole.rehearsal) == 2 * len(parts.perfect)


def test_a_fresh_draw_without_its_problems_is_refused(tiny, countdown, few_problems, parts):
    with pytest.raises(ValueError, match="problems that are not in `problems`"):
        presampling.draw_again(tiny, countdown, few_problems[:1], parts)
    with pytest.raises(ValueError, match="samples = 0"):
        presampling.draw_again(tiny, countdown, few_problems, parts, 0)
    with pytest.raises(ValueError, match="fresh_draw is a number"):
        PartitionConfig(fresh_draw=-1)


def test_a_recipe_draws_the_buffer_afresh_and_trains_on_it(tmp_path, capsys):
    shared = ["--problems", "countdown:cd3", "--limit", "16", "--out", str(tmp_path), "--fresh_draw", "1"]
    assert cli.main(["presample", *shared, "--samples", "8"]) == 0
    (folder,) = (tmp_path / "presampling").glob("fresh-1-*")
    drawn = presampling.load(folder)
    assert drawn["problem_id"].is_unique and f"{int(drawn['correct'].sum())}" in capsys.readouterr().out
    train = [
        "--method",
        "dph-f",
        "--steps",
        "1",
        "--problems_per_step",
        "4",
        "--samples",
        "4",
        "--rehearsal_per_step",
        "4",
    ]
    assert cli.main(["train", *shared, *train]) == 0


def test_real_rollouts_keep_their_logps_in_rehearsal(rollouts, parts):
    assert len(parts.rehearsal) > 0
    kept = rollouts[rollouts["correct"] & rollouts["problem_id"].isin(parts.perfect)]
    assert_same(parts.rehearsal, kept.reset_index(drop=True))


@pytest.mark.parametrize("threshold", [0, -1, 9])
def test_a_threshold_that_cannot_be_is_refused(threshold):
    with pytest.raises(ValueError, match=r"K = 8 samples|at least 1"):
        presampling.partition(table_of([1, 8]), threshold)


def test_one_problem_with_too_few_samples_is_enough_to_refuse():
    with pytest.raises(ValueError, match="K = 4 samples"):
        presampling.partition(pd.concat([table_of([8]), table_of([0, 4], k=4).iloc[4:]]), 6)


def test_a_table_of_something_else_is_refused():
    with pytest.raises(ValueError, match="problem_id and correct"):
        presampling.partition(pd.DataFrame({"x": [1]}))


def test_counts_by_hand():
    counts = presampling.counts(table_of([8, 0, 1, 3]))
    assert counts["problem_id"].tolist() == ["p0", "p1", "p2", "p3"]
    assert counts["n"].tolist() == [8] * 4
    assert counts["c"].tolist() == [8, 0, 1, 3]
    assert counts["distinct"].tolist() == [2, 0, 1, 2]


def test_partition_counts_is_the_same_split():
    counts = [8, 0, 5, 6, 1, 7]
    parts = presampling.partition_counts(8, counts, threshold=6)
    assert (parts.perfect, parts.exploration, parts.unsolved) == ((0, 3, 5), (2, 4), (1,))
    assert presampling.partition_counts([8] * 6, counts, threshold=6).perfect == parts.perfect
    assert presampling.partition_counts(8, counts).threshold == 6
    assert len(parts.rehearsal) == 0


@pytest.mark.parametrize(("n", "c"), [(8, [9]), (8, [-1]), ([8, 4], [1, 5])])
def test_impossible_counts_are_refused(n, c):
    with pytest.raises(ValueError, match=r"0 <= c <= n|whole numbers"):
        presampling.partition_counts(n, c, threshold=2)


def test_partition_of_a_public_run(shared_data):
    by_problem = json.loads((shared_data / "rollouts/dsr_correct_of_8_by_epoch.json").read_text())
    first = [counts[0] for counts in by_problem.values()]
    parts = presampling.partition_counts(8, first, threshold=8)
    assert (len(parts.perfect), len(parts.unsolved), len(first)) == (92, 439, 1209)
    assert len(parts.exploration) == 1209 - 92 - 439
    assert all(first[i] == 8 for i in parts.perfect)


def test_a_problems_randomness_belongs_to_its_id(tiny, ten, whole):
    p = ten[3]
    (alone,) = generate(tiny, [tiny.encode(p.prompt)], 4, seeds=[presampling.seed_of(0, p.id)], max_new_tokens=40)
    rows = whole[whole["problem_id"] == p.id]
    assert [c.token_ids for c in alone] == [ids.tolist() for ids in rows["token_ids"]]


def test_a_damaged_manifest_is_named(tiny, countdown, few_problems, tmp_path):
    presampling.sample(tiny, countdown, few_problems, samples=2, out=tmp_path, progress=False)
    (tmp_path / "manifest.json").write_text('{"kind": "presam')
    for read in (presampling.load, lambda folder: presampling.sample(tiny, countdown, few_problems, 2, folder)):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged .* another folder"):
            read(tmp_path)


class Silent(Task):
    """Reads no answer to the problems whose ids it is given."""

    name = "silent"

    def __init__(self, unread):
        self.unread = unread

    def check(self, problem, completion):
        return Verdict(False, None, NO_ANSWER) if problem.id in self.unread else Verdict(False, "1", "wrong")


def test_answers_that_nobody_can_read_are_said(tiny, few_problems):
    four = few_problems[:4]
    ids = [p.id for p in four]
    with pytest.warns(UserWarning, match=r"in 75% of 8 completions no answer was found.*boxed"):
        most = presampling.sample(tiny, Silent(ids[:3]), four, samples=2, progress=False)
    with warnings.catch_warnings(action="error"):
        half = presampling.sample(tiny, Silent(ids[:2]), four, samples=2, progress=False)
    assert [(table["reason"] == NO_ANSWER).mean() for table in (most, half)] == [0.75, 0.5]
