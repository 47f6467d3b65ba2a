r"""Mathematics with a checkable final answer: Math-Verify parses and compares, in a process that can be killed.

Here: the verdict, the time limit, and cheap guards in front of the parser: only the end of a long completion is read,
and towers of powers, huge factorials and binomials in the answer are refused unparsed. Not here: answer extraction and
equality themselves (Math-Verify and SymPy, called by `math_worker.py`), and data sets (`problems.py`).
"""

import json
import math
import queue
import re
import subprocess
import sys
import threading

from dphrl_lite.tasks.base import Problem, Task, Verdict

MAX_CHARACTERS = 20_000  # of a completion's end; the answer comes last
MAX_EXPONENT = 100_000
MAX_FACTORIAL = 10_000
START_SECONDS = 120

_TOWER = re.compile(r"(?<!\d)\d+(?:[ )}\]]{0,4}(?:\^|\*\*)[ {(\[]{0,4}\d+)+")
_FACTORIAL = re.compile(r"(\d+)[ )}\]]{0,4}!|\\[dt]?binom\{?(\d+)|![ )}\]]{1,4}!")


class Math(Task):
    r"""Judges the final answer of a solution: `problem.answer` is the gold answer, such as `420` or `\frac{3}{4}`."""

    name = "math"

    def __init__(self, time_limit: float = 5.0):
        """`time_limit`: seconds for one verdict, after which the process that computes it is killed and replaced."""
        self.time_limit = time_limit
        self._worker = _Worker()

    def identity(self) -> dict:
        """Name and time limit."""
        return super().identity() | {"time_limit": self.time_limit}

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Compare the final answer in `completion` with the gold answer; `ValueError` if that cannot be parsed."""
        text = completion[-MAX_CHARACTERS:]
        if _is_bomb(text):
            return Verdict(False, None, "refused: an answer with powers or factorials too large to write out")
        try:
            found = self._worker.ask({"gold": str(problem.answer), "text": text}, self.time_limit)
        except TimeoutError:
            return Verdict(False, None, f"stopped after {self.time_limit:g} s")
        except BrokenPipeError:
            return Verdict(False, None, "stopped: judging the answer took too much memory or crashed")
        if found.get("gold") is False:
            raise ValueError(
                f"the answer of problem {problem.id!r} is {problem.answer!r}, in which Math-Verify finds nothing to "
                "compare with; expected a number or LaTeX such as '\\\\frac{3}{4}': correct it or drop the problem"
            )
        return _verdict(found, problem.answer)


def _verdict(found: dict, gold: str) -> Verdict:
    answer = found["answer"]
    if "error" in found:
        return Verdict(False, None, f"the answer cannot be parsed: {found['error']}")
    if answer is None:
        return Verdict(False, None, "no answer found in the completion")
    if found["correct"]:
        return Verdict(True, answer, "equal to the gold answer", found["distinct"])
    return Verdict(False, answer, f"{answer[:100]!r} is not equal to the gold answer {gold!r}")


class _Worker:
    """The other process. One question at a time, from any thread; dead or late, it is replaced at the next question."""

    def __init__(self):
        self._lock, self._process, self._lines = threading.Lock(), None, None

    def ask(self, request: dict, seconds: float) -> dict:
        """The answer to `request`. Raises `TimeoutError` after `seconds`, `BrokenPipeError` where the process died."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._next_line(seconds))

    def _start(self):
        command = [sys.executable, "-m", "dphrl_lite.tasks.math_worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # a session of its own: Ctrl-C in the notebook is not for it
        self._process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        self._lines = queue.Queue()
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()
        self._next_line(START_SECONDS)

    def _next_line(self, seconds: float) -> str:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()
            self._process.wait()
            raise TimeoutError from None
        if line is None:
            self._process.wait()
            raise BrokenPipeError
        return line


def _forward(stream, lines: queue.Queue):
    """Lines of a pipe into a queue, which can be waited for with a time limit on every system; None at the end."""
    for line in stream:
        lines.put(line)
    lines.put(None)


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
