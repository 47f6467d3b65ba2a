"""Where answers stand and how they are written: every row of docs/verifiers.md, and inputs in the manner of bug reports."""

import json
import re
from pathlib import Path

import pytest

from dphrl_lite.tasks import Problem, get
from dphrl_lite.tasks.completions import marked_answers, without_thoughts

CASES = [json.loads(line) for line in (Path(__file__).parent / "math_cases.jsonl").open(encoding="utf-8")]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verifiers.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (right|wrong) \| (.+?) \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def task():
    return get("math", workers=2)


def judged(task, pairs):
    return [v.correct for v in task.verify_all((Problem(str(i), "", g), text) for i, (g, text) in enumerate(pairs))]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_cases(task, kind):
    cases = [case for case in CASES if case["kind"] == kind]
    found = judged(task, [(case["gold"], case["completion"]) for case in cases])
    assert [case for case, correct in zip(cases, found, strict=True) if correct != case["correct"]] == []


def test_the_page_of_decisions_says_what_happens(task):
    assert len(ROWS) > 40
    found = judged(task, [(gold, text.replace("⏎", "\n")) for gold, text, _, _ in ROWS])
    assert [row for row, correct in zip(ROWS, found, strict=True) if correct != (row[2] == "right")] == []


def test_solutions_of_gsm8k_are_right(task, shared_data):
    rows = [json.loads(line) for line in (shared_data / "math" / "gsm8k_test.jsonl").open(encoding="utf-8")]
    golds = [row["answer"].rpartition("####")[2].strip().replace(",", "") for row in rows]
    assert all(judged(task, zip(golds, (row["answer"] for row in rows), strict=True)))


def test_a_gold_answer_that_its_own_verifier_refuses_is_named(task):
    golds = ["42", "$$", "\\frac{2 k n}{n+k-1}-2 \\frac{k!n!}{(k+n-1)!", "2^{200000}", "\\text{Monday}", "1e-05"]
    refused = task.objections(Problem(gold, "", gold) for gold in golds)
    assert refused.keys() == {golds[1], golds[2]}
    assert [problem.id for problem in task.usable(Problem(gold, "", gold) for gold in golds)] == [golds[0], *golds[3:]]


@pytest.mark.parametrize(
    ("completion", "said", "unfinished"),
    [
        ("<think>a</think>b", "b", False),
        ("a</think>b", "b", False),
        ("<think>a</think>b<think>c</think>d", "b\nd", False),
        ("<think>a <think>b</think> c</think>d", "d", False),
        ("<THINKING>a</THINKING >b", "b", False),
        ("<reasoning>a</reasoning>b", "b", False),
        ("<seed:think>a</seed:think>b", "b", False),
        ("[THINK]a[/THINK]b", "b", False),
        ("◁think▷a◁/think▷b", "b", False),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b", False),
        ("<start_working_out>a<end_working_out>b", "b", False),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b", False),
        ("<|channel|>analysis<|message|>a", "", True),
        ("<think>a", "", True),
        ("b<think>a", "b", True),
        ("b<|im_end|>", "b", False),
        ("a < b and think > c", "a < b and think > c", False),
        ("", "", False),
    ],
)
def test_what_is_said_outside_thoughts(completion, said, unfinished):
    found, open_thought = without_thoughts(completion)
    assert (found.strip(), open_thought) == (said, unfinished)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("<answer>a</answer> b <answer> c </answer>", ["a", " c "]),
        ("<answer>a", ["a"]),
        ("<SOLUTION>a</SOLUTION>", ["a"]),
        ("<|begin_of_solution|>a<|end_of_solution|>", ["a"]),
        ("put it in <answer></answer> or <answer>...</answer>", []),
        ("a", []),
    ],
)
def test_marked_answers(text, answers):
    assert [inside for _, inside in marked_answers(text)] == answers
