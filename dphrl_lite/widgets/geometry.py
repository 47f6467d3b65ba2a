"""Widgets of divergences without any model: generators and best fits, flows on the triangle, what survives reward."""

from dphrl_lite import divergences, figures
from dphrl_lite.lab import toys
from dphrl_lite.widgets.controls import alpha_slider, button, choice, divergence_dropdown, dropdown, slider
from dphrl_lite.widgets.live import Live


def divergence_explorer(name: str = "js") -> Live:
    """Choose a divergence, move a Gaussian policy over a target of two or three modes: f, its pull, the best fit."""
    divergence = divergence_dropdown(name)
    controls = {
        "name": divergence,
        "alpha": alpha_slider(divergence),
        "mean": slider("policy mean", 0.5, -6, 6, 0.1),
        "width": slider("policy width", 1, 0.4, 4, 0.1),
        "count": dropdown("modes", [2, 3], 2),
        "distance": slider("mode distance", 4, 0, 6, 0.25),
        "weight": slider("left mode's mass", 0.5, 0.05, 0.95, 0.05),
        "mode_width": slider("mode width", 0.6, 0.4, 1.5, 0.1),
    }

    def fit_and_target(name, alpha, count, distance, weight, mode_width, **_policy):
        target = toys.Modes(count, distance, weight, mode_width)
        return toys.best_fit(name, alpha, target), target

    def build(mean, width, **values):
        fit, target = fit_and_target(**values)
        return figures.divergence_explorer(toys.named(values["name"], values["alpha"]), fit, mean, width, target)

    def jump(_button):
        fit, _ = fit_and_target(**live.values)
        controls["mean"].value, controls["width"].value = fit.mean, fit.width

    jumper = button("Jump to the best fit", jump, margin="2px 2px 2px 128px")
    live = Live(controls, build, extra=[jumper])
    live.jump = jumper
    return live


def simplex_explorer(name: str = "reverse_kl") -> Live:
    """Gradient flow of one penalty on the triangle of three answers, and forward KL's; move the reference."""
    divergence = divergence_dropdown(name)
    controls = {
        "name": divergence,
        "alpha": alpha_slider(divergence),
        "first": slider("reference: A", 0.6, 0.1, 0.8, 0.05),
        "until": slider("time", 8, 1, 20, 1),
    }

    def build(name, alpha, first, until):
        pair = {"forward_kl": divergences.get("forward_kl"), name: toys.named(name, alpha)}
        return figures.simplex(*toys.corner_flows(pair, first, until))

    return Live(controls, build)


def mass_explorer() -> Live:
    """The mass map for a chosen start share of the answer that reward pulls away from."""
    names = ("reverse_kl", "js", "alpha", "forward_kl", "neyman_chi2")
    controls = {"weight": slider("starts with", 0.3, 0.05, 0.95, 0.05)}
    return Live(controls, lambda weight: figures.mass_map(names, weight))


def off_target_lab() -> Live:
    """Where the best Gaussian puts mass that the reference does not have: move the modes apart, make them unequal."""
    names = ("forward_kl", "js", "alpha", "reverse_kl")
    controls = {
        "distance": slider("mode distance", 4, 1, 6, 0.5),
        "weight": choice("left mode's mass", [0.1, 0.2, 0.3, 0.4, 0.5], 0.5),
    }
    return Live(controls, lambda **shape: figures.off_target(names, toys.Modes(**shape)))
