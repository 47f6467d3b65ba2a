r"""Mathematics with a checkable final answer: Math-Verify parses and compares, in a process that can be killed.

Here: the verdict, the time limit, and cheap guards in front of the parser: only the end of a long completion is read,
and towers of powers, huge factorials and binomials in the answer are refused unparsed. Not here: answer extraction and
equality themselves (Math-Verify and SymPy, called by `math_worker.py`), and data sets (`problems.py`).
"""

import math
import re
from itertools import accumulate

from dphrl_lite.tasks.base import NO_ANSWER, Problem, Task, Verdict
from dphrl_lite.tasks.worker import WorkerError, Workers

MAX_CHARACTERS = 20_000  # of a completion's end; the answer comes last
MAX_EXPONENT = 100_000
MAX_FACTORIAL = 10_000

_TOWER = re.compile(r"(?<!\d)\d+(?:[ )}\]]{0,4}(?:\^|\*\*)[ {(\[]{0,4}\d+)+")
_FACTORIAL = re.compile(r"(?<!\d)(\d+)[ )}\]]{0,4}!|\\[dt]?binom\{?(\d+)|![ )}\]]{1,4}!")


class Math(Task):
    r"""Judges the final answer of a solution: `problem.answer` is the gold answer, such as `420` or `\frac{3}{4}`.

    All right answers to one problem are the same solution (`distinct` is the gold answer), however they are written:
    0.75 is \frac{3}{4}. Ways of reasoning are not compared.
    """

    name = "math"

    def __init__(self, time_limit: float = 5.0, workers: int | None = None):
        """`time_limit`: seconds for one verdict. `workers`: processes that `verify_all` uses (None: at most 4).

        Raises:
            ValueError: a limit or a number of processes that is not positive.
        """
        if not time_limit > 0:
            raise ValueError(f"time_limit={time_limit}: expected seconds over 0; the default is 5.0")
        self.time_limit, self.workers = time_limit, Workers("dphrl_lite.tasks.math_worker", workers)

    def identity(self) -> dict:
        """Name and time limit."""
        return super().identity() | {"time_limit": self.time_limit}

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Compare the final answer in `completion` with the gold answer; `ValueError` if that cannot be parsed."""
        text = completion[-MAX_CHARACTERS:]
        if _is_bomb(text):
            return Verdict(False, None, "refused: an answer with powers or factorials too large to write out")
        try:
            found = self.workers.ask(self.time_limit, gold=str(problem.answer), text=text)
        except WorkerError as error:
            return Verdict(False, None, str(error))
        if found.get("gold") is False:
            raise ValueError(
                f"the answer of problem {problem.id!r} is {problem.answer!r}, in which Math-Verify finds nothing to "
                "compare with; expected a number or LaTeX such as '\\\\frac{3}{4}': correct it or drop the problem"
            )
        return _verdict(found, str(problem.answer))


def _verdict(found: dict, gold: str) -> Verdict:
    answer = found["answer"]
    if "error" in found:
        return Verdict(False, None, f"the answer cannot be parsed: {found['error']}")
    if answer is None:
        return Verdict(False, None, NO_ANSWER)
    if found["correct"]:
        return Verdict(True, answer, "equal to the gold answer", gold.strip())
    return Verdict(False, answer, f"{answer[:100]!r} is not equal to the gold answer {gold!r}")


def _is_bomb(text: str) -> bool:
    """Whether the part of `text` that is likely to be parsed holds a number too large to write out."""
    boxed = text.rfind("\\boxed")
    parts = [_box(text[boxed:]) if boxed >= 0 else text, *re.findall(r"(?i)final answer.{0,300}", text)]
    return any(_is_tower(tower[0]) for part in parts for tower in _TOWER.finditer(part)) or any(
        max(int(n[:9] or 0) for n in match) > MAX_FACTORIAL or not any(match)
        for part in parts
        for match in _FACTORIAL.findall(part)
    )


def _box(text: str) -> str:
    """`text`, which starts with a box, up to the brace that closes it; what is said afterwards is no part of the answer."""
    depths = accumulate({"{": 1, "}": -1}.get(character, 0) for character in text)
    return text[: next((i for i, depth in enumerate(depths) if text[i] == "}" and depth <= 0), len(text))]


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
