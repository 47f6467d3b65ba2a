"""The script of the 7B benchmark, at its tiny size: the same code on a CPU, in seconds."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def qlora_7b():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("qlora_7b", ROOT / "benchmarks" / "qlora_7b.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_method_on_a_cpu(qlora_7b, tmp_path):
    out = tmp_path / "found.json"
    for methods in (["grpo", "rkl"], ["dph-f", "dph-js"]):  # in pieces, which add to one file
        qlora_7b.main(["--size", "tiny", "--steps", "1", "--part", "update", "--methods", *methods, "--out", str(out)])
    qlora_7b.main(["--size", "tiny", "--steps", "1", "--part", "step", "--out", str(out)])
    found = json.loads(out.read_text())
    rows = {row["method"]: row for row in found["update"]["found"]}
    assert list(rows) == ["grpo", "rkl", "dph-f", "dph-js"]
    assert all(row["tokens_trained"] == 8 * 32 * (1 + row["method"].startswith("dph")) for row in rows.values())
    assert all(row["update_s"] > 0 and row["share_of_rate"] > 0 for row in rows.values())
    (whole,) = found["step"]["found"]
    assert whole["tokens_sampled"] == 8 * 24 and 0 < whole["sampling_s"] < whole["step_s"]
    assert all(x["gradient_norm"] > 0 for row in (*rows.values(), whole) for x in row["steps"])  # groups are mixed
    assert {row["reckoned_gb"] < 0.1 for row in rows.values()} == {True}
    assert found["step"]["size"] == "tiny"


def test_what_it_builds_is_the_policy_that_is_loaded(qlora_7b):
    """In 4 bits, with the parameters of the plan, an adapter on every linear layer, and layers that are recomputed."""
    from bitsandbytes.nn import Linear4bit

    plan = qlora_7b.plan_load("tiny")
    parameters, linear = plan.model.num_parameters(), sum(isinstance(m, torch.nn.Linear) for m in plan.model.modules())
    policy = qlora_7b.build(plan)
    held = [m for m in policy.model.modules() if isinstance(m, Linear4bit)]
    assert len(held) == linear - 1  # all but the head
    assert all(m.weight.quant_state.nested and m.weight.quant_type == "nf4" for m in held)
    assert policy.quantised
    assert qlora_7b.base_parameters(policy) == parameters
    assert not any(p.is_meta for p in policy.model.parameters())
    assert any(getattr(m, "gradient_checkpointing", False) for m in policy.model.modules())
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}


def test_7b_is_refused_without_a_gpu(qlora_7b, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--size tiny"):
        qlora_7b.main([])
