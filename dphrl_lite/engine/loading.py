"""What stands between a model's files and a policy."""

import importlib
import logging


def need(package: str):
    """The module `package`. Raises `ImportError` with the command that installs it."""
    # bitsandbytes, which peft imports too, warns on some CPUs that it has no faster kernel from the hub
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is needed for 4-bit weights and LoRA: pip install -e '.[qlora]'") from error
