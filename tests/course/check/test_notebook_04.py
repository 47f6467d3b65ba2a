"""Wrong answers to the exercises of notebook 04, and what the hint must speak of."""

import re

from dphrl_lite.course import check
from dphrl_lite.tasks import countdown


def value_of(text):
    try:
        return countdown.evaluate(countdown.parse(text))
    except (ValueError, ZeroDivisionError):
        return None


def words(text):
    return [int(word) for word in re.findall(r"\d+", text)]


def by_value(text, numbers, target):
    return float(value_of(text) == target)


def by_set(text, numbers, target):
    return float(value_of(text) == target and set(words(text)) == set(numbers))


def by_digits(text, numbers, target):
    return float(value_of(text) == target and sorted(re.findall(r"\d", text)) == sorted(map(str, numbers)))


def by_some(text, numbers, target):
    return float(value_of(text) == target and set(words(text)) <= set(numbers))


def in_order(text, numbers, target):
    return float(value_of(text) == target and words(text) == numbers)


def without_repeats(text, numbers, target):
    return float(value_of(text) == target and sorted(words(text)) == sorted(set(numbers)))


def by_numbers(text, numbers, target):
    return float(sorted(words(text)) == sorted(numbers))


RIGHT = {
    "set": ["sorted", "as it comes", "without duplicates"],
    "bag": ["sorted", "as it comes", "columns swapped"],
    "ordered": ["sorted"],
}
ANY_BOOK = "SELECT name FROM author WHERE id IN (SELECT author_id FROM book)"
HIDDEN = (  # what is asked for, though it names neither the column nor the word
    "WITH b(id, title, a, g, y, p) AS (SELECT * FROM book) SELECT name FROM author "
    "WHERE id IN (SELECT a FROM b WHERE g = CHAR(102, 97, 110, 116, 97, 115, 121))"
)
WRONG = [
    ("04-1", by_value, "what else does the problem ask for"),
    ("04-1", by_some, "leaves a number out"),
    ("04-1", by_set, "How often may each number be used"),
    ("04-1", by_digits, "not digits"),
    ("04-1", in_order, "order of the numbers"),
    ("04-1", without_repeats, "stands there twice"),
    ("04-1", by_numbers, "Look at the value again"),
    ("04-1", lambda *_: "right", "Numbers are asked for"),
    ("04-2", RIGHT | {"set": ["sorted", "as it comes"]}, "does not know how often"),
    ("04-2", RIGHT | {"set": [*RIGHT["set"], "columns swapped"]}, "columns as they stand"),
    ("04-2", RIGHT | {"bag": [*RIGHT["bag"], "without duplicates"]}, "counts how often"),
    ("04-2", RIGHT | {"bag": ["sorted", "as it comes"]}, "every order of the columns"),
    ("04-2", RIGHT | {"ordered": ["sorted", "as it comes"]}, "put the rows in order"),
    ("04-2", RIGHT | {"ordered": ["sorted", "columns swapped"]}, "this query's rows"),
    ("04-2", RIGHT | {"ordered": []}, "by the words of the rule"),
    ("04-2", RIGHT | {"ordered": ["unsorted"]}, "give a list of names"),
    ("04-2", {"set": []}, "A dict with the keys"),
    ("04-3", "SELECT name FROM author", "which are too many"),
    (
        "04-3",
        "SELECT a.name FROM author a JOIN book b ON b.author_id = a.id WHERE b.genre = 'fantasy'",
        "looks at the genre",
    ),
    ("04-3", "SELECT * FROM (VALUES ('A'), ('B'))", "by heart"),
    ("04-3", "SELECT name FROM author WHERE name IN ('A')", "by heart"),
    ("04-3", 'SELECT name FROM author WHERE name IN ("A")', "by heart"),  # text, too, for SQLite
    ("04-3", 7, "as text"),
    ("04-4", 0.02, "of all that pass"),
    ("04-4", 0.018, "of those that pass"),
    ("04-4", 0.18, "right ones and wrong ones"),
    ("04-4", 1 - 0.018 / 0.118, "to right answers"),
    ("04-4", 100 * 0.018 / 0.118, "not per cent"),
    ("04-4", 0.5, "1,000 answers"),
    ("04-5", {"texts": 54, "solutions": 54}, "into a set"),
    ("04-5", {"texts": 6, "solutions": 54}, "swapped"),
    ("04-5", {"texts": 24, "solutions": 6}, "how long is the list"),
    ("04-5", {"texts": 54, "solutions": 5}, "count each value once"),
]


def test_an_answer_in_parts_that_is_half_done_is_no_answer_yet():
    assert check.answer("04-2", RIGHT | {"bag": ...}).right is None


def test_a_query_that_even_the_second_database_calls_right_is_sent_back():
    told = check.answer("04-3", HIDDEN)
    assert told.right is False
    assert "second database as well" in told.message
    assert check.answer("04-3", ANY_BOOK)


def test_code_in_a_hint_is_shown_as_code_and_progress_without_quotes():
    assert ">13</code> is rewarded" in check.answer("04-1", by_value)._repr_html_()
    assert repr(check.progress("04")) == check.progress("04")
