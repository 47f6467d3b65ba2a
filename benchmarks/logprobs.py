"""Log-probs of completions on a vocabulary of 152,064: the kit's chunks against all logits at once.

    python benchmarks/logprobs.py [--rows 1 2 4 8] [--runs 3] [--out benchmarks/results/logprobs.json]

`plain` is the textbook: `log_softmax(model(...).logits)`, `gather`, and the entropy from the same log-probs without
gradient. Both give log-probs and entropy, then go backward from the mean log-prob. Completions of 1,024 tokens, a prompt of
16, a Llama of width 128 with 2 layers, float32. Each way runs in its own fresh process: peak memory is the largest resident
size above that before the first forward (on a GPU: `torch.cuda.max_memory_allocated` above the model), seconds are the
median of the runs after a first one. A way that needs more memory than is free is not run, and said so. Goal: at most a
quarter of plain's peak at 8 rows. The last lines are a vocabulary of 111, where chunks must cost nothing.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

from dphrl_lite.engine import logprobs

LARGE, TINY, LENGTH = 152_064, 111, 1024
SMALL_BATCH = (512, 12)  # rows and completion tokens of a training step of the tiny model


def plain(model, batch, temperature=1.0):
    length = batch.mask.shape[1]
    mask = batch.attention_mask.long()
    kept = {"logits_to_keep": length + 1, "position_ids": logprobs.positions(mask)}
    logits = model(input_ids=batch.input_ids, attention_mask=mask, **kept).logits[:, :-1]
    log_probs = torch.log_softmax(logits.float() / temperature, -1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, batch.input_ids[:, -length:, None]).squeeze(-1), entropy


WAYS = {"plain": plain, "chunks": logprobs.token_logps}


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(way: str, rows: int, length: int, vocabulary: int, runs: int) -> dict:
    """In this process: seconds of each run but the first, and the peak above what was there before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=vocabulary, **sizes, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).to(device)
    ids = torch.randint(vocabulary, (rows, 16 + length))
    batch = logprobs.collate(ids[:, :16].tolist(), ids[:, 16:].tolist(), 0, device)
    before, seconds = peak_bytes(), []
    for _ in range(runs + 1):
        model.zero_grad()
        start = time.perf_counter()
        logp, _entropy = WAYS[way](model, batch)
        logp.mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "peak_mb": (peak_bytes() - before) / 1e6, "logp": logp.mean().item()}


def free_bytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        import psutil
    except ImportError:
        return float("inf")
    return psutil.virtual_memory().available


def in_own_process(*case) -> dict:
    command = [sys.executable, __file__, "--measure", *map(str, case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(rows: int, length: int, vocabulary: int, runs: int) -> dict:
    result = {"rows": rows, "tokens": rows * length, "vocabulary": vocabulary}
    for way in WAYS:
        needed = 4.1 * 4 * rows * length * vocabulary if way == "plain" else 0
        result[way] = in_own_process(way, rows, length, vocabulary, runs) if needed < free_bytes() else None
    return result


def line(result: dict) -> str:
    cells = []
    for way in WAYS:
        found = result[way]
        fits = found and f"{found['peak_mb']:8.0f} MB {statistics.median(found['seconds']):8.3f} s"
        cells.append(fits or f"{'more memory than free':>22s}")
    ratio = "" if None in (result["plain"], result["chunks"]) else f"{ratios(result)[0]:8.3f} {ratios(result)[1]:8.2f}"
    return f"{result['vocabulary']:10d} {result['tokens']:8d} {cells[0]} {cells[1]} {ratio}"


def ratios(result: dict) -> tuple[float, float]:
    """Chunks over plain: peak memory and seconds."""
    mine, other = result["chunks"], result["plain"]
    return mine["peak_mb"] / other["peak_mb"], statistics.median(mine["seconds"]) / statistics.median(other["seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "logprobs.json"))
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], *map(int, arguments.measure[1:]))))
        return
    print(
        f"{'vocabulary':>10s} {'tokens':>8s} {'all logits at once':>22s} {'chunks':>22s} {'memory':>8s} {'seconds':>8s}"
    )
    results = []
    cases = [(rows, LENGTH, LARGE, arguments.runs) for rows in arguments.rows]
    for case in [*cases, (*SMALL_BATCH, TINY, 5 * arguments.runs)]:
        results.append(compare(*case))
        print(line(results[-1]), flush=True)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    about |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "threads": 1}
    Path(arguments.out).write_text(
        json.dumps({**about, "chunk_bytes": logprobs.LOGITS_BYTES, "results": results}, indent=1)
    )


if __name__ == "__main__":
    main()
