"""Countdown: the verifier against Python's own arithmetic and brute force; what a hostile model may write; the problems."""

import functools
import itertools
import operator
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dphrl_lite.tasks import Problem, get
from dphrl_lite.tasks.countdown import (
    FAMILIES,
    NUMBERS,
    SPLITS,
    canonical,
    guess_rate,
    parse,
    problems,
    solutions,
    supervised_examples,
)

TASK = get("countdown")


def cd(numbers, target):
    return Problem("p", "", str(target), {"family": "cd", "numbers": list(numbers)})


# Trees of (sign, left, right) and numbers: written out, and evaluated with Fractions, without the code under test.
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
LEAF = st.integers(1, 10)
TREE = st.recursive(LEAF, lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=6)


def leaves(tree):
    return [tree] if isinstance(tree, int) else leaves(tree[1]) + leaves(tree[2])


def written(tree):
    if isinstance(tree, int):
        return str(tree)
    return f"({written(tree[1])} {tree[0]} {written(tree[2])})"


def value(tree):
    """Exact; None where a division by zero stands anywhere inside."""
    if isinstance(tree, int):
        return Fraction(tree)
    sign, a, b = tree[0], value(tree[1]), value(tree[2])
    if None in (a, b) or (sign == "/" and b == 0):
        return None
    return OPERATORS[sign](a, b)


def shuffled(tree, rng):
    """The same expression with the operands of some sums and products exchanged."""
    if isinstance(tree, int):
        return tree
    a, b = shuffled(tree[1], rng), shuffled(tree[2], rng)
    return (tree[0], b, a) if tree[0] in "+*" and rng.random() < 0.5 else (tree[0], a, b)


@settings(max_examples=300, deadline=None)
@given(tree=TREE, off=st.sampled_from([0, 0, 1, Fraction(1, 3)]))
def test_verdict_is_that_of_exact_arithmetic(tree, off):
    exact = value(tree)
    verdict = TASK.verify(cd(leaves(tree), (exact or 0) + off), written(tree))
    assert verdict.correct == (exact is not None and off == 0)
    assert ("divides by zero" in verdict.reason) == (exact is None)


@settings(max_examples=200, deadline=None)
@given(tree=TREE.filter(lambda t: value(t) is not None), extra=LEAF, drop=st.booleans())
def test_each_number_once_no_more_no_less(tree, extra, drop):
    used = leaves(tree)
    verdict = TASK.verify(cd(used[1:] if drop else [*used, extra], value(tree)), written(tree))
    assert not verdict.correct
    assert "once" in verdict.reason


@functools.cache
def every_expression(numbers):
    """(text, exact value) of all expressions that use each number once, fully parenthesised; None divides by zero."""
    if len(numbers) == 1:
        return [(str(numbers[0]), Fraction(numbers[0]))]
    found = {}
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            rest = tuple(n for i, n in enumerate(numbers) if i not in chosen)
            for (a, x), (b, y) in itertools.product(
                every_expression(tuple(numbers[i] for i in chosen)), every_expression(rest)
            ):
                for sign, apply in OPERATORS.items():
                    undefined = None in (x, y) or (sign == "/" and y == 0)
                    found[f"({a} {sign} {b})"] = None if undefined else apply(x, y)
    return list(found.items())


def read(text):
    """(value, numbers used) of an expression by recursive descent, or None: a second opinion that shares no code."""
    words = re.findall(r"0|[1-9]\d*|[-+*/()]", text)
    if "".join(words) != text.replace(" ", ""):
        return None
    words, used = [*words, "end"], []

    def chain(signs, inner):
        total = inner()
        while words[0] in signs:
            total = OPERATORS[words.pop(0)](total, inner())
        return total

    def atom():
        word = words.pop(0)
        if word == "(":
            total = chain("+-", product)
            if words.pop(0) != ")":
                raise SyntaxError
            return total
        used.append(int(word))
        return Fraction(word)

    def product():
        return chain("*/", atom)

    try:
        total = chain("+-", product)
    except (ValueError, IndexError, SyntaxError, ZeroDivisionError):
        return None
    return (total, sorted(used)) if words == ["end"] else None


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(LEAF, min_size=1, max_size=4).map(sorted).map(tuple), data=st.data())
def test_every_expression_over_the_numbers_is_judged_by_its_value(numbers, data):
    everything = every_expression(numbers)
    target = data.draw(st.sampled_from(sorted({value for _, value in everything if value is not None})))
    right = [text for text, value in everything if value == target]
    some = data.draw(st.lists(st.sampled_from(everything), max_size=60))
    for text, exact in [*some, *((text, target) for text in right[:60])]:
        assert TASK.verify(cd(numbers, target), text).correct == (exact == target), text
        assert TASK.verify(cd(numbers, target), text.removeprefix("(").removesuffix(")")).correct == (
            exact == target
        ), text


@settings(max_examples=400, deadline=None)
@given(numbers=st.lists(LEAF, min_size=2, max_size=4).map(sorted).map(tuple), data=st.data())
def test_a_mutated_right_expression_is_judged_as_brute_force_says(numbers, data):
    text, target = data.draw(st.sampled_from([pair for pair in every_expression(numbers) if pair[1] is not None]))
    for _ in range(data.draw(st.integers(1, 3))):
        start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 2))
        text = text[:start] + data.draw(st.text(alphabet="0123456789+-*/() ", max_size=2)) + text[start + length :]
    assert TASK.verify(cd(numbers, target), text).correct == (read(text) == (target, list(numbers))), text


@settings(max_examples=200, deadline=None)
@given(tree=TREE, seed=st.integers(0, 99))
def test_order_of_operands_does_not_make_another_solution(tree, seed):
    other = shuffled(tree, random.Random(seed))
    assert canonical(parse(written(tree))) == canonical(parse(written(other)))


@settings(max_examples=200, deadline=None)
@given(tree=TREE)
def test_the_canonical_form_keeps_numbers_and_divisions(tree):
    form = canonical(parse(written(tree)))
    assert sorted(leaves(tree)) == sorted(int(x) for x in form.translate(str.maketrans("+-*/()", "      ")).split())


@pytest.mark.parametrize(("a", "b", "same"), [
    ("2 + 5 * 9", "9*5+2", True),
    ("(2 + 5) + 9", "9 + (5 + 2)", True),
    ("9 - 5 - 2", "9 - 2 - 5", True),
    ("9 - (5 - 2)", "9 + 2 - 5", True),
    ("8 / 4 / 2", "8 / (4 * 2)", True),
    ("8 / (4 / 2)", "2 * 8 / 4", True),
    ("3 * (4 + 5)", "(5 + 4) * 3", True),
    ("9 - (5 - 2) * 3", "9 - 3 * (5 - 2)", True),
    ("(2 + 5) * 9", "2 * 9 + 5 * 9", False),
    ("6 * (4 - 3)", "6 / (4 - 3)", False),
    ("8 - 2 * (3 - 4)", "8 + 2 * (4 - 3)", False),
    ("9 - (5 + 2)", "9 - 5 + 2", False),
    ("3 * (4 + 5)", "3 * 4 + 5", False),
    ("3 * 4 + 3 * 5", "3 * (4 + 5)", False),
    ("6 - 2", "2 - 6", False),
    ("2 * 2", "2 + 2", False),
])  # fmt: skip
def test_canonical_forms_by_hand(a, b, same):
    assert (canonical(parse(a)) == canonical(parse(b))) == same


@pytest.mark.parametrize(("completion", "correct"), [
    ("5 * 9 + 2", True),
    ("  2+9*5  ", True),
    ("2 + (9 × 5)", True),
    ("2 + 9 · 5", True),
    ("9 * 5 − (2 − 4)", False),
    ("9 × 5 – 2", False),
    ("9 * 5 + 2 = 47", True),
    ("9 * 5 + 2 =", True),
    ("9 * 5 + 2 = 48", False),
    ("9 * 5 + 2 = 47 = 47", False),
    ("5 + 9 + 2", False),
    ("let me think\n9 - 5 is 4\n\n5 * 9 + 2\n\n", True),
    ("5 * 9 + 2\nI am sure", False),
    ("<answer>5 * 9 + 2</answer>", True),
    ("So it is <answer> 5 * 9 + 2 </answer>, I am sure", True),
    ("<answer>5 * 9 + 2</answer> or <answer>5 + 9 + 2</answer>", False),
    ("47", False),
    ("= 47", False),
])  # fmt: skip
def test_how_an_answer_may_be_written(completion, correct):
    assert TASK.verify(cd([2, 5, 9], 47), completion).correct == correct


@pytest.mark.parametrize("completion", [
    "", " ", "\n\n\t", "\x00", "\ud800", "=", "==", "()", "(", "1 +", "+ 1", "- 1 + 2", "1 2", "1 (2)", "1_0 + 2", "0x2f", "047",
    "__import__('os').system('true')", "().__class__", "lambda: 0", "True + 46", "47 if 1 else 0", "[47]", "47,", "47j", "1e9",
    "9**9**9", "9 ** 9 ** 9 ** 9", "2 // 1", "7 % 4", "1 << 9", "7 @ 2", "~7", "1 < 2", "x := 47", "47 # 1 + 2", "4７", "四十七",
    "²", "1 / 0", "1 / (5 - 5)", "9" * 150 + "*" + "9" * 49, "9" * 5000, "(" * 90 + "1" + ")" * 90, "(" * 100_000, "1+" * 500_000,
    "a" * 1_000_000, "\n" * 1_000_000, "1+1\n" * 250_000,
])  # fmt: skip
def test_hostile_completions_are_wrong_and_nothing_else(completion):
    for problem in (cd([2, 5, 9], 47), Problem("s", "", "1 2 3 4", {"family": "sort"})):
        verdict = TASK.verify(problem, completion)
        assert verdict.correct is False
        assert verdict.reason


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/() =\n")))
def test_never_raises_whatever_the_text(completion):
    assert not TASK.verify(cd([11], 12), completion).correct  # 11 alone never makes 12


def test_a_batch_gives_the_verdicts_of_verify_in_order():
    pairs = [(cd([2, 5, 9], 47), text) for text in ("5 * 9 + 2", "9 + 2", "", "2 + 9 * 5")]
    assert TASK.verify_all(iter(pairs)) == [TASK.verify(*pair) for pair in pairs]


def test_refusals_name_the_reason():
    reason = lambda text: TASK.verify(cd([2, 5, 9], 47), text).reason
    assert reason("5 + 9 + 2") == "equals 16, the target is 47"
    assert reason("5 * 9 + 3") == "uses [3, 5, 9], expected each of [2, 5, 9] once"
    assert "claims to equal 48" in reason("5 * 9 + 2 = 48")
    assert "only + - * /" in reason("2 ** 5")
    assert "at most 200" in reason("1 + " * 100 + "1")
    assert "empty" in reason("")


@pytest.mark.parametrize("meta", [{}, {"numbers": None}, {"numbers": "2,5,9"}, {"numbers": ["two", 5]}])
def test_a_problem_without_its_numbers_is_the_datas_fault(meta):
    broken = Problem("p", "", "47", meta)
    with pytest.raises(ValueError, match=r"'p'.* needs the numbers"):
        TASK.verify(broken, "5 * 9 + 2")
    assert "needs the numbers" in TASK.objections([broken])["p"]
    with pytest.raises(ValueError, match="must be a number"):
        TASK.verify(cd([2, 5, 9], "1/0"), "2 + 5 + 9")


def test_division_is_exact():
    assert TASK.verify(cd([1, 3, 3], 1), "1 / 3 * 3").correct
    assert not TASK.verify(cd([3, 7], 0), "3 / 7").correct
    assert TASK.verify(cd([3, 7], "3/7"), "3 / 7").correct


def test_sort_compares_the_list_of_numbers():
    problem = Problem("s", "", "1 3 7 9", {"family": "sort"})
    assert TASK.verify(problem, " 1 3  7 9 ").correct
    for wrong in ("9 7 3 1", "1 3 7", "1 3 7 9 9", "1, 3, 7, 9", "1379"):
        assert not TASK.verify(problem, wrong).correct, wrong


def test_a_problem_without_an_answer_is_the_datas_fault():
    with pytest.raises(ValueError, match="'p' has no answer"):
        TASK.verify(Problem("p", "", " ", {"numbers": [1]}), "1")


# ---- problems --------------------------------------------------------------------------------------------------------


def brute_force(numbers):
    """Value -> expressions without parentheses, by writing all and letting Python evaluate them."""
    found = {}
    for order in itertools.permutations(numbers):
        for signs in itertools.product("+-*", repeat=len(numbers) - 1):
            text = str(order[0]) + "".join(f" {s} {n}" for s, n in zip(signs, order[1:], strict=True))
            found.setdefault(eval(text), set()).add(text)
    return {v: texts for v, texts in found.items() if 1 <= v <= 99}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(NUMBERS), min_size=3, max_size=4).map(sorted))
def test_solutions_are_all_there_are_and_each_is_accepted(numbers):
    ours = solutions(tuple(numbers))
    assert {v: set(texts) for v, texts in ours.items()} == brute_force(numbers)
    for target, texts in ours.items():
        assert len(texts) == len(set(texts))
        assert TASK.verify(cd(numbers, target), texts[0]).correct


@pytest.fixture(scope="module")
def everything():
    return {(f, split): problems(f, split=split) for f in FAMILIES for split in SPLITS}


def multisets(found, family):
    if family == "sort":
        return {tuple(sorted(map(int, p.answer.split()))) for p in found}
    return {tuple(sorted(p.meta["numbers"])) for p in found}


@pytest.mark.parametrize(("family", "size"), [("cd3", 3), ("cd4", 4), ("sort", 4)])
def test_no_two_splits_share_a_multiset(everything, family, size):
    train, validation, test = (multisets(everything[family, split], family) for split in SPLITS)
    assert not train & test and not train & validation and not validation & test
    whole = set(itertools.combinations_with_replacement(NUMBERS, size))
    assert train | validation | test == whole
    assert 0.12 < len(test) / len(whole) < 0.28
    assert 0.05 < len(validation) / len(whole) < 0.15


def test_cd4_and_sort_hide_the_same_numbers(everything):
    for split in ("validation", "test"):
        hidden = [multisets(everything[family, split], family) for family in ("cd4", "sort")]
        assert hidden[0] == hidden[1]


def test_counts_per_family_against_brute_force(everything):
    ways = list(itertools.combinations_with_replacement(NUMBERS, 3))
    assert sum(len(everything["cd3", split]) for split in SPLITS) == sum(len(brute_force(m)) for m in ways)
    assert sum(len(everything["sort", split]) for split in SPLITS) == 10**4


def test_ids_are_unique_over_all_families_and_splits(everything):
    ids = [p.id for found in everything.values() for p in found]
    assert len(ids) == len(set(ids))


def test_prompts_say_the_numbers_the_target_and_the_family(everything):
    for p in everything["cd4", "test"][::500]:
        words = p.prompt.split()
        assert [words[0], words[5], words[7:]] == ["countdown", "target", ["="]]
        assert list(map(int, words[1:5])) == p.meta["numbers"]
        assert words[6] == p.answer
    for p in everything["sort", "train"][::500]:
        assert sorted(map(int, p.prompt.split()[1:5])) == list(map(int, p.answer.split()))


def test_count_and_seed_choose_a_sample(everything):
    few = problems("cd3", 5, seed=3)
    assert few == problems("cd3", 5, seed=3)
    assert few == problems("cd3", 9, seed=3)[:5]
    assert few != problems("cd3", 5, seed=4)
    assert set(map(str, few)) < set(map(str, everything["cd3", "train"]))


def test_errors_say_what_there_is():
    with pytest.raises(ValueError, match="cd3, cd4, sort"):
        problems("cd5")
    with pytest.raises(ValueError, match="test, train, validation"):
        problems("cd3", split="dev")
    with pytest.raises(ValueError, match="asked for 10000 sort problems of split 'train'; there are"):
        problems("sort", 10000)


# ---- supervised examples ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples():
    return supervised_examples(4000, seed=11)


def as_problem(prompt):
    words = prompt.split()
    if words[0] == "countdown":
        return cd(map(int, words[1 : words.index("target")]), words[-2])
    return Problem("s", prompt, " ".join(map(str, sorted(map(int, words[1:-1])))), {"family": "sort"})


def test_every_supervised_answer_is_right(examples):
    for prompt, answer in examples:
        assert TASK.verify(as_problem(prompt), answer).correct, (prompt, answer)


def test_supervised_examples_never_show_a_held_out_multiset(everything, examples):
    hidden = set().union(*(multisets(everything[f, s], f) for f in FAMILIES for s in ("validation", "test")))
    for prompt, answer in examples:
        shown = [int(word) for word in prompt.split() if word.isdigit()]
        shown = shown[:-1] if prompt.startswith("countdown") else shown
        assert tuple(sorted(shown)) not in hidden, (prompt, answer)


def family_of(prompt):
    words = prompt.split()
    return f"cd{words.index('target') - 1}" if words[0] == "countdown" else words[0]


def test_the_mix_of_families(examples):
    n, found = len(examples), Counter(family_of(prompt) for prompt, _ in examples)
    expected = {"cd3": 0.37, "cd4": 0.60, "sort": 0.03}
    assert found == {k: pytest.approx(n * p, abs=4 * (n * p * (1 - p)) ** 0.5) for k, p in expected.items()}


def test_supervised_examples_follow_from_the_seed():
    assert supervised_examples(20, seed=1) == supervised_examples(20, seed=1) != supervised_examples(20, seed=2)


@pytest.mark.parametrize(
    ("numbers", "target"), [((2, 3, 4), 10), ((1, 1, 2), 3), ((2, 5, 9, 10), 97), ((1, 1, 1, 1), 99)]
)
def test_the_guess_rate_is_that_of_all_expressions(numbers, target):
    found = []
    for order in set(itertools.permutations(numbers)):
        for signs in itertools.product("+-*", repeat=len(numbers) - 1):
            text = str(order[0]) + "".join(s + str(x) for s, x in zip(signs, order[1:], strict=True))
            found.append(eval(text) == target)  # our own text
    assert guess_rate(numbers, target) == pytest.approx(sum(found) / len(found))
