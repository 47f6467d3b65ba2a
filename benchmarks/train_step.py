"""Seconds and peak memory of one optimizer step, by method, and beside TRL's GRPOTrainer. Goal: dph-js within 1.10x of grpo.

    python benchmarks/train_step.py [--rounds 3] [--steps 5] [--cases NAME ...] [--out benchmarks/results/train_step.json]

The same Llama of 14M parameters with random weights, the same prompts, 8 problems x 8 completions of at most 24 tokens a step,
one update, forwards of 16 completions, float32, one CPU thread. Each method runs in a fresh process, which holds nothing that the
method does not need; rounds of all methods alternate. A step is sampling, judging and updating; the first is warm-up.
Rehearsal is an eighth of the completions, as the release has at least (256 to 2,048), or a quarter.

"MB more" is the highest memory of the process less what it held with libraries and model loaded: gradients, optimizer,
activations, a reference. What is right is decided by a checksum, so that all methods get a signal. TRL is skipped where it is
not installed (`pip install trl==1.16.0`).
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

PROBLEMS, SAMPLES, LONGEST, ROWS, PROMPT = 8, 8, 24, 16, 7
CASES = {
    "grpo": {"method": "grpo"},
    "rkl": {"method": "rkl"},
    "dph-f": {"method": "dph-f"},
    "dph-js": {"method": "dph-js"},
    "dph-js, gradient norms off": {"method": "dph-js", "gradient_parts": False},
    "dph-js, a quarter rehearsed": {"method": "dph-js", "rehearsal_per_step": PROBLEMS * SAMPLES // 4},
    "dph-js-definition": {"method": "dph-js-definition"},
    "TRL, no beta": {"beta": 0.0},
    "TRL, beta": {"beta": 0.04},
    "TRL, dph-js": {"method": "dph-js"},
}


def right(completion: str) -> bool:
    return zlib.crc32(completion.encode()) % 2 == 0


def prepare(folder: Path):
    """The model, and what it answers: written once, read by every method."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from dphrl_lite import models, presampling
    from dphrl_lite.tasks.countdown import problems

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(models.PROFILES["tiny"].source)
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    policy = models.load(folder / "model", device="cpu", dtype=torch.float32)
    chosen = problems("cd4", 256, seed=0)
    table = presampling.sample(policy, checksum_task(), chosen, 8, max_new_tokens=LONGEST, progress=False)
    table.to_pickle(folder / "rollouts.pkl")


def checksum_task():
    from dphrl_lite.tasks import Task, Verdict

    class Checksum(Task):
        name = "checksum"

        def check(self, problem, completion):
            return Verdict(right(completion), completion, "by checksum")

    return Checksum()


def rss() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def ours(folder: Path, steps: int, method: str, **settings) -> dict:
    import pandas as pd
    import torch

    from dphrl_lite import models, presampling, training
    from dphrl_lite.tasks.countdown import problems

    parts = presampling.partition(pd.read_pickle(folder / "rollouts.pkl"))
    policy = models.load(folder / "model", device="cpu", dtype=torch.float32)
    held = rss()
    batch = {"problems_per_step": PROBLEMS, "samples": SAMPLES, "minibatches": 1, "max_new_tokens": LONGEST}
    batch |= {"rehearsal_per_step": PROBLEMS * SAMPLES // 8, "microbatch_tokens": ROWS * (PROMPT + LONGEST)}
    arguments = {"steps": steps + 1, "progress": False, "in_place": True} | batch | settings
    log = training.train(policy, checksum_task(), problems("cd4", 256, seed=0), parts, method, **arguments).log.iloc[1:]
    return {
        "seconds": log["seconds"].tolist(),
        "sampled": log["tokens"].tolist(),
        "trained": log["tokens_trained"].tolist(),
        "reference_forwards": int(log["reference_forwards"].iloc[0]),
        "mb": log["peak_memory_gb"].iloc[-1] * 1e3 - held,
    }


def trl(folder: Path, steps: int, beta: float = 0.0, method: str | None = None) -> dict:
    import torch

    from dphrl_lite.metrics import peak_memory_gb

    sampled = []

    def reward(completion_ids, completions, **_):
        sampled.append(sum(map(len, completion_ids)))
        return [float(right(c)) for c in completions]

    trainer, clock = trl_trainer(folder, steps, beta, method, reward)
    held = rss()
    trainer.train()
    tokens, rehearsed = sampled[1:], getattr(trainer, "rehearsed", 0) / (steps + 1)
    return {
        "seconds": clock.seconds[1:],
        "sampled": tokens,
        "trained": [count + rehearsed for count in tokens],
        "reference_forwards": PROBLEMS * SAMPLES if beta else 0,
        "mb": peak_memory_gb(torch.device("cpu")) * 1e3 - held,
    }


def trl_trainer(folder: Path, steps: int, beta: float, method: str | None, reward) -> tuple:
    """TRL's trainer, or with a method the kit's layer over it, and the callback that times its steps."""
    import pandas as pd
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from dphrl_lite import presampling
    from dphrl_lite.tasks.countdown import problems

    clock, chosen = step_clock(), problems("cd4", 256, seed=0)
    about = {"processing_class": AutoTokenizer.from_pretrained(folder / "model"), "callbacks": [clock]}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    settings = dict(  # noqa: C408
        output_dir=str(folder / f"trl-{method}-{beta}"), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        max_steps=steps + 1, per_device_train_batch_size=ROWS, gradient_accumulation_steps=PROBLEMS * SAMPLES // ROWS,
        num_generations=SAMPLES, max_completion_length=LONGEST, temperature=1.0, learning_rate=1e-4, optim="adamw_torch",
        gradient_checkpointing=False, disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    if not method:
        data = Dataset.from_list([{"prompt": p.prompt} for p in chosen])
        return GRPOTrainer(model, reward, GRPOConfig(beta=beta, **settings), data, **about), clock
    from dphrl_lite.large.trl import DPHConfig, DPHTrainer

    config = DPHConfig(method=method, rehearsal_batch_size=PROBLEMS * SAMPLES // 8, reward_weights=[1, 0], **settings)
    parts = presampling.partition(pd.read_pickle(folder / "rollouts.pkl"))
    return DPHTrainer(model, checksum_task(), chosen, parts, config, reward_funcs=reward, **about), clock


def step_clock():
    """A callback with the seconds of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds = []

        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.started)

    return Clock()


def child(*arguments: str):
    """Run this script in a fresh process, one thread; what it printed last."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def summary(name: str, runs: list[dict]) -> dict:
    seconds, sampled, trained = ([x for run in runs for x in run[key]] for key in ("seconds", "sampled", "trained"))
    median, tokens = statistics.median(seconds), statistics.mean(trained)
    return {
        "method": name,
        "median_s": median,
        "slowest_s": max(seconds),
        "sampled_tokens": statistics.mean(sampled),
        "trained_tokens": tokens,
        "ms_per_trained_token": 1e3 * median / tokens,
        "mb_more": statistics.median(run["mb"] for run in runs),
        "reference_forwards": runs[0]["reference_forwards"],
        "runs": [run["seconds"] for run in runs],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="which rows (all)")
    parser.add_argument("--out")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        case, folder = arguments.child[0], Path(arguments.child[1])
        if case == "prepare":
            return prepare(folder)
        run = trl if case.startswith("TRL") else ours
        return print(json.dumps(run(folder, arguments.steps, **CASES[case])))
    cases = arguments.cases
    if importlib.util.find_spec("trl") is None:
        cases = [name for name in cases if not name.startswith("TRL")]
        print("TRL is not installed and left out: pip install trl==1.16.0")
    runs: dict[str, list[dict]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        child("--child", "prepare", folder)
        for _ in range(arguments.rounds):
            for name in cases:
                runs[name].append(json.loads(child("--steps", str(arguments.steps), "--child", name, folder)))
                print(f"{name}: {statistics.median(runs[name][-1]['seconds']):.3f} s", file=sys.stderr)
    rows = [summary(name, runs[name]) for name in cases]
    print(
        f"{PROBLEMS} x {SAMPLES} completions a step, 14M parameters, one thread, median of {arguments.rounds} x {arguments.steps}"
    )
    heads = ("s/step", "of grpo", "sampled", "trained", "ms/token", "MB more", "ref.")
    print(f"{'method':28s} " + " ".join(f"{head:>8s}" for head in heads))
    for row in rows:
        numbers = f"{row['median_s']:8.3f} {row['median_s'] / rows[0]['median_s']:8.2f} {row['sampled_tokens']:8.0f} "
        numbers += f"{row['trained_tokens']:8.0f} {row['ms_per_trained_token']:8.3f} {row['mb_more']:8.0f}"
        print(f"{row['method']:28s} {numbers} {row['reference_forwards']:8d}")
    if arguments.out:
        about = {
            "problems": PROBLEMS,
            "samples": SAMPLES,
            "longest": LONGEST,
            "threads": 1,
            "machine": platform.machine(),
        }
        Path(arguments.out).write_text(json.dumps(about | {"results": rows}, indent=1))


if __name__ == "__main__":
    main()
