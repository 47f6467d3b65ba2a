r"""Where the query stands in a completion: in a fence, in tags, in inline code, after a label, or on lines of its own.

Here: finding one query and leaving the prose around it. Not here: thoughts (`completions.py`), running (`sql_worker.py`).

Later places count for more than earlier ones of the same kind: a model corrects itself downwards. What looks like a query
and does not parse (`Select the names of all customers`) is prose wherever something else does parse.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice

import sqlglot
from sqlglot import exp

from dphrl_lite.tasks.completions import marked_answers

MAX_PARSED = 5_000  # characters of a candidate that is still parsed to tell it from prose
MAX_CUTS = 40  # lines and words that are tried without

_FENCE = re.compile(r"(```|~~~)[ \t]*([\w+-]*)(.*?)(\1|\Z)", re.DOTALL)
_TAGS = re.compile(r"<\s*(sql|sql_?query|query)\s*>(.*?)(?:<\s*/\s*\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_WITH = r"with\s+(?:recursive\s+)?(?:\w+|\"[^\"\n]{1,200}\"|`[^`\n]{1,200}`)\s*(?:\([^()]{0,500}\)\s*)?as\b"
_QUERY = rf"(?:select\b|{_WITH})"
# A line may begin with what marks it as quoted, listed, bold, typed at a prompt, or commented.
_BEFORE = r"(?:[ \t\ufeff>*•-]|\d{1,3}[.)](?=[ \t])|(?:sqlite|sql)>|/\*[^\n]{0,300}?\*/)*"
_LINE = re.compile(rf"^{_BEFORE}(?<!\w)(\(*{_QUERY})", re.IGNORECASE | re.MULTILINE)
_BEGINS = re.compile(rf"(?:\s|\ufeff|--[^\n]*\n|/\*.*?\*/|\()*{_QUERY}", re.IGNORECASE | re.DOTALL)
_LABELLED = re.compile(rf":[ \t*`]*\s?[ \t*`]*({_QUERY})", re.IGNORECASE)  # as in "Answer: SELECT ..."
_FINAL = re.compile(
    r"\b(?:(?:final|correct(?:ed)?|revised|fixed)(?:[ \t]+\w+){0,3}|answer|sql|query)[*_]*"
    rf"(?:[ \t]+is)?[ \t]*:[ \t*_]*\s{{0,3}}`?({_QUERY})",
    re.IGNORECASE,
)
_INSIDE = re.compile(r"\b((?:SELECT|WITH)\b)")  # in the middle of a sentence: as people write it there
_PLAIN = re.compile(
    r"(?:[^\n`.;!?]|\.(?!\s))*[^\s:*.`]\s*;?\s*"
)  # one line without a sentence: what small models write
_INLINE = re.compile(rf"(?<!`)(`{{1,2}})(?!`)\s*(?={_QUERY})", re.IGNORECASE)
_TOKEN = re.compile(r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|;", re.DOTALL)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_EMPHASIS = re.compile(r"(?:\*\*|`|__|\s)+\Z")  # that closes behind a query
_NAME = r"[\w\"'`\[][\w\"'`\].]*"
_OTHER = (  # more than the first word: "Replace 'Oslo' by another city" is no statement
    rf"(?:values\s*\(|insert\s+(?:or\s+\w+\s+)?into\b|replace\s+into\b|update\s+(?:or\s+\w+\s+)?{_NAME}\s+set\b"
    r"|delete\s+from\b|(?:drop|alter)\s+(?:table|view|index|trigger)\b|pragma\s+\w+|vacuum\b|reindex\b"
    r"|create\s+(?:(?:temp|temporary|unique|virtual)\s+)?(?:table|view|index|trigger)\b|attach\s+(?:database\s+)?['\"]"
    rf"|detach\s+(?:database\s+)?{_NAME}|begin\s*(?:;|\Z|transaction|immediate|exclusive|deferred)|commit\s*(?:;|\Z))"
)
_STATEMENT = re.compile(rf"\s*(?:{_WITH}|{_OTHER})", re.IGNORECASE)
_EARLIER = re.compile(rf"(?:\A|\n|[^\w\s,])[ \t]*(explain\b|{_OTHER})", re.IGNORECASE)  # not in mid-sentence
_AROUND = re.compile(  # the beginning of a statement that a query ends
    r"explain(?:\s+query\s+plan)?|create\b[^;]*\bas[\s(]*"
    rf"|(?:insert|replace)\s+(?:or\s+\w+\s+)?into\s+{_NAME}\s*(?:\([^()]*\)\s*)?",
    re.IGNORECASE,
)
_NESTED = re.compile(  # what stands before a query that is part of another query
    r"(?:\b(?:union|except|intersect)(?:\s+all)?"
    r"|(?:\b(?:in|exists|from|join|as|select|not|any|all)|[=<>+*/|,(-])\s*\()\s*\Z",
    re.IGNORECASE,
)
_GOES_ON = re.compile(  # the next paragraph is still the query
    r"\s*(?:from|where|group\s+by|order\s+by|having|limit|offset|union|except|intersect|(?:left|inner|cross|full|natural)?"
    r"\s*(?:outer\s+)?join|on|and|or|window|select|\)|,|--|/\*)(?:\b|(?<=\W))",
    re.IGNORECASE,
)
# How a query goes on after a part that parses: with a clause, or in a condition
_CLAUSE = re.compile(
    r"(?:from|where|having|limit|offset|union|except|intersect|window|(?:group|order)(?:\s+by)?|(?-i:AND|OR|ON)"
    r"|(?:(?:left|right|full|inner|cross|natural|outer)\s+)*join)\b|on\s+\w+\.\w|\(\s*select\b",
    re.IGNORECASE,
)
_OPERATOR = re.compile(r"(?:and|or|is|in|like|glob|between)\b(?!,)|\|\||[=!+%](?!>)|[<>](?![/|a-z])", re.IGNORECASE)
_IN_CONDITION = re.compile(r".*\b(?:(where|having|on)|group|order|limit|window|union|except|intersect)\b", re.I | re.S)
_BRACKETS = re.compile(r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_SENTENCE = re.compile(r"[A-Z][a-z]")
_DIALECTS = ("sql", "sqlite", "sqlite3", "postgresql", "postgres", "mysql", "tsql", "plsql", "duckdb", "ansi")
_TEXT = ("", "text", "txt", "plaintext", "code", "none")


def extract(completion: str) -> str | None:
    """The query in a completion, or None: what stands in answer or query tags, else in a fence, else what a label such as
    "Final answer:" announces, else in inline code, else on a line of its own, else in a sentence.

    A label that stands below the last fence counts for more than the fence. Of several places of one kind the last with a
    query counts, except for lines: there the first does, since base models go on with a question of their own. Prose
    after the query is dropped; a further statement, before or after, is kept, so that running it is refused.
    """
    tags = []
    if ">" in completion:
        tags = [(match.end(), match[2]) for match in _TAGS.finditer(completion)] + marked_answers(completion)
    for _, inside in sorted(tags, reverse=True):
        if _LINE.search(inside) or _BEGINS.match(inside):
            return _untagged(inside)
    return _untagged(completion)


def _untagged(text: str) -> str | None:
    end, fenced = _fenced(text) if "```" in text or "~~~" in text else (0, None)
    rest = text[end:] if fenced else text
    labelled = [match.start(1) for match in _FINAL.finditer(rest)] if ":" in rest else []
    if labelled and rest[labelled[-1] - 1] != "`":
        return _first_statement(rest[labelled[-1] :])
    if fenced and not labelled:
        return fenced
    return ("`" in rest and _inline(rest)) or _unfenced(rest)


def _fenced(text: str) -> tuple[int, str | None]:
    """Where the last fence with a statement ends, and what it holds."""
    blank = None
    for fence in reversed(list(_FENCE.finditer(text))):
        label, body, end = fence[2].lower(), fence[3], fence[4]
        inline = label in ("select", "with")  # ```SELECT 1``` on one line: no label but the first word
        body = fence[2] + body if inline else body
        if not body.strip() or not (inline or label in _DIALECTS or (label in _TEXT and end)):
            continue
        if _BEGINS.match(body):
            return fence.end(), body.strip().lstrip("\ufeff")
        start = _LINE.search(body)
        if start:
            return fence.end(), _behind(body[: start.start()], body[start.start(1) :].strip())
        if label in _DIALECTS:
            if _COMMENT.sub("", body).strip(" ;\n\t"):
                return fence.end(), body.strip()
            blank = blank or (fence.end(), body.strip())
    return blank or (0, None)


def _inline(text: str) -> str | None:
    """The last query in inline code, with a table rather than a clause that is only talked about, no bare SELECT."""
    queries = [_closed(text, opening) for opening in list(_INLINE.finditer(text))[-10:]]
    queries = [sql for sql in queries if sql and len(sql.split()) > 1]
    tables = [sql for sql in queries if re.search(r"\bfrom\b", sql, re.IGNORECASE)]
    return (tables or queries or [None])[-1]


def _closed(text: str, opening: re.Match) -> str | None:
    """What stands between `opening` and the first closing backtick up to which it parses; backticks also quote names."""
    start, paragraph = opening.end(), text.find("\n\n", opening.end())
    scope = text[start : paragraph if paragraph >= 0 else len(text)]
    inside = [scope[: tick.start()].strip() for tick in list(re.finditer(rf"{opening[1]}(?!\w)", scope))[:MAX_CUTS]]
    return next(filter(_parses, inside), inside[0] if inside else None)


def _unfenced(text: str) -> str | None:
    starts = list(_LINE.finditer(text))
    if len(starts) == 1 and _PLAIN.fullmatch(text):
        return text[starts[0].start(1) :].strip()
    if any(start[1].strip("( ")[:6] in ("SELECT", "WITH", "select", "with") for start in starts):
        starts = [
            start for start in starts if not start[1].lstrip("( ")[1:4].islower() or start[1].lstrip("( ")[0].islower()
        ]
    starts = [start for start in starts if not _NESTED.search(text, max(0, start.start() - 50), start.start())]
    statements = (_first_statement(_behind(text[: start.start()], _unquoted(text, start))) for start in starts)
    sql = _first_that_parses(statements)
    if sql is None or not _parses(sql):
        starts = (start.start(1) for pattern in (_LABELLED, _INSIDE) for start in pattern.finditer(text))
        starts = (start for start in starts if not _NESTED.search(text, max(0, start - 50), start))
        inside = (_first_statement(_behind(text[:start], _in_quotes(text, start))) for start in starts)
        other = _first_that_parses(inside)
        sql = other if sql is None or (other and _parses(other)) else sql
    return sql


def _unquoted(text: str, start: re.Match) -> str:
    """`text` from `start` on; where that line is quoted as in an e-mail, without the marks of the lines that follow."""
    rest = text[start.start(1) :]
    return (
        re.sub(r"^[ \t]*>[ \t]?", "", rest, flags=re.MULTILINE) if ">" in text[start.start() : start.start(1)] else rest
    )


def _in_quotes(text: str, start: int) -> str:
    """`text` from `start` on; where quotes open there, as in JSON or Python, up to those that close."""
    quote = text[start - 1 : start]
    if quote not in ("'", '"'):
        return text[start:]
    closing = re.compile(rf"(?<!\\){quote}(?=['\"]{{0,4}}\s*(?:[]}}),.:;<]|\n|\Z))")
    inside = (text[start : end.start()] for end in islice(closing.finditer(text, start, start + MAX_PARSED), MAX_CUTS))
    inside = (sql.replace(r"\n", "\n").replace(rf"\{quote}", quote) for sql in inside)
    return next(filter(_parses, inside), text[start:])


def _behind(before: str, sql: str) -> str:
    """`sql` behind the statement that stands right before it, or that it is part of: running both is refused."""
    before = _COMMENT.sub("", before[-MAX_PARSED:]).rstrip(" \t\n\r>")
    statements = [before[match.start(1) :] for match in _EARLIER.finditer(before)]
    ends = [token.end() for token in _TOKEN.finditer(statements[-1]) if token[0] == ";"] if statements else []
    if statements and (ends == [len(statements[-1])] or _AROUND.fullmatch(statements[-1])):
        return f"{statements[-1]} {sql}"
    return sql


def _first_that_parses(candidates: Iterable[str]) -> str | None:
    first = None
    for sql in islice(candidates, MAX_CUTS):
        if _parses(sql):
            return sql
        first = sql if first is None else first
    return first


@lru_cache(maxsize=4096)
def _parses(sql: str) -> bool:
    """Whether `sql` is one query, or several statements the first of which is one, or is refused anyway."""
    if _EARLIER.match(sql):
        return True
    if len(sql) > MAX_PARSED or sql.rstrip().endswith(":"):
        return False
    try:
        query = (sqlglot.parse(sql, read="sqlite") or [None])[0]
        return isinstance(query, exp.Query) and bool(query.selects)  # a lone `SELECT` is talked about
    except Exception:  # parse errors and RecursionError
        return False


def _first_statement(text: str) -> str:
    """`text` without the prose that follows: up to a `;` after which no statement comes, a stray fence, or where it parses."""
    text = text.split("```")[0]
    end = next((token.end() for token in _TOKEN.finditer(text) if token[0] == ";"), None)
    if end is None:
        return _without_prose(text.strip())
    after = _COMMENT.sub("", text[end:])
    more = _STATEMENT.match(after) or (re.match(r"\s*\(*select\b", after, re.IGNORECASE) and _parses(after.strip()))
    return text.strip() if more else _without_prose(text[:end].strip())


def _without_prose(sql: str) -> str:
    """`sql` up to a paragraph that is no part of it, else, where it does not parse, up to the last line or word where it does."""
    head, *paragraphs = re.split(r"(\n[ \t]*\n)", sql)
    for space, paragraph in zip(paragraphs[::2], paragraphs[1::2], strict=True):
        if not _GOES_ON.match(paragraph):
            break
        head += space + paragraph
    head = _with_backtick(_EMPHASIS.sub("", head.strip()), head)
    if _parses(head) or len(head) > MAX_PARSED:
        return head
    kept = next(filter(_parses, _shorter(head)), "")
    return kept if kept and _is_prose(head[len(kept) :], kept) else head


def _is_prose(tail: str, query: str) -> bool:
    """Whether `tail`, found behind `query`, may be dropped: not where the query goes on, since none is mended."""
    tail = tail.lstrip(" \t\r\n.,*_`")
    if _SENTENCE.match(tail) and not _SENTENCE.match(query):
        return True  # as in "Where the city is Oslo, ..."
    last = _IN_CONDITION.match(_BRACKETS.sub("", query))
    return not (_CLAUSE.match(tail) or (last and last[1] and _OPERATOR.match(tail)))


def _with_backtick(bare: str, text: str) -> str:
    """`bare`, which is `text` without marks at its end, with the backtick that closes a name."""
    return bare + "`" if bare.count("`") % 2 and text[len(bare) :].startswith("`") else bare


def _shorter(sql: str) -> Iterator[str]:
    """`sql` without its last lines, then without the last words of its first line."""
    lines = sql.split("\n")
    for count in range(len(lines) - 1, max(0, len(lines) - MAX_CUTS), -1):
        yield "\n".join(lines[:count]).strip()
    words = lines[0].rstrip("*_. ")
    for _ in range(MAX_CUTS):
        yield words
        cut = words.rpartition(" ")[0]
        words = _with_backtick(cut.rstrip("*_.,` "), cut)
        if not words:
            return
