"""Weights spread over two processes: what is trained, saved and resumed. That FSDP trains as one process does, method by
method, stands in test_training.py; the command with the shipped launcher file in test_cli.py."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dphrl_lite import models, settings, training
from dphrl_lite.engine import logprobs, sharding

SCRIPT = """
import os, signal, sys, torch
from dphrl_lite import models, presampling, tasks, training
from dphrl_lite.engine import logprobs, sharding
from dphrl_lite.sampling import collate, token_logps
from dphrl_lite.tasks.countdown import problems

torch.set_num_threads(1)
logprobs.LOGITS_BYTES = 10_000  # the output head works on a few positions at a time, outside of the model's forward
out, stage = sys.argv[1:]
task, chosen, tiny = tasks.get("countdown"), problems("cd3", 24, seed=1), models.PROFILES["tiny"].source
kinds = {"lora": {"lora_rank": 4}, "bfloat16": {"dtype": torch.bfloat16}}
kinds["both"] = kinds["lora"] | kinds["bfloat16"]  # as recipes/paper_math_32b_fsdp.yaml has it


def run(kind, folder, method, **more):
    drawn = presampling.sample(models.load(tiny, **kinds[kind]), task, chosen, progress=False, max_new_tokens=12)
    policy = models.load(tiny, device=sharding.load_device(), **kinds[kind])
    parts = presampling.partition(drawn)
    return training.train(policy, task, chosen, parts, method, out=f"{out}/{folder}", in_place=True, **SETTINGS, **more)


def die(record):
    if record["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)


if stage == "start":
    for kind, method in (("bfloat16", "dph-js"), ("lora", "rkl"), ("both", "rkl")):
        policy = run(kind, kind, method).policy
        if int(os.environ["RANK"]) == 0:  # alone, as with any other policy
            batch = collate([policy.encode(chosen[0].prompt)], [[3, 4, 5]], policy.pad_id)
            torch.save((vars(batch), token_logps(policy.model, batch)[0].detach()), f"{out}/{kind}.pt")
            policy.save(f"{out}/{kind}-policy")
        gathered = list(policy.model.parameters())
        sharding.settle(policy.model)
        assert all(p.untyped_storage().size() == 0 for p in gathered)  # the memory is free again
        trained = [p for p in policy.model.parameters() if p.requires_grad]
        assert all(sharding.full(p).numel() > p.to_local().numel() for p in trained)  # no process holds a whole one
        assert {p.dtype for p in trained} == {torch.float32}
    run("bfloat16", "killed", "dph-js", on_step=die)
run("bfloat16", "killed", "dph-js")
"""
SETTINGS = {"steps": 3, "problems_per_step": 5, "samples": 3, "max_new_tokens": 12, "rehearsal_per_step": 7}
SETTINGS |= {"microbatch_tokens": 80, "checkpoint_every": 1, "progress": False}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """A function: run SCRIPT on two processes; and the folder that it writes to."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "script.py").write_text(SCRIPT.replace("SETTINGS", repr(SETTINGS)))

    def launch(stage):
        two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true"}
        command = [*two, str(folder / "script.py"), str(folder), stage]
        return subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=240)

    return launch, folder


@pytest.fixture(scope="module")
def folder(launch):
    start, folder = launch
    done = start("start")
    assert "Signal 9" in done.stderr, done.stderr[-3000:]  # of the run that ends itself
    assert (folder / "killed" / "step-000002").is_dir()
    return folder


def test_a_killed_run_goes_on_bit_for_bit(launch, folder):
    done = launch[0]("again")
    assert done.returncode == 0, done.stderr[-3000:]
    last = sorted((folder / "bfloat16" / "step-000003").glob("*.safetensors"))
    assert [path.name for path in last] == ["model.safetensors", "optimizer.safetensors"]
    for path in last:
        assert (folder / "killed" / "step-000003" / path.name).read_bytes() == path.read_bytes()
    logs = [training.read_log(folder / name) for name in ("bfloat16", "killed")]
    of_machine = ("seconds", "tokens_per_second", "peak_memory_gb")
    a, b = ([{k: v for k, v in record.items() if k not in of_machine} for record in log] for log in logs)
    assert a == b


def test_an_adapter_is_that_of_one_process(folder, countdown):
    from dphrl_lite import presampling
    from dphrl_lite.tasks.countdown import problems

    policy, chosen = models.load(models.PROFILES["tiny"].source, lora_rank=4), problems("cd3", 24, seed=1)
    drawn = presampling.sample(policy, countdown, chosen, progress=False, max_new_tokens=12)
    start = {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    run = training.train(policy, countdown, chosen, presampling.partition(drawn), "rkl", **SETTINGS)
    sharded = load_file(folder / "lora" / "step-000003" / "model.safetensors")
    trained = {n: p for n, p in run.policy.model.named_parameters() if p.requires_grad}
    assert sharded.keys() == trained.keys()
    assert max((trained[n] - start[n]).abs().max() for n in start) > 1e-4
    assert max((trained[n] - sharded[n]).abs().max() for n in sharded) < 1e-5


@pytest.mark.parametrize(("kind", "file"), [("bfloat16", "model"), ("both", "adapter_model")])
def test_bfloat16_trains_float32_weights_and_is_saved_as_it_computes(folder, kind, file):
    trained = load_file(folder / kind / "step-000003" / "model.safetensors")
    assert {x.dtype for x in trained.values()} == {torch.float32}
    assert {x.dtype for x in load_file(folder / f"{kind}-policy" / f"{file}.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["lora", "bfloat16"])
def test_the_saved_policy_says_what_the_sharded_one_said(folder, kind):
    policy = models.load(folder / f"{kind}-policy", dtype=getattr(torch, kind, None))
    batch, logp = torch.load(folder / f"{kind}.pt", weights_only=True)
    with torch.no_grad():
        assert torch.allclose(logprobs.token_logps(policy.model, logprobs.TokenBatch(**batch))[0], logp, atol=1e-6)


def test_a_twin_shares_the_tensors_and_learns_nothing(tiny):
    twin = sharding.twin(tiny.model)
    pairs = list(zip(twin.parameters(), tiny.model.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() and b.requires_grad and not a.requires_grad for a, b in pairs)


def test_the_recipe_for_fsdp_is_read():
    recipe, config = settings.load("recipes/paper_math_32b_fsdp.yaml", training.TrainConfig)
    profile = models.PROFILES[recipe.model]
    assert (profile.nf4, profile.lora_rank > 0, recipe.task, config.method) == (False, True, "math", "dph-js")


def test_quantised_weights_are_refused():
    layer = torch.nn.Linear(2, 2)
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"these are quantised: launch with --multi_gpu"):
        sharding.shard(layer, torch.device("cpu"))


def test_without_the_launcher_nothing_is_sharded(tiny):
    assert sharding.load_device() is None
    assert sharding.weights(tiny.model) is None
    with sharding.whole(tiny.model):
        sharding.settle(tiny.model)
