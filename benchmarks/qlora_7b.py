"""Memory, seconds and arithmetic of QLoRA on Qwen2.5-7B, per method. NOT RUN ON A GPU YET: the command for one is

    python benchmarks/qlora_7b.py --out data/runs/qlora-7b.json

and `--size tiny` runs the same code on a CPU in seconds (its figures say nothing about a GPU, and are not committed).
Goals: under 14 GB, and over 40 per cent of the card's measured bfloat16 rate while updating.

The architecture of Qwen2.5-7B with random weights, made in NF4 (double quantisation) matrix by matrix on the device, so that
nothing is downloaded and the float weights are never held; LoRA of rank 16 on all linear layers; 2 problems x 4 completions of
64 + 960 = 1,024 tokens a step, 8 of them at a time (8,192 tokens), one update; methods that rehearse push 8 stored completions
of the same length through, too. No token ends a completion. Random weights write random text, so every other answer counts as
right: all groups are mixed. Before training all answers to half of the problems do, so that there is something to rehearse.

Sampling is the time in `generate`, the update is the rest of the step, judging (nothing here) included. The share of the matrix
rate counts 6 x parameters x tokens: 2 each for the forward pass, its recomputation, and the gradients of activations (frozen
weights need none), and 2 for a reference's forward; parameters without the input embedding, which multiplies nothing; tokens with
prompts. Where low precision parts sampling and training, pi_old is computed again each step: in the seconds, not in the count.
"""

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

from dphrl_lite import models, presampling, training
from dphrl_lite.metrics import peak_memory_gb
from dphrl_lite.scale import memory
from dphrl_lite.tasks import Problem, Task, Verdict

PROBLEMS, SAMPLES, RANK = 2, 4, 16
METHODS = ("grpo", "rkl", "dph-f", "dph-js")
SIZES = {  # of the model (None: as the profile says), of a prompt and of a completion, and of the matrix that is timed
    "7b": (None, 64, 960, 8192),
    "tiny": ((512, 64, 128, 2, 4, 2), 8, 24, 256),
}


class Numbers:
    """A tokenizer of numbers: the weights know no words."""

    pad_token_id, eos_token_id, unk_token_id, chat_template = 0, None, None, None

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return self.vocabulary

    def __call__(self, text: str, **_) -> dict:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], **_) -> str:
        return " ".join(map(str, ids))


class EveryOther(Task):
    """Every other answer is right, whatever it says; before training, all answers to even problems are."""

    name = "every-other"

    def __init__(self, untrained: bool = False):
        self.untrained, self.judged = untrained, 0

    def check(self, problem: Problem, completion: str) -> Verdict:
        self.judged += 1
        right = self.judged % 2 == 0 or (self.untrained and int(problem.id) % 2 == 0)
        return Verdict(right, completion, "by its place")


def build(plan: models.Outline) -> models.Policy:
    """The model of `plan` with random weights, a matrix at a time, and a fresh adapter."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model, dtype, device = plan.model, plan.dtype, plan.device
    torch.manual_seed(0)
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            held = {"compute_dtype": dtype, "compress_statistics": True, "quant_type": "nf4", "device": "meta"}
            packed = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, **held)
            weight = torch.randn(layer.weight.shape, dtype=dtype, device=device) * 0.02
            weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed)
            packed.weight = weight.to(device)
            model.set_submodule(name, packed)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            empty = torch.empty(parameter.shape, dtype=dtype, device=device)
            filled = empty.normal_(std=0.02) if empty.ndim > 1 else empty.fill_(float(leaf == "weight"))
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(filled, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    model.config.quantization_config, model.is_loaded_in_4bit = models.nf4_config(dtype), True
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model = models.with_lora(model.eval(), None, RANK, True)
    return models.Policy(model, Numbers(model.config.vocab_size), "qlora-7b", list(plan.reasons), adapter=True)


def outline(size: str) -> models.Outline:
    """What is built, on this machine's device."""
    sizes = SIZES[size][0]
    if sizes is None:
        return models.outline("qlora-7b")
    from transformers import Qwen2Config

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen2Config(**dict(zip((*names, "num_key_value_heads"), sizes, strict=True)), tie_word_embeddings=False)
    empty = models.without_weights(config)
    device, dtype, reasons = models.choose_device()
    return models.Outline(models.Profile("", "", True, RANK), None, empty.to(dtype), device, dtype, reasons)


class Clock:
    """`generate` with its seconds and its peak memory; the peak of the update is what is counted from its end on."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.peak, self.generate = device, 0.0, 0.0, training.generate

    def __call__(self, *arguments, **settings):
        self.wait(reset=True)
        started = time.perf_counter()
        drawn = self.generate(*arguments, **settings)
        self.wait()
        self.seconds += time.perf_counter() - started
        self.peak = max(self.peak, peak_memory_gb(self.device))
        self.wait(reset=True)
        return drawn

    def wait(self, reset: bool = False):
        """For the GPU; with `reset`, its peak starts anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            if reset:
                torch.cuda.reset_peak_memory_stats()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a large product, median of 10."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])


def measure(policy, problems, parts, method: str, steps: int, shape: dict, rate: float) -> dict:
    """One method: `steps` steps after one of warm-up, from a fresh adapter."""
    clock, seen, past = Clock(policy.device), [], 0.0

    def on_step(record: dict):
        nonlocal past
        clock.wait()
        seen.append(record | {"sampling_s": clock.seconds - past, "update_gb": peak_memory_gb(policy.device)})
        past = clock.seconds

    training.generate = clock
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            training.train(
                policy, EveryOther(), problems, parts, method, steps + 1, on_step=on_step, progress=False, **shape
            )
    finally:
        training.generate = clock.generate
    embedding = policy.model.get_input_embeddings().weight.numel()
    rehearsed = shape["rehearsal_per_step"] * training.METHODS[method].rehearses
    length = len(policy.encode(problems[0].prompt)) + shape["max_new_tokens"]
    trained, asked = (PROBLEMS * SAMPLES + rehearsed) * length, seen[-1]["reference_forwards"] * length
    operations = (6 * trained + 2 * asked) * (base_parameters(policy) - embedding)
    sampling = statistics.median(x["sampling_s"] for x in seen[1:])
    update = statistics.median(x["seconds"] - x["sampling_s"] for x in seen[1:])
    return {
        "method": method,
        "sampling_s": sampling,
        "update_s": update,
        "step_s": statistics.median(x["seconds"] for x in seen[1:]),
        "sampling_gb": clock.peak,
        "update_gb": max(x["update_gb"] for x in seen),
        "tokens_sampled": PROBLEMS * SAMPLES * shape["max_new_tokens"],
        "tokens_trained": trained,
        "share_of_rate": operations / update / rate,
        "pi_old_again": any("computed again" in str(w.message) for w in said),
        "steps": [{k: x[k] for k in ("seconds", "sampling_s", "reward", "gradient_norm")} for x in seen],
    }


def base_parameters(policy: models.Policy) -> int:
    """Numbers in the base model; a 4-bit weight knows its shape."""
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    return sum(p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel() for p in frozen)


def prepare(policy: models.Policy, prompt: int, longest: int):
    """Problems, and what the untrained model answered to them."""
    vocabulary = len(policy.tokenizer)
    texts = [
        " ".join(str(1 + (7919 * i + 31 * j) % (vocabulary - 1)) for j in range(prompt)) for i in range(2 * PROBLEMS)
    ]
    problems = [Problem(str(i), text, "any") for i, text in enumerate(texts)]
    settings = {"problems_per_batch": len(problems), "max_new_tokens": longest, "progress": False}
    table = presampling.sample(policy, EveryOther(untrained=True), problems, SAMPLES, **settings)
    return problems, presampling.partition(table, threshold=SAMPLES)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each method")
    parser.add_argument("--out")
    arguments = parser.parse_args(argv)
    plan = outline(arguments.size)
    if arguments.size == "7b" and plan.device.type != "cuda":
        raise SystemExit("7B needs a GPU, and torch finds none: --size tiny runs the same code on a CPU")
    _, prompt, longest, matrix = SIZES[arguments.size]
    shape = {"problems_per_step": PROBLEMS, "samples": SAMPLES, "rehearsal_per_step": PROBLEMS * SAMPLES}
    shape |= {"minibatches": 1, "max_new_tokens": longest, "microbatch_tokens": PROBLEMS * SAMPLES * (prompt + longest)}
    rate = matrix_rate(plan.device, plan.dtype, matrix)
    policy = build(plan)
    problems, parts = prepare(policy, prompt, longest)
    fresh = {name: p.detach().cpu().clone() for name, p in policy.model.named_parameters() if p.requires_grad}
    rows = []
    print(f"{policy.reasons[0]}, {rate / 1e12:.2f} TFLOP/s in {plan.dtype}")
    print(f"{'method':8s} {'GB':>6s} {'reckoned':>8s} {'sampling s':>10s} {'update s':>9s} {'share of rate':>13s}")
    for method in arguments.methods:
        policy.model.load_state_dict(fresh, strict=False)
        policy.trained = False
        row = measure(policy, problems, parts, method, arguments.steps, shape, rate)
        table = memory.plan(outline(arguments.size), training.TrainConfig(method, **shape), prompt_tokens=prompt)
        rows.append(
            row | {"peak_gb": max(row["sampling_gb"], row["update_gb"]), "reckoned_gb": memory.peak_gb(table).max()}
        )
        numbers = f"{rows[-1]['peak_gb']:6.2f} {rows[-1]['reckoned_gb']:8.2f} {row['sampling_s']:10.2f} {row['update_s']:9.2f}"
        print(f"{method:8s} {numbers} {row['share_of_rate']:13.1%}", flush=True)
    about = {"command": " ".join(["python", "benchmarks/qlora_7b.py", *(sys.argv[1:] if argv is None else argv)])}
    about |= {"device": policy.reasons[0], "dtype": str(plan.dtype), "matrix_flops_per_s": rate, "size": arguments.size}
    about |= {"versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}}
    about |= {
        "python": platform.python_version(),
        "parameters": base_parameters(policy),
        "lora_rank": RANK,
        "shape": shape,
    }
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(about | {"prompt_tokens": prompt, "results": rows}, indent=1))


def version(name: str) -> str:
    return __import__(name).__version__


if __name__ == "__main__":
    main()
