"""Checks of the exercises of notebook 02, estimators."""

import torch

from dphrl_lite import divergences
from dphrl_lite.course.check import Hint, call, choice, close, exercise, nearest, number, parts
from dphrl_lite.lab import estimators, pitfalls, worlds

SMALL = worlds.categorical(p=[0.55, 0.44, 0.01], q=[0.4, 0.3, 0.3])  # as in the notebook
TWO_TOKENS = ["k1-reward", "k2", "k3", "forward_kl", "js", "alpha", "js-naive", "js-definition"]
SOLVED = {"reference": 0.75, "policy": 0.9}  # P(correct) on the D_pef problem of 02-4


@exercise("02-1")
def without_gradient(given):
    """Predict which estimator, as a loss, has an expected gradient of zero."""
    names = ("k1", "k2", "k3")
    sizes = {name: estimators.expected(estimators.get(name), SMALL).gradient.norm().item() for name in names}
    if choice(given, names) != min(sizes, key=sizes.get):
        raise Hint(
            "Differentiate its loss by log u. That factor differs from sample to sample here, so it does not leave the mean. "
            "For which of the three is it the same for every sample?"
        )
    return "E[∇ log π] = 0: the probabilities sum to 1 whatever the parameters do. Batches give noise around that zero."


@exercise("02-2")
def pull_of_k3(given):
    """By hand: the expected gradient of k3 on the logit of the dying answer."""
    value, (p, q) = number(given), (SMALL.p[-1].item(), SMALL.q[-1].item())
    gradient = estimators.expected(estimators.get("k3"), SMALL).gradient[-1].item()
    if close(value, gradient, 1e-3):
        return "In general p - q, for every answer: the gradient of cross-entropy on samples of the reference."
    typical = {
        -gradient: "the sign. The factor 1 - 1/u is negative here, and a sample of C raises its own logit.",
        1 - q / p: "that is the factor of one sample of C. How often is C drawn?",
        (1 - p) * (p - q): "samples of A and B count too: each of them moves C's logit by -p_C.",
        q / p - 1: "that is minus the factor of one sample of C. How often is C drawn?",
        (1 - p) * (1 - q / p): "that is what one sample of C does. How often is C drawn, and what do A and B do?",
    }
    raise Hint(nearest(value, typical, "Sum over all three answers: probability x factor x ∂log p/∂z_C."))


@exercise("02-3")
def same_by_token(given):
    """Predict which estimators have the same value and gradient summed over tokens."""
    if not isinstance(given, list | tuple | set) or not given or not set(given) <= set(TWO_TOKENS):
        raise Hint(f"Give a list of names out of {', '.join(TWO_TOKENS)}.")
    wrong = set(given) - unchanged()
    for names, why in _CHANGED.items():
        if wrong & names:
            raise Hint(f"{', '.join(sorted(wrong & names))}: {why}")
    if set(given) != unchanged():
        raise Hint(
            "These stay, but not they alone. In one more row, what a token is charged adds up to the whole text's."
        )
    return "The rest are objectives of their own, token by token. Run the next cell to see which."


_CHANGED = {
    frozenset({"k2"}): "the square of a sum is not the sum of the squares.",
    frozenset({"k3"}): "its value stays, but what does a token's own term know of the tokens after it?",
    frozenset({"js", "alpha"}): "a bounded or curved f(u₁u₂) is not f(u₁) + f(u₂), nor is it so on average.",
    frozenset({"js-naive", "js-definition"}): "the mean m of two texts' probabilities is not a product over tokens.",
}


def unchanged() -> set[str]:
    """The estimators whose expected value and gradient are the same at both levels, in the notebook's two-token world."""
    world, same = worlds.example("two-token", distance=1.0), set()
    for name in TWO_TOKENS:
        text, token = (estimators.expected(estimators.get(name), world, level) for level in ("sequence", "token"))
        if close(text.value, token.value, 1e-9) and close(text.gradient, token.gradient, 1e-9):
            same.add(name)
    return same


@exercise("02-4")
def filtered(given):
    """By hand: u on the stored right answers of a problem that the policy solves more often by now."""
    mean_u, effect = parts(given, ("mean of u", "P(correct)"))
    (before, after), right = SOLVED.values(), torch.tensor([True, True, False])
    shares = torch.tensor([2 / 3, 1 / 3, 1.0], dtype=torch.float64)  # of the right answers, and of the wrong one
    q, p = (shares * torch.tensor([solved, solved, 1 - solved]) for solved in (before, after))
    drawn, world = pitfalls.restricted(q, right), worlds.categorical(p, q)
    truth = (drawn * p / q).sum().item()
    typical = {
        before / after: "that is the ratio upside down: u is policy over reference.",
        1.0: "that is the mean over all stored answers. Only the right ones are kept.",
        after - before: "u is a ratio, not a difference.",
        after: "that is the policy's P(correct). What was it under the reference?",
    }
    if not close(number(mean_u), truth, 1e-3):
        otherwise = "Every right answer has grown by the same factor. By which?"
        raise Hint(f"mean of u: {nearest(number(mean_u), typical, otherwise)}")
    gradient = estimators.expected(estimators.get("forward_kl"), world, drawn=drawn).gradient
    pull = pitfalls.pull(gradient, world, right)
    if choice(effect, ("rises", "falls", "stays")) != (
        "rises" if pull > 1e-9 else "falls" if pull < -1e-9 else "stays"
    ):
        raise Hint(
            "P(correct): the pull on an answer is u - 1. Which sign has it at this u, and which way is downhill then?"
        )
    return "Each right answer is pulled back to what it was under the reference. Plain -log u would raise it for ever."


@exercise("02-5")
def penalty(given):
    """Mend a penalty whose log-ratio is the wrong way round."""
    for logp, logp_ref, mask in _batches():
        logp = logp.clone().requires_grad_()
        value = call(given, logp, logp_ref, mask)
        truth = divergences.get("forward_kl").loss(logp, logp_ref, mask)
        if torch.is_tensor(value) and value.numel() != 1:
            raise Hint("One number is asked for: the mean over the tokens that the mask selects.")
        if not close(value, truth):
            raise Hint(_what_penalty(torch.as_tensor(value).detach(), logp.detach(), logp_ref, mask))
        if not getattr(value, "requires_grad", False):
            raise Hint("The value is right, but no gradient goes through it: keep it a tensor, and do not detach.")
        if not close(*(torch.autograd.grad(loss, logp)[0] for loss in (value, truth))):
            raise Hint(
                "The value is right and its gradient is not. Is a part of it detached, or replaced by a constant?"
            )
    return "On a token at log u = -12 it now charges about 11 nats; the wrong way round it charged 160 thousand."


def _batches():
    """Log-probs of policy and reference and the mask: near the reference, far from it, and with padding."""
    near, far = torch.tensor([[-1.0, -0.5, -2.0]]), torch.tensor([[-1.2, -0.4, -14.0]])
    everything, padded = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, False, True]])
    ref = torch.tensor([[-1.1, -0.9, -1.5]])
    for policy, mask in ((near, everything), (far, everything), (near, padded)):
        yield policy.double(), ref.double(), mask


def _what_penalty(value, logp, logp_ref, mask) -> str:
    f, log_u = divergences.get("forward_kl").f, logp - logp_ref
    if close(value, f(-log_u)[mask].mean()):
        return "A token that the policy makes less likely than the reference has u < 1. What does your log_u say of it?"
    if close(value, -f(log_u)[mask].mean()) or close(value, -f(-log_u)[mask].mean()):
        return "The loss has become negative: a step downhill now leads away from the reference. Which sign was wrong?"
    if close(value, -log_u[mask].mean()):
        return "That is plain -log u, which can be negative. The other terms of f are no mistake."
    if close(value, f(log_u)[mask].sum()):
        return "Take the mean over tokens, not the sum."
    if close(value, f(log_u).mean()):
        return "You count the padding. The mask says which tokens there are."
    tokens = ", ".join(f"{d:.3g}" for d in log_u[mask].tolist())
    return f"For tokens with log u = {tokens} your loss is {value:.3g}. Work out u and f(u) of each, and their mean."
