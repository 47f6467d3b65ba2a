"""How much memory a run will need, before any weight is read: hand-written formulas from a model's configuration, how it is
held, and the run's shape. Compared with what was measured by `benchmarks/memory.py`. Loads nothing.

A run's peak is that of its worst phase, not the sum of all: in each phase another part of the memory is in use.

- sampling: keys and values of all completions in progress, and what drawing a token takes
- head: activations kept for the backward pass, and the logits
- layers: activations kept, and what one layer's backward pass (with recomputation, where layers are checkpointed) takes
- step: gradients, and what the optimizer takes

The reckoning is for the longest completions that the settings allow; attention is torch's fused one (no T x T scores), and the
layers are those of Llama, Qwen, Mistral: two norms, grouped-query attention, a gated MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from torch import nn

from dphrl_lite.engine import graphs, optimizers
from dphrl_lite.engine.batches import microbatch_tokens
from dphrl_lite.engine.devices import NO_BFLOAT16
from dphrl_lite.engine.logprobs import LOGITS_BYTES
from dphrl_lite.errors import lookup
from dphrl_lite.models import LoadPlan, Policy, plan_load, tokenizer
from dphrl_lite.objectives import METHODS
from dphrl_lite.sampling import rows_at_once
from dphrl_lite.scale import costs
from dphrl_lite.tasks import Problem
from dphrl_lite.training import TrainConfig

PHASES = ("sampling", "head", "layers", "step")
CODES = 64 + 1024 + 4  # bytes beside each NF4 matrix: tables of the 4- and 8-bit codes, mean of the scales
CARDS = {
    "t4": ("Tesla T4", 15.8, torch.float16)
}  # what torch says of a card: its name, memory in GB; dtype computed in
ERROR = 0.15  # how far from the measured peak these formulas may be


@dataclass(frozen=True)
class Shape:
    """Numbers of one model: widths (of attention: heads x head size), numbers in weights, and bytes per number."""

    layers: int
    hidden: int
    inner: int
    attention: int
    key_value: int
    vocabulary: int
    parameters: int
    linear: tuple[tuple[int, int], ...]  # (out, in) of the linear layers, without the output head
    itemsize: int

    @classmethod
    def of(cls, model: nn.Module) -> "Shape":
        """Of a model, which may be on the meta device."""
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        heads = getattr(config, "num_attention_heads", None)
        if not heads or not getattr(config, "hidden_size", None) or not getattr(config, "num_hidden_layers", None):
            raise ValueError(
                f"the memory of a {type(model).__name__} cannot be reckoned: its configuration names no attention heads, width "
                "and layers, as a transformer's does; take a transformer, or go on without a plan (--anyway)"
            )
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        linear = [
            tuple(m.weight.shape)[:: -1 if type(m).__name__ == "Conv1D" else 1]  # GPT-2's, whose weights are [in, out]
            for m in model.modules()
            if (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D") and m is not head
        ]
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            attention=heads * size,
            key_value=(getattr(config, "num_key_value_heads", None) or heads) * size,
            vocabulary=config.vocab_size,
            parameters=sum(p.numel() for p in model.parameters()),
            linear=tuple(linear),
            itemsize=model.dtype.itemsize,
        )

    def weights(self, nf4: bool) -> int:
        """Bytes of all weights. NF4 packs two to a byte; 64 share a scale of one byte, and 256 scales a float32."""
        if not nf4:
            return self.parameters * self.itemsize
        sizes = [m * n for m, n in self.linear]
        scales = [-(-size // 64) for size in sizes]
        packed = sum(-(-size // 2) for size in sizes) + sum(k + 4 * -(-k // 256) + CODES for k in scales)
        return packed + (self.parameters - sum(sizes)) * self.itemsize

    def adapter(self, rank: int) -> list[int]:
        """Numbers in each matrix of a LoRA adapter: A `[rank, in]` and B `[out, rank]` beside every linear layer."""
        return [rank * width for shape in self.linear for width in shape]

    def kept(self, adapter: bool) -> int:
        """Bytes per token that one layer keeps for its backward pass, masks left out."""
        h, a, i, s = self.hidden, self.attention, self.inner, self.itemsize
        attention = 4 * a * s  # query, key and value (repeated for all heads), and the output
        if (
            not adapter
        ):  # norms: input, normed, scaled; gate, its activation, up, product; input of the output projection
            return attention + (6 * h + a + 4 * i) * s
        if s == 4:  # frozen weights need no input for a gradient of their own, LoRA's A does
            return attention + (4 * h + a + 4 * i) * s
        # in 16 bits: norms in float32, their outputs, and what the gated MLP multiplies; adapters read these in 16 bits, too
        return attention + 4 * i * s + (8 + 2 * s) * h


def optimizer_bytes(sizes: list[int], name: str, itemsize: int) -> int:
    """Two moments of each number: as wide as the weight, or 8 bits and a float32 scale per 256, tensors under 4,096 in 32."""
    if name == "adamw":
        return 2 * sum(sizes) * itemsize
    return sum(2 * n + 8 * -(-n // 256) if n >= 4096 else 8 * n for n in sizes) + 2 * 1024


def plan(
    name: str | Path | LoadPlan,
    config: TrainConfig | None = None,
    *,
    prompt_tokens: int = 256,
    in_place: bool = True,
    training: bool = True,
    **held,
) -> pd.DataFrame:
    """What `training.train` will need of memory, part by part.

    Args:
        name: as `models.load` takes it, or a `models.LoadPlan`.
        config: the run's settings; None: DPH-JS with the defaults.
        prompt_tokens: length of the longest prompts.
        in_place: the policy itself is trained, as the command line does; otherwise a copy.
        training: False for what sampling alone needs.
        **held: `device`, `dtype`, `nf4`, `lora_rank`, as for `models.load`.

    Returns:
        pandas table: part, gb (10^9 bytes), knob (the setting that changes it), and one column per phase, True where the part
        is in memory. `peak_gb` reads it.

    Raises:
        What `models.load` raises for a name that it does not know or cannot reach.
    """
    load_plan = name if isinstance(name, LoadPlan) else plan_load(name, **held)
    config = config or TrainConfig("dph-js")
    rows = [
        *_held(load_plan, config, in_place),
        *_sampling(load_plan, config, prompt_tokens),
        *_update(load_plan, config, prompt_tokens),
    ]
    alone = ("weights", "adapter", "key-value cache", "decoding graphs")
    rows = [row for row in rows if training or row[0] in alone or row[3] == ("sampling",)]
    table = pd.DataFrame(rows, columns=["part", "gb", "knob", "phases"])
    table["gb"] /= 1e9
    for phase in PHASES:
        table[phase] = [phase in phases for phases in table["phases"]]
    return table.drop(columns="phases")[table["gb"] > 0].reset_index(drop=True)


def peak_gb(table: pd.DataFrame) -> pd.Series:
    """GB needed in each phase of a `plan`; the need of the run is its maximum."""
    return pd.Series({phase: table.loc[table[phase], "gb"].sum() for phase in PHASES}, name="gb")


def free_gb(device: torch.device) -> float:
    """What is there: memory of the GPU not in use by anybody, else main memory that can be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    return psutil.virtual_memory().available / 1e9


def check(
    name: str,
    config: TrainConfig,
    problems: Sequence[Problem],
    training: bool = True,
    nf4: bool = False,
    anyway: bool = False,
) -> str:
    """The table of `plan` as text, with what is there and, where that will not do, what to change; then the run's hours.

    Args:
        name: the model, as `models.load` takes it.
        config: the run's settings.
        problems: of which the longest prompt counts; where only sampled, all are counted for the hours.
        training: False for what sampling alone needs.
        nf4: as for `models.load`.
        anyway: do not refuse.

    Raises:
        MemoryError: the need is above what is there by more than the reckoning's own error.
    """
    load_plan = plan_load(name, nf4=nf4)
    prompt = max((p.prompt for p in problems), key=len)
    tokens = len(Policy(load_plan.model, tokenizer(load_plan.profile), name).encode(prompt))
    try:
        table = plan(load_plan, config, prompt_tokens=tokens, training=training)
    except ValueError as error:
        if not anyway:
            raise
        return str(error)
    need, free = peak_gb(table), free_gb(load_plan.device)
    text = _shown(table, free)
    if need.max() > free * (1 + ERROR) and not anyway:
        raise MemoryError(f"{text}. Or --anyway")
    return f"{text}\n{_hours(load_plan, config, len(problems), tokens, training)}"


def _hours(load_plan: LoadPlan, config: TrainConfig, problems: int, prompt_tokens: int, training: bool) -> str:
    """What `costs.told` says of a run, or of drawing alone."""
    asked, steps = (config.problems_per_step, config.steps) if training else (problems, 1)
    longest = config.max_new_tokens or load_plan.profile.max_new_tokens
    batch = costs.Batch(asked, config.samples, prompt_tokens, longest, config.rehearsal_per_step)
    shape, adapter = Shape.of(load_plan.model), load_plan.profile.lora_rank
    parts = costs.flops(config.method, steps * shape.parameters, batch, "qlora" if adapter else "full")
    what = f"{steps} steps" if training else f"{problems} problems"
    rows = min(config.problems_per_step * config.samples, rows_at_once(load_plan.model, prompt_tokens + longest))
    parts = parts if training else {"sampling": parts["sampling"]}
    return costs.told(parts, costs.matrix_rate(load_plan.device, load_plan.dtype), rows, what, load_plan.device.type)


def on_card(card: str, name: str = "qlora-7b", config: TrainConfig | None = None, prompt_tokens: int = 256) -> str:
    """The table of `plan` as text for a card of `CARDS` that is not here. Raises `ValueError` for one that is not known."""
    title, gb, dtype = lookup(CARDS, "card", card)
    config = config or TrainConfig("dph-js", problems_per_step=2, samples=4, rehearsal_per_step=8, max_new_tokens=960)
    table = plan(name, config, prompt_tokens=prompt_tokens, device="cuda", dtype=dtype)
    steps = (
        f"{config.problems_per_step} x {config.samples} completions and {config.rehearsal_per_step} rehearsed a step"
    )
    reason = f"\n{NO_BFLOAT16}" if dtype == torch.float16 else ""
    longest = f"{prompt_tokens} + {config.max_new_tokens} tokens"
    return f"{name} on {title}, {config.method}: {steps}, {longest}{reason}\n{_shown(table, gb)}"


def _shown(table: pd.DataFrame, free: float) -> str:
    """A plan as text, with what is there, and what to change where that will not do."""
    need = peak_gb(table)
    worst = need.idxmax()
    when = table[list(PHASES)].apply(lambda row: ", ".join(row.index[row]), axis=1)
    shown = table[["part", "gb", "knob"]].assign(when=when).to_string(index=False, float_format="{:.3f}".format)
    text = f"{shown}\n{need.max():.3f} GB needed at most ({worst}), {free:.3f} GB free"
    if need.max() <= free * (1 - ERROR):
        return text
    knobs = table[table[worst] & (table["knob"] != "")].sort_values("gb", ascending=False)
    advice = "; ".join(f"{row.part} {row.gb:.1f} GB: {row.knob}" for row in knobs.head(3).itertuples())
    verb = "will" if need.max() > free * (1 + ERROR) else "may"
    return f"{text}\nthis {verb} not fit. What takes most, and the setting that changes it: {advice}"


# ---- the parts: (part, bytes, knob, phases) ----------------------------------------------------------------------------


def _trained(load_plan: LoadPlan, shape: Shape) -> tuple[list[int], int]:
    """Numbers in each tensor that is trained, and bytes of each number; an adapter is float32, or its updates would be lost."""
    if load_plan.profile.lora_rank:
        return shape.adapter(load_plan.profile.lora_rank), 4
    return [p.numel() for p in load_plan.model.parameters()], shape.itemsize


def _held(load_plan: LoadPlan, config: TrainConfig, in_place: bool) -> list[tuple]:
    """What does not depend on the run's shape."""
    shape, method, rank = Shape.of(load_plan.model), METHODS[config.method], load_plan.profile.lora_rank
    weights = shape.weights(load_plan.profile.nf4)
    sizes, itemsize = _trained(load_plan, shape)
    name = optimizers.choose(config.optimizer, load_plan.profile.nf4, load_plan.device)
    second = weights * (not rank) * (not in_place or method.needs_reference)
    return [
        ("weights", weights, "nf4=True, or a smaller model", PHASES),
        ("reference", second, "a dph method, lora_rank, in_place=True", PHASES),
        ("adapter", sum(sizes) * itemsize * bool(rank), "lora_rank", PHASES),
        ("optimizer", optimizer_bytes(sizes, name, itemsize), "optimizer, lora_rank", PHASES),
        ("optimizer work space", 2 * max(sizes) * itemsize, "", ("step",)),
    ]


def _longest(load_plan: LoadPlan, config: TrainConfig) -> int:
    return config.max_new_tokens or load_plan.profile.max_new_tokens


def _sampling(load_plan: LoadPlan, config: TrainConfig, prompt_tokens: int) -> list[tuple]:
    shape, length = Shape.of(load_plan.model), prompt_tokens + _longest(load_plan, config)
    at_once, captured = rows_at_once(load_plan.model, length, load_plan.device), load_plan.device.type == "cuda"
    prompts = min(max(1, at_once // config.samples), config.problems_per_step)
    rows, graph = min(at_once, prompts * config.samples), 0
    if captured:  # beside the buffers, what the graphs of one token keep: logits, and a weight that is dequantised
        rows, length = graphs.capacity_for(rows), graphs.room_for(length)
        graph = rows * shape.vocabulary * (4 + shape.itemsize)
        graph += max(m * n for m, n in shape.linear) * shape.itemsize * load_plan.profile.nf4
    layer = 2 * rows * length * shape.itemsize  # of a width of one number
    # one layer's cache grows into a new buffer, or is copied as rows leave, and its heads are repeated where prompts differ
    repeated = shape.attention * (shape.attention > shape.key_value and not captured)
    decode = layer * (shape.key_value + repeated)
    prefill = prompts * prompt_tokens * (2 * shape.hidden + 3 * shape.inner + 4 * shape.attention) * shape.itemsize
    cache = layer * shape.key_value * shape.layers
    held = PHASES if captured and cache + graph <= graphs.KEPT_BYTES else ("sampling",)
    return [
        ("key-value cache", cache, "samples, max_new_tokens", held),
        ("decoding graphs", graph, "samples", held),
        ("drawing", 24 * shape.vocabulary * rows, "samples", ("sampling",)),  # float32 logits, log-probs; float64 sums
        ("sampling work space", max(decode, prefill), "samples, length of prompts", ("sampling",)),
    ]


def _update(load_plan: LoadPlan, config: TrainConfig, prompt_tokens: int) -> list[tuple]:
    """Of the two passes of an update, over fresh completions and then over stored ones, the one that needs more."""
    rehearses = METHODS[config.method].rehearses
    width = prompt_tokens + _longest(load_plan, config)
    at_once = max(1, microbatch_tokens(config.microbatch_tokens, Shape.of(load_plan.model).vocabulary) // width)
    sizes, itemsize = _trained(load_plan, Shape.of(load_plan.model))
    gradient, knob = sum(sizes) * itemsize, "gradient_parts=False"
    fresh, stored = config.problems_per_step * config.samples, config.rehearsal_per_step * rehearses
    passes = []
    for completions, aside in ((fresh, 0), (stored, gradient * rehearses * config.gradient_parts)):
        rows = -(-completions // config.minibatches)  # of one minibatch
        parts = _pass(load_plan, min(rows, at_once), width, _longest(load_plan, config))
        # of one micro-batch alone, gradients come as activations go
        besides = gradient if rows > at_once else max(0, gradient - parts[0][1])
        parts += [("gradients", besides, "lora_rank", ("head",) * (rows > at_once) + ("layers",))]
        parts += [("gradient parts", aside, knob, ("head", "layers"))]
        passes.append(parts)
    worse = max(passes, key=lambda parts: max(sum(row[1] for row in parts if x in row[3]) for x in ("head", "layers")))
    aside = gradient * rehearses * config.gradient_parts
    return [*worse, ("gradients", gradient, "lora_rank", ("step",)), ("gradient parts", aside, knob, ("step",))]


def _pass(load_plan: LoadPlan, rows: int, width: int, longest: int) -> list[tuple]:
    """One micro-batch of `rows` completions: what is kept for the backward pass, and what that takes besides."""
    shape, nf4, rank = Shape.of(load_plan.model), load_plan.profile.nf4, load_plan.profile.lora_rank
    s, knob, tokens = shape.itemsize, "microbatch_tokens, max_new_tokens", rows * width
    kept = tokens * (shape.kept(bool(rank)) + width * s)  # the mask in numbers, once per layer
    stream = tokens * shape.hidden * s * shape.layers  # checkpointed, each layer keeps its input alone
    head = shape.vocabulary * shape.hidden * s
    largest = max(m * n for m, n in shape.linear) * s  # a weight dequantised, or its gradient
    backward = tokens * (3 * shape.inner + 2 * shape.hidden) * s + largest + head * (not rank)  # gradients in the MLP
    positions = rows * (longest + 1)
    if 4 * shape.vocabulary * positions > LOGITS_BYTES:  # then in pieces, computed again: see `logprobs`
        positions = LOGITS_BYTES // (4 * shape.vocabulary)
    logits = positions * shape.vocabulary * (4 * 4 + s * (s < 4))  # logits, log-probs, probabilities; their gradients
    return [
        ("activations", stream if nf4 else kept * shape.layers, knob, ("head", "layers")),
        ("logits", logits + 2 * head * (not rank), "", ("head",)),  # each piece has a gradient of the head to add up
        ("layer work space", backward + kept * nf4, knob, ("layers",)),
    ]
