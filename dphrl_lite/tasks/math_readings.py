r"""One answer taken apart before it is parsed: value, unit, base, time of day, modulus; conditions are no part of it.

Here: what two answers may differ in although Math-Verify, which drops it, calls them equal (`20\%` and `20 days`); and what
is refused unparsed. Not here: typography (`math_answers.py`), parsing and equality of values (`math_worker.py`).
"""

import math
import re
from dataclasses import dataclass, replace

from dphrl_lite.tasks.math_answers import tidy

MAX_EXPONENT = 100_000
MAX_FACTORIAL = 10_000

_TOWER = re.compile(r"(?<!\d)\d+(?:[ )}\]]{0,4}(?:\^|\*\*)[ {(\[]{0,4}\d+)+")
_FACTORIAL = re.compile(r"(?<!\d)(\d+)[ )}\]]{0,4}!|\\[dt]?binom\{?(\d+)|![ )}\]]{1,4}!")

_MATH = re.compile(r"(?<!\\)\$\$?(.+?)(?<!\\)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_CONDITION = re.compile(
    r"\s*[,;(]?\s*(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*,?\s*|\s)(?:for\s+(?:all|any|every|each|some|an?|\w+\b)|where|if|when|whenever"
    r"|such\s+that|provided|with|assuming)\b.*",
    re.DOTALL | re.IGNORECASE,
)
_TIME = re.compile(
    r"(\d{1,2})(?::(\d\d))?(?:\s|\\[ ,;~]|~)*(?:\\(?:text|mathrm|textrm|mbox)\s*\{)?\s*(?:([ap])\.?\s?m\b\.?)?\s*\}?",
    re.IGNORECASE,
)
_BASE = re.compile(
    r"(-?[0-9A-Fa-f.]+)(?:_\s*\{?\s*\(?(?:\\text\w*\s*\{)?\s*(\w+?)\s*\}?\)?\s*\}?|\s*\\?(?:text\s*\{)?\s*\(?\s*base\s*(\w+)\s*\)?\s*\}?)"
)
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_MODULUS = re.compile(
    r"(.*?)\s*\\?[,;]?\s*(?:\\pmod\s*\{?\s*(\w+)\s*\}?|\(?\s*(?:\\bmod|\\mod|\\text\s*\{\s*\(?mod)\s*\}?\s*\{?(\w+)\}?\s*\)?\}?)"
)
_ORDINAL = re.compile(r"(\d)\s*(?:\^\s*\{?\s*)?(?:\\(?:text|mathrm|textrm)\s*\{\s*)?(?:st|nd|rd|th)\s*\}{0,2}\Z")

_TEXT = r"\\(?:text|mathrm|textrm|textbf|mbox|operatorname|rm|hbox)\s*"
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_UNIT = re.compile(
    rf"(?P<value>.*?[\d}})!]|.*?\\pi|.*?[A-Za-z)](?=\s*\\(?:text|mathrm|textrm|mbox)))(?:\s|\\[ ,;:!]|~|\\q?quad)*"
    rf"(?P<unit>(?:\^\s*\{{?\s*\\circ\s*\}}?|\\degree|\\circ)\s*(?:\\text\s*\{{)?\s*[CF]?\s*\}}?"
    rf"|(?:{_TEXT}\{{[^{{}}]*\}}{_POWER}(?:\s|\\[ ,;:!]|/|\\cdot)*)+"
    rf"|(?:[A-Za-z][A-Za-z.\- ]*{_POWER})(?:\s*(?:/|per)\s*[A-Za-z]+{_POWER})?)\s*\.?",
    re.DOTALL,
)  # fmt: skip
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_TRIGONOMETRIC = r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])"
_ANGLE = re.compile(rf"{_TRIGONOMETRIC}(?!\s*\^\s*\{{?\s*-)[^=<>,;]*")  # with what the function is taken of
_ALIASES = {
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre", "m": "meter metre", "dm": "decimeter",  # noqa: E501
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile", "kg": "kilogram kilo", "g": "gram gm", "mg": "milligram",
    "lb": "pound", "oz": "ounce", "t": "ton tonne", "l": "liter litre", "ml": "milliliter millilitre", "gal": "gallon",
    "s": "second sec", "min": "minute", "h": "hour hr", "day": "d", "week": "wk", "month": "", "year": "yr", "degree": "deg °",
    "rad": "radian", "cent": "¢", "dollar": "usd buck", "euro": "eur", "mph": "", "kmh": "kph", "n": "newton", "j": "joule",
    "w": "watt", "v": "volt", "hz": "hertz", "kw": "kilowatt", "kj": "kilojoule", "°c": "celsius", "°f": "fahrenheit", "acre": "", "hectare": "ha",  # noqa: E501
    "am": "", "pm": "", "pt": "", "sq": "", "cu": "", "qt": "quart", "gb": "", "mb": "", "kb": "",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _ALIASES.items() for name in (unit, *names.split())}
_SINGLE = set("mgshlLNJWVKCF")  # letters that are a unit behind a space and a number, unless the gold answer has them
_NO_UNITS = {
    "and",
    "or",
    "mod",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "exp",
    "sqrt",
    "pi",
    "max",
    "min",
    "i",
    "in",
    "to",
    "is",
    "not",
    "but",
    "inf",
    "frac",
}
_OPERATORS = re.compile(
    r"\\(?:c[ua]p|neg|lnot|not|to|(?:long)?(?:left)?rightarrow|Rightarrow|implies|iff|in|ni|notin|land|lor|wedge|vee|cong|simeq"
    r"|n?mid|n?parallel|perp|n?su[bp]set\w*|setminus|backslash|ne|neq|mapsto|oplus|otimes|propto|ll|gg|leftarrow|gets)(?![A-Za-z])"
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """An answer taken apart: the LaTeX of its `value`, and "" for what it does not say."""

    value: str
    unit: str = ""
    base: str = ""
    time: str = ""
    modulus: str = ""

    @property
    def key(self) -> str:
        """The value without spaces and braces around single characters: equal for what looks the same."""
        text = re.sub(r"\\[dtc]frac", r"\\frac", re.sub(r"\\[ ,;:!]|\s+", "", self.value))
        return re.sub(r"\{(\w)\}", r"\1", text)


def read(answer: str, letters: frozenset = frozenset()) -> Reading:
    """Take `answer` apart; single `letters` of the gold answer are no units."""
    text = tidy(pieces(answer))
    if re.match(r"\s*\$?\s*-?\\\$", answer):
        return replace(_without_unit(text, letters), unit="dollar")
    clock = _TIME.fullmatch(text)
    if clock and (clock[2] or clock[3]):
        half = (clock[3] or "").lower()
        return Reading(text, time=f"{int(clock[1])}:{clock[2] or '00'} {half and half + 'm'}".strip())
    if number := _BASE.fullmatch(text):
        base = (number[2] or number[3]).lower()
        return Reading(number[1], base=_BASES.get(base, base))
    residue = _MODULUS.fullmatch(text)
    if residue and (r"\pmod" in text or r"\equiv" in text or "text" in text or "(" in text):
        return Reading(residue[1], modulus=residue[2] or residue[3])
    return _without_unit(_ORDINAL.sub(r"\1", text), letters)


def pieces(answer: str) -> str:
    """The parts of `answer` that stand in `$...$`, as a list, without conditions such as "for all real numbers $t$"."""
    formulas = list(_MATH.finditer(answer))
    if formulas and all(
        re.fullmatch(r"[\s,;]*(?:and|or)?[\s,;]*", "".join(filter(None, part.groups()))) for part in formulas
    ):
        answer, formulas = answer.replace("$", ""), []  # `12 $ and $ 13` in a box, which is mathematics already
    if not formulas:
        return _CONDITION.sub("", answer) if re.search(r"[\d\\]", _CONDITION.sub("", answer)) else answer
    parts, end = [], formulas[0].start()
    for part in formulas:
        if parts and _CONDITION.match(answer[end : part.start()]):
            break
        parts.append(next(filter(None, part.groups())).strip().rstrip(",.;"))
        end = part.end()
    parts = [pieces(part) for part in parts]
    last = answer[formulas[-1].end() :].strip(" .,;\n*")
    if len(parts) == len(formulas) == 1 and re.fullmatch(r"\\?%|[A-Za-z][A-Za-z .]{0,30}", last):  # "$5$ feet"
        return parts[0] + (r"\%" if "%" in last else rf" \text{{ {last}}}")
    return ", ".join(parts)


def _without_unit(text: str, letters: frozenset) -> Reading:
    text = _ANGLE.sub(lambda angle: _DEGREE.sub(r"\\cdot\\frac{\\pi}{180} ", angle[0]), text)
    if re.search(r"\\?%\s*\Z|\bpercent(?:age)?\s*\}?\s*\Z", text):
        return Reading(text, unit="%")
    quantity = _UNIT.fullmatch(text)
    if not quantity or not quantity["value"].strip():
        return _inner_text(text)
    unit, plain = quantity["unit"], not quantity["unit"].startswith(("\\", "^"))
    words = re.findall(r"[A-Za-z]+", re.sub(_TEXT, " ", unit))
    if plain and not _is_unit(words, quantity["value"], text, letters):
        return Reading(text)
    if (
        not plain
        and "circ" not in unit
        and re.match(r"\s*(?:,?\s*(?:and|or)\b|mod)", "".join(re.findall(r"\{([^{}]*)\}", unit)))
    ):
        return Reading(text)
    return replace(
        _without_unit(quantity["value"].strip(), letters) if "circ" not in unit else Reading(quantity["value"]),
        unit=_canonical(unit),
    )


def _inner_text(text: str) -> Reading:
    """`\\text{3 apples}` read as `3 \\text{ apples}`."""
    quantity = re.fullmatch(
        rf"{_TEXT}\{{\s*(?:(?:the )?answer(?: is)?:?\s*)?(-?[\d.,/]*\d)\s*([A-Za-z][A-Za-z /.^\d]*)?\s*\}}", text
    )
    return Reading(quantity[1], unit=_canonical(quantity[2] or "")) if quantity else Reading(text)


def _is_unit(words: list[str], value: str, text: str, letters: frozenset) -> bool:
    if not re.fullmatch(r"[-+\d.,/ {}()]|(?:[-+\d.,/ {}()^]|\\frac|\\sqrt|\\pi|\\times|\\cdot)+", value) or words[
        0
    ].lower() in _NO_UNITS - {"in", "min"}:
        return False
    if len(words[0]) == 1:
        return (
            words[0] in _SINGLE
            and words[0] not in letters
            and text[len(value) :][:1] in " \\"
            and (len(words) == 1 or "/" in text)
        )
    if set(words[0]) <= letters and len(words[0]) < 4:
        return False
    return len(words[0]) >= 4 or words[0].lower().rstrip("s") in _UNITS or words[0].lower() in _UNITS


def _canonical(unit: str) -> str:
    """A unit's one name, `cm` for "centimeters", with the power; other words as they stand."""
    text = re.sub(
        rf"{_TEXT}|\\[ ,;:!]|[{{}}~]", " ", unit.replace(r"\circ", " degree ").replace(r"\degree", " degree ")
    ).replace("^ degree", "degree")
    names = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
    words, power = re.findall(r"[A-Za-z°¢]+|\^\s*-?\d|/|\bper\b", text.replace("^  degree", "degree")), ""
    if words and words[0].lower() in names and len(words) > 1:
        power, words = names[words[0].lower()], words[1:]
    plain = (word.lower() for word in words)
    return (
        " ".join(_UNITS.get(w, _UNITS.get(w.rstrip("s"), "/" if w == "per" else w.rstrip("s"))) for w in plain)
        .replace(" ^", "^")
        .replace("^ ", "^")
        + power
    )


def conflict(gold: Reading, answer: Reading) -> str | None:
    """In what two readings differ beside their values, or None. What only one of them says is no conflict."""
    for name in ("base", "modulus", "unit"):
        expected, actual = getattr(gold, name), getattr(answer, name)
        measured = (
            name != "unit"
            or "%" in (expected, actual)
            or all(re.split(r"[\^ /]", unit)[0] in _UNITS.values() for unit in (expected, actual))
        )
        if expected and actual and expected != actual and measured:
            return f"the {name} is {actual} where the gold answer's is {expected}"
    strange = set(_OPERATORS.findall(re.sub(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])", "", answer.value))) - set(
        _OPERATORS.findall(gold.value)
    )
    if (
        strange
        and re.fullmatch(r"-?[\d.,/]+", gold.value)
        and not re.match(r"^\s*\\?[A-Za-z]", _OPERATORS.split(answer.value)[0] or "1")
    ):
        return f"{sorted(strange)[0]} makes no number"
    apart = re.sub(rf"\\[dtc]?(?:frac|binom)\s*\d\s+\d|(?:\\log|{_TRIGONOMETRIC})\s*[_^]\s*\d\s", "", answer.value)
    if re.search(r"\d\s+\d", apart) and not re.search(r"\d\s+\d", gold.value):
        return "two numbers beside each other"
    brackets = lambda text: {"\\{": "set", "(": "tuple", "[": "tuple"}.get(
        re.match(r"(?:[A-Za-z]\s*(?:=|\\in)\s*)?(\\\{|[(\[])?", text)[1] or ""
    )
    if "," in gold.value and "," in answer.value and {brackets(gold.value), brackets(answer.value)} == {"set", "tuple"}:
        return "a set is no ordered tuple"
    return None


# ---- what would take for ever ----------------------------------------------------------------------------------------


def is_bomb(text: str) -> bool:
    """Whether computing `text` would write out a number with too many digits."""
    return any(_is_tower(tower[0]) for tower in _TOWER.finditer(text)) or any(
        max(int(n[:9] or 0) for n in match) > MAX_FACTORIAL or not any(match) for match in _FACTORIAL.findall(text)
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
