"""dphrl_lite: Diversity-Preserving Hybrid RL, small enough to read and real enough to train with.

This folder is the method, in reading order: `divergences` (1: f of each, and its mean over tokens), `objectives` (2:
advantages, the clipped loss, the rehearsal loss, `METHODS`), `sampling` (3), `presampling` (4: sample, verify, split,
rehearsal buffer), `training` (5: the hybrid step and the loop), `evaluation` (6), `passk` (7); beside them `models`,
`metrics`, `errors`.
The rooms: `tasks` (verifiable problems), `engine` (log-probs, caches, CUDA graphs, run folders and resume, processes),
`lab` (toy worlds where everything is exact), `scale` (memory, four bits, cost), `large` (TRL, vLLM), `study` (pipeline,
sweeps, conclusions), `figures`, `widgets`, `course` (exercises, checks, the book). People type `cli`, `commands`, `doctor`;
`settings` has recipes and names of runs. Arrows only point downward: errors -> engine, tasks, divergences, passk -> the
method -> lab, scale -> settings, large -> study -> figures -> widgets -> cli, course.
"""

from importlib import import_module

from dphrl_lite.engine import threads

__version__ = "0.1.0"

_ROOMS = {
    "engine": "checkpoint kv_cache logprobs sharding threads tracking",
    "lab": "bandits estimators pitfalls toys worlds",
    "scale": "budget costs lowrank memory quantisation",
    "study": "conclusions debate experiments export frontier path_conclusions paths",
    "course": "book check install solutions",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
threads.one_at_first()  # before numpy and torch are loaded


def __getattr__(name: str):
    """`from dphrl_lite import toys` finds a module in its room, and loads it then only."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{_ROOM_OF[name]}.{name}")
