"""Countdown, the tiny model's verifiable task: reach a target with given numbers. Verifier and problem generator.

Families, each a one-line prompt of words that the tiny tokenizer knows:

    cd3, cd4   `countdown 2 5 9 target 47 =`  any expression that uses each number once, e.g. `5 * 9 + 2`
    sort       `sort 9 3 1 7 =`               `1 3 7 9`; never trained by RL, so it shows what is forgotten

Nearly every cd problem has several right answers as written, which is what Pass@k needs; up to the order of operands
(`Verdict.distinct`) most have one, and a quarter of cd4 have several.
"""

import ast
import hashlib
import operator
import re
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, permutations, product

import numpy as np

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem, Task, Verdict
from dphrl_lite.tasks.completions import last_marked

NUMBERS = range(1, 11)
TARGETS = range(1, 100)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_MAX_CHARACTERS = 200


class Countdown(Task):
    """Judges expressions. `problem.answer` is the target; `problem.meta["numbers"]` the numbers to use once each.

    Family `sort` compares the list of numbers. An answer may stand on the last line of a longer text and may end in
    `= target`.
    """

    name = "countdown"

    def check(self, problem: Problem, completion: str) -> Verdict:
        """`Verdict` for the last line of `completion`, or of its last marked answer.

        Its `distinct` is the expression up to the order of operands.
        """
        lines = [line.strip() for line in last_marked(completion).translate(_SIGNS).splitlines() if line.strip()]
        text = lines[-1] if lines else ""
        if problem.meta.get("family") == "sort":
            text = " ".join(text.split())
            right = text.split() == str(problem.answer).split()
            return Verdict(right, text, "sorted as asked" if right else f"expected {problem.answer}", text)
        left, _, said = text.partition("=")
        return self._check_expression(problem, left.strip(), said.strip())

    def _check_expression(self, problem: Problem, text: str, said: str) -> Verdict:
        try:
            target = Fraction(str(problem.answer))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"problem {problem.id!r}: the answer must be a number, got {problem.answer!r}") from None
        given = _given(problem)
        try:
            tree = parse(text)
            value, used = evaluate(tree), sorted(_numbers(tree))
        except (ValueError, ZeroDivisionError) as error:
            return Verdict(False, text or None, str(error))
        if said and said != str(problem.answer).strip():
            return Verdict(False, text, f"claims to equal {said[:20]}, the target is {target}")
        reason = None if used == given else f"uses {used}, expected each of {given} once"
        if reason is None and value != target:
            reason = f"equals {value}, the target is {target}"
        return Verdict(reason is None, text, reason or f"equals {target}", canonical(tree))


def _given(problem: Problem) -> list[int]:
    numbers = problem.meta.get("numbers")
    try:
        if isinstance(numbers, str):
            raise ValueError
        return sorted(map(int, numbers))
    except (TypeError, ValueError):
        raise ValueError(
            f"problem {problem.id!r}: a countdown problem needs the numbers that may be used, as in meta = "
            f'{{"numbers": [2, 5, 9]}}; got {numbers!r}'
        ) from None


def parse(text: str) -> ast.expr:
    """The syntax tree of an arithmetic expression of whole numbers, + - * / and parentheses; nothing is ever executed.

    Raises:
        ValueError: anything else, with the reason.
    """
    if not text:
        raise ValueError("the answer is empty")
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"an expression of {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    if not re.fullmatch(r"[0-9+\-*/() ]+", text):
        raise ValueError(f"not an arithmetic expression: {text[:60]!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"not an arithmetic expression: {text[:60]!r}") from None
    for node in ast.walk(tree):
        known = isinstance(node, (ast.BinOp, ast.Constant, ast.operator))
        if not known or (isinstance(node, ast.BinOp) and type(node.op) not in _OPERATORS):
            raise ValueError(f"only + - * / between whole numbers are allowed: {text[:60]!r}")
    return tree


def evaluate(tree: ast.expr) -> Fraction:
    """The exact value of a tree from `parse`. Raises `ZeroDivisionError` with words a student understands."""
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)
    left, right = evaluate(tree.left), evaluate(tree.right)
    if isinstance(tree.op, ast.Div) and right == 0:
        raise ZeroDivisionError("divides by zero")
    return _OPERATORS[type(tree.op)](left, right)


def _numbers(tree: ast.expr) -> list[int]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def canonical(tree: ast.expr) -> str:
    """One spelling for expressions that differ only by the order or grouping of sums and products: 2+5*9 is 9*5+2."""
    terms = sorted(f"{sign}{'*'.join(factors)}" for sign, factors in _terms(tree, "+"))
    return "".join(terms)


def _terms(tree: ast.expr, sign: str) -> list[tuple[str, list[str]]]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, (ast.Add, ast.Sub)):
        flipped = {"+": "-", "-": "+"}[sign] if isinstance(tree.op, ast.Sub) else sign
        return _terms(tree.left, sign) + _terms(tree.right, flipped)
    return [(sign, sorted(_factors(tree, "")))]


def _factors(tree: ast.expr, inverse: str) -> list[str]:
    if isinstance(tree, ast.Constant):
        return [f"{inverse}{tree.value}"]
    if isinstance(tree.op, (ast.Mult, ast.Div)):
        flipped = ("" if inverse else "/") if isinstance(tree.op, ast.Div) else inverse
        return _factors(tree.left, inverse) + _factors(tree.right, flipped)
    return [f"{inverse}({canonical(tree)})"]


# ---- problems --------------------------------------------------------------------------------------------------------


def split_of(numbers) -> str:
    """The split of a multiset of numbers. "test" (a fifth) and "validation" (a tenth) are hidden from all training."""
    place = hashlib.sha256(" ".join(map(str, sorted(numbers))).encode()).digest()[0] / 256
    return "test" if place < 0.2 else "validation" if place < 0.3 else "train"


@cache
def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """Every infix expression without parentheses over `numbers`, by its value in 1 ... 99, in a fixed order."""
    found: dict[int, dict[str, None]] = {}
    for order in sorted(set(permutations(numbers))):
        for signs in product("+-*", repeat=len(numbers) - 1):
            words = [str(order[0])] + [word for pair in zip(signs, map(str, order[1:]), strict=True) for word in pair]
            value = _value(order, signs)
            if value in TARGETS:
                found.setdefault(value, {})[" ".join(words)] = None
    return {value: list(expressions) for value, expressions in sorted(found.items())}


def guess_rate(numbers: tuple[int, ...], target: int) -> float:
    """The chance that one of all expressions without parentheses over `numbers`, drawn blindly, has the value `target`."""
    ways = len(set(permutations(numbers))) * 3 ** (len(numbers) - 1)
    return len(solutions(tuple(sorted(numbers))).get(target, ())) / ways


def _value(order: tuple[int, ...], signs: tuple[str, ...]) -> int:
    total, term = 0, order[0]
    for sign, number in zip(signs, order[1:], strict=True):
        if sign == "*":
            term *= number
        else:
            total, term = total + term, number if sign == "+" else -number
    return total + term


def _multisets(size: int, split: str) -> list[tuple[int, ...]]:
    return [m for m in combinations_with_replacement(NUMBERS, size) if split_of(m) == split]


def _countdown(numbers: tuple[int, ...], target: int) -> Problem:
    words, family = " ".join(map(str, numbers)), f"cd{len(numbers)}"
    prompt = f"countdown {words} target {target} ="
    meta = {"family": family, "numbers": list(numbers)}
    return Problem(f"{family}:{words.replace(' ', '-')}:{target}", prompt, str(target), meta)


def _sort(numbers: tuple[int, ...]) -> Problem:
    words = " ".join(map(str, numbers))
    answer = " ".join(map(str, sorted(numbers)))
    return Problem(f"sort:{words.replace(' ', '-')}", f"sort {words} =", answer, {"family": "sort"})


def _all_problems(family: str, split: str) -> list[Problem]:
    size = 3 if family == "cd3" else 4
    if family == "sort":
        return [_sort(order) for m in _multisets(4, split) for order in sorted(set(permutations(m)))]
    return [_countdown(m, target) for m in _multisets(size, split) for target in solutions(m)]


SPLITS = ("train", "validation", "test")
FAMILIES = ("cd3", "cd4", "sort")


def problems(family: str, count: int | None = None, split: str = "train", seed: int = 0) -> list[Problem]:
    """`count` different problems of one family ("cd3", "cd4", "sort"), all of them if `count` is None.

    Splits "validation" and "test" hold number multisets that neither supervised learning nor RL ever sees.

    Raises:
        ValueError: unknown family or split, or more problems asked for than there are.
    """
    lookup(dict.fromkeys(FAMILIES), "countdown family", family)
    lookup(dict.fromkeys(SPLITS), "split", split)
    pool = _all_problems(family, split)
    if count is not None and count > len(pool):
        raise ValueError(f"asked for {count} {family} problems of split {split!r}; there are {len(pool)}")
    order = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[i] for i in order]


def supervised_examples(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` (prompt, answer) pairs for supervised learning, in the mix cd3 .37, cd4 .60, sort .03.

    Each answer is one of the right ones, drawn uniformly, so that the model learns to spread over all ways to be right.
    """
    rng = np.random.default_rng(seed)
    multisets = {size: _multisets(size, "train") for size in (3, 4)}
    examples = []
    for family in rng.choice(FAMILIES, size=count, p=[0.37, 0.60, 0.03]):
        size = 3 if family == "cd3" else 4
        numbers = multisets[size][rng.integers(len(multisets[size]))]
        if family == "sort":
            problem = _sort(tuple(int(x) for x in rng.permutation(numbers)))
            examples.append((problem.prompt, problem.answer))
        else:
            by_value = solutions(numbers)
            target = _pick(list(by_value), rng)
            examples.append((_countdown(numbers, target).prompt, _pick(by_value[target], rng)))
    return examples


def _pick(options: list, rng: np.random.Generator):
    return options[rng.integers(len(options))]
