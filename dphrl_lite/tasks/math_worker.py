"""The process in which answers are parsed and compared: `python -m dphrl_lite.tasks.math_worker`.

A process of its own, because SymPy can take for ever, or all memory, over a line of LaTeX, and only the death of its
process stops it everywhere (`worker.py`). `math.Math` asks; nothing else should. Math-Verify parses and compares values;
what it decides otherwise than a teacher is decided before it (`math_readings.py`) or after it (`_is_close`).
"""

import logging
import re
from functools import lru_cache

from dphrl_lite.tasks.math_answers import final_answers
from dphrl_lite.tasks.math_readings import Reading, conflict, is_bomb, read
from dphrl_lite.tasks.worker import serve

MEMORY_GB = 4
SMALL, DIGITS = (
    1e-3,
    1e-4,
)  # below which size numbers are compared relatively instead of to six decimals, and how closely
MAX_GOLD = 200  # characters of a gold answer that is no solution
_REFUSED = "refused: an answer with powers or factorials too large to write out"
_CLEAN = re.compile(
    r"(?:is\s+)?(?:[-+]?\$?[-+]?[\d.,/]*\d(?:\s*(?:,|,?\s*and|,?\s*or)\s*[-+]?[\d.,/]*\d)*(?:\s*\\?%|\s*[A-Za-z.]+(?:\^\{?\d\}?)?|:\d\d(?:\s*[ap]\.?m\.?)?)?"
    r"|\$[^$]+\$)\s*[.!]?", re.IGNORECASE
)  # fmt: skip
_QUANTITY = re.compile(r"(-?[\d.,]*\d)\s*(\\?%|[ap]\.?m\b\.?|[A-Za-z]+(?:\^\{?\d\}?)?)(?![\s\S]*\d)", re.IGNORECASE)


def judge(gold: str, text: str, own: bool = False) -> dict:
    """Compare the final answer in `text` with `gold`. `own`: equality must be computed, even where both look the same.

    Returns:
        {"gold": False} where `gold` holds nothing to compare with, else "answer" (None if there is none), "correct", and
        "reason" where the values alone do not say it, or "error" where parsing failed.
    """
    expected = _read_gold(gold)
    if not expected.key:
        return {"gold": False}
    try:
        return _judge(expected, gold, text, own)
    except Exception as error:  # SymPy raises almost anything on odd input, RecursionError and MemoryError included
        return {"answer": None, "correct": False, "error": type(error).__name__}


@lru_cache(maxsize=4096)
def _read_gold(gold: str) -> Reading:
    marked, _ = final_answers(gold)
    if not marked and len(gold) > MAX_GOLD and "$" in gold:  # a solution, whose last formula is the answer
        marked = re.findall(r"\$([^$]+)\$", gold)[-1:]
    return read(", ".join(dict.fromkeys(reversed(marked))) if marked else gold)


@lru_cache(maxsize=4096)
def _parse_gold(value: str) -> list:
    return _parse(value)


def _parse(value: str, unmarked: bool = False) -> list:
    """The value's parse and its text, as Math-Verify gives them; `unmarked`: the last one in a text, instead of the whole."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    latex = LatexExtractionConfig(normalization_config=rules)
    targets = [latex, ExprExtractionConfig()] if unmarked else [latex]
    return parse(value if unmarked else f"${value}$", targets, parsing_timeout=None, raise_on_error=True)


def _judge(gold: Reading, written: str, text: str, own: bool) -> dict:
    marked, rest = final_answers(text)
    if not marked:
        quantity = _QUANTITY.search(rest)
        if rest and _CLEAN.fullmatch(rest):
            marked = [rest]
        elif quantity and gold.unit + gold.time:
            marked = [quantity[0]]
    if not marked:
        return _in_prose(gold, rest)
    verdict = _compare(gold, marked[0], own)
    if not verdict["correct"] and len(marked) > 1 and _is_list(gold):
        joined = _compare(gold, ", ".join(dict.fromkeys(reversed(marked))), own)
        return joined if joined["correct"] else verdict
    return verdict


def _is_list(gold: Reading) -> bool:
    """Whether the gold answer is several values, in no brackets or in those of a set."""
    parsed = _parse_gold(gold.value)[0]
    return type(parsed).__name__ == "FiniteSet" and len(parsed.args) > 1


def _compare(gold: Reading, answer: str, own: bool) -> dict:
    letters = frozenset(re.sub(r"\\[A-Za-z]+", "", gold.value)) - set("0123456789")
    reading = read(answer, frozenset(letters))
    if why := conflict(gold, reading):
        return {"answer": reading.value, "correct": False, "reason": why}
    if gold.time and reading.time and ("m" in gold.time) == ("m" in reading.time):
        return {"answer": reading.time, "correct": gold.time == reading.time}
    if (reading.key == gold.key and not (own and re.search(r"\d", gold.value) and not is_bomb(gold.value))) or (
        gold.time and gold.time.split()[0] == reading.time
    ):
        return {"answer": reading.value, "correct": True}
    if not reading.key:
        return {"answer": None, "correct": False}
    values = [value for value in _sides(reading.value, gold.value) if not is_bomb(value)]
    if not values:
        return {"answer": None, "correct": False, "reason": _REFUSED}
    verdicts = [_compare_value(gold, value) for value in values]
    return next((verdict for verdict in verdicts if verdict["correct"]), verdicts[-1])


def _compare_value(gold: Reading, value: str) -> dict:
    parsed = _parse(value)
    if not parsed:
        return {"answer": None, "correct": False}
    if gold.modulus and _congruent(_parse_gold(gold.value)[0], parsed[0], gold.modulus):
        return {"answer": value, "correct": True}
    if _is_false(parsed[0], gold):
        return {"answer": value, "correct": False, "reason": "the statement is false"}
    alternatives = re.split(r"(?:\\text\s*\{\s*|\b)or\b\s*\}?|\\lor", value) if r"\cup" in gold.value else [value]
    if len(alternatives) > 1:
        parsed = [_union(alternatives), value]
    return {"answer": str(parsed[-1]), "correct": _same(_parse_gold(gold.value), parsed)}


def _union(alternatives: list[str]):
    """The set of `x < 2 or x > 3`, whose `alternatives` are relations."""
    from sympy import Union

    return Union(*(_parse(alternative)[0].as_set() for alternative in alternatives))


def _in_prose(gold: Reading, rest: str) -> dict:
    if is_bomb(rest):  # only numbers on the way may be large: the search parses the last one first
        rest = re.split(r"[.!?]\s+|\n", rest.strip(" .\n"))[-1]
    if is_bomb(rest):
        return {"answer": None, "correct": False, "reason": _REFUSED}
    parsed = _parse(rest, unmarked=True) if rest.strip() else []
    if not parsed:
        return {"answer": None, "correct": False}
    verdict = {"answer": str(parsed[-1]), "correct": _same(_parse_gold(gold.value), parsed)}
    if verdict["correct"] and _is_false(parsed[0], gold):
        return verdict | {"correct": False, "reason": "the statement is false"}
    return verdict


_SIDES = re.compile(r"(?<![<>!\\])=|\\equiv(?![A-Za-z])")


def _sides(value: str, gold: str) -> list[str]:
    """What of `value` may be the answer: the last side alone, where one before it is too large to compute; both sides of an
    approximation, of which the right one must be the left one rounded."""
    if r"\approx" in value and r"\approx" not in gold:
        left, right = (side.strip() for side in value.rsplit(r"\approx", 1))
        return [left, right] if left and _rounds(left, right) else [left or right]
    *before, last = _SIDES.split(value)
    return [last] if any(map(is_bomb, before)) else [value]


def _rounds(left: str, right: str) -> bool:
    decimals = re.fullmatch(r"-?\d+(?:\.(\d+))?", right)
    exact = None if is_bomb(left) else getattr(_parse(left)[0], "rhs", _parse(left)[0])
    if decimals is None or not getattr(exact, "is_number", False):
        return True
    return bool(abs(exact.evalf() - float(right)) <= 0.51 * 10 ** -len(decimals[1] or ""))


_IN_TEXT = re.compile(r"\\(?:text\w*|math\w\w|mbox)\s*\{([^{}]*)\}")


def _same(gold: list, said: list) -> bool:
    word = _IN_TEXT.sub(r"\1", str(gold[-1])).strip()
    other = re.sub(r"\s|\\[ ,;:!]|~", "", _IN_TEXT.sub(r"\1", str(said[-1])))
    if _is_word(word) and other.isalpha():
        return word.casefold() == other.casefold()
    if _equal(gold, said):
        return True
    pair = [_with_imaginary_unit(values[0]) for values in (gold, said)]
    return pair != [gold[0], said[0]] and _equal(pair[:1], pair[1:])


def _with_imaginary_unit(value):
    """`value` with the number i in place of the letter, unless that counts the terms of a sum."""
    import sympy

    if not isinstance(value, (sympy.Expr, sympy.FiniteSet)):
        return value
    return value.subs({symbol: sympy.I for symbol in value.free_symbols if symbol.name == "i"})


def _equal(gold: list, said: list) -> bool:
    from math_verify import verify

    if not verify(gold, said, timeout_seconds=None, allow_set_relation_comp=True):
        return False
    return isinstance(gold[0], str) or isinstance(said[0], str) or _is_close(gold[0], said[0])


def _is_word(text: str) -> bool:
    """Whether `text` is a word, such as `even` or `HTH`, and no product of letters: those are two, or in alphabetical order."""
    product = text.islower() and text == "".join(sorted(set(text)))
    return text.isalpha() and (text.casefold() == "no" or (len(text) > 2 and not product))


def _congruent(gold, said, modulus: str) -> bool:
    said = getattr(said, "rhs", said)
    gold = getattr(gold, "rhs", gold)
    return modulus.isdigit() and gold.is_Integer and said.is_Integer and (gold - said) % int(modulus) == 0


def _is_false(said, gold: Reading) -> bool:
    """Whether `said` only relates numbers to each other, and not truly: `41 = 42`, or what is no answer, `41 \\ne 42`."""
    from latex2sympy2_extended.logic import And
    from sympy.core.relational import Equality, Relational

    parts = said._unsorted_args if isinstance(said, And) else [said]
    if not all(isinstance(part, Relational) and not part.free_symbols for part in parts):
        return False
    sides = [side for part in parts for side in part.args]
    return not all(isinstance(part, Equality) for part in parts) or not all(_is_close(sides[0], side) for side in sides)


def _is_close(gold, said) -> bool:
    """Whether two values that Math-Verify calls equal are equal as a teacher counts: it looks at six decimals of any number.

    Exact ones must be exactly equal; of those with a decimal point, small ones are compared relatively. True where
    nothing can be said.
    """
    import sympy

    if isinstance(gold, sympy.core.relational.Equality) and not isinstance(said, sympy.core.relational.Relational):
        gold = gold.rhs
    if isinstance(said, sympy.core.relational.Equality) and not isinstance(gold, sympy.core.relational.Relational):
        said = said.rhs
    if (
        isinstance(gold, (sympy.FiniteSet, sympy.Tuple))
        and isinstance(said, type(gold))
        and len(gold.args) == len(said.args)
    ):
        pairs = [[getattr(value, "rhs", value) for value in values.args] for values in (gold, said)]
        if not all(getattr(value, "is_number", False) and value.is_real for values in pairs for value in values):
            return True
        return all(map(_is_close, *(sorted(v) if isinstance(gold, sympy.FiniteSet) else v for v in pairs)))
    if not all(isinstance(value, sympy.Expr) and not value.is_Symbol for value in (gold, said)):
        return True
    if gold.has(sympy.UnevaluatedExpr) or said.has(sympy.UnevaluatedExpr):  # percentages: 20 % is 20 and .2
        return True
    try:
        return _numbers_close(gold, said)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return True


def _numbers_close(gold, said) -> bool:
    import sympy

    symbols = sorted(gold.free_symbols | said.free_symbols, key=str)
    values = {symbol: sympy.Rational(2 * i + 5, 3 * i + 7) for i, symbol in enumerate(symbols)}
    difference, size = gold.subs(values) - said.subs(values), gold.subs(values)
    if difference == 0 or (gold - said) == 0:
        return True
    exact = not (gold.has(sympy.Float) or said.has(sympy.Float))
    if exact:
        rest = difference.doit()
        parts = rest.as_real_imag() if rest.has(sympy.I) else [rest]
        if all(part.is_Rational for part in parts):
            return not any(parts)
    size, off = abs(complex(size.evalf(40)).real) or abs(size.evalf(40)), abs(difference.evalf(40))
    if exact:
        return bool(off <= sympy.Float("1e-25", 40) * abs(gold.subs(values).evalf(40)))
    return bool(size >= SMALL or off <= DIGITS * max(size, abs(said.subs(values).evalf(40))))


def main():
    """Serve until standard input ends."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    judge("1", "$2$")  # imports and grammars are loaded now, not on somebody's time limit
    serve(judge, MEMORY_GB)


if __name__ == "__main__":
    main()
