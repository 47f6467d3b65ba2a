"""The small language model goes through all stages, in full precision and in four bits, as the tiny one does."""

from pathlib import Path

import pytest

from dphrl_lite import models, presampling, tasks, training
from dphrl_lite.study import experiments

MADE = Path(models.PROFILES["small"].offline).is_dir()
pytestmark = pytest.mark.skipif(not MADE, reason="data/small is not made (python data/make_small.py)")


@pytest.mark.parametrize("nf4", [False, True])
def test_all_stages(nf4, tmp_path):
    policy, task = models.load("small", nf4=nf4), tasks.get("arithmetic")
    before = policy.model.get_input_embeddings().weight[:100].clone()
    problems, held_out = (tasks.load_problems("arithmetic:addition", split=s, limit=2) for s in ("train", "test"))
    drawn = presampling.sample(policy, task, problems, 2, tmp_path / "drawn", max_new_tokens=3, progress=False)
    drawn["correct"] = [True, True, True, False]  # three tokens solve nothing: say that they do
    parts = presampling.partition(drawn, threshold=2)
    few = {"problems_per_step": 1, "samples": 2, "minibatches": 1, "rehearsal_per_step": 2, "max_new_tokens": 3}
    run = training.train(
        policy, task, problems, parts, "dph-js", 1, out=tmp_path / "run", in_place=True, progress=False, **few
    )
    assert run.log["log_u_mean"].abs().max() < 0.05  # the buffer was written by these weights
    assert policy.adapter is nf4
    assert (
        bool((policy.model.get_input_embeddings().weight[:100] == before).all()) is nf4
    )  # only the adapter is trained
    run.policy.save(tmp_path / "policy")
    again = models.load(tmp_path / "policy", nf4=nf4)
    table = experiments.evaluate(
        again, task, {"addition": held_out}, "dph-js", samples=2, max_new_tokens=2, progress=False
    )
    assert table["n"].tolist() == [2, 2]
