"""The arithmetic of a step's cost, by hand."""

import re
from pathlib import Path

import pytest
import torch

from dphrl_lite import presampling
from dphrl_lite.scale import costs

BATCH = costs.Batch(problems=2, samples=4, prompt=10, completion=30, rehearsed=3)


def test_grpo_by_hand():
    parts = costs.flops("grpo", 7e9, BATCH, "full")
    assert parts["sampling"] == 2 * 7e9 * (2 * 10 + 2 * 4 * 30)
    assert parts["training"] == 6 * 7e9 * 2 * 4 * 40
    assert parts["rehearsal"] == parts["reference"] == 0


def test_dph_rehearses_and_asks_no_reference_and_reverse_kl_the_other_way_round():
    dph, rkl = costs.flops("dph-js", 1.0, BATCH), costs.flops("rkl", 1.0, BATCH)
    assert dph["rehearsal"] == 6 * 3 * 40 and dph["reference"] == 0
    assert rkl["reference"] == 2 * 8 * 40 and rkl["rehearsal"] == 0
    assert dph["sampling"] == rkl["sampling"] and dph["training"] == rkl["training"]


def test_the_definition_reads_the_stored_and_writes_trains_and_refers_fresh_answers():
    parts, dph = costs.flops("dph-js-definition", 1.0, BATCH), costs.flops("dph-js", 1.0, BATCH)
    assert parts["rehearsal"] == (2 + 6) * 3 * 40
    assert parts["reference"] == 2 * 3 * 40
    assert parts["sampling"] == dph["sampling"] + 2 * 3 * 40


def test_recomputation_costs_a_forward_pass_where_weights_are_trained():
    full, checkpointed = (costs.flops("grpo", 1.0, BATCH, kind)["training"] for kind in ("full", "full, checkpointed"))
    assert checkpointed / full == pytest.approx(8 / 6)
    assert costs.flops("grpo", 1.0, BATCH, "qlora")["training"] == full


def test_hours_at_two_shares_of_the_peak():
    spent = costs.hours({"sampling": 3.6e15, "training": 3.6e15}, peak=1e12, busy=0.5, busy_sampling=0.1)
    assert spent == pytest.approx({"sampling": 10.0, "training": 2.0})


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="unknown method 'ppo'"):
        costs.flops("ppo", 1.0, BATCH)


def test_presampling_by_hand():
    cost = costs.presampling(8000, 8, tokens_per_answer=500, tokens_per_second=2000, bytes_per_token=20)
    assert (cost["completions"], cost["tokens"]) == (64_000, 32_000_000)
    assert cost["hours"] == pytest.approx(32_000_000 / 2000 / 3600)
    assert cost["gigabytes"] == pytest.approx(0.64)


def test_bytes_per_token_is_measured(tiny, countdown, few_problems, tmp_path):
    table = presampling.sample(tiny, countdown, few_problems, 2, out=tmp_path, problems_per_shard=20, progress=False)
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    assert costs.bytes_per_token(tmp_path) == stored / sum(map(len, table["token_ids"]))


def test_a_run_is_told_in_hours_with_what_they_were_reckoned_from_and_where_to_reckon_anew():
    text = costs.told({"sampling": 3.6e15, "training": 3.6e15}, rate=1e12, rows=64, what="10 steps")
    assert "about 22.5 hours for 10 steps, 89% of them drawing" in text
    assert "1 TFLOP/s (measured now) and 5.0% of it drawing, 40% training" in text
    notebook = re.search(r"notebooks/\S+", text)[0]
    assert "cost_lab" in (Path(__file__).parents[2] / notebook).read_text()


def test_few_rows_draw_no_faster_than_many_and_drawing_alone_trains_nothing():
    text = costs.told({"sampling": 3.6e15}, rate=1e12, rows=8, what="5 problems")
    assert "cpu" not in text.lower() and "tiny model on a CPU" in costs.told({"sampling": 1.0}, 1e12, 8, "1", "cpu")
    assert "about 160.0 hours" in text and "training" not in text


def test_a_step_at_7b_is_reckoned_near_what_it_took():
    """docs/gpu.md: 2 x 4 and 8 rehearsed answers of 64 + 960 tokens, 19.8 s on an H200 that multiplied at 781 TFLOP/s."""
    parts = costs.flops("dph-js", 7.6e9, costs.Batch(2, 4, 64, 960, 8))
    spent = costs.hours(parts, 781e12, costs.BUSY, costs.BUSY_SAMPLING["cuda"] * 8 / costs.ROWS)
    assert 3600 * sum(spent.values()) == pytest.approx(19.8, rel=0.5)


def test_a_machine_s_rate_is_that_of_a_matrix_product():
    assert 1e8 < costs.matrix_rate(torch.device("cpu"), torch.float32, size=128) < 1e14
