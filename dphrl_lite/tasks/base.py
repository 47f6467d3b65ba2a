"""What a verifiable task is: problems, verdicts, and the promise that verifying never raises on model output."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dphrl_lite.tasks.completions import without_thoughts
from dphrl_lite.tasks.worker import Workers

NO_ANSWER = (
    "no answer found in the completion"  # the reason where a completion may be right, in a form that nobody reads
)


@dataclass(frozen=True)
class Problem:
    """One problem: an `id` unique in its set, the exact `prompt` a model sees, the reference `answer`, and `meta`."""

    id: str
    prompt: str
    answer: str
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "id", str(self.id))  # files of results hold ids of one type


@dataclass(frozen=True)
class Verdict:
    """What a task says of one completion.

    `answer` is what was extracted from the completion (None if nothing was), `reason` says in words why the verdict is
    what it is, and `distinct` is a canonical form: two correct answers with the same `distinct` are the same solution.
    `partial` is what a wrong answer is worth as a reward, from 0 to below 1: 0 unless the task was asked for partial credit.
    """

    correct: bool
    answer: str | None
    reason: str
    distinct: str | None = None
    partial: float = 0.0

    @property
    def reward(self) -> float:
        """What training pays: 1 for a correct answer, else `partial`. Counts, splits and evaluations look at `correct`."""
        return 1.0 if self.correct else self.partial


class Task:
    """A verifier. Subclasses implement `check`; callers use `verify`."""

    name = "task"
    workers: Workers | None = None  # of a task that judges in processes of its own

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Judge `completion` as an answer to `problem`.

        What is thought aloud does not count (`completions.py`), and unfinished thinking is no answer. Never raises on
        model output: whatever the completion holds, a `Verdict` comes back. A broken *problem* (no
        answer, an unknown database) is the data's fault and raises `ValueError` or `FileNotFoundError`.
        Threads may share a task; a copied, pickled or forked one works too.
        """
        if problem.answer is None or not str(problem.answer).strip():
            raise ValueError(
                f"problem {problem.id!r} has no answer, so nothing can be verified against it; "
                f"a {self.name} problem needs one: fill in `answer` or drop the problem"
            )
        answer, unfinished = without_thoughts("" if completion is None else str(completion))
        if unfinished and not answer.strip():
            return Verdict(False, None, "no answer: the thinking is unfinished")
        return self.check(problem, answer)

    def verify_all(self, pairs: Iterable[tuple[Problem, str]]) -> list[Verdict]:
        """`verify` of each (problem, completion), in order; a task with worker processes uses them all at once.

        A completion that a problem gets several times is judged once.
        """
        run, pairs = self.workers.map if self.workers else map, list(pairs)
        different = {(id(problem), completion): (problem, completion) for problem, completion in pairs}
        verdicts = run(lambda pair: self.verify(*pair), different.values())
        verdict_on = dict(zip(different, verdicts, strict=True))
        return [verdict_on[id(problem), completion] for problem, completion in pairs]

    def usable(self, problems: Iterable[Problem]) -> list[Problem]:
        """Those of `problems` to which there is no objection."""
        problems = list(problems)
        refused = self.objections(problems)
        return [problem for problem in problems if problem.id not in refused]

    def objections(self, problems: Iterable[Problem]) -> dict[str, str]:
        """The ids of problems whose own answer its verifier cannot use or refuses, or does not judge in time -> why."""
        problems = list(problems)
        run = self.workers.map if self.workers else map
        objections = zip(problems, run(self._objection, problems), strict=True)
        return {problem.id: why for problem, why in objections if why}

    def _objection(self, problem: Problem) -> str | None:
        try:
            verdict = self.own_verdict(problem)
        except ValueError as error:
            return str(error)
        return None if verdict is None or verdict.correct else f"its own answer is refused: {verdict.reason}"

    def own_verdict(self, problem: Problem) -> Verdict | None:
        """The verdict on the problem's own answer, or None where an answer is no completion (a target, say).

        Raises:
            ValueError: the answer cannot be used at all.
        """
        self.verify(problem, "")
        return None

    def identity(self) -> dict:
        """The task's name, and the settings that decide a verdict: they tell one run from another in manifests."""
        return {"task": self.name}

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Judge a completion of a problem that is known to have an answer."""
        raise TypeError(f"{type(self).__name__} must implement check(problem, completion)")
