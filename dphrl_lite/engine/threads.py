"""How many threads numeric work takes, in one place: one, for models that are worth more all cores, or the number that you
have set. Not here: how many processes a task or a sweep starts.

Small matrices gain nothing from being shared out, and beside busy neighbours each of them waits for the slowest thread.
Importing `dphrl_lite` settles it for numpy and torch (`one_at_first`); each use of a model settles it anew (`settle`), as
another model may have been used since. Your own number counts, however you give it: OMP_NUM_THREADS or
`torch.set_num_threads`. A numpy that was imported before `dphrl_lite` keeps the threads that it has.
"""

import os
import sys

TINY_PARAMETERS = 5_000_000  # below, a model is fastest on one thread of the CPU
VARIABLE, OURS = "OMP_NUM_THREADS", "DPHRL_ONE_THREAD"  # the second tells child processes who set the first
_own = False  # whether torch's number is ours
_last = 1  # the latest that we gave torch


def one_at_first() -> None:
    """One thread for the numpy and torch of this process and of those that it starts, unless you have set another number."""
    global _own
    _own = VARIABLE not in os.environ or (OURS in os.environ and os.environ[VARIABLE] == "1")
    if _own:
        os.environ[VARIABLE] = os.environ[OURS] = "1"
    torch = sys.modules.get("torch")  # what is loaded already has read the variable
    if _own and torch is not None:
        _own = torch.get_num_threads() in {os.cpu_count(), cores()}
        torch.set_num_threads(1 if _own else torch.get_num_threads())


def settle(parameters: int) -> None:
    """Give torch the threads for a model of so many parameters, unless you have set another number.

    A sum over more threads has other last bits.
    """
    global _last
    import torch

    if _own and torch.get_num_threads() == _last:
        _last = 1 if parameters < TINY_PARAMETERS else cores()
        torch.set_num_threads(_last)


def cores() -> int:
    """The cores that this process may use, as torch counts them: two threads of one core are one."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
