"""Folders that survive a kill: a manifest that says whose they are, files written whole or not at all, and checkpoints.

Pre-sampling, training and experiments all use this one mechanism. Nothing is ever overwritten by a different run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "manifest.json"


class OtherRunError(FileExistsError, ValueError):
    """The folder holds something else; the message shows the difference, and nothing was touched."""

    __str__ = ValueError.__str__


def claim(folder: str | Path, manifest: dict) -> Path:
    """Make `folder` this run's own, or find that it is already: the call that starts and resumes are one.

    Args:
        folder: created if missing.
        manifest: JSON-able settings that decide the result. Equal manifests mean "the same run, go on".

    Raises:
        OtherRunError: the folder holds a run with another manifest, or other files. Nothing is changed.
    """
    folder, manifest = Path(folder), json.loads(json.dumps(manifest))
    path = folder / MANIFEST
    if path.is_file():
        difference = _difference(json.loads(path.read_text()), manifest)
        if difference:
            raise OtherRunError(
                f"{folder} holds another run; nothing was overwritten. It differs in:\n{difference}\n"
                "Choose another folder, or delete this one if you no longer need it"
            )
        return folder
    half_claimed = folder / f".{MANIFEST}.partial"  # killed right here, before anything else was written
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {half_claimed}):
        raise OtherRunError(
            f"{folder} exists and is not a run of this kit (no {MANIFEST}); choose a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True)))
    return folder


def _difference(there: dict, here: dict) -> str:
    keys = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
    return "\n".join(f"  {k}: there {there.get(k)!r}, asked for {here.get(k)!r}" for k in keys)


def write_whole(path: Path, write: Callable[[Path], object]):
    """Call `write(temporary_path)`, then move the result to `path` in one step: readers see all of it or nothing.

    Works for files and for folders; what a killed process left half-written is never taken for the real thing.
    """
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    write(temporary)
    for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    os.replace(temporary, path)


def save_step(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict):
    """Write the checkpoint of `step` (trainable weights, optimizer, JSON-able `state`), then drop the older ones."""

    def write(temporary: Path):
        temporary.mkdir()
        save_file(_trainable(model), temporary / "model.safetensors")
        moments = optimizer.state_dict()["state"]
        flat = {f"{i}.{key}": value for i, values in moments.items() for key, value in values.items()}
        save_file(flat, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))

    older = _steps(folder)
    target = folder / f"step-{step:06d}"
    if target not in older:
        write_whole(target, write)
    for path in older:
        if path != target:
            shutil.rmtree(path)


def load_latest(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
    """Put the newest checkpoint into `model` and `optimizer` and return its state; None where there is none."""
    steps = _steps(folder)
    if not steps:
        return None
    weights = load_file(steps[-1] / "model.safetensors")
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(weights[name])
    moments: dict = {}
    for key, value in load_file(steps[-1] / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return json.loads((steps[-1] / "state.json").read_text())


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


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
