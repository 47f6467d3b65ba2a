"""Checks of the exercises of notebook 04, verifiable tasks."""

import re
from functools import cache

from dphrl_lite import tasks
from dphrl_lite.course.check import Hint, call, close, exercise, nearest, number, parts
from dphrl_lite.tasks import cases, countdown
from dphrl_lite.tasks.suite import Suite

NUMBERS, TARGET = [1, 2, 3, 8], 13  # the running example
REWARDED = (  # an answer, the numbers, the target, and what to look at where it gets the wrong reward
    (
        "3 * 2 + 8 - 1",
        NUMBERS,
        TARGET,
        "`3 * 2 + 8 - 1` is right and gets no reward. Does the order of the numbers count?",
    ),
    ("13", NUMBERS, TARGET, "`13` is rewarded. Its value is right: what else does the problem ask for?"),
    ("8 + 3 + 2", NUMBERS, TARGET, "`8 + 3 + 2` is rewarded, although it leaves a number out."),
    (
        "1 * 2 + 3 + 8 + 2 - 2",
        NUMBERS,
        TARGET,
        "`1 * 2 + 3 + 8 + 2 - 2` is rewarded. How often may each number be used?",
    ),
    ("18 - 3 - 2", NUMBERS, TARGET, "`18 - 3 - 2` is rewarded: compare whole numbers, not digits."),
    (
        "2 * 4 * 4",
        [2, 4, 4],
        32,
        "With the numbers 2, 4, 4 the 4 stands there twice and is to be used twice: `2 * 4 * 4`.",
    ),
    ("4 * 8", [2, 4, 4], 32, "With the numbers 2, 4, 4 and the target 32, `4 * 8` is rewarded. There is no 8."),
    (
        "8 + 3 + 2 + 1",
        NUMBERS,
        TARGET,
        "`8 + 3 + 2 + 1` uses the right numbers and is rewarded. Look at the value again.",
    ),
    ("banana", NUMBERS, TARGET, "`banana` is rewarded."),
)


@exercise("04-1")
def reward(given):
    """Mend a reward that looks at the value only."""
    for text, numbers, target, hint in REWARDED:
        problem = tasks.Problem("demo", "", str(target), {"numbers": numbers})
        if not close(call(given, text, list(numbers), target), tasks.get("countdown").verify(problem, text).correct):
            raise Hint(hint)
    return "Rewarded is what the problem asks for, and nothing else that was tried."


PLAIN = "SELECT city, joined FROM customer"
QUERIES = {
    "sorted": PLAIN + " ORDER BY joined, city",
    "as it comes": PLAIN,
    "columns swapped": "SELECT joined, city FROM customer",
    "without duplicates": "SELECT DISTINCT city, joined FROM customer",
}
RULES = ("set", "bag", "ordered")
FORGOTTEN = {
    ("set", "without duplicates"): "a set does not know how often a row occurs",
    ("set", "columns swapped"): "this rule takes the columns as they stand",
    ("bag", "without duplicates"): "a bag counts how often each row occurs",
    ("bag", "columns swapped"): "this rule tries every order of the columns",
    ("ordered", "as it comes"): "does anything in this query put the rows in order?",
    ("ordered", "columns swapped"): "columns may stand in any order here; what about this query's rows?",
}


@cache
def right_queries() -> dict[str, set[str]]:
    """Rule -> the queries that are right under it."""
    found = {}
    for rule in RULES:
        task = tasks.get("sql", databases=cases.DATABASES[0], comparison="set" if rule == "set" else "bag")
        gold = QUERIES["sorted" if rule == "ordered" else "as it comes"]
        verdicts = cases.judge(task, tasks.Problem("customers", "", gold, {"db_id": "shop"}), QUERIES)["correct"]
        found[rule] = {name for name in QUERIES if verdicts[name]}
    return found


@exercise("04-2")
def rules(given):
    """Predict which query is right under which rule of comparison."""
    for rule, names in zip(RULES, parts(given, RULES), strict=True):
        if not isinstance(names, list | tuple | set) or not set(names) <= set(QUERIES):
            raise Hint(f"Under {rule!r}, give a list of names out of {', '.join(map(repr, QUERIES))}.")
        for name in QUERIES:
            if (name in names) != (name in right_queries()[rule]):
                why = FORGOTTEN.get((rule, name), "compare its rows with the gold query's, by the words of the rule")
                raise Hint(f"Rule {rule!r}, query {name!r}: {why}.")
    return "Now run the next cell."


@cache
def library() -> tuple:
    """The question of 04-3, and its judges: with one database, with two."""
    judges = [tasks.get("sql", databases=folder) for folder in cases.DATABASES]
    question = next(question for question in cases.questions() if question.id == "library-01")
    return question, judges[0], Suite(judges)


@exercise("04-3")
def fooled(given):
    """Write a wrong query that one database calls right."""
    question, one, both = library()
    if not isinstance(given, str):
        raise Hint("A query is asked for, as text in quotes.")
    if re.search(r"genre|fantasy", given, re.IGNORECASE):
        raise Hint("Your query looks at the genre. What else do the authors of this small library have in common?")
    if re.search(r"['\"]", given) or not re.search(r"\b(from|join)\s+(author|book|loan)\b", given, re.IGNORECASE):
        raise Hint("Your query has learnt its rows by heart. Let it read a table, without text in quotes.")
    verdict = one.verify(question, given)
    if not verdict.correct:
        raise Hint(f"The verifier is not fooled: {verdict.reason}. Which authors do you get, and which are too many?")
    if both.verify(question, given).correct:
        raise Hint("It passes on the second database as well. Find one that other rows would unmask.")
    return (
        "Fooled, and found out by the second database. Nobody who is paid by the first one has to know what a genre is."
    )


@exercise("04-4")
def for_nothing(given):
    """By hand: the share of rewards that go to wrong answers."""
    right, accepted = 0.10, 0.02
    false = (1 - right) * accepted
    share, value = false / (right + false), number(given)
    if close(value, share, 0.003):
        return "More than one reward in seven is for a wrong answer, with a verifier that is wrong on so few answers."
    typical = {
        accepted: "That is the share of wrong answers that pass. What share of all that pass is wrong?",
        false: "That is the share of all answers that are wrong and pass. What share of those that pass?",
        false / right: "You have divided by the right answers. Rewarded are right ones and wrong ones.",
        1 - share: "That is the share of rewards that go to right answers.",
        100 * share: "Give a share between 0 and 1, not per cent.",
    }
    raise Hint(nearest(value, typical, "Take 1,000 answers. How many are right and pass? How many are wrong and pass?"))


@exercise("04-5")
def solutions(given):
    """Count the ways to write 13 with 1, 2, 3 and 8, and the different solutions among them."""
    ways = countdown.solutions(tuple(NUMBERS))[TARGET]
    problem = tasks.Problem("demo", "", str(TARGET), {"numbers": NUMBERS})
    different = len({tasks.get("countdown").verify(problem, way).distinct for way in ways})
    texts, counted = map(number, parts(given, ("texts", "solutions")))
    if (texts, counted) == (len(ways), different):
        return "So many texts, so few ideas. How many of them are among the 64 answers of notebook 00?"
    if (texts, counted) == (different, len(ways)):
        raise Hint("The two are swapped: there are more ways to write than different solutions.")
    if counted == len(ways):
        raise Hint("Several texts are one solution. Put the `distinct` of each verdict into a set.")
    if texts != len(ways):
        raise Hint("`texts`: how long is the list that `countdown.solutions` gives for the target 13?")
    raise Hint("`solutions`: of each verdict take `distinct`, and count each value once.")
