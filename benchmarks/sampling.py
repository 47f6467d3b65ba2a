"""Sampling against `model.generate`, same model, dtype, prompts and thread, one after the other in the same run.

    python benchmarks/sampling.py [--runs 5] [--seconds 6] [--only ragged] [--out benchmarks/results/sampling.json]

The model has the shape of the shipped tiny one, random weights, and a bias on the end-of-sequence token, so that lengths
are geometric (ragged) or all equal to the cap (full). 4 prompts, 16 completions each, 64 new tokens at most, temperature 1,
unless said otherwise; "64 to 256" are prompts of unlike length, so that some are padded. Cases named "small" take the model
of 135M parameters, made to end at the same rate, and 1 prompt; they are left out, with a word, where data/small is absent.
Speed is completion tokens per second, the token that ends a completion included. `generate` stands there twice: drawing
tokens only, and with `output_logits=True` and log-softmax of what was drawn, since training needs log-probs, which
`sampling.generate` always gives. Goals: at least 2 at ragged 256 and 3 at ragged 1,024, 1.5 with the small model, and never
under 0.95, against drawing only. On a GPU `--only small` says what graphs are worth: at least 4 times as fast as without.
"""

import argparse
import json
import math
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from operator import truediv
from pathlib import Path

import torch
import transformers

from dphrl_lite import models
from dphrl_lite.sampling import generate, pad

RAGGED = {"ending": 1 / 24}
CASES = {
    "ragged, 8 tokens": RAGGED | {"prompt_tokens": 8},
    "ragged, 64": RAGGED | {"prompt_tokens": 64},
    "ragged, 256": RAGGED | {"prompt_tokens": 256},
    "ragged, 1024": RAGGED | {"prompt_tokens": 1024},
    "ragged, 64 to 256": RAGGED | {"prompt_tokens": 256, "shortest": 64},
    "ragged, 64, 32 prompts": RAGGED | {"prompt_tokens": 64, "prompts": 32},
    "ragged, 8, 256 new tokens": {"prompt_tokens": 8, "ending": 1 / 96, "max_new_tokens": 256},
    "full, 8, 1 prompt, G = 1": {"prompt_tokens": 8, "prompts": 1, "samples": 1},
    "full, 256, 1 prompt, G = 1": {"prompt_tokens": 256, "prompts": 1, "samples": 1},
    "full, 8, 1 prompt": {"prompt_tokens": 8, "prompts": 1},
    "full, 256, 1 prompt": {"prompt_tokens": 256, "prompts": 1},
    "full, 1024, 1 prompt": {"prompt_tokens": 1024, "prompts": 1},
    "full, 8, 64 prompts, G = 1": {"prompt_tokens": 8, "prompts": 64, "samples": 1},
    "full, 8, 16 prompts, greedy": {"prompt_tokens": 8, "prompts": 16, "samples": 1, "temperature": 0.0},
    "full, 256, 16 prompts, greedy": {"prompt_tokens": 256, "prompts": 16, "samples": 1, "temperature": 0.0},
    "full, 64, 1 prompt, 152k words": {"prompt_tokens": 64, "prompts": 1, "vocabulary": 152_064, "max_new_tokens": 16},
    "full, 64, top-p 0.95": {"prompt_tokens": 64, "prompts": 1, "top_p": 0.95},
    "small, ragged, 256": RAGGED | {"prompt_tokens": 256, "prompts": 1, "model": "small"},
    "small, full, 256": {"prompt_tokens": 256, "prompts": 1, "model": "small"},
}


@dataclass(frozen=True)
class Case:
    """`ending` is the probability of ending at each token."""

    model: str = field(default="tiny", kw_only=True)
    prompt_tokens: int
    shortest: int = 0  # prompts from so many tokens to `prompt_tokens`; 0: all alike
    prompts: int = 4
    samples: int = 16
    max_new_tokens: int = 64
    ending: float = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    vocabulary: int = 111


def policy_of(case: Case) -> models.Policy:
    """The small policy made to end as the case says, or a random model as `random_tiny` makes it."""
    if case.model == "tiny":
        return random_tiny(case)
    policy = models.load(case.model)
    words, odds = torch.arange(policy.model.lm_head.out_features, device=policy.device), case.ending / (1 - case.ending)
    ends = torch.isin(words, torch.tensor(sorted(policy.eos_ids), device=policy.device))
    eos = words == policy.tokenizer.eos_token_id

    def end(head, inputs, logits):  # nothing here waits for the GPU, or no graph could be captured
        logits = logits.masked_fill(ends, -torch.inf)
        return torch.where(eos, logits.logsumexp(-1, keepdim=True) + math.log(odds), logits) if odds else logits

    policy.model.lm_head.register_forward_hook(end)
    return policy


def random_tiny(case: Case) -> models.Policy:
    """The tiny policy's tokenizer with a random model of its shape and the case's vocabulary and ending."""
    policy = models.load("tiny")
    settings = {"vocab_size": case.vocabulary, "tie_word_embeddings": False, "max_position_embeddings": 4096}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**policy.model.config.to_dict() | settings)).eval()
    head = torch.nn.Linear(model.config.hidden_size, case.vocabulary)
    eos, odds = policy.tokenizer.eos_token_id, case.ending / (1 - case.ending)
    with torch.no_grad():
        head.weight.normal_(std=0.02)[eos] = 0
        head.bias.zero_()[eos] = math.log(odds * (case.vocabulary - 1)) if odds else -1e9
    model.lm_head = head
    policy.model = model
    return policy


def ours(policy, case: Case, prompts: list, captured: bool | None = None) -> int:
    drawn = generate(
        policy,
        prompts,
        case.samples,
        seeds=torch.randint(2**31, (len(prompts),)).tolist(),
        max_new_tokens=case.max_new_tokens,
        temperature=case.temperature,
        top_p=case.top_p,
        training_temperature=case.temperature or 1.0,
        captured=captured,
    )
    return sum(len(c.token_ids) for group in drawn for c in group)


@torch.no_grad()
def theirs(policy, case: Case, prompts: list, logps: bool) -> int:
    ids = pad(prompts, policy.pad_id, left=True).to(policy.device)
    drawing = {"do_sample": True, "top_k": 0, "top_p": case.top_p, "temperature": case.temperature}
    out = policy.model.generate(
        input_ids=ids,
        attention_mask=pad([[1] * len(p) for p in prompts], 0, left=True).to(policy.device),
        num_return_sequences=case.samples,
        max_new_tokens=case.max_new_tokens,
        pad_token_id=policy.pad_id,
        eos_token_id=policy.tokenizer.eos_token_id,
        output_logits=logps,
        return_dict_in_generate=True,
        **(drawing if case.temperature else {"do_sample": False}),
    )
    tokens = out.sequences[:, ids.shape[1] :]
    if logps:
        torch.log_softmax(torch.stack(out.logits, 1), -1).gather(-1, tokens[..., None])
    ends = (tokens == policy.tokenizer.eos_token_id).long()
    return int((ends.cumsum(1) - ends == 0).sum())


def speeds(case: Case, runs: int, seconds: float) -> dict[str, list[float]]:
    """Tokens per second of each way in each run; the ways take turns, so that a busy neighbour disturbs all alike."""
    policy = policy_of(case)
    torch.set_num_threads(1)
    lengths = torch.linspace(case.shortest or case.prompt_tokens, case.prompt_tokens, case.prompts).int().tolist()
    prompts = [torch.randint(3, 111, (n,)).tolist() for n in lengths]
    ways = {
        "ours": lambda: ours(policy, case, prompts),
        "generate": lambda: theirs(policy, case, prompts, False),
        "generate + logits": lambda: theirs(policy, case, prompts, True),
    }
    if policy.device.type == "cuda":
        ways["ours, eager"] = lambda: ours(policy, case, prompts, False)
    found, started = {way: [] for way in ways}, time.perf_counter()
    while len(found["ours"]) <= runs or time.perf_counter() - started < seconds:
        for way, draw in ways.items():
            start = time.perf_counter()
            tokens = draw()
            found[way].append(tokens / (time.perf_counter() - start))
    return {way: values[1:] for way, values in found.items()}  # the first run warms up


def measure(case: Case, runs: int, seconds: float) -> dict:
    found = speeds(case, runs, seconds)
    median = {way: statistics.median(values) for way, values in found.items()}
    ratios = {way: statistics.median(map(truediv, found["ours"], found[way])) for way in found if way != "ours"}
    return {**asdict(case), "runs": len(found["ours"]), "tokens_per_second": median, "ratio": ratios}


def made(name: str) -> bool:
    """Whether the case's model is on this machine; says so where it is not."""
    found = not name.startswith("small") or Path(models.PROFILES["small"].offline).is_dir()
    if not found:
        print(f"{name:30s} not measured: data/small is not made (python data/make_small.py)")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="at least so many of each way")
    parser.add_argument("--seconds", type=float, default=6.0, help="and so long for each case")
    parser.add_argument("--only", default="", help="cases whose name contains this; without --out nothing is written")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    print(
        "completion tokens per second, one thread, medians; ratios: median over runs of ours / generate in the same run"
    )
    print(f"{'case':30s} {'ours':>8s} {'generate':>9s} {'+ logits':>9s} {'ratio':>6s} {'+ logits':>9s} {'runs':>5s}")
    results = []
    for name in filter(made, (name for name in CASES if arguments.only in name)):
        found = measure(Case(**CASES[name]), arguments.runs, arguments.seconds)
        results.append({"case": name, **found})
        mine, plain, logits, *eager = found["tokens_per_second"].values()
        ratio, with_logits, *_ = found["ratio"].values()
        print(
            f"{name:30s} {mine:8.0f} {plain:9.0f} {logits:9.0f} {ratio:6.2f} {with_logits:9.2f} {found['runs']:5d}",
            *(f"  without graphs {speed:.0f}" for speed in eager),
            flush=True,
        )
    about = {"threads": 1, "torch": torch.__version__, "transformers": transformers.__version__}
    about |= {"machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()}
    out = arguments.out or (not arguments.only and Path(__file__).parent / "results" / "sampling.json")
    if out:
        Path(out).write_text(json.dumps(about | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
