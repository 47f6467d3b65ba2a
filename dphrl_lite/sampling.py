"""Completions with their log-probs, drawn from a policy. Knows no task and no loss; `logprobs` scores given completions.

Log-probs come in two kinds. `logp` is the *training distribution*: the full softmax at the training temperature. It is
what u = pi_theta / pi_ref is made of. `logp_sampling` is the distribution that was drawn from, after temperature and
top-p. Where the two differ, sums over samples are biased estimates of expectations under pi_ref (method, section 3).
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dphrl_lite.engine.logprobs import TokenBatch, check_numbers, collate, pad, token_logps

__all__ = ["Completion", "TokenBatch", "check_settings", "collate", "generate", "pad", "rows_at_once", "token_logps"]

CACHE_BYTES = 4 << 30  # of keys, values and logits while sampling; a constant, so that batches are the same everywhere


@dataclass(frozen=True)
class Completion:
    """One sampled answer: `token_ids` with the end-of-sequence token if it was reached, and two log-probs per token."""

    token_ids: list[int]
    logp: list[float]
    logp_sampling: list[float]


def check_context(policy, prompt_tokens: int, max_new_tokens: int):
    """Raise `ValueError` where the longest prompt and the new tokens are more positions than the model was made for."""
    config = getattr(policy.model, "config", None)
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and prompt_tokens + max_new_tokens > context > 0:
        raise ValueError(
            f"{prompt_tokens} tokens of the longest prompt and {max_new_tokens} new ones are {prompt_tokens + max_new_tokens}, "
            f"more than the {context} positions of {policy.name!r}: lower max_new_tokens or leave out long prompts. A model "
            "with rotary positions computes beyond, at a loss of quality: ask for it by raising "
            "policy.model.config.max_position_embeddings"
        )


@torch.no_grad()
def generate(
    policy,
    prompts: Sequence[Sequence[int]],
    samples: int,
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    training_temperature: float = 1.0,
    max_rows: int | None = None,
    captured: bool | None = None,
) -> list[list[Completion]]:
    """Draw `samples` completions to each prompt; one ends at any of `policy.eos_ids`, which is its last token.

    Each prompt is read once and its cache shared by its completions; finished rows leave the batch. Randomness belongs
    to a prompt (`seeds[i]`), so what is drawn does not depend on the batch it is drawn in, up to rounding of the logits.

    Args:
        policy: a `models.Policy`, whose `sampler` draws if it has one. Dropout is off while sampling; the model comes back in
            the mode it was in.
        prompts: token ids of each prompt.
        samples: completions per prompt.
        seeds: one integer per prompt.
        max_new_tokens: a completion is cut after that many tokens.
        temperature: of the sampling distribution; 0 means greedy.
        top_p: nucleus sampling, 1 for none.
        training_temperature: of the distribution whose log-probs are stored as `logp`.
        max_rows: completions computed at once. None: as many as `CACHE_BYTES` hold, at most 1,024 (see `rows_at_once`).
        captured: decode over fixed buffers, captured as CUDA graphs (`engine.graphs`); None: on a GPU, where the model can.
            The draws are the same either way, up to rounding of the logits.

    Returns:
        For each prompt its list of `Completion`.

    Raises:
        ValueError: settings out of range, or prompts and new tokens that are more than the model's context.
        NotImplementedError: the model keeps a state that cannot be shared by completions (as linear attention does), or
            cannot be captured though asked to.
        FloatingPointError: the model's logits are not numbers, as after an update that was too large.
    """
    if getattr(policy, "sampler", None) is not None:
        how = {"temperature": temperature, "top_p": top_p, "training_temperature": training_temperature}
        return policy.sampler(policy, prompts, samples, seeds=seeds, max_new_tokens=max_new_tokens, **how)
    from dphrl_lite.engine import decoding, graphs  # transformers takes its time to load

    check_settings(samples, max_new_tokens, temperature, top_p, training_temperature)
    if len(seeds) != len(prompts):
        raise ValueError(f"generate needs one seed per prompt; got {len(seeds)} seeds for {len(prompts)} prompts")
    check_context(policy, max(map(len, prompts), default=0), max_new_tokens)
    rows = max_rows or rows_at_once(policy.model, max(map(len, prompts), default=0) + max_new_tokens)
    drawer = _Drawer(temperature, top_p, training_temperature)
    start = partial(decoding.start, policy, captured=captured)
    completions = [[] for _ in prompts]
    with _evaluating(policy.model), graphs.tidied(policy.model):
        for chosen in _batches([len(p) for p in prompts], max(1, rows // samples)):
            uniforms = torch.stack([_uniforms(seeds[i], samples, max_new_tokens) for i in chosen])
            for some in uniforms.split(rows, 1):  # one part, unless a single group is too large
                drawn = _decode(policy, start, [prompts[i] for i in chosen], some, drawer)
                for i, group in zip(chosen, drawn, strict=True):
                    completions[i] += group
    return completions


def rows_at_once(model, tokens: int, device: torch.device | None = None) -> int:
    """Completions of `tokens` tokens, prompt included, whose cache and logits fit into `CACHE_BYTES`; 1 to 1,024.

    A token's cache is layers x key-value heads x head size x 2 numbers (x 2 or 4 bytes); drawing takes 24 bytes per word
    of the vocabulary and row. On a GPU (`device`; None: the model's) rows are a little longer and logits lie once more in the
    buffers of `engine.graphs`. The bound of 1,024 is for tiny models, whose batches should stay in the processor's cache.
    """
    if getattr(model, "config", None) is None:
        return 1024  # nothing to reckon with
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    try:
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        numbers = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    except RuntimeError:  # transformers' word for settings that differ between layers
        numbers = config.hidden_size
    weight = next(p for p in model.parameters() if p.is_floating_point())
    itemsize = weight.element_size()
    words = 24
    if (device or weight.device).type == "cuda":
        from dphrl_lite.engine.graphs import room_for

        tokens, words = room_for(tokens), 28 + itemsize
    row = 2 * config.num_hidden_layers * numbers * itemsize * tokens + words * config.vocab_size
    return min(1024, max(1, CACHE_BYTES // row))


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions of prompts in batches of `size`, those of like length together, so that little is padded."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


@contextmanager
def _evaluating(model):
    """The model in evaluation mode; each module comes back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_settings(
    samples: int, max_new_tokens: int, temperature: float, top_p: float, training_temperature: float = 1.0
):
    """Raise `ValueError` for sampling settings out of range, before anything is computed or written."""
    possible = temperature >= 0 and training_temperature > 0 and 0 < top_p <= 1
    if samples < 1 or max_new_tokens < 1 or not possible:
        raise ValueError(
            "sampling needs samples >= 1, max_new_tokens >= 1, temperature >= 0, training_temperature > 0 and "
            f"0 < top_p <= 1; got {samples=}, {max_new_tokens=}, {temperature=}, {training_temperature=}, {top_p=}"
        )


def _uniforms(seed: int, samples: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, length, generator=generator, dtype=torch.float64)


def _decode(policy, start: Callable, prompts, uniforms: Tensor, drawer: "_Drawer") -> list[list[Completion]]:
    """Completions driven by `uniforms` `[prompts, samples, length]`: prefill once, then one token of all rows a step.

    Which rows have ended is decided on the host: one look at the drawn tokens a step is the only wait for the device.
    """
    groups, samples, length = uniforms.shape
    rows, eos = start(prompts, samples, length), policy.eos_ids
    uniforms, drawn = uniforms.flatten(0, 1).to(rows.logits.device), []
    alive, lengths = np.arange(groups * samples), np.full(groups * samples, length)
    for step in range(length):
        tokens, *logps = drawer(rows.logits, uniforms[:, step : step + 1])
        drawn.append((alive, tokens, *logps))
        ended = [i for i, token in enumerate(tokens.squeeze(1).tolist()) if token in eos]
        if ended:  # those that ended before, and are still in the batch, too
            lengths[alive[ended]] = lengths[alive[ended]].clip(max=step + 1)
            going = lengths[alive] > step + 1
            if going.any() and rows.shrinks(int(going.sum())):
                keep = torch.from_numpy(going.nonzero()[0]).to(tokens.device)
                rows.select(keep)
                alive, tokens, uniforms = alive[going], tokens[keep], uniforms[keep]
            elif not going.any():
                break
        if step + 1 < length:
            rows.append(tokens)
    check_numbers(torch.cat([logp for *_, logp, _ in drawn]), policy.model)
    return _gather(drawn, lengths, samples)


def _gather(drawn: list, lengths: np.ndarray, samples: int) -> list[list[Completion]]:
    """One `Completion` per row from the steps (rows, tokens, logp, logp_sampling), each cut to its length."""
    rows = np.concatenate([alive for alive, *_ in drawn])
    steps = np.repeat(np.arange(len(drawn)), [len(alive) for alive, *_ in drawn])
    order = np.lexsort((steps, rows))
    order = order[(steps < lengths[rows])[order]]
    values = [torch.cat(column).squeeze(1).cpu().numpy()[order] for column in list(zip(*drawn, strict=True))[1:]]
    ends = lengths.cumsum().tolist()
    values = [x.tolist() for x in values]
    found = [Completion(*(x[a:b] for x in values)) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return [found[i : i + samples] for i in range(0, len(found), samples)]


@dataclass(frozen=True)
class _Drawer:
    """Draws one token per row by inverting the distribution function at given uniform numbers; all shapes `[rows, 1]`."""

    temperature: float
    top_p: float
    training_temperature: float

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.float()
        log_probs = log_sampling = _log_softmax(logits, self.training_temperature)
        if self.temperature == 0:
            tokens = logits.argmax(-1, keepdim=True)
            return tokens, log_probs.gather(-1, tokens), torch.zeros_like(uniform, dtype=torch.float32)
        if self.temperature != self.training_temperature:
            log_sampling = _log_softmax(logits, self.temperature)
        if self.top_p < 1:
            log_sampling = _nucleus(log_sampling, self.top_p)
        cumulative = log_sampling.double().exp_().cumsum(-1)
        tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # where all is NaN, as `_decode` finds
        logp = log_probs.gather(-1, tokens)
        return tokens, logp, logp if log_sampling is log_probs else log_sampling.gather(-1, tokens)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def _nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches `top_p`, renormalised."""
    ordered, index = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return torch.log_softmax(log_probs.masked_fill(dropped, -torch.inf), -1)
