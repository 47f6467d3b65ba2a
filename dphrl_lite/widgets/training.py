"""Widgets around real runs: their logs while they train, a lab that starts and stops them, and the answers they give."""

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from types import MappingProxyType

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from dphrl_lite import figures, passk, training
from dphrl_lite.errors import lookup
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.objectives import METHODS
from dphrl_lite.study import experiments, pipeline
from dphrl_lite.study.pipeline import Stages
from dphrl_lite.training import TrainConfig
from dphrl_lite.widgets.controls import button, choice, dropdown, wide
from dphrl_lite.widgets.live import Live


class TrainingDashboard(Live):
    """Training curves read from the logs that runs write, while they write them.

    Args:
        folders: run name -> folder given to `training.train(..., out=folder)`; those without a log yet are left out.
        seconds: shortest time between two redraws by `follow`.
        controls, buttons: further widgets, as in `Live`.
        **panels: further arguments of `figures.training_dashboard`.

    Pass `dashboard.follow` as `on_step` to a run in this notebook, or press Refresh for runs elsewhere.
    """

    def __init__(
        self, folders: Mapping[str, str | Path], seconds: float = 1.0, controls=None, buttons: Sequence = (), **panels
    ):
        self.folders, self.seconds, self._redraw_time, self._lock = dict(folders), seconds, 0.0, threading.RLock()
        self._panels = panels
        super().__init__(controls or {}, self._build, extra=[*buttons, button("Refresh", self.redraw)])

    def _build(self) -> go.Figure:
        logs = {name: log for name in self.folders if (log := self._log(name))}
        return figures.training_dashboard(logs, **self._panels)

    def _log(self, name: str) -> list[dict]:
        folder = Path(self.folders[name])
        return training.read_log(folder) if (folder / training.LOG).is_file() else []

    def follow(self, _metrics: dict):
        """Redraw if the last redraw is at least `seconds` ago."""
        if time.monotonic() - self._redraw_time >= self.seconds:
            self.redraw()

    def redraw(self, _change=None):
        """Read the logs and draw them."""
        with self._lock:  # a run in a thread draws, and so does whoever moves a control meanwhile
            super().redraw()
            self._redraw_time = time.monotonic()


class _Stop(Exception):
    """Raised between two steps of a run whose Stop button was pressed."""


class TrainingLab(TrainingDashboard):
    """Start, stop and continue real runs of any method: their curves while they train, their Pass@k when they are done.

    A run trains in a thread, so that the page answers meanwhile. Each choice of method, strength and learning rate has a
    folder of its own under `work`, with a checkpoint of every step: Continue goes on exactly where Stop stopped, or where a
    longer run is wanted, tomorrow as well.

    Args:
        policy, data, parts: the reference, an `experiments.Miniature`, and the partition of its training problems.
        tables: model -> outcomes table of `data.test` (see `experiments.evaluate`), with "base" among them.
        folders: run name -> folder of earlier runs whose curves are shown, too.
        work: where the folders of new runs lie.
        seconds: shortest time between two redraws while training.
        **settings: further fields of `TrainConfig`.
    """

    def __init__(
        self, policy, data, parts, tables, folders=MappingProxyType({}), work="runs/lab", seconds=1.0, **settings
    ):
        self.policy, self.data, self.parts, self.tables = policy, data, parts, dict(tables)
        self.samples = int(lookup(tables, "model", "base")["n"].min())
        self.work, self.settings = Path(work), {"checkpoint_every": 1} | settings
        self.thread, self._stopping, self._status, self._curves = None, threading.Event(), "press Start", {}
        self.start, self.stop = button("Start", self._start), button("Stop", self._stop)
        self.reset = button("Delete this run", self._reset)
        families, rates = list(data.test), [(f"{rate:g}", rate) for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)]
        exponents = {"min": -2, "max": 1, "step": 0.1, "readout_format": ".2g", "description": "strength"}
        controls = {
            "method": dropdown("method", METHODS, "dph-js"),
            "strength": ipywidgets.FloatLogSlider(METHODS["dph-js"].strength, **exponents, **wide()),
            "learning_rate": choice("learning rate", rates, 1e-4),
            "steps": choice("steps in all", [5, 10, 20, 40, 60, 80, 120], 40),
            "family": dropdown("Pass@k on", families, "cd4" if "cd4" in families else families[0]),
        }
        controls["method"].observe(self._take_strength, names="value")
        super().__init__(folders, seconds, controls, [self.start, self.stop, self.reset])

    def _take_strength(self, _change):
        """Each method begins at its own strength: for the DPH methods that of equal curvature."""
        method = METHODS[self.controls["method"].value]
        self.controls["strength"].value = method.strength or self.controls["strength"].value
        self.controls["strength"].disabled = method.penalty == "none"

    def run_settings(self) -> tuple[str, dict]:
        """The run that the controls describe: its name and its settings."""
        method, strength, rate = (self.controls[name].value for name in ("method", "strength", "learning_rate"))
        strength = None if METHODS[method].penalty == "none" else float(f"{strength:.2g}")
        name = method + ("" if strength is None else f" at {strength:g}") + f", lr {rate:g}"
        return name, {"method": method, "strength": strength, "learning_rate": rate}

    def folder(self, name: str) -> Path:
        """Where the run `name` lies under `work`."""
        return self.work / name.replace(",", "").replace(" ", "-")

    def _start(self, _button=None):
        if self.thread is None:
            name, settings = self.run_settings()
            self.folders[name] = self.folder(name)
            steps = max(self.controls["steps"].value, len(self._log(name)))
            self._stopping.clear()
            self.thread = threading.Thread(target=self._run, args=(name, steps, settings), daemon=True)
            self._report(f"{name}: preparing")
            self.thread.start()

    def _run(self, name: str, steps: int, settings: dict):
        """In the thread: train, then evaluate. Whatever happens, the page says so and can go on."""
        try:
            train = TrainConfig(**{"steps": steps} | settings | self.settings)
            stages = Stages(train=train, evaluate=EvaluateConfig(samples=self.samples, greedy=False))
            data, sets = self.data, experiments.problem_sets(self.data.task, self.data.test)
            calling = {"out": self.folders[name], "on_step": partial(self._after_step, name, steps), "progress": False}
            result = pipeline.run(self.policy, stages, data.task, data.train, sets, parts=self.parts, **calling)
            self.tables[name] = result.outcomes
            self._curves.clear()
            status = f"{name}: {steps} steps done and evaluated. For more, raise “steps in all” and continue"
        except _Stop:
            status = f"{name}: stopped after {len(self._log(name))} of {steps} steps. Continue goes on from there"
        except Exception as error:  # in a thread nobody else would show it
            status = f"{name}: {error}"
        with self._lock:
            self.thread = None
            self._report(status)

    def _after_step(self, name: str, steps: int, record: dict):
        self._status = f"{name}: step {record['step']} of {steps}"
        if record["step"] == steps:
            self._status = f"{name}: {steps} steps done, evaluating on held-out problems"
        self.follow(record)
        if self._stopping.is_set():
            raise _Stop  # the step is logged and has its checkpoint

    def _stop(self, _button=None):
        with self._lock:  # what the run says then is the last word
            if self.thread is not None:
                self._stopping.set()
                self._report("stopping when this step is done")

    def _reset(self, _button=None):
        if self.thread is None:
            name, _ = self.run_settings()
            shutil.rmtree(self.folder(name), ignore_errors=True)
            self.folders.pop(name, None)
            self.tables.pop(name, None)
            self._curves.clear()
            self._report(f"{name}: deleted")

    def _report(self, status: str):
        self._status = status
        self.redraw()

    def _build(self, family, method, steps, **_values) -> tuple[str, go.Figure, go.Figure]:
        name, running = self.run_settings()[0], self.thread is not None
        has_log = (self.folder(name) / training.LOG).is_file()
        if has_log:
            self.folders[name] = self.folder(name)
        self.start.description = "Continue" if has_log else "Start"
        self.start.disabled, self.stop.disabled, self.reset.disabled = running, not running, running or not has_log
        summary = f"<b>{escape(name)}</b>, {steps} steps in all: {escape(METHODS[method].summary)}"
        status = f"<div aria-live='polite' style='white-space:pre-wrap'>{summary}\n{escape(self._status)}</div>"
        return status, super()._build(), self._pass_at_k(family)

    def _pass_at_k(self, family: str) -> go.Figure:
        if family not in self._curves:
            table = pd.concat([table.assign(method=name) for name, table in self.tables.items()], ignore_index=True)
            models = experiments.by_family(table)[family]
            ks = passk.powers(models.values())
            self._curves[family] = figures.pass_at_k_curves(models, ks, what=family, crossing="base")
        return self._curves[family]


def solution_browser(policies: Mapping, task, problems: Sequence, samples: int = 1024) -> Live:
    """Choose a problem: its different right answers, and how many of `samples` answers of each policy gave them.

    Args:
        policies: name -> policy, the untouched one under "base".
        task: the verifier.
        problems: to choose from.
        samples: answers of each policy.
    """
    counts = cache(lambda i, by: experiments.solution_counts(policies, task, problems[i], samples, by))
    ways = [("as they are written", "completion"), ("up to the order of operands", "distinct")]
    controls = {
        "problem": dropdown("problem", [(problem.prompt, i) for i, problem in enumerate(problems)], 0),
        "by": dropdown("tell apart", ways, "completion"),
    }
    return Live(controls, lambda problem, by: figures.solution_bars(counts(problem, by), problems[problem].prompt))
