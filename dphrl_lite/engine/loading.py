"""From files to a model in memory: its configuration, its weights, in 4 bits where asked for, and LoRA adapters; and what has to
be mended in other libraries on the way. Knows no profiles and no policies: those are `models`'s.
"""

import importlib
import logging
import math
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from dphrl_lite.engine.adapters import narrow


def config_of(source: str, sizes: tuple[int, ...] = (), llama: bool = False):
    """The configuration of a model; from `sizes`, without the hub: all that decides how much memory is needed. They are of the
    vocabulary, hidden and inner states, layers, heads, and key-value heads, of a Llama or else a Qwen2."""
    from transformers import AutoConfig, LlamaConfig, Qwen2Config

    if not sizes:
        return AutoConfig.from_pretrained(source)
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    kind = LlamaConfig if llama else Qwen2Config
    return kind(**dict(zip(names, sizes, strict=True)), max_position_embeddings=32_768)


def without_weights(config) -> torch.nn.Module:
    """The causal language model of a configuration on the meta device, which takes no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def from_pretrained(source: str, nf4: bool, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The causal language model of a folder or hub id, in evaluation mode; with `nf4` in 4 bits."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hub_logging

    if Path(source).is_dir():
        hub_logging.disable_progress_bar()  # a bar for a download is news, for a file on disk it is noise
    if (
        device.type == "cuda" and device.index is None
    ):  # the threads that load have not this one's current GPU, but GPU 0
        device = torch.device("cuda", torch.cuda.current_device())
    settings = {"dtype": dtype, "device_map": {"": device}}
    if nf4:
        settings["quantization_config"] = nf4_config(dtype)
        if device.type == "cpu":
            _mend_dequantisation()
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **settings)
    finally:
        hub_logging.enable_progress_bar()
    if nf4 and device.type == "cpu":  # or the whole file would stay in memory for its embedding's sake
        for p in model.parameters():
            p.data = p.data.clone() if p.is_floating_point() else p.data
    return model.eval()


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


def need(package: str):
    """The module `package`. Raises `ImportError` with the command that installs it."""
    # bitsandbytes, which peft imports too, warns on some CPUs that it has no faster kernel from the hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is needed for 4-bit weights and LoRA: pip install -e '.[qlora]'") from error
