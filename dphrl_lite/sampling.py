"""Completions with their log-probs, and the log-probs of given completions. Knows no task and no loss.

Log-probs come in two kinds. `logp` is the *training distribution*: the full softmax at the training temperature. It is
what u = pi_theta / pi_ref is made of. `logp_sampling` is the distribution that was drawn from, after temperature and
top-p. Where the two differ, sums over samples are biased estimates of expectations under pi_ref (method, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Completion:
    """One sampled answer: `token_ids` with the end-of-sequence token if it was reached, and two log-probs per token."""

    token_ids: list[int]
    logp: list[float]
    logp_sampling: list[float]


@dataclass(frozen=True)
class TokenBatch:
    """Prompts padded on the left, completions on the right, so that completions start in one column.

    Shapes: `input_ids`, `attention_mask` `[B, P + C]`; `mask` `[B, C]`, True on completion tokens, by position (so eos
    counts once even where the padding token is eos).
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)


def pad(rows: Sequence[Sequence], fill, left: bool = False, length: int | None = None) -> Tensor:
    """Ragged rows as one tensor `[B, length]`, filled up on the right, or on the left if `left`."""
    length = max(map(len, rows)) if length is None else length
    padded = [[fill] * (length - len(r)) + list(r) if left else list(r) + [fill] * (length - len(r)) for r in rows]
    return torch.tensor(padded)


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device="cpu"):
    """A `TokenBatch` of prompts and completions (lists of token ids, the same number of each, no completion empty)."""
    if len(prompts) != len(completions) or not all(len(c) > 0 for c in completions):
        raise ValueError(
            f"need one non-empty completion per prompt; got {len(prompts)} prompts, {len(completions)} completions"
        )
    prompt_mask = pad([[True] * len(p) for p in prompts], False, left=True)
    mask = pad([[True] * len(c) for c in completions], False)
    ids = torch.cat([pad(prompts, pad_id, left=True), pad(completions, pad_id)], 1)
    return TokenBatch(ids.to(device), torch.cat([prompt_mask, mask], 1).to(device), mask.to(device))


def token_logps(model, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens, and the entropy of the distribution they were drawn from.

    Returns:
        logp `[B, C]` in nats, differentiable, and entropy `[B, C]` in nats, without gradient. Both are meaningless where
        `batch.mask` is False. Only the logits of completion positions are ever computed.
    """
    length = batch.mask.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        position_ids=_positions(batch.attention_mask),
        logits_to_keep=length + 1,
    ).logits[:, :-1]
    log_probs = torch.log_softmax(logits.float() / temperature, -1)
    logp = log_probs.gather(-1, batch.input_ids[:, -length:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return logp, entropy


def _positions(attention_mask: Tensor) -> Tensor:
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


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
    max_rows: int = 1024,
) -> list[list[Completion]]:
    """Draw `samples` completions to each prompt.

    Each prompt is read once and its cache shared by its completions; finished rows leave the batch. Randomness belongs
    to a prompt (`seeds[i]`), so what is drawn does not depend on the batch it is drawn in, up to rounding of the logits.

    Args:
        policy: a `models.Policy`.
        prompts: token ids of each prompt.
        samples: completions per prompt.
        seeds: one integer per prompt.
        max_new_tokens: a completion is cut after that many tokens.
        temperature: of the sampling distribution; 0 means greedy.
        top_p: nucleus sampling, 1 for none.
        training_temperature: of the distribution whose log-probs are stored as `logp`.
        max_rows: completions computed at once.

    Returns:
        For each prompt its list of `Completion`.

    Raises:
        ValueError: settings out of range.
        FloatingPointError: the model's logits are not numbers, as after an update that was too large.
    """
    check_settings(samples, max_new_tokens, temperature, top_p, training_temperature)
    if len(seeds) != len(prompts):
        raise ValueError(f"generate needs one seed per prompt; got {len(seeds)} seeds for {len(prompts)} prompts")
    policy.model.eval()
    at_once = max(1, max_rows // samples)
    found = []
    for start in range(0, len(prompts), at_once):
        chunk = slice(start, start + at_once)
        uniforms = torch.stack([_uniforms(seed, samples, max_new_tokens) for seed in seeds[chunk]])
        drawer = _Drawer(temperature, top_p, training_temperature)
        found += _decode(policy, prompts[chunk], uniforms.flatten(0, 1), samples, drawer)
    return found


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


def _decode(policy, prompts, uniforms: Tensor, samples: int, drawer: "_Drawer") -> list[list[Completion]]:
    model, device, eos = policy.model, policy.device, policy.tokenizer.eos_token_id
    attention = pad([[1] * len(p) for p in prompts], 0, left=True).to(device)
    ids = pad(prompts, policy.pad_id, left=True).to(device)
    out = model(
        input_ids=ids, attention_mask=attention, position_ids=_positions(attention), use_cache=True, logits_to_keep=1
    )
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(samples, 0)
    cache.batch_repeat_interleave(samples)
    attention = attention.repeat_interleave(samples, 0)
    uniforms, alive = uniforms.to(device), torch.arange(len(logits), device=device)
    steps = []  # per step: which rows, and what was drawn
    for step in range(uniforms.shape[1]):
        tokens, logp, logp_sampling = drawer(logits, uniforms[alive, step])
        steps.append((alive, tokens, logp, logp_sampling))
        going = (tokens != eos).nonzero().squeeze(-1)
        if step + 1 == uniforms.shape[1] or len(going) == 0:
            break
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, tokens, attention = alive[going], tokens[going], attention[going]
        attention = torch.cat([attention, attention.new_ones(len(alive), 1)], 1)
        position = attention.sum(-1, keepdim=True) - 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    completions = _gather(steps, len(prompts) * samples)
    return [completions[i : i + samples] for i in range(0, len(completions), samples)]


def _gather(steps: list, rows: int) -> list[Completion]:
    completions = [Completion([], [], []) for _ in range(rows)]
    for alive, *drawn in steps:
        for row, token, logp, logp_sampling in zip(alive.tolist(), *(x.tolist() for x in drawn), strict=True):
            completions[row].token_ids.append(token)
            completions[row].logp.append(logp)
            completions[row].logp_sampling.append(logp_sampling)
    return completions


@dataclass(frozen=True)
class _Drawer:
    """Draws one token per row by inverting the distribution function at given uniform numbers."""

    temperature: float
    top_p: float
    training_temperature: float

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.float()
        log_probs = torch.log_softmax(logits / self.training_temperature, -1)
        if log_probs[:, 0].isnan().any():
            raise FloatingPointError(
                "the model's logits are not numbers, so no token can be drawn: its weights have overflowed. Go back to an "
                "earlier checkpoint and lower learning_rate or strength"
            )
        if self.temperature == 0:
            tokens = logits.argmax(-1)
            return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1), torch.zeros_like(uniform).float()
        log_sampling = log_probs
        if self.temperature != self.training_temperature:
            log_sampling = torch.log_softmax(logits / self.temperature, -1)
        if self.top_p < 1:
            log_sampling = _nucleus(log_sampling, self.top_p)
        cumulative = log_sampling.double().exp().cumsum(-1)
        tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        drawn = [x.gather(-1, tokens).squeeze(-1) for x in (log_probs, log_sampling)]
        return tokens.squeeze(-1), *drawn


def _nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose probability reaches `top_p`, renormalised."""
    ordered, index = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return torch.log_softmax(log_probs.masked_fill(dropped, -torch.inf), -1)
