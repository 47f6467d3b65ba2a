"""Adapters load where they are said to, cards tell the run, and a merged model is the adapter's."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import bytes_policy
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from dphrl_lite import cli, models, presampling
from dphrl_lite.study import export

peft = pytest.importorskip("peft")
TOLD = {"method": "dph-js", "learning_rate": 1e-5}, {"sources": "bird/train.json", "completions": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bytes_policy(tmp_path_factory.mktemp("base"), ["1 + 1 ="], "two", steps=3)


def stirred(policy):
    """An adapter away from zero, as training leaves it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    return policy


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "policy-000001"
    policy = stirred(models.load(base, lora_rank=4))
    export.save(policy, folder, *TOLD)
    return folder, policy


def logp(model):
    with torch.no_grad():
        return torch.log_softmax(model.eval()(torch.arange(40)[None]).logits.float(), -1)


def test_an_adapter_loads_by_peft_alone_from_any_working_folder(base, adapter, tmp_path, monkeypatch):
    folder, policy = adapter
    whole = AutoModelForCausalLM.from_pretrained(base)
    assert torch.allclose(logp(peft.PeftModel.from_pretrained(whole, folder)), logp(policy.model), atol=1e-6)
    monkeypatch.chdir(tmp_path)
    assert peft.PeftConfig.from_pretrained(folder).base_model_name_or_path == base
    assert torch.allclose(logp(models.load(folder).model), logp(policy.model), atol=1e-6)


def test_a_base_that_was_named_by_a_relative_path_is_found_from_elsewhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base)
    models.load("./", lora_rank=4).save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert models.load("adapter").adapter


def test_a_merged_adapter_gives_the_same_log_probs(adapter, tmp_path):
    trained, policy = adapter
    folder = shutil.copytree(trained, tmp_path / "scored")
    export.add_scores(folder, "the adapter's table")
    assert cli.main(["export", "--policy", str(folder), "--out", str(tmp_path / "deep" / "merged")]) == 0
    merged = models.load(tmp_path / "deep" / "merged")
    assert not merged.adapter and not list((tmp_path / "deep" / "merged").glob("adapter*"))
    assert (logp(merged.model) - logp(policy.model)).abs().max() < 1e-5
    assert (logp(merged.model) - logp(AutoModelForCausalLM.from_pretrained(export.base_of(policy)))).abs().max() > 0.01
    assert merged.tokenizer("1 + 1")["input_ids"] == policy.tokenizer("1 + 1")["input_ids"]
    card = ModelCard.load(tmp_path / "deep" / "merged" / "README.md")
    assert (
        card.data.library_name == "transformers"
        and "peft" not in card.text
        and "Merged into its unquantised base" in card.text
    )
    assert "Not evaluated yet" in card.text and "the adapter's table" not in card.text  # another model


def test_an_adapter_on_4_bits_is_merged_into_the_unquantised_weights(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    policy = stirred(models.load(base, nf4=True, lora_rank=4))
    export.save(policy, tmp_path / "nf4", *TOLD)
    merged = export.merge(tmp_path / "nf4", tmp_path / "merged").model.layers[0].self_attn.q_proj.weight
    q = policy.model.base_model.model.model.layers[0].self_attn.q_proj
    delta = q.scaling["default"] * q.lora_B["default"].weight @ q.lora_A["default"].weight
    before = AutoModelForCausalLM.from_pretrained(base).model.layers[0].self_attn.q_proj.weight
    assert torch.allclose(merged, before + delta.float(), atol=1e-6)
    assert merged.dtype == torch.float32


def test_export_refuses_what_it_cannot_do_and_leaves_nothing(base, adapter, tmp_path, capsys):
    assert cli.main(["export", "--policy", base, "--out", str(tmp_path / "merged")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert cli.main(["export", "--policy", str(adapter[0]), "--out", str(tmp_path / "there")]) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_the_card_tells_method_settings_and_data_and_takes_scores(adapter, tmp_path):
    folder, _ = adapter
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and "dph-js" in card.data.tags
    assert card.data.base_model is None  # a folder, which nobody else has
    for row in ("| learning_rate | 1e-05 |", "| sources | bird/train.json |", "Not evaluated yet"):
        assert row in card.text
    for report in ("first table", "second table"):
        export.add_scores(folder, report)
    text = (folder / "README.md").read_text()
    assert "second table" in text and "first table" not in text and "Not evaluated" not in text
    assert text.count("## Training") == text.count("## Data") == 1
    assert ModelCard.load(folder / "README.md").data.tags == card.data.tags
    export.add_scores(tmp_path, "a policy without a card")
    assert not list(tmp_path.iterdir())


def test_a_card_names_a_profile_and_no_folder_of_this_machine(tiny, tmp_path):
    export.save(tiny, tmp_path, *TOLD)
    text = (tmp_path / "README.md").read_text()
    assert "rewards from `tiny`" in text and str(models.DATA) not in text


def test_a_hub_id_stands_in_the_card(adapter, tmp_path):
    _, policy = adapter
    config = policy.model.peft_config["default"]
    before, config.base_model_name_or_path = config.base_model_name_or_path, "Qwen/Qwen2.5-7B-Instruct"
    try:
        export.save(replace(policy, name="qlora-7b"), tmp_path, *TOLD)
    finally:
        config.base_model_name_or_path = before
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "Qwen/Qwen2.5-7B-Instruct"
    assert "from_pretrained('Qwen/Qwen2.5-7B-Instruct')" in (tmp_path / "README.md").read_text()
    AutoTokenizer.from_pretrained(tmp_path)


def test_rollouts_as_a_data_set(tiny, countdown, few_problems, parts, tmp_path):
    """It loads as any data set does, and goes on as the pre-sampling that it is."""
    datasets = pytest.importorskip("datasets")
    drawn = presampling.sample(
        tiny, countdown, few_problems, out=tmp_path / "drawn", problems_per_shard=20, progress=False
    )
    assert export.rollouts(tmp_path / "drawn", tmp_path / "shared") == len(drawn)
    table = datasets.load_dataset(str(tmp_path / "shared"), split="train", cache_dir=str(tmp_path)).to_pandas()
    assert table["completion"].tolist() == drawn["completion"].tolist()
    assert all(np.array_equal(a, b) for a, b in zip(table["logp"], drawn["logp"], strict=True))
    buckets = table.groupby("bucket")["problem_id"].unique()
    assert set(buckets["perfect"]) == set(parts.perfect) and set(buckets["unsolved"]) == set(parts.unsolved)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "D_pef" in card and str(tmp_path) not in card
    again = presampling.sample(
        tiny, countdown, few_problems, out=tmp_path / "shared", problems_per_shard=20, progress=False
    )
    assert presampling.partition(again).rehearsal["completion"].tolist() == parts.rehearsal["completion"].tolist()
    with pytest.raises(FileExistsError, match="new folder"):
        export.rollouts(tmp_path / "drawn", tmp_path / "shared")
