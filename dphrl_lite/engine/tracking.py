"""Metrics to experiment trackers, through accelerate's tracker classes. The run's own log.jsonl is written with or without."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import tracking
from accelerate.utils import LoggerType

PROJECT = "dphrl-lite"


def check(names: Sequence[str]):
    """Raise `ValueError` for a tracker that accelerate does not know, or whose package is not installed."""
    installed = [str(x) for x in tracking.get_available_trackers()]
    for name in names:
        if name in tracking.LOGGER_TYPE_TO_CLASS and (name in installed or name not in LoggerType.list()):
            continue  # installed, or a class of your own that accelerate was told of
        known = sorted(tracking.LOGGER_TYPE_TO_CLASS)
        why = f"is not installed (pip install {name})" if name in known else "is no tracker that accelerate knows"
        raise ValueError(
            f"tracker {name!r} {why}; expected some of: {', '.join(known)}; installed here: {', '.join(installed) or 'none'}"
        )


class Trackers:
    """Some trackers of one run, closed at the end of a `with`; with none of them nothing happens."""

    def __init__(self, names: Sequence[str], folder: Path | None, settings: Mapping):
        classes = [tracking.LOGGER_TYPE_TO_CLASS[name] for name in names]
        if folder is None and any(c.requires_logging_directory for c in classes):
            raise ValueError(f"{', '.join(names)} write to a folder, and this run has none: pass out=...")
        self.all = [c(PROJECT, folder) if c.requires_logging_directory else c(PROJECT) for c in classes]
        plain = {k: x if isinstance(x, (bool, int, float, str)) else str(x) for k, x in settings.items()}
        for tracker in self.all:
            tracker.start()
            tracker.store_init_configuration(plain)

    def log(self, record: Mapping):
        """One step's metrics; those that a method does not have are left out."""
        for tracker in self.all:
            tracker.log({k: x for k, x in record.items() if x is not None}, step=record["step"])

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_error):
        for tracker in self.all:
            tracker.finish()
