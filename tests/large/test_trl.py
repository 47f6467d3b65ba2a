"""DPH-RL inside TRL: its step against the kit's loss, its runs against the kit's runs, and what it refuses. On a CPU."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainerCallback

pytest.importorskip("trl")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # that rollout functions may change

from trl import GRPOConfig, GRPOTrainer

from dphrl_lite import models, presampling, training
from dphrl_lite.engine.batches import Stream
from dphrl_lite.engine.logprobs import TokenBatch, collate, pad, token_logps
from dphrl_lite.large.trl import RESCORED, DPHConfig, DPHTrainer
from dphrl_lite.objectives import METHODS, clipped_loss, rehearsal_loss

QUICK = {"max_steps": 3, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 2, "num_generations": 4}
QUICK |= {"max_completion_length": 12, "use_cpu": True, "bf16": False, "seed": 0, "report_to": "none"}
QUICK |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "optim": "adamw_torch", "disable_tqdm": True}
QUICK |= {"gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1}
OURS = {"rehearsal_batch_size": 8, "kit_sampler": True}


@pytest.fixture
def make(tiny, countdown, few_problems, parts, tmp_path):
    """A trainer on the shared problems; everything can be replaced."""

    def make(method="dph-js", policy=None, parts=parts, kind=DPHTrainer, callbacks=(), **settings):
        args = DPHConfig(str(tmp_path), method=method, **QUICK | OURS | settings)
        policy = tiny.copy() if policy is None else policy
        return kind(policy, countdown, few_problems, parts, args, callbacks=list(callbacks))

    return make


def log_of(trainer):
    return pd.DataFrame([record for record in trainer.state.log_history if "loss" in record])


def distance(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


# ---- one step --------------------------------------------------------------------------------------------------------


class Recorder(DPHTrainer):
    """Keeps the micro-batches of an update, and what TRL and the layer made of them."""

    def compute_loss(self, model, inputs, *rest, **more):
        loss = super().compute_loss(model, inputs, *rest, **more)
        self.kept = [*getattr(self, "kept", []), (inputs, loss.item())]
        return loss


class Beside(TrainerCallback):
    """Before each optimizer step: the loss and gradient of the kit's own functions on the same rows, at the same weights."""

    def __init__(self):
        self.rows, self.trainer = [], None

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        kept, trainer = self.trainer.kept, self.trainer
        inputs = {k: torch.cat([m[k] for m, _ in kept]) for k in kept[0][0] if kept[0][0][k].dim()}
        trainer.kept = []
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = inputs["completion_mask"].bool()
        batch = TokenBatch(ids, torch.cat([inputs["prompt_mask"].bool(), mask], 1), mask)
        logp = token_logps(model, batch)[0]
        old = inputs.get("old_per_token_logps", logp.detach())
        fresh = clipped_loss(logp, old, inputs["advantages"].to(logp), mask, args.epsilon, args.epsilon_high)
        stream = Stream(trainer.stored, args.seed, 1)
        stream.place = state.global_step * args.rehearsal_batch_size
        stored = [row for _, row in stream.take(args.rehearsal_batch_size)]
        batch = collate([r.prompt for r in stored], [r.token_ids for r in stored], 0)
        logp = token_logps(model, batch)[0]
        logp_ref = pad([r.logp_ref for r in stored], 0.0).to(logp)
        penalty = rehearsal_loss(METHODS[args.method], logp, logp_ref, batch.mask, args.alpha)
        expected = fresh.loss + args.strength * penalty
        trained = [p for p in model.parameters() if p.requires_grad]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, trained)])
        got = torch.cat([p.grad.flatten() for p in trained])
        row = {"loss": expected.item(), "got": sum(loss for _, loss in kept), "penalty": penalty.item()}
        row |= {"clipped": fresh.clipped_low + fresh.clipped_high}
        self.rows.append(row | {"gap": ((got - gradient).norm() / gradient.norm()).item()})


@pytest.mark.parametrize("method", ["dph-f", "dph-js", "dph-alpha", "dph-hellinger", "sft"])
def test_loss_and_gradient_of_a_step_are_the_kits(make, tiny, method):
    """In float64, with two iterations, clipping, and four micro-batches."""
    beside, policy = Beside(), tiny.copy()
    policy.model.double()
    batch = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4, "num_iterations": 2, "max_steps": 4}
    batch |= {"learning_rate": 2e-3, "max_grad_norm": 0.0, "rehearsal_batch_size": 6}
    trainer = make(method, policy, kind=Recorder, callbacks=[beside], **batch)
    beside.trainer = trainer
    trainer.train()
    table = pd.DataFrame(beside.rows)
    assert len(table) == 4
    assert (table["gap"] < 1e-5).all(), table
    assert np.allclose(table["got"], table["loss"], rtol=1e-5, atol=1e-7), table
    assert (table["clipped"][[1, 3]] > 0.01).all() and (table["penalty"].iloc[1:].abs() > 1e-4).all(), table
    assert np.allclose(log_of(trainer)["penalty"], table["penalty"], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing` is deprecated:FutureWarning")  # plain TRL
def test_without_a_penalty_it_is_grpo_trainer_to_the_bit(make, tiny, tmp_path):
    trainer = make("dph-js", strength=0.0, kit_sampler=False)
    trainer.train()  # before the other one is made, which seeds all random numbers again
    args = GRPOConfig(str(tmp_path), epsilon_high=0.28, shuffle_dataset=False, disable_dropout=True, **QUICK)
    policy = tiny.copy()
    plain = GRPOTrainer(policy.model, trainer.correct, args, trainer.train_dataset, processing_class=policy.tokenizer)
    plain.train()
    assert distance(trainer.model, plain.model) == 0
    assert distance(trainer.model, tiny.model) > 1e-4
    assert log_of(trainer)["reward"].tolist() == log_of(plain)["reward"].tolist()
    assert "penalty" not in log_of(trainer)


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::FutureWarning")  # notebook 07 shows these cells
def test_a_run_is_the_kits_run(make, tiny, countdown, few_problems, parts):
    """The same problems, answers and stored answers in the same order: the same curves, up to std + 1e-4 for std + 1e-6."""
    settings = {"steps": 4, "problems_per_step": 6, "samples": 4, "minibatches": 1, "rehearsal_per_step": 8}
    settings |= {"learning_rate": 1e-4, "max_new_tokens": 12, "progress": False}
    kit = training.train(tiny, countdown, few_problems, parts, "dph-js", **settings)
    trainer = make(max_steps=4, learning_rate=1e-4, adam_beta2=0.95, weight_decay=0.0)
    trainer.train()
    log = log_of(trainer)
    assert log["reward"].tolist() == pytest.approx(kit.log["reward"].tolist())
    assert np.allclose(log["penalty"], kit.log["penalty"], rtol=0.02, atol=1e-9)
    assert np.allclose(log["grad_norm"], kit.log["gradient_norm"], rtol=0.01)
    assert np.allclose(log["entropy"], kit.log["entropy"], rtol=2e-3)
    assert np.allclose(log["log_u_low"], kit.log["log_u_low"], rtol=0.02, atol=1e-4)
    ours, kits, start = (
        torch.cat([p.flatten() for p in m.parameters()]) for m in (trainer.model, kit.policy.model, tiny.model)
    )
    assert (ours - kits).norm() < 0.1 * (kits - start).norm()


SCRIPT = """
import sys, torch
from dphrl_lite import models, presampling, tasks
from dphrl_lite.large.trl import DPHConfig, DPHTrainer
from dphrl_lite.tasks.countdown import problems

out, settings = sys.argv[1], eval(sys.argv[2])
tiny, task = models.load("tiny"), tasks.get("countdown")
few = problems("cd3", 24, seed=1) + problems("cd4", 8, seed=2)
parts = presampling.partition(presampling.load(out + "/rollouts"))
trainer = DPHTrainer(tiny, task, few, parts, DPHConfig(out + "/trainer", **settings))
trainer.train()
weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
if trainer.accelerator.is_main_process:
    torch.save({"weights": weights, "log": trainer.state.log_history}, out + "/found.pt")
"""


def on_two_processes(tmp_path, tiny, countdown, few_problems, settings):
    """The log and the weights of a run on two processes of the CPU."""
    presampling.sample(tiny, countdown, few_problems, samples=8, out=tmp_path / "rollouts", progress=False)
    (tmp_path / "script.py").write_text(SCRIPT)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [*two, str(tmp_path / "script.py"), str(tmp_path), repr(settings)]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    return pd.DataFrame([record for record in found["log"] if "loss" in record]), found["weights"]


ZERO_2 = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
ZERO_2 |= {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "zero_force_ds_cpu_optimizer": False}


@pytest.mark.parametrize("deepspeed", [None, ZERO_2], ids=["DDP", "ZeRO-2"])
def test_two_processes_are_one(make, tiny, countdown, few_problems, tmp_path, deepspeed):
    """DeepSpeed compiles an extension when it is first used, which takes minutes."""
    if deepspeed:
        pytest.importorskip("deepspeed")
    trainer = make(num_iterations=2)
    half = QUICK | OURS | {"per_device_train_batch_size": 6, "num_iterations": 2, "deepspeed": deepspeed}
    log, weights = on_two_processes(tmp_path, tiny, countdown, few_problems, half)
    trainer.train()
    one = log_of(trainer)
    for name in ("reward", "penalty", "loss_exploration", "grad_norm", "log_u_mean"):
        assert np.allclose(log[name], one[name], rtol=2e-3, atol=1e-4, equal_nan=True), (name, log[name], one[name])
    assert max((weights[k] - v).abs().max().item() for k, v in trainer.model.state_dict().items()) < 1e-4


@pytest.mark.parametrize("low", [False, True], ids=["as stored", "scored again"])
def test_a_run_that_was_stopped_goes_on_exactly(make, tiny, parts, low):
    """With TRL's own sampling, whose random state is in its checkpoints; and with stored log-probs that were off."""
    some = parts
    if low:
        off = [x + np.float32(0.01) for x in parts.rehearsal["logp"]]
        table = parts.rehearsal.assign(logp=off, logp_sampling=off)
        some = presampling.Partition(**{**vars(parts), "rehearsal": table})
    whole = make(parts=some, max_steps=4, kit_sampler=False)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 2, "kit_sampler": False, "parts": some}
    stopped = make(max_steps=2, **saving)
    stopped.train()
    assert os.path.isfile(os.path.join(stopped.args.output_dir, RESCORED)) == low
    resumed = make(max_steps=4, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert distance(resumed.model, whole.model) == 0
    assert log_of(whole)["penalty"][0] < 1e-10
    assert log_of(resumed)["penalty"].tolist() == log_of(whole)["penalty"].tolist()


@pytest.mark.parametrize("kind", ["lora", "lora, checkpointing", "nf4", "bfloat16", "chat"])
def test_it_runs_on(make, tiny, kind):
    policy, settings = tiny.copy(), {"learning_rate": 5e-3}
    if kind.startswith("lora"):
        policy = models.load("tiny", lora_rank=4)
        settings["gradient_checkpointing"] = "checkpointing" in kind
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
        policy = models.load("tiny", nf4=True)
    if kind == "bfloat16":
        settings["bf16"] = True
    seen = []

    class Watched(DPHTrainer):
        def compute_loss(self, model, inputs, *rest, **more):
            seen.append(inputs)
            return super().compute_loss(model, inputs, *rest, **more)

    if kind == "chat":
        from copy import deepcopy

        policy.tokenizer = deepcopy(policy.tokenizer)
        policy.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    before = [p.detach().clone() for p in policy.model.parameters()]
    trainer = make(policy=policy, kind=Watched, **settings, kit_sampler=kind in ("lora", "chat"))
    if kind in ("nf4", "bfloat16"):
        with pytest.warns(UserWarning, match="computed again") if kind == "nf4" else pytest.MonkeyPatch().context():
            trainer.train()
    else:
        trainer.train()
    log = log_of(trainer)
    assert log["penalty"].iloc[0] < 1e-4 < log["penalty"].iloc[-1]
    moved = [not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True)]
    trained = [p.requires_grad for p in policy.model.parameters()]
    assert any(moved) and not any(m for m, t in zip(moved, trained, strict=True) if not t)
    prompts = {
        tuple(p for p, m in zip(*row, strict=True) if m)
        for i in seen
        for row in zip(i["prompt_ids"].tolist(), i["prompt_mask"].tolist(), strict=True)
    }
    assert prompts <= {tuple(policy.encode(p.prompt)) for p in trainer.problems}


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_loss_that_goes_around_the_forward_is_found(make):
    class Fused(DPHTrainer):
        def _compute_loss(self, model, inputs):
            return sum(p.sum() for p in model.parameters()) * 0

    with pytest.raises(RuntimeError, match="no stored answer was rehearsed"):
        make(kind=Fused).train()


def test_foreign_weights_are_refused(make, tiny):
    policy = tiny.copy()
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    with pytest.raises(ValueError, match="did not write the stored answers"):
        make(policy=policy).train()


def test_a_trained_policy_is_refused(make, tiny):
    policy = tiny.copy()
    policy.trained = True
    with pytest.raises(ValueError, match="load it again"):
        make(policy=policy)


@pytest.mark.parametrize(
    "method, why",
    [("rkl", "k3"), ("rkl-k3", "GRPOTrainer"), ("dph-js-definition", "stored answers"), ("dapo", "no refill")],
)
def test_methods_that_trl_cannot_carry(tmp_path, method, why):
    with pytest.raises(ValueError, match=why):
        DPHConfig(str(tmp_path), method=method, **QUICK)


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"beta": 0.04}, "reference model"),
        ({"strength": -1.0}, "at least 0"),
        ({"rehearsal_batch_size": 0}, "at least 1"),
    ],
)
def test_settings_that_contradict_the_method(tmp_path, settings, why):
    with pytest.raises(ValueError, match=why):
        DPHConfig(str(tmp_path), **QUICK | settings)


def test_a_small_d_exp_needs_counted_steps(make, parts):
    """TRL would give a loader without batches."""
    with pytest.raises(ValueError, match="must fill a generation"):
        make(max_steps=-1, kit_sampler=False, per_device_train_batch_size=96)
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=0.7)
