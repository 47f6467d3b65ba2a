"""One-digit arithmetic in words, for the small language model: problem generator and verifier.

A family is an operation; each problem is one of `WORDINGS` with an ordered pair of numbers from 2 to 9. About a third of the
*unordered* pairs, the same for every family, is held out (split "test"): no order and no wording of them is trained on. Who
chooses settings takes a third of the others for that (split "validation") and trains on the rest ("fit"; "train" is both).
"""

import re
from hashlib import sha256
from itertools import product

import numpy as np

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem, Task, Verdict
from dphrl_lite.tasks.completions import last_marked

NUMBERS = range(2, 10)
ASK = "Answer with the number only."
# family -> its value, and ways to ask for it
FAMILIES = {
    "multiplication": (lambda a, b: a * b, ("What is {a} times {b}?", "Multiply {a} by {b}.")),
    "addition": (lambda a, b: a + b, ("What is {a} plus {b}?", "Add {a} and {b}.")),
    "subtraction": (lambda a, b: a - b, ("What is {a} minus {b}?", "Subtract {b} from {a}.")),
}
_NUMBER = re.compile(r"(?:(?<![\d)])(?<![\d)] )-)?\d+(?:[.,]\d+)*")  # a minus after a number or a bracket subtracts
TESTED = {"multiplication": 24, "addition": 12, "subtraction": 12}  # held-out problems of a comparison


class Arithmetic(Task):
    """Right is a completion whose last number is the answer.

    Not the task "math": that one reads an expression as its value, and would reward who repeats "7 * 8" when asked for it.
    """

    name = "arithmetic"

    def check(self, problem: Problem, completion: str) -> Verdict:
        """`Verdict` for the last number in `completion`, or in its last marked answer."""
        numbers = _NUMBER.findall(last_marked(completion).replace("−", "-"))
        if not numbers:
            return Verdict(False, None, "no number in the completion")
        last, expected = numbers[-1], str(problem.answer).strip()
        right = last == expected
        return Verdict(right, last, f"the last number is {last}, expected {expected}", last if right else None)


def is_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair belongs to the test third."""
    return _digest(a, b)[0] < 256 // 3


def _digest(a: int, b: int) -> bytes:
    return sha256(f"{min(a, b)} {max(a, b)}".encode()).digest()


def _splits(a: int, b: int) -> tuple[str, ...]:
    if is_held_out(a, b):
        return ("test",)
    return "train", "validation" if _digest(a, b)[1] < 256 // 3 else "fit"


def problems(family: str, count: int | None = None, split: str = "train", seed: int = 0) -> list[Problem]:
    """`count` different problems of one family of `FAMILIES`, all of them if `count` is None, in an order set by `seed`.

    Raises:
        ValueError: unknown family or split, or more problems asked for than there are.
    """
    _, wordings = lookup(FAMILIES, "arithmetic family", family)
    lookup(dict.fromkeys(("train", "fit", "validation", "test")), "split", split)
    pairs = [(a, b) for a, b in product(NUMBERS, repeat=2) if split in _splits(a, b)]
    pool = [_problem(family, wording, a, b) for a, b in pairs for wording in range(len(wordings))]
    if count is not None and count > len(pool):
        raise ValueError(f"asked for {count} {family} problems of split {split!r}; there are {len(pool)}")
    return [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:count]]


def _problem(family: str, wording: int, a: int, b: int) -> Problem:
    value, wordings = FAMILIES[family]
    prompt = f"{wordings[wording].format(a=a, b=b)} {ASK}"
    meta = {"family": family, "numbers": [a, b]}
    return Problem(f"{family}:{wording}:{a}-{b}", prompt, str(value(a, b)), meta)
