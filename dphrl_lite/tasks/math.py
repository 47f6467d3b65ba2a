r"""Mathematics with a checkable final answer: Math-Verify parses and compares, this module calls it safely.

Here: how a gold answer is presented to Math-Verify, the verdict, and cheap guards in front of the parser: only the end
of a long completion is read, and towers of powers, huge factorials and binomials in the answer are refused unparsed.
Not here: answer extraction and equality themselves (Math-Verify and SymPy), and data sets (`problems.py`).

Not guarded: Math-Verify's time limit is a POSIX alarm. It works in the main thread only, and it cannot interrupt one
long step of big-number arithmetic; outside the main thread, and on Windows, there is no time limit at all.
"""

import logging
import math
import os
import re
import threading

from math_verify import parse, verify
from math_verify.errors import TimeoutException

from dphrl_lite.tasks.base import Problem, Task, Verdict

MAX_CHARACTERS = 20_000  # of a completion's end; the answer comes last
MAX_EXPONENT = 100_000
MAX_FACTORIAL = 10_000

_MARKED_UP = re.compile(r"(?<!\\)\$|\\boxed|\\\[|\\\(")
_NUMBER = re.compile(r"-?[\d.,]+%?")
_TOWER = re.compile(r"(?<!\d)\d+(?:[ )}\]]{0,4}(?:\^|\*\*)[ {(\[]{0,4}\d+)+")
_FACTORIAL = re.compile(r"(\d+)[ )}\]]{0,4}!|\\[dt]?binom\{?(\d+)|![ )}\]]{1,4}!")

# Its "timeout is disabled" warning says what the docstring above says, in the middle of somebody's notebook.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Math(Task):
    r"""Judges the final answer of a solution: `problem.answer` is the gold answer, such as `420` or `\frac{3}{4}`."""

    name = "math"

    def __init__(self, time_limit=5.0):
        """`time_limit` is in seconds for parsing, and again for comparing; see the module on where it holds."""
        self.time_limit = time_limit
        self._gold: dict[str, list] = {}

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Compare the final answer in `completion` with the gold answer; `ValueError` if that cannot be parsed."""
        gold = self._parsed_gold(problem)
        text = completion[-MAX_CHARACTERS:]
        if _is_bomb(text):
            return Verdict(False, None, "refused: an answer with powers or factorials too large to write out")
        try:
            parsed = parse(text, parsing_timeout=self._seconds(), raise_on_error=True)
            if not parsed:
                return Verdict(False, None, "no answer found in the completion")
            answer = str(parsed[-1])
            if verify(gold, parsed, timeout_seconds=self._seconds()):
                return Verdict(True, answer, "equal to the gold answer", _text(parsed[0], answer))
            return Verdict(False, answer, f"{answer[:100]!r} is not equal to the gold answer {problem.answer!r}")
        except TimeoutException:  # not an Exception in Math-Verify
            return Verdict(False, None, f"stopped after {self._seconds()} s")
        except Exception as error:  # SymPy raises almost anything on odd input, RecursionError and MemoryError included
            return Verdict(False, None, f"the answer cannot be parsed: {type(error).__name__}")

    def _parsed_gold(self, problem: Problem) -> list:
        gold = str(problem.answer)
        if gold not in self._gold:
            self._gold[gold] = _parse_gold(gold, self._seconds())
        if not self._gold[gold]:
            raise ValueError(
                f"the answer of problem {problem.id!r} is {gold!r}, in which Math-Verify finds nothing to compare "
                "with; expected a number or LaTeX such as '\\\\frac{3}{4}': correct it or drop the problem"
            )
        return self._gold[gold]

    def _seconds(self) -> int | None:
        """The time limit as Math-Verify takes it: whole seconds, None where its alarm cannot be set."""
        alarm = os.name == "posix" and threading.current_thread() is threading.main_thread()
        return max(1, math.ceil(self.time_limit)) if alarm else None


def _parse_gold(gold: str, seconds: int | None) -> list:
    """Parse a gold answer, which most data sets give without the `$` that Math-Verify recognises LaTeX by."""
    gold = gold.strip()
    plain = parse(gold, parsing_timeout=seconds)
    if plain and _MARKED_UP.search(gold):
        return plain
    wrapped = parse(f"${gold}$", parsing_timeout=seconds)
    # "1,22" is a decimal in the one reading and a list in the other, and nothing in it says which.
    return plain + wrapped if _NUMBER.fullmatch(gold) else wrapped


def _is_bomb(text: str) -> bool:
    """Whether the part of `text` that is likely to be parsed holds a number too large to write out."""
    boxed = text.rfind("\\boxed")
    parts = [text[max(boxed, 0) :], *re.findall(r"(?i)final answer.{0,300}", text)]
    return any(_is_tower(tower[0]) for part in parts for tower in _TOWER.finditer(part)) or any(
        max(int(n[:9] or 0) for n in match) > MAX_FACTORIAL or not any(match)
        for part in parts
        for match in _FACTORIAL.findall(part)
    )


def _is_tower(tower: str) -> bool:
    """Whether the exponent of `a^b^c...` (b^c^...) is over `MAX_EXPONENT`."""
    numbers = [int(digits[:9]) for digits in re.findall(r"\d+", tower)]
    if min(numbers) <= 1:
        return False
    exponent = 1
    for number in reversed(numbers[1:]):
        if exponent * math.log(number) > math.log(MAX_EXPONENT):
            return True
        exponent = number**exponent
    return False


def _text(parsed, fallback: str) -> str:
    try:
        return str(parsed)
    except Exception:  # a number of more digits than Python prints
        return fallback
