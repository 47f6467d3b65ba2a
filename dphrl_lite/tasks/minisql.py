"""Miniature text-to-SQL: small SQLite databases, questions in plain words, and several right queries for each.

The tiny model's version of the paper's own domain. Every database has two tables that are made of a common vocabulary;
databases are split, so that a model is tested on schemas it has never seen, as from BIRD to Spider:

    sql singer name country age weight ; concert singer_id genre price ? how many singer with country france =
    SELECT count ( * ) FROM singer WHERE country = 'France'

A column of words is spelled one way in a database ('france', 'France' or 'FRANCE'), which the prompt does not say: as in
BIRD, the stored values have to be guessed. Small letters are the most frequent, so a model that stops trying the
others gains Pass@1 and loses Pass@k.

Here: vocabulary, contents of the databases, questions. Not here: the database files (`data/make_minisql.py`), and the
verifier, which is the ordinary `sql` task.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from dphrl_lite.errors import lookup
from dphrl_lite.tasks.base import Problem

# ruff: noqa: SIM905 - words read best without quotes
THINGS = (
    "singer concert museum visitor student course car race player team book author shop dog owner ship port film actor "
    "house doctor farm planet moon"
).split()
NUMBERS = "age weight price score pages height speed wins".split()
VALUES = {
    "country": "france japan brazil kenya norway india".split(),
    "color": "red blue green black white".split(),
    "city": "paris tokyo lima oslo cairo".split(),
    "genre": "rock jazz folk pop".split(),
    "kind": "old new big small".split(),
}
SPELLINGS = {str.lower: 0.5, str.capitalize: 0.3, str.upper: 0.2}  # how a database may store words, and how often
# "wide" has databases enough for narrow bands: questions of one database are solved or not together
SPLITS = {"train": range(24), "validation": range(24, 32), "test": range(32, 64), "wide": range(64, 164)}
_EXTREMES = (
    {"word": "most", "order": "DESC", "extreme": "max", "beyond": ">"},
    {"word": "least", "order": "ASC", "extreme": "min", "beyond": "<"},
)
_MEANS = ({"word": "average", "mean": "avg"}, {"word": "highest", "mean": "max"}, {"word": "lowest", "mean": "min"})


@dataclass(frozen=True)
class Schema:
    """Two tables: `a` (id, name, category, number, other) and `b` (id, a_id, tag, amount), which points to `a`."""

    a: str
    b: str
    category: str
    number: str
    other: str
    tag: str
    amount: str

    def __str__(self) -> str:
        """As it stands in a prompt."""
        return (
            f"{self.a} name {self.category} {self.number} {self.other} ; {self.b} {self.a}_id {self.tag} {self.amount}"
        )

    def create(self) -> str:
        """The statements that make its tables."""
        return (
            f"CREATE TABLE {self.a} (id INTEGER PRIMARY KEY, name TEXT, {self.category} TEXT, {self.number} INTEGER, "
            f"{self.other} INTEGER); CREATE TABLE {self.b} (id INTEGER PRIMARY KEY, {self.a}_id INTEGER, "
            f"{self.tag} TEXT, {self.amount} INTEGER)"
        )


# question in words -> right queries, which use {v}, a number; {x}, a word; and {q}, that word as it is stored
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "count": (
        "how many {a} with {category} {x}",
        (
            "SELECT count ( * ) FROM {a} WHERE {category} = {q}",
            "SELECT count ( id ) FROM {a} WHERE {q} = {category}",
            "SELECT sum ( {category} = {q} ) FROM {a}",
            "SELECT count ( CASE WHEN {category} = {q} THEN 1 END ) FROM {a}",
            "SELECT count ( * ) FROM ( SELECT id FROM {a} WHERE {category} = {q} )",
            "SELECT count ( * ) FROM {a} WHERE NOT {category} != {q}",
        ),
    ),
    "filter": (
        "name of {a} with {category} {x} and {number} over {v}",
        (
            "SELECT name FROM {a} WHERE {category} = {q} AND {number} > {v}",
            "SELECT name FROM {a} WHERE {number} > {v} AND {category} = {q}",
            "SELECT name FROM {a} WHERE {category} = {q} INTERSECT SELECT name FROM {a} WHERE {number} > {v}",
            "SELECT name FROM {a} WHERE {number} > {v} EXCEPT SELECT name FROM {a} WHERE {category} != {q}",
            "SELECT name FROM ( SELECT * FROM {a} WHERE {category} = {q} ) WHERE {number} > {v}",
            "SELECT name FROM {a} WHERE {category} IN ( {q} ) AND NOT {number} <= {v}",
        ),
    ),
    "most": (
        "name of {a} with {word} {n}",
        (
            "SELECT name FROM {a} ORDER BY {n} {order} LIMIT 1",
            "SELECT name FROM {a} WHERE {n} = ( SELECT {extreme} ( {n} ) FROM {a} )",
            "SELECT name FROM {a} WHERE {n} {beyond}= ( SELECT {extreme} ( {n} ) FROM {a} )",
            "SELECT name FROM {a} WHERE {n} IN ( SELECT {extreme} ( {n} ) FROM {a} )",
            "SELECT name FROM {a} AS t WHERE NOT EXISTS ( SELECT 1 FROM {a} WHERE {n} {beyond} t . {n} )",
        ),
    ),
    "per": (
        "{word} {n} of {a} per {category}",
        (
            "SELECT {category} , {mean} ( {n} ) FROM {a} GROUP BY {category}",
            "SELECT {mean} ( {n} ) , {category} FROM {a} GROUP BY {category}",
            "SELECT DISTINCT {category} , {mean} ( {n} ) OVER ( PARTITION BY {category} ) FROM {a}",
            "SELECT DISTINCT {category} , ( SELECT {mean} ( {n} ) FROM {a} WHERE {category} = t . {category} ) "
            "FROM {a} AS t",
        ),
    ),
    "whose": (
        "name of {a} whose {b} have {tag} {x}",
        (
            "SELECT name FROM {a} WHERE id IN ( SELECT {a}_id FROM {b} WHERE {tag} = {q} )",
            "SELECT DISTINCT name FROM {a} JOIN {b} ON {a} . id = {a}_id WHERE {tag} = {q}",
            "SELECT name FROM {a} AS t WHERE EXISTS ( SELECT 1 FROM {b} WHERE {a}_id = t . id AND {tag} = {q} )",
            "SELECT name FROM {a} JOIN {b} ON {a} . id = {a}_id WHERE {tag} = {q} GROUP BY name",
            "SELECT DISTINCT name FROM {a} , {b} WHERE {a} . id = {a}_id AND {tag} = {q}",
        ),
    ),
    "without": (
        "name of {a} without {b} over {v}",
        (
            "SELECT name FROM {a} WHERE id NOT IN ( SELECT {a}_id FROM {b} WHERE {amount} > {v} )",
            "SELECT name FROM {a} LEFT JOIN {b} ON {a} . id = {a}_id AND {amount} > {v} WHERE {a}_id IS NULL",
            "SELECT name FROM {a} AS t WHERE NOT EXISTS ( SELECT 1 FROM {b} WHERE {a}_id = t . id AND {amount} > {v} )",
            "SELECT name FROM {a} EXCEPT SELECT name FROM {a} JOIN {b} ON {a} . id = {a}_id WHERE {amount} > {v}",
        ),
    ),
    "different": (
        "how many different {tag} of {b} with {amount} over {v}",
        (
            "SELECT count ( DISTINCT {tag} ) FROM {b} WHERE {amount} > {v}",
            "SELECT count ( * ) FROM ( SELECT DISTINCT {tag} FROM {b} WHERE {amount} > {v} )",
            "SELECT count ( * ) FROM ( SELECT {tag} FROM {b} WHERE {amount} > {v} GROUP BY {tag} )",
        ),
    ),
    "number": (
        "number of {b} over {v} per {a}",
        (
            "SELECT name , count ( * ) FROM {a} JOIN {b} ON {a} . id = {a}_id WHERE {amount} > {v} GROUP BY name",
            "SELECT count ( * ) , name FROM {a} JOIN {b} ON {a} . id = {a}_id AND {amount} > {v} GROUP BY name",
            "SELECT name , count ( * ) FROM {a} , {b} WHERE {a} . id = {a}_id AND {amount} > {v} GROUP BY name",
            "SELECT name , n FROM {a} JOIN ( SELECT {a}_id , count ( * ) AS n FROM {b} WHERE {amount} > {v} "
            "GROUP BY {a}_id ) ON id = {a}_id",
        ),
    ),
}


@cache
def schema(index: int) -> Schema:
    """The schema of database `index`."""
    return _schema(index)


def _schema(index: int) -> Schema:
    rng = np.random.default_rng([7, index])
    a, b = rng.choice(THINGS, 2, replace=False)
    category, tag = rng.choice(list(VALUES), 2, replace=False)
    number, other, amount = rng.choice(NUMBERS, 3, replace=False)
    return Schema(*map(str, (a, b, category, number, other, tag, amount)))


@cache
def spelling(index: int) -> Callable[[str], str]:
    """How database `index` stores words: `str.lower`, `str.capitalize` or `str.upper`."""
    return _spelling(np.random.default_rng([17, index]))


def _spelling(rng: np.random.Generator) -> Callable[[str], str]:
    return list(SPELLINGS)[rng.choice(len(SPELLINGS), p=list(SPELLINGS.values()))]


@cache
def rows(index: int) -> dict[str, list[tuple]]:
    """The rows of database `index`: table -> rows. Numbers of one column differ, so that "most" has one answer."""
    rng, s = np.random.default_rng([11, index]), schema(index)
    size = int(rng.integers(14, 22))
    stored = {column: [spelling(index)(word) for word in VALUES[column]] for column in (s.category, s.tag)}
    columns = [rng.choice(stored[s.category], size), *(rng.choice(99, size, replace=False) + 1 for _ in range(2))]
    first = [
        (i + 1, f"{s.a}-{i + 1}", str(c), int(x), int(y)) for i, (c, x, y) in enumerate(zip(*columns, strict=True))
    ]
    owners = rng.choice(size, size - 4, replace=False) + 1  # some have none
    tags, amounts = rng.choice(stored[s.tag], 2 * size), rng.integers(1, 100, 2 * size)
    links = rng.choice(owners, 2 * size)
    second = [(i + 1, int(o), str(t), int(x)) for i, (o, t, x) in enumerate(zip(links, tags, amounts, strict=True))]
    return {s.a: first, s.b: second}


def db_id(index: int) -> str:
    """The name of database `index`."""
    return f"mini{index:02d}"


def _fillings(index: int, form: str) -> Iterator[dict]:
    """Every choice of words with which `form` makes a question about database `index` that has an answer."""
    s, text = schema(index), FORMS[form][0]
    held = rows(index)[s.b if "{b}" in text else s.a]
    for choice in _choices(s, form):
        stored = spelling(index)(choice["x"])
        named = [row for row in held if stored in ("", row[2])]
        # values that occur, but for the largest: so > is not >=, and something is found
        numbers = sorted({row[3] for row in named})[:-1] if "{v}" in text else [0] * bool(named)
        yield from (choice | {"v": v, "q": f"'{stored}'"} for v in numbers if _decides(form, held, named, v))


def _decides(form: str, held: list[tuple], named: list[tuple], v: int) -> bool:
    """Whether the answer would be another without the condition; for owners without rows, also with >= in place of >."""
    if form == "whose":
        return {row[1] for row in named} != {row[1] for row in held}
    if form not in ("without", "different"):
        return True
    key = 2 if form == "different" else 1
    over, from_ = ({row[key] for row in held if compare(row[3], v)} for compare in (operator.gt, operator.ge))
    return over != ({row[key] for row in held} if form == "different" else from_)


def _choices(s: Schema, form: str) -> Iterator[dict]:
    """Every choice of word, column and comparing word that `form` leaves open for a schema."""
    words = {"most": _EXTREMES, "per": _MEANS}.get(form, ({},))
    asked = {"count": VALUES[s.category], "filter": VALUES[s.category], "whose": VALUES[s.tag]}.get(form, ("",))
    columns = (s.number, s.other) if form in ("most", "per") else (s.number,)
    yield from (vars(s) | word | {"n": n, "x": x} for word in words for n in columns for x in asked)


def problems(form: str, count: int | None = None, split: str = "train", seed: int = 0) -> list[Problem]:
    """`count` different questions of one form (`FORMS`) about the databases of a split, all of them if `count` is None.

    Raises:
        ValueError: unknown form or split, or more questions asked for than there are.
    """
    lookup(FORMS, "minisql form", form)
    pool = []
    for index in lookup(SPLITS, "split", split):
        for number, words in enumerate(_fillings(index, form)):
            question = FORMS[form][0].format(**words)
            meta = {"family": form, "db_id": db_id(index), "question": question}
            answer = FORMS[form][1][0].format(**words)
            pool.append(Problem(f"{db_id(index)}:{form}:{number}", prompt(schema(index), question), answer, meta))
    if count is not None and count > len(pool):
        raise ValueError(f"asked for {count} {form} questions of split {split!r}; there are {len(pool)}")
    order = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[i] for i in order]


def prompt(s: Schema, question: str) -> str:
    """What the model reads: the schema and the question."""
    return f"sql {s} ? {question} ="


def supervised_examples(count: int, seed: int) -> list[tuple[str, str]]:
    """`count` (prompt, answer) pairs: a random schema, form, filling and spelling, and one of the right queries."""
    rng, held_out = np.random.default_rng(seed), {schema(i) for split in ("validation", "test") for i in SPLITS[split]}
    examples = []
    while len(examples) < count:
        s = _schema(int(rng.integers(1_000, 1_000_000)))
        if s in held_out:
            continue
        form = str(rng.choice(list(FORMS)))
        question, answers = FORMS[form]
        choices = list(_choices(s, form))
        words = choices[rng.integers(len(choices))] | {"v": int(rng.integers(1, 99))}
        words["q"] = f"'{_spelling(rng)(words['x'])}'"
        examples.append((prompt(s, question.format(**words)), answers[rng.integers(len(answers))].format(**words)))
    return examples


def vocabulary() -> list[str]:
    """Every word of prompts and answers, in a fixed order; numbers aside."""
    words = [word for text, answers in FORMS.values() for line in (text, *answers) for word in line.split()]
    words += [w for choice in (*_EXTREMES, *_MEANS) for w in choice.values()] + [">=", "<="]
    fixed = [w for w in dict.fromkeys(["sql", ";", "?", "=", *words]) if "{" not in w]
    values = [v for vs in VALUES.values() for v in vs]
    stored = [f"'{spell(v)}'" for v in values for spell in SPELLINGS]
    names = [*THINGS, *(f"{t}_id" for t in THINGS), *VALUES, *NUMBERS, *values, *stored]
    return list(dict.fromkeys([*fixed, *names, "name", "id"]))
