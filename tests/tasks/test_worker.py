"""Worker processes: they can be killed, copied tasks and forks have their own, and none outlives its parent."""

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dphrl_lite.tasks import Problem, get
from dphrl_lite.tasks.worker import Workers

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = Problem("p", "", "SELECT COUNT(*) FROM student", {"db_id": "school"})
ENDLESS_STEP = "SELECT TRIM(printf('%.900000c', 'b'), printf('%.80000c', 'a') || 'b')"
posix = pytest.mark.skipif(os.name != "posix", reason="signals and fork")


@pytest.fixture
def task():
    return get("sql", databases=ROOT / "data" / "sql" / "databases", time_limit=1, workers=2)


@pytest.fixture
def started():
    """A function: the processes started since the test began and alive still."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before and is_alive(child)]


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def right(task):
    return task.verify(PROBLEM, PROBLEM.answer).correct


def test_one_process_serves_one_caller_and_a_batch_has_several(task, started):
    assert started() == []
    assert all(right(task) for _ in range(5))
    assert len(started()) == 1
    assert all(verdict.correct for verdict in task.verify_all([(PROBLEM, PROBLEM.answer)] * 200))
    assert 1 <= len(started()) <= 2
    assert task.verify_all([]) == []


def test_a_process_that_died_between_two_questions_is_replaced(task, started):
    assert right(task)
    (first,) = started()
    first.kill()
    assert wait_until(lambda: not is_alive(first))
    assert right(task)
    assert started() != [first]


def test_a_process_that_dies_over_a_question_gives_a_verdict(started):
    task = get("sql", databases=ROOT / "data" / "sql" / "databases", time_limit=60)
    assert right(task)
    (first,), verdicts = started(), []
    thread = threading.Thread(target=lambda: verdicts.append(task.verify(PROBLEM, ENDLESS_STEP)))
    thread.start()
    busy = first.cpu_times().user
    assert wait_until(lambda: first.cpu_times().user > busy + 0.1, seconds=30), (verdicts, first, started())
    first.kill()
    thread.join(60)
    assert (verdicts[0].correct, verdicts[0].reason) == (False, "stopped: it took too much memory or crashed")
    assert right(task)


def test_a_killed_process_is_reaped_and_replaced(task, started):
    assert right(task)
    (first,) = started()
    assert task.verify(PROBLEM, ENDLESS_STEP).reason == "stopped after 1 s"
    assert not first.is_running()
    assert right(task)
    assert len(started()) == 1


def test_the_processes_of_a_dropped_task_end(started):
    for _ in range(3):
        task = get("sql", databases=ROOT / "data" / "sql" / "databases")
        assert right(task)
    assert wait_until(lambda: len(started()) == 1)
    del task
    assert wait_until(lambda: not started())


def test_a_process_that_cannot_start_says_how_to_see_why():
    with pytest.raises(RuntimeError, match="python -m dphrl_lite"):
        Workers("dphrl_lite.tasks.no_such_worker", 1).ask(1)


@pytest.mark.parametrize("name", ["sql", "math"])
def test_copies_and_pickles_of_a_task_start_their_own_processes(task, started, name):
    problem = PROBLEM if name == "sql" else Problem("m", "", "4")
    task = task if name == "sql" else get("math", workers=1)
    assert task.verify(problem, problem.answer).correct
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert other.identity() == task.identity()
        assert other.verify(problem, problem.answer).correct
    assert task.verify(problem, problem.answer).correct


@pytest.mark.skipif(sys.platform != "linux", reason="the limit can be read on Linux only")
def test_a_process_cannot_take_more_than_its_memory(task, started):
    assert right(task)
    (process,) = started()
    assert process.rlimit(psutil.RLIMIT_AS) == (2 * 2**30, 2 * 2**30)


def verify_in_fork(task, answers):
    answers.put((right(task), task.verify(PROBLEM, "SELECT 0").reason))


@posix
def test_a_forked_process_does_not_talk_to_its_parents_workers(task):
    assert right(task)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    fork = context.Process(target=verify_in_fork, args=(task, answers))
    fork.start()
    here = [right(task) for _ in range(50)]
    assert answers.get(timeout=60) == (True, "rows differ")
    fork.join(60)
    assert all(here)
    assert right(task)


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the tests were started in the background by a shell that had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("interruptible")
def test_the_late_answer_to_an_interrupted_question_is_not_taken_for_the_next(started):
    task = get("sql", databases=ROOT / "data" / "sql" / "databases", time_limit=60)
    assert right(task)
    (first,) = started()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        task.verify(PROBLEM, ENDLESS_STEP)
    assert not first.is_running()
    assert right(task)


SCRIPT = """
import sys, threading
from dphrl_lite.tasks import Problem, get
task = get("sql", databases=sys.argv[1], time_limit=3, workers=2)
problem = Problem("p", "", "SELECT 1", {"db_id": "school"})
slow = threading.Thread(target=task.verify, args=(problem, sys.argv[2]))
slow.start()
task.verify(problem, "SELECT 1")
print("running", flush=True)
slow.join()
sys.stdin.read()
"""


@posix
def test_no_worker_outlives_a_parent_that_is_killed():
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "data" / "sql" / "databases"), ENDLESS_STEP]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout.readline() == b"running\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2  # one idle, one in the middle of its query
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: not any(is_alive(child) for child in children))


def test_the_sql_process_imports_only_what_it_needs():
    heavy = ["torch", "transformers", "sqlglot", "sympy", "numpy", "pandas", "datasets"]
    code = f"import sys; import dphrl_lite.tasks.sql_worker; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


@posix
def test_a_process_that_its_own_alarm_does_not_end_is_ended_by_its_parent(task, started, monkeypatch):
    assert right(task)
    monkeypatch.setattr("dphrl_lite.tasks.worker.GRACE", 3)
    monkeypatch.setattr("dphrl_lite.tasks.worker.PATIENCE", 0)  # the parent's alone: the process has loaded its own
    (worker,) = started()
    worker.suspend()  # a stopped process takes no alarm
    verdict = task.verify(PROBLEM, PROBLEM.answer.replace("student", "course"))
    assert not verdict.correct and "stopped" in verdict.reason
    assert right(task)
    assert worker not in started()
