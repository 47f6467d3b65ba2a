"""The memory table: exact where it can be, and what is said and refused before a model is loaded."""

import pytest
import torch

from dphrl_lite import models
from dphrl_lite.engine import optimizers
from dphrl_lite.scale import memory
from dphrl_lite.tasks.countdown import problems
from dphrl_lite.training import TrainConfig

TINY = models.PROFILES["tiny"].source


def gb_of(table, part):
    """Of a part at its largest."""
    return table.groupby("part")["gb"].max().get(part, 0.0)


def nbytes(tensors):
    """Bytes of distinct tensors."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def tensors_of(model):
    """Weights, and the tables that 4-bit weights carry."""
    for p in model.parameters():
        yield p
        state = getattr(p, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def test_weights_in_float32_are_the_sum_over_the_parameters(tiny):
    assert gb_of(memory.plan("tiny"), "weights") * 1e9 == nbytes(tiny.model.parameters())
    assert gb_of(memory.plan("tiny", in_place=False), "reference") * 1e9 == nbytes(tiny.model.parameters())


@pytest.fixture(scope="module")
def nf4():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    return models.load("tiny", nf4=True)


def test_weights_in_nf4_are_the_sum_over_tensors_and_their_scales(nf4):
    frozen = [t for t in tensors_of(nf4.model) if not t.requires_grad]
    assert gb_of(memory.plan("tiny", nf4=True), "weights") * 1e9 == nbytes(frozen)


@pytest.mark.parametrize("settings", [{"lora_rank": 4}, {"nf4": True}])
def test_the_adapter_and_its_gradients_are_exact(settings):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    policy, table = models.load(TINY, **settings), memory.plan(TINY, **settings)
    trained = nbytes(p for p in policy.model.parameters() if p.requires_grad)
    step = table[table["step"]]
    assert {gb_of(step, part) * 1e9 for part in ("adapter", "gradients", "gradient parts")} == {trained}


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_the_optimizer_is_exact(tiny, name):
    pytest.importorskip("bitsandbytes")
    policy, config = tiny.copy(), TrainConfig("grpo", optimizer=name)
    trained = list(policy.model.parameters())
    optimizer = optimizers.make(name, trained, config.learning_rate)
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t for state in optimizer.state.values() for key, t in state.items() if torch.is_tensor(t) and key != "step"]
    assert gb_of(memory.plan("tiny", config), "optimizer") * 1e9 == nbytes(held)


def test_the_peak_is_that_of_the_worst_phase():
    need = memory.peak_gb(memory.plan("tiny", TrainConfig("dph-js", samples=2, problems_per_step=1)))
    table = memory.plan("tiny", TrainConfig("dph-js", samples=2, problems_per_step=1))
    assert need.max() < table["gb"].sum()
    assert need["sampling"] == pytest.approx(table.loc[table["sampling"], "gb"].sum())


@pytest.mark.parametrize(
    ("method", "held", "second"), [("dph-js", {}, 0), ("rkl", {}, 1), ("rkl", {"lora_rank": 4}, 0), ("grpo", {}, 0)]
)
def test_only_methods_that_ask_a_reference_hold_one_and_no_adapter_does(method, held, second):
    table = memory.plan("tiny", TrainConfig(method), **held)
    assert gb_of(table, "reference") == second * gb_of(table, "weights")


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"microbatch_tokens": 512}, "activations"),
        ({"max_new_tokens": 4}, "key-value cache"),
        ({"samples": 2}, "drawing"),
        ({"gradient_parts": False}, "gradient parts"),
    ],
)
def test_a_knob_lowers_its_part(setting, part):
    before, after = (memory.plan("tiny", TrainConfig("dph-js", **x)) for x in ({}, setting))
    assert gb_of(after, part) < gb_of(before, part)


def test_a_7b_model_is_meant_for_16_gb():
    """8 x 1,024 tokens at once, on a GPU that has bfloat16; nothing is loaded."""
    shape = {"problems_per_step": 2, "samples": 4, "rehearsal_per_step": 8, "minibatches": 1}
    config = TrainConfig("dph-js", max_new_tokens=768, microbatch_tokens=8192, **shape)
    table = memory.plan("qlora-7b", config, device="cuda", dtype=torch.bfloat16)
    assert gb_of(table, "weights") == pytest.approx(5.55, abs=0.01)
    assert gb_of(table, "activations") == pytest.approx(8 * 1024 * 3584 * 28 * 2 / 1e9)
    assert memory.peak_gb(table).max() < 14


def test_what_does_not_fit_is_refused_with_the_settings_that_help(monkeypatch):
    config, asked = TrainConfig("dph-js"), problems("cd3", 4)
    assert "needed at most" in memory.check("tiny", config, asked)
    assert "hours for 60 steps" in memory.check("tiny", config, asked)
    assert "hours for 4 problems" in memory.check("tiny", config, asked, training=False)
    need = memory.peak_gb(memory.plan("tiny", config, prompt_tokens=7)).max()
    monkeypatch.setattr(memory, "free_gb", lambda device: need)
    assert "may not fit" in memory.check("tiny", config, asked)
    monkeypatch.setattr(memory, "free_gb", lambda device: need / 2)
    with pytest.raises(
        MemoryError, match=r"will not fit.*activations .* GB: microbatch_tokens, max_new_tokens.*--anyway"
    ):
        memory.check("tiny", config, asked)
    assert "will not fit" in memory.check("tiny", config, asked, anyway=True)


def test_sampling_alone_needs_neither_gradients_nor_an_optimizer():
    parts = set(memory.plan("tiny", training=False)["part"])
    assert parts == {"weights", "key-value cache", "drawing", "sampling work space"}


def test_a_t4_is_reckoned_without_one():
    text = memory.on_card("t4")
    assert "Tesla T4" in text and "float16" in text and "decoding graphs" in text and "not fit" not in text
    crowded = TrainConfig("dph-js", microbatch_tokens=1 << 15, max_new_tokens=960)
    assert "will not fit" in memory.on_card("t4", config=crowded)
    with pytest.raises(ValueError, match="t4"):
        memory.on_card("t5")


def test_buffers_and_graphs_stay_on_a_gpu_between_calls_unless_they_are_large():
    shape = {"problems_per_step": 2, "samples": 4, "minibatches": 1}
    for longest, stays in ((704, True), (4000, False)):
        config = TrainConfig("grpo", max_new_tokens=longest, **shape)
        table = memory.plan("qlora-7b", config, device="cuda", dtype=torch.bfloat16).set_index("part")
        rows, room = 8, -(-(256 + longest) // 64) * 64
        assert table.loc["key-value cache", "gb"] * 1e9 == 2 * 28 * 4 * 128 * 2 * rows * room
        assert table.loc["key-value cache", "layers"] == table.loc["decoding graphs", "layers"] == stays
    assert "decoding graphs" not in set(memory.plan("tiny")["part"])
