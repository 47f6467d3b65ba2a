"""Models as they are found on the hub: other layers, tokenizers of several habits, contexts that end."""

import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

from dphrl_lite import models, sampling
from dphrl_lite.scale import memory
from dphrl_lite.training import TrainConfig

V = 256  # the id of the first special token
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tokenizer(specials, template=None, around="$A:0", **names):
    """A byte-level tokenizer with special tokens, which writes `around` what it encodes."""
    words = {word: i for i, word in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *specials])}
    bpe = Tokenizer(tokenizer_models.BPE(vocab=words, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens(specials)
    known = [(token, words[token]) for token in specials if token in around]
    bpe.post_processor = (
        processors.TemplateProcessing(single=around, special_tokens=known) if known else bpe.post_processor
    )
    made = T.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    made.chat_template = template
    return made


def policy(folder, config, made):
    torch.manual_seed(0)
    T.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return models.load(str(folder))


def llama(made, **ids):
    return T.LlamaConfig(
        **SIZES, max_position_embeddings=64, vocab_size=len(made), **{"bos_token_id": None, "eos_token_id": None} | ids
    )


def gpt2(folder):
    end = "<|endoftext|>"
    made = tokenizer([end], bos_token=end, eos_token=end)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return policy(folder, T.GPT2Config(vocab_size=len(made), **shape, bos_token_id=V, eos_token_id=V), made)


def test_layers_of_gpt2_are_in_the_memory_plan(tmp_path):
    shape = memory.Shape.of(gpt2(tmp_path).model)
    assert sorted(shape.linear) == sorted([(96, 32), (32, 32), (128, 32), (32, 128)] * 2)  # (out, in)
    assert memory.peak_gb(memory.plan(str(tmp_path), TrainConfig("grpo"))).max() > 0


def test_a_model_of_unknown_shape_gets_a_sentence(tmp_path):
    made = tokenizer(["<e>"], eos_token="<e>")
    ids = {"eos_token_id": V, "pad_token_id": V, "bos_token_id": V}
    policy(
        tmp_path, T.MambaConfig(vocab_size=len(made), hidden_size=32, num_hidden_layers=2, state_size=8, **ids), made
    )
    with pytest.raises(ValueError, match="memory of a MambaForCausalLM cannot be reckoned"):
        memory.plan(str(tmp_path), TrainConfig("grpo"))


@pytest.mark.parametrize("names", [{"unk_token": "</s>"}, {"unk_token": "<pad>"}])
def test_an_unknown_token_that_is_also_another_refuses_no_prompt(tmp_path, names):
    made = tokenizer(
        ["<pad>", "</s>"], around="</s>:0 $A:0", bos_token="</s>", eos_token="</s>", pad_token="<pad>", **names
    )
    assert policy(tmp_path, llama(made), made).encode("What is 1 + 1?")


def test_the_end_of_a_turn_ends_a_base_models_completion(tmp_path):
    made = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    assert policy(tmp_path, llama(made, eos_token_id=V), made).eos_ids == {V, V + 2}


def test_prompts_do_not_end_in_the_end_token(tmp_path):
    made = tokenizer(["<s>", "</s>"], around="<s>:0 $A:0 </s>:0", bos_token="<s>", eos_token="</s>")
    ids = policy(tmp_path, llama(made, eos_token_id=V + 1), made).encode("1")
    assert (ids[0], len(ids)) == (V, 2)


def test_neither_end_nor_padding_token(tmp_path):
    made = tokenizer(["<x>"])
    small = policy(tmp_path, llama(made), made)
    groups = sampling.generate(small, [small.encode("abc"), small.encode("ab")], 2, seeds=[0, 1], max_new_tokens=4)
    assert [len(completion.token_ids) for group in groups for completion in group] == [4] * 4


def test_a_template_that_refuses_says_what_to_do(tmp_path):
    made = tokenizer(["</s>"], "{{ raise_exception('needs a system message') }}", eos_token="</s>")
    with pytest.raises(ValueError, match="needs a system message; expected one that takes a single user's message"):
        policy(tmp_path, llama(made), made).encode("1")


@pytest.mark.parametrize("rotary", [False, True])
def test_beyond_the_context_is_refused_with_the_numbers(tmp_path, rotary):
    made = tokenizer(["</s>"], eos_token="</s>")
    small = policy(tmp_path, llama(made), made) if rotary else gpt2(tmp_path)
    for prompt, new in (("x" * 62, 3), ("x", 64)):
        ids = small.encode(prompt)
        with pytest.raises(
            ValueError, match=f"{len(ids)} tokens of the longest prompt and {new} new ones are {len(ids) + new}"
        ):
            sampling.generate(small, [ids], 1, seeds=[0], max_new_tokens=new)
    assert sampling.generate(small, [small.encode("x" * 60)], 1, seeds=[0], max_new_tokens=4)
    if rotary:
        small.model.config.max_position_embeddings = 128  # asked for
        assert sampling.generate(small, [small.encode("x" * 62)], 1, seeds=[0], max_new_tokens=4)
