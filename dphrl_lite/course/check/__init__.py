"""Exercises of the notebooks: is a student's answer right, and if not, a hint that does not give the answer away.

Here is the mechanism; the checks are in one module per notebook (`notebook_01` ...). An exercise lives in its notebook: a
cell with the placeholder, a call of `answer` as its last line, and the solution in the cell's metadata (`solutions`).

    >>> from dphrl_lite import check
    >>> check.answer("01-1", ...)
    ✎ 01-1: no answer yet. Replace the `...` in this cell, then run it again.
"""

import copy
import html
import importlib
import inspect
import math
import numbers
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dphrl_lite.errors import lookup

CHECKS: dict[str, Callable] = {}
_given: dict[str, "Result"] = {}  # the latest answer to each exercise in this session
EMPTY = "no answer yet. Replace the `...` in this cell, then run it again."
_LOOKS = {True: ("✓", "#1B6E3C"), False: ("✗", "#A03000"), None: ("✎", "#555555")}


class Hint(Exception):
    """An answer that is not right; its message tells the student what to look at."""


class Empty(Hint):
    """There is no answer yet."""


class NotRight(AssertionError):
    """`require` met an answer that is not right."""


@dataclass(frozen=True)
class Result:
    """What became of an answer: `right` is True, False, or None where there was none; `message` says why."""

    exercise: str
    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __repr__(self) -> str:
        return f"{_LOOKS[self.right][0]} {self.exercise}: {self.message}"

    def _repr_html_(self) -> str:
        hue = _LOOKS[self.right][1]
        style = f"border-left: 4px solid {hue}; padding: 4px 12px; color: {hue}; background: #FFFFFF"
        code = r'<code style="color: inherit; background: #EEEEEE">\1</code>'  # a dark theme has its own
        words = re.sub(r"`([^`]+)`", code, html.escape(repr(self)))
        return f'<div role="status" style="{style}">{words}</div>'


class _Line(str):
    """A text that a notebook shows without quotes."""

    __repr__ = str.__str__


def exercise(name: str) -> Callable:
    """Register a check under "<notebook>-<number>": it takes the answer, raises `Hint`, or returns words for a right answer."""

    def register(check: Callable) -> Callable:
        if name in CHECKS:
            raise ValueError(f"exercise {name!r} has two checks; expected one: give the second another number.")
        CHECKS[name] = check
        return check

    return register


def checks(notebook: str | None = None) -> dict[str, Callable]:
    """The checks by exercise: those of a notebook such as "01", and whatever is loaded; all, where None or unknown.

    A notebook's module is imported when it is asked for: what some check with needs seconds.
    """
    every = [module.name for module in pkgutil.iter_modules(__path__)]
    asked = f"notebook_{notebook}"
    for name in [asked] if asked in every else every:
        importlib.import_module(f"{__name__}.{name}")
    return CHECKS


def answer(exercise: str, given) -> Result:
    """Check the answer `given` to an `exercise` such as "01-1". Never raises an error on an answer, whatever it is.

    Raises:
        KeyError: there is no such exercise.
    """
    check = lookup(checks(str(exercise).partition("-")[0]), "exercise", exercise)
    try:
        if _is_empty(given):
            raise Empty(EMPTY)
        _given[exercise] = Result(exercise, True, f"right. {check(given)}")
    except Empty as nothing:
        _given[exercise] = Result(exercise, None, str(nothing))
    except Hint as hint:
        _given[exercise] = Result(exercise, False, f"not yet. {hint}")
    except Exception as error:  # of the student's making: a check itself is tested
        told = f"the answer could not be checked: {type(error).__name__}: {error}. See whether it has the form that is asked for."
        _given[exercise] = Result(exercise, False, told)
    return _given[exercise]


def require(exercise: str, given) -> Result:
    """`answer`, for the solutions: an answer that is not right is an error.

    Raises:
        NotRight: with the hint.
    """
    result = answer(exercise, given)
    if not result:
        raise NotRight(repr(result))
    return result


def progress(notebook: str) -> str:
    """How many exercises of a notebook, such as "01", have been answered in this session; a line that `collected` reads."""
    names = [name for name in checks(notebook) if name.startswith(f"{notebook}-")]
    open_ones = [name.partition("-")[2] for name in names if not _given.get(name)]
    rest = f", open: {' '.join(open_ones)}." if open_ones else "."
    return _Line(f"Notebook {notebook}: {len(names) - len(open_ones)} of {len(names)} right{rest}")


_GAP = r"[\s>*_`'\"]*"  # what a chat, a mail or a spreadsheet puts between words: new lines, quotes, bold
_PROGRESS = re.compile(
    rf"notebook{_GAP}(\d+){_GAP}:{_GAP}(\d+){_GAP}of{_GAP}(\d+){_GAP}right(?:[.,;\s>]*(?:still\s*)?open{_GAP}:((?:[\s>,]*[\d-]+)+))?",
    re.I,
)
_VOTE = re.compile(r"\bvote\s*:(.+)$", re.M | re.I)


def collected(text: str) -> pd.DataFrame:
    """What a class has pasted: a row for each line of `progress`, and one for each "vote: ..." found in `text`.

    Names and times before a line, quotes around it, capitals, and lines that a chat has broken do no harm.

    Returns:
        Columns notebook, right, of, open (the exercises that are left, a list) and vote; what a line does not say is missing.
    """
    rows = []
    for notebook, right, of, left in (line.groups("") for line in _PROGRESS.finditer(text)):
        numbers = re.findall(r"(?:\d+-)?(\d+)", left)[
            : int(of) - int(right)
        ]  # what follows may be the next line's time
        open_ones = [f"{notebook}-{number}" for number in numbers]
        rows.append({"notebook": notebook, "right": int(right), "of": int(of), "open": open_ones})
    votes = (" ".join(vote.split()).strip(" .!'\"`*_").casefold() for vote in _VOTE.findall(text))
    rows += [{"vote": vote} for vote in votes if vote]
    return pd.DataFrame(rows, columns=["notebook", "right", "of", "open", "vote"])


# ---- what checks are made of -----------------------------------------------------------------------------------------


def number(given) -> float:
    """An answer that has to be one number, as a float; raises `Hint`."""
    try:
        value = given.item() if hasattr(given, "item") else given  # of numpy, pandas or torch
    except (ValueError, RuntimeError):  # more than one
        value = given
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Hint(f"A number is asked for, not {_kind(given)}.")
    return float(value)


def choice(given, options: Collection):
    """An answer that has to be one of `options`; raises `Hint`."""
    if not isinstance(given, (str, numbers.Real)) or given not in options:
        raise Hint(f"Choose one of {', '.join(map(repr, options))}; {given!r} is none of them.")
    return given


def parts(given, names: Collection[str]) -> list:
    """The values of an answer that has to be a dict with the keys `names`, in their order; raises `Hint`, or `Empty` while
    one of them is still `...`."""
    if not isinstance(given, dict) or set(given) != set(names):
        raise Hint(f"A dict with the keys {', '.join(map(repr, names))} is asked for.")
    if any(_is_empty(value) for value in given.values()):
        raise Empty(EMPTY)
    return [given[name] for name in names]


def nearest(value: float, typical: Mapping[float, str], otherwise: str, tolerance: float = 0.01) -> str:
    """The words for the typical wrong answer that `value` is, up to a relative `tolerance`, else `otherwise`."""
    near = min(typical, key=lambda wrong: abs(wrong - value))
    return typical[near] if math.isclose(near, value, rel_tol=tolerance) else otherwise


def call(function, *arguments, **named):
    """The value of a function that the student wrote, for copies of the arguments, which it may change.

    Raises `Hint` where it is none, fails, or returns nothing.
    """
    if not callable(function):
        raise Hint(f"A function is asked for, not {_kind(function)}. Give its name, without brackets.")
    try:
        value = function(*map(_copied, arguments), **{key: _copied(value) for key, value in named.items()})
    except Exception as error:
        if isinstance(error, TypeError) and "ellipsis" in str(error):
            raise Empty("a `...` is still in your function, or in one that it calls. Replace it first.") from error
        raise Hint(f"Your function raised {type(error).__name__}: {error}") from error
    name = getattr(function, "__name__", "the function")
    if value is ...:
        raise Empty(f"`{name}` returns nothing yet. Replace the `...` in it.")
    if value is None:
        raise Hint(
            f"`{name}` returned nothing for one of the inputs it was tried on. Does each branch `return` its value?"
        )
    return value


def _copied(argument):
    """A copy, but of a tensor whose gradient is asked for: torch lets nobody change that in place."""
    return argument if getattr(argument, "requires_grad", False) else copy.deepcopy(argument)


def close(given, expected, tolerance: float = 1e-4) -> bool:
    """Whether numbers, tensors or arrays agree in shape and, absolutely or relatively, in value."""
    try:
        given, expected = (np.asarray(_plain(value), dtype=float) for value in (given, expected))
    except (TypeError, ValueError) as error:
        raise Hint(f"Numbers are asked for, not {_kind(given)}.") from error
    return given.shape == expected.shape and np.allclose(
        given, expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _plain(value):
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _kind(given) -> str:
    name = type(given).__name__
    return f"a {name}" if inspect.isroutine(given) or np.size(given) != 1 else f"{given!r} (a {name})"


def _is_empty(given) -> bool:
    return given is None or given is ...
