"""Divergences against mpmath's arbitrary precision, closed forms, scipy, and float64 autograd."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import entropy

from dphrl_lite import divergences
from dphrl_lite.divergences import MAX_LOG_U, Divergence

mpmath.mp.dps = 120

# The table of the method, in u, as a person would write it down; evaluated with 120 digits.
IN_U = {
    "forward_kl": lambda u: u - 1 - mpmath.log(u),
    "reverse_kl": lambda u: u * mpmath.log(u) - u + 1,
    "js": lambda u: u * mpmath.log(u) - (u + 1) * mpmath.log((u + 1) / 2),
    "hellinger": lambda u: (mpmath.sqrt(u) - 1) ** 2,
    "total_variation": lambda u: abs(u - 1) / 2,
    "pearson_chi2": lambda u: (u - 1) ** 2,
    "neyman_chi2": lambda u: (u - 1) ** 2 / u,
    "jeffreys": lambda u: (u - 1) * mpmath.log(u),
}
ALPHAS = (1e-9, 0.01, 0.2, 0.499, 0.5, 0.8, 0.99, 1 - 1e-9)
CASES = [(name, None) for name in IN_U] + [("alpha", a) for a in (0.0, *ALPHAS, 1.0)]
TINY, HUGE = 1.2e-38, 3.4e38  # the normal range of float32
GRID = sorted(s * x for s in (-1, 1) for x in (1e-12, 1e-7, 9e-5, 1.1e-4, 1e-3, 0.1, 0.7, 1, 3, 15, 39, 41, 79, 80))


def in_u(name, alpha):
    if name != "alpha":
        return IN_U[name]
    if alpha in (0.0, 1.0):
        return IN_U["forward_kl" if alpha else "reverse_kl"]
    a = mpmath.mpf(alpha)
    return lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1))


def simplex(size):
    return st.lists(st.floats(1e-6, 1.0), min_size=size, max_size=size).map(lambda w: np.array(w) / np.sum(w))


@pytest.mark.parametrize(("name", "alpha"), CASES)
def test_value_and_gradient_are_true_in_float32_up_to_80(name, alpha):
    f, ours = in_u(name, alpha), divergences.get(name, alpha=alpha)
    for d in torch.tensor(GRID, dtype=torch.float32):
        u = mpmath.exp(mpmath.mpf(d.item()))
        bent = name == "pearson_chi2" and d > 40  # there the tangent in log u, tested below
        value, slope = f(u), u * mpmath.diff(f, u, h=u * mpmath.mpf(10) ** -40)
        if not bent and TINY < value < HUGE:
            assert ours.f(d).item() == pytest.approx(float(value), rel=1e-5), f"value at log u = {d}"
        if not bent and TINY < abs(slope) < HUGE:
            assert ours.force(d).item() == pytest.approx(float(slope), rel=1e-5), f"gradient at log u = {d}"


def test_pearson_continues_by_its_tangent():
    pearson = divergences.get("pearson_chi2")
    f40, slope40 = math.expm1(40) ** 2, 2 * math.exp(40) * math.expm1(40)
    assert pearson.f(torch.tensor(70.0)).item() == pytest.approx(f40 + 30 * slope40, rel=1e-5)
    assert pearson.force(torch.tensor(70.0)).item() == pytest.approx(slope40, rel=1e-5)


@pytest.mark.parametrize("name", divergences.names())
@pytest.mark.parametrize("edge", [39.9999, 40.0, MAX_LOG_U])
def test_value_and_gradient_hold_at_the_edges_themselves(name, edge):
    if name == "pearson_chi2" and edge == MAX_LOG_U:
        return  # bent before; its tangent is tested above
    logp = torch.tensor([[edge]], dtype=torch.float64, requires_grad=True)
    loss = divergences.get(name).loss(logp, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(loss, logp)
    u, f = mpmath.exp(mpmath.mpf(edge)), in_u(name, 0.5)
    assert loss.item() == pytest.approx(float(f(u)), rel=1e-9)
    assert gradient.item() == pytest.approx(float(u * mpmath.diff(f, u, h=u * mpmath.mpf(10) ** -40)), rel=1e-9)


def test_a_flat_generator_has_no_curvature():
    flat = divergences.Divergence("quartic", lambda d: torch.expm1(d) ** 4)
    assert flat.curvature == 0


def test_exact_does_not_bend():
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([1e-30, 1.0], dtype=torch.float64)
    expected = 1e-30 * (0.5 / 1e-30 - 1) ** 2 + 0.25
    assert divergences.get("pearson_chi2").exact(p, q / q.sum()).item() == pytest.approx(expected)


def test_the_negative_side_is_never_clamped():
    far = torch.tensor([-50.0, -120.0, -5000.0])
    assert torch.equal(divergences.get("forward_kl").force(far), -torch.ones(3))
    assert torch.allclose(divergences.get("forward_kl").f(far), -far - 1)
    assert torch.allclose(divergences.get("js").f(far), torch.full((3,), math.log(2)))


@pytest.mark.parametrize(("name", "alpha"), CASES)
def test_canonical_form_and_limits(name, alpha):
    ours = divergences.get(name, alpha=alpha)
    zero = torch.zeros((), dtype=torch.float64)
    assert ours.f(zero).item() == 0
    assert ours.force(zero).item() == 0
    assert ours.f(torch.tensor(-math.inf)).item() == pytest.approx(ours.f_zero)
    u = mpmath.mpf(10) ** 4000
    for limit, value in ((ours.f_zero, in_u(name, alpha)(1 / u)), (ours.slope_inf, in_u(name, alpha)(u) / u)):
        if alpha in ALPHAS[:1] + ALPHAS[-1:]:
            continue  # so near to 0 or 1 the limit is reached beyond any u that one could try
        if math.isfinite(limit):
            assert limit == pytest.approx(float(value), rel=1e-5)
        else:
            assert value > 1000


@pytest.mark.parametrize(("name", "alpha"), CASES)
@settings(max_examples=40, deadline=None)
@given(d=st.lists(st.integers(-30_000, 30_000), min_size=3, max_size=3, unique=True).map(sorted))
def test_convex_in_u_and_non_negative(name, alpha, d):
    ours = divergences.get(name, alpha=alpha)
    d = torch.tensor(d, dtype=torch.float64) / 1000
    f, u = ours.f(d), d.exp()
    assert (f >= 0).all()
    weight = (u[2] - u[1]) / (u[2] - u[0])
    assert f[1] <= weight * f[0] + (1 - weight) * f[2] + 1e-9 * f.max()


@settings(max_examples=50, deadline=None)
@given(p=simplex(5), q=simplex(5))
def test_exact_against_scipy_and_closed_forms(p, q):
    exact = {n: divergences.get(n).exact(torch.tensor(p), torch.tensor(q)).item() for n in IN_U}
    close = lambda x: pytest.approx(x, rel=1e-6, abs=1e-12)
    assert exact["forward_kl"] == close(rel_entr(q, p).sum())
    assert exact["reverse_kl"] == close(entropy(p, q))
    assert exact["js"] == close(2 * jensenshannon(p, q) ** 2)  # the generator is twice the Jensen-Shannon divergence
    assert exact["hellinger"] == close(2 - 2 * np.sqrt(p * q).sum())
    assert exact["total_variation"] == close(np.abs(p - q).sum() / 2)
    assert exact["pearson_chi2"] == close(((p - q) ** 2 / q).sum())
    assert exact["neyman_chi2"] == close(((p - q) ** 2 / p).sum())
    assert exact["jeffreys"] == close(rel_entr(p, q).sum() + rel_entr(q, p).sum())


@settings(max_examples=30, deadline=None)
@given(p=simplex(4), q=simplex(4))
def test_alpha_morphs_from_reverse_into_forward_kl(p, q):
    p, q = torch.tensor(p), torch.tensor(q)
    for limit, name, near in ((0.0, "reverse_kl", 1e-7), (1.0, "forward_kl", 1 - 1e-7)):
        expected = divergences.get(name).exact(p, q).item()
        assert divergences.get("alpha", alpha=limit).exact(p, q).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert divergences.get("alpha", alpha=near).exact(p, q).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_exact_at_the_border_of_the_simplex():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.0, 0.75, 0.0])
    for name in divergences.names():
        ours = divergences.get(name)
        expected = 0.25 * ours.f(torch.tensor(2.0).log()).item() + 0.5 * ours.slope_inf + 0.75 * ours.f_zero
        assert ours.exact(p, q).item() == pytest.approx(expected)
    assert divergences.get("js").exact([1.0, 0.0], [0.0, 1.0]).item() == pytest.approx(2 * math.log(2))


def test_exact_is_differentiable_and_batched():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    q = torch.softmax(torch.randn(4, dtype=torch.float64), 0)
    for name in divergences.names():
        exact = lambda x, name=name: divergences.get(name).exact(torch.softmax(x, -1), q)
        assert exact(logits).shape == (3,)
        assert torch.autograd.gradcheck(exact, logits)


@pytest.mark.parametrize(("p", "q", "message"), [
    ([0.5, 0.5], [0.2, 0.3, 0.5], "support"),
    ([0.5, 0.6], [0.5, 0.5], "summing to 1"),
    ([1.5, -0.5], [0.5, 0.5], "non-negative"),
])  # fmt: skip
def test_exact_refuses_what_is_no_distribution(p, q, message):
    with pytest.raises(ValueError, match=message):
        divergences.get("js").exact(p, q)


def test_loss_is_the_masked_token_mean_with_its_gradient():
    torch.manual_seed(0)
    logp = (-torch.rand(3, 5, dtype=torch.float64) * 3).requires_grad_()
    logp_ref, mask = -torch.rand(3, 5, dtype=torch.float64) * 3, torch.rand(3, 5) > 0.4
    poisoned = torch.where(mask, logp_ref, math.nan)  # what stands under the mask is never looked at
    for name in divergences.names():
        ours = divergences.get(name)
        loss = ours.loss(logp, poisoned, mask)
        log_u = logp - logp_ref
        assert loss.item() == pytest.approx((ours.f(log_u) * mask).sum().item() / mask.sum().item())
        (gradient,) = torch.autograd.grad(loss, logp)
        assert torch.allclose(gradient, ours.force(log_u) * mask / mask.sum())
        assert torch.autograd.gradcheck(lambda x, ours=ours: ours.loss(x, poisoned, mask), logp)


@pytest.mark.parametrize("name", divergences.names())
@pytest.mark.parametrize("d", [MAX_LOG_U + 20.0, -120.0, -80.0])
def test_loss_stays_finite_far_out(name, d):
    logp = torch.tensor([[d - 1.0]], requires_grad=True)
    loss = divergences.get(name).loss(logp, torch.tensor([[-1.0]]), torch.ones(1, 1))
    loss.backward()
    if name == "neyman_chi2" and d < -88:
        return  # 1/u itself leaves float32: not representable, and the negative side is not clamped
    assert torch.isfinite(loss)
    assert torch.isfinite(logp.grad).all()


def test_arrays_and_infinities_are_taken():
    js, forward = divergences.get("js"), divergences.get("forward_kl")
    assert js.f(np.array([0.0, -np.inf, np.inf])).tolist() == [0.0, pytest.approx(math.log(2)), math.inf]
    assert forward.force(-3.0).item() == pytest.approx(math.expm1(-3))
    assert js.loss(np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2))).item() == 0


def test_bounded_share_counts_only_large_positive_log_u():
    assert divergences.bounded_share(torch.tensor([-500.0, 0.0, MAX_LOG_U, MAX_LOG_U + 1])) == 0.25


def test_loss_refuses_wrong_shapes_and_empty_masks():
    js, x = divergences.get("js"), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="one shape"):
        js.loss(x, x[:, :2], x)
    with pytest.raises(ValueError, match="selects no token"):
        js.loss(x, x, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_f_keeps_dtype_and_shape(dtype):
    out = divergences.get("js").f(torch.zeros(2, 3, dtype=dtype))
    assert (out.dtype, out.shape) == (dtype, (2, 3))


def test_curvature_is_what_the_method_says():
    expected = {"forward_kl": 1, "reverse_kl": 1, "alpha": 1, "js": 0.5, "hellinger": 0.5, "pearson_chi2": 2,
                "neyman_chi2": 2, "jeffreys": 2, "total_variation": math.inf}  # fmt: skip
    assert {n: pytest.approx(divergences.get(n).curvature, rel=1e-5) for n in divergences.names()} == expected


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match="forward_kl, hellinger") as error:
        divergences.get("jss")
    assert "Did you mean 'js'" in str(error.value)
    with pytest.raises(ValueError, match="only the divergence 'alpha'"):
        divergences.get("js", alpha=0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        divergences.get("alpha", alpha=1.5)


def test_a_registered_divergence_is_made_canonical_and_found(registry):
    registry(Divergence(name="mine", f=lambda log_u: -log_u))  # plain cross-entropy: forward KL without its tilt
    mine, forward = divergences.get("mine"), divergences.get("forward_kl")
    d = torch.linspace(-5, 5, 11)
    assert torch.allclose(mine.f(d), forward.f(d), atol=1e-6)
    assert (mine.f_zero, mine.slope_inf) == (math.inf, pytest.approx(1.0))
    assert "mine" in divergences.names()
    registry(Divergence(name="mine", f=lambda log_u: (log_u / 2).expm1() ** 2))  # the cell run again: replaced
    assert divergences.get("mine").f_zero == pytest.approx(1.0)


@pytest.mark.parametrize(("f", "message"), [
    (lambda d: -d + 1, "must be 0 at u = 1"),
    (lambda d: d, "not convex"),
    (lambda d: -(d**2), "not convex"),
    (lambda d: torch.log(d), "not finite"),
    (lambda d: torch.tensor(0.0), "differentiable"),
    (lambda d: 0 * d, "0 everywhere"),
    (lambda d: np.exp(d) - 1, "elementwise torch function"),
    (lambda d: -d if d < 0 else d, "elementwise torch function"),
])  # fmt: skip
def test_what_is_no_divergence_is_refused_with_the_reason(registry, f, message):
    with pytest.raises(ValueError, match=message):
        registry(Divergence(name="bad", f=f))
    assert "bad" not in divergences.names()


def test_built_in_names_are_kept(registry):
    for name in ("js", "f"):  # "dph-f" is forward KL
        with pytest.raises(ValueError, match="built-in"):
            registry(Divergence(name=name, f=lambda d: -d))
    for name in ("", "two words", 3):
        with pytest.raises(ValueError, match="name of letters"):
            registry(Divergence(name=name, f=lambda d: -d))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda d: torch.where(d < -20, (d + 20) ** 2 * torch.exp(d), 0 * d) + (torch.exp(d) - 1) ** 2 - 2 * torch.relu(d - 5) ** 2 * torch.exp(d), "convex"),  # noqa: E501
        (lambda d: torch.exp(d) - 1 - d - 0.9 * torch.relu(d - 10) * torch.exp(d), "convex"),
        (lambda d: (d * torch.exp(d) - torch.exp(d) + 1) + 0 * d.mean() + (d - d.mean()) * 0 + d.max() * 1e-3 * (torch.exp(d) - 1), "elementwise"),  # noqa: E501
        (lambda d: torch.exp(d) - 1 - d + (d - d.mean()).abs().max() * 1e-3 * (torch.exp(d) - 1) ** 2, "elementwise"),
        (lambda d: torch.exp(d) - 1 - d + torch.where(d > 30, float("inf"), 0.0).to(d), "finite"),
    ],
)  # fmt: skip
def test_register_checks_f_where_training_goes(f, message):
    with pytest.raises(ValueError, match=message):
        divergences.register(divergences.Divergence(name="mine", f=f))
    assert "mine" not in divergences.names()


def test_a_registered_f_keeps_the_dtype_it_is_given():
    double = divergences.Divergence(name="mine", f=lambda d: (torch.exp(d) - 1 - d).double())
    assert double.f(torch.zeros(3)).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "forward_kl",
        "reverse_kl",
        "js",
        "alpha",
        "hellinger",
        "total_variation",
        "pearson_chi2",
        "neyman_chi2",
        "jeffreys",
    ],
)
def test_register_accepts_what_is_built_in_under_another_name(name):
    built_in = divergences.get(name)
    try:
        divergences.register(divergences.Divergence(name="again", f=built_in.f))
        log_u = torch.linspace(-5, 5, 11)
        assert torch.equal(divergences.get("again").f(log_u), built_in.f(log_u))
    finally:
        divergences._REGISTRY.pop("again", None)
