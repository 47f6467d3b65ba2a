"""Verifiable tasks: `get(name)` gives a verifier, `load_problems(source)` a list of problems for it."""

from importlib import import_module

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem, Task, Verdict
from dphrl_lite.tasks.problems import load_problems

# Imported on first use: a class on countdown need not pay for sympy or sqlglot.
_TASKS = {"arithmetic": "Arithmetic", "countdown": "Countdown", "sql": "Sql", "math": "Math"}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_TASKS)


def get(name: str, **settings) -> Task:
    """The task called `name`: "arithmetic", "countdown", "math", or "sql" (needs `databases=folder`); see `names`."""
    class_name = lookup(_TASKS, "task", name)
    return getattr(import_module(f"dphrl_lite.tasks.{name}"), class_name)(**settings)


__all__ = ["Problem", "Task", "Verdict", "get", "load_problems", "names"]
