"""Widgets of outcomes: Pass@k, its bias, problems kept and forgotten, the front, and anyone's own counts."""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from html import escape
from pathlib import Path

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from dphrl_lite import figures, passk
from dphrl_lite.lab import guessing
from dphrl_lite.passk import Outcomes
from dphrl_lite.study import counts
from dphrl_lite.widgets.controls import checkbox, choice, dropdown, offer, offers, wide
from dphrl_lite.widgets.live import Live


def pass_at_k_explorer(outcomes: Mapping[str, Mapping[str, Outcomes]], base: str = "base") -> Live:
    """Pass@k curves with bands and crossings, and keep / forget / gain / never, by problem family and k.

    Args:
        outcomes: family of problems -> model -> `Outcomes`; each family holds the model `base`.
        base: the model that the others are compared with.
    """
    ks = passk.powers(out for models in outcomes.values() for out in models.values())
    controls = {
        "family": dropdown("problems", outcomes, next(iter(outcomes))),
        "k": choice("k for the bars", ks, ks[-1]),
        "confidence": choice("bands", [("80 %", 0.8), ("95 %", 0.95), ("99 %", 0.99)], 0.95),
    }

    def build(family, k, confidence):
        models = outcomes[family]
        curves = figures.pass_at_k_curves(models, ks, confidence, what=family, crossing=base)
        return curves, figures.keep_forget_gain(models, k, base)

    return Live(controls, build)


def bias_lab(rates: Sequence[float], samples: int = 16) -> Live:
    """Three estimators of Pass@k where every problem's true solve rate is known: slide how many answers are drawn."""
    errors = lru_cache(lambda n: guessing.estimator_errors(rates, n, range(1, n + 1)))
    controls = {"n": choice("answers drawn", [2, 4, 8, 16, 32, 64], samples)}
    return Live(controls, lambda n: figures.estimator_errors(errors(n), n))


def flow_explorer(outcomes: Mapping[str, Mapping[str, Outcomes]], base: str = "base") -> Live:
    """How problems flow from solved or not before training to solved or not after: choose family, model and k.

    Arguments as `pass_at_k_explorer`.
    """
    ks = passk.powers(out for models in outcomes.values() for out in models.values())
    controls = {
        "family": dropdown("problems", outcomes, next(iter(outcomes))),
        "model": dropdown("trained", []),
        "k": choice("k", ks, ks[-1]),
    }
    models = lambda: [name for name in outcomes[controls["family"].value] if name != base]
    offers(controls, ["family"], lambda: offer(controls["model"], models()))

    def build(family, model, k):
        if model is None:
            return "No trained model has been evaluated on these problems."
        return figures.solved_flow(passk.compare(outcomes[family][base], outcomes[family][model], k), k, base, model)

    return Live(controls, build)


def front_explorer(scores: pd.DataFrame) -> Live:
    """The front of Pass@1 against Pass@k or diversity: switch domain, problems and divergences; hover shows the run.

    Args:
        scores: from `conclusions.run_scores`.
    """
    names = lambda level: list(map(str, scores.index.unique(level)))
    heights, domains, splits = [name for name in scores if name != "Pass@1"], names("domain"), names("split")
    controls = {
        "domain": dropdown("domain", domains, domains[0]),
        "split": dropdown("problems", splits, "test" if "test" in splits else splits[0]),
        "height": dropdown("upwards", heights, heights[-1]),
    }
    fronts = {name: {name} for name in figures.swept(scores)}
    points = set(names("method")) - set(fronts)
    fronts["methods at one strength"] = {name for name in points if "+" not in name}
    fronts["ideas (+) at one strength"] = {name for name in points if "+" in name}
    for name in filter(fronts.get, fronts):
        controls[name] = checkbox(name, "+" not in name)  # ideas: when asked for

    def build(domain, split, height, **switches):
        methods = set().union(*(fronts[name] for name, on in switches.items() if on))
        return figures.front(scores, domain, split, height, methods)

    return Live(controls, build)


def path_explorer(scores: pd.DataFrame, points: pd.DataFrame) -> Live:
    """The learning rate as a switch: every path's curve of Pass@1 against Pass@k, and what it lost against its distance.

    Args:
        scores: from `path_conclusions.mean_scores`.
        points: from `path_conclusions.distances`, of the same domain.
    """
    heights = [name for name in scores if name.startswith("Pass@") and name != "Pass@1"]
    rates = sorted(scores["learning_rate"].dropna().unique())
    methods = [name for name in dict.fromkeys(scores["method"]) if name != "base"]
    controls = {"height": dropdown("upwards", heights, heights[-1])}
    controls |= {f"{rate:g}": checkbox(f"rate {rate:g}", True) for rate in rates}
    controls |= {name: checkbox(name, name in _FIRST) for name in methods}

    def build(height, **switches):
        """Both figures of the lines that are switched on."""

        def chosen(table):
            rate = table["learning_rate"].map(lambda value: switches.get(f"{value:g}", False))
            return table[rate.astype(bool) & table["method"].map(lambda name: switches.get(name, False)).astype(bool)]

        base, some = scores[scores["method"] == "base"], chosen(points)
        drawn = [figures.path_fronts(pd.concat([base, chosen(scores)]), height, "Paths: larger marks are more steps")]
        if len(some) > 3:  # enough for a curve
            drawn.append(figures.loss_by_distance(some, "Loss against KL(policy, reference): does one curve hold?"))
        return drawn

    return Live(controls, build)


_FIRST = ("grpo", "dph-f", "dph-js")
_ALL = "all problems"


def _words(name: str, out: Outcomes) -> str:
    problems = f"{len(out)} problem{'s' * (len(out) != 1)}"
    return f"{name}: {problems}, {out.n.max()} answers to each, {out.c.sum() / out.n.sum():.1%} of them right."


class CountsLab(Live):
    """Anyone's table of counts, by path or upload: Pass@k, Cover@tau, and what the second model changed against the first.

    Args:
        source: what `counts.read_counts` takes; None: nothing is shown before a table is named or uploaded.

    A table that cannot be read is refused in words, and the one before it stays. Its table is `lab.counts`.
    """

    def __init__(self, source: str | Path | None = None):
        self.counts, self.error, self._offering = None, "", False
        kinds = ".csv,.tsv,.txt,.json,.jsonl,.parquet"
        self.controls = {
            "path": ipywidgets.Text(description="path", continuous_update=False, **wide()),
            "upload": ipywidgets.FileUpload(accept=kinds, description="or upload"),
            "family": dropdown("problems", []),
            "base": dropdown("before", []),
            "trained": dropdown("after", []),
            "k": choice("k", [("–", 0)], 0),
        }
        for name in ("path", "upload"):
            self.controls[name].observe(lambda change: self._read(change["new"]), names="value")
        if source is not None:
            self.controls["path"].value = str(source)
        offers(self.controls, ("family", "base", "trained"), self._offer_rest)
        super().__init__(self.controls, self._build)

    def _read(self, source: str | tuple):
        try:
            if source:
                path = Path(source).expanduser() if isinstance(source, str) else bytes(source[0]["content"])
                self.counts, self.error = counts.read_counts(path), ""
                self._outcomes = cache(partial(counts.by_model, self.counts))
                self._curves = cache(self._uncached_curves)
        except (ValueError, OSError) as error:
            self.error = str(error)
        else:
            self._offer_rest()

    def _offer_rest(self):
        """What may be chosen follows from the table, and from what is chosen before it; one redraw for all."""
        if self._offering or self.counts is None:
            return
        self._offering, controls = True, self.controls
        offer(controls["family"], [_ALL, *sorted(set(self.counts["family"]) - {""})])
        models = self._models()
        offer(controls["base"], models)
        offer(controls["trained"], models, prefer=1)
        ks = passk.powers(models[controls[name].value] for name in ("base", "trained"))
        offer(controls["k"], ks, prefer=len(ks) - 1)
        self._offering = False

    def _models(self) -> dict[str, Outcomes]:
        family = self.controls["family"].value
        return self._outcomes(None if family == _ALL else family)

    def redraw(self, _change=None):
        """Draw what is chosen."""
        if not self._offering:
            super().redraw()

    def _build(self, path, upload, family, base, trained, k) -> list:
        error = f"<p style='color:#B00020'>{escape(self.error)}</p>" if self.error else ""
        if self.counts is None:
            return [error or "<p>Name a file or a folder, or upload a table with the columns n and c.</p>"]
        self.controls["k"].disabled = base == trained  # nothing to compare
        pair = {name: self._models()[name] for name in (base, trained)}
        flow, crossing, lines = [], None, [_words(name, out) for name, out in pair.items()]
        if base != trained:
            try:
                flow, crossing = [figures.solved_flow(passk.compare(*pair.values(), k), k, base, trained)], base
                below = passk.crossing(*pair.values())
                ends = f"falls below that of {base} at k = {below}" if below else f"stays at or above that of {base}"
                lines.append(f"Pass@k of {trained} {ends}.")
            except ValueError as reason:
                lines.append(f"not compared: {reason}")
        return [
            f"{error}<p>{'<br>'.join(map(escape, lines))}</p>",
            *self._curves(family, base, trained, crossing),
            *flow,
        ]

    def _uncached_curves(self, family: str, base: str, trained: str, crossing: str | None) -> list[go.Figure]:
        """The figures that the slider for k leaves as they are."""
        pair, what = {name: self._models()[name] for name in (base, trained)}, "" if family == _ALL else family
        curves = figures.pass_at_k_curves(pair, passk.powers(pair.values()), what=what, crossing=crossing)
        return [curves, figures.cover_curves(pair, what)]
