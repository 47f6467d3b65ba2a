"""The model of 135M parameters on a GPU, from pre-sampling to counts of right answers, in 4 bits with an adapter."""

from pathlib import Path

import pytest
import torch

from dphrl_lite import models, presampling, tasks, training
from dphrl_lite.engine import graphs
from dphrl_lite.sampling import generate
from dphrl_lite.tasks import arithmetic

pytestmark = pytest.mark.skipif(
    not Path(models.PROFILES["small"].offline).is_dir(), reason="data/small is not made (python data/make_small.py)"
)


@pytest.mark.parametrize("held", [{}, {"nf4": True}], ids=str)
def test_from_pre_sampling_to_counts_of_right_answers(held, tmp_path):
    policy, task = models.load("small", **held), tasks.get("arithmetic")
    assert policy.device.type == "cuda"
    problems = arithmetic.problems("multiplication", 24, "train")
    table = presampling.sample(policy, task, problems, 8, max_new_tokens=16, progress=False)
    parts = presampling.partition(table, threshold=2)
    shape = {"problems_per_step": 4, "samples": 8, "rehearsal_per_step": 8, "max_new_tokens": 16, "progress": False}
    run = training.train(policy, task, problems, parts, "dph-js", 2, learning_rate=1e-5, in_place=True, **shape)
    assert run.log["gradient_norm"].gt(0).all()
    slots = graphs._kept[run.policy.model]
    assert slots.graphs and not slots.plain
    run.policy.save(tmp_path)
    again = models.load(tmp_path)
    found = presampling.counts(presampling.sample(again, task, problems[:4], 8, max_new_tokens=16, progress=False))
    assert found["n"].eq(8).all()


def test_graphs_draw_what_the_eager_way_draws_in_float32():
    policy = models.load("small")
    assert policy.model.dtype == torch.float32
    prompts = [policy.encode(text) for text in ("What is 3 times 4?", "Name three colours of the rainbow, please.")]
    settings = {"seeds": [0, 1], "max_new_tokens": 48}
    eager, drawn = (generate(policy, prompts, 8, captured=way, **settings) for way in (False, None))
    parted = 0
    for a, b in zip((c for g in eager for c in g), (c for g in drawn for c in g), strict=True):
        pairs = list(zip(a.token_ids, b.token_ids, strict=False))
        same = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
        assert a.logp[:same] == pytest.approx(b.logp[:same], abs=1e-4)
        if same < len(pairs):  # the number drawn fell on the edge between two words of 49,152, and rounding decided
            assert abs(pairs[same][0] - pairs[same][1]) == 1
            parted += 1
    assert parted <= 2  # of 16 rows
