r"""Mathematics with a checkable final answer: found, taken apart, parsed and compared in a process that can be killed.

Here: the verdict and its limits. Not here: where the answer stands (`math_answers.py`), units and other things that
Math-Verify drops (`math_readings.py`), parsing and equality (`math_worker.py`), and data sets (`problems.py`).
"""

from dphrl_lite.tasks.base import NO_ANSWER, Problem, Task, Verdict
from dphrl_lite.tasks.math_worker import MAX_GOLD
from dphrl_lite.tasks.worker import WorkerError, Workers

MAX_CHARACTERS = 20_000  # of a completion's end without blanks; the answer comes last


class Math(Task):
    r"""Judges the final answer of a solution: `problem.answer` is the gold answer, such as `420` or `\frac{3}{4}`.

    All right answers to one problem are the same solution (`distinct` is the gold answer), however they are written:
    0.75 is \frac{3}{4}. Ways of reasoning are not compared.
    """

    name = "math"

    def __init__(self, time_limit: float = 5.0, workers: int | None = None):
        """`time_limit`: seconds of processor time for one verdict. `workers`: processes that `verify_all` uses (None: at most 4).

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
        return self._judge(problem, completion.rstrip()[-MAX_CHARACTERS:])

    def own_verdict(self, problem: Problem) -> Verdict:
        """The verdict on the gold answer itself, computed although both look the same: another form would have to be."""
        gold = str(problem.answer)
        return self._judge(
            problem, gold if "\\boxed" in gold or len(gold) > MAX_GOLD else f"\\boxed{{{gold}}}", own=True
        )

    def _judge(self, problem: Problem, text: str, own: bool = False) -> Verdict:
        try:
            found = self.workers.ask(self.time_limit, gold=str(problem.answer), text=text, own=own)
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
    if answer is None and "reason" not in found:
        return Verdict(False, None, NO_ANSWER)
    if found["correct"]:
        return Verdict(True, answer, "equal to the gold answer", gold.strip())
    if "reason" in found:
        return Verdict(False, answer, found["reason"])
    return Verdict(False, answer, f"{answer[:100]!r} is not equal to the gold answer {gold!r}")
