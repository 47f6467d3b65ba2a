"""The folder of a training run, and how a run that was killed resumes: its log, one JSON line per step, and its checkpoints.

What the metrics mean is `metrics`'s.
"""

import json
from pathlib import Path

import torch
from accelerate import PartialState

from dphrl_lite.engine import checkpoint

LOG = "log.jsonl"


def read_log(folder: str | Path) -> list[dict]:
    """The metrics written so far by a run in `folder`, one dict per step (see `METRICS`).

    Raises:
        FileNotFoundError: no log there.
        ValueError: a line is damaged. The run's checkpoint holds the log, too: resuming the run writes it anew.
    """
    path = Path(folder) / LOG
    if not path.is_file():
        raise FileNotFoundError(f"no training log at {path}; expected a folder that `train(..., out=folder)` wrote")
    *whole, _unfinished = path.read_text(errors="replace").split("\n")
    records = []
    for number, line in enumerate(whole, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} of {path} is damaged: {line[:40]!r}. Run the same training again: it heals the log from "
                "its last checkpoint and goes on"
            ) from error
    return records


class Journal:
    """What a run writes into its folder: log.jsonl and the checkpoints. Without a folder it only remembers the `records`.

    Every process reads; only the main one writes. A checkpoint holds the records, too, and what the log says otherwise after
    a kill or on a full disk is corrected from there.
    """

    def __init__(self, out: str | Path | None, manifest: dict, state: PartialState):
        self.records: list[dict] = []
        self.folder, self.main = None, state.is_main_process
        if out is not None:
            with state.main_process_first():
                self.folder = checkpoint.claim(out, manifest)

    def resume(self, steps: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
        """Put the newest checkpoint into `model`, `optimizer` and `records`; the state that `add` was given with it."""
        if self.folder is None:
            return None
        state = checkpoint.load_latest(self.folder, model, optimizer)
        if state is not None:
            self.records = state["records"]
        if len(self.records) > steps:
            raise ValueError(
                f"{self.folder} holds a run of {len(self.records)} steps, more than the {steps} asked for; "
                f"pass steps={len(self.records)} to read it, or choose another folder"
            )
        text, log = "".join(map(_line, self.records)), self.folder / LOG
        if self.main and not (log.is_file() and log.read_bytes() == text.encode()):
            checkpoint.write_whole(log, lambda temporary: temporary.write_text(text))
        return state

    def add(self, record: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict | None):
        """Add one step to the log; with a JSON-able `state`, write a checkpoint."""
        self.records.append(record)
        if self.main and self.folder is not None:
            with (self.folder / LOG).open("a") as log:
                log.write(_line(record))
        if state is not None and self.folder is not None:
            state = state | {"records": self.records}
            checkpoint.save_step(self.folder, len(self.records), model, optimizer, state, write=self.main)


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"
