"""Group advantages, the clipped loss, the penalties, and `METHODS`: which method uses which. Tensors in, tensors out.

Source: arXiv 2509.07430 and its release for DPH-RL; GRPO arXiv 2402.03300; DAPO arXiv 2503.14476. Knows no tokenizer
and no model.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dphrl_lite import divergences
from dphrl_lite.errors import unknown
from dphrl_lite.passk import pass_at_k


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Penalties: "rehearsal_f" is f(u) and "rehearsal_ce" plain -log u (cross-entropy) on stored reference samples of
    D_pef; "reference_k2" and "reference_k3" act on fresh policy samples and need the reference's log-probs online, as does
    "reward_k1", which is no part of the loss but of the advantages (`k1_advantages`). "entropy" is minus the entropy at the
    fresh tokens. "js_definition" needs stored samples and fresh policy samples of the same D_pef prompts.
    """

    name: str
    on_policy: Literal["all", "exploration"]
    summary: str
    clip_low: float = 0.2
    clip_high: float = 0.28
    penalty: Literal[
        "none", "rehearsal_f", "rehearsal_ce", "reference_k2", "reference_k3", "reward_k1", "entropy", "js_definition"
    ] = "none"
    divergence: str | None = None
    strength: float | None = 0.0  # its own eta or beta; DPH: equal curvature, eta f''(1) = 1, None where there is none
    dynamic_sampling: bool = False  # draw on until every group has both right and wrong answers

    @property
    def rehearses(self) -> bool:
        """Whether stored samples of D_pef enter the loss."""
        return self.penalty.startswith("rehearsal") or self.mirrors

    @property
    def needs_reference(self) -> bool:
        """Whether the reference model must be evaluated while training."""
        return self.penalty.startswith(("reference", "reward")) or self.mirrors

    @property
    def mirrors(self) -> bool:
        """Whether the policy answers D_pef's prompts, too, to be compared with the stored answers."""
        return self.penalty == "js_definition"

    def strength_of(self, given: float | None) -> float:
        """The eta or beta of a run: as `given`, or the method's own. Raises `ValueError` where there is neither."""
        if given is None and self.strength is None:
            raise ValueError(
                f"{self.name!r} has no default strength: equal curvature needs 1 / f''(1), and that of its f is 0 or infinite "
                "(a flat place or a kink at u = 1); set `strength` yourself"
            )
        return self.strength if given is None else float(given)


_FIXED = {
    m.name: m
    for m in (
        Method("grpo", "all", "GRPO without any penalty", clip_high=0.2),
        Method("grpo-exp", "exploration", "control: GRPO on D_exp only, no rehearsal"),
        Method("dapo", "all", "clip-higher and dynamic sampling, no penalty", dynamic_sampling=True),
        Method("rkl", "all", "true reverse KL (k2) on policy samples", penalty="reference_k2", strength=0.15),
        Method("rkl-k3", "all", "k3 on policy samples, as GRPO code has it", penalty="reference_k3", strength=0.15),
        Method("sft", "exploration", "control: cross-entropy on the rehearsal", penalty="rehearsal_ce", strength=1.0),
        Method(
            "dph-js-definition",
            "exploration",
            "Jensen-Shannon by its definition, on stored reference and fresh policy samples of D_pef",
            penalty="js_definition",
            strength=4.0,  # its value is half the generator's, so its curvature is 1/4
        ),
        # controls that are not in the paper; each is otherwise as `rkl` or as `grpo`
        Method(
            "rkl-k1-reward", "all", "reverse KL as k1 in the reward, as PPO has it", penalty="reward_k1", strength=0.15
        ),
        Method(  # .01 is PPO's for Atari (arXiv 1707.06347, table 5); verl had .001 as its default, and has 0 now
            "grpo-entropy", "all", "GRPO with an entropy bonus", clip_high=0.2, penalty="entropy", strength=0.01
        ),
        Method("rkl-exp", "exploration", "control: `rkl` on D_exp only", penalty="reference_k2", strength=0.15),
    )
}
BUILT_IN = frozenset(_FIXED)
_SHORT = {"dph-f": "forward_kl", "dph-js": "js", "dph-alpha": "alpha"}


class _Methods(Mapping):
    """Fixed methods, the three DPH methods of the paper, and "dph-<name>" for every registered divergence."""

    def __getitem__(self, name: str) -> Method:
        if name in _FIXED:
            return _FIXED[name]
        divergence = _SHORT.get(name) or (name[4:] if isinstance(name, str) and name.startswith("dph-") else None)
        if divergence not in divergences.names():
            raise unknown("method", name, list(self))
        curvature = divergences.get(divergence).curvature
        strength = float(f"{1 / curvature:.3g}") if 0 < curvature < math.inf else None
        label = "alpha" if divergence == "alpha" else divergences.get(divergence).label
        summary = f"rehearsal of D_pef with f(u), {label}"
        settings = {"penalty": "rehearsal_f", "divergence": divergence, "strength": strength}
        return Method(name, "exploration", summary, **settings)

    def __iter__(self) -> Iterator[str]:
        own = (f"dph-{name}" for name in divergences.names() if name not in _SHORT.values())
        return iter([*_FIXED, *_SHORT, *own])

    def __len__(self) -> int:
        return len(list(iter(self)))


METHODS: Mapping[str, Method] = _Methods()


def register(method: Method) -> Method:
    """Make a method, a new combination of the parts, usable by name: in `METHODS`, `train`, the widgets, recipes.

    Returns the method. Registering a name again replaces it, so that a notebook cell can be run twice.

    Raises:
        ValueError: a name of the kit's, or one that begins with "dph-", which names a registered divergence.
    """
    if method.name in BUILT_IN or method.name.startswith("dph-"):
        taken = "is built in" if method.name in METHODS else "would name a divergence: see divergences.register"
        raise ValueError(f"the method name {method.name!r} {taken}; give yours another name")
    _FIXED[method.name] = method
    return method


def group_advantages(rewards: Tensor) -> Tensor:
    """A = (r - group mean) / (group std + 1e-6), std with ddof 1.

    Args:
        rewards: `[problems, samples]`, each row the rewards of one problem's completions.

    Returns:
        `[problems, samples]`; exactly zero for a group whose rewards are all equal.

    Raises:
        ValueError: fewer than two samples per problem, which have no spread.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [problems, samples] with at least 2 samples; got {tuple(rewards.shape)}")
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    first = rewards[:, :1]  # the mean is taken from there, so that equal rewards centre to exactly zero
    centred = rewards - first - (rewards - first).mean(1, keepdim=True)
    return centred / (rewards.std(1, correction=1, keepdim=True) + 1e-6)


def shared_rewards(rewards: Tensor, forms: Sequence[Sequence[str | None]]) -> Tensor:
    """Rewards in which equal right answers of a group share one reward: each has 1/n, n the group's answers of its form.

    A right answer that the policy writes often then counts no more in all than one that it writes once. Before the group's
    normalisation the expected gradient is the sum of grad log p over the right forms, each times the chance that it is drawn at
    all; with plain rewards it is that of p, in which a form counts as often as it comes. Not in the paper; it is fitness
    sharing (Goldberg and Richardson 1987) with the verifier's canonical form as the niche.

    Args:
        rewards: `[problems, samples]`.
        forms: the canonical form of each completion, rows as in `rewards`: what `Verdict.distinct` says of it. Those without
            one (None), such as wrong ones, share nothing.

    Returns:
        `[problems, samples]`, the reward of each form's completions added up as much as one of them had.

    Raises:
        ValueError: `forms` of another shape.
    """
    if [len(row) for row in forms] != [rewards.shape[1]] * rewards.shape[0]:
        raise ValueError(
            f"forms must name one form for each reward; got rewards {tuple(rewards.shape)} and rows of "
            f"{[len(row) for row in forms][:5]} forms"
        )
    counts = [[Counter(row)[form] if form is not None else 1 for form in row] for row in forms]
    return rewards / torch.tensor(counts).to(rewards).view_as(rewards)


def pass_at_k_advantages(rewards: Tensor, k: int) -> Tensor:
    """The advantage of a completion where it is rewarded for Pass@k (Chen et al. 2025, arXiv 2508.10751, analytic form).

    The k-subsets of a group are what is rewarded: with 1 if any of the k is right. Of G completions c are right, so the
    mean over all subsets is R = 1 - C(G-c, k)/C(G, k) and their standard deviation sqrt(R (1 - R)). A completion's
    advantage is the mean of (reward - R) / deviation over the subsets that hold it: (1 - R) / deviation for a right one,
    (1 - C(G-c-1, k-1)/C(G-1, k-1) - R) / deviation for a wrong one. They add up to 0, and the
    fewer are right, the more a right one counts.

    Args:
        rewards: `[problems, samples]`, 1 for right and 0 for wrong.
        k: 1 ... samples. 1 is `group_advantages`, whose deviation is the sample's (ddof 1) and not, as here, that of all.

    Returns:
        `[problems, samples]`; exactly zero where all subsets have the same reward: none right, or fewer than k wrong.

    Raises:
        ValueError: another k, rewards other than 0 and 1, or fewer than two samples per problem.
    """
    if rewards.ndim != 2 or not 1 <= k <= rewards.shape[1] or not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError(
            f"Pass@k advantages need rewards 0 or 1 of [problems, samples] and k from 1 to samples; got k = {k} and rewards "
            f"{rewards.unique()[:5].tolist()} of shape {tuple(rewards.shape)}"
        )
    if k == 1:
        return group_advantages(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    right, samples = rewards.bool().cpu().numpy(), rewards.shape[1]
    c = right.sum(1, keepdims=True)
    mean = pass_at_k(samples, c, k)
    others = pass_at_k(samples - 1, np.minimum(c, samples - 1), k - 1)  # with a wrong one, its k - 1 others decide
    deviation = np.sqrt(mean * (1 - mean))
    advantages = (np.where(right, 1, others) - mean) / np.where(deviation > 0, deviation, np.inf)
    return torch.from_numpy(advantages).to(rewards)


@dataclass(frozen=True)
class ClippedLoss:
    """The on-policy loss (scalar, differentiable) and the shares of tokens whose gradient the clip removed."""

    loss: Tensor
    clipped_low: float
    clipped_high: float


def clipped_loss(
    logp: Tensor,
    logp_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    low: float,
    high: float,
    dual: float | None = None,
) -> ClippedLoss:
    """L_exp = - mean over all completion tokens of min(rho A, clip(rho, 1 - low, 1 + high) A), rho = exp(logp - logp_old).

    Args:
        logp, logp_old: log-probs under the policy and under the policy that sampled `[B, T]`.
        advantages: one per completion `[B]`, or one per token `[B, T]`.
        mask: completion tokens `[B, T]`.
        low, high: how far rho may move.
        dual: c of the dual clip (Ye et al. 2020, arXiv 1912.09729), above 1 + high: where A < 0 the minimum is not below c A, so
            that a token whose rho has grown beyond c has no gradient. None: no such bound, as in PPO and GRPO.
    """
    chosen = mask.bool()
    if not chosen.any():
        raise ValueError("the mask selects no token; pass at least one completion token")
    rho = torch.exp(logp[chosen] - logp_old[chosen])
    a = (advantages[:, None] if advantages.ndim == 1 else advantages).expand_as(mask)[chosen]
    gain = torch.minimum(rho * a, rho.clamp(1 - low, 1 + high) * a)
    if dual is not None:
        gain = torch.where(a < 0, torch.maximum(gain, dual * a), gain)
    loss = -gain.mean()
    cut_low, cut_high = (rho < 1 - low) & (a < 0), (rho > 1 + high) & (a > 0)
    return ClippedLoss(loss, cut_low.float().mean().item(), cut_high.float().mean().item())


# ---- penalties: the loss of each token from its log-probs `logp` (differentiable) and `logp_ref`, of one shape, in nats -----


def cross_entropy(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """-log u, on reference samples: behaviour cloning, whose mean is plain forward KL."""
    return logp_ref - logp


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """(log u)^2 / 2, on policy samples: as a loss it has the reverse KL's gradient."""
    return (logp - logp_ref) ** 2 / 2


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """1/u - 1 + log u, on policy samples: its value is the reverse KL's, its gradient as a loss the forward KL's."""
    log_u = logp - logp_ref
    return torch.expm1(-log_u) + log_u


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """log u, on policy samples: a value without gradient, as that of its mean is zero in expectation. What holds the policy
    is the same k1 in the reward, `k1_advantages`."""
    return (logp - logp_ref).detach()


def half_kl_to_mean(logp: Tensor, other: Tensor) -> Tensor:
    """log(p/m)/2 on samples of p, m = (p + other)/2: their part of the Jensen-Shannon divergence (half of the generator's)."""
    log_ratio = other - logp
    return (math.log(2) - torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))) / 2


def js_on_reference(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """KL(pi_ref, m)/2 on reference samples: a value without gradient, because its gradient and that of m under the policy
    samples cancel (method, section 3)."""
    return half_kl_to_mean(logp_ref, logp).detach()


def js_on_policy(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """KL(pi_theta, m)/2 on policy samples, with the gradient of the whole divergence: log(pi_theta/m)/2 x grad log pi_theta."""
    return half_kl_to_mean(logp, logp_ref).detach() * (1 + (logp - logp.detach()))


_OF_PENALTY = {"rehearsal_ce": cross_entropy, "reference_k2": k2, "reference_k3": k3, "reward_k1": k1}


def token_mean(loss: Callable, logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """Mean of one of these losses over the masked tokens; shapes, unit and errors as `Divergence.loss`."""
    return loss(*divergences.masked(logp, logp_ref, mask)).mean().to(logp.dtype)


def rehearsal_loss(method: Method, logp: Tensor, logp_ref: Tensor, mask: Tensor, alpha: float | None = None) -> Tensor:
    """L_pef of a method that rehearses, on stored reference samples: token mean of f(u); of -log u for `sft`; for
    `dph-js-definition` the value of its half (`js_on_reference`). Shapes as `Divergence.loss`.
    """
    if method.penalty == "rehearsal_f":
        return rehearsal_divergence(method, alpha).loss(logp, logp_ref, mask)
    return token_mean(js_on_reference if method.mirrors else _OF_PENALTY[method.penalty], logp, logp_ref, mask)


def rehearsal_divergence(method: Method, alpha: float | None = None) -> divergences.Divergence:
    """The divergence of a DPH method; `alpha` counts for `dph-alpha` alone."""
    return divergences.get(method.divergence, alpha=alpha if method.divergence == "alpha" else None)


def reference_penalty(method: Method, logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """Token mean of the penalty on fresh policy samples `[B, T]`: k2, k3, k1, or KL(pi_theta, m)/2 for `dph-js-definition`.

    As a loss, k2 has the reverse KL's gradient, k3 the forward KL's and the last one the Jensen-Shannon divergence's: per
    token, at the prefixes the policy visits, and only while the policy is the one that sampled. k1 has none here.
    """
    return token_mean(js_on_policy if method.mirrors else _OF_PENALTY[method.penalty], logp, logp_ref, mask)


def k1_advantages(advantages: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Advantages with the reverse KL in the reward: at each token A - beta * (sum of log u from this token on).

    This is RLHF with PPO (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022, arXiv 2203.02155): each token has the
    reward -beta (logp - logp_ref), fixed when it was sampled, and the return is summed to the end without discount. On
    samples of the policy the expected gradient of -A logp is then that of the reward's advantage plus beta times the
    gradient of the reverse KL of *whole sequences*, which k2 and k3 as losses do not have: they hold each token where the
    policy goes, and not where it goes. The token mean divides both parts alike, so that beta may be compared with `rkl`'s.

    Two differences from common code: the KL is added after the group's normalisation, as otherwise a group that is all
    right would be divided by the spread of its KL alone, whatever beta is; and it has no baseline, which would lower the
    variance and leave the expectation as it is.

    Args:
        advantages: of the reward alone `[B]`.
        logp_old, logp_ref: log-probs under the policy that sampled and under the reference `[B, T]`, nats.
        mask: completion tokens `[B, T]`.
        beta: the strength.

    Returns:
        `[B, T]`, meaningless where the mask is 0.
    """
    log_u = torch.where(mask.bool(), logp_old - logp_ref, 0.0)
    return advantages[:, None] - beta * log_u.flip(1).cumsum(1).flip(1)


def adapted_strength(strength: float, penalty: float, target: float) -> float:
    """The next step's eta or beta, after a step with `strength` whose penalty should have been `target`, both in nats.

    strength * exp(0.2 e), e = penalty/target - 1 clipped to -0.5 ... 0.5: up to a tenth more where the policy has moved too
    far, or less where it has not used what it may. This is the proportional controller of Ziegler et al. 2019 (arXiv
    1909.08593, section 2.2), which has 1 + 0.1 e and clips at 0.2: faster, for runs of tens of steps, and a step up undoes
    a step down.
    """
    return strength * math.exp(0.2 * min(max(penalty / target - 1, -0.5), 0.5))
