"""exact for losses that give weight to a tail of the law: the right number, or Inexact; ordinary losses are as cheap as ever."""

import math

import pytest
import torch
from scipy import integrate, special

import gradest
from gradest.contract.law import levels_of_law
from gradest.contract.neuron import Discrete
from gradest.errors import Inexact

RECTIFIED = {"name": "noisy_rectifier", "distribution": "gaussian"}
POWERS = {"name": "noisy_sigmoid", "std": 5.0}


def power(base):
    return lambda h: base**h


def exponential(slope):
    return lambda h: (slope * h).exp()


def rate(a):
    return math.log1p(math.exp(a))


def log_rate_slope(a):
    return 1 / (1 + math.exp(-a))


def count(base, a):
    """E[base^h] of a Poisson unit, and its derivative."""
    value = math.exp(rate(a) * (base - 1))
    return value, value * (base - 1) * log_rate_slope(a)


def rectified(slope):
    """E[exp(slope h)] of max(0, z) with z normal, and its derivative in the mean at 0."""
    tail = math.exp(slope**2 / 2) * special.ndtr(slope)
    return tail + 0.5, slope * tail


RIGHT = {  # unit, loss of one unit, target, pre-activation, E and its derivative
    **{
        f"gaussian exp({b} h)": ("gaussian", exponential(b), None, 0.3, [x * math.exp(b * b / 2 + 0.3 * b) for x in (1, b)])
        for b in (3.0, 8.0, -12.0, 20.0)
    },
    "gaussian exp(.45 h²)": ("gaussian", lambda h: (0.45 * h * h).exp(), None, 0.0, (0.1**-0.5, 0.0)),
    "gaussian Risk of .45 h²": ("gaussian", lambda h: 0.45 * h * h, gradest.Risk(), 0.0, (-0.5 * math.log(0.1), 0.0)),
    "gaussian Risk of 12 h": ("gaussian", lambda h: 12 * h, gradest.Risk(), 0.0, (72.0, 12.0)),
    "rectifier exp(12 h)": (RECTIFIED, exponential(12.0), None, 0.0, rectified(12.0)),
    "rectifier exp(.5 h)": ("noisy_rectifier", exponential(0.5), None, 0.0, (0.5 + (math.pi + 1) / 4 + 0.25, None)),
    "sigmoid 1/h": (POWERS, lambda h: 1 / h, None, 0.0, (1 + math.exp(12.5), -math.exp(12.5))),
    **{
        f"poisson {base:g}^h at {a}": ("poisson", power(base), None, a, count(base, a))
        for base, a in ((4.0, 10.0), (math.e, 30.0), (1 / math.e, 100.0), (4.0, -30.0))
    },
    "poisson Risk of h": (
        "poisson",
        lambda h: h * 1.0,
        gradest.Risk(),
        10.0,
        [x * (math.e - 1) for x in (rate(10), log_rate_slope(10))],
    ),
    "poisson 1e20 · 1[h = 1]": ("poisson", lambda h: 1e20 * (h == 1), None, -32.0, [1e20 * math.exp(-32)] * 2),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_loss_that_gives_weight_to_a_tail_is_right(case):
    neuron, f, target, a, (value, slope) = RIGHT[case]
    at = torch.tensor([[a]], dtype=torch.float64)
    loss, gradient = gradest.exact(lambda h: f(h).double().sum(-1), at, neuron, target)
    assert loss.item() == pytest.approx(value, rel=1e-3)
    if slope is not None:
        assert gradient.item() == pytest.approx(slope, rel=1e-3, abs=1e-9)


def test_a_rare_output_of_a_router_has_its_probability():
    """P(the third of three is largest), by scipy, at 14 standard deviations below the others."""
    rare, _ = integrate.quad(
        lambda x: math.exp(-((x + 14) ** 2) / 2) / math.sqrt(2 * math.pi) * special.ndtr(x) ** 2, -10, 10, epsabs=0
    )
    a = torch.tensor([[[0.0, 0.0, -14.0]]], dtype=torch.float64)
    loss, _ = gradest.exact(lambda h: 1e30 * h[..., 2].sum(-1), a, {"name": "noisy_top_k", "k": 1})
    assert loss.item() == pytest.approx(1e30 * rare, rel=1e-3)


INFINITE = {
    "gaussian": ("gaussian", lambda h: (h * h / 2).exp(), None),
    "gaussian Risk of h²": ("gaussian", lambda h: h * h, gradest.Risk()),
    "rectifier": ("noisy_rectifier", exponential(1.0), None),
    "rectifier exp(2 h)": ("noisy_rectifier", exponential(2.0), None),
    "poisson h!": ("poisson", lambda h: torch.lgamma(h + 1).exp(), None),
    "poisson Risk of h²": ("poisson", lambda h: h * h, gradest.Risk()),
    "softmax": ("gumbel_softmax", lambda h: 1 / h, None),
    "concrete": ("binary_concrete", lambda h: 1 / h, None),
}


@pytest.mark.parametrize("case", INFINITE)
def test_an_infinite_expectation_is_refused(case):
    neuron, f, target = INFINITE[case]
    neuron = gradest.neuron(neuron)
    a = torch.zeros(1, *(1, 2)[: neuron.event_ndim], dtype=torch.float64) + 1
    with pytest.raises(Inexact, match=r"not accurate for this loss: .* Use gradest\.estimate"):
        gradest.exact(lambda h: f(h).flatten(-neuron.output_ndim).sum(-1), a, neuron, target)


def test_what_no_level_reaches_is_refused():
    """Two units leave fewer levels; and a loss that overflows further out ends the refinement, as E = exp(450) here."""
    for units, slope in ((2, 20.0), (1, 30.0)):
        with pytest.raises(Inexact, match="next to impossible"):
            gradest.exact(lambda h: (slope * h).exp().sum(-1), torch.zeros(1, units, dtype=torch.float64), "gaussian")  # noqa: B023


def test_a_separable_objective_is_right_or_refused():
    class Power(gradest.Separable):
        name, summary = "power", "exp(slope h)"
        slope: float = 1.0

        def per_unit(self, h):
            return (self.slope * h).exp()

    a = torch.tensor([[0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    found = Power(slope=8.0).expectation(gradest.neuron("gaussian"), a)
    (gradient,) = torch.autograd.grad(found.sum(), a)
    wanted = torch.tensor([[math.exp(32), math.exp(36)]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted.mean(-1), rtol=1e-3, atol=0)
    torch.testing.assert_close(gradient, 4 * wanted, rtol=1e-3, atol=0)
    with pytest.raises(Inexact, match="power"):
        Power(slope=20.0).expectation(gradest.neuron("gaussian"), a)
    counts = Power().expectation(gradest.neuron("poisson"), a + 10)
    assert counts.item() == pytest.approx((count(math.e, 10.0)[0] + count(math.e, 10.5)[0]) / 2, rel=1e-3)


def test_counts_whose_law_has_no_levels_are_refused():
    class Counts(type(gradest.neuron("poisson"))):
        truncated_law = Discrete.truncated_law

        def law(self, a):
            return gradest.neuron("poisson").law(a)

    with pytest.raises(Inexact, match="truncated_law"):
        gradest.exact(lambda h: h.sum(-1), torch.zeros(1, 2), Counts())


LEVELLED = sorted(
    name for name in gradest.registry.neurons
    if levels_of_law(gradest.neuron(name), torch.zeros(1, 2)) is not None
)  # fmt: skip
ORDINARY = {
    "squares": lambda h: ((h - 0.4) ** 2).sum(-1),
    "fourth powers": lambda h: (h**4).sum(-1),
    "exponentials": lambda h: (h.sum(-1) + 3).exp(),
    "magnitude": lambda h: h.abs().sum(-1) + 1e6,
    "rectifier": lambda h: h.relu().sum(-1),
    "positive": lambda h: (h > 0).double().sum(-1),
    "constant": lambda h: 0 * h.sum(-1) + 7,
    "rarely": lambda h: (h.sum(-1) > 0).double() * 1e-9,
}


def flattened(neuron, f):
    return lambda h: f(h.flatten(-neuron.output_ndim))


@pytest.mark.parametrize("name", LEVELLED)
def test_ordinary_losses_are_accepted_as_cheaply_as_ever(name):
    """At one unit and at two. Those which do not bend within the law take a level or two more at most."""
    neuron, jumps = gradest.neuron(name), {"positive", "rarely", "magnitude", "rectifier"}
    for units in (1, 2) if neuron.output_ndim == 1 else (1,):
        event = (units, *neuron.example_events[0][1:])
        a = torch.linspace(-1.3, 0.9, math.prod(event), dtype=torch.float64).reshape(1, *event)
        for label, f in ORDINARY.items():
            if (name, label) == ("noisy_rectifier", "exponentials") or (units, label) == (2, "rarely"):
                continue  # E[exp h] is infinite with logistic noise; a jump of two units together was refused before
            seen, flat = set(), flattened(neuron, f)
            loss, gradient = gradest.exact(flat, a, neuron, progress=lambda _, points, seen=seen: seen.add(points))
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()
            if label not in jumps:
                assert len(seen) <= 4, label
