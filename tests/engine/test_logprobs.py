"""Log-probs and entropy in chunks against all logits at once: value and gradient, on models of many families."""

import contextlib
import warnings

import pytest
import torch
import transformers as hf
from families import LLAMA, SIZES

from dphrl_lite.engine import logprobs
from dphrl_lite.engine.logprobs import collate, token_logps

V = 97
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "tied": lambda: hf.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gemma2": lambda: hf.Gemma2Config(**LLAMA, final_logit_softcapping=0.5, query_pre_attn_scalar=8, sliding_window=6),
    "cohere": lambda: hf.CohereConfig(**LLAMA, logit_scale=0.3),
    "granite": lambda: hf.GraniteConfig(**LLAMA, logits_scaling=3.0),
    "gpt2": lambda: hf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1),
    "opt": lambda: hf.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=64),
}


def make(config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # away from the flat start
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, V, (n,), generator=generator).tolist() for n in (9, 3, 12, 5, 11, 1)]
    return collate(rows[:3], rows[3:], 0)


@contextlib.contextmanager
def chunks_of(tokens, monkeypatch, vocabulary=V):
    """At most `tokens` positions at a time, and no falling back."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(logprobs, "LOGITS_BYTES", tokens * vocabulary * 4)
        yield


def scored(model, batch, temperature=0.7):
    """logp, entropy, and the gradient of a weighted sum of both, as one vector."""
    model.zero_grad()
    logp, entropy = token_logps(model, batch, temperature)
    weights = torch.linspace(-1, 1, logp.numel()).view(logp.shape).to(logp) * batch.mask
    ((logp + 2 * entropy) * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logp[batch.mask].detach(), entropy[batch.mask].detach(), gradient


def assert_agree(these, those, tolerance=1e-5):
    for mine, other in zip(these, those, strict=True):
        assert other.abs().max() > 0.01
        assert torch.allclose(mine, other, rtol=tolerance, atol=tolerance)


def test_the_gradient_of_the_entropy_is_autograds():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    _, entropy = logprobs._logp_and_entropy(logits, torch.zeros(2, 3, dtype=torch.long), 0.7, 1.0)
    log_p = torch.log_softmax(logits / 0.7, -1)
    by_hand = -(log_p.exp() * log_p).sum(-1)
    assert torch.allclose(entropy, by_hand)
    weights = torch.rand(2, 3, dtype=torch.float64)
    found, truth = (torch.autograd.grad((x * weights).sum(), logits)[0] for x in (entropy, by_hand))
    assert truth.abs().max() > 0.01
    assert torch.allclose(found, truth, atol=1e-12)
    assert torch.autograd.gradcheck(logprobs._Entropy.apply, log_p.detach().requires_grad_())


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_give_value_entropy_and_gradient_of_all_logits_at_once(batch, monkeypatch, name):
    model = make(CONFIGS[name]())
    expected = scored(model, batch)
    with torch.no_grad():
        logits = (
            model(input_ids=batch.input_ids[2:], attention_mask=batch.attention_mask[2:].long()).logits[0, 11] / 0.7
        )
    by_hand = torch.log_softmax(logits, -1)[batch.input_ids[2, 12]]
    assert expected[0][-1].item() == pytest.approx(by_hand.item(), abs=1e-5)
    for tokens in (1, 4, 17):
        with chunks_of(tokens, monkeypatch):
            assert_agree(scored(model, batch), expected)


def test_a_head_with_lora_is_used_as_it_is(batch, monkeypatch):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make(CONFIGS["llama"]()), config).eval()
    expected = scored(model, batch)
    with chunks_of(3, monkeypatch):
        assert_agree(scored(model, batch), expected)
    assert any("lm_head" in name and p.grad is not None and p.grad.any() for name, p in model.named_parameters())


def test_a_head_in_four_bits_is_used_as_it_is(batch, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make(hf.LlamaConfig(**LLAMA | {"hidden_size": 64, "head_dim": 16}))
    head = bitsandbytes.nn.Linear4bit(64, V, bias=False, quant_type="nf4")
    head.load_state_dict(model.lm_head.state_dict())
    model.lm_head = head.to("cpu")
    model.lm_head.support_avx512bf16_for_cpu = False
    expected = scored(model, batch)
    assert model.lm_head.weight.dtype == torch.uint8
    with chunks_of(3, monkeypatch):
        assert_agree(scored(model, batch), expected)


def test_a_model_wrapped_for_several_devices_is_scored_in_chunks_too(batch, monkeypatch, tmp_path):
    model = make(CONFIGS["llama"]())
    expected = scored(model, batch)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        calls = heads_output(model)
        with chunks_of(4, monkeypatch):
            assert_agree(scored(wrapped, batch), expected)
        assert max(calls) == 4
    finally:
        torch.distributed.destroy_process_group()


class Cubed(hf.LlamaForCausalLM):
    """Does to its logits what no setting tells."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits**3
        return out


def test_what_a_model_does_unseen_to_its_logits_is_noticed(batch, monkeypatch):
    torch.manual_seed(0)
    model = Cubed(hf.LlamaConfig(**LLAMA, initializer_range=0.3)).eval()
    expected = scored(model, batch)
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="'llama' treat their logits in a way not known"),
    ):
        patch.setattr(logprobs, "LOGITS_BYTES", 3 * V * 4)
        assert_agree(scored(model, batch), expected)
    assert not model.lm_head._forward_hooks and not model.lm_head._forward_pre_hooks
    with chunks_of(3, monkeypatch), pytest.raises(NotImplementedError, match="--multi_gpu instead of FSDP"):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        scored(model, batch)


def heads_output(model):
    """A list that fills with the positions of each call of the output head."""
    calls = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: calls.append(out.numel() // V))
    return calls


def test_never_more_logits_than_the_budget_and_none_of_the_padding(batch, monkeypatch):
    model = make(CONFIGS["llama"]())
    calls = heads_output(model)
    with chunks_of(4, monkeypatch):
        scored(model, batch)
    rows, tokens = len(batch), int(batch.mask.sum())
    assert max(calls) == 4
    assert sum(calls) == rows + 2 * tokens  # the check of the last position, then each token forward and again backward


def test_what_fits_is_computed_once_and_at_once(batch, monkeypatch):
    model = make(CONFIGS["llama"]())
    calls = heads_output(model)
    scored(model, batch)
    assert calls == [len(batch) * (batch.mask.shape[1] + 1)]
    with torch.no_grad(), chunks_of(4, monkeypatch):
        logp, _ = token_logps(model, batch)
    assert not logp.requires_grad
    assert sum(calls[1:]) == len(batch) + batch.mask.sum()  # without gradient, nothing is computed again


def test_chunks_and_recomputed_layers_go_together(batch, monkeypatch):
    model = make(CONFIGS["llama"]())
    expected = scored(model, batch)
    model.gradient_checkpointing_enable()
    with chunks_of(4, monkeypatch):
        assert_agree(scored(model.train(), batch), expected)


@pytest.mark.parametrize("tokens", [3, 1000])
def test_left_padding_and_micro_batches_change_nothing_in_float64(tiny, monkeypatch, tokens):
    model = tiny.copy().model.double()
    prompts, completions = [[3, 13, 16, 20, 4, 58, 7], [5, 20, 7], [6, 1]], [[20, 8, 30, 1], [15, 1], [1]]
    with chunks_of(tokens, monkeypatch, vocabulary=111):
        together = [x.detach() for x in token_logps(model, collate(prompts, completions, tiny.pad_id))]
        assert together[0].dtype == torch.float64
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            for alone, all_rows in zip(token_logps(model, collate([prompt], [completion], 0)), together, strict=True):
                assert torch.allclose(alone[0], all_rows[i, : len(completion)], atol=1e-6, rtol=0)
