"""ReinMax-Rao and ReinMax-CV of Wang and Bui (2026), of which docs/results/reinmax.md says why gradest has neither.

`pytest -s tests/estimators/test_reinmax_variants.py` prints the table of that page. The sums over outputs h are exact; the mean
and the variance over the noise given h are those of 2,000 seeded draws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import gradest
from gradest_estimators._one_hot import softmax_vjp

PAGE = Path(__file__).parents[2] / "docs" / "results" / "reinmax.md"
NEURON = gradest.neuron("categorical")
A = torch.tensor([[0.3, -1.2, 0.8, 0.1], [1.4, 0.0, -0.5, 0.6]], dtype=torch.float64)  # two units of four classes
WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 0.9], [0.3, 1.1, -0.7, 2.0]], dtype=torch.float64)
DRAWS = 2000
NOISES = 100  # conditional noises of an estimate, the paper's number


def linear(h: Tensor) -> Tensor:
    return (h * WEIGHT).sum((-1, -2))


def quadratic(h: Tensor) -> Tensor:
    return (linear(h) + 0.3) ** 2


def cubic(h: Tensor) -> Tensor:
    return (linear(h) - 0.6) ** 3


def network(h: Tensor) -> Tensor:
    """A layer of 16 units, as a decoder has them."""
    generator = torch.Generator().manual_seed(5)
    hidden = h.flatten(-2) @ torch.randn(8, 16, generator=generator, dtype=torch.float64)
    return torch.tanh(hidden) @ torch.randn(16, generator=generator, dtype=torch.float64)


LOSSES = (linear, quadratic, cubic, network)


class Outputs(NamedTuple):
    """All N outputs h, `[N, units, classes]`, their probabilities `[N]`, and dL/dh `[losses, N, units, classes]`."""

    h: Tensor
    probability: Tensor
    grad: Tensor

    @classmethod
    def of_all(cls) -> Outputs:
        draw = gradest.estimator("enumeration").forward(NEURON, A, gradest.Key(0), {})
        h = draw.points.clone().requires_grad_()
        grads = [torch.autograd.grad(loss(h).sum(), h)[0] for loss in LOSSES]
        return cls(draw.points, draw.weights, torch.stack(grads))


class Given(NamedTuple):
    """Mean of an estimate given each h, `[losses, N, units, classes]`, and its variance given each, summed, `[losses, N]`."""

    mean: Tensor
    variance: Tensor | float = 0.0


class Moments(NamedTuple):
    """Distance of the mean from the gradient, and variance summed over entries, both relative to the gradient's norm."""

    bias: Tensor
    variance: Tensor

    @classmethod
    def of(cls, given: Given, outputs: Outputs, exact: Tensor) -> Moments:
        p, norm = outputs.probability[:, None, None], exact.flatten(1).norm(dim=-1)
        mean = (p * given.mean).sum(1)
        variance = (p * (given.mean - mean[:, None]) ** 2).sum((1, 2, 3)) + (outputs.probability * given.variance).sum(
            -1
        )
        return cls((mean - exact).flatten(1).norm(dim=-1) / norm, variance / norm**2)


def through_softmax(outputs: Outputs) -> Tensor:
    """J(p) L'(h)."""
    return softmax_vjp(torch.softmax(A, -1), outputs.grad)


def reinmax(outputs: Outputs) -> Tensor:
    """What the registered estimator returns at each h."""
    rows, h = A.expand_as(outputs.grad), outputs.h.expand_as(outputs.grad)
    draw = gradest.Draw(NEURON, rows, gradest.Key(0), h[None], torch.ones(1))
    return gradest.estimator("reinmax").backward(draw, gradest.Feedback(None, outputs.grad[None]), {})[0]


def shifted(h: Tensor) -> Tensor:
    """log π, the logits at which the first term of `reinmax` has its Jacobian."""
    return (0.5 * (torch.softmax(A, -1) + h)).log()


def through_noise(
    outputs: Outputs, temperature: float, noises: int, at: Tensor | None = None, law_of: Tensor | None = None
) -> Given:
    """J(s) L'(h)/τ at s = softmax((at + G)/τ), the mean over `noises` noises G given that h is the argmax of law_of + G.

    Both are `a` if omitted.
    """
    a = A.expand_as(outputs.h)
    at, law_of = a if at is None else at, a if law_of is None else law_of
    noise = NEURON.noise(gradest.Key(7), outputs.h, DRAWS)
    perturbed = NEURON.conditional_relax(law_of, outputs.h, noise, 1.0).log() - law_of + at
    relaxed = torch.softmax(perturbed / temperature, -1)
    found = [softmax_vjp(relaxed, grad) / temperature for grad in outputs.grad]
    variance = torch.stack([x.var(0).sum((-1, -2)) for x in found]) / noises
    return Given(torch.stack([x.mean(0) for x in found]), variance)


def reinmax_rao(outputs: Outputs, temperature: float) -> Given:
    """ReinMax with the Jacobian of `gumbel_rao` at log π in place of J(π)."""
    at = shifted(outputs.h)
    mean, variance = through_noise(outputs, temperature, NOISES, at, at)
    return Given(2 * mean - 0.5 * through_softmax(outputs), 4 * variance)


def reinmax_cv(outputs: Outputs, temperature: float, weight: float, right_law: bool = False) -> Given:
    """ReinMax - η (J at the noise that gave h) + η (mean J over noises given h, drawn as if log π had given it).

    right_law: whether those noises have the law that the noise of h has, so that the correction has mean zero.
    """
    at = shifted(outputs.h)
    own = through_noise(outputs, temperature, 1, at)
    control = through_noise(outputs, temperature, NOISES, at, None if right_law else at)
    mean = reinmax(outputs) + weight * (control.mean - own.mean)
    return Given(mean, weight**2 * (own.variance + control.variance))


METHODS: dict[str, Callable[[Outputs], Given]] = {
    "`straight_through`, J(p)": lambda o: Given(through_softmax(o)),
    "`straight_through_gumbel`, τ = ½": lambda o: through_noise(o, 0.5, 1),
    "`gumbel_rao`, τ = ½": lambda o: through_noise(o, 0.5, NOISES),
    "`gumbel_rao`, τ = 1": lambda o: through_noise(o, 1.0, NOISES),
    "`reinmax`": lambda o: Given(reinmax(o)),
    "ReinMax-Rao, τ = ½": lambda o: reinmax_rao(o, 0.5),
    "ReinMax-Rao, τ = 1": lambda o: reinmax_rao(o, 1.0),
    "ReinMax-CV, τ = ½, η = ½": lambda o: reinmax_cv(o, 0.5, 0.5),
    "ReinMax-CV, τ = 1, η = 1": lambda o: reinmax_cv(o, 1.0, 1.0),
    "ReinMax-CV, τ = ½, η = ½, noises of the right law": lambda o: reinmax_cv(o, 0.5, 0.5, right_law=True),
    "ReinMax-CV, τ = 1, η = 1, noises of the right law": lambda o: reinmax_cv(o, 1.0, 1.0, right_law=True),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Moments]:
    """Bias and variance of each method, `[losses]`."""
    outputs = Outputs.of_all()
    exact = torch.stack([gradest.exact(loss, A, neuron=NEURON)[1] for loss in LOSSES])
    return {name: Moments.of(method(outputs), outputs, exact) for name, method in METHODS.items()}


def test_the_page_has_this_table(measured):
    lines = []
    for name, moments in measured.items():
        cells = [f"{bias:.2f} | {variance:.2f}" for bias, variance in zip(*(x.tolist() for x in moments), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    assert not [line for line in lines if line not in page]


def test_the_registered_estimator_has_these_moments(measured):
    """Over 3,000 draws: the bias within 5 standard errors, and the variance within 15 %, which is more than 5 of its own."""
    spec = {"name": "straight_through_gumbel", "temperature": 0.5}
    gradient, place = gradest.exact(cubic, A, neuron=NEURON)[1], LOSSES.index(cubic)
    found = gradest.estimate(cubic, A, NEURON, spec, draws=3000, seed=1)
    wanted, norm = measured["`straight_through_gumbel`, τ = ½"], gradient.norm()
    error = float((found.gradient - gradient).norm() / norm) - float(wanted.bias[place])
    assert abs(error) < 5 * float(found.standard_error.norm() / norm)
    assert float(found.variance.sum() / norm**2) == pytest.approx(float(wanted.variance[place]), rel=0.15)


@pytest.mark.parametrize("options", ["τ = ½, η = ½", "τ = 1, η = 1"])
def test_given_h_reinmax_has_no_noise_that_an_average_could_remove(measured, options):
    """A correction with mean zero given h adds its own variance to that of a function of h."""
    right, plain = measured[f"ReinMax-CV, {options}, noises of the right law"], measured["`reinmax`"]
    assert torch.allclose(right.bias, plain.bias, atol=1e-9)
    assert bool((right.variance > plain.variance).all())


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("ReinMax") and "law" not in name])
def test_neither_keeps_the_exactness_of_reinmax(measured, name):
    assert float(measured["`reinmax`"].bias[:2].max()) < 1e-12
    assert float(measured[name].bias[:2].min()) > 0.2


def test_what_of_the_claims_holds(measured):
    """At temperature 1, ReinMax-Rao has less variance, and on the network ReinMax-CV has less bias."""
    assert bool((measured["ReinMax-Rao, τ = 1"].variance < measured["`reinmax`"].variance).all())
    assert float(measured["ReinMax-CV, τ = 1, η = 1"].bias[3]) < float(measured["`reinmax`"].bias[3])
