"""The f-divergences of DPH-RL: generators, exact values, the training loss, and the registry.

One convention throughout: p is the *policy*, q the *reference*, u = p/q, and D_f(p || q) = E_q[f(u)], in nats. The same
object draws the curves of notebook 01 and is the loss of the 7B run. Nothing here knows of language models.

Every generator is canonical, f(1) = f'(1) = 0, so every term is >= 0, and is written in d = log u, because log-probs are
what a language model gives. Arithmetic is float64 inside whatever comes in, so that values and gradients are right
(relative 1e-5 in float32) for |d| <= 80; near d = 0 a series takes over where the formula would cancel.

Source: arXiv 2509.07430, section 3, for the use of f(u) on stored reference samples; the generators are textbook.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dphrl_lite.errors import unknown

MAX_LOG_U = 80.0  # `loss` continues f by its tangent beyond; there is no bound on the negative side
_SERIES_BELOW = 1e-4
_NORMALISED_WITHIN = 1e-3


def _wide(x: Tensor) -> Tensor:
    """`x` in float64, differentiably; on the CPU where the device has no float64 (Apple's)."""
    return x.to("cpu", torch.float64) if x.device.type == "mps" else x.to(torch.float64)


def _expm1(d: Tensor) -> Tensor:
    """u - 1, exact near u = 1 and with an exact gradient for tiny u, where torch.expm1's (result + 1) cancels to zero."""
    return torch.where(d < -1, torch.exp(d.clamp(max=-1)) - 1, torch.expm1(d.clamp(min=-1)))


def _near_zero(d: Tensor, direct: Tensor, square: float, cube: float) -> Tensor:
    """`direct`, but square * d^2 + cube * d^3 where |d| is so small that `direct` has cancelled."""
    x = d.clamp(-1, 1)
    return torch.where(d.abs() < _SERIES_BELOW, (square + cube * x) * x * x, direct)


def _forward_kl(d: Tensor) -> Tensor:
    return _near_zero(d, _expm1(d) - d, 1 / 2, 1 / 6)


def _reverse_kl(d: Tensor) -> Tensor:
    return _near_zero(d, d * torch.exp(d) - _expm1(d), 1 / 2, 1 / 3)


def _js(d: Tensor) -> Tensor:
    zero, log2 = torch.zeros_like(d), math.log(2)
    log_mean = torch.logaddexp(d, zero) - log2  # log((u + 1)/2)
    return _near_zero(d, -torch.exp(d) * (torch.logaddexp(-d, zero) - log2) - log_mean, 1 / 4, 1 / 8)


def _alpha(d: Tensor, alpha: float) -> Tensor:
    a, b = alpha, 1 - alpha
    if a == 0:
        return _reverse_kl(d)
    if b == 0:
        return _forward_kl(d)
    # Two spellings of (u^b - b u - a) / (a (a - 1)): one stays exact as a -> 0, the other as a -> 1.
    if a < 0.5:
        direct = (torch.exp(b * d) * _expm1(a * d) / a - _expm1(d)) / b
    else:
        direct = (_expm1(d) - _expm1(b * d) / b) / a
    return _near_zero(d, direct, 1 / 2, (2 - a) / 6)


@dataclass(frozen=True)
class Divergence:
    """One f-divergence D_f(policy || reference).

    Args:
        name: what `get`, the widgets, `METHODS` ("dph-<name>") and the command line call it.
        f: elementwise torch function of log u (float64 tensors, any shape) giving f(u); convex in u with f = 0 at u = 1.
            A multiple of (u - 1) is subtracted to make it canonical, f'(1) = 0, which changes no divergence.
        f_zero: f(0), the canonical generator's limit as u -> 0 (`math.inf` allowed); measured if not given.
        slope_inf: f'(inf), the limit of f(u)/u as u -> inf; measured if not given.
        label: how figures and tables write it.
        bend: log u beyond which `.f` continues by its tangent in log u, for an f that leaves float32 (`exact` does not bend).

    After construction `.f(log_u)` is the canonical generator: any float dtype and shape, same dtype and shape out.
    """

    name: str
    f: Callable[[Tensor], Tensor] = field(repr=False)
    f_zero: float | None = None
    slope_inf: float | None = None
    label: str = ""
    bend: float = math.inf

    def __post_init__(self):
        raw = self.f
        tilt = _slope(raw, 0.0)  # f'(1); zero for a generator that is canonical already
        canonical = raw if abs(tilt) < 1e-12 else lambda d: raw(d) - tilt * _expm1(d)
        f_zero, slope_inf = self.f_zero, self.slope_inf
        f_zero = _limit(canonical, -1) if f_zero is None else f_zero
        slope_inf = _limit(lambda d: canonical(d) * torch.exp(-d), +1) if slope_inf is None else slope_inf
        bent = canonical if self.bend == math.inf else partial(_with_tangent, canonical, self.bend)
        values = {"f_zero": float(f_zero), "slope_inf": float(slope_inf), "label": self.label or self.name}
        values |= {"f": partial(_evaluate, bent, float(f_zero)), "_canonical": canonical}
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    @property
    def curvature(self) -> float:
        """f''(1): how hard small deviations are held. Infinite for a kink, as total variation has; 0 where f is flat."""
        fine, coarse = (self.f(torch.tensor([-h, h], dtype=torch.float64)).sum().item() / h**2 for h in (1e-3, 1e-2))
        if fine > 5 * coarse:
            return math.inf
        return fine if fine > coarse / 5 else 0.0

    def force(self, log_u: Tensor) -> Tensor:
        """The restoring force u f'(u) = df/dlog u, elementwise: the pull on a token's log-prob. Same shape and dtype."""
        d = torch.as_tensor(log_u).detach().clone()
        d = (d if d.is_floating_point() else d.to(torch.get_default_dtype())).requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.f(d).sum(), d)[0]

    def exact(self, p, q) -> Tensor:
        """D_f(p || q) = sum_i q_i f(p_i / q_i), in nats.

        Args:
            p: policy probabilities `[..., N]`, the last dimension is the support (tensor or array; differentiable in p).
            q: reference probabilities, broadcastable with p.

        Returns:
            Tensor `[...]`. Where q_i = 0 < p_i a term is p_i f'(inf); where p_i = 0 < q_i it is q_i f(0); 0/0 gives 0.

        Raises:
            ValueError: negative or not normalised probabilities, or supports of different size.
        """
        p, q = _probabilities(p, "p"), _probabilities(q, "q")
        if p.shape[-1] != q.shape[-1]:
            raise ValueError(f"p and q must share their support (last dimension): got {p.shape[-1]} and {q.shape[-1]}")
        dtype = torch.promote_types(p.dtype, q.dtype)
        p, q = torch.broadcast_tensors(_wide(p), _wide(q))
        both, only_p, only_q = (p > 0) & (q > 0), (p > 0) & (q == 0), (p == 0) & (q > 0)
        log_u = torch.where(both, p, 1.0).log() - torch.where(both, q, 1.0).log()
        terms = torch.where(both, q * self._canonical(log_u), 0.0)
        terms = torch.where(only_p, torch.where(only_p, p, 1.0) * self.slope_inf, terms)
        terms = torch.where(only_q, torch.where(only_q, q, 1.0) * self.f_zero, terms)
        return terms.sum(-1).to(dtype)

    def loss(self, logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        """Mean of f(u) over the masked tokens of *reference* samples: the DPH-RL penalty L_pef.

        Args:
            logp: log-probs of the tokens under the policy `[B, T]`, differentiable.
            logp_ref: the same tokens' log-probs under the reference, stored when they were sampled `[B, T]`.
            mask: 1 or True where a token counts `[B, T]`; what stands elsewhere is never looked at.

        Returns:
            Scalar, in nats per token. log u above `MAX_LOG_U` continues by the tangent; `bounded_share` says how much.

        Raises:
            ValueError: different shapes, or a mask that selects nothing.
        """
        logp = torch.as_tensor(logp)
        log_u = masked_log_ratio(logp, logp_ref, mask)
        values = _with_tangent(self.f, MAX_LOG_U, log_u)
        return values.mean().to(device=logp.device, dtype=logp.dtype)


def masked_log_ratio(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """log u = logp - logp_ref of the tokens that `mask` selects, as one float64 vector. Raises `ValueError` as `loss`."""
    logp, logp_ref = masked(logp, logp_ref, mask)
    return logp - logp_ref


def masked(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both log-probs of the tokens that `mask` selects, as float64 vectors. Raises `ValueError` as `loss`."""
    logp, logp_ref, mask = (torch.as_tensor(x) for x in (logp, logp_ref, mask))
    if not logp.shape == logp_ref.shape == mask.shape:
        shapes = f"{tuple(logp.shape)}, {tuple(logp_ref.shape)}, {tuple(mask.shape)}"
        raise ValueError(f"logp, logp_ref and mask must have one shape [B, T]; got {shapes}")
    chosen = mask.bool()
    if not chosen.any():
        raise ValueError(
            "the mask selects no token, so there is nothing to average; pass at least one completion token"
        )
    return _wide(logp[chosen]), _wide(logp_ref[chosen])


def bounded_share(log_u: Tensor) -> float:
    """Share of tokens whose log u lies above `MAX_LOG_U`, where `loss` follows the tangent instead of f."""
    return (log_u > MAX_LOG_U).double().mean().item()


def _with_tangent(f: Callable, edge: float, d: Tensor) -> Tensor:
    """f(d), continued beyond `edge` by its tangent there."""
    at = torch.full((), edge, dtype=torch.float64, device=d.device).requires_grad_()
    with torch.enable_grad():
        value = f(at)
    (slope,) = torch.autograd.grad(value, at)
    beyond = d > edge
    return torch.where(beyond, value.detach() + slope * (d - edge), f(torch.where(beyond, edge, d)))


def _evaluate(canonical: Callable, f_zero: float, log_u: Tensor) -> Tensor:
    """The canonical generator in float64 and back; log u = -inf (a probability of exactly zero) gives f(0), +inf gives inf."""
    log_u = torch.as_tensor(log_u)
    if not log_u.is_floating_point():
        log_u = log_u.to(torch.get_default_dtype())
    d = _wide(log_u)
    infinite = torch.isinf(d)
    limits = torch.where(d < 0, torch.full_like(d, f_zero), torch.inf)
    values = torch.where(infinite, limits, canonical(torch.where(infinite, 0.0, d)))
    return values.to(device=log_u.device, dtype=log_u.dtype)


def _slope(f: Callable, at: float) -> float:
    d = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    try:
        value = f(d)
        f(torch.zeros(3, dtype=torch.float64, requires_grad=True))
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"f must be an elementwise torch function of log u, such as lambda d: -d; it fails: {error}"
        ) from error
    if not (isinstance(value, Tensor) and value.requires_grad):
        raise ValueError("f must be a differentiable torch function of log u; got a value without gradient at u = 1")
    return torch.autograd.grad(value, d)[0].item()


def _limit(f: Callable, sign: int) -> float:
    """The limit of f as log u goes to sign * inf: infinite if it still grows between |log u| = 175 and 350."""
    near, far = f(torch.tensor([sign * 175.0, sign * 350.0], dtype=torch.float64)).tolist()
    return far if math.isfinite(far) and far - near < 1e-3 * max(1.0, abs(near)) else math.inf


def _probabilities(x, name: str) -> Tensor:
    x = torch.as_tensor(x)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    total = x.detach().sum(-1)
    if (x < 0).any() or not ((total - 1).abs() < _NORMALISED_WITHIN).all():
        raise ValueError(
            f"{name} must hold probabilities: non-negative, summing to 1 over the last dimension; got minimum "
            f"{x.min().item():.3g} and sums from {total.min().item():.4g} to {total.max().item():.4g}. Normalise it first"
        )
    return x


def _make_alpha(alpha: float = 0.5) -> Divergence:
    if not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
        raise ValueError(f"alpha must lie in [0, 1] (0: reverse KL, 1: forward KL); got {alpha!r}")
    return Divergence(
        f"alpha({alpha:g})",
        partial(_alpha, alpha=alpha),
        f_zero=1 / (1 - alpha) if alpha < 1 else math.inf,
        slope_inf=1 / alpha if alpha > 0 else math.inf,
        label=f"α = {alpha:g}",
    )


_REGISTRY: dict[str, Divergence] = {
    d.name: d
    for d in (
        Divergence("forward_kl", _forward_kl, math.inf, 1.0, "forward KL"),
        Divergence("reverse_kl", _reverse_kl, 1.0, math.inf, "reverse KL"),
        Divergence("js", _js, math.log(2), math.log(2), "Jensen-Shannon"),
        Divergence("hellinger", lambda d: _expm1(d / 2) ** 2, 1.0, 1.0, "squared Hellinger"),
        Divergence("total_variation", lambda d: _expm1(d).abs() / 2, 0.5, 0.5, "total variation"),
        Divergence("pearson_chi2", lambda d: _expm1(d) ** 2, 1.0, math.inf, "Pearson χ²", bend=40.0),
        Divergence("neyman_chi2", lambda d: 4 * torch.sinh(d / 2) ** 2, math.inf, 1.0, "Neyman χ²"),
        Divergence("jeffreys", lambda d: d * _expm1(d), math.inf, math.inf, "Jeffreys"),
    )
}


def names() -> list[str]:
    """Every registered name, "alpha" included, in the order of registration."""
    return [*list(_REGISTRY)[:3], "alpha", *list(_REGISTRY)[3:]]


def get(name: str, alpha: float | None = None) -> Divergence:
    """The divergence called `name`; `alpha` in [0, 1] is for "alpha" only (default 0.5). Unknown names list the valid ones."""
    if name == "alpha":
        return _make_alpha(0.5 if alpha is None else alpha)
    if name not in _REGISTRY:
        raise unknown("divergence", name, names())
    if alpha is not None:
        raise ValueError(f"only the divergence 'alpha' takes a value of alpha; got alpha={alpha} for {name!r}")
    return _REGISTRY[name]


def register(divergence: Divergence) -> Divergence:
    """Make a divergence usable by name everywhere: in the widgets, and in `METHODS` as "dph-<name>".

    Returns the divergence. Registering a name again replaces it, so that a notebook cell can be run twice; the built-in
    names are kept.

    Raises:
        ValueError: f(u = 1) is not 0, f is not convex in u, not finite or 0 everywhere, or the name is taken or no name.
    """
    if not (isinstance(divergence.name, str) and divergence.name.isidentifier()):
        raise ValueError(f"a divergence needs a name of letters, digits and _, such as 'mine'; got {divergence.name!r}")
    if divergence.name in _BUILT_IN | {"f"}:
        raise ValueError(f"{divergence.name!r} is a built-in divergence or method; give yours another name")
    u = torch.logspace(-4, 2, 481, dtype=torch.float64)
    f = divergence.f(u.log())
    if not torch.isfinite(f).all():
        raise ValueError(
            f"f of {divergence.name!r} is not finite for u = {u[~torch.isfinite(f)][0]:.3g}; expected finite"
        )
    at_one = divergence.f(torch.zeros((), dtype=torch.float64)).item()
    if abs(at_one) > 1e-6:
        raise ValueError(
            f"f of {divergence.name!r} must be 0 at u = 1 (log u = 0); got {at_one:.6g}. Subtract it from f"
        )
    if f.abs().max() < 1e-9:
        raise ValueError(f"f of {divergence.name!r} is 0 everywhere (up to a multiple of u - 1), so it holds nothing")
    _check_far(divergence)
    _REGISTRY[divergence.name] = divergence
    return divergence


def _check_far(divergence: Divergence):
    """Raise `ValueError` unless, for log u from -60 to 40, f is elementwise, of one dtype, finite, and its slope in u rises."""
    log_u = torch.linspace(-60, 40, 2001, dtype=torch.float64)
    f, name = divergence.f(log_u), divergence.name
    if f.shape != log_u.shape or not torch.allclose(divergence.f(log_u[700:900]), f[700:900], rtol=1e-9):
        raise ValueError(f"f of {name!r} is not elementwise: f of a tensor must hold f of each of its numbers")
    if divergence.f(log_u.float()).dtype != torch.float32:
        raise ValueError(f"f of {name!r} gives another dtype than it is given; compute with the tensor, without NumPy")
    if not torch.isfinite(f).all():
        raise ValueError(
            f"f of {name!r} is not finite at log u = {log_u[~torch.isfinite(f)][0]:g}; expected finite from -60 to 40"
        )
    slopes = divergence.force(log_u) / log_u.exp()
    rounding = 1e-13 * (1 + f.abs()) / log_u.exp()  # what float64 leaves of a slope in u where u is small
    falls = slopes.diff() < -(1e-6 * slopes.abs().clamp(min=1e-3) + rounding)[1:]
    if not torch.isfinite(slopes).all() or falls.any():
        at = log_u[1:][falls | ~torch.isfinite(slopes[1:])][:1].exp().tolist()
        raise ValueError(
            f"f of {name!r} is not convex in u: its slope falls near u = {at[0] if at else 0:.3g}. Use a convex f"
        )


_BUILT_IN = frozenset(names())
