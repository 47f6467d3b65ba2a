r"""Where the final answer stands in a solution, and how it is written: text in, text out.

Here: the last box, answer tag, `####` line or "the answer is", and typography that means nothing (dashes, wide digits,
spaces between thousands, Markdown). Not here: parsing and equality (`math_worker.py`), thoughts (`completions.py`).
"""

import re
import unicodedata
from fractions import Fraction

from dphrl_lite.tasks.completions import marked_answers

MAX_SAID = 200  # characters of an answer in words
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;&\n]")  # between boxes that are one answer
_WORD = r"(?:answer|result|solution|number|value|expression|ans)"
_PLACEHOLDER = re.compile(
    r"(?:[\s.…_?\\,]|\\[lcd]dots|\\text\w*|\\square|[{}<>\[\]])*"
    rf"(?:(?:(?:your|the|my|insert|final|correct|numerical|numeric)\s+)*{_WORD}(?:\s+(?:here|goes here))?)?"
    r"(?:[\s.…_?\\,]|\\[lcd]dots|[{}<>\[\]])*",
    re.IGNORECASE,
)
_HASHES = re.compile(
    r"####(?![ \t]*\d+[.)][ \t]+[A-Za-z])[ \t]*([-+−–]?[ \t]*[$€£¥]?[ \t]*[-+−–]?[\d.,/ ]*\d[.,]?[ \t]*\\?%?[ \t]*(?:[A-Za-z]+[ \t.]*){0,3}"  # noqa: E501
    r"|\$[^$\n]+\$|\\boxed[^\n]+)[ \t]*(?=\n|\Z)"
)
_ANCHOR = re.compile(
    r"(?<!to )\banswers?\b(?:(?:[ \t]+(?!is\b|are\b|:)[^\s.,:=]+){0,8}?[*_ \t]*(?:\bis\b|\bare\b|:)|[ \t]*=)[ \t]*:?[*_]*\s*",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"\bfinal answer(?:[ \t]+is)?[ \t]*:?[ \t]*(?:the final answer is[ \t]*:?[ \t]*)?((?<!\\)\$(?![^$]*\\boxed)[^$\n]+\$|[-+]?\$?\d[\d,]*(?:\.\d+)?)",  # noqa: E501
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"[-+]?[$]?[-+]?\d[\d,/.]*(?<![,.])(?=\s*(?:,(?!\s*(?:[-\d]|and\b|or\b))|[;(]|because\b|since\b|as\b|which\b|where\b|for\b|in total\b))"  # noqa: E501
)
_SAID = re.compile(r"(?i)\b(answer)(?=s?\b|ed\b|ing\b)")
_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's annotations
_SENTENCE = re.compile(r"(?<=[^\s\d.])[.!?](?=\s+[A-Z*]|\s*\Z)|(?<=\d)\.(?=\s+[A-Z*]|\s*\Z)|\n\s*\n|\n(?=[A-Z*#])")

_SIGNS = {
    **dict.fromkeys("–—−‐‑‒﹣－", "-"), **dict.fromkeys("×✕", r"\times "), **dict.fromkeys("·⋅∙", r"\cdot "), "÷": "/",
    "⁄": "/", "∕": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "∞": r"\infty ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "¬": r"\neg ", "ℝ": r"\mathbb{R}", "°": r"^\circ ", "º": r"^\circ ",  # noqa: E501
    "→": r"\to ", "⇒": r"\Rightarrow ", "∧": r"\land ", "∨": r"\lor ", "…": r"\ldots ", "“": '"', "”": '"', "’": "'", "‘": "'",
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""), "，": ",", "。": ".", "⟨": r"\langle ", "⟩": r"\rangle ",
}  # fmt: skip
_SIGNS_TABLE = str.maketrans(_SIGNS)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉"
_VULGAR = re.compile("(\\d?)([¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_SPACE = r"(?:\\[,;:! ]|\{,\}|,\\!|~|\\thinspace|'|’)"
_THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SPACE}\s*\d{{3}})+(?!\d)")
_BLANK_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,9})(?![\w.])")
_SCALES = {"hundred": 10**2, "dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(
    rf"(\d[\d,]*(?:\.\d+)?)(?:\s|\\[ ,;])*(?:\\(?:text\w*|mathrm|mbox)\{{\s*)?\b({'|'.join(_SCALES)})s?\b",
    re.IGNORECASE,
)
_OVERLINE = re.compile(r"(\d*\.\d*)(?:\\(?:overline|bar|dot|dot)\s*(?:\{(\d+)\}|(\d))|\((\d+)\))")
_DOTS = re.compile(r"(\d*\.\d*?)(?:(\d)\2{2,}|(\d{2,9}?)\3+)\s*(?:\\[lcd]?dots\b|\.\.\.+)")


def final_answers(text: str) -> tuple[list[str], str]:
    """The answer that `text` marks as its own, then the others that stand close to it; and the text to search where none is.

    A later mark counts for more than an earlier one. Boxes that are empty, or repeat the prompt's, are no marks.
    """
    marks = [(end, [inside]) for end, inside in _boxes(text)]
    marks = [(end, [inside, *_neighbours(marks[: i + 1], text)]) for i, (end, (inside,)) in enumerate(marks)]
    for end, inside in marked_answers(text):
        inner = _boxes(inside)
        marks.append((end, [inner[-1][1] if inner else _Sentence(inside) if _is_sentence(inside) else inside]))
    marks += [(match.end(), [match[1]]) for pattern in (_HASHES, _FINAL) for match in pattern.finditer(text)]
    marks = [(end, answers) for end, answers in marks if not _PLACEHOLDER.fullmatch(answers[0])]
    last = max(marks, key=lambda mark: mark[0])[1] if marks else []
    if last and not isinstance(last[0], _Sentence):
        return last, ""
    text = last[0] if last else text
    passage = prose(text)
    formula = _ANCHOR.search(text) and re.match(r"\$[^$]|\\\(", passage) and len(passage) < MAX_SAID
    return ([passage], "") if formula else ([], passage)


class _Sentence(str):
    """What a tag holds that is to be searched, and not an answer as it stands."""


def _is_sentence(text: str) -> bool:
    return len(re.findall(r"(?<![\\\w{])[A-Za-z]{2,}", text)) > 2 and "\\text" not in text


def _boxes(text: str) -> list[tuple[int, str]]:
    """Where the boxes of `text` end, and what they hold; boxes inside a box are part of it."""
    boxes, end = [], 0
    for box in _BOX.finditer(text):
        if box.start() < end:
            continue
        start = box.end()
        if text[start : start + 1] != "{":  # `\boxed 42`
            bare = re.compile(r"[^\s$\\{},]+").match(text, start)
            if bare:
                boxes.append((bare.end(), bare[0].rstrip(".")))
            continue
        end = _closing(text, start)
        inside = text[start + 1 : end - 1] if end else re.split(r"[\n$]|\\[\])]", text[start + 1 :], maxsplit=1)[0]
        end = end or start + 1 + len(inside)
        percent = re.compile(r"\s*\$?\s*\\?%").match(text, end)
        boxes.append((end, _BOX.sub("", inside) + (r"\%" if percent and "%" not in inside else "")))
    return [(end, inside) for end, inside in boxes if not _PLACEHOLDER.fullmatch(inside)]


def _closing(text: str, start: int) -> int | None:
    """Where the group that opens at `start` has closed, or None."""
    depth = 0
    for brace in re.compile(r"\\[{}\\]|[{}]").finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return None


def _neighbours(marks: list, text: str) -> list[str]:
    """The contents of the boxes before the last of `marks`, as far as little stands between one and the next."""
    contents = []
    for (end, inside), (next_end, (next_inside,)) in zip(reversed(marks[:-1]), reversed(marks), strict=False):
        gap = text[end : next_end - len(next_inside) - len("\\boxed{}")]
        if len(gap) > 80 or (len(gap) > 15 and not _SEPARATOR.search(gap)):
            break
        contents += inside
    return contents


def prose(text: str) -> str:
    """A solution without marks, ready for a search from its end: what follows the last "the answer is", or all of it."""
    text = numbers(_emphasis(symbols(_CALCULATOR.sub("", text))))
    text = re.sub(r"\\\$(?=\s*[-\d.])", "", text)
    anchors = [anchor for anchor in _ANCHOR.finditer(text) if re.search(r"[\d\\$A-Za-z]", text[anchor.end() :])]
    reply = _SAID.sub("reply", text[anchors[-1].end() :] if anchors else text)  # Math-Verify looks for that word first
    lead = _LEAD.match(reply) if anchors else None
    return lead[0] if lead else _first_part(reply) if anchors else reply


def _first_part(text: str) -> str:
    text = text.strip()
    return next((part for part in _SENTENCE.split(text) if part and re.search(r"[\d\\$]", part)), text)


def _emphasis(text: str) -> str:
    """`text` without Markdown's stars and backticks and without quotation marks around words and numbers."""
    text = re.sub(r"(?<![\w*])(\*{1,3}|__|`)(?=\S)([^*\n`]*?\S)\1(?!\w)", r"\2", text)
    return re.sub(r"(?<!\w)([\"'])([^\"'\n]{1,60})\1(?!\w)", r"\2", text)


def symbols(text: str) -> str:
    """`text` with plain digits and signs, and LaTeX for the others."""
    text = _VULGAR.sub(
        lambda v: v[1] + _fraction(Fraction(unicodedata.numeric(v[2])).limit_denominator(10)),
        text,
    )
    raised = lambda match: "^{" + "".join("0123456789+-"[_RAISED.index(sign)] for sign in match[0]) + "}"
    text = re.sub(f"[{_RAISED}]+", raised, text)
    text = re.sub(f"[{_LOWERED}]+", lambda match: "_{" + "".join(str(_LOWERED.index(c)) for c in match[0]) + "}", text)
    text = re.sub(
        r"√\s*(?:\(([^()]*)\)|(\d+|[a-z]|\\pi))",
        lambda root: r"\sqrt{%s}" % (root[1] or root[2]),
        text.replace("√{", r"\sqrt{"),
    )
    text = re.sub(r"√\s*(π)", r"\\sqrt{\\pi}", text).translate(_SIGNS_TABLE)
    return "".join(_plain(character) for character in text) if not text.isascii() else text


def _plain(character: str) -> str:
    if unicodedata.category(character) == "Nd":  # digits of any script, bold ones too
        return str(unicodedata.decimal(character))
    wide = "\uff01" <= character <= "\uff5e" or "\U0001d400" <= character <= "\U0001d7ff"
    return unicodedata.normalize("NFKC", character) if wide else character


def tidy(answer: str) -> str:
    """One answer without the typography that means nothing: marks around it, Markdown, dollars, spaces between thousands."""
    answer = _LOOKS.sub(r"\1", symbols(answer))
    answer = _ONE_LINE.sub(lambda line: line[2].replace("&", ""), answer).strip()
    before = None
    while before != answer:
        before = answer
        answer = re.sub(
            r"^(?:\\\(|\\\[|\$\$?|\*+|`+|\"|\\(?:therefore|Rightarrow|implies|to|[ ,;!])(?![A-Za-z])|\\d?quad|\\displaystyle|[\s~])+",  # noqa: E501
            "",
            answer,
        )
        answer = re.sub(
            r"(?:[\s~]|(?<!\\)\$|\\[)\]]|\*{1,3}|`|\"|(?<!\\)[.;:,](?<!\.\.\.)|\\\\|\\[ ,;!]|\\q?quad|\\text\{[\s.]*\})+\Z",
            "",
            answer,
        )
        answer = re.sub(r"^\{((?:[^{},]|\{[^{}]*\})*)\}\Z", r"\1", answer)
    answer = re.sub(r"\\\$|(?<!\\)\$|\\?€|£|¥|\\(?:euro|pounds)\b|\\text\s*\{\s*\\?\$\s*\}", "", answer)
    answer = _EMPTY.sub(r"\\emptyset", re.sub(r"\\(?:left|right|big|Big|bigg|Bigg)(?![A-Za-z])", "", answer).strip())
    answer = re.sub(r"\\(?:math\w\w|text\w*|bm|boldsymbol)\s*\{\s*(-?[\d.,/]*\d)\s*\}", r"\1", answer)
    answer = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), answer)
    if _BLANK_THOUSANDS.fullmatch(answer):
        answer = answer.replace(" ", "")
    answer = re.sub(r"(?<![\w.\\])(\d+)\s+(\d+)/(\d+)(?![\w.])", r"\1\\frac{\2}{\3}", answer)
    answer = re.sub(r"(?<![A-Za-z\\])(?:\\text\s*\{\s*pi\s*\}|pi)(?![A-Za-z])", r"\\pi ", answer)
    return numbers(answer)


_LOOKS = re.compile(  # size, colour and lines under something
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|(?:text|script)style)(?![A-Za-z])"
    r"|\\(?:text)?color(?:box)?\s*\{[^{}]*\}|\\underline\s*\{\s*(-?[\d.,/]*\d)\s*\}|\\underline(?![A-Za-z])"
)
_ONE_LINE = re.compile(
    r"\\begin\{(align(?:ed|\*)?|gather(?:ed|\*)?)\}((?:(?!\\\\|\\begin|\\end).)*)(?:\\\\\s*)?\\end\{\1\}", re.DOTALL
)
_REALS = r"\\?text\s*\{\s*(?:all )?real(?:s| numbers?)?\s*\}|\\mathbf\{R\}|\\R\b|all real(?:s| numbers)\Z"
_EMPTY = re.compile(
    r"\\varnothing|\\\{\s*\\\}|(?:\\text\s*\{\s*|^)no (?:real )?solutions?(?: exists?)?\s*\}?\Z", re.IGNORECASE
)


def numbers(text: str) -> str:
    """`text` with numbers in scientific notation, of words such as "million", and with periods, written out."""
    text = re.sub(_REALS, r"\\mathbb{R}", text, flags=re.IGNORECASE)
    text = _SCIENTIFIC.sub(lambda n: rf"{n[1]} \times 10^{{{int(n[2])}}}" if n[1].strip("0.") else n[0], text)
    text = _OVERLINE.sub(lambda n: _period(n[1], n[2] or n[3] or n[4]), text)
    text = _DOTS.sub(lambda n: _period(n[1], n[2] or n[3]), text)
    if _SCALE.search(text):
        text = (
            re.sub(r"\s*\}\s*\Z", "", _SCALE.sub(_scaled, text))
            if "\\text" in text or "\\mathrm" in text
            else _SCALE.sub(_scaled, text)
        )
    return text


def _scaled(match: re.Match) -> str:
    value = Fraction(match[1].replace(",", "")) * _SCALES[match[2].lower()]
    return str(value.numerator) if value.denominator == 1 else _fraction(value)


def _period(head: str, period: str) -> str:
    """The fraction of a decimal number whose digits end in `period`, over and over."""
    whole, _, digits = head.partition(".")
    value = Fraction(int(whole + digits or "0")) + Fraction(int(period), 10 ** len(period) - 1)
    value /= 10 ** len(digits)
    return _fraction(value)


def _fraction(value: Fraction) -> str:
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
