"""Sizes of the tiny random models of many families that tests of sampling and of log-probs build."""

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SIZES | {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def bytes_policy(folder, prompts, answer, steps=40):
    """Save a small Llama that reads and writes bytes and one word, the `answer` that it has learnt to give to `prompts`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    tokenizer.add_tokens([answer])
    torch.manual_seed(0)
    sizes = LLAMA | {"vocab_size": len(tokenizer), "eos_token_id": words["<end>"], "pad_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        prompt = tokenizer(prompts[step % len(prompts)])["input_ids"][-256:]
        ids = torch.tensor([[*prompt, len(tokenizer) - 1, words["<end>"]]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
