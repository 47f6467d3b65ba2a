"""One thread for numeric work unless somebody set another number, in this process and in those that it starts."""

import json
import os
import subprocess
import sys

import pytest

from dphrl_lite import presampling
from dphrl_lite.engine import threads
from dphrl_lite.tasks.countdown import problems

MANY = threads.cores() > 1
SHOW = """
import json
import torch
from dphrl_lite.engine import threads
seen = [torch.get_num_threads()]
for parameters in (threads.TINY_PARAMETERS, 1):
    threads.settle(parameters)
    seen.append(torch.get_num_threads())
print(json.dumps(seen))
"""
MANY_ON_NUMPY = "import numpy as np, psutil; a = np.ones((600, 600)); a @ a; print(psutil.Process().num_threads())"


def ask(code: str, **variables: str):
    """What a fresh process prints that has no number of threads but those in `variables`."""
    kept = {name: value for name, value in os.environ.items() if name not in (threads.VARIABLE, threads.OURS)}
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, env=kept | variables, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not MANY, reason="one core")
def test_a_large_model_has_all_cores_and_a_tiny_one_and_what_is_no_model_has_one():
    assert ask(f"import dphrl_lite{SHOW}") == [1, threads.cores(), 1]
    assert ask(SHOW) == [1, threads.cores(), 1]  # torch was there first


@pytest.mark.skipif(not MANY, reason="one core")
def test_a_number_that_was_set_stays():
    every = threads.cores()
    assert ask(f"import dphrl_lite{SHOW}", OMP_NUM_THREADS=f"{every}") == [every] * 3
    assert ask(f"import dphrl_lite{SHOW}", OMP_NUM_THREADS="1") == [1, 1, 1]
    assert ask(f"import torch; torch.set_num_threads(7); import dphrl_lite{SHOW}") == [7, 7, 7]
    later = SHOW.replace("seen =", "torch.set_num_threads(5); seen =")
    assert ask(f"import dphrl_lite{later}") == [5, 5, 5]


@pytest.mark.skipif(not MANY, reason="one core")
def test_numpy_starts_no_second_thread_and_a_child_process_knows_that_nobody_chose():
    alone = ask(f"import dphrl_lite; {MANY_ON_NUMPY}")
    assert alone < ask(MANY_ON_NUMPY)
    child = (
        f"import dphrl_lite, subprocess, sys; subprocess.run([sys.executable, '-c', {'import dphrl_lite' + SHOW!r}])"
    )
    assert ask(child) == [1, threads.cores(), 1]


def test_the_package_alone_loads_nothing_heavy():
    assert (
        ask("import dphrl_lite, json, sys; print(json.dumps([n for n in ('torch', 'numpy') if n in sys.modules]))")
        == []
    )


def test_each_use_of_a_model_asks_for_its_threads(tiny, countdown, monkeypatch):
    sizes = []
    monkeypatch.setattr(threads, "settle", sizes.append)
    presampling.sample(tiny, countdown, problems("cd3", 1), 1, progress=False)
    assert sizes == [sum(p.numel() for p in tiny.model.parameters())]
