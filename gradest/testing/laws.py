"""Checks of a neuron's law: do its samples, probabilities, means and derivatives belong to one distribution?

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.analysis.bias import SIGNIFICANCE_SE, network_loss, quadratic_loss
from gradest.contract.law import levels_of_law
from gradest.contract.neuron import Binary, Discrete, Neuron, Scored, event_shape, keeps_event
from gradest.estimation.exact import exact
from gradest.random import Key
from gradest.testing.assertions import expect_close
from gradest.testing.inputs import all_of_unit, broadcast_weights, random_normal, random_pre_activations

__all__ = ["neuron_derivatives_agree", "neuron_exact_agrees", "neuron_law_agrees", "neuron_units_are_independent"]

_ATOM = 1e-9  # an end of a law with more probability is no cut through a tail


def neuron_law_agrees(neuron: Neuron) -> None:
    """Check that `law`, `log_prob`, `mean`, `active_probability` and 40,000 samples agree with each other.

    What follows from `law` must agree within a small tolerance, and averages over samples within five standard errors. Where
    the law is an approximation, a further level of it must reach further.
    """
    draws = 40_000
    a = random_pre_activations(neuron, (4,), torch.float64) * 1.5
    values, weights = neuron.law(a)
    if isinstance(neuron, Discrete):
        expect_close("exp(log_prob) and the weights of law", neuron.log_prob(values, a).exp(), weights, 1e-9)
    weights = broadcast_weights(neuron, weights)
    _levels_reach_further(neuron, a)
    expect_close("the sum of the weights of law and 1", weights.sum(0), torch.ones_like(weights[0]), 1e-7)
    expect_close("mean and the mean of law", neuron.mean(a), (weights * values).sum(0), 1e-6)
    positive = (weights * (values > 0)).sum(0)
    active = neuron.active_probability(a)
    expect_close("active_probability and P(h > 0) of law", active, positive.expand_as(active), 1e-6)
    h = neuron.forward(a, neuron.noise(Key(11), a, draws))
    for name, sampled, wanted, variance in (
        ("the mean of samples", h, neuron.mean(a), h.var(0)),
        ("the share of positive samples", (h > 0).double(), active, active * (1 - active)),
    ):
        error = (variance / draws).sqrt() + 1e-9
        worst = float(((sampled.mean(0) - wanted) / error).abs().max())
        assert worst < SIGNIFICANCE_SE, f"{name} is {worst:.1f} standard errors off the value that the neuron states"


def _levels_reach_further(neuron: Neuron, a: Tensor) -> None:
    levels = levels_of_law(neuron, a)
    if levels is None:
        return
    (values, weights), (further, _) = levels(0), levels(1)
    weights = broadcast_weights(neuron, weights).expand(values.shape)
    least = 1 if isinstance(neuron, Discrete) else 2  # one node may be beyond only because nodes are denser at level 1
    for sign in (1, -1):
        x = sign * values
        end = x.where(weights > 0, -torch.inf).amax(0)
        is_bound = ((weights * (x == end)).sum(0) > _ATOM) | (end == 0) | (end.abs() == 1)
        assert bool((is_bound | ((sign * further > end).sum(0) >= least)).all()), (
            "level 1 of the law reaches no further into a tail than level 0, so two levels agree on a wrong number for a loss "
            "that gives weight to what lies beyond; widen the range of the outputs with the level"
        )


def neuron_exact_agrees(neuron: Neuron) -> None:
    """Check that `gradest.exact` agrees with 40,000 of the neuron's own samples, and its gradient with its value.

    Each output of a finite unit must have the probability that `law` states, as a whole vector if it is one, and there must be no
    other outputs. E[L] of a quadratic loss and of a network, in which units meet, must be the mean over samples within five
    standard errors. For the network, the gradient must be the finite difference of the value to 2 %.
    """
    draws = 40_000
    a = random_pre_activations(neuron, (4,), torch.float64) * 1.5
    h = neuron.sample(Key(23), a, draws)
    if isinstance(neuron, Discrete):
        values, weights = neuron.law(a)
        seen = torch.zeros((), dtype=torch.float64)
        for value, weight in zip(values, weights, strict=True):
            share = all_of_unit(neuron, h == value).double().mean(0)
            seen = seen + share
            # the last term allows for the skewness of rare outputs
            error = (weight * (1 - weight)).clamp(min=0).sqrt() / draws**0.5 + 3 / draws
            worst = float(((share - weight) / error).abs().max())
            assert worst < SIGNIFICANCE_SE, (
                f"the share of samples with one of the outputs of law is {worst:.1f} standard errors off its weight"
            )
        assert not neuron.finite or float(seen.min()) > 1 - 1e-9, "forward gives outputs that law does not list"
    direction = a.roll(1, 0).cos() + 1.5
    for name, f in (("squared", quadratic_loss(neuron)), ("network", network_loss(neuron))):
        value, gradient = exact(f, a, neuron)
        sampled = f(h)
        error = sampled.std(0) / draws**0.5 + 1e-6
        worst = float(((sampled.mean(0) - value) / error).abs().max())
        assert worst < SIGNIFICANCE_SE, (
            f"exact is {worst:.1f} standard errors off the mean {name} loss over samples: are units independent, as it assumes?"
        )
    # the last loss is the network
    size = 1e-3
    # one row is enough for the difference: a quadrature of several classes takes a second a row
    upper, lower = (exact(f, (a + step * direction)[:1], neuron)[0] for step in (size, -size))
    slope, stated = (upper - lower) / (2 * size), (gradient * direction).flatten(1).sum(-1)[:1]
    scale = float(slope.abs().max()) + 1e-2
    expect_close("the gradient of exact and the difference of its values", stated, slope, 0.02 * scale)


def neuron_units_are_independent(neuron: Neuron) -> None:
    """Check on 40,000 samples that the outputs of units, rows and draws are independent, as `exact` and estimators assume.

    For two units of one row or of two, and for one draw and the next, all products of their centred outputs and centred squares
    must have mean 0; for three units of a row, the products of their centred outputs. Within five standard errors, with an
    allowance for outputs so rare that two of them seldom or never meet. The event is the example with most units; one of 3 units
    if the neuron lists no examples.
    """
    draws, rows = 40_000, 2
    event = max(neuron.example_events, key=lambda event: event[0])
    if keeps_event(neuron) and len(neuron.example_events) == 1:
        event = (3, *event[1:])
    a = random_normal((rows, *event), torch.float64)
    units = neuron.output_event(event)[0]
    h = neuron.sample(Key(29), a, draws).double().reshape(draws, rows * units, -1)
    once = h - h.mean(0)
    both = torch.cat([once, once.square() - once.square().mean(0)], -1)
    near = [(i, j) for i in range(rows * units) for j in range(i)]
    for name, one, two, pairs in (
        ("two units", both, both, near),
        (
            "a draw and the next",
            both[:-1],
            both[1:],
            [(i, j) for i in range(rows * units) for j in range(rows * units)],
        ),
    ):
        product = torch.einsum("nic,njd->ijcd", one, two) / draws
        square, largest = (torch.einsum("ic,jd->ijcd", of(one), of(two)) for of in (_mean_square, _largest))
        first, second = zip(*pairs, strict=True)
        _expect_no_moment(name, product[first, second], square[first, second], largest[first, second], draws)
    for row in range(rows if units >= 3 else 0):
        x, y, z = (once[:, row * units + unit] for unit in range(3))
        product = torch.einsum("nc,nd,ne->cde", x, y, z) / draws
        square, largest = (torch.einsum("c,d,e->cde", of(x), of(y), of(z)) for of in (_mean_square, _largest))
        _expect_no_moment("three units", product, square, largest, draws)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(0)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax(0)


def _expect_no_moment(name: str, product: Tensor, square: Tensor, largest: Tensor, draws: int) -> None:
    """Expect the means of products to be 0 within five standard errors of products of independent factors.

    square: the products of the factors' mean squares. largest: those of their largest magnitudes, by which the error allows for
    the skewness of products of rare outputs.
    """
    error = (square / draws).sqrt() + 3 * largest / draws + 1e-9
    worst = float((product / error).abs().max())
    assert worst < SIGNIFICANCE_SE, (
        f"the outputs of {name} are not independent: a moment is {worst:.1f} standard errors off 0"
    )


def neuron_derivatives_agree(neuron: Neuron) -> None:
    """Check that `backward` is the derivative of `forward` at fixed noise, and `score` that of `log_prob`, with mean 0.

    `backward` is compared with a finite difference of `forward`. They must agree for 99 % of the units: in the others, `forward`
    may jump between the two points of the difference. `mean` of a binary neuron is compared with its `probability`.
    """
    a, size = random_pre_activations(neuron, (200,), torch.float64) * 2, 1e-6
    noise = neuron.noise(Key(13), a, 1)
    step, grad = a.roll(1, 0).cos() + 1.5, neuron.mean(a).roll(2, 0).cos() + 1.5
    upper, lower = neuron.forward(a + size * step, noise), neuron.forward(a - size * step, noise)
    slope = (grad * (upper - lower) / (2 * size)).flatten(-neuron.output_ndim)
    given = (neuron.backward(a, noise, grad.expand_as(upper)) * step).flatten(-neuron.event_ndim)
    if units := _aligned_units(
        neuron, a
    ):  # an output of a unit may depend on all of its pre-activations, and on no others
        slope, given = (x.reshape(*x.shape[:-1], units, -1) for x in (slope, given))
    slope, given = slope.sum(-1), given.sum(-1)
    smooth = (slope - given).abs() < 1e-4 * (1 + slope.abs())
    assert float(smooth.double().mean()) > 0.99, "backward is not the derivative of forward at fixed noise"
    if isinstance(neuron, Scored):
        h = neuron.forward(a, noise)
        values, weights = neuron.law(a)
        score = neuron.score(values, a)
        if units := _aligned_units(neuron, a):
            centre = (weights[..., None] * score.reshape(*weights.shape[:-1], units, -1)).sum(0)
        else:
            centre = torch.zeros(())
        expect_close("E[score] and 0", centre, torch.zeros_like(centre), 1e-9)
        if isinstance(neuron, Discrete):
            moved = a.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(neuron.log_prob(h, moved).sum(), moved)
            expect_close("score and the derivative of log_prob", neuron.score(h, a)[0], wanted, 1e-9)
    if isinstance(neuron, Binary):
        p = neuron.probability(a)
        stated = neuron.low + (neuron.high - neuron.low) * p
        expect_close("mean and low + (high - low) · probability", neuron.mean(a), stated, 1e-9)


def _aligned_units(neuron: Neuron, a: Tensor) -> int:
    """Return the number of units if there is one, or if the first dim of `a`'s event counts them, else 0."""
    event = event_shape(neuron, a)
    units = neuron.output_event(event)[0]
    return units if units in (1, event[0]) else 0
