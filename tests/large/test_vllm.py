"""Drawing with vLLM, which needs a GPU: through the same interface, with the kit's sampler standing in for its engine."""

import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from dphrl_lite import evaluation, models, presampling, training
from dphrl_lite.engine.checkpoint import OtherRunError
from dphrl_lite.evaluation import EvaluateConfig, ProblemSet
from dphrl_lite.large import vllm as kit_vllm
from dphrl_lite.sampling import generate


class Params(types.SimpleNamespace):
    pass


class StandIn:
    """`vllm.LLM`, as much of it as is used: it draws with the kit's sampler, and answers in vLLM's shapes."""

    made: ClassVar = []

    def __init__(self, model, **settings):
        self.policy, self.settings, self.calls = models.load(model), settings, 0
        StandIn.made.append(self)

    def generate(self, prompts, params, use_tqdm=True, lora_request=None):
        self.calls, self.lora = self.calls + 1, lora_request
        found = []
        for prompt, how in zip(prompts, params, strict=True):
            assert how.logprobs == 0 and set(how.stop_token_ids) == self.policy.eos_ids
            settings = {"seeds": [how.seed], "max_new_tokens": how.max_tokens, "temperature": how.temperature}
            (group,) = generate(self.policy, [prompt["prompt_token_ids"]], how.n, top_p=how.top_p, **settings)
            found.append(Params(outputs=[self.output(c) for c in group]))
        return found

    @staticmethod
    def output(c):
        at = [{token: Params(logprob=logp)} for token, logp in zip(c.token_ids, c.logp, strict=True)]
        return Params(token_ids=tuple(c.token_ids), logprobs=at)


@pytest.fixture
def vllm(monkeypatch):
    lora = types.ModuleType("vllm.lora.request")
    lora.LoRARequest = lambda *about: about
    module = types.ModuleType("vllm")
    module.__version__, module.LLM, module.SamplingParams = "0.31.0", StandIn, Params
    for name, each in {"vllm": module, "vllm.lora": types.ModuleType("vllm.lora"), "vllm.lora.request": lora}.items():
        monkeypatch.setitem(sys.modules, name, each)
    StandIn.made.clear()
    return module


def test_the_tables_are_those_of_the_kits_sampler(vllm, tiny, countdown, few_problems, rollouts, tmp_path):
    policy = kit_vllm.load("tiny", gpu_memory_utilization=0.5)
    settings = {"problems_per_shard": 16, "problems_per_batch": 16, "progress": False}
    table = presampling.sample(policy, countdown, few_problems, 8, out=tmp_path / "rollouts", **settings)
    assert list(table.columns) == presampling.COLUMNS
    kits = presampling.sample(tiny, countdown, few_problems, 8, progress=False)
    assert table["completion"].tolist() == kits["completion"].tolist()
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(table["logp"], kits["logp"], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(table["logp"], table["logp_sampling"], strict=True))
    (engine,) = StandIn.made
    assert engine.settings == {"logprobs_mode": "raw_logprobs", "gpu_memory_utilization": 0.5}
    assert engine.calls == 2  # a shard at once, which is what it is for
    parts = presampling.partition(table)
    run = training.train(tiny, countdown, few_problems, parts, steps=1, problems_per_step=4, samples=4, progress=False)
    assert run.log["penalty"][0] < 1e-3


def test_it_goes_on_where_it_was_and_is_a_run_of_its_own(vllm, tiny, countdown, few_problems, tmp_path):
    policy, settings = kit_vllm.load("tiny"), {"problems_per_shard": 8, "problems_per_batch": 8, "progress": False}
    whole = presampling.sample(policy, countdown, few_problems, 4, out=tmp_path, **settings)
    (tmp_path / "shard-00002.parquet").unlink()
    calls = StandIn.made[0].calls
    again = presampling.sample(policy, countdown, few_problems, 4, out=tmp_path, **settings)
    assert StandIn.made[0].calls == calls + 1
    assert again.to_json() == whole.to_json()
    with pytest.raises(OtherRunError, match="sampler"):
        presampling.sample(tiny, countdown, few_problems, 4, out=tmp_path, **settings)


def test_evaluation_and_greedy_answers(vllm, tiny, countdown, few_problems):
    config, some = EvaluateConfig(samples=4, ks=[1, 4]), ProblemSet("cd3", countdown, few_problems[:6])
    drawn = [evaluation.outcomes(p, some, config, progress=False) for p in (kit_vllm.load("tiny"), tiny)]
    for name in ("n", "greedy"):
        assert drawn[0][name].tolist() == drawn[1][name].tolist()


def test_log_probs_that_vllm_does_not_tell_are_none(vllm, countdown, few_problems):
    settings = {"samples": 8, "temperature": 0.8, "progress": False}
    table = presampling.sample(kit_vllm.load("tiny"), countdown, few_problems, **settings)
    assert all(np.isnan(x).all() for x in table["logp_sampling"])
    with pytest.raises(ValueError, match="another temperature"):
        training.check_inputs(few_problems, presampling.partition(table), training.TrainConfig("dph-js"))


def test_an_adapter_is_drawn_from_with_its_base(vllm, tmp_path, countdown, few_problems):
    pytest.importorskip("peft")
    models.load("tiny", lora_rank=4).save(tmp_path)
    policy = kit_vllm.load(tmp_path)
    presampling.sample(policy, countdown, few_problems[:2], 2, progress=False)
    (engine,) = StandIn.made
    assert engine.lora == ("policy", 1, str(tmp_path))
    assert engine.settings["enable_lora"] and engine.settings["max_lora_rank"] == 4


def test_what_it_does_not_do_is_refused(vllm, monkeypatch):
    with pytest.raises(ValueError, match="4 bits"):
        kit_vllm.load("tiny", nf4=True)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"\[vllm\]"):
        kit_vllm.load("tiny")
