"""Completions with their log-probs, drawn from a policy. Knows no task and no loss; `logprobs` scores given completions.

Log-probs come in two kinds. `logp` is the *training distribution*: the full softmax at the training temperature. It is
what u = pi_theta / pi_ref is made of. `logp_sampling` is the distribution that was drawn from, after temperature and
top-p. Where the two differ, sums over samples are biased estimates of expectations under pi_ref (method, section 3).
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dphrl_lite.engine.logprobs import TokenBatch, collate, pad, positions, token_logps

__all__ = ["Completion", "TokenBatch", "check_settings", "collate", "generate", "pad", "rows_at_once", "token_logps"]

CACHE_BYTES = 4 << 30  # of keys, values and logits while sampling; a constant, so that batches are the same everywhere
WASTE = 1 / 8  # share of finished rows from which on it is worth copying the others together


@dataclass(frozen=True)
class Completion:
    """One sampled answer: `token_ids` with the end-of-sequence token if it was reached, and two log-probs per token."""

    token_ids: list[int]
    logp: list[float]
    logp_sampling: list[float]


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

    Returns:
        For each prompt its list of `Completion`.

    Raises:
        ValueError: settings out of range.
        NotImplementedError: the model keeps a state that cannot be shared by completions (as linear attention does).
        FloatingPointError: the model's logits are not numbers, as after an update that was too large.
    """
    if getattr(policy, "sampler", None) is not None:
        how = {"temperature": temperature, "top_p": top_p, "training_temperature": training_temperature}
        return policy.sampler(policy, prompts, samples, seeds=seeds, max_new_tokens=max_new_tokens, **how)
    check_settings(samples, max_new_tokens, temperature, top_p, training_temperature)
    if len(seeds) != len(prompts):
        raise ValueError(f"generate needs one seed per prompt; got {len(seeds)} seeds for {len(prompts)} prompts")
    rows = max_rows or rows_at_once(policy.model, max(map(len, prompts), default=0) + max_new_tokens)
    drawer = _Drawer(temperature, top_p, training_temperature)
    found = [[] for _ in prompts]
    with _evaluating(policy.model):
        for chosen in _batches([len(p) for p in prompts], max(1, rows // samples)):
            uniforms = torch.stack([_uniforms(seeds[i], samples, max_new_tokens) for i in chosen])
            for some in uniforms.split(rows, 1):  # one part, unless a single group is too large
                drawn = _decode(policy, [prompts[i] for i in chosen], some, drawer)
                for i, group in zip(chosen, drawn, strict=True):
                    found[i] += group
    return found


def rows_at_once(model, tokens: int) -> int:
    """Completions of `tokens` tokens, prompt included, whose cache and logits fit into `CACHE_BYTES`; 1 to 1,024.

    A token's cache is layers x key-value heads x head size x 2 numbers (x 2 or 4 bytes); drawing takes 24 bytes per word
    of the vocabulary and row. The bound of 1,024 is for tiny models, whose batches should stay in the processor's cache.
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
    itemsize = next(p for p in model.parameters() if p.is_floating_point()).element_size()
    row = 2 * config.num_hidden_layers * numbers * itemsize * tokens + 24 * config.vocab_size
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


def _decode(policy, prompts, uniforms: Tensor, drawer: "_Drawer") -> list[list[Completion]]:
    """Completions driven by `uniforms` `[prompts, samples, length]`: prefill once, then one token of all rows a step.

    Which rows have ended is decided on the host: one look at the drawn tokens a step is the only wait for the device.
    """
    groups, samples, length = uniforms.shape
    rows, eos = _Rows(policy, prompts, samples, length), policy.eos_ids
    uniforms, drawn = uniforms.flatten(0, 1).to(rows.logits.device), []
    alive, lengths = np.arange(groups * samples), np.full(groups * samples, length)
    for step in range(length):
        tokens, *logps = drawer(rows.logits, uniforms[:, step : step + 1])
        drawn.append((alive, tokens, *logps))
        ended = [i for i, token in enumerate(tokens.squeeze(1).tolist()) if token in eos]
        if ended:  # those that ended before, and are still in the batch, too
            lengths[alive[ended]] = lengths[alive[ended]].clip(max=step + 1)
            going = lengths[alive] > step + 1
            if going.mean() <= 1 - WASTE and going.any():
                keep = torch.from_numpy(going.nonzero()[0]).to(tokens.device)
                rows.select(keep)
                alive, tokens, uniforms = alive[going], tokens[keep], uniforms[keep]
            elif not going.any():
                break
        if step + 1 < length:
            rows.append(tokens)
    return _gather(drawn, lengths, samples)


class _Rows:
    """The rows still being written: their cache, what of it is padding, and the logits of the next token `[rows, V]`."""

    def __init__(self, policy, prompts, samples: int, length: int):
        from dphrl_lite.engine.kv_cache import share  # transformers takes its time to load

        self.model, self.device = policy.model, policy.device
        attention = pad([[1] * len(p) for p in prompts], 0, left=True).to(policy.device)
        out = self.model(
            input_ids=pad(prompts, policy.pad_id, left=True).to(policy.device),
            attention_mask=attention,
            position_ids=positions(attention),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = getattr(out, "past_key_values", None)
        self.logits = self._drawable(out.logits).repeat_interleave(samples, 0)
        self.width = attention.shape[1]
        share(self.model, self.cache, samples, self.width + length)
        ragged = len({len(p) for p in prompts}) > 1
        self.attention = None  # where nothing is padded, attention without a mask is faster
        self.position = torch.tensor([[self.width]], device=policy.device)
        if ragged:
            ones = attention.new_ones(len(attention), length)
            self.attention = torch.cat([attention, ones], 1).repeat_interleave(samples, 0)
            self.position = attention.sum(-1, keepdim=True).repeat_interleave(samples, 0)

    def _drawable(self, logits: Tensor) -> Tensor:
        """The last position's, where they can be drawn from: Metal has no float64, so an Apple GPU hands them over."""
        return logits[:, -1].cpu() if self.device.type == "mps" else logits[:, -1]

    def select(self, keep: Tensor):
        """Only keep these rows."""
        keep = keep.to(self.device)
        self.cache.batch_select_indices(keep)
        if self.attention is not None:
            self.attention, self.position = self.attention[keep], self.position[keep]

    def append(self, tokens: Tensor):
        """Read one more token in every row, `[rows, 1]`."""
        self.width += 1
        out = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=None if self.attention is None else self.attention[:, : self.width],
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = self._drawable(out.logits)
        self.position = self.position + 1


def _gather(drawn: list, lengths: np.ndarray, samples: int) -> list[list[Completion]]:
    """One `Completion` per row from the steps (rows, tokens, logp, logp_sampling), each cut to its length."""
    rows = np.concatenate([alive for alive, *_ in drawn])
    steps = np.repeat(np.arange(len(drawn)), [len(alive) for alive, *_ in drawn])
    order = np.lexsort((steps, rows))
    order = order[(steps < lengths[rows])[order]]
    values = [torch.cat(column).squeeze(1).cpu().numpy()[order] for column in list(zip(*drawn, strict=True))[1:]]
    if np.isnan(values[1]).any():
        raise FloatingPointError(
            "the model's logits are not numbers, so no token can be drawn: its weights have overflowed. Go back to an "
            "earlier checkpoint and lower learning_rate or strength"
        )
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
        tokens = tokens.clamp_(max=logits.shape[-1] - 1)  # where all is NaN; `_gather` finds it
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
