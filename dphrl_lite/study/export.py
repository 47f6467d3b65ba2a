"""What is handed on: a trained policy with its model card, a LoRA adapter merged into its base, rollouts as a data set.

A model card is README.md in the form of the Hugging Face hub. Weights and tokenizer are written by `models.Policy.save`,
the numbers in the card by `training`, `presampling` and `evaluation`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import DatasetCardData, ModelCard, ModelCardData

from dphrl_lite import presampling
from dphrl_lite.engine import checkpoint, shards
from dphrl_lite.engine.journal import read_log
from dphrl_lite.engine.loading import need, no_future_warnings
from dphrl_lite.models import Policy
from dphrl_lite.presampling import Partition

CARD = "README.md"
_SCORES = "## Pass@k\n\n"
_NO_SCORES = "Not evaluated yet: `dphrl evaluate --config RECIPE --policy THIS_FOLDER` writes its table here.\n"
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model, tokenizer = PeftModel.from_pretrained(base, FOLDER), AutoTokenizer.from_pretrained(FOLDER)"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)"""


def save(policy: Policy, folder: str | Path, training: Mapping[str, object], data: Mapping[str, object]):
    """Write a trained policy with its model card.

    Args:
        policy: as it came out of training.
        folder: made if it is missing.
        training: what decided the run: at least `method`, and whatever else should stand in the card.
        data: the same of the problems and of pre-sampling.
    """
    folder, base = Path(folder), base_of(policy)
    on_hub = base.count("/") == 1 and not Path(base).exists()
    policy.save(folder)
    about = ModelCardData(
        base_model=base if on_hub else None,  # the hub refuses a card that names a local folder
        library_name="peft" if policy.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["dph-rl", "reinforcement-learning", str(training["method"])],
    )
    text = f"""# {policy.name}, trained with {training["method"]}

Reinforcement learning with verifiable rewards from `{base if on_hub else policy.name}`, by dphrl-lite
(the method DPH-RL and the others that it is compared with: [arXiv 2509.07430](https://arxiv.org/abs/2509.07430)).

## Loading

```python
{(_ADAPTER if policy.adapter else _WHOLE).format(base=base)}
```

{_SCORES}{_NO_SCORES}
## Training

{_table(training)}

## Data

{_table(data)}
"""
    (folder / CARD).write_text(f"---\n{about.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def facts(folder: str | Path, presampled: str | Path, sources: Iterable[str], parts: Partition) -> tuple[dict, dict]:
    """What `save` is told of a run in `folder` and of its data: manifests, totals, the last step's metrics, the buckets."""
    run, drawn = checkpoint.read_manifest(folder), presampling.read_manifest(presampled)
    last = read_log(folder)[-1]
    training = {"method": run.pop("method"), "strength (eta or beta)": run.pop("strength"), "steps": last["step"]}
    training |= {"last step's reward": last["reward"], "last step's entropy, nats": last["entropy"]}
    training |= {key: run[key] for key in run if key not in ("kind", "f")}
    data = {"sources": ", ".join(sources), "digest of the problems": drawn.pop("problems")}
    data |= json.loads((Path(presampled) / shards.TOTALS).read_text())
    data |= {row["bucket"]: row["problems"] for row in parts.summary().to_dict("records")}
    data |= {"threshold of D_pef": parts.threshold, "completions in the rehearsal buffer": len(parts.rehearsal)}
    return training, data | {key: drawn[key] for key in drawn if key not in ("kind", "problem_count")}


_ROLLOUTS = """# Answers of `{model}` to {problems} problems, verified

{samples} answers to each, drawn once from the untouched model by dphrl-lite: what DPH-RL
([arXiv 2509.07430](https://arxiv.org/abs/2509.07430)) rehearses, and what tells which problems to explore. Drawing them is the
costly stage; with this data set it need not be done again. One row is one answer:

| column | |
|---|---|
| `problem_id`, `prompt`, `sample` | the problem, the text that the model saw, the number of the answer |
| `completion`, `token_ids` | the answer, as text and as the tokenizer's ids, with the end-of-sequence token if it was reached |
| `logp` | log-probability of each token under the model, full softmax at temperature 1, nats |
| `logp_sampling` | the same under the distribution that was drawn from, after temperature and top-p |
| `correct`, `reason`, `distinct` | the verdict, why, and a canonical form: answers that share it are one solution |
| `bucket` | of the problem: `perfect` (D_pef, at least {threshold} right), `exploration` (D_exp), `unsolved` |

The folder is one of `dphrl presample`, too: downloaded to `OUT/presampling` of the same recipe (same problems, model and
settings, all in `manifest.json`), `dphrl train --out OUT` goes on from it. Elsewhere: `datasets.load_dataset(FOLDER)`.

## How it was drawn

{table}
"""


def rollouts(presampled: str | Path, out: str | Path, threshold: int = 6) -> int:
    """Write the rollouts in the folder `presampled` as a data set in the form of the Hugging Face hub, ready to be uploaded.

    Its shards are those of `presampled` and a column `bucket` by `threshold`; card, manifest and totals lie beside them.

    Returns:
        How many answers.

    Raises:
        FileExistsError: `out` is there. FileNotFoundError: no pre-sampling, or shards are missing. ValueError: fewer samples than
        the threshold.
    """
    presampled, out = Path(presampled), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; name a new folder for the data set")
    table, manifest = presampling.load(presampled), presampling.read_manifest(presampled)
    parts = presampling.partition(table, threshold)
    bucket = {i: name for name in ("perfect", "exploration", "unsolved") for i in getattr(parts, name)}
    details = {key: x for key, x in manifest.items() if key != "kind"} | json.loads(
        (presampled / shards.TOTALS).read_text()
    )
    details |= {row["bucket"]: row["problems"] for row in parts.summary().to_dict("records")}
    about = DatasetCardData(
        task_categories=["text-generation"],
        tags=["dph-rl", "reinforcement-learning", "rollouts"],
        configs=[{"config_name": "default", "data_files": "shard-*.parquet"}],
    )
    shown = {"model": manifest["model"], "problems": manifest["problem_count"], "samples": manifest["samples"]}
    text = _ROLLOUTS.format(**shown, threshold=threshold, table=_table(details))

    def write(folder: Path):
        folder.mkdir()
        for path in sorted(presampled.glob("shard-*.parquet")):
            shard = pd.read_parquet(path)
            shard.assign(bucket=shard["problem_id"].map(bucket)).to_parquet(folder / path.name, index=False)
        for name in (checkpoint.MANIFEST, shards.TOTALS):
            (folder / name).write_bytes((presampled / name).read_bytes())
        (folder / CARD).write_text(f"---\n{about.to_yaml()}\n---\n\n{text}", encoding="utf-8")

    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(out, write)
    return len(table)


def base_of(policy: Policy) -> str:
    """The hub id or the folder of the model that the policy started from."""
    if policy.adapter:
        return policy.model.peft_config["default"].base_model_name_or_path
    return policy.model.name_or_path or policy.name


def _table(values: Mapping[str, object]) -> str:
    rows = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def add_scores(folder: str | Path, report: str):
    """Put an evaluation's report into the model card of a saved policy, in place of an earlier one."""
    path = Path(folder) / CARD
    before, heading, after = path.read_text(encoding="utf-8").partition(_SCORES) if path.is_file() else ("", "", "")
    if not heading:
        return  # a policy of another maker
    rest = after[after.index("## Training") :]
    text = f"{before}{_SCORES}{report.strip()}\n\n{rest}"
    checkpoint.write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def merge(adapter: str | Path, out: str | Path, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Write the model that an adapter and its base make together, unquantised, as a plain transformers folder; on the CPU.

    An adapter that was trained on 4-bit weights is merged into the unquantised ones. The base's rounding goes with it, so
    the merged model is not quite the one that was trained: evaluate it like any other folder.

    Args:
        adapter: a PEFT folder, such as `dphrl train` saves.
        out: a new folder.
        dtype: of the weights; None: as the base is stored.

    Returns:
        The merged model.

    Raises:
        FileExistsError: `out` is there. ValueError: no adapter, or its base exists in 4 bits only.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter, out = Path(adapter), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; name a new folder for the merged model")
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no adapter (no adapter_config.json); a model that is whole needs no export")
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    if getattr(model.config, "quantization_config", None):
        raise ValueError(
            f"{base} is stored in 4 bits, which cannot be merged: name its original in adapter_config.json"
        )
    with no_future_warnings():
        model = need("peft").PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)

    def write(folder: Path):
        """Model, tokenizer, and the adapter's card without its scores."""
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(folder)
        if (adapter / CARD).is_file():
            card = ModelCard.load(adapter / CARD)
            card.data.library_name = "transformers"
            card.text = card.text.replace(_ADAPTER.format(base=base), _WHOLE)
            card.text += f"\nMerged into its unquantised base, {model.dtype}.\n"
            card.save(folder / CARD)
            add_scores(folder, _NO_SCORES)  # those that stand there are the adapter's, perhaps on 4-bit weights

    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(out, write)
    return model
