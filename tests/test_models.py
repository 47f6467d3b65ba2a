"""Loading, saving and copying policies; adapters and 4-bit weights on the CPU; the script that remakes the tiny model."""

import importlib.util
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dphrl_lite import models
from dphrl_lite.engine import devices, loading
from dphrl_lite.engine.checkpoint import weights_digest
from dphrl_lite.sampling import collate, generate, token_logps
from dphrl_lite.tasks.countdown import problems

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "data" / "tiny"
IDS = torch.tensor([[3, 13, 16, 20, 4, 58, 7]])  # countdown 2 5 9 target 47 =


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def lora():
    pytest.importorskip("peft")
    return models.load(TINY, lora_rank=4)


@pytest.fixture(scope="module")
def nf4():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    return models.load("tiny", nf4=True)


def test_the_profiles():
    big = models.PROFILES["qlora-7b"]
    assert (big.source, big.nf4, big.lora_rank) == ("Qwen/Qwen2.5-7B-Instruct", True, 16)
    in_4_bits = {name for name, profile in models.PROFILES.items() if profile.nf4}
    assert in_4_bits == {"qlora-7b", "qlora-7b-base", "qlora-llama-8b", "qlora-math-7b"}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("qlora-7b", 7.616), ("qlora-7b-base", 7.616), ("qlora-math-7b", 7.616)),
        *(("qlora-llama-8b", 8.030), ("lora-32b", 32.764), ("lora-omnisql-32b", 32.764)),
    ],
)
def test_a_large_model_is_outlined_without_the_hub(name, billions):
    plan = models.plan_load(name)
    assert plan.model.num_parameters() / 1e9 == pytest.approx(billions, abs=1e-3)
    assert {p.device.type for p in plan.model.parameters()} == {"meta"}


def test_tiny_is_tiny(tiny):
    assert sum(p.numel() for p in tiny.model.parameters()) < 3_000_000
    assert sum(file.stat().st_size for file in TINY.rglob("*") if file.is_file()) < 12_000_000


def test_tiny_says_where_and_in_what_it_computes(tiny):
    assert {(p.device.type, p.dtype) for p in tiny.model.parameters()} == {("cpu", torch.float32)}
    assert any("cpu" in reason for reason in tiny.reasons)
    assert any("float32" in reason for reason in tiny.reasons)
    assert (tiny.max_new_tokens, tiny.adapter, tiny.model.training) == (40, False, False)


def test_unknown_names_list_the_profiles():
    with pytest.raises(ValueError, match=r"qlora-7b, .*small, tiny") as error:
        models.load("tinny")
    assert "Did you mean 'tiny'" in str(error.value)


@pytest.mark.parametrize("name", ["there/is/nothing", "./nothing", "/nothing"])
def test_a_path_to_nothing_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        models.load(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        models.load(tmp_path)


def test_small_is_taken_from_its_offline_folder_where_that_is_made(monkeypatch, tiny):
    monkeypatch.setitem(models.PROFILES, "small", replace(models.PROFILES["small"], offline=str(TINY)))
    policy = models.load("small")
    assert (policy.name, policy.model.num_parameters()) == ("small", tiny.model.num_parameters())
    assert any("without the hub" in reason for reason in policy.reasons)


def test_small_out_of_reach_names_the_command_that_makes_it(monkeypatch, tmp_path):
    offline = {"source": "no-such-organisation/no-such-model", "offline": str(tmp_path / "small")}
    monkeypatch.setitem(models.PROFILES, "small", replace(models.PROFILES["small"], **offline))
    with pytest.raises(FileNotFoundError, match=r"python data/make_small\.py"):
        models.load("small")


@pytest.mark.skipif(not (ROOT / "data" / "small").is_dir(), reason="data/small is not made (python data/make_small.py)")
def test_the_small_model_reads_digits_one_by_one_and_answers_a_chat():
    policy = models.load("small")
    assert policy.model.num_parameters() == 134_515_008
    pieces = [policy.decode([i]) for i in policy.encode("x1234")]
    assert pieces[pieces.index("1") :][:4] == ["1", "2", "3", "4"]
    assert policy.render("hello").endswith("<|im_start|>assistant\n")
    (group,) = generate(policy, [policy.encode("What is 2 + 2?")], 1, seeds=[0], max_new_tokens=24, temperature=0)
    assert "4" in policy.decode(group[0].token_ids)


def test_a_folder_without_weights_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match="could not load"):
        models.load(tmp_path / "m")


def test_a_hub_id_that_is_not_reached_is_explained():
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        models.load("nobody-at-all/no-such-model")


def test_a_missing_shipped_model_names_the_command(monkeypatch, tmp_path):
    gone = models.Profile(str(tmp_path / "gone"), "")
    monkeypatch.setitem(models.PROFILES, "tiny", gone)
    with pytest.raises(FileNotFoundError, match="make_tiny"):
        models.load("tiny")


def test_saved_and_loaded_it_is_the_same_model(tiny, tmp_path):
    tiny.save(tmp_path)
    again = models.load(tmp_path)
    assert torch.equal(logits(again.model), logits(tiny.model))
    assert weights_digest(again.model) == weights_digest(tiny.model)
    assert again.encode("sort 17 =") == tiny.encode("sort 17 =")
    assert not list(tmp_path.glob("*.bin"))


def test_dtype_can_be_chosen():
    assert models.load("tiny", dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["cd3", "cd4", "sort"])
def test_the_tokenizer_keeps_every_word(tiny, family):
    for p in problems(family, 20, seed=0):
        for text in (p.prompt, p.answer):
            ids = tiny.encode(text)
            assert len(ids) == len(text.split())
            assert tiny.decode(ids) == text


def test_decode_leaves_out_special_tokens(tiny):
    assert tiny.decode([*tiny.encode("5 * 9"), tiny.tokenizer.eos_token_id, tiny.pad_id]) == "5 * 9"


@pytest.mark.parametrize("prompt", ["What is 2 + 2 ?", "countdown 2 5 9 target 470 =", "make 1 7 = ("])
def test_a_word_that_it_does_not_know_is_refused(tiny, prompt):
    with pytest.raises(ValueError, match="cannot write this prompt"):
        tiny.encode(prompt)


def test_an_empty_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match="cannot write this prompt"):
        tiny.encode("")


def test_a_chat_template_is_applied_once(tiny):
    again = models.load("tiny")
    again.tokenizer.chat_template = "sort {{ messages[0]['content'] }}{% if add_generation_prompt %} ={% endif %}"
    assert again.render("17") == "sort 17 ="
    assert again.encode("17") == tiny.encode("sort 17 =")


def shift(policy):
    """Change all that can be trained."""
    with torch.no_grad():
        for p in policy.model.parameters():
            if p.requires_grad:
                p.add_(0.05)


def test_a_copy_is_independent(tiny):
    before, copied = logits(tiny.model), tiny.copy()
    assert torch.equal(logits(copied.model), before)
    shift(copied)
    copied.reasons.append("changed")
    assert not torch.allclose(logits(copied.model), before)
    assert torch.equal(logits(tiny.model), before)
    assert "changed" not in tiny.reasons


def test_the_reference_is_the_model_of_its_moment(tiny):
    policy = tiny.copy()
    reference, before = policy.reference(), logits(policy.model)
    shift(policy)
    with reference() as model:
        assert torch.equal(logits(model), before)
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in policy.model.parameters())


def test_where_the_gpu_computes_in_bfloat16(tiny, monkeypatch):
    """The tiny model is not rounded on its way, weights that are all trained are float32, and what is asked for is done."""
    gpu = lambda: (torch.device("cpu"), torch.bfloat16, ["device cuda: found", "bfloat16: the GPU computes in it"])
    monkeypatch.setattr(devices, "choose", gpu)
    assert weights_digest(models.load("tiny").model) == weights_digest(tiny.model)
    monkeypatch.setattr(devices, "TINY_PARAMETERS", 0)  # from here on it is no tiny model any more
    whole = models.load("tiny")
    assert weights_digest(whole.model) == weights_digest(tiny.model)
    assert any("float32: all its weights are trained" in reason for reason in whole.reasons)
    asked = models.load("tiny", dtype=torch.bfloat16)
    assert next(asked.model.parameters()).dtype == torch.bfloat16
    assert "torch.bfloat16: as asked for" in asked.reasons
    adapter = models.load("tiny", lora_rank=4).model
    assert {p.dtype for p in adapter.parameters() if not p.requires_grad} == {torch.bfloat16}
    monkeypatch.setattr(devices, "FLOAT32_PARAMETERS", 0)
    assert next(models.load("tiny").model.parameters()).dtype == torch.bfloat16


def test_lora_trains_only_its_adapter(lora):
    trained = {name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any("rank 4" in reason for reason in lora.reasons)
    ranks = {p.shape[0] for name, p in lora.model.named_parameters() if "lora_A" in name}
    assert ranks == {4}


def test_a_fresh_adapter_changes_nothing(tiny, lora):
    assert torch.equal(logits(lora.model), logits(tiny.model))


def test_the_reference_of_an_adapter_is_its_base(tiny):
    pytest.importorskip("peft")
    policy = models.load(TINY, lora_rank=4)
    reference = policy.reference()
    shift(policy)
    with reference() as model:
        assert torch.allclose(logits(model), logits(tiny.model), atol=1e-6)
    assert not torch.allclose(logits(policy.model), logits(tiny.model), atol=1e-2)  # and the adapter is on again


def test_trained_weights_may_go_part_of_the_way_back(tiny):
    pytest.importorskip("peft")
    for policy, start in ((tiny.copy(), tiny), (models.load(TINY, lora_rank=4), None)):
        shift(policy)
        trained = logits(policy.model)
        models.interpolate(policy, 1.0, start)
        assert torch.allclose(logits(policy.model), trained, atol=1e-5)
        models.interpolate(policy, 0.5, start)
        half = logits(policy.model)
        assert not torch.allclose(half, trained, atol=1e-2) and not torch.allclose(half, logits(tiny.model), atol=1e-2)
        models.interpolate(policy, 2.0, start)  # the whole way again
        assert torch.allclose(logits(policy.model), trained, atol=1e-3)
        models.interpolate(policy, 0.0, start)
        assert torch.allclose(logits(policy.model), logits(tiny.model), atol=1e-5)
    with pytest.raises(ValueError, match="expected the same model before training as `start`, not none"):
        models.interpolate(tiny.copy(), 0.5)
    with pytest.raises(ValueError, match="other names or shapes"):
        models.interpolate(tiny.copy(), 0.5, models.load(TINY, lora_rank=4))


def test_an_adapter_policy_is_not_held_twice(lora):
    assert lora.copy() is lora


def test_a_fresh_adapter_is_the_same_at_every_start(lora):
    torch.rand(3)
    state = torch.get_rng_state()
    assert weights_digest(models.load(TINY, lora_rank=4).model) == weights_digest(lora.model)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness was touched


def test_only_the_adapter_is_saved(lora, tmp_path):
    lora.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_profile_takes_the_settings_that_are_asked_for():
    pytest.importorskip("peft")
    asked = models.load("tiny", lora_rank=2)
    assert asked.adapter
    assert {p.shape[0] for name, p in asked.model.named_parameters() if "lora_A" in name} == {2}


def test_nf4_on_the_cpu_holds_four_bits_and_generates(nf4, tiny):
    import bitsandbytes

    held = [m for m in nf4.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert held
    for layer in held:
        assert (layer.weight.quant_type, layer.compute_dtype) == ("nf4", torch.float32)
        assert layer.weight.quant_state.nested  # double quantisation
    prompt = nf4.encode("sort 17 =")
    (drawn,) = generate(nf4, [prompt], 4, seeds=[0], max_new_tokens=12)
    batch = collate([prompt] * 4, [c.token_ids for c in drawn], nf4.pad_id)
    again, _ = token_logps(nf4.model, batch)
    for row, mask, c in zip(again, batch.mask, drawn, strict=True):
        assert row[mask].tolist() == pytest.approx(c.logp, abs=1e-4)


def adapter_gradient(policy):
    policy.model.zero_grad()
    batch = collate([policy.encode("sort 17 =")], [[20, 1]], policy.pad_id)
    (-token_logps(policy.model, batch)[0].mean()).backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.requires_grad}


def test_nf4_has_the_gradient_of_its_dequantised_weights(nf4):
    import bitsandbytes

    plain = models.load("tiny", lora_rank=16)  # of the same seed, so the same adapter
    generate(nf4, [[5]], 1, seeds=[0], max_new_tokens=2)  # after inference bitsandbytes can hold weights otherwise
    for name, layer in nf4.model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.model.get_submodule(name).weight.data.copy_(weight)
    found, expected = adapter_gradient(nf4), adapter_gradient(plain)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
    assert sum(g.abs().sum() for g in expected.values()) > 1


def test_nf4_recomputes_its_layers_in_the_backward_pass(nf4):
    calls = []
    hook = nf4.model.get_submodule("base_model.model.model.layers.0.self_attn").register_forward_hook(
        lambda *_: calls.append(1)
    )
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*use_reentrant|.*requires_grad=True")
        for training in (True, False):
            nf4.model.train(training)
            found.append(adapter_gradient(nf4))
    hook.remove()
    assert len(calls) == 2 + 1
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_nf4_trains_an_adapter_of_rank_16_by_default(nf4):
    assert nf4.adapter
    assert {min(p.shape) for p in nf4.model.parameters() if p.requires_grad} == {16}


def test_without_bitsandbytes_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[qlora\]'"):
        models.load(TINY, nf4=True)


# ---- data/make_tiny.py -----------------------------------------------------------------------------------------------


@pytest.fixture
def make_tiny(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "data" / "make_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 4)
    monkeypatch.setattr(module, "BATCH", 32)
    return module


def remake(script, folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_tiny.py", "--out", str(folder)])
    threads = torch.get_num_threads()
    script.main()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_remaking_the_tiny_model_gives_the_same_bytes(make_tiny, tmp_path, monkeypatch):
    first = remake(make_tiny, tmp_path / "a", monkeypatch)
    torch.rand(3)  # whatever happened in between
    assert remake(make_tiny, tmp_path / "b", monkeypatch) == first
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= first.keys()


def test_the_script_makes_the_tokenizer_that_is_shipped(make_tiny, tmp_path):
    make_tiny.make_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


def test_pretraining_learns(make_tiny, monkeypatch):
    torch.manual_seed(0)
    tokenizer = make_tiny.make_tokenizer()
    model = make_tiny.make_model(tokenizer)
    monkeypatch.setattr(make_tiny, "STEPS", 30)
    before = loss(model, tokenizer)
    make_tiny.pretrain(model, tokenizer)
    assert loss(model, tokenizer) < before - 0.5


def loss(model, tokenizer):
    ids = tokenizer("sort 9 3 1 7 = 1 3 7 9 <eos>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def test_the_learning_rate_warms_up_and_ends_at_zero(make_tiny, monkeypatch):
    monkeypatch.setattr(make_tiny, "STEPS", 1000)
    assert make_tiny.schedule(0) == pytest.approx(0.01)
    assert make_tiny.schedule(99) == make_tiny.schedule(100) == 1
    assert make_tiny.schedule(550) == pytest.approx(0.5)
    assert make_tiny.schedule(1000) == pytest.approx(0)


def test_what_is_saved_is_loaded_as_it_was(tiny, tmp_path):
    tiny.save(tmp_path / "full")
    again = models.load(tmp_path / "full")
    assert (again.max_new_tokens, again.device.type, torch.get_num_threads()) == (tiny.max_new_tokens, "cpu", 1)


def test_an_adapter_folder_is_loaded_with_its_base(tmp_path):
    pytest.importorskip("peft")
    policy = models.load(models.PROFILES["tiny"].source, lora_rank=4)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    policy.save(tmp_path)
    again = models.load(tmp_path)
    ids = torch.tensor([policy.encode("sort 17 =")])
    assert again.adapter
    assert torch.allclose(again.model(ids).logits, policy.model(ids).logits, atol=1e-6)
    assert any(p.requires_grad for p in again.model.parameters())


def test_an_adapter_folder_is_loaded_with_its_base_in_4_bits_where_it_was_trained_so(nf4, tmp_path):
    nf4.save(tmp_path)
    again = models.load(tmp_path)
    assert again.quantised
    assert weights_digest(again.model) == weights_digest(nf4.model)
    assert torch.equal(logits(again.model), logits(nf4.model))


def test_qlora_keeps_embeddings_head_and_norms_as_they_compute():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    policy = models.load("tiny", nf4=True, dtype=torch.bfloat16)
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16, torch.uint8}  # 4-bit weights are packed into bytes
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    out = policy.model(IDS, use_cache=True)
    assert {layer.keys.dtype for layer in out.past_key_values.layers} == {torch.bfloat16}


def test_a_gpu_without_bfloat16_computes_in_float16_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    device, dtype, reasons = devices.choose()
    assert (device.type, dtype) == ("cuda", torch.float16)
    assert "no bfloat16" in reasons[1]
    assert models.plan_load("qlora-7b").dtype == torch.float16
    whole = models.plan_load(models.PROFILES["tiny"].source, device="cuda")  # all weights are trained
    assert whole.dtype == torch.float32


def test_in_bfloat16_sampling_and_training_are_equally_far_from_float32():
    """Why pi_old of sampling is good enough: rounding is noise, and the two are nearer to each other than to what is exact."""
    policy, exact = models.load("tiny", dtype=torch.bfloat16), models.load("tiny", dtype=torch.bfloat16)
    exact.model.float()
    prompts = [policy.encode(p.prompt) for p in problems("cd4", 48, seed=0)]
    drawn = generate(policy, prompts, 8, seeds=list(range(48)), max_new_tokens=12)
    rows = [(p, c) for p, group in zip(prompts, drawn, strict=True) for c in group]
    batch = collate([p for p, _ in rows], [c.token_ids for _, c in rows], policy.pad_id)
    sampled = torch.cat([torch.tensor(c.logp) for _, c in rows])
    with torch.no_grad():
        trained, true = (token_logps(x.model, batch)[0][batch.mask] for x in (policy, exact))
    gap, errors = (sampled - trained).abs().mean(), [(x - true).abs().mean() for x in (sampled, trained)]
    assert max(errors) / min(errors) < 1.5
    assert gap < min(errors)
    assert (sampled - trained).mean().abs() < gap / 3


def test_a_launched_process_loads_on_its_own_gpu_and_can_sum_on_the_cpu(tiny, monkeypatch):
    """Threads load the weights, and a thread that is not told which GPU takes the first; a tiny model stays on the CPU."""
    from transformers import AutoModelForCausalLM

    joined, loaded = {}, {}
    for name, value in {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "PartialState", lambda **settings: joined.update(settings))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(devices, "TINY_PARAMETERS", 0)
    take = lambda _source, **settings: loaded.update(settings) or tiny.copy().model
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", take)
    models.load("tiny")
    assert loaded["device_map"] == {"": torch.device("cuda", 3)}
    assert joined["cpu"] is False
    assert "cpu:gloo" in joined["backend"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 processes were launched, and torch sees 1 GPU .* --num_processes"):
        models.load("tiny")


def test_a_new_adapter_leaves_every_generator_as_it_was(tiny, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds the GPUs"))
    before = torch.get_rng_state()
    loading.with_lora(tiny.copy().model, None, 4, False)
    assert torch.equal(torch.get_rng_state(), before)
