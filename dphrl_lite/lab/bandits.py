"""Collapse in miniature: bandits with many right answers, on which RL with verifiable rewards is computed, not estimated.

A context is a problem, an answer one way to reply. The policy of context c is softmax(start[c] + features[c] @ W): training
moves W, and two contexts with overlapping features move each other; without overlap nothing is shared (the tabular case).
Float64, all contexts at once, one Python loop over steps. No language model; sampling only where groups are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dphrl_lite.divergences import Divergence
from dphrl_lite.errors import lookup
from dphrl_lite.objectives import group_advantages

OBJECTIVES, REHEARSALS, DIRECTIONS = ("reward", "grpo"), ("all", "perfect"), ("reverse_kl", "forward_kl")
_LARGEST_MOVE = 1.0  # of a logit in one step; where the flow is steeper, its clock runs slower


@dataclass(frozen=True, eq=False)
class Bandit:
    """C contexts with A answers each.

    Args:
        start: logits of the untouched policy, the reference `[C, A]`.
        reward: of each answer `[C, A]`; an answer is right where it is above 0.
        features: `[C, F]`; logits are start + features @ W, with W = 0 before training.
        trained: bool `[C]`, the contexts that RL sees; the others are held out.
    """

    start: Tensor
    reward: Tensor
    features: Tensor
    trained: Tensor

    def __post_init__(self):
        types = dict.fromkeys(("start", "reward", "features"), torch.float64) | {"trained": torch.bool}
        for name, dtype in types.items():
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=dtype))
        shapes = {name: tuple(getattr(self, name).shape) for name in types}
        c = shapes["start"][:1]
        fits = len(shapes["start"]) == len(shapes["features"]) == 2 and shapes["reward"] == shapes["start"]
        if not fits or shapes["features"][:1] != c or shapes["trained"] != c:
            raise ValueError(f"expected start and reward [C, A], features [C, F] and trained [C]; got {shapes}")
        if not self.trained.any():
            raise ValueError("no context is trained; set at least one entry of `trained` to True")

    @property
    def correct(self) -> Tensor:
        """Which answers are right, bool `[C, A]`."""
        return self.reward > 0

    @property
    def reference(self) -> Tensor:
        """The untouched policy's probabilities `[C, A]`."""
        return torch.softmax(self.start, -1)

    @property
    def solve_rate(self) -> Tensor:
        """The untouched policy's exact P(correct) `[C]`."""
        return (self.reference * self.correct).sum(-1)

    def perfect(self, threshold: float = 0.75) -> Tensor:
        """D_pef: the trained contexts that the untouched policy solves at a rate of at least `threshold`, bool `[C]`."""
        return self.trained & (self.solve_rate >= threshold)

    def tabular(self) -> "Bandit":
        """The same bandit with parameters of its own for every context: nothing is shared."""
        return replace(self, features=torch.eye(len(self.start), dtype=torch.float64))


def make(contexts: int = 32, answers: int = 64, sharing: float = 0.9, held_out: int = 16, seed: int = 0) -> Bandit:
    """A bandit with many right answers of unequal start probability.

    An answer stands for a way to solve problems: it is right in a context with a probability of its own, drawn from
    Beta(1, 3), so that some ways work nearly everywhere and others rarely. Start logits are a popularity of the answer
    plus noise of the context (both standard normal, independent of what is right) plus, on right answers, a skill of the
    context from Normal(0.5, 2). Every context has a right and a wrong answer. The last `held_out` contexts are not trained.

    Args:
        contexts, answers, held_out, seed: C, A, how many contexts are held out, and the seed of all that is drawn.
        sharing: s in [0, 1]; the gradients g[c] of the trained contexts move the logits of a trained context by
            (1 - s) g[c] + s mean(g), those of a held-out one by s mean(g). 0 is tabular, 1 one policy change for all.
    """
    if not 0 <= sharing <= 1:
        raise ValueError(f"sharing lies between 0 (tabular) and 1 (one change for all contexts); got {sharing}")
    if answers < 2 or not 0 <= held_out < contexts:
        raise ValueError(f"expected answers >= 2, contexts > held_out >= 0; got {answers}, {contexts}, {held_out}")
    draw = torch.Generator().manual_seed(seed)
    normal, uniform = (partial(new, generator=draw, dtype=torch.float64) for new in (torch.randn, torch.rand))
    works = 1 - uniform(answers) ** (1 / 3)  # Beta(1, 3) by its inverse distribution function
    correct = uniform(contexts, answers) < works
    pick = torch.rand(contexts, answers, generator=draw).argsort(-1)[:, :2]
    correct = correct.scatter(1, pick, torch.tensor([[True, False]]).expand(contexts, 2))
    start = normal(answers) + normal(contexts, answers) + (0.5 + 2 * normal(contexts, 1)) * correct
    trained = torch.arange(contexts) < contexts - held_out
    own = (1 - sharing) ** 0.5 * torch.eye(contexts, dtype=torch.float64)
    common = torch.full((contexts, 1), (sharing / (contexts - held_out)) ** 0.5, dtype=torch.float64)
    return Bandit(start, correct.double(), torch.cat([own, common], 1), trained)


@dataclass(frozen=True, eq=False)
class Flow:
    """A recorded path of training: the `bandit`, and at each of T frames the clock `time` `[T]` and the policy `probs`
    `[T, C, A]`; with S strengths `[T, S]` and `[T, S, C, A]`."""

    bandit: Bandit
    time: Tensor
    probs: Tensor

    def p_correct(self) -> Tensor:
        """Exact P(correct) `[T, ..., C]`."""
        return (self.probs * self.bandit.correct).sum(-1).clamp(max=1)

    def pass_at_k(self, k: int, contexts: Tensor | None = None) -> Tensor:
        """Exact Pass@k `[T, ...]`, averaged over `contexts` (bool `[C]`; all if not given)."""
        values = pass_at_k(self.p_correct(), k)
        return (values if contexts is None else values[..., contexts]).mean(-1)

    def at_strength(self, i: int) -> "Flow":
        """The path at the i-th of several strengths."""
        return replace(self, time=self.time[:, i], probs=self.probs[:, i])


def pass_at_k(p_correct: Tensor, k: int) -> Tensor:
    """Exact Pass@k = 1 - (1 - P)^k, elementwise: the chance that k independent answers hold a right one."""
    if k < 1:
        raise ValueError(f"k is the number of answers one may submit, at least 1; got {k}")
    return -torch.expm1(k * torch.log1p(-torch.as_tensor(p_correct, dtype=torch.float64)))


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return torch.special.entr(p).sum(-1)


def effective_correct(p: Tensor, correct: Tensor) -> Tensor:
    """How many right answers the policy spreads over: exp(entropy of p given that it is right) `[...]`, from 1 up."""
    return entropy(p * correct / (p * correct).sum(-1, keepdim=True).clamp(min=1e-300)).exp()


def living_correct(p: Tensor, correct: Tensor, floor: float = 1e-3) -> Tensor:
    """How many right answers have a probability of at least `floor` `[...]`."""
    return ((p >= floor) & correct).sum(-1).double()


def distinct_correct(p: Tensor, correct: Tensor, k: int) -> Tensor:
    """Expected number of different right answers among k independent ones `[...]`; exact."""
    return (pass_at_k(p, k) * correct).sum(-1)


def flow(
    bandit: Bandit,
    objective: str = "reward",
    divergence: Divergence | None = None,
    strength: float | Sequence[float] = 0.0,
    steps: int = 200,
    step_size: float = 1.0,
    groups: int | None = None,
    rehearse: str = "all",
    threshold: float = 0.75,
    seed: int = 0,
    frames: int = 51,
) -> Flow:
    """Train the bandit by gradient ascent on W and record the path.

    Ascended is the sum over trained contexts of the objective, minus strength times the penalty. The penalty's gradient is
    always exact; the objective's is exact with `groups=None`, else the mean over so many sampled answers per context.

    Args:
        objective: "reward", the expected reward; or "grpo", its gradient divided by the standard deviation of the reward,
            which on 0/1 rewards ascends 2 arcsin sqrt(P(correct)).
        divergence: of the policy from the reference; None for no penalty.
        strength: eta or beta; several are trained side by side (the path then has a dimension S).
        steps, step_size: a step that would move a logit by more than 1 is shortened for all contexts: a slower clock.
        groups: answers sampled per context and step, 2 or more; None for exact gradients.
        rehearse: "all": RL and penalty on every trained context, the penalty over all answers of the reference.
            "perfect": the hybrid split. RL on D_exp only, penalty on D_pef only, over the reference's right answers.
        threshold: start solve rate from which a context counts as D_pef.
        seed, frames: of the groups; how many moments are recorded, first and last included.

    Raises:
        ValueError: an unknown name, a negative strength, groups of fewer than 2, or no step.
    """
    _check(objective, rehearse, strength, steps, step_size, groups)
    strengths = torch.as_tensor(strength, dtype=torch.float64)
    explored, weights = _split(bandit, rehearse, threshold)
    draw = torch.Generator().manual_seed(seed)
    logq = torch.log_softmax(bandit.start, -1)
    w = torch.zeros(*strengths.shape, bandit.features.shape[1], bandit.start.shape[1], dtype=torch.float64)
    kept = set(torch.linspace(0, steps, min(frames, steps + 1)).round().int().tolist())
    time, times, path = torch.zeros_like(strengths), [], []
    for step in range(steps + 1):
        logp = torch.log_softmax(bandit.start + bandit.features @ w, -1)
        if step in kept:
            times.append(time.clone())
            path.append(logp.exp())
        gradient = reward_gradient(logp.exp(), bandit.reward, objective, groups, draw) * explored[:, None]
        if divergence is not None:
            gradient = gradient - strengths[..., None, None] * penalty_gradient(divergence, logp, logq, weights)
        ascent = bandit.features.T @ gradient
        steepest = (bandit.features @ ascent).abs().amax((-2, -1))
        clock = (_LARGEST_MOVE / steepest.clamp(min=1e-300)).clamp(max=step_size)
        w, time = w + clock[..., None, None] * ascent, time + clock
    return Flow(bandit, torch.stack(times), torch.stack(path))


def reward_gradient(
    p: Tensor, reward: Tensor, objective: str, groups: int | None = None, draw: torch.Generator | None = None
) -> Tensor:
    """The gradient of the objective with respect to each context's logits `[..., C, A]`.

    Exact: p_a (r_a - mean), for GRPO divided by the standard deviation. With `groups`: the mean of A_i (onehot(a_i) - p)
    over sampled answers a_i; the A_i sum to 0, so the p drops out. A_i is r_i minus the mean of the others (unbiased) for
    "reward", and as in training for "grpo".
    """
    if groups is None:
        centred = reward - (p * reward).sum(-1, keepdim=True)
        if objective == "grpo":
            centred = centred / (p * centred**2).sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
        return p * centred
    answers = torch.multinomial(p.reshape(-1, p.shape[-1]), groups, replacement=True, generator=draw)
    r = reward.expand_as(p).reshape(-1, p.shape[-1]).gather(1, answers)
    advantages = group_advantages(r) if objective == "grpo" else (r - r.mean(1, keepdim=True)) * groups / (groups - 1)
    return torch.zeros_like(p).reshape(-1, p.shape[-1]).scatter_add(1, answers, advantages / groups).view_as(p)


def penalty_gradient(divergence: Divergence, logp: Tensor, logq: Tensor, weights: Tensor) -> Tensor:
    """The gradient of sum_a weights_a f(p_a / q_a) with respect to the logits `[..., C, A]`; weights = q: that of D_f."""
    pull = weights * divergence.force(logp - logq)
    return pull - logp.exp() * pull.sum(-1, keepdim=True)


def optimum(q: Tensor, reward: Tensor, beta: float, direction: str) -> Tensor:
    """The policy that maximises expected reward - beta x KL in one context, in closed form.

    A multiplier for sum p = 1 gives, for reverse KL, p* proportional to q exp(r / beta); for forward KL p* = beta q /
    (lambda - r) with the one lambda > max r at which p* sums to 1, found by bisection: it lies between max r + beta x (the
    mass of q on the best answers) and max r + beta.

    Args:
        q, reward: the reference, positive, and any real numbers `[..., A]`.
        beta, direction: strength of the penalty, positive; "reverse_kl" or "forward_kl".
    """
    lookup(dict.fromkeys(DIRECTIONS), "direction", direction)
    q, reward = (torch.as_tensor(x, dtype=torch.float64) for x in (q, reward))
    if not beta > 0 or not (q > 0).all():
        raise ValueError(f"beta and every entry of q must be positive; got beta = {beta} and min q = {q.min():.3g}")
    if direction == "reverse_kl":
        return torch.softmax(q.log() + reward / beta, -1)
    below_best = reward.amax(-1, keepdim=True) - reward  # lambda - r = (lambda - max r) + this
    low, high = beta * (q * (below_best == 0)).sum(-1, keepdim=True), torch.full_like(q[..., :1], beta)
    for _ in range(80):
        middle = (low + high) / 2
        too_low = (beta * q / (middle + below_best)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    p = beta * q / (high + below_best)
    return p / p.sum(-1, keepdim=True)


def _split(bandit: Bandit, rehearse: str, threshold: float) -> tuple[Tensor, Tensor]:
    """Which contexts RL explores, bool `[C]`, and the weight of each answer in the penalty `[C, A]`."""
    if rehearse == "all":
        return bandit.trained, bandit.reference * bandit.trained[:, None]
    perfect, right = bandit.perfect(threshold), bandit.reference * bandit.correct
    return bandit.trained & ~perfect, right / right.sum(-1, keepdim=True).clamp(min=1e-300) * perfect[:, None]


def _check(objective, rehearse, strength, steps, step_size, groups):
    lookup(dict.fromkeys(OBJECTIVES), "objective", objective)
    lookup(dict.fromkeys(REHEARSALS), "rehearsal", rehearse)
    if (strengths := torch.as_tensor(strength)).ndim > 1 or not (strengths >= 0).all():
        raise ValueError(f"strength is a number >= 0 or a list of such; got {strength}")
    if steps < 1 or not step_size > 0:
        raise ValueError(f"expected 1 step or more of a positive size; got {steps} of size {step_size}")
    if groups is not None and groups < 2:
        raise ValueError(f"a group needs at least 2 answers to have a spread; got groups = {groups}")
