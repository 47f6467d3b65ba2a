"""On a GPU: decoding by graphs against the eager way, training against a CPU's float32, resuming, 4 bits, and what is said
when it does not work. Each figure that is asserted was printed on one H100 (docs/gpu.md)."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers as hf
from families import LLAMA

from dphrl_lite import models, presampling, sampling, training
from dphrl_lite.engine import graphs, loading
from dphrl_lite.sampling import collate, generate, token_logps
from dphrl_lite.study import export

LENGTH = 40
WIDE = LLAMA | {"vocab_size": 500, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


def random_policy(tiny, config=None, device="cuda", dtype=torch.float32):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config or hf.LlamaConfig(**WIDE)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return dataclasses.replace(tiny, model=model.to(device, dtype), reasons=[])


def prompts_of(lengths, vocabulary=500):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def adapted(policy, rank=4):
    """With a LoRA adapter that says something: B is 0 in a new one."""
    model = loading.with_lora(policy.model, None, rank, False)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    return dataclasses.replace(policy, model=model, adapter=True)


def both_ways(policy, prompts, samples=5, **settings):
    """What is drawn eagerly and by graphs; graphs must have been replayed."""
    settings = {"seeds": range(len(prompts)), "max_new_tokens": LENGTH} | settings
    eager = generate(policy, prompts, samples, captured=False, **settings)
    drawn = generate(policy, prompts, samples, **settings)
    slots = graphs._kept[policy.model]
    assert slots.graphs and not slots.plain, policy.reasons
    return [c for group in eager for c in group], [c for group in drawn for c in group]


def assert_same(eager, drawn, atol=1e-4):
    assert [c.token_ids for c in eager] == [c.token_ids for c in drawn]
    for name in ("logp", "logp_sampling"):
        pairs = zip(eager, drawn, strict=True)
        assert max(np.abs(np.subtract(getattr(a, name), getattr(b, name))).max() for a, b in pairs) <= atol


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"temperature": 0.7}, {"temperature": 0.0},
                                      {"temperature": 0.7, "training_temperature": 0.7}], ids=str)  # fmt: skip
@pytest.mark.parametrize("lengths", [(9, 3, 12), (70,), (7, 7)], ids=str)
def test_graphs_draw_what_the_eager_way_draws(tiny, lengths, settings):
    assert_same(*both_ways(random_policy(tiny), prompts_of(lengths), **settings))


def test_rows_that_end_leave_for_smaller_graphs(tiny):
    policy = random_policy(tiny)
    policy.model.generation_config.eos_token_id = list(range(2, 40))
    eager, drawn = both_ways(policy, prompts_of((9, 3, 12)), samples=8)
    assert_same(eager, drawn)
    assert len({size for size, _ in graphs._kept[policy.model].graphs}) > 2


def test_a_second_call_captures_nothing(tiny):
    policy, prompts = random_policy(tiny), prompts_of((9, 3))
    both_ways(policy, prompts)
    slots = graphs._kept[policy.model]
    held = dict(slots.graphs)
    assert_same(*both_ways(policy, prompts_of((5, 8)), seeds=[7, 8]))
    assert graphs._kept[policy.model] is slots and slots.graphs == held


def test_an_adapter_that_was_updated_is_seen_without_a_new_capture(tiny):
    policy, prompts = adapted(random_policy(tiny)), prompts_of((9, 3))
    before = both_ways(policy, prompts)[1]
    slots = graphs._kept[policy.model]
    held, places = dict(slots.graphs), [p.data_ptr() for p in policy.model.parameters()]
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    batch = collate(prompts, [[5, 6, 7], [8]], 0, policy.device)
    token_logps(policy.model, batch)[0].sum().backward()
    optimizer.step()
    assert [p.data_ptr() for p in policy.model.parameters()] == places
    eager, after = both_ways(policy, prompts)
    assert_same(eager, after)
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    assert slots.graphs == held


def test_the_adapter_switched_off_gets_a_capture_of_its_own(tiny):
    policy, prompts = adapted(random_policy(tiny)), prompts_of((9, 3))
    on = both_ways(policy, prompts)[1]
    with policy.model.disable_adapter():
        eager, off = both_ways(policy, prompts)
    assert_same(eager, off)
    assert [c.token_ids for c in on] != [c.token_ids for c in off]
    assert len({adapter for _, adapter in graphs._kept[policy.model].graphs}) == 2
    assert_same(on, both_ways(policy, prompts)[1])


def test_weights_that_moved_are_captured_anew(tiny):
    policy, prompts = random_policy(tiny), prompts_of((9, 3))
    both_ways(policy, prompts)
    for p in policy.model.parameters():
        p.data = p.data.clone() * 1.1
    assert_same(*both_ways(policy, prompts))


def test_large_buffers_are_given_back(tiny, monkeypatch):
    policy = random_policy(tiny)
    monkeypatch.setattr(graphs, "KEPT_BYTES", 0)
    generate(policy, prompts_of((9, 3)), 2, seeds=[0, 1], max_new_tokens=8)
    assert policy.model not in graphs._kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_four_bits_and_an_adapter_go_into_the_graph(tiny, dtype):
    """Both ways are as far from the full forward as from each other: rounding."""
    policy = models.load("tiny", nf4=True, device="cuda", dtype=dtype)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    prompts = [tiny.encode(x) for x in ("sort 3 1 =", "countdown 2 5 target")]
    eager, drawn = both_ways(policy, prompts, samples=32, max_new_tokens=12)
    gaps = []
    for found in (eager, drawn):
        rows = [p for p in prompts for _ in range(32)]
        batch = collate(rows, [c.token_ids for c in found], policy.pad_id, policy.device)
        with torch.no_grad():
            logp = token_logps(policy.model, batch)[0][batch.mask]
        stored = torch.tensor([x for c in found for x in c.logp], device=logp.device)
        gaps.append((logp - stored).abs().mean().item())
    print(f"\n{dtype}: mean |cached - full forward|: eager {gaps[0]:.2g}, graph {gaps[1]:.2g} nats")
    assert max(gaps) < (1e-3 if dtype == torch.float32 else 0.02)
    if dtype == torch.float32:
        assert_same(eager, drawn, 1e-3)


def test_a_layer_that_waits_is_decoded_without_a_graph_and_said(tiny):
    policy, prompts = random_policy(tiny), prompts_of((9, 3))
    layer = policy.model.model.layers[1]
    layer.mlp.register_forward_hook(lambda _m, _i, out: out * (1.0 if out.sum().item() < 1e30 else 0.0))
    settings = {"seeds": range(2), "max_new_tokens": LENGTH}
    eager, drawn = (generate(policy, prompts, 5, captured=way, **settings) for way in (False, None))
    assert_same([c for g in eager for c in g], [c for g in drawn for c in g])
    assert any("not by a captured graph" in reason for reason in policy.reasons)
    assert_same(*both_ways(random_policy(tiny), prompts))  # the card captures other models as before
    assert torch.rand(3, device="cuda").shape == (3,)


def test_a_sliding_window_is_decoded_eagerly_and_said(tiny):
    policy = random_policy(tiny, hf.MistralConfig(**WIDE, sliding_window=6))
    generate(policy, prompts_of((9, 3)), 2, seeds=[0, 1], max_new_tokens=8)
    assert any("Sliding" in reason for reason in policy.reasons)


# ---- training --------------------------------------------------------------------------------------------------------

SHAPE = {"problems_per_step": 8, "samples": 8, "rehearsal_per_step": 16, "progress": False, "max_new_tokens": 20}


@pytest.fixture(scope="module")
def on_gpu():
    return models.load("tiny", device="cuda")


@pytest.fixture(scope="module")
def gpu_parts(on_gpu, countdown, few_problems):
    table = presampling.sample(on_gpu, countdown, few_problems, 8, progress=False)
    return presampling.partition(table, threshold=6)


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.policy.model.parameters()])


def test_a_step_is_that_of_a_cpu(tiny, on_gpu, countdown, few_problems, parts):
    runs = [training.train(policy, countdown, few_problems, parts, "dph-js", 1, **SHAPE) for policy in (tiny, on_gpu)]
    cpu, gpu = (run.log.iloc[0] for run in runs)
    for name in ("reward", "loss_exploration", "penalty", "entropy", "gradient_norm"):
        print(f"{name}: CPU {cpu[name]:.6g}, GPU {gpu[name]:.6g}")
        assert gpu[name] == pytest.approx(cpu[name], rel=1e-3, abs=1e-6), name
    change = [weights(run).cpu() - weights_of(tiny) for run in runs]
    print(f"change of weights, relative distance: {((change[0] - change[1]).norm() / change[0].norm()).item():.2g}")


def weights_of(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def test_two_runs_with_one_seed_are_one_run(on_gpu, countdown, few_problems, gpu_parts):
    a, b = (training.train(on_gpu, countdown, few_problems, gpu_parts, "dph-js", 3, **SHAPE) for _ in range(2))
    assert torch.equal(weights(a), weights(b))


def test_a_resumed_run_is_the_run_that_was_not_stopped(on_gpu, countdown, few_problems, gpu_parts, tmp_path):
    whole = training.train(on_gpu, countdown, few_problems, gpu_parts, "dph-js", 4, **SHAPE)
    for steps in (2, 4):
        resumed = training.train(on_gpu, countdown, few_problems, gpu_parts, "dph-js", steps, out=tmp_path, **SHAPE)
    assert torch.equal(weights(whole), weights(resumed))


def test_an_adapter_on_four_bits_trains_saves_loads_and_merges(countdown, few_problems, tmp_path):
    policy = models.load("tiny", nf4=True, device="cuda", dtype=torch.bfloat16)
    table = presampling.sample(policy, countdown, few_problems, 8, progress=False)
    run = training.train(
        policy, countdown, few_problems, presampling.partition(table, threshold=6), "dph-js", 2, learning_rate=1e-2,
        **SHAPE,
    )  # fmt: skip
    assert any("paged-adamw-8bit" in reason for reason in run.policy.reasons)
    run.policy.save(tmp_path / "adapter")
    again = models.load(tmp_path / "adapter", device="cuda", dtype=torch.bfloat16)
    ids = torch.tensor([tiny_ids(policy)], device="cuda")
    with torch.no_grad():
        saved, loaded = run.policy.model(ids).logits, again.model(ids).logits
    assert torch.equal(saved, loaded)
    merged = (
        export.merge(tmp_path / "adapter", tmp_path / "merged").float().to("cuda")
    )  # into weights that had no 4 bits
    with torch.no_grad():
        probabilities = [torch.softmax(x.float(), -1) for x in (merged(ids).logits, saved)]
    assert (probabilities[0] - probabilities[1]).abs().sum(-1).mean() < 0.3


def tiny_ids(policy):
    return policy.encode("countdown 2 5 target")


def test_float16_scales_gradients_and_names_an_overflow(tiny):
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        policy = models.load("tiny", nf4=True, device="cuda", dtype=dtype)
        with torch.no_grad():
            torch.manual_seed(0)
            for name, p in policy.model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape) * 0.02)
        batch = collate([tiny_ids(policy)] * 2, [[5, 6, 7, 8], [9, 10]], policy.pad_id, policy.device)
        logp = token_logps(policy.model.train(), batch)[0]
        (logp[batch.mask].mean() / 1000).backward()
        found[dtype] = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    for dtype in (torch.bfloat16, torch.float16):
        error = ((found[dtype] - found[torch.float32]).norm() / found[torch.float32].norm()).item()
        print(f"gradient in {dtype}: relative error {error:.2g}")
        assert error < (0.3 if dtype == torch.bfloat16 else 0.05)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(1e4)
        policy.model.get_input_embeddings().weight.clamp_(-6e4, 6e4)
        for layer in policy.model.get_base_model().model.layers:
            layer.input_layernorm.weight.fill_(6e4)
    with pytest.raises(FloatingPointError, match="overflows in float16"):
        generate(policy, [tiny_ids(policy)], 2, seeds=[0], max_new_tokens=3)
    with pytest.raises(FloatingPointError, match="overflows in float16"):
        token_logps(policy.model, batch)


def test_a_card_that_is_full_says_which_settings_help(on_gpu, countdown, few_problems, gpu_parts, tmp_path):
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (24 << 20)) / total)
    try:
        with pytest.raises(MemoryError, match="microbatch_tokens"):
            training.train(
                on_gpu, countdown, few_problems, gpu_parts, "grpo", 1, out=tmp_path,
                **SHAPE | {"problems_per_step": 24, "samples": 64, "microbatch_tokens": 1 << 20},
            )  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sampling.rows_at_once(on_gpu.model, 40) > 1
