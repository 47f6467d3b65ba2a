"""Log-probs and entropy of given completions, in bounded memory, and the padded batches they are computed on. Draws
nothing and knows no loss; `sampling` draws.

Where all logits of a batch fit into `LOGITS_BYTES` they are computed at once. Otherwise the model's own output head (tied,
in 4 bits, with LoRA: whatever module it is) works on a few positions at a time, and again in the backward pass, so that
`[B, C, V]` is never held. What some models do to logits after the head is known for `_after_head`'s settings and checked
against the model's own last logits each time; where it is not known, all logits are computed, with a warning.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dphrl_lite.engine import sharding
from dphrl_lite.engine.adapters import scaled

KNOWN = "final_logit_softcapping, logits_scaling or logit_scale"
LOGITS_BYTES = 128 << 20  # of float32 logits computed at once


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


def positions(attention_mask: Tensor) -> Tensor:
    """The place of each token in its sequence, `[B, T]`, padding on the left not counted."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def check_numbers(logp: Tensor, model):
    """Raise `FloatingPointError` for log-probs of a model that are not numbers, with its name and what to do."""
    if not logp.isnan().any():
        return
    if getattr(model, "dtype", None) == torch.float16:
        raise FloatingPointError(
            f"{getattr(model.config, '_name_or_path', '') or 'this model'} overflows in float16, whose numbers end at 65,504: "
            "its logits are not numbers. Load it with dtype=torch.float32, take another model, or a GPU with bfloat16"
        )
    raise FloatingPointError(
        "the model's logits are not numbers, so no token can be drawn: its weights have overflowed. Go back to an "
        "earlier checkpoint and lower learning_rate or strength"
    )


def token_logps(model, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens, and the entropy of the distribution they were drawn from.

    Returns:
        logp and entropy `[B, C]` in nats, both differentiable and both meaningless where `batch.mask` is False. Only the
        logits of completion positions are ever computed.
    """
    inner = getattr(model, "module", model)  # of what wraps a model for several devices
    logp, entropy = _token_logps(model, inner, batch, temperature)
    if getattr(inner, "dtype", None) == torch.float16:
        check_numbers(logp[batch.mask], inner)
    return logp, entropy


def _token_logps(model, inner, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
    config = getattr(inner, "config", None)
    vocabulary = config.get_text_config().vocab_size if config else 0
    at_once = LOGITS_BYTES // (4 * max(1, vocabulary))
    if batch.mask.numel() > at_once:
        result = _in_chunks(model, inner, batch, temperature, max(1, at_once))
        if result is not None:
            return result
        if sharding.asked():
            raise NotImplementedError(
                f"models of type {config.model_type!r} treat their logits in a way not known here, and would leave the other "
                f"processes waiting; expected none, {KNOWN}. Launch with --multi_gpu instead of FSDP"
            )
        warnings.warn(
            f"models of type {config.model_type!r} treat their logits in a way not known here, so all are held at once; "
            f"expected none, {KNOWN}. Use smaller micro-batches",
            stacklevel=2,
        )
    logits = _forward(model, batch).logits[:, -batch.mask.shape[1] - 1 : -1]
    return _logp_and_entropy(logits, batch.input_ids[:, -batch.mask.shape[1] :], temperature, _scale(inner))


def _forward(model, batch: TokenBatch):
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        position_ids=positions(batch.attention_mask),
        use_cache=False,
        logits_to_keep=batch.mask.shape[1] + 1,
    )


def _scale(model) -> float:
    return getattr(model, "gradient_scale", 1.0)


def _logp_and_entropy(logits: Tensor, tokens: Tensor, temperature: float, scale: float) -> tuple[Tensor, Tensor]:
    """Of `tokens` `[...]` under `logits` `[..., V]`; in float32, or float64 where the model computes in it."""
    logits = scaled(logits.to(torch.promote_types(logits.dtype, torch.float32)), scale)
    log_probs = torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
    logp = log_probs.gather(-1, tokens[..., None]).squeeze(-1)
    return logp, _Entropy.apply(log_probs)


class _Entropy(torch.autograd.Function):
    """-sum p log p of `log_probs` `[..., V]`. Autograd would keep two more tensors of that shape for the backward pass, also
    where nobody asks for the gradient; this keeps `log_probs`, which is there anyway."""

    @staticmethod
    def forward(ctx, log_probs: Tensor) -> Tensor:
        ctx.save_for_backward(log_probs)
        return -log_probs.exp().mul_(log_probs).sum(-1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (log_probs,) = ctx.saved_tensors
        p = log_probs.exp()
        return p.addcmul_(p, log_probs).mul_(-gradient[..., None])  # -p (log p + 1), in one tensor


def _in_chunks(model, inner, batch: TokenBatch, temperature: float, at_once: int) -> tuple[Tensor, Tensor] | None:
    """The same, `at_once` completion tokens at a time; None where logits are not what the output head gives."""
    head, after = inner.get_output_embeddings(), _after_head(inner.config.get_text_config())
    if head is None:
        return None
    seen = _Seen()
    hooks = head.register_forward_pre_hook(seen.before), head.register_forward_hook(seen.behind)
    try:
        logits = _forward(model, batch).logits
    finally:
        for hook in hooks:
            hook.remove()
    if seen.logits is None or not _same(after(seen.logits.to(logits.dtype)), logits):
        return None

    def piece(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _logp_and_entropy(after(head(hidden)), tokens, temperature, _scale(inner))

    length = batch.mask.shape[1]
    hidden = seen.hidden[:, -length - 1 : -1][batch.mask].split(at_once)
    tokens = batch.input_ids[:, -length:][batch.mask].split(at_once)
    pieces = [checkpoint(piece, h, t, use_reentrant=False) for h, t in zip(hidden, tokens, strict=True)]
    logp, entropy = (torch.cat(x) for x in zip(*pieces, strict=True))
    return tuple(x.new_zeros(batch.mask.shape).masked_scatter(batch.mask, x) for x in (logp, entropy))


def _same(logits: Tensor, expected: Tensor) -> bool:
    """Bit by bit; a last position that is padding may see nothing at all and be NaN in both."""
    return torch.allclose(logits, expected, rtol=0, atol=0, equal_nan=True)


@dataclass
class _Seen:
    """Hooks around the output head: keep all it is given, let through the last position only, keep what it gives."""

    hidden: Tensor | None = None
    logits: Tensor | None = None

    def before(self, _head, inputs: tuple) -> tuple:
        self.hidden = inputs[0]
        return (inputs[0][:, -1:], *inputs[1:])

    def behind(self, _head, _inputs, logits: Tensor):
        self.logits = logits


def _after_head(config) -> Callable[[Tensor], Tensor]:
    """What this model's forward does to logits after its output head, from the settings that transformers' models have."""
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)  # Cohere, Granite
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    if factor is not None:
        return lambda logits: logits * factor
    return (lambda logits: logits / divisor) if divisor is not None else (lambda logits: logits)
