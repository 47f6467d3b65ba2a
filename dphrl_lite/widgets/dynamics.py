"""Widgets of the worlds in `lab`: what estimators follow, and who keeps Pass@k on bandits."""

from functools import lru_cache

from dphrl_lite import divergences, figures
from dphrl_lite.lab import bandits, estimators, worlds
from dphrl_lite.widgets.controls import choice, divergence_dropdown, dropdown, only_while, slider
from dphrl_lite.widgets.live import Live

_WORLDS = {"categorical, 6 outcomes": "categorical", "two-token language model": "two-token"}
_SUMS = {"of the whole sequence": "sequence", "token by token": "token"}
_STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_GROUPS = {"exact": 0, "groups of 16": 16, "groups of 4": 4}
_SHARING = {"tabular: 0": 0.0, "0.5": 0.5, "0.9": 0.9, "all: 1": 1.0}
_PENALTIES = {"on all trained contexts": "all", "hybrid: D_pef only": "perfect"}


def estimator_lab(target: str = "forward_kl") -> Live:
    """Estimators of a divergence from few samples or many: their values, and which gradient they follow as a loss."""
    labels = [(divergences.get(name).label, name) for name in divergences.names()]
    world = dropdown("World", _WORLDS.items(), "categorical")
    controls = {
        "target": dropdown("Divergence", labels, target),
        "world": world,
        "level": only_while(dropdown("log u", _SUMS.items(), "sequence"), world, lambda kind: kind != "categorical"),
        "distance": slider("distance", 1.0, 0.1, 3.0, 0.1),
        "samples": choice("samples", [4, 16, 64, 256, 1024, 4096], 64),
    }

    def build(target, world, level, distance, samples):
        usual = estimators.usual(target)
        table = estimators.error_bars(worlds.example(world, distance), usual, target, samples, level)
        return figures.estimator_bars(table, target, samples), figures.estimator_table(table, target)

    return Live(controls, build)


def collapse_lab(divergence: str = "js", seed: int = 0) -> Live:
    """GRPO on the default bandit: choose divergence, strength, gradients and sharing, and see who keeps Pass@k.

    All strengths of a choice are computed at once and remembered, so that the slider only looks them up.
    """
    by_sharing = {sharing: bandits.make(sharing=sharing, seed=seed) for sharing in _SHARING.values()}
    contexts = (~by_sharing[0.0].trained).nonzero().flatten().tolist()

    @lru_cache(maxsize=64)
    def paths(name, groups, sharing, rehearse):
        settings = {"steps": 100, "step_size": 2.0, "frames": 26, "groups": groups or None, "rehearse": rehearse}
        return bandits.flow(by_sharing[sharing], "grpo", divergences.get(name), _STRENGTHS, **settings)

    def build(name, strength, rehearse, groups, sharing, k, context):
        path = paths(name, groups, sharing, rehearse).at_strength(_STRENGTHS.index(strength))
        return figures.collapse_lab(path, name if strength else "grpo", k, context)

    controls = {
        "strength": choice("strength", [(f"{strength:g}", strength) for strength in _STRENGTHS], 0.0),
        "k": choice("k", [2, 4, 8, 16, 32, 64, 128, 256], 64),
        "name": divergence_dropdown(divergence),
        "rehearse": dropdown("penalty", _PENALTIES.items(), "all"),
        "groups": dropdown("gradients", _GROUPS.items(), 0),
        "sharing": choice("sharing", _SHARING.items(), 0.9),
        "context": choice("context", contexts, contexts[-4]),
    }
    return Live(controls, build)
