"""Remake `data/tiny`: the tiny model's tokenizer and its supervised pre-training. Run: `python data/make_tiny.py`.

It learns countdown and miniature text-to-SQL. On one machine the same command writes the same bytes (one thread, fixed
seeds).
"""

import argparse
import math
import os
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dphrl_lite.sampling import collate, token_logps
from dphrl_lite.tasks import countdown, minisql

WORDS = ["<pad>", "<eos>", "<unk>", "countdown", "target", "sort", "=", "+", "-", "*", *map(str, range(100))]
WORDS = list(dict.fromkeys([*WORDS, *minisql.vocabulary()]))
STEPS, BATCH, SQL_SHARE, LEARNING_RATE, WARM_UP = 1200, 224, 0.24, 3e-3, 100
LONGEST_ANSWER = 40  # tokens


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; words stand between spaces."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 0.3M parameters."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=80,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def schedule(step: int) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to zero."""
    done = (step - WARM_UP) / (STEPS - WARM_UP)
    return (step + 1) / WARM_UP if step < WARM_UP else 0.5 * (1 + math.cos(math.pi * done))


def cross_entropy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list) -> torch.Tensor:
    """Mean over the answers' tokens."""
    prompts, answers = zip(*examples, strict=True)
    answers = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(answers))["input_ids"]]
    batch = collate(tokenizer(list(prompts))["input_ids"], answers, tokenizer.pad_token_id)
    return -token_logps(model, batch)[0][batch.mask].mean()


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast):
    """Cross-entropy on the answers of both tasks' `supervised_examples`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    bar = tqdm(range(STEPS))
    for step in bar:
        optimizer.zero_grad()
        loss = 0.0
        for task, share in ((countdown, 1 - SQL_SHARE), (minisql, SQL_SHARE)):
            some = share * cross_entropy(model, tokenizer, task.supervised_examples(round(share * BATCH), seed=step))
            some.backward()
            loss += some.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        bar.set_postfix(loss=f"{loss:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    pretrain(model, tokenizer)
    model.generation_config.max_new_tokens = LONGEST_ANSWER
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters written to {out}: {sorted(os.listdir(out))}")


if __name__ == "__main__":
    main()
