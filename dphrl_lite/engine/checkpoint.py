"""Folders that survive a kill: a manifest that says whose they are, files written whole or not at all, and checkpoints.

Pre-sampling, training and experiments all use this one mechanism. Nothing is ever overwritten by a different run.
What a training run writes with it, and how it resumes: `journal`.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dphrl_lite.engine import sharding

MANIFEST = "manifest.json"


class OtherRunError(FileExistsError, ValueError):
    """The folder holds something else; the message shows the difference, and nothing was touched."""

    __str__ = ValueError.__str__


def claim(folder: str | Path, manifest: dict) -> Path:
    """Make `folder` this run's own, or find that it is already: the call that starts and resumes are one.

    Several processes may claim one folder at once, each for its share of the work: the first writes the manifest.

    Args:
        folder: created if missing.
        manifest: JSON-able settings that decide the result. Equal manifests mean "the same run, go on". What stands under
            "versions" is recorded and compared too, but a difference there only warns: see `versions`.

    Raises:
        OtherRunError: the folder holds a run with another manifest, or other files. Nothing is changed.
    """
    folder, manifest = Path(folder), json.loads(json.dumps(manifest))
    path = folder / MANIFEST
    if not path.is_file():
        files = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
        if any(p.name != MANIFEST and not _is_partial(p) for p in files) and not path.is_file():
            raise OtherRunError(
                f"{folder} exists and is not a run of this kit (no {MANIFEST}); choose a new or empty folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(manifest, indent=2, sort_keys=True)
        write_whole(path, lambda temporary: temporary.write_text(text), overwrite=False)
    _check_same_run(folder, read_manifest(folder), manifest)
    return folder


def read_manifest(folder: str | Path) -> dict:
    """The manifest in `folder`, {} where there is none.

    Raises:
        ValueError: it is damaged. This kit writes it whole or not at all, so something else has changed it.
    """
    path = Path(folder) / MANIFEST
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): expected what a run wrote there. Put it back from a copy, or choose another folder"
        ) from error


def versions() -> dict[str, str]:
    """Versions for a manifest, of this kit and of what its numbers come from.

    Another version may change the last bits of a log-prob, and then a token. That alone must not lock anybody out of a
    week's run, so `claim` warns and goes on: what is there stays, what is missing is computed with what is installed.
    """
    versions = {"python": platform.python_version()}
    for name in ("dphrl-lite", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _check_same_run(folder: Path, there: dict, here: dict):
    there_versions, here_versions = there.pop("versions", {}), here.pop("versions", {})
    difference = _difference(there, here)
    if difference:
        raise OtherRunError(
            f"{folder} holds another run; nothing was overwritten. It differs in:\n{difference}\n"
            "Choose another folder, or delete this one if you no longer need it"
        )
    if there_versions and here_versions and there_versions != here_versions:
        warnings.warn(
            f"{folder} was begun with other versions:\n{_difference(there_versions, here_versions)}\nWhat is there is kept, "
            "and the rest is computed with the present ones, which may differ in the last bits. For one set of versions "
            "throughout, install the old ones or choose another folder",
            stacklevel=3,
        )


def _difference(there: dict, here: dict) -> str:
    keys = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
    return "\n".join(f"  {k}: there {there.get(k)!r}, asked for {here.get(k)!r}" for k in keys)


def file_name(name: str) -> str:
    """`name`, percent-encoded where the locale's file names cannot hold its letters."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return quote(name)
    return name


def write_whole(path: Path, write: Callable[[Path], object], overwrite: bool = True):
    """Call `write(temporary_path)`, then move the result to `path` in one step: readers see all of it or nothing.

    Works for files and for folders; what a killed process left half-written is never taken for the real thing, and is
    removed. Processes that write the same path at once do not disturb each other. `overwrite=False` (files only) keeps
    what another process has put there in the meantime.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(temporary)
    except BaseException:
        _remove(temporary)  # or what a full disk cut short would keep it full
        raise
    try:
        for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        (os.replace if overwrite else _place)(temporary, path)
    except FileNotFoundError:
        if not path.exists():  # otherwise another process was faster, and has cleaned up after both
            raise
    for old in path.parent.glob(f".{path.name}.*partial"):
        _remove(old)


def _remove(path: Path):
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _place(temporary: Path, path: Path):
    try:
        os.link(temporary, path)  # the one way to put a whole file where none is, and to lose gracefully
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def save_step(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    write: bool = True,
):
    """Write the checkpoint of `step` (trainable weights, optimizer, JSON-able `state`), then drop the older ones.

    Of several processes one writes, and all call: what is sharded is gathered, and can be read by any number of them.
    """
    weights, moments = sharding.gather(_trainable(model), write), sharding.gather(_moments(optimizer), write)
    if not write:
        return

    def write_files(temporary: Path):
        temporary.mkdir()
        save_file(weights, temporary / "model.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))

    older = _steps(folder)
    target = folder / f"step-{step:06d}"
    if target not in older:
        write_whole(target, write_files)
    for path in older:
        if path != target:
            shutil.rmtree(path)


def load_latest(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
    """Put the newest checkpoint into `model` and `optimizer` and return its state; None where there is none.

    Raises:
        ValueError: one of its files is damaged or missing.
    """
    steps = _steps(folder)
    if not steps:
        return None
    newest = steps[-1]
    try:
        weights, kept = load_file(newest / "model.safetensors"), load_file(newest / "optimizer.safetensors")
        state = json.loads((newest / "state.json").read_text())
    except (ValueError, OSError, SafetensorError) as error:  # we write whole folders: something else has damaged it
        raise ValueError(f"{newest} is damaged ({error}); delete that folder, and the run begins anew") from error
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(sharding.like(weights[name], parameter))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict = {}
    for key, value in kept.items():
        index, name = key.split(".", 1)
        value = value.item() if value.dtype == torch.int64 else sharding.like(value, parameters[int(index)])
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return state


@contextmanager
def explained(folder: Path | None):
    """Turn a full disk or full memory into an error that says what is safe and what to do; other errors pass."""
    try:
        yield
    except Exception as error:
        if folder is None:
            safe = "this run had no folder to go on from (out=...)"
        elif _steps(folder) or any(folder.glob("checkpoint-[0-9]*")):  # the kit's, or TRL's
            safe = f"the last checkpoint in {folder} is intact, and the same call goes on from it"
        else:
            safe = f"nothing is lost: {folder} has no checkpoint yet, and the same call begins there"
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"the disk is full; {safe} once there is room") from error
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise MemoryError(
                f"out of memory ({str(error)[:200]}); {safe}. Lower microbatch_tokens (the result stays the same up to "
                "rounding, but it is another run: choose a new folder), or close other programs"
            ) from error
        raise


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-[0-9]*"))


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    sharding.settle(model)
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state, flat. bitsandbytes nests its 8-bit states for FSDP, shares one table of codes among all weights,
    which safetensors refuses, and counts steps in an int, which `load_latest` gives back as one."""
    states = torch.optim.Optimizer.state_dict(optimizer)["state"]
    flat = {f"{i}.{key}": torch.as_tensor(value) for i, values in states.items() for key, value in values.items()}
    return {key: value.clone() if ".qmap" in key else value for key, value in flat.items()}


def digest(*parts) -> str:
    """A short hash of JSON-able things, for manifests and for seeds that belong to a name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(model: torch.nn.Module) -> str:
    """A short hash of all weights, for manifests: the same name can hold different weights."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()[:16]


def tokenizer_digest(tokenizer) -> str:
    """A short hash of what turns text into tokens: vocabulary, merges, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else tokenizer.get_vocab()
    return digest(rules, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None))
