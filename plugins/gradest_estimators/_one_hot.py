"""What the estimators for units of several classes share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot, event_shape
from gradest.random import Key


def softmax_backward(p: Tensor, grad: Tensor) -> Tensor:
    """(diag p - ppᵀ) grad over the last dim; p is a softmax."""
    return p * (grad - (p * grad).contiguous().sum(-1, keepdim=True))


class OneUnitAtATime(Estimator):
    """An estimator that draws h and then asks, unit by unit, what other classes of that unit would do, the other units held.

    Each unit tries m of its classes, among them the one that was drawn: K = 1 + units · (m - 1). Given the other units, which
    do not depend on this one's noise, a subclass has one categorical variable before it, with m of its C losses. Memory: the
    points, `[K, *batch, units, classes]`, once.
    """

    needs = frozenset({"loss"})
    capabilities = (SoftmaxOneHot,)

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    @abstractmethod
    def tried(self, classes: int) -> int:
        """m, of C classes."""

    @abstractmethod
    def choose(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """The m classes of each unit, `[*batch, units, m]`, the one drawn (the largest of `perturbed`) first."""

    @abstractmethod
    def weigh(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """Weights `[*batch, units, m]` with E[Σ weight_c g(c)] = Σ_c p_c g(c) for every g."""

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """1 + units · (m - 1)."""
        units, classes = event_shape
        return 1 + units * (self.tried(classes) - 1)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at h, and at h with one unit in another of its m classes."""
        assert isinstance(neuron, SoftmaxOneHot)
        units, _ = event_shape(neuron, a)
        noise = neuron.noise(key, a, 1)[0]
        chosen = self.choose(neuron, a, neuron.perturbed(a, noise))
        h = neuron.one_hot(chosen[..., 0], a)
        others = neuron.one_hot(chosen[..., 1:].movedim(-1, 0), a)  # [m - 1, *batch, units, classes]
        points = h.repeat(1 + units * len(others), *[1] * a.ndim)
        flips = points[1:].view(units, *others.shape)
        flips.diagonal(dim1=0, dim2=-2).copy_(others.movedim(-2, -1))
        weights = self.weigh(neuron, a, chosen) / max(1, units)
        # every unit has an estimate of E[L] of its own; the value is their mean
        first = weights[..., 0].contiguous().sum(-1)
        rest = weights[..., 1:].movedim(-1, 0).movedim(-1, 0)
        return Draw(
            neuron,
            a,
            key,
            points,
            torch.cat([first[None], rest.flatten(0, 1)]),
            {"chosen": chosen},
        )

    def gradient(self, draw: Draw, weighted: Tensor) -> Tensor:
        """Σ_c v_c d log p_c/da over the chosen classes c, from v `[*batch, units, m]`: v - p Σ v."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        total = weighted.contiguous().sum(-1, keepdim=True)
        sparse = torch.zeros_like(draw.a).scatter(-1, draw.saved["chosen"], weighted)
        return sparse - draw.neuron.probability(draw.a) * total


def losses_of(draw: Draw, loss: Tensor) -> Tensor:
    """The losses `[K, *batch]` of a OneUnitAtATime as `[*batch, units, m]`."""
    chosen = draw.saved["chosen"]
    units, tried = chosen.shape[-2:]
    rest = loss[1:].reshape(units, tried - 1, *loss.shape[1:]).movedim(0, -1).movedim(0, -1)
    return torch.cat([loss[0][..., None, None].expand(*loss.shape[1:], units, 1), rest], -1)
