"""Widgets around `figures`: choose, slide, and the figure follows. No arithmetic here: that is `lab`'s, `scale`'s, `study`'s.

One file a theme, named as in `figures`; each name below is found when it is asked for, so that nothing is loaded for others.
A `Live` widget keeps its controls by name (`widget.controls["threshold"].value = 4` works without a browser) and its newest
figures in `widget.figures`, so that every control can be tested without a kernel.
"""

from importlib import import_module

_THEMES = {
    "live": "Live Plot",
    "geometry": "divergence_explorer mass_explorer off_target_lab simplex_explorer",
    "dynamics": "collapse_lab estimator_lab",
    "tasks": "sql_lab",
    "rollouts": "partition_explorer rollout_browser",
    "training": "TrainingDashboard TrainingLab solution_browser",
    "analysis": "CountsLab bias_lab flow_explorer front_explorer pass_at_k_explorer path_explorer",
    "scale": "cost_lab four_bit_lab memory_lab rank_explorer",
    "debate": "guess_lab lever_explorer paper_explorer rung_explorer",
}
_THEME_OF = {name: theme for theme, names in _THEMES.items() for name in names.split()}
__all__ = sorted(_THEME_OF)


def __getattr__(name: str):
    if name not in _THEME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_THEME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
