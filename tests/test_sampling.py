"""Sampling against fresh forwards of the model, hand-made distributions, and chi-square."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers as hf
from families import LLAMA
from scipy.stats import chisquare

from dphrl_lite import models, sampling
from dphrl_lite.engine import graphs
from dphrl_lite.sampling import collate, generate, pad, rows_at_once, token_logps
from dphrl_lite.tasks.countdown import problems

LENGTH = 12


@pytest.fixture(scope="module")
def prompts(tiny):
    """Ragged: these have 3 tokens, sort 6, cd3 7, cd4 8."""
    words = [
        *(f"sort {i} =" for i in range(4)),
        *(p.prompt for f in ("sort", "cd3", "cd4") for p in problems(f, 4, seed=5)),
    ]
    return [tiny.encode(prompt) for prompt in words]


@pytest.fixture(scope="module")
def drawn(tiny, prompts):
    return generate(tiny, prompts, 6, seeds=range(len(prompts)), max_new_tokens=LENGTH)


def pairs(prompts, drawn):
    return [(prompt, c) for prompt, group in zip(prompts, drawn, strict=True) for c in group]


def distribution(policy, ids, temperature=1.0):
    """Probabilities `[len(ids), V]` of the token after each position, by transformers' own unpadded forward."""
    with torch.no_grad():
        logits = policy.model(torch.tensor([ids])).logits[0]
    return torch.softmax(logits.double() / temperature, -1)


def test_there_are_as_many_completions_as_asked_for(prompts, drawn):
    assert [len(group) for group in drawn] == [6] * len(prompts)
    assert len({len(p) for p in prompts}) == 4  # ragged, or the tests below show little
    for _, c in pairs(prompts, drawn):
        assert 1 <= len(c.token_ids) == len(c.logp) == len(c.logp_sampling) <= LENGTH


def test_logps_are_those_of_a_fresh_padded_forward(tiny, prompts, drawn):
    rows, completions = zip(*pairs(prompts, drawn), strict=True)
    batch = collate(rows, [c.token_ids for c in completions], tiny.pad_id)
    logp = token_logps(tiny.model, batch)[0].detach()
    stored = pad([c.logp for c in completions], 0.0)
    assert torch.allclose(logp[batch.mask], stored[batch.mask], atol=1e-4)


def test_logps_are_those_of_an_unpadded_forward_of_transformers(tiny, prompts, drawn):
    for prompt, c in pairs(prompts, drawn)[::5]:
        p = distribution(tiny, [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
        expected = p.gather(1, torch.tensor(c.token_ids)[:, None]).log().squeeze(1).tolist()
        assert c.logp == pytest.approx(expected, abs=1e-4)
        assert c.logp_sampling == c.logp


def test_entropy_is_that_of_the_unpadded_forward(tiny, prompts, drawn):
    chosen = pairs(prompts, drawn)[::7]
    batch = collate([p for p, _ in chosen], [c.token_ids for _, c in chosen], tiny.pad_id)
    _, entropy = token_logps(tiny.model, batch, temperature=1.5)
    for row, mask, (prompt, c) in zip(entropy, batch.mask, chosen, strict=True):
        p = distribution(tiny, [*prompt, *c.token_ids], 1.5)[len(prompt) - 1 : -1]
        assert row[mask].tolist() == pytest.approx(torch.special.entr(p).sum(-1).tolist(), abs=1e-4)


def test_the_gradient_of_a_logp_is_onehot_minus_softmax(tiny, prompts):
    model = tiny.copy().model
    batch = collate([prompts[0], prompts[-1]], [[20, 1], [30, 31, 32]], tiny.pad_id)
    captured = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, out: captured.append(out) or out.retain_grad())
    token_logps(model, batch, temperature=0.5)[0][0, 1].backward()
    hook.remove()
    p = distribution(tiny, [*prompts[0], 20, 1], 0.5)[-2]
    expected = (torch.nn.functional.one_hot(torch.tensor(1), len(p)) - p) / 0.5
    assert torch.allclose(captured[0].grad[0, 1].double(), expected, atol=1e-5)
    captured[0].grad[0, 1] = 0
    assert captured[0].grad.abs().sum() == 0


def test_padding_changes_nothing(tiny, prompts, drawn):
    for i in (0, 5, 10, 15):
        alone = generate(tiny, [prompts[i]], 6, seeds=[i], max_new_tokens=LENGTH)[0]
        assert_same(alone, drawn[i])


def assert_same(these, those):
    assert [c.token_ids for c in these] == [c.token_ids for c in those]
    for a, b in zip(these, those, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-5, rel=1e-5)  # a float32 sum in another order


@pytest.mark.parametrize("max_rows", [1, 6, 17, 40])
def test_neither_batch_size_nor_order_of_prompts_matters(tiny, prompts, drawn, max_rows):
    order = np.random.default_rng(max_rows).permutation(len(prompts)).tolist()
    again = generate(tiny, [prompts[i] for i in order], 6, seeds=order, max_new_tokens=LENGTH, max_rows=max_rows)
    for i, group in zip(order, again, strict=True):
        assert_same(group, drawn[i])


def test_another_seed_draws_something_else(tiny, prompts, drawn):
    again = generate(tiny, prompts, 6, seeds=range(100, 100 + len(prompts)), max_new_tokens=LENGTH)
    assert [c.token_ids for _, c in pairs(prompts, again)] != [c.token_ids for _, c in pairs(prompts, drawn)]


def test_a_completion_ends_with_its_first_eos_or_is_cut(tiny, prompts, drawn):
    eos = tiny.tokenizer.eos_token_id
    cut = generate(tiny, prompts, 6, seeds=range(len(prompts)), max_new_tokens=2)
    for (_, long), (_, short) in zip(pairs(prompts, drawn), pairs(prompts, cut), strict=True):
        assert eos not in long.token_ids[:-1]
        assert long.token_ids[-1] == eos or len(long.token_ids) == LENGTH
        assert len(short.token_ids) <= 2
    assert any(c.token_ids[-1] != eos for _, c in pairs(prompts, cut))


def with_pad_token(policy, token):
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.pad_token = token
    return dataclasses.replace(policy, tokenizer=tokenizer)


@pytest.mark.parametrize("pad_token", ["<eos>", None])  # without a padding token, eos pads
def test_eos_counts_once_even_where_it_pads(tiny, prompts, drawn, pad_token):
    eos_pads = with_pad_token(tiny, pad_token)
    assert eos_pads.pad_id == tiny.tokenizer.eos_token_id != tiny.pad_id
    again = generate(eos_pads, prompts, 6, seeds=range(len(prompts)), max_new_tokens=LENGTH)
    for group, before in zip(again, drawn, strict=True):
        assert_same(group, before)
    rows, completions = zip(*pairs(prompts, again), strict=True)
    batch = collate(rows, [c.token_ids for c in completions], eos_pads.pad_id)
    assert batch.mask.sum(1).tolist() == [len(c.token_ids) for c in completions]
    logp = token_logps(eos_pads.model, batch)[0].detach()
    assert torch.allclose(logp[batch.mask], pad([c.logp for c in completions], 0.0)[batch.mask], atol=1e-4)


def test_greedy_takes_the_most_likely_token_each_time(tiny, prompts):
    for prompt, (c,) in zip(prompts, generate(tiny, prompts, 1, seeds=[0] * 16, max_new_tokens=LENGTH, temperature=0),
                            strict=True):  # fmt: skip
        p = distribution(tiny, [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
        assert p.argmax(-1).tolist() == c.token_ids
        assert c.logp == pytest.approx(p.amax(-1).log().tolist(), abs=1e-4)
        assert c.logp_sampling == [0.0] * len(c.token_ids)  # the distribution drawn from is a point


def test_collate_by_hand():
    batch = collate([[5], [6, 7]], [[8, 9], [1]], pad_id=0)
    assert batch.input_ids.tolist() == [[0, 5, 8, 9], [6, 7, 1, 0]]
    assert batch.attention_mask.tolist() == [[False, True, True, True], [True, True, True, False]]
    assert batch.mask.tolist() == [[True, True], [True, False]]


# ---- models of other families ---------------------------------------------------------------------------------------

GEMMA = LLAMA | {"query_pre_attn_scalar": 8, "sliding_window": 6}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "qwen2": lambda: hf.Qwen2Config(**LLAMA),
    "qwen2, one sliding layer": lambda: hf.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA),
    "mistral": lambda: hf.MistralConfig(**LLAMA, sliding_window=6),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA, final_logit_softcapping=0.5),
    "gemma3": lambda: hf.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "gemma4": lambda: hf.Gemma4TextConfig(**LLAMA),
    "phi3": lambda: hf.Phi3Config(**LLAMA),
    "gpt2": lambda: hf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1),
}


def random_prompts(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, 97, (n,), generator=generator).tolist() for n in lengths]


def policy_of(tiny, config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # away from the flat start
    return dataclasses.replace(tiny, model=model)


@pytest.mark.parametrize("lengths", [(9, 3, 12), (7, 7)], ids=["padded", "not padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logps_of_every_family_are_those_of_a_fresh_forward(tiny, name, lengths):
    policy = policy_of(tiny, CONFIGS[name]())
    prompts = random_prompts(lengths)
    drawn = generate(policy, prompts, 5, seeds=range(len(prompts)), max_new_tokens=60)
    assert len({len(c.token_ids) for _, c in pairs(prompts, drawn)}) > 2  # some end early, and rows leave
    for prompt, c in pairs(prompts, drawn):
        p = distribution(policy, [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
        assert c.logp == pytest.approx(
            p.gather(1, torch.tensor(c.token_ids)[:, None]).log().squeeze(1).tolist(), abs=1e-4
        )


@pytest.mark.parametrize("lengths", [(9, 3, 12), (7, 7)], ids=["padded", "not padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fixed_buffers_draw_what_growing_ones_draw(tiny, name, lengths):
    """The way that a GPU captures, here without a graph; a model with a sliding window refuses it, and says why."""
    policy = policy_of(tiny, CONFIGS[name]())
    prompts, settings = random_prompts(lengths), {"seeds": range(len(lengths)), "max_new_tokens": 60}
    if name in ("qwen2, one sliding layer", "mistral", "gemma2", "gemma3", "gemma4"):
        with pytest.raises(NotImplementedError, match="Sliding"):
            generate(policy, prompts, 5, captured=True, **settings)
        return
    drawn, fixed = (generate(policy, prompts, 5, captured=way, **settings) for way in (False, True))
    for a, b in zip(drawn, fixed, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"temperature": 0.7}, {"temperature": 0.0}, {"max_rows": 7},
                                      {"temperature": 0.7, "training_temperature": 0.7}], ids=str)  # fmt: skip
@pytest.mark.parametrize("held", [{}, {"lora_rank": 4}, {"nf4": True}], ids=str)
def test_fixed_buffers_serve_every_setting_and_an_adapter_on_four_bits(tiny, prompts, held, settings):
    policy = tiny
    if held:
        pytest.importorskip("bitsandbytes")
        pytest.importorskip("peft")
        policy = models.load("tiny", **held)
        with torch.no_grad():
            for name, p in policy.model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.02)
    settings = {"seeds": range(len(prompts)), "max_new_tokens": LENGTH} | settings
    drawn, fixed = (generate(policy, prompts, 3, captured=way, **settings) for way in (False, True))
    for a, b in zip(drawn, fixed, strict=True):
        assert_same(a, b)


def test_rows_that_ended_leave_for_a_smaller_power_of_two(tiny, prompts):
    policy = tiny.copy()
    _, shapes = rows_computed(policy, prompts, 6, seeds=range(16), max_new_tokens=LENGTH, captured=True)
    sizes = [rows for rows, _ in shapes[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 96  # 16 prompts x 6
    assert set(sizes[1:]) <= {96, 64, 32, 16, 8, 4, 2, 1} and len(set(sizes)) > 1


def test_buffers_stay_for_the_next_call_unless_they_are_large_or_it_failed(tiny, prompts, monkeypatch):
    policy = tiny.copy()
    draw = lambda **other: generate(
        policy, prompts[:2], 2, seeds=[0, 1], captured=True, **{"max_new_tokens": 4} | other
    )
    draw()
    kept = graphs._kept[policy.model]
    draw(max_new_tokens=9)
    assert graphs._kept[policy.model] is kept and kept.room == graphs.STEP
    draw(max_new_tokens=graphs.STEP)  # no room
    assert graphs._kept[policy.model] is not kept
    monkeypatch.setattr(graphs, "KEPT_BYTES", 0)
    draw()
    assert policy.model not in graphs._kept
    monkeypatch.undo()
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not numbers"):
        draw()
    assert policy.model not in graphs._kept


def test_moved_weights_and_an_adapter_switched_off_are_noticed(tiny):
    pytest.importorskip("peft")
    policy = models.load("tiny", lora_rank=4)
    generate(policy, [[3]], 1, seeds=[0], max_new_tokens=3, captured=True)
    slots = graphs._kept[policy.model]
    slots.graphs["a graph"], on = 0, slots.check(policy.model)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    torch.optim.AdamW(trained).step()  # in place
    assert slots.check(policy.model) == on and slots.graphs
    with policy.model.disable_adapter():
        assert slots.check(policy.model) != on
    trained[0].data = trained[0].data.clone()
    slots.check(policy.model)
    assert not slots.graphs


@pytest.mark.parametrize("config", [
    lambda: hf.JambaConfig(**{k: v for k, v in LLAMA.items() if k != "head_dim"}, use_mamba_kernels=False, num_experts=2,
                           mamba_d_state=4, attn_layer_offset=1, attn_layer_period=2),
    lambda: hf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4),
], ids=["jamba", "mamba"])  # fmt: skip
def test_a_state_that_cannot_be_shared_names_the_model(tiny, config, request):
    with pytest.raises(NotImplementedError, match=request.node.callspec.id):
        generate(policy_of(tiny, config()), [[3, 4]], 2, seeds=[0], max_new_tokens=3)


# ---- what the model computes ----------------------------------------------------------------------------------------


def rows_computed(policy, *arguments, **settings):
    """What `generate` draws, and rows x tokens of each forward of the model."""
    shapes = []
    hook = policy.model.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    drawn = generate(policy, *arguments, **settings)
    hook.remove()
    return drawn, [tuple(shape) for shape in shapes]


def test_a_prompt_is_read_once_and_finished_rows_leave(tiny, prompts, drawn):
    again, shapes = rows_computed(tiny, prompts, 6, seeds=range(len(prompts)), max_new_tokens=LENGTH)
    assert [c.token_ids for _, c in pairs(prompts, again)] == [c.token_ids for _, c in pairs(prompts, drawn)]
    (first, *rest), lengths = shapes, [len(c.token_ids) for _, c in pairs(prompts, drawn)]
    assert first == (len(prompts), max(map(len, prompts)))
    assert all(tokens == 1 for _, tokens in rest)
    assert sum(rows for rows, _ in rest) <= sum(lengths) / (1 - 1 / 8)
    assert len(rest) == max(lengths) - 1


@pytest.mark.parametrize(("max_rows", "forwards"), [(1, 6), (4, 2), (6, 1), (None, 1)])
def test_a_group_too_large_is_drawn_in_parts(tiny, prompts, drawn, max_rows, forwards):
    settings = {"seeds": [5], "max_new_tokens": LENGTH, "max_rows": max_rows}
    (group,), shapes = rows_computed(tiny, [prompts[5]], 6, **settings)
    assert_same(group, drawn[5])
    assert [tokens for _, tokens in shapes].count(len(prompts[5])) == forwards


def test_prompts_of_like_length_are_batched_together(tiny, prompts, drawn):
    order = [0, 12, 5, 1, 13, 6]
    _, shapes = rows_computed(tiny, [prompts[i] for i in order], 6, seeds=order, max_new_tokens=1, max_rows=12)
    assert shapes == [(2, 3), (2, 6), (2, 8)]


def test_rows_at_once_are_those_whose_cache_fits(tiny, monkeypatch):
    qwen_7b = hf.Qwen2Config(num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, hidden_size=3584)
    model = type(
        "Model", (), {"config": qwen_7b, "parameters": lambda _: iter([torch.zeros(1, dtype=torch.bfloat16)])}
    )()
    row = 28 * 4 * 128 * 2 * 2 * 2048 + 24 * qwen_7b.vocab_size
    assert rows_at_once(model, 2048) == sampling.CACHE_BYTES // row == 35
    assert rows_at_once(tiny.model, 20) == 1024
    on_gpu = 28 * 4 * 128 * 2 * 2 * 2112 + 30 * qwen_7b.vocab_size  # 2,100 tokens in whole steps, logits once more
    assert rows_at_once(model, 2100, torch.device("cuda")) == sampling.CACHE_BYTES // on_gpu
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1)
    assert rows_at_once(model, 2048) == 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_rows_cache_is_as_large_as_reckoned(tiny, monkeypatch, name):
    policy, kept = policy_of(tiny, CONFIGS[name]()), []
    hook = policy.model.register_forward_hook(lambda _m, _i, out: kept.append(out.past_key_values))
    generate(policy, [[3, 4, 5, 6]], 1, seeds=[0], max_new_tokens=2, max_rows=1)
    hook.remove()
    tokens = kept[-1].get_seq_length()
    cached = sum(x.nbytes for layer in kept[-1].layers for x in (layer.keys, layer.values))
    monkeypatch.setattr(sampling, "CACHE_BYTES", 3 * (cached + 24 * 97))
    assert (rows_at_once(policy.model, tokens), rows_at_once(policy.model, tokens + 1)) == (3, 2)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_the_mode_it_was_in(tiny, training):
    policy = tiny.copy()
    policy.model.train(training).model.layers[1].eval()
    policy.model.model.norm.train()
    before = [module.training for module in policy.model.modules()]
    generate(policy, [[3]], 1, seeds=[0], max_new_tokens=1)
    assert [module.training for module in policy.model.modules()] == before
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        generate(policy, [[3]], 1, seeds=[0], max_new_tokens=1)
    assert [module.training for module in policy.model.modules()] == before


def test_a_model_in_training_is_sampled_without_dropout(tiny, prompts, drawn):
    policy = tiny.copy()
    policy.model.train().gradient_checkpointing_enable()  # which would forbid a cache
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    for group, before in zip(generate(policy, prompts, 6, seeds=range(16), max_new_tokens=LENGTH), drawn, strict=True):
        assert_same(group, before)


@pytest.mark.parametrize("where", ["generation_config", "config"])
def test_any_of_the_models_eos_ends_a_completion_and_counts_once(tiny, prompts, drawn, where):
    policy, other = tiny.copy(), drawn[0][0].token_ids[1]
    policy.model.generation_config.eos_token_id = None
    getattr(policy.model, where).eos_token_id = [other, 1]
    assert policy.eos_ids == {other, 1}
    again = generate(policy, prompts, 6, seeds=range(len(prompts)), max_new_tokens=LENGTH)
    for (_, c), (_, before) in zip(pairs(prompts, again), pairs(prompts, drawn), strict=True):
        cut = [i for i, token in enumerate(before.token_ids) if token in (other, 1)][:1] or [LENGTH]
        assert c.token_ids == before.token_ids[: cut[0] + 1]
    assert len(again[0][0].token_ids) <= 2 < len(drawn[0][0].token_ids)


def test_rows_may_end_at_their_first_token(tiny, prompts, drawn):
    """They leave a batch whose cache holds the prompts alone."""
    policy = tiny.copy()
    firsts = [c.token_ids[0] for group in drawn for c in group]
    policy.model.generation_config.eos_token_id = [1, max(set(firsts), key=firsts.count)]
    again = generate(policy, prompts, 6, seeds=range(len(prompts)), max_new_tokens=LENGTH)
    for (_, c), (_, before) in zip(pairs(prompts, again), pairs(prompts, drawn), strict=True):
        cut = [i for i, token in enumerate(before.token_ids) if token in policy.eos_ids][:1] or [LENGTH]
        assert c.token_ids == before.token_ids[: cut[0] + 1]
    ended = np.mean([len(c.token_ids) == 1 for _, c in pairs(prompts, again)])
    assert 1 / 8 < ended < 1


# ---- distributions made by hand --------------------------------------------------------------------------------------

HAND = [0.4, 0.3, 0.15, 0.1, 0.05]


class Fixed(torch.nn.Module):
    """Stands in for a language model: next-token probabilities `HAND` at every position."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids, **_):
        logits = self.logits.expand(*input_ids.shape, -1)
        return type("Out", (), {"logits": logits, "past_key_values": Cache()})


class Cache:
    def batch_repeat_interleave(self, _): ...
    def batch_select_indices(self, _): ...


def draw(tiny, n=4000, length=1, probabilities=HAND, **settings):
    policy = dataclasses.replace(tiny, model=Fixed(probabilities))
    return generate(policy, [[3]], n, seeds=[7], max_new_tokens=length, max_rows=n, **settings)[0]


def frequencies(drawn, size):
    return np.bincount([c.token_ids[0] for c in drawn], minlength=size)


def logps(drawn):
    """Token -> (logp, probability it was drawn with)."""
    return {c.token_ids[0]: (c.logp[0], math.exp(c.logp_sampling[0])) for c in drawn}


@pytest.mark.parametrize(("top_p", "kept"), [(1.0, 5), (0.97, 5), (0.9, 4), (0.8, 3), (0.5, 2), (0.39, 1), (0.01, 1)])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(tiny, top_p, kept):
    drawn = draw(tiny, top_p=top_p)
    assert set(np.flatnonzero(frequencies(drawn, 5))) == set(range(kept))
    for token, (logp, probability) in logps(drawn).items():
        assert logp == pytest.approx(math.log(HAND[token]), abs=1e-5)  # logp stays the full softmax
        assert probability == pytest.approx(HAND[token] / sum(HAND[:kept]), abs=1e-5)


def test_the_nucleus_does_not_hang_on_the_order_of_the_vocabulary(tiny):
    drawn = draw(tiny, top_p=0.6, probabilities=[0.05, 0.3, 0.1, 0.4, 0.15])
    assert set(np.flatnonzero(frequencies(drawn, 5))) == {1, 3}


def test_temperature_and_top_p_together(tiny):
    warm = np.sqrt(HAND) / np.sqrt(HAND).sum()  # temperature 2
    drawn = draw(tiny, temperature=2.0, top_p=warm[:3].sum() - 1e-4)
    for token, (logp, probability) in logps(drawn).items():
        assert logp == pytest.approx(math.log(HAND[token]), abs=1e-5)
        assert probability == pytest.approx(warm[token] / warm[:3].sum(), abs=1e-5)
    assert chisquare(frequencies(drawn, 3), 4000 * warm[:3] / warm[:3].sum()).pvalue > 1e-3


def test_training_temperature_is_that_of_logp(tiny):
    cold = np.square(HAND) / np.square(HAND).sum()  # temperature 1/2
    for token, (logp, probability) in logps(draw(tiny, training_temperature=0.5, temperature=1.0)).items():
        assert logp == pytest.approx(math.log(cold[token]), abs=1e-5)
        assert probability == pytest.approx(HAND[token], abs=1e-5)


def test_frequencies_follow_the_hand_made_probabilities(tiny):
    assert chisquare(frequencies(draw(tiny), 5), np.array(HAND) * 4000).pvalue > 1e-3


def test_tokens_of_one_completion_are_independent_draws(tiny):
    uniform = [0.25, 0.0, 0.25, 0.25, 0.25]  # token 1 is eos
    ids = np.array([c.token_ids for c in draw(tiny, length=2, probabilities=uniform)])
    table = np.zeros((5, 5))
    np.add.at(table, (ids[:, 0], ids[:, 1]), 1)
    assert chisquare(table[[0, 2, 3, 4]][:, [0, 2, 3, 4]].ravel()).pvalue > 1e-3
    assert table.sum() == 4000 and table[1].sum() == table[:, 1].sum() == 0  # what has no probability is never drawn


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}])
def test_first_tokens_follow_the_models_probabilities(tiny, settings):
    prompt = tiny.encode("countdown 2 5 target")
    drawn = generate(tiny, [prompt], 3000, seeds=[3], max_new_tokens=1, max_rows=3000, **settings)[0]
    p = distribution(tiny, prompt, settings.get("temperature", 1.0))[-1].numpy()
    often = p * 3000 >= 5
    counts = frequencies(drawn, len(p))
    found, expected = [np.append(x[often], x[~often].sum()) for x in (counts, p * 3000)]
    assert often.sum() > 3
    assert chisquare(found, expected).pvalue > 1e-3


def test_overflowed_weights_are_named(tiny):
    with pytest.raises(FloatingPointError, match="not numbers"):
        draw(tiny, probabilities=[math.nan, 0.5])


@pytest.mark.parametrize("wrong", [
    {"seeds": [1, 2]}, {"samples": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1},
    {"training_temperature": 0.0},
])  # fmt: skip
def test_settings_out_of_range_are_refused(tiny, wrong):
    settings = {"samples": 1, "seeds": [1], "max_new_tokens": 2} | wrong
    with pytest.raises(ValueError, match="needs"):
        generate(tiny, [[3]], **settings)


@pytest.mark.parametrize(("prompts", "completions"), [([[3]], [[4], [5]]), ([[3], [3]], [[4], []])])
def test_collate_refuses_what_does_not_match(prompts, completions):
    with pytest.raises(ValueError, match="one non-empty completion per prompt"):
        collate(prompts, completions, 0)
