"""Processes that can be killed: where verifiers run what a model wrote.

Here: starting such processes, asking them, ending them in time. Not here: what they compute (`sql_worker.py`,
`math_worker.py`, each a module that calls `serve`), and verdicts (`sql.py`, `math.py`).

One mechanism for all systems. A request is one line of JSON to the process's standard input, the answer one line back.
The process ends *itself* at its time limit, by an alarm that no query and no large power can hold up, so the limit also
holds where its parent has been killed; idle, it ends when its standard input does. The limit is processor time, so that
what else the machine does decides no verdict; `PATIENCE` times as long by the clock is the outer net. (Windows has no such
alarm: there the clock decides.) It dies at once, without clean-up, and
has nothing to clean up: it only reads. The next request starts a new one.
"""

import faulthandler
import json
import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parents[2])
_CRASHED = 70  # exit code
PATIENCE = 20  # seconds by the clock that a process may take for each second of its time limit, on a loaded machine
GRACE = 30  # seconds that the parent waits beyond that


class WorkerError(Exception):
    """The process that ran a request is gone; the message says in a verdict's words why."""


class Workers:
    """Up to `count` processes that run the same module. Each starts when it is first needed and ends with this object.

    Threads share them. A copy, a pickle or a fork holds the settings only and starts processes of its own.
    """

    def __init__(self, module: str, count: int | None = None):
        """`count` None: one for each processor, but not over 4."""
        if count is not None and count < 1:
            raise ValueError(f"workers={count!r}: expected at least 1 process, or None for one a processor (at most 4)")
        self.module, self.count = module, count or min(4, os.cpu_count() or 1)
        self._reset()

    def _reset(self):
        self._owner, self._idle = os.getpid(), queue.LifoQueue()
        for _ in range(self.count):
            self._idle.put(None)

    def __del__(self):  # subprocess would keep an abandoned process, and so its standard input, for as long as it lives
        idle = self.__dict__.get("_idle")
        while idle and idle.qsize():
            if process := idle.get():
                with suppress(OSError):
                    process.stdin.close()

    def __reduce__(self):
        return Workers, (self.module, self.count)

    def ask(self, seconds: float, **request) -> dict:
        """The answer to `request`, which may take `seconds`. Raises `WorkerError` where the process did not survive it."""
        if self._owner != os.getpid():  # a fork holds copies of pipes that are its parent's
            self._reset()
        idle = self._idle
        process = idle.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start()
            answer = _exchange(process, {"seconds": seconds, "request": request})
            if answer is None:
                raise WorkerError(_cause(process.wait(), seconds))
            return answer
        except BaseException:  # Ctrl-C too: the late answer must not be taken for the next one's
            if process is not None:
                process.kill()
                process.wait()
            raise
        finally:
            idle.put(process)

    def map(self, function: Callable, items: Iterable) -> list:
        """`[function(item) for item in items]`, as many at a time as there are processes."""
        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(function, items))

    def _start(self) -> subprocess.Popen:
        # The package is where it was found here, and -P keeps the working folder's files from passing for modules.
        code = f"import sys; sys.path.append({_PACKAGE!r}); from {self.module} import main; main()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-P", "-c", code], **pipes)
        if not process.stdout.readline():
            raise RuntimeError(f"the verifier's process does not start: run `python -m {self.module}` to see why")
        return process


def _exchange(process: subprocess.Popen, message: dict) -> dict | None:
    try:
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        if not _comes(process.stdout, PATIENCE * message["seconds"] + GRACE):
            process.kill()
        line = process.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(line) if line.endswith(b"\n") else None


def _comes(stream, seconds: float) -> bool:
    """Whether an answer comes in time: the parent's own watch, for a process that its alarm did not end."""
    if not hasattr(select, "poll"):  # Windows: there the process's own clock has to do
        return True
    poll = select.poll()
    poll.register(stream, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(1000 * seconds))


def _cause(code: int, seconds: float) -> str:
    if code in (*(-number for number in _alarms()), 1):  # 1 is faulthandler's exit code
        return f"stopped after {seconds:g} s"
    return "stopped: it took too much memory or crashed"


# ---- the other side --------------------------------------------------------------------------------------------------


def _alarms() -> dict[int, int]:
    """The signals that end a process in time -> the timers that send them; none on Windows."""
    if not hasattr(signal, "setitimer"):
        return {}
    return {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}


def limit_time(seconds: float):
    """End this process after `seconds` of processor time from now, unless called again before; 0 takes the limit away.
    Only for workers.

    The system does it, or where there is no such signal a thread in C: neither waits for Python.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)  # into the void, see `_start`
    else:
        faulthandler.cancel_dump_traceback_later()


def serve(answer: Callable[..., dict], memory_gb: float):
    """Answer the requests on standard input until it ends: what a worker's module runs as its main program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    for number in _alarms():
        signal.signal(number, signal.SIG_DFL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what a library prints must not be taken for an answer
    with suppress(ImportError, ValueError, OSError):  # not on Windows, not where a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        limit_time(message["seconds"])
        try:
            found = answer(**message["request"])
        except BaseException:
            os._exit(_CRASHED)
        limit_time(0)
        print(json.dumps(found), file=answers, flush=True)
    os._exit(0)  # at once; taking SymPy apart takes a second
