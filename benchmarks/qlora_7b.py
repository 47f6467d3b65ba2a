"""Seconds, memory and arithmetic of QLoRA on Qwen2.5-7B: decoding, updates per method, whole steps. The command for a GPU is

    python benchmarks/qlora_7b.py --out data/runs/qlora-7b.json

and `--size tiny` runs the same code on a CPU in seconds (its figures say nothing about a GPU, and are not committed). It can be
cut into pieces, each of a few minutes, that add to one file: `--part decode`, `--part update --methods grpo rkl`, ...

The architecture of Qwen2.5-7B with random weights, made in NF4 (double quantisation) matrix by matrix on the device, so that
nothing is downloaded and the float weights are never held; LoRA of rank 16 on all linear layers; 2 problems x 4 completions of
64 + 960 = 1,024 tokens a step, 8 of them at a time (8,192 tokens), one update; methods that rehearse push 8 stored completions
of the same length through, too. No token ends a completion. Random weights write random text, so every other answer counts as
right: all groups are mixed. Before training all answers to half of the problems do, so that there is something to rehearse.

- decode: `sampling.generate` with 8, 32 and 64 rows: all seconds of 64 + 960 tokens over 960; the eager way and transformers'
  `generate` (with peft's own LoRA products, and with ours) in the same run, 16 and 80 tokens, difference over 64 (short contexts
  are to their advantage). Before it is timed, each way has run once: graphs are captured, and what that takes is said.
- kernels: what the GPU does while one token of 8 rows is decoded, captured and eagerly: kernels, their milliseconds, and the
  first 100 of them on a time line.
- update: the update of each method, judging (nothing here) included. Completions are made up, and scored by the training forward.
- step: whole steps, completions sampled.
- gradients: an adapter's gradients, products in bfloat16 and in float32, against a network that computes in float32 throughout.
- trl: one update of TRL's GRPOTrainer on the same weights and tokens, with and without its KL term, peft's own LoRA products.

The share of the matrix rate counts 6 x parameters x tokens: 2 each for the forward pass, its recomputation, and the gradients of
activations (frozen weights need none), and 2 for a reference's forward; parameters without the input embedding, which multiplies
nothing; tokens with prompts. Goals, on an H200: 8 rows under 25 ms a token and at least 6 times `generate`; a whole dph-js step
under 25 s; an update over 40 per cent of the card's measured bfloat16 rate; peak under 12 GB; the reckoning within 10 per cent.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

from dphrl_lite import models, presampling, training
from dphrl_lite.engine import decoding, devices, graphs, loading
from dphrl_lite.engine.logprobs import collate, token_logps
from dphrl_lite.metrics import peak_memory_gb
from dphrl_lite.sampling import Completion, generate
from dphrl_lite.scale import costs, memory
from dphrl_lite.tasks import Problem, Task, Verdict

PROBLEMS, SAMPLES, RANK = 2, 4, 16
METHODS = ("grpo", "rkl", "dph-f", "dph-js")
PARTS = ("decode", "kernels", "update", "step", "gradients", "trl")
SIZES = {  # of the model (None: as the profile says), of a prompt and of a completion, and of the matrix that is timed
    "7b": (None, 64, 960, 8192),
    "tiny": ((512, 64, 128, 2, 4, 2), 8, 24, 256),
}
ROWS = (8, 32, 64)  # decoded at once
KINDS = {"products with 4-bit weights": ("4bit", "Dequantize"), "other matrix products": ("nvjet", "gemm", "cublas", "splitK"),
         "attention": ("sdpa", "flash", "fmha", "attention"), "the rest": ("",)}  # fmt: skip
FEW, MORE = 16, 80  # tokens, of which the difference is timed, of the slower ways


class Numbers:
    """A tokenizer of numbers: the weights know no words."""

    pad_token_id, chat_template = 0, None
    bos_token_id = eos_token_id = unk_token_id = None

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


def build(plan: models.LoadPlan) -> models.Policy:
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
    model.config.quantization_config, model.is_loaded_in_4bit = loading.nf4_config(dtype), True
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model = loading.with_lora(model.eval(), None, RANK, True)
    return models.Policy(model, Numbers(model.config.vocab_size), "qlora-7b", list(plan.reasons), adapter=True)


def plan_load(size: str) -> models.LoadPlan:
    """What is built, on this machine's device."""
    sizes = SIZES[size][0]
    if sizes is None:
        return models.plan_load("qlora-7b")
    from transformers import Qwen2Config

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen2Config(**dict(zip((*names, "num_key_value_heads"), sizes, strict=True)), tie_word_embeddings=False)
    empty = loading.without_weights(config)
    device, dtype, reasons = devices.choose()
    return models.LoadPlan(models.Profile("", "", True, RANK), None, empty.to(dtype), device, dtype, reasons)


class Clock:
    """A way to draw with its seconds and its peak memory; the peak of the update is what is counted from its end on."""

    def __init__(self, device: torch.device, draw):
        self.device, self.seconds, self.peak, self.draw = device, 0.0, 0.0, draw

    def __call__(self, *arguments, **settings):
        self.wait(reset=True)
        started = time.perf_counter()
        drawn = self.draw(*arguments, **settings)
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


def made_up(policy, prompts, samples: int, *, seeds, max_new_tokens: int, **_) -> list[list[Completion]]:
    """In place of `generate`: completions of random tokens, with the log-probs that the training forward gives them."""
    groups = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, len(policy.tokenizer), (samples, max_new_tokens), generator=generator).tolist()
        with torch.no_grad():
            logp = token_logps(policy.model, collate([prompt] * samples, ids, 0, policy.device))[0].tolist()
        groups.append([Completion(tokens, row, row) for tokens, row in zip(ids, logp, strict=True)])
    return groups


@contextmanager
def drawn_by(draw):
    """Pre-sampling and training draw in that way."""
    before = training.generate, presampling.generate
    training.generate = presampling.generate = draw
    try:
        yield
    finally:
        training.generate, presampling.generate = before


def measure(policy, problems, parts, method: str, steps: int, shape: dict, rate: float, draw) -> dict:
    """One method: `steps` steps after one of warm-up, from a fresh adapter, completions drawn by `draw`."""
    clock, seen, past = Clock(policy.device, draw), [], 0.0

    def on_step(record: dict):
        nonlocal past
        clock.wait()
        seen.append(record | {"sampling_s": clock.seconds - past, "update_gb": peak_memory_gb(policy.device)})
        past = clock.seconds

    with warnings.catch_warnings(record=True) as said, drawn_by(clock):
        warnings.simplefilter("always")
        training.train(
            policy, EveryOther(), problems, parts, method, steps + 1, on_step=on_step, progress=False, **shape
        )
    embedding = policy.model.get_input_embeddings().weight.numel()
    rehearsed = shape["rehearsal_per_step"] * training.METHODS[method].rehearses
    length = len(policy.encode(problems[0].prompt)) + shape["max_new_tokens"]
    trained, asked = (PROBLEMS * SAMPLES + rehearsed) * length, seen[-1]["reference_forwards"] * length
    operations = (6 * trained + 2 * asked) * (base_parameters(policy) - embedding)
    update = statistics.median(x["seconds"] - x["sampling_s"] for x in seen[1:])
    return {
        "method": method,
        "sampling_s": statistics.median(x["sampling_s"] for x in seen[1:]),
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
    """Problems, and completions to them that are made up."""
    vocabulary = len(policy.tokenizer)
    texts = [
        " ".join(str(1 + (7919 * i + 31 * j) % (vocabulary - 1)) for j in range(prompt)) for i in range(2 * PROBLEMS)
    ]
    problems = [Problem(str(i), text, "any") for i, text in enumerate(texts)]
    settings = {"problems_per_batch": len(problems), "max_new_tokens": longest, "progress": False}
    with drawn_by(made_up):
        table = presampling.sample(policy, EveryOther(untrained=True), problems, SAMPLES, **settings)
    return problems, presampling.partition(table, threshold=SAMPLES)


class Bench:
    """The model, its problems and the run's shape, and one method for each part."""

    def __init__(self, size: str, methods: list[str], steps: int):
        self.size, self.methods, self.steps, self.plan = size, methods, steps, plan_load(size)
        if size == "7b" and self.plan.device.type != "cuda":
            raise SystemExit("7B needs a GPU, and torch finds none: --size tiny runs the same code on a CPU")
        _, self.prompt, self.longest, matrix = SIZES[size]
        self.gpu = self.plan.device.type == "cuda"
        tokens = PROBLEMS * SAMPLES * (self.prompt + self.longest)
        self.shape = {"problems_per_step": PROBLEMS, "samples": SAMPLES, "rehearsal_per_step": PROBLEMS * SAMPLES}
        self.shape |= {"minibatches": 1, "max_new_tokens": self.longest, "microbatch_tokens": tokens}
        self.rate = costs.matrix_rate(self.plan.device, self.plan.dtype, matrix)
        self.policy = build(self.plan)
        self.problems, self.parts = prepare(self.policy, self.prompt, self.longest)
        trained = [(name, p) for name, p in self.policy.model.named_parameters() if p.requires_grad]
        self.fresh = {name: p.detach().cpu().clone() for name, p in trained}
        print(f"{self.policy.reasons[0]}, {self.rate / 1e12:.2f} TFLOP/s in {self.plan.dtype}", flush=True)

    def start_anew(self):
        """An adapter that has not been trained, no graphs, and a fresh count of memory."""
        graphs._kept.pop(self.policy.model, None)
        self.policy.model.load_state_dict(self.fresh, strict=False)
        self.policy.trained = False
        Clock(self.plan.device, None).wait(reset=True)

    def about(self) -> dict:
        names = ("torch", "transformers", "peft", "bitsandbytes")
        about = {"device": self.policy.reasons[0], "dtype": str(self.plan.dtype), "matrix_flops_per_s": self.rate}
        about |= {"size": self.size, "versions": {name: version(name) for name in names}}
        about |= {"python": platform.python_version(), "parameters": base_parameters(self.policy), "lora_rank": RANK}
        return about | {"shape": self.shape, "prompt_tokens": self.prompt}

    # ---- the parts -----------------------------------------------------------------------------------------------

    def decode(self) -> list[dict]:
        """Milliseconds a token of each way and number of rows."""
        print(f"{'rows':>4s} {'way':22s} {'ms a token':>10s} {'GB':>6s}  seconds to capture")
        found = []
        for rows in ROWS:
            found.append(self._decode("captured", rows, True))
            if rows == ROWS[0]:
                found.append(self._decode("captured, adapter off", rows, True, off=True))
                found.append(self._decode("eager", rows, False))
            if rows == ROWS[0]:
                found.append(self._decode("transformers, our products", rows, None))
            with plain_lora(self.policy.model):
                found.append(self._decode("transformers and peft", rows, None))
        return found

    def _decode(self, way: str, rows: int, captured: bool | None, off: bool = False) -> dict:
        self.start_anew()
        prompts = [self.policy.encode(p.prompt) for p in self.problems[:2]]
        lengths = (
            (self.longest // 2, self.longest) if captured else (min(FEW, self.longest // 2), min(MORE, self.longest))
        )

        def seconds(length: int) -> float:
            clock = Clock(self.plan.device, self._theirs if captured is None else generate)
            settings = {"seeds": range(2), "max_new_tokens": length}
            clock(self.policy, prompts, rows // 2, **settings | ({} if captured is None else {"captured": captured}))
            return clock.seconds

        with self.policy.model.disable_adapter() if off else torch.no_grad():
            first, long = seconds(lengths[0]), seconds(lengths[1])
            short = 0.0 if captured else seconds(lengths[0])
        found = {"way": way, "rows": rows, "tokens": lengths[1] - lengths[0] * (not captured)}
        found |= {"ms_per_token": 1e3 * (long - short) / found["tokens"], "gb": peak_memory_gb(self.plan.device)}
        found |= {"capture_s": first - long / 2} if captured else {}
        capture = f"{first - long / 2:.2f}" if captured else ""
        print(f"{rows:4d} {way:22s} {found['ms_per_token']:10.2f} {found['gb']:6.2f}  {capture}", flush=True)
        return found

    @staticmethod
    @torch.no_grad()
    def _theirs(policy, prompts, samples: int, seeds, max_new_tokens: int):
        ids = torch.tensor(prompts, device=policy.device)
        settings = {"do_sample": True, "top_k": 0, "num_return_sequences": samples, "pad_token_id": 0}
        settings |= {"min_new_tokens": max_new_tokens, "max_new_tokens": max_new_tokens}
        policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)

    def kernels(self) -> list[dict]:
        """What the GPU does during one token; empty without one."""
        return [self._kernels(way, captured) for way, captured in (("captured", True), ("eager", False)) if self.gpu]

    @torch.no_grad()
    def _kernels(self, way: str, captured: bool) -> dict:
        from torch.profiler import ProfilerActivity, profile

        self.start_anew()
        self.policy.model.eval()
        prompts, token = [self.policy.encode(self.problems[0].prompt)], torch.ones(ROWS[0], 1, dtype=torch.long).cuda()
        rows, clock = (
            decoding.start(self.policy, prompts, ROWS[0], self.longest, captured),
            Clock(self.plan.device, None),
        )
        for _ in range(3):
            rows.append(token)
        clock.wait()
        started = time.perf_counter()
        for _ in range(10):
            rows.append(token)
        clock.wait()
        wall = (time.perf_counter() - started) / 10
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            rows.append(token)
            clock.wait()
        events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        events = sorted((e.time_range.start, e.time_range.end, kind_of(e.name)) for e in events)
        found = {
            "way": way,
            "wall_ms": 1e3 * wall,
            "kernels": len(events),
            "busy_ms": sum(b - a for a, b, _ in events) / 1e3,
        }
        found["kinds"] = {k: [0, 0.0] for k in KINDS}
        for a, b, kind in events:
            found["kinds"][kind] = [found["kinds"][kind][0] + 1, found["kinds"][kind][1] + (b - a) / 1e3]
        found["first"] = [[round(a - events[0][0], 2), round(b - events[0][0], 2), kind] for a, b, kind in events[:100]]
        print(
            f"{way}: {found['wall_ms']:.2f} ms, {found['kernels']} kernels, busy {found['busy_ms']:.2f} ms", flush=True
        )
        return found

    def update(self) -> list[dict]:
        """Updates of each method."""
        print(f"{'method':8s} {'GB':>6s} {'reckoned':>8s} {'update s':>9s} {'share of rate':>13s}")
        return [self._measure(method, made_up) for method in self.methods]

    def step(self) -> list[dict]:
        """Whole steps of the last method."""
        print(f"{'method':8s} {'GB':>6s} {'reckoned':>8s} {'update s':>9s} {'share of rate':>13s}")
        row = self._measure(self.methods[-1], generate)
        print(f"         a step {row['step_s']:.2f} s, sampling {row['sampling_s']:.2f} s", flush=True)
        return [row]

    def _measure(self, method: str, draw) -> dict:
        self.start_anew()
        row = measure(self.policy, self.problems, self.parts, method, self.steps, self.shape, self.rate, draw)
        table = memory.plan(plan_load(self.size), training.TrainConfig(method, **self.shape), prompt_tokens=self.prompt)
        reckoned = memory.peak_gb(table)
        row |= {"peak_gb": max(row["sampling_gb"], row["update_gb"]), "reckoned_gb": reckoned.max()}
        row |= {"reckoned_phases": reckoned.round(3).to_dict()}
        numbers = f"{row['peak_gb']:6.2f} {row['reckoned_gb']:8.2f} {row['update_s']:9.2f} {row['share_of_rate']:13.1%}"
        print(f"{method:8s} {numbers}", flush=True)
        return row

    def gradients(self) -> dict:
        """||g - exact|| / ||exact|| of the whole adapter: adapter products in the layers' dtype and in float32."""
        self.start_anew()
        model = self.policy.model.train()
        for name, p in model.named_parameters():
            if "lora_B" in name:  # at 0, A has no gradient
                p.data.normal_(std=0.01)
        batch = self._batch(4, self.longest // 2)
        found = {"narrow": self._gradient(batch)}
        with plain_lora(model):
            found["float32 products"] = self._gradient(batch)
        with computing_in_float32(model):
            exact = self._gradient(batch)
        errors = {way: ((g - exact).norm() / exact.norm()).item() for way, g in found.items()}
        errors["between"] = ((found["narrow"] - found["float32 products"]).norm() / exact.norm()).item()
        print("relative error of the gradient: " + ", ".join(f"{k} {v:.2e}" for k, v in errors.items()), flush=True)
        return errors

    def _batch(self, rows: int, longest: int):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, len(self.policy.tokenizer), (rows, longest), generator=generator).tolist()
        return collate([self.policy.encode(self.problems[0].prompt)] * rows, ids, 0, self.plan.device)

    def _gradient(self, batch) -> torch.Tensor:
        self.policy.model.zero_grad()
        weights = torch.linspace(-1, 1, batch.mask.numel(), device=batch.mask.device).view(batch.mask.shape)
        (token_logps(self.policy.model, batch)[0] * weights).mean().backward()
        trained = [p.grad.flatten() for p in self.policy.model.parameters() if p.requires_grad]
        self.policy.model.zero_grad()
        return torch.cat(trained)

    def trl(self) -> list[dict]:
        """One update of TRL's trainer; needs trl."""
        self.start_anew()
        with plain_lora(self.policy.model), tempfile.TemporaryDirectory() as folder:
            return [self._trl(beta, folder) for beta in (0.0, 0.01)]

    def _trl(self, beta: float, folder: str) -> dict:
        trainer, inputs = trl_trainer(self.policy, beta, folder), self._trl_inputs()
        model, seconds = trainer.model.train(), []
        trained = [p for p in model.parameters() if p.requires_grad]
        kind = "PagedAdamW8bit" if self.plan.device.type == "cuda" else "AdamW8bit"
        optimizer = getattr(loading.need("bitsandbytes").optim, kind)(trained, lr=1e-4)
        clock = Clock(self.plan.device, None)
        for _ in range(self.steps + 1):
            clock.wait(reset=True)
            started = time.perf_counter()
            trl_update(trainer, model, dict(inputs), beta, optimizer, trained)
            clock.wait()
            seconds.append(time.perf_counter() - started)
        tokens = inputs["completion_ids"].numel() + inputs["prompt_ids"].numel()
        operations = (
            (6 + 2 * (beta > 0))
            * tokens
            * (base_parameters(self.policy) - self.policy.model.get_input_embeddings().weight.numel())
        )
        update = statistics.median(seconds[1:])
        found = {"beta": beta, "trl": version("trl"), "update_s": update, "peak_gb": peak_memory_gb(self.plan.device)}
        found["share_of_rate"] = operations / update / self.rate
        print(f"trl, beta {beta}: {update:.2f} s, {found['peak_gb']:.2f} GB, {found['share_of_rate']:.1%}", flush=True)
        return found

    def _trl_inputs(self) -> dict:
        batch = self._batch(PROBLEMS * SAMPLES, self.longest)
        ids, mask = batch.input_ids, batch.attention_mask.long()
        inputs = {"prompt_ids": ids[:, : self.prompt], "prompt_mask": mask[:, : self.prompt]}
        inputs |= {"completion_ids": ids[:, self.prompt :], "completion_mask": mask[:, self.prompt :]}
        return inputs | {"advantages": torch.tensor([1.0, -1.0] * (len(ids) // 2), device=ids.device)}


@contextmanager
def plain_lora(model):
    """Adapter products as peft makes them: in float32."""
    narrow = {
        m: m.__dict__.pop("forward") for m in model.modules() if "lora_A" in m._modules and "forward" in m.__dict__
    }
    try:
        yield
    finally:
        for module, forward in narrow.items():
            module.forward = forward


@contextmanager
def computing_in_float32(model):
    """The same numbers, held and multiplied in float32 (bfloat16 to float32 and back loses nothing)."""
    dtype, packed = model.dtype, [m for m in model.modules() if hasattr(m, "compute_dtype")]
    floats = [t for t in (*model.parameters(), *model.buffers()) if t.dtype == dtype]
    for t in floats:
        t.data = t.data.float()
    for m in packed:
        m.compute_dtype = torch.float32
    try:
        yield
    finally:
        for t in floats:
            t.data = t.data.to(dtype)
        for m in packed:
            m.compute_dtype = dtype


def kind_of(kernel: str) -> str:
    return next(kind for kind, parts in KINDS.items() if any(part in kernel for part in parts))


def trl_trainer(policy, beta: float, folder: str):
    """A GRPOTrainer of the benchmark's model, which never generates here."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(WordLevel({str(i): i for i in range(len(policy.tokenizer))}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    settings = {"output_dir": folder, "beta": beta, "loss_type": "grpo", "report_to": [], "num_generations": SAMPLES}
    settings |= {"per_device_train_batch_size": PROBLEMS * SAMPLES, "gradient_checkpointing": True}
    settings |= {"bf16": policy.model.dtype == torch.bfloat16, "use_cpu": policy.device.type == "cpu"}
    data = Dataset.from_dict({"prompt": ["1 2 3"] * 8})
    reward = lambda completions, **_: [0.0] * len(completions)
    return GRPOTrainer(policy.model, reward, GRPOConfig(**settings), data, processing_class=tokenizer)


def trl_update(trainer, model, inputs: dict, beta: float, optimizer, trained: list):
    """What `GRPOTrainer` does from given completions on: the reference's log-probs, loss, backward, clip, step."""
    if beta:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.no_grad(), model.disable_adapter():
            found = trainer._get_per_token_logps_and_entropies(model, ids, mask, inputs["completion_ids"].shape[1])
        inputs["ref_per_token_logps"] = found[0]
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, inputs)
    trainer.accelerator.backward(loss)
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[p for p in PARTS if p != "trl"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each method")
    parser.add_argument("--out", help="a JSON file; what other parts have written there stays")
    arguments = parser.parse_args(argv)
    bench = Bench(arguments.size, arguments.methods, arguments.steps)
    command = " ".join(["python", "benchmarks/qlora_7b.py", *(sys.argv[1:] if argv is None else argv)])
    for part in arguments.part:
        found = getattr(bench, part)()
        if arguments.out:
            add(Path(arguments.out), part, {"command": command, **bench.about(), "found": found})


def add(path: Path, part: str, found: dict):
    """Put what one part found into the file; of the updates, methods measured before stay."""
    whole = json.loads(path.read_text()) if path.is_file() else {}
    if part == "update" and part in whole:
        new = {row["method"] for row in found["found"]}
        found["found"] = [row for row in whole[part]["found"] if row["method"] not in new] + found["found"]
    path.write_text(json.dumps(whole | {part: found}, indent=1))


def version(name: str) -> str:
    return __import__(name).__version__


if __name__ == "__main__":
    main()
