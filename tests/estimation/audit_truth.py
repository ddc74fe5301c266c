"""What the audit compares gradients with: laws of units, losses, and sums over all outputs, which share no code with the library.

Noise with a density is summed over a grid of what it is added to, on which the density is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import gradest
from gradest.contract.neuron import output_shape

ROWS = 2
"""Rows of the batch, which the audit repeats."""

_PRE_ACTIVATIONS = torch.tensor([[0.9, -1.1, 1.4], [-0.7, 1.2, 0.6]])

Law = tuple[Tensor, Tensor]


# --- laws -----------------------------------------------------------------------------------------


def _units(neuron: gradest.Neuron) -> int:
    """Three units where that leaves few configurations, else two."""
    if neuron.name == "correlated_binary_concrete":  # whose group has thousands of nodes
        return 1
    few = {
        "bernoulli",
        "bipolar",
        "categorical",
        "stochastic_times_smooth",
        "heaviside",
        "rectifier",
        "sigmoid",
        "sign",
        "argmax",
    }
    return 3 if neuron.name in few or getattr(neuron, "trials", 9) <= 4 else 2


def pre_activations(neuron: gradest.Neuron) -> Tensor:
    """Two different rows, float32: `[2, units]`, or `[2, units, 3]` for units of three classes."""
    a = _PRE_ACTIVATIONS[:, : _units(neuron)]
    if neuron.event_ndim == 1:
        return a
    several = torch.stack([a, 0.4 - 0.6 * a.roll(1, 1), 0.3 * a.flip(0)], -1)[..., : neuron.example_events[0][1]]
    # a class of small probability p has a score of 1/p there, so that what is not drawn by chance would seem to be a bias
    return 0.2 * several if neuron.name == "sparse_categorical" else several


def _logistic(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _grid(a: Tensor, reach: float, step: float) -> Tensor:
    """Multiples of the step that cover all of `a`, and `reach` to either side."""
    first, last = math.floor((float(a.min()) - reach) / step), math.ceil((float(a.max()) + reach) / step)
    return torch.arange(first, last + 1, dtype=torch.float64) * step


def _noisy(a: Tensor, noise: str, std: float, output: Callable[[Tensor], Tensor]) -> Law:
    """The law of output(a + noise). The grid of a + noise stays where it is; the density there is differentiated."""
    reach, step = (22.0, 0.08) if noise == "logistic" else (8.5 * std, 0.04 * std)
    x = _grid(a.detach(), reach, step)[:, None, None]
    z = x - a
    if noise == "logistic":
        density = _logistic(z) * _logistic(-z)
    else:
        density = torch.exp(-0.5 * (z / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return output(x).expand(-1, *a.shape), step * density


def _diagonal_gaussian(a: Tensor) -> Law:
    """The law of N(mean, std²), with the mean and log std in the last dim of `a`, as `_noisy` has it."""
    mean, std = a[..., 0], torch.exp(a[..., 1])
    step = 0.04 * float(std.detach().min())
    x = _grid(mean.detach(), 8.5 * float(std.detach().max()), step)[:, None, None]
    density = torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return x.expand(-1, *mean.shape), step * density


def _gumbel_softmax(a: Tensor, temperature: float) -> Law:
    """The law of softmax((a + Gumbel noise)/temperature) for three classes, by the two differences to the last class.

    Differences of independent Gumbel variables have the distribution function 1/(1 + e^-x + e^-y) and its density.
    """
    step, (m, n) = 0.7, (a[..., 0] - a[..., 2], a[..., 1] - a[..., 2])
    x, y = _grid(m.detach(), 16.0, step), _grid(n.detach(), 16.0, step)
    x, y = (given.reshape(-1, 1, 1) for given in torch.meshgrid(x, y, indexing="ij"))
    u, v = torch.exp(-(x - m)), torch.exp(-(y - n))
    weights = step**2 * 2 * u * v / (1 + u + v) ** 3
    kept = weights.detach().amax((1, 2)) > 1e-8
    h = torch.softmax(torch.stack([x, y, torch.zeros_like(x)], -1)[kept] / temperature, -1)
    return h.expand(-1, *a.shape), weights[kept]


def _counts(probabilities: Sequence[Tensor]) -> Law:
    weights = torch.stack(list(probabilities))
    return torch.arange(len(weights), dtype=torch.float64)[:, None, None].expand_as(weights), weights


def _binomial(a: Tensor, trials: int) -> Law:
    p = _logistic(a)
    return _counts([math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)])


def _poisson(a: Tensor) -> Law:
    """Up to 21, beyond which less than 1e-10 lies for the rates of the audit."""
    rate = torch.log(1 + torch.exp(a))
    return _counts([torch.exp(-rate) * rate**k / float(math.factorial(k)) for k in range(22)])


def _bipolar(a: Tensor) -> Law:
    values, weights = _binomial(a, 1)
    return 2 * values - 1, weights


def _categorical(a: Tensor) -> Law:
    classes = torch.eye(a.shape[-1], dtype=torch.float64)[:, None, None].expand(-1, *a.shape)
    return classes, (torch.exp(a) / torch.exp(a).sum(-1, keepdim=True)).movedim(-1, 0)


def _stochastic_times_smooth(a: Tensor) -> Law:
    root = _logistic(a).sqrt()
    return torch.stack([torch.zeros_like(root), root]), torch.stack([1 - root, root])


def _stochastic_rounding(a: Tensor, step: float) -> Law:
    down = torch.floor(a.detach() / step) * step
    up = (a - down) / step
    return torch.stack([down, down + step]), torch.stack([1 - up, up])


def _argmax(a: Tensor) -> Law:
    return (a == a.amax(-1, keepdim=True)).double()[None], torch.ones_like(a[..., 0])[None]


def _correlated_bernoulli(a: Tensor, correlation: float) -> Law:
    """All outputs of a group, by a sum over a grid of the factor, given which the units are independent."""
    n, factor = a.shape[-1], torch.arange(-9, 9, 0.02, dtype=torch.float64)[:, None, None, None]
    place = torch.special.ndtri(_logistic(a)) + math.sqrt(correlation) * factor
    p = torch.special.ndtr(place / math.sqrt(1 - correlation))
    share = 0.02 / math.sqrt(2 * math.pi) * torch.exp(-0.5 * factor[..., 0] ** 2)
    outputs = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * n).reshape(-1, n)
    weights = [(share * torch.where(h > 0, p, 1 - p).prod(-1)).sum(0) for h in outputs]
    return outputs[:, None, None].expand(-1, *a.shape), torch.stack(weights)


def _certain(h: Tensor) -> Law:
    return h[None], torch.ones_like(h)[None]


def _hard_concrete(a: Tensor, temperature: float, lower: float, upper: float) -> Law:
    return _noisy(a, "logistic", 1.0, lambda x: (lower + (upper - lower) * _logistic(x / temperature)).clamp(0, 1))


_LAWS: dict[str, Callable[..., Law]] = {
    "bernoulli": lambda a: _binomial(a, 1),
    "bipolar": _bipolar,
    "binomial": _binomial,
    "poisson": _poisson,
    "categorical": _categorical,
    "correlated_bernoulli": _correlated_bernoulli,
    "stochastic_times_smooth": _stochastic_times_smooth,
    "stochastic_rounding": _stochastic_rounding,
    "argmax": _argmax,
    "sign": lambda a: _certain(torch.sign(a)),
    "heaviside": lambda a: _certain((a > 0).double()),
    "rectifier": lambda a: _certain(a.clamp(min=0)),
    "sigmoid": lambda a: _certain(_logistic(a)),
    "diagonal_gaussian": _diagonal_gaussian,
    "gaussian": lambda a, std: _noisy(a, "gaussian", std, lambda x: x),
    "noisy_rectifier": lambda a, distribution, std: _noisy(a, distribution, std or 1.0, lambda x: x.clamp(min=0)),
    "stochastic_gate": lambda a, std: _noisy(a, "gaussian", std, lambda x: (x + 0.5).clamp(0, 1)),
    "noisy_sigmoid": lambda a, std: _noisy(a, "gaussian", std, _logistic),
    "binary_concrete": lambda a, temperature: _noisy(a, "logistic", 1.0, lambda x: _logistic(x / temperature)),
    "hard_concrete": _hard_concrete,
    "gumbel_softmax": _gumbel_softmax,
}


def law(neuron: gradest.Neuron, a: Tensor) -> Law:
    """The outputs of each unit `[S, *a.shape]` and their probabilities `[S, 2, units]`, differentiable in `a`, float64."""
    if neuron.name not in _LAWS:  # its own, which the conformance kit compares with samples
        values, weights = neuron.law(a)
        return values.expand(-1, *output_shape(neuron, a)), weights
    return _LAWS[neuron.name](a, **neuron.model_dump())


def _joint(neuron: gradest.Neuron, a: Tensor) -> tuple[Tensor, Tensor]:
    """All configurations of independent units, `[N, *a.shape]`, and their probabilities, `[N, 2]`."""
    values, weights = law(neuron, a)
    units, outputs = weights.shape[-1], torch.arange(len(weights))
    which = torch.cartesian_prod(*[outputs] * units).reshape(-1, units)
    h = torch.stack([values[which[:, unit], :, unit] for unit in range(units)], 2)
    return h, torch.stack([weights[which[:, unit], :, unit] for unit in range(units)]).prod(0)


# --- losses ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AuditLoss:
    """A loss of h `[..., rows, *event]`, made for a neuron.

    make: takes one number of each unit, `[..., rows, units]`, the weights of the rows, and the parameters; returns `[..., rows]`.
    degree: that of the loss as a polynomial in h. parameters: of its own. jumps: whether it is discontinuous.
    """

    make: Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor]
    degree: float = math.inf
    parameters: tuple[Tensor, ...] = ()
    jumps: bool = False

    def at(self, neuron: gradest.Neuron, h: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return the losses of these outputs. The parameters lead with the rows."""
        u, weight = h, torch.tensor([0.2, 1.0, -0.7]).to(h)
        for _ in range(neuron.output_ndim - 1):
            u = (u * weight[: u.shape[-1]]).sum(-1)
        if neuron.name == "bipolar":
            u = u / 2  # its outputs are then as far apart as those of a Bernoulli unit
        row_weights = torch.tensor([1.0, -0.6]).to(h).repeat(h.shape[h.ndim - neuron.output_ndim - 1] // ROWS)
        return self.make(u, row_weights, parameters)


def _sum(u: Tensor) -> Tensor:
    """A sum over units, whose weights differ."""
    return (u * torch.tensor([0.8, -1.2, 0.6])[: u.shape[-1]].to(u)).sum(-1)


def _product(u: Tensor, row_weights: Tensor, _: tuple[Tensor, ...]) -> Tensor:
    return (u + torch.tensor([0.6, -0.2, 0.9])[: u.shape[-1]].to(u)).prod(-1)


def _network(u: Tensor, row_weights: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """A hidden layer of four units and an output unit; each row has its copy of the parameters, which lead with rows."""
    inner, outer = parameters
    hidden = torch.tanh((u[..., None, :] * inner[..., : u.shape[-1]].to(u)).sum(-1) + 0.3)
    return torch.tanh((hidden * outer.to(u)).sum(-1)) + hidden[..., 0] * hidden[..., 1]


_INNER = torch.tensor([[1.1, -0.7, 0.4], [-0.9, 1.3, 0.8], [0.5, 0.6, -1.2], [1.4, -0.3, 0.7]])
_OUTER = torch.tensor([0.9, -1.1, 0.7, 0.5])

LOSSES = {
    "linear": AuditLoss(lambda u, *_: 1.5 * _sum(u) - 0.2, degree=1),
    "quadratic": AuditLoss(lambda u, *_: (_sum(u) + 0.4).square(), degree=2),
    "interaction": AuditLoss(_product, degree=3),
    "parity": AuditLoss(lambda u, *_: torch.cos(math.pi * u.sum(-1) + 0.4) + 0.2 * u[..., 0]),
    "offset": AuditLoss(lambda u, *_: 1e3 + 60 * (_sum(u) - 0.3).square() + 60 * _sum(u), degree=2),
    "saturating": AuditLoss(lambda u, *_: torch.tanh(1.2 * _sum(u) - 0.4)),
    "rows": AuditLoss(
        lambda u, c, _: c * (torch.floor(1.7 * u[..., 0] + 0.551) + 0.5 * torch.floor(2.3 * _sum(u) + 0.231)),
        jumps=True,
    ),
    "network": AuditLoss(_network, parameters=(_INNER, _OUTER)),
}
"""The losses by name. "parity" is, up to a tilt, that of the outputs of binary units; "offset" lies above 1,000; "rows"
weights the rows of the batch differently, and jumps; "network" has parameters, whose gradients are audited too."""

KINKED = AuditLoss(lambda u, c, _: c * ((1.7 * u[..., 0] - 0.4).abs() + torch.relu(2.3 * _sum(u) + 0.2)))
"""Takes the place of the loss that jumps where a claim excludes jumps."""


# --- the exact gradient ---------------------------------------------------------------------------


def _combined(loss: Tensor, target: gradest.Target) -> Tensor:
    """The value of two samples for all pairs of configurations, `[N, N, 2]`."""
    one, two = loss[:, None], loss[None]
    if type(target).__name__ == "MaxOfSamples":
        return torch.minimum(one, two)
    return math.log(2) - torch.logaddexp(-one, -two)


def exact(neuron: gradest.Neuron, loss: AuditLoss, target: gradest.Target) -> list[Tensor]:
    """The gradients in the pre-activations and in the loss's parameters (of each row), flattened to `[2, ...]`, float64."""
    a = pre_activations(neuron).double().requires_grad_()
    parameters = tuple(given.double().expand(ROWS, *given.shape).requires_grad_() for given in loss.parameters)
    h, p = _joint(neuron, a)
    losses = loss.at(neuron, h, parameters)
    if target.samples == 1:
        value = (p * losses).sum()
    else:
        assert target.samples == 2, "targets of more samples are to be written here"
        value = (p[:, None] * p[None] * _combined(losses, target)).sum()
    if not value.requires_grad:  # a step, whose output does not move
        return [torch.zeros_like(a).flatten(1)]
    found = torch.autograd.grad(value, (a, *parameters), materialize_grads=True)
    return [given.flatten(1) for given in found]
