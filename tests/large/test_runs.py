"""A run of the kit on TRL: the same log, manifest and policy folder, and the settings that TRL has no counterpart of."""

import json

import numpy as np
import pytest

pytest.importorskip("trl")

from dphrl_lite import cli, presampling, training
from dphrl_lite.engine.checkpoint import OtherRunError
from dphrl_lite.engine.journal import read_log
from dphrl_lite.large import runs
from dphrl_lite.metrics import METRICS

QUICK = {"steps": 2, "problems_per_step": 6, "samples": 4, "rehearsal_per_step": 8, "minibatches": 1, "progress": False}
QUICK |= {"max_new_tokens": 12, "checkpoint_every": 1}


@pytest.fixture
def train(tiny, countdown, few_problems, parts):
    def train(method="dph-js", engine=runs.train, **settings):
        return engine(tiny, countdown, few_problems, parts, method, **QUICK | settings)

    return train


def test_log_and_folder_are_the_kits(train, tmp_path):
    seen = []
    kit, trl = train(engine=training.train), train(out=tmp_path / "run", on_step=seen.append)
    assert list(trl.log.columns) == list(METRICS)
    lacking = {"gradient_norm_exploration", "gradient_norm_penalty", "gradient_cosine"}
    assert {name for name in METRICS if trl.log[name].isna().any()} == lacking
    for name in (
        "step",
        "reward",
        "zero_spread",
        "groups",
        "tokens",
        "tokens_trained",
        "strength",
        "reference_forwards",
    ):
        assert np.allclose(trl.log[name].astype(float), kit.log[name].astype(float)), name
    for name in ("penalty", "entropy", "gradient_norm", "log_u_high"):
        assert np.allclose(trl.log[name].astype(float), kit.log[name].astype(float), rtol=0.02, atol=2e-6), name
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert lines == seen == trl.log.where(trl.log.notna(), None).to_dict("records")
    told = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert told["kind"] == "training" and told["engine"] == "trl" and told["method"] == "dph-js"


def test_a_run_goes_on_and_keeps_to_itself(train, tmp_path):
    whole = train(out=tmp_path / "whole", steps=3)
    train(out=tmp_path / "stopped")
    with (tmp_path / "stopped" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "rew')  # killed while it wrote
    resumed = train(out=tmp_path / "stopped", steps=3)
    timeless = [name for name in METRICS if name not in ("seconds", "tokens_per_second", "peak_memory_gb")]
    assert resumed.log[timeless].to_json() == whole.log[timeless].to_json()
    for a, b in zip(resumed.policy.model.parameters(), whole.policy.model.parameters(), strict=True):
        assert a.equal(b)
    (tmp_path / "stopped" / "log.jsonl").write_text(
        "damaged\n" + whole.log.iloc[1:].to_json(orient="records", lines=True)
    )
    (tmp_path / "stopped" / "checkpoint-4").mkdir()  # killed while it saved
    healed = train(out=tmp_path / "stopped", steps=3)
    assert read_log(tmp_path / "stopped") == healed.log.where(healed.log.notna(), None).to_dict("records")
    assert healed.log.to_json() == resumed.log.to_json()
    with pytest.raises(ValueError, match="more than the 2 asked for"):
        train(out=tmp_path / "stopped")
    with pytest.raises(OtherRunError, match="engine"):
        train(engine=training.train, out=tmp_path / "stopped", steps=3)
    (tmp_path / "stopped" / "checkpoint-3" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint-3, and run the same"):
        train(out=tmp_path / "stopped", steps=3)


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"penalty_target": 0.1}, "penalty_target"),
        ({"joint_mean": True}, "joint_mean"),
        ({"advantage_k": 2}, "advantage_k"),
        ({"distinct_advantage": True}, "distinct_advantage"),
        ({"weight_decay": 0.01}, "weight_decay"),
        ({"method": "grpo-entropy"}, "entropy_coef"),
        ({"minibatches": 5}, "even batches"),
        ({"rehearsal_per_step": 7, "minibatches": 2}, "even batches"),
        ({"method": "rkl"}, "beta"),
        ({"trl": {"use_vlm": True}}, "Did you mean 'use_vllm'"),
    ],
)
def test_what_trl_cannot_do_is_refused(train, settings, why):
    with pytest.raises(ValueError, match=why):
        train(**settings)


def test_rollouts_of_another_shape_are_refused(train, tiny, countdown, few_problems):
    few = presampling.partition(presampling.sample(tiny, countdown, few_problems[:4], samples=8, progress=False))
    with pytest.raises(ValueError, match="that were pre-sampled"):
        runs.train(tiny, countdown, few_problems[:2], few, **QUICK)


def test_the_command_trains_with_trl_what_the_command_evaluates(tmp_path, capsys):
    """A LoRA adapter and its card, as from the kit's trainer, and the dashboard's log."""
    pytest.importorskip("peft")
    shared = ["--nf4", "--problems", "countdown:cd3", "--limit", "24", "--out", str(tmp_path)]
    few = ["--samples", "8", "--max-new-tokens", "12"]
    assert cli.main(["presample", *shared, *few]) == 0
    small = [
        "--method",
        "dph-js",
        "--steps",
        "1",
        "--problems-per-step",
        "4",
        "--rehearsal-per-step",
        "4",
        "--engine",
        "trl",
    ]
    assert cli.main(["train", *shared, *small, "--samples", "4", "--minibatches", "1", "--max-new-tokens", "12"]) == 0
    policy = tmp_path / "dph-js-seed0" / "policy-000001"
    assert (policy / "adapter_config.json").is_file() and "| method | dph-js |" in (policy / "README.md").read_text()
    assert set(read_log(policy.parent)[0]) == set(METRICS)
    sets = ["--in-domain", "cd3", "--out-of-domain", "--no-greedy", "--samples", "2", "--max-new-tokens", "4"]
    (tmp_path / "sets.yaml").write_text("cd3: {task: countdown, problems: [countdown:cd3], limit: 2}")
    command = ["evaluate", *shared, "--policy", str(policy), *sets, "--sets", str(tmp_path / "sets.yaml")]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert "Pass@2" in (policy / "README.md").read_text()
