import json
import threading
import time

import pytest

from dphrl_lite.tasks import Problem, get
from dphrl_lite.tasks.math import Math


@pytest.fixture(scope="module")
def task():
    return get("math", time_limit=1)


def problem(answer):
    return Problem("p", "", answer)


def lines(path):
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_agrees_with_the_labels_of_a_public_run(shared_data):
    task = Math()
    wrong = [
        (row["idx"], row["gt"], response[-80:])
        for row in lines(shared_data / "rollouts" / "qwen_math_100x8.jsonl")
        for response, score in zip(row["code"], row["score"], strict=True)
        if task.verify(problem(row["gt"]), response).correct != score
    ]
    assert len(wrong) <= 1, wrong  # one label is the grader's own error


# Cases of Math-Verify's tests that it decides otherwise under its default LaTeX and expression setting.
OTHER_SETTING = {
    ("$9$", "Answer \\( \n 9 \n \\)"): "expected wrong by a setting that does not read \\(...\\) over several lines",
    ("$f(x)$", "$f(y)$"): "needs strict=False, under which the names of variables do not count",
    ("1,22", "1.22"): "a comma separates a list",
    ("$1 - \\frac{1}{\\mathrm{e}}$", "$1 + \\frac{1}{\\mathrm{e}}$"): "the two are different numbers",
}


def test_agrees_with_the_cases_of_math_verify(shared_data):
    task = Math()
    cases = json.loads((shared_data / "verifier" / "math_verify_cases.json").read_text(encoding="utf-8"))
    verdicts = task.verify_all((problem(case["gold"]), case["pred"]) for case in cases)
    others = {(c["gold"], c["pred"]) for c, v in zip(cases, verdicts, strict=True) if v.correct != c["expected"]}
    assert len(cases) == 135
    assert others == set(OTHER_SETTING)


def test_reference_solutions_are_right(shared_data):
    task = Math()
    for row in lines(shared_data / "math" / "math500.jsonl"):
        assert task.verify(problem(row["answer"]), row["solution"]).correct, row["unique_id"]


@pytest.mark.parametrize(
    ("answer", "completion", "correct"),
    [
        ("420", "so the answer is \\boxed{420}.", True),
        ("420", "so the answer is $420$", True),
        ("420", "so the answer is 420", True),
        ("420", "so the answer is \\boxed{421}.", False),
        ("\\frac{3}{4}", "\\boxed{0.75}", True),
        ("\\frac{3}{4}", "\\boxed{\\dfrac{6}{8}}", True),
        ("\\frac{3}{4}", "First $\\boxed{1}$, no: $\\boxed{\\frac34}$", True),
        ("\\frac{3}{4}", "\\boxed{\\frac{4}{3}}", False),
        ("x^2+1", "\\boxed{1+x^2}", True),
        ("x^2+1", "\\boxed{1}", False),
        ("$\\sqrt{8}$", "\\boxed{2\\sqrt{2}}", True),
        ("\\boxed{7}", "The final answer is $7$. I hope it is correct.", True),
        ("\\$36", "\\boxed{36}", True),
        ("1,000", "\\boxed{1000}", True),
        ("(1, 2)", "\\boxed{(1,2)}", True),
        ("(1, 2)", "\\boxed{(2,1)}", False),
        ("1,2", "\\boxed{2, 1}", True),
    ],
)
def test_verdicts(task, answer, completion, correct):
    assert task.verify(problem(answer), completion).correct is correct


@pytest.mark.parametrize(
    ("gold", "forms"),
    [
        ("\\frac{3}{4}", ["\\boxed{\\frac{3}{4}}", "\\boxed{\\dfrac34}", "\\boxed{0.75}", "$3/4$", "$75/100$", "it is 0.750"]),
        ("1,000", ["\\boxed{1000}", "\\boxed{1{,}000}", "$10^3$"]),
        ("x^2-1", ["\\boxed{(x-1)(x+1)}", "\\boxed{-1+x^2}"]),
        ("1,2", ["\\boxed{1,2}", "\\boxed{2, 1}"]),
    ],
)  # fmt: skip
def test_one_value_in_other_notation_is_the_same_solution(task, gold, forms):
    verdicts = [task.verify(problem(gold), form) for form in forms]
    assert all(verdict.correct for verdict in verdicts), verdicts
    assert {verdict.distinct for verdict in verdicts} == {gold}
    assert task.verify(problem("1"), "\\boxed{2}").distinct is None


def test_reasons(task):
    assert task.verify(problem("1"), "\\boxed{1}").reason == "equal to the gold answer"
    assert task.verify(problem("1"), "\\boxed{2}").reason == "'2' is not equal to the gold answer '1'"
    assert task.verify(problem("1"), "I cannot say").reason == "no answer found in the completion"


BOMBS = [
    "9^{9^{9^9}}",
    "$9**9**9$",
    "\\boxed{2^{1000000000}}",
    "\\boxed{10^{10^{10}}}",
    "\\boxed{((9!)!)!}",
    "\\boxed{1000000!}",
    "\\boxed{\\binom{1000000000}{500000000}}",
    "\\boxed{3} is small. The final answer is $9^{9^{9}}$. I hope it is correct.",
]


@pytest.mark.parametrize("completion", BOMBS)
def test_numbers_too_large_to_write_out_are_refused(task, completion):
    verdict = task.verify(problem("3"), completion)
    assert (verdict.correct, verdict.answer) == (False, None)
    assert verdict.reason.startswith("refused")


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        ("1", "Modulo 7, $3^{10^{10}} = 1$ hence \\boxed{1}"),
        ("10^{100}", "\\boxed{10^{100}}"),
        ("512", "\\boxed{2^{3^2}}"),
        ("120", "\\boxed{5!}"),
        ("1", "\\boxed{1^{1000000}}"),
        ("3", "\\boxed{3}, far less than $2^{1000000}$ or 20000!"),
    ],
)
def test_large_numbers_on_the_way_and_moderate_ones_are_not_refused(task, answer, completion):
    assert task.verify(problem(answer), completion).correct


HOSTILE = {
    "empty": "",
    "nul": "\0",
    "lone surrogate": "\\boxed{\ud800}",
    "invalid bytes": b"\\boxed{\xff\xfe}".decode(errors="surrogateescape"),
    "dollars": "$" * 20_000,
    "open boxes": "\\boxed{" * 3_000,
    "open brackets": "\\[" * 10_000,
    "nesting": "\\boxed{" + "(" * 3_000 + "1" + ")" * 3_000 + "}",
    "braces": "\\boxed{" + "{" * 5_000 + "}" * 5_000 + "}",
    "fractions": "\\boxed{" + "\\frac{1}{" * 2_000 + "1" + "}" * 2_000 + "}",
    "long sum": "\\boxed{" + "1+" * 5_000 + "1}",
    "long number": "\\boxed{" + "9" * 10_000 + "}",
    "slow sum": "\\boxed{\\sum_{n=1}^{1000000000} \\sin(n)}",
    "slow polynomial": "\\boxed{(1+x)^{99999}-(1+x)^{99998}}",
    "division by zero": "\\boxed{\\frac{1}{0}}",
    "1 MB of words": "word " * 200_000,
    "1 MB of digits": "\\boxed{" + "9" * 1_000_000 + "}",
    "1 MB of powers": "\\boxed{" + "9^" * 500_000 + "1}",
    "1 MB of brackets": "\\boxed{" + "(" * 1_000_000,
}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE)
def test_hostile_completion_is_judged_wrong_in_bounded_time(task, completion):
    start = time.monotonic()
    verdict = task.verify(problem("\\frac{3}{4}"), completion)
    assert time.monotonic() - start < 60  # the limit is one second; starting a new worker after a kill takes longer
    assert not verdict.correct
    assert verdict.reason


def test_only_the_end_of_a_long_completion_is_read(task):
    assert task.verify(problem("4"), "I think $5$. " * 80_000 + "\\boxed{4}" + "\n" * 20_001).correct


def test_the_time_limit_holds_outside_the_main_thread_and_the_next_answer_is_judged():
    task, verdicts = Math(time_limit=0.5), []
    completions = ["\\boxed{0.625}", HOSTILE["slow polynomial"], "\\boxed{0.625}"]
    work = lambda: verdicts.extend(task.verify(problem("\\frac{5}{8}"), c) for c in completions)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert [v.correct for v in verdicts] == [True, False, True]
    assert verdicts[1].reason == "stopped after 0.5 s"


def test_a_batch_gives_the_verdicts_of_verify_in_order():
    completions = [f"\\boxed{{{n}}}" for n in range(12)] + [HOSTILE["slow polynomial"], "none", BOMBS[0], "\\boxed{3}"]
    task = Math(time_limit=1, workers=2)
    verdicts = task.verify_all((problem("3"), completion) for completion in completions)
    assert verdicts == [task.verify(problem("3"), completion) for completion in completions]
    assert [n for n, verdict in enumerate(verdicts) if verdict.correct] == [3, 15]


def test_a_limit_that_lets_nothing_pass_is_an_error():
    with pytest.raises(ValueError, match="time_limit=0"):
        Math(time_limit=0)


def test_gold_answer_that_cannot_be_parsed_names_the_problem(task):
    with pytest.raises(ValueError, match="problem 'p'"):
        task.verify(problem("$$"), "\\boxed{1}")
    with pytest.raises(ValueError, match="has no answer"):
        task.verify(problem(""), "\\boxed{1}")


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (r"1-\frac{1}{2^{100}}", r"1-\frac{1}{2^{99}}"),
        ("1-2^{-2024}", "1-2^{-2025}"),
        (r"\frac{2^{100}-1}{2^{100}}", r"\frac{2^{100}-2}{2^{100}}"),
        (r"x(1-\frac{1}{2^{100}})", r"x(1-\frac{1}{2^{99}})"),
    ],
)
def test_rational_numbers_must_be_exactly_equal(task, gold, said):
    assert not task.verify(problem(gold), f"\\boxed{{{said}}}").correct


@pytest.mark.parametrize("said", [r"1-2^{-100}", r"\frac{2^{100}-1}{2^{100}}", r"1-\left(\frac12\right)^{100}"])
def test_rational_numbers_in_other_notation_are_equal(task, said):
    assert task.verify(problem(r"1-\frac{1}{2^{100}}"), f"\\boxed{{{said}}}").correct


@pytest.mark.parametrize(
    "said",
    [
        r"\begin{aligned}42\end{aligned}",
        r"\begin{align*} x &= 42 \\ \end{align*}",
        r"\large 42",
        r"\color{red}{42}",
        r"\textcolor{red}{42}",
        r"{\color{blue}42}",
        r"\underline{42}",
        r"\underline{\underline{42}}",
        r"\underline{\frac{84}{2}}",
        r"x = \underline{42}",
    ],
)
def test_size_colour_and_frames_of_one_line_mean_nothing(task, said):
    assert task.verify(problem("42"), f"\\boxed{{{said}}}").correct
    assert not task.verify(problem("41"), f"\\boxed{{{said}}}").correct
    assert task.verify(problem(said), "\\boxed{42}").correct


def test_several_lines_are_no_single_answer(task):
    assert not task.verify(problem("42"), r"\boxed{\begin{aligned}41\\42\end{aligned}}").correct


@pytest.mark.parametrize(
    ("gold", "said", "correct"),
    [
        ("CAB", "BAC", False),
        ("CAB", "B A C", False),
        ("CAB", r"\text{CAB}", True),
        ("HTH", "HHT", False),
        ("left", "felt", False),
        ("no", "on", False),
        ("no", "No", True),
        ("even", "Even", True),
        ("isosceles", r"\text{Isosceles}", True),
        ("true", r"\text{true}", True),
        ("True", "true", True),
        ("True", "False", False),
        ("xy", "yx", True),
        ("abc", "cab", True),
        ("first", "First", True),
        ("first", r"\text{first}", True),
        ("IR", "RI", True),
        ("xyz", r"x \cdot z \cdot y", True),
    ],
)
def test_words_are_no_products_of_letters(task, gold, said, correct):
    assert task.verify(problem(gold), f"\\boxed{{{said}}}").correct is correct


def test_a_word_in_a_formula_is_a_word(task):
    assert not task.verify(problem("CAB"), "The answer is $BAC$.").correct
    assert task.verify(problem("CAB"), "The answer is $CAB$.").correct


@pytest.mark.parametrize(
    ("gold", "said", "correct"),
    [
        (r"\cos 20^\circ", r"\cos 20", False),
        (r"2\cos 40^\circ", r"2\cos 40", False),
        (r"\sin 1", r"\sin 1^\circ", False),
        (r"\sin 30^\circ", r"\frac12", True),
        (r"\frac12", r"\sin 30^{\circ}", True),
        (r"\tan 45^\circ", "1", True),
        (r"\cos(60^\circ)", r"\frac12", True),
        (r"\sin 60^\circ", r"\cos 30°", True),
        (r"\tan 15^\circ", r"2-\sqrt3", True),
        (r"\frac34", r"\sin^2 60^\circ", True),
        ("3", r"\log_2 8", True),
        (r"\frac12", r"\sin 30^\circ = \frac12", True),
        (r"60^\circ", r"\arcsin\frac{\sqrt3}{2}", False),
        (r"60^\circ", "60", True),
    ],
)
def test_degrees_and_arguments_of_functions(task, gold, said, correct):
    assert task.verify(problem(gold), f"\\boxed{{{said}}}").correct is correct


@pytest.mark.parametrize(
    ("gold", "said", "correct"),
    [
        ("2i", "(1+i)^2", True),
        ("3+4i", "(2+i)^2", True),
        ("-1", "i^2", True),
        ("5", "|3+4i|", True),
        ("2i", r"\sqrt{-4}", True),
        ("i", r"\frac{1+i}{1-i}", True),
        (r"e^{2\pi i/3}", r"-\frac12+\frac{\sqrt3}{2}i", True),
        (r"\{2i,-2i\}", r"\{\sqrt{-4},-\sqrt{-4}\}", True),
        ("2i", "(1-i)^2", False),
        ("3+4i", "(2-i)^2", False),
        ("1", "i^2", False),
        ("1", "i", False),
        ("5", "3+4i", False),
        ("e^{i}", "e^{-i}", False),
        (r"\{1+i,1-i\}", r"\{1+i,-1-i\}", False),
        (r"1-\frac{i}{2^{100}}", r"1-\frac{i}{2^{99}}", False),
        ("6", r"\sum_{i=1}^{3} i", True),
    ],
)
def test_i_is_the_imaginary_unit(task, gold, said, correct):
    assert task.verify(problem(gold), f"\\boxed{{{said}}}").correct is correct
