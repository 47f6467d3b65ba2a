"""The process in which Math-Verify runs: `python -m dphrl_lite.tasks.math_worker`, one JSON request and answer per line.

A process of its own, because SymPy can take for ever, or all memory, over a line of LaTeX, and only the death of its
process stops it everywhere. `math.Math` starts it, times it, and kills it. Nothing else should call it.
"""

import json
import logging
import os
import re
import sys
from contextlib import suppress
from functools import lru_cache

MEMORY_GB = 4
_MARKED_UP = re.compile(r"(?<!\\)\$|\\boxed|\\\[|\\\(")
_NUMBER = re.compile(r"-?[\d.,]+%?")


def judge(gold: str, text: str) -> dict:
    """Compare the final answer in `text` with `gold`.

    Returns:
        {"gold": False} where `gold` holds nothing to compare with, else "answer" (None if there is none), "correct",
        "distinct", and "error" where parsing failed.
    """
    from math_verify import parse, verify

    expected = parse_gold(gold)
    if not expected:
        return {"gold": False}
    try:
        parsed = parse(text, parsing_timeout=None, raise_on_error=True)
        if not parsed:
            return {"answer": None, "correct": False}
        answer = str(parsed[-1])
        correct = verify(expected, parsed, timeout_seconds=None)
        return {"answer": answer, "correct": correct, "distinct": _text(parsed[0], answer) if correct else None}
    except Exception as error:  # SymPy raises almost anything on odd input, RecursionError and MemoryError included
        return {"answer": None, "correct": False, "error": type(error).__name__}


@lru_cache(maxsize=4096)
def parse_gold(gold: str) -> list:
    """Parse a gold answer, which most data sets give without the `$` that Math-Verify recognises LaTeX by."""
    from math_verify import parse

    gold = gold.strip()
    plain = parse(gold, parsing_timeout=None)
    if plain and _MARKED_UP.search(gold):
        return plain
    wrapped = parse(f"${gold}$", parsing_timeout=None)
    # "1,22" is a decimal in the one reading and a list in the other, and nothing in it says which.
    return plain + wrapped if _NUMBER.fullmatch(gold) else wrapped


def _text(parsed, fallback: str) -> str:
    try:
        return str(parsed)
    except Exception:  # a number of more digits than Python prints
        return fallback


def _limit_memory():
    with suppress(ImportError, ValueError, OSError):  # not on Windows, not where a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB * 2**30, MEMORY_GB * 2**30))


def main():
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what a library prints must not be taken for an answer
    _limit_memory()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    judge("1", "$1$")  # imports and grammars are loaded now, not on somebody's time limit
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
