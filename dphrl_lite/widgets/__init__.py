"""Widgets around `figures`: choose, slide, and the figure follows. No arithmetic of its own.

A `Live` widget keeps its controls by name (`widget.controls["threshold"].value = 4` works without a browser) and its
newest figures in `widget.figures`, so that every control can be tested without a kernel.
"""

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from html import escape
from pathlib import Path
from types import MappingProxyType

import ipywidgets
import pandas as pd
import plotly.graph_objects as go
import torch

from dphrl_lite import divergences, figures, passk, presampling, training
from dphrl_lite.errors import lookup
from dphrl_lite.lab import bandits, estimators, toys, worlds
from dphrl_lite.objectives import METHODS
from dphrl_lite.passk import Outcomes
from dphrl_lite.scale import budget, costs, lowrank, quantisation
from dphrl_lite.study import debate, experiments
from dphrl_lite.widgets.live import Live, Plot  # noqa: F401 (Plot: for notebooks)

_WIDE = {"description_width": "120px"}


def _slider(label: str, value: float, low: float, high: float, step: float) -> ipywidgets.FloatSlider:
    limits = {"min": low, "max": high, "step": step}
    return ipywidgets.FloatSlider(value, description=label, style=_WIDE, layout={"width": "360px"}, **limits)


def _divergence_dropdown(name: str) -> ipywidgets.Dropdown:
    options = [(divergences.get(n).label if n != "alpha" else "alpha", n) for n in divergences.names()]
    return ipywidgets.Dropdown(options=options, value=name, description="Divergence", style=_WIDE)


def _alpha_slider(dropdown: ipywidgets.Dropdown) -> ipywidgets.FloatSlider:
    """A slider for alpha that can be moved only while the dropdown says "alpha"."""
    slider = _slider("alpha", 0.5, 0, 1, 0.05)

    def follow(_change=None):
        slider.disabled = dropdown.value != "alpha"

    dropdown.observe(follow, names="value")
    follow()
    return slider


def divergence_explorer(name: str = "js") -> Live:
    """Choose a divergence, move a Gaussian policy over a target of two or three modes: f, its pull, the best fit."""
    dropdown = _divergence_dropdown(name)
    controls = {
        "name": dropdown,
        "alpha": _alpha_slider(dropdown),
        "mean": _slider("policy mean", 0.5, -6, 6, 0.1),
        "width": _slider("policy width", 1, 0.4, 4, 0.1),
        "count": ipywidgets.Dropdown(options=[2, 3], description="modes", style=_WIDE),
        "distance": _slider("mode distance", 4, 0, 6, 0.25),
        "weight": _slider("left mode's mass", 0.5, 0.05, 0.95, 0.05),
        "mode_width": _slider("mode width", 0.6, 0.4, 1.5, 0.1),
    }
    button = ipywidgets.Button(description="Jump to the best fit", layout={"margin": "2px 2px 2px 128px"})
    live = Live(controls, _divergence_figure, extra=[button])

    def jump(_button):
        fit, _ = _fit_and_target(**{c: controls[c].value for c in _TARGET})
        controls["mean"].value, controls["width"].value = fit.mean, fit.width

    button.on_click(jump)
    live.jump = button
    return live


_TARGET = ("name", "alpha", "count", "distance", "weight", "mode_width")


def _fit_and_target(name, alpha, count, distance, weight, mode_width) -> tuple[toys.Fit, toys.Modes]:
    target = toys.Modes(count, distance, weight, mode_width)
    return toys.best_fit(name, alpha, target), target


def _divergence_figure(mean, width, **chosen) -> go.Figure:
    fit, target = _fit_and_target(**chosen)
    return figures.divergence_explorer(toys.named(chosen["name"], chosen["alpha"]), fit, mean, width, target)


def simplex_explorer(name: str = "reverse_kl") -> Live:
    """Gradient flow of one penalty on the triangle of three answers, beside forward KL's; move the reference."""
    dropdown = _divergence_dropdown(name)
    controls = {
        "name": dropdown,
        "alpha": _alpha_slider(dropdown),
        "first": _slider("reference: A", 0.6, 0.1, 0.8, 0.05),
        "until": _slider("time", 8, 1, 20, 1),
    }

    def build(name, alpha, first, until):
        reference = torch.tensor([first, 2 * (1 - first) / 3, (1 - first) / 3], dtype=torch.float64)
        chosen = {"forward_kl": divergences.get("forward_kl"), name: toys.named(name, alpha)}
        starts = 0.97 * torch.eye(3, dtype=torch.float64) + 0.01
        times = torch.arange(int(until) + 1, dtype=torch.float64)
        paths = {n: toys.simplex_flow(d, reference, starts, times) for n, d in chosen.items()}
        return figures.simplex(paths, reference)

    return Live(controls, build)


def mass_explorer() -> Live:
    """The mass map for a chosen start share of the answer that reward pulls away from."""
    names = ("reverse_kl", "js", "alpha", "forward_kl", "neyman_chi2")
    controls = {"weight": _slider("starts with", 0.3, 0.05, 0.95, 0.05)}
    return Live(controls, lambda weight: figures.mass_map(names, weight))


def partition_explorer(rollouts: pd.DataFrame, threshold: int = 6) -> Live:
    """Slide the threshold, switch what is kept and rehearsed, and watch problems move and the buffer grow or shrink.

    `rollouts` as `presampling.sample` gives.
    """
    counts = presampling.counts(rollouts)
    controls = {
        "threshold": ipywidgets.IntSlider(
            threshold, 1, int(counts["n"].min()), description="threshold", style=_WIDE, layout={"width": "420px"}
        ),
    }
    switches = {
        "keep_unsolved": "explore the unsolved problems",
        "one_per_problem": "rehearse one answer per problem",
        "rehearse_exploration": "rehearse D_exp's right answers too",
    }
    for name, words in switches.items():
        look = {"indent": False, "layout": {"width": "auto", "margin": "2px 12px 2px 0"}}
        controls[name] = ipywidgets.Checkbox(name == "keep_unsolved", description=words, **look)
    return Live(
        controls, lambda **chosen: figures.partition_histogram(counts, presampling.partition(rollouts, **chosen))
    )


# Probability of a token under the reference -> background; black text stays readable on each.
_SURPRISE = ((0.9, "#FFFFFF"), (0.5, "#FDE7C7"), (0.1, "#FBC98A"), (0.01, "#F3A04A"), (0.0, "#E3782B"))


def rollout_browser(rollouts: pd.DataFrame, tokenizer) -> Live:
    """Choose a problem and one of its K completions: all verdicts, and the tokens coloured by their log-probability."""
    counts = presampling.counts(rollouts)
    labels = [(f"{row.problem_id}: {row.c} of {row.n} correct", row.problem_id) for row in counts.itertuples()]
    groups = dict(list(rollouts.groupby("problem_id", sort=False)))
    wide = {"style": _WIDE, "layout": {"width": "420px"}}
    controls = {
        "problem": ipywidgets.Dropdown(options=labels, description="problem", **wide),
        "completion": ipywidgets.IntSlider(1, 1, int(counts["n"].max()), description="completion", **wide),
    }

    def build(problem, completion):
        rows = groups[problem].reset_index(drop=True)
        return rollout_html(rows, min(completion, len(rows)) - 1, tokenizer)

    return Live(controls, build)


_CELL = "text-align:left;padding:1px 14px"


def rollout_html(rows: pd.DataFrame, chosen: int, tokenizer) -> str:
    """All completions of one problem with their verdicts, and the tokens of the one at position `chosen`, as HTML."""
    cells = []
    for i, row in enumerate(rows.itertuples()):
        verdict = f"✓ {escape(row.distinct or '')}" if row.correct else f"✗ {escape(row.reason)}"
        look = "font-weight:bold;outline:2px solid #0072B2" if i == chosen else ""
        text = "".join(f"<td style='{_CELL}'>{t}</td>" for t in (i + 1, escape(row.completion), verdict))
        cells.append(f"<tr style='{look}' aria-selected='{str(i == chosen).lower()}'>{text}</tr>")
    head = "".join(f"<th style='{_CELL}'>{t}</th>" for t in ("", "completion", "verdict: canonical form, or why not"))
    row = rows.iloc[chosen]
    boxes = "".join(_token_box(tokenizer.decode([i]), p) for i, p in zip(row["token_ids"], row["logp"], strict=True))
    limits = [f"p ≥ {p:g}" for p, _ in _SURPRISE[:-1]] + [f"p < {_SURPRISE[-2][0]:g}"]
    legend = " ".join(_box(hue, text) for (_, hue), text in zip(_SURPRISE, limits, strict=True))
    return (
        f"<p><b>Prompt</b> <code style='white-space:pre-wrap'>{escape(row['prompt'])}</code></p>"
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(cells)}</tbody></table>"
        f"<p><b>Completion {chosen + 1}, token by token</b>, log-probability in nats below each; "
        f"sum {row['logp'].sum():.2f}</p><p style='line-height:3.4'>{boxes}</p><p>Probability of the token: {legend}</p>"
    )


def _token_box(token: str, logp: float) -> str:
    hue = next(hue for limit, hue in _SURPRISE if math.exp(logp) >= limit)
    shown = escape(token).replace("\n", "⏎") if token.strip() else token.replace("\n", "⏎").replace(" ", "␣")
    return _box(hue, f"{shown}<br><small>{round(float(logp), 2) + 0.0:.2f}</small>")


def _box(hue: str, content: str) -> str:
    look = "display:inline-block;line-height:1.3;text-align:center;color:#111;border:1px solid #999;border-radius:3px"
    return f"<span style='{look};background:{hue};padding:1px 6px;margin:1px'>{content}</span>"


# ---- outcomes --------------------------------------------------------------------------------------------------------


def _powers(outcomes: Iterable[Outcomes]) -> list[int]:
    """The powers of two up to the fewest samples of a problem: the k that all can be asked for."""
    fewest = min(int(out.n.min()) for out in outcomes)
    return [2**i for i in range(fewest.bit_length())]


def pass_at_k_explorer(outcomes: Mapping[str, Mapping[str, Outcomes]], base: str = "base") -> Live:
    """Pass@k curves with bands and crossings, and keep / forget / gain / never, by problem family and k.

    Args:
        outcomes: family of problems -> model -> `Outcomes`; each family holds the model `base`.
        base: the model that the others are compared with.
    """
    ks = _powers(out for models in outcomes.values() for out in models.values())
    controls = {
        "family": ipywidgets.Dropdown(options=list(outcomes), description="problems", style=_WIDE),
        "k": ipywidgets.SelectionSlider(options=ks, value=ks[-1], description="k for the bars", style=_WIDE),
        "confidence": ipywidgets.SelectionSlider(
            options=[("80 %", 0.8), ("95 %", 0.95), ("99 %", 0.99)], value=0.95, description="bands", style=_WIDE
        ),
    }

    def build(family, k, confidence):
        models = outcomes[family]
        curves = figures.pass_at_k_curves(models, ks, confidence, what=family, crossing=base)
        return curves, figures.keep_forget_gain(models, k, base)

    return Live(controls, build)


def bias_lab(rates: Sequence[float], drawn: int = 16) -> Live:
    """Three estimators of Pass@k where every problem's true solve rate is known: slide how many answers are drawn."""
    errors = lru_cache(lambda n: passk.estimator_errors(rates, n, range(1, n + 1)))
    controls = {"n": _choice("answers drawn", [2, 4, 8, 16, 32, 64], drawn)}
    return Live(controls, lambda n: figures.estimator_errors(errors(n), n))


def flow_explorer(outcomes: Mapping[str, Mapping[str, Outcomes]], base: str = "base") -> Live:
    """How problems flow from solved or not before training to solved or not after: choose family, model and k.

    Arguments as `pass_at_k_explorer`.
    """
    ks = _powers(out for models in outcomes.values() for out in models.values())
    controls = {
        "family": _choice("problems", list(outcomes), next(iter(outcomes)), ipywidgets.Dropdown),
        "model": ipywidgets.Dropdown(description="trained", style=_WIDE),
        "k": _choice("k", ks, ks[-1]),
    }

    def offer(_change=None):
        _offer(controls["model"], [name for name in outcomes[controls["family"].value] if name != base])

    controls["family"].observe(offer, names="value")
    offer()

    def build(family, model, k):
        if model is None:
            return "No trained model has been evaluated on these problems."
        return figures.solved_flow(passk.compare(outcomes[family][base], outcomes[family][model], k), k, base, model)

    return Live(controls, build)


def _offer(control, options: list, prefer: int = 0):
    """Give a control other options; what was chosen stays if it can, else it is the one at place `prefer`."""
    before = control.value
    control.options = options
    if options:
        control.value = before if before in options else options[min(prefer, len(options) - 1)]


def front_explorer(scores: pd.DataFrame) -> Live:
    """The front of Pass@1 against Pass@k or diversity: switch domain, problems and divergences; hover shows the run.

    Args:
        scores: from `conclusions.run_scores`.
    """
    names = lambda level: list(map(str, scores.index.unique(level)))
    heights = [name for name in scores.columns if name != "Pass@1"]
    domains, splits = names("domain"), names("split")
    controls = {
        "domain": _choice("domain", domains, domains[0], ipywidgets.Dropdown),
        "split": _choice("problems", splits, "test" if "test" in splits else splits[0], ipywidgets.Dropdown),
        "height": _choice("upwards", heights, heights[-1], ipywidgets.Dropdown),
    }
    boxes = {name: {name} for name in figures.swept(scores)}
    single = set(names("method")) - set(boxes)
    boxes["methods at one strength"] = {name for name in single if "+" not in name}
    boxes["ideas (+) at one strength"] = {name for name in single if "+" in name}
    for name in filter(boxes.get, boxes):
        look = {"indent": False, "layout": {"width": "auto", "margin": "2px 12px 2px 0"}}
        controls[name] = ipywidgets.Checkbox("+" not in name, description=name, **look)  # ideas: when asked for

    def build(domain, split, height, **shown):
        methods = set().union(*(boxes[name] for name in shown if shown[name]))
        return figures.front(scores, domain, split, height, methods)

    return Live(controls, build)


class CountsLab(Live):
    """Anyone's table of counts, by path or upload: Pass@k, Cover@tau, and what the second model changed against the first.

    Args:
        source: what `passk.read_counts` takes; None: nothing is shown before a table is named or uploaded.

    A table that cannot be read is refused in words, and the one before it stays. Its table is `lab.counts`.
    """

    def __init__(self, source: str | Path | None = None):
        self.counts, self.error, self._offering = None, "", False
        wide = {"style": _WIDE, "layout": {"width": "360px"}}
        controls = {
            "path": ipywidgets.Text(description="path", continuous_update=False, **wide),
            "upload": ipywidgets.FileUpload(accept=".csv,.tsv,.txt,.json,.jsonl,.parquet", description="or upload"),
            "family": ipywidgets.Dropdown(description="problems", **wide),
            "base": ipywidgets.Dropdown(description="before", **wide),
            "trained": ipywidgets.Dropdown(description="after", **wide),
            "k": ipywidgets.SelectionSlider(options=[("–", 0)], description="k", **wide),
        }
        controls["path"].observe(lambda change: self._read(change["new"]), names="value")
        controls["upload"].observe(lambda change: self._read(change["new"]), names="value")
        self.controls = controls
        if source is not None:
            controls["path"].value = str(source)
        for name in ("family", "base", "trained"):
            controls[name].observe(self._offer_rest, names="value")
        super().__init__(controls, self._drawn)

    def _read(self, given: str | tuple):
        try:
            if given:
                path = Path(given).expanduser() if isinstance(given, str) else bytes(given[0]["content"])
                self.counts, self.error = passk.read_counts(path), ""
                self._outcomes = cache(partial(passk.by_model, self.counts))
                self._without_k = cache(self._drawn_without_k)
        except (ValueError, OSError) as error:
            self.error = str(error)
        else:
            self._offer_rest()

    def _offer_rest(self, _change=None):
        """What may be chosen follows from the table, and from what is chosen before it; one redraw for all."""
        if self._offering or self.counts is None:
            return
        self._offering, controls = True, self.controls
        _offer(controls["family"], [_ALL, *sorted(set(self.counts["family"]) - {""})])
        models = self._models()
        _offer(controls["base"], list(models))
        _offer(controls["trained"], list(models), prefer=1)
        ks = _powers(models[controls[name].value] for name in ("base", "trained"))
        _offer(controls["k"], ks, prefer=len(ks) - 1)
        self._offering = False

    def _models(self) -> dict[str, Outcomes]:
        family = self.controls["family"].value
        return self._outcomes(None if family == _ALL else family)

    def redraw(self, _change=None):
        """Draw what is chosen."""
        if not self._offering:
            super().redraw()

    def _drawn(self, path, upload, family, base, trained, k) -> list:
        words = f"<p style='color:#B00020'>{escape(self.error)}</p>" if self.error else ""
        if self.counts is None:
            return [words or "<p>Name a file or a folder, or upload a table with the columns n and c.</p>"]
        models = self._models()
        chosen = {name: models[name] for name in (base, trained)}
        flow, crossing, told = [], None, [f"{escape(name)}: {escape(repr(out))}" for name, out in chosen.items()]
        if base != trained:
            try:
                flow, crossing = [figures.solved_flow(passk.compare(*chosen.values(), k), k, base, trained)], base
                below = passk.crossing(*chosen.values())
                told.append("Pass@k of the second " + (f"falls below at k = {below}" if below else "never falls below"))
            except ValueError as error:
                told.append(f"not compared: {escape(str(error))}")
        return [f"{words}<p>{'<br>'.join(told)}</p>", *self._without_k(family, base, trained, crossing), *flow]

    def _drawn_without_k(self, family: str, base: str, trained: str, crossing: str | None) -> list[go.Figure]:
        chosen, what = {name: self._models()[name] for name in (base, trained)}, "" if family == _ALL else family
        curves = figures.pass_at_k_curves(chosen, _powers(chosen.values()), what=what, crossing=crossing)
        return [curves, figures.cover_curves(chosen, what)]


_ALL = "all problems"


class TrainingDashboard(Live):
    """Training curves read from the logs that runs write, while they write them.

    Args:
        folders: run name -> folder given to `training.train(..., out=folder)`; those without a log yet are left out.
        seconds: shortest time between two redraws by `follow`.
        controls, buttons: further widgets, as in `Live`.
        **look: further arguments of `figures.training_dashboard`.

    Pass `dashboard.follow` as `on_step` to a run in this notebook, or press Refresh for runs elsewhere.
    """

    def __init__(
        self, folders: Mapping[str, str | Path], seconds: float = 1.0, controls=None, buttons: Sequence = (), **look
    ):
        self.folders, self.seconds, self._drawn, self._lock = dict(folders), seconds, 0.0, threading.RLock()
        self._look = look
        super().__init__(controls or {}, self._from_logs, extra=[*buttons, _button("Refresh", self.redraw)])

    def _from_logs(self) -> go.Figure:
        logs = {name: log for name in self.folders if (log := self._log(name))}
        return figures.training_dashboard(logs, **self._look)

    def _log(self, name: str) -> list[dict]:
        folder = Path(self.folders[name])
        return training.read_log(folder) if (folder / training.LOG).is_file() else []

    def follow(self, _metrics: dict):
        """Redraw if the last redraw is at least `seconds` ago."""
        if time.monotonic() - self._drawn >= self.seconds:
            self.redraw()

    def redraw(self, _change=None):
        """Read the logs and draw them."""
        with self._lock:  # a run in a thread draws, and so does whoever moves a control meanwhile
            super().redraw()
            self._drawn = time.monotonic()


def _button(label: str, press: Callable) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, layout={"width": "auto"})
    button.on_click(press)
    return button


class _Stopped(Exception):
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
        self.work, self.settings = Path(work), {"checkpoint_every": 1, "progress": False} | settings
        self.thread, self._stopping, self._says, self._curves = None, threading.Event(), "press Start", {}
        self.start, self.stop = _button("Start", self._start), _button("Stop", self._stop)
        self.reset = _button("Delete this run", self._reset)
        slider = {
            "min": -2,
            "max": 1,
            "step": 0.1,
            "readout_format": ".2g",
            "style": _WIDE,
            "layout": {"width": "360px"},
        }
        families, rates = list(data.test), [(f"{rate:g}", rate) for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)]
        controls = {
            "method": _choice("method", list(METHODS), "dph-js", ipywidgets.Dropdown),
            "strength": ipywidgets.FloatLogSlider(METHODS["dph-js"].strength, description="strength", **slider),
            "learning_rate": _choice("learning rate", rates, 1e-4),
            "steps": _choice("steps in all", [5, 10, 20, 40, 60, 80, 120], 40),
            "family": _choice("Pass@k on", families, "cd4" if "cd4" in families else families[0], ipywidgets.Dropdown),
        }
        controls["method"].observe(self._take_strength, names="value")
        super().__init__(folders, seconds, controls, [self.start, self.stop, self.reset])

    def _take_strength(self, _change):
        """Each method begins at its own strength: for the DPH methods that of equal curvature."""
        method = METHODS[self.controls["method"].value]
        self.controls["strength"].value = method.strength or self.controls["strength"].value
        self.controls["strength"].disabled = method.penalty == "none"

    def _chosen(self) -> tuple[str, dict]:
        """The run that the controls describe: its name and its settings."""
        method, strength, rate = (self.controls[name].value for name in ("method", "strength", "learning_rate"))
        strength = None if METHODS[method].penalty == "none" else float(f"{strength:.2g}")
        name = method + ("" if strength is None else f" at {strength:g}") + f", lr {rate:g}"
        return name, {"method": method, "strength": strength, "learning_rate": rate}

    def _place(self, name: str) -> Path:
        return self.work / name.replace(",", "").replace(" ", "-")

    def _start(self, _button=None):
        if self.thread is None:
            name, chosen = self._chosen()
            self.folders[name] = self._place(name)
            steps = max(self.controls["steps"].value, len(self._log(name)))
            self._stopping.clear()
            self.thread = threading.Thread(target=self._run, args=(name, steps, chosen), daemon=True)
            self._say(f"{name}: preparing")
            self.thread.start()

    def _run(self, name: str, steps: int, chosen: dict):
        """In the thread: train, then evaluate. Whatever happens, the page says so and can go on."""
        try:
            place = {"out": self.folders[name], "on_step": partial(self._after_step, name, steps)}
            data = self.policy, self.data.task, self.data.train, self.parts
            run = training.train(*data, steps=steps, **place, **chosen, **self.settings)
            self._say(f"{name}: {steps} steps done, evaluating on held-out problems")
            told = {"method": name, "samples": self.samples, "progress": False}
            self.tables[name] = experiments.evaluate(run.policy, self.data.task, self.data.test, **told)
            self._curves.clear()
            says = f"{name}: {steps} steps done and evaluated. For more, raise “steps in all” and continue"
        except _Stopped:
            says = f"{name}: stopped after {len(self._log(name))} of {steps} steps. Continue goes on from there"
        except Exception as error:  # in a thread nobody else would show it
            says = f"{name}: {error}"
        with self._lock:
            self.thread = None
            self._say(says)

    def _after_step(self, name: str, steps: int, record: dict):
        self._says = f"{name}: step {record['step']} of {steps}"
        self.follow(record)
        if self._stopping.is_set():
            raise _Stopped  # the step is logged and has its checkpoint

    def _stop(self, _button=None):
        with self._lock:  # what the run says then is the last word
            if self.thread is not None:
                self._stopping.set()
                self._say("stopping when this step is done")

    def _reset(self, _button=None):
        if self.thread is None:
            name, _ = self._chosen()
            shutil.rmtree(self._place(name), ignore_errors=True)
            for kept in (self.folders, self.tables):
                kept.pop(name, None)
            self._curves.clear()
            self._say(f"{name}: deleted")

    def _say(self, words: str):
        self._says = words
        self.redraw()

    def _from_logs(self, family, method, **_chosen) -> tuple[str, go.Figure, go.Figure, str]:
        name, running = self._chosen()[0], self.thread is not None
        begun = (self._place(name) / training.LOG).is_file()
        if begun:
            self.folders[name] = self._place(name)
        self.start.description = "Continue" if begun else "Start"
        self.start.disabled, self.stop.disabled, self.reset.disabled = running, not running, running or not begun
        chosen = f"<b>{escape(name)}</b>: {escape(METHODS[method].summary)}"
        says = f"<div aria-live='polite' style='white-space:pre-wrap'>{chosen}\n{escape(self._says)}</div>"
        return says, super()._from_logs(), *self._pass_at_k(family)

    def _pass_at_k(self, family: str) -> tuple[go.Figure, str]:
        if family not in self._curves:
            table = pd.concat([table.assign(method=name) for name, table in self.tables.items()], ignore_index=True)
            models = experiments.by_family(table)[family]
            ks = _powers(models.values())
            below = {name: passk.crossing(models["base"], out) for name, out in models.items() if name != "base"}
            words = [f"{escape(name)}: {'nowhere' if k is None else f'k = {k}'}" for name, k in below.items()]
            legend = f"Below the base model from … on. {'; '.join(words)}"
            self._curves[family] = figures.pass_at_k_curves(models, ks, what=family), legend
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
    options = [(problem.prompt, i) for i, problem in enumerate(problems)]
    ways = [("as they are written", "completion"), ("up to the order of operands", "distinct")]
    controls = {
        "problem": _choice("problem", options, 0, ipywidgets.Dropdown),
        "by": _choice("tell apart", ways, "completion", ipywidgets.Dropdown),
    }
    return Live(controls, lambda problem, by: figures.solution_bars(counts(problem, by), problems[problem].prompt))


def estimator_lab(target: str = "forward_kl") -> Live:
    """Estimators of a divergence from few samples or many: their values, and which gradient they follow as a loss."""
    options = [(divergences.get(n).label, n) for n in divergences.names()]
    sums = [("of the whole sequence", "sequence"), ("token by token", "token")]
    sizes = [4**i for i in range(1, 7)]
    controls = {
        "target": ipywidgets.Dropdown(options=options, value=target, description="Divergence", style=_WIDE),
        "world": ipywidgets.Dropdown(
            options=[("categorical, 6 outcomes", "categorical"), ("two-token language model", "two-token")],
            description="World",
            style=_WIDE,
        ),
        "level": ipywidgets.Dropdown(options=sums, description="log u", style=_WIDE),
        "distance": _slider("distance", 1.0, 0.1, 3.0, 0.1),
        "samples": ipywidgets.SelectionSlider(options=sizes, value=64, description="samples", style=_WIDE),
    }
    live = Live(controls, _estimator_figures)

    def follow(_change=None):
        controls["level"].disabled = controls["world"].value == "categorical"

    controls["world"].observe(follow, names="value")
    follow()
    return live


def _estimator_figures(target, world, level, distance, samples) -> tuple[go.Figure, go.Figure]:
    table = estimators.error_bars(worlds.example(world, distance), estimators.usual(target), target, samples, level)
    return figures.estimator_bars(table, target, samples), figures.estimator_table(table, target)


# ---- bandits ---------------------------------------------------------------------------------------------------------

_STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_GROUPS = {"exact": 0, "groups of 16": 16, "groups of 4": 4}
_SHARING = {"tabular: 0": 0.0, "0.5": 0.5, "0.9": 0.9, "all: 1": 1.0}
_PENALTIES = {"on all trained contexts": "all", "hybrid: D_pef only": "perfect"}


def collapse_lab(divergence: str = "js", seed: int = 0) -> Live:
    """GRPO on the default bandit: choose divergence, strength, gradients and sharing, and see who keeps Pass@k.

    All strengths of a choice are computed at once and kept, so that the slider only looks them up.
    """
    known = {name: divergences.get(name) for name in divergences.names()}
    worlds = {sharing: bandits.make(sharing=sharing, seed=seed) for sharing in _SHARING.values()}
    held_out = [c for c, trained in enumerate(worlds[0.0].trained.tolist()) if not trained]

    @lru_cache(maxsize=64)
    def paths(name, groups, sharing, rehearse):
        setting = {"steps": 100, "step_size": 2.0, "frames": 26, "groups": groups or None, "rehearse": rehearse}
        return bandits.flow(worlds[sharing], "grpo", known[name], _STRENGTHS, **setting)

    def build(name, strength, rehearse, groups, sharing, k, context):
        path = paths(name, groups, sharing, rehearse).at_strength(_STRENGTHS.index(strength))
        return figures.collapse_lab(path, name if strength else "grpo", k, context)

    choose = partial(_choice, kind=ipywidgets.Dropdown)
    names = [(known[n].label if n != "alpha" else "alpha", n) for n in known]
    controls = {
        "strength": _choice("strength", [(f"{s:g}", s) for s in _STRENGTHS], 0.0),
        "k": _choice("k", [2**i for i in range(1, 9)], 64),
        "name": choose("Divergence", names, divergence),
        "rehearse": choose("penalty", _PENALTIES.items(), "all"),
        "groups": choose("gradients", _GROUPS.items(), 0),
        "sharing": _choice("sharing", list(_SHARING.items()), 0.9),
        "context": _choice("context", held_out, held_out[-4]),
    }
    return Live(controls, build)


# ---- verifiable tasks ------------------------------------------------------------------------------------------------


def sql_lab(problem: str = "school-08") -> Live:
    """Ask a shipped question, write or choose a query, and see its rows beside the gold query's, and the verdict."""
    from dphrl_lite.tasks import cases, get, suite  # sqlglot: not for those who only turn to divergences

    questions = {question.id: question for question in cases.questions()}
    tasks = [get("sql", databases=folder) for folder in cases.DATABASES]
    wide = {"style": _WIDE, "layout": {"width": "860px"}}
    named = [(f"{name}: {question.meta['question']}", name) for name, question in questions.items()]
    controls = {
        "problem": ipywidgets.Dropdown(options=named, value=problem, description="question", **wide),
        "suggestion": ipywidgets.Dropdown(description="try", **wide),
        "query": ipywidgets.Textarea(description="query", continuous_update=False, rows=3, **wide),
        "instances": ipywidgets.Dropdown(
            options=[("one database", 1), ("two databases: same tables, other rows", 2)], description="judge on", **wide
        ),
    }

    def take(_change=None):
        controls["query"].value = controls["suggestion"].value or ""

    def suggest(_change=None):
        controls["suggestion"].options = _suggestions(questions[controls["problem"].value])
        controls["suggestion"].index = 0
        take()

    controls["problem"].observe(suggest, names="value")
    controls["suggestion"].observe(take, names="value")
    suggest()

    def build(problem, suggestion, query, instances):
        verdict = suite.Suite(tasks[:instances]).verify(questions[problem], query)
        results = []
        for number, folder in enumerate(cases.DATABASES[:instances], 1):
            path = folder / f"{questions[problem].meta['db_id']}.sqlite"
            both = {"gold query": questions[problem].answer, "your query": verdict.answer or query}
            results += [(f"{who}, database {number}", cases.preview(path, sql)) for who, sql in both.items()]
        return figures.query_results(results, figures.verdict(verdict.reason, verdict.correct))

    return Live(controls, build)


def _suggestions(question) -> list[tuple[str, str]]:
    from dphrl_lite.tasks import cases

    path = cases.DATABASES[0] / f"{question.meta['db_id']}.sqlite"
    queries = {"the gold query": question.answer}
    queries |= {f"in other words, {i}": sql for i, sql in enumerate(question.meta["also_right"], 1)}
    queries |= {f"a typical mistake, {i}": sql for i, sql in enumerate(question.meta["wrong"], 1)}
    queries |= {"learnt by heart": cases.memorised(path, question.answer)}
    return [(f"{name}: {sql[:90]}", sql) for name, sql in queries.items()]


# ---- QLoRA at 7B -----------------------------------------------------------------------------------------------------


def _choice(label: str, options, value, kind=ipywidgets.SelectionSlider):
    return kind(options=options, value=value, description=label, style=_WIDE, layout={"width": "360px"})


def memory_lab(size: str = "Qwen2.5-7B") -> Live:
    """What each trick saves of GPU memory, for a model, a LoRA rank, and lengths of your choice."""
    controls = {
        "size": _choice("model", list(budget.SIZES), size, ipywidgets.Dropdown),
        "rank": _choice("LoRA rank", [1, 4, 8, 16, 32, 64, 128, 256], 16),
        "rows": _choice("rows at once", [1, 2, 4, 8, 16, 32], 8),
        "length": _choice("tokens per row", [512, 1024, 2048, 4096], 1024),
    }

    @lru_cache(maxsize=64)
    def parts(size, rank, rows, length):
        prompt = length // 4
        run = {"microbatch_tokens": rows * length, "max_new_tokens": length - prompt}
        return budget.worst(budget.ladder(size, rank, prompt, **run))

    def build(size, rank, rows, length):
        title = f"{size}, {rows} x {length:,} tokens at once, peak of a training step"
        return figures.memory_ladder(parts(size, rank, rows, length), title)

    return Live(controls, build)


def four_bit_lab(weights: Mapping[str, torch.Tensor]) -> Live:
    """What 4-bit storage does to a weight matrix: choose the matrix, the format, and how many weights share a scale.

    Args:
        weights: name -> matrix of floats.
    """
    controls = {
        "name": _choice("matrix", list(weights), next(iter(weights)), ipywidgets.Dropdown),
        "kind": _choice("format", [(w, k) for k, w in quantisation.KINDS.items()], "nf4", ipywidgets.Dropdown),
        "block": _choice("block size", quantisation.BLOCKS, 64),
        "double": ipywidgets.Checkbox(True, description="double quantisation", indent=False, layout={"width": "auto"}),
    }
    errors = cache(lambda name: quantisation.errors(weights[name]))

    def follow(_change=None):
        controls["double"].disabled = controls["kind"].value == "int4"

    controls["kind"].observe(follow, names="value")
    return Live(controls, lambda name, **chosen: figures.four_bits(weights[name], errors=errors(name), **chosen))


def rank_explorer(before, after) -> Live:
    """Slide the rank r: how much of the change from model `before` to `after` it keeps, and how many parameters it takes."""
    values = lowrank.singular_values(before, after)
    shares, whole = lowrank.shares(values), sum(p.numel() for p in after.parameters())

    def build(rank):
        return figures.rank_explorer(values, shares, rank, lowrank.lora_parameters(after, rank), whole)

    ranks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256) if r <= len(shares)]
    return Live({"rank": _choice("rank r", ranks, min(4, ranks[-1]))}, build)


_COSTED = ("grpo", "rkl", "dph-js", "dph-js-definition")


def cost_lab() -> Live:
    """GPU-hours and money of a whole run, by method. Every default is an assumption to be changed."""
    controls = {
        "billions": _choice("billion weights", [0.5, 1.5, 3, 7.6, 8, 14.8, 32.8], 7.6),
        "training": _choice("training", list(costs.TRAIN), "qlora", ipywidgets.Dropdown),
        "steps": _choice("steps", [50, 100, 200, 400, 800], 200),
        "completion": _choice("tokens an answer", [100, 250, 500, 1000, 2000, 4000], 500),
        "prompt": _choice("tokens a prompt", [100, 250, 500, 1000, 2000, 4000], 500),
        "rehearsed": _choice("rehearsed a step", [0, 64, 128, 256, 384, 512, 1024, 2048], 384),
        "peak": _slider("peak, TFLOP/s", 150, 20, 2000, 10),
        "busy": _slider("share, training", 0.4, 0.05, 0.8, 0.05),
        "busy_sampling": _slider("share, sampling", 0.05, 0.01, 0.4, 0.01),
        "price": _slider("price of an hour", 1.0, 0.1, 10, 0.1),
    }

    def build(billions, training, steps, prompt, completion, rehearsed, peak, busy, busy_sampling, price):
        batch = costs.Batch(prompt=prompt, completion=completion, rehearsed=rehearsed)
        table = {}
        for method in _COSTED:
            work = costs.flops(method, steps * billions * 1e9, batch, training)
            table[method] = costs.hours(work, peak * 1e12, busy, busy_sampling)
        title = f"{steps} steps of {batch.problems} x {batch.samples} answers, {billions:g}B weights"
        return figures.cost_bars(pd.DataFrame(table).T, price, title)

    return Live(controls, build)


# ---- the debate ------------------------------------------------------------------------------------------------------


def lever_explorer(points: pd.DataFrame) -> Live:
    """How far a score moves by strength, by divergence, and by divergence at equal Pass@1. `points` as `debate.levers`."""
    among = points.drop(columns=["group", "world", "method", "strength", "Pass@1"])
    scores = sorted(
        among.columns[among.notna().all()], key=lambda name: name != "distinct"
    )  # those that all groups have
    controls = {"score": _choice("score", scores, scores[-1], ipywidgets.Dropdown)}
    return Live(controls, lambda score: figures.levers(debate.levers(points, score), score))


def rung_explorer(outcomes: pd.DataFrame, eta: float = 1.0) -> Live:
    """From the base model to DPH-F step by step: choose the domain and the strength of the rehearsal.

    `outcomes` of the sweep (`frontier.read`), with `sft` and `dph-f` at the same strengths.
    """
    found = cache(partial(debate.rungs, outcomes))
    strengths = sorted(set(outcomes.loc[outcomes["method"] == "sft", "strength"]))
    domains = [str(name) for name in outcomes["domain"].unique()]
    controls = {
        "domain": _choice("domain", domains, domains[0], ipywidgets.Dropdown),
        "eta": _choice("strength η", [(f"{value:g}", value) for value in strengths], eta),
    }
    return Live(controls, lambda domain, eta: figures.rungs(found(domain, eta), f"{domain}, η = {eta:g}"))


def guess_lab(families: Mapping[str, Mapping[str, Outcomes]], model: str = "grpo", share: float = 0.1) -> Live:
    """Replace a share of a model's answers by blind guesses: what Pass@k and Cover@tau make of it.

    Args:
        families: family of countdown problems -> model -> `Outcomes` with problem ids.
        model: whose answers are replaced.
        share: of the answers.
    """
    shares = [(f"{percent} %", percent / 100) for percent in (0, 1, 2, 5, 10, 20, 30, 50, 70, 90)]
    first = next(iter(families))
    controls = {
        "family": _choice("problems", list(families), first, ipywidgets.Dropdown),
        "model": _choice("model", list(families[first]), model, ipywidgets.Dropdown),
        "share": _choice("guesses", shares, share),
    }
    controls["family"].observe(lambda change: _offer(controls["model"], list(families[change["new"]])), names="value")

    def build(family, model, share):
        curves = debate.guessing_curves(families[family], model, share)
        title = f"{family}: {share:.0%} of the answers of {model} are blind guesses"
        return figures.guessing(curves, title)

    return Live(controls, build)


def off_target_lab() -> Live:
    """Where the best Gaussian puts mass that the reference does not have: move the modes apart, make them unequal."""
    names = ("forward_kl", "js", "alpha", "reverse_kl")
    controls = {
        "distance": _slider("mode distance", 4, 1, 6, 0.5),
        "weight": _choice("left mode's mass", [0.1, 0.2, 0.3, 0.4, 0.5], 0.5),
    }
    return Live(controls, lambda **shape: figures.off_target(names, toys.Modes(**shape)))


_TABLES = {"sql": "SQL", "math-out-of-domain": "math, not trained on", "js-eta": "Jensen-Shannon at each η"}


def paper_explorer(paper: pd.DataFrame, scores: pd.DataFrame) -> Live:
    """The paper's tables beside our miniature in the same form: choose table, benchmark and metric, and our domain.

    Args:
        paper: from `debate.paper_results`.
        scores: from `conclusions.run_scores`, with k = 1, 8, 16, 32 and 64.
    """
    tables, like_paper = (
        dict(list(paper.groupby(["table", "model"], sort=False))),
        cache(partial(debate.like_paper, scores)),
    )
    named = [(f"{_TABLES[table]}, {model}", (table, model)) for table, model in tables]
    domains = list(map(str, scores.index.unique("domain")))
    controls = {
        "table": _choice("paper's table", named, named[0][1], ipywidgets.Dropdown),
        "benchmark": _choice("benchmark", [None], None, ipywidgets.Dropdown),
        "metric": _choice("metric", [None], None, ipywidgets.Dropdown),
        "domain": _choice("our domain", domains, domains[0], ipywidgets.Dropdown),
    }

    def offer(_change=None):
        part = tables[controls["table"].value]
        _offer(controls["benchmark"], list(part["benchmark"].unique()), prefer=1)
        rows = part[part["benchmark"] == controls["benchmark"].value]
        _offer(controls["metric"], list(rows["metric"].unique()), prefer=9)

    for name in ("table", "benchmark"):
        controls[name].observe(offer, names="value")
    offer()

    def build(table, benchmark, metric, domain):
        """The bars of one column beside ours, and where the table has both ends, points won against points lost."""
        rows = tables[table][tables[table]["benchmark"] == benchmark]
        metrics, every = list(rows["metric"].unique()), "dph-js" if table[0] == "js-eta" else None
        metric = metric if metric in metrics else metrics[-1]  # a benchmark was chosen, its metrics are about to follow
        theirs = partial(debate.paper_column, paper, *table, benchmark)
        ours = lambda metric: like_paper(domain, bool(rows["in_domain"].all()), metric, every)
        where = "trained on" if rows["in_domain"].all() else "not trained on"
        named = metric if metric != "greedy" else "Pass@1"
        titles = [f"the paper: {benchmark} ({where}), {metric}", f"ours: {domain} ({where}), {named}"]
        bars = figures.beside_paper(theirs(metric), ours(metric), titles)
        if "greedy" not in metrics:
            return bars, "<p>This table has one column for each benchmark: no exchange can be drawn.</p>"
        pairs = [debate.exchange(column("greedy"), column(metrics[-1])) for column in (theirs, ours)]
        return bars, figures.exchanges(*pairs, metrics[-1].removeprefix("pass@"))

    return Live(controls, build)
