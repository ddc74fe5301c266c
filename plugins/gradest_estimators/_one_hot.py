"""Shared parts of the estimators for units of several classes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot, event_shape
from gradest.contract.numerics import drop_impossible
from gradest.random import Key


def softmax_vjp(p: Tensor, grad: Tensor) -> Tensor:
    """Return (diag p - ppᵀ) grad over the last dimension: grad times the Jacobian of a softmax whose value is p."""
    return p * (grad - (p * grad).contiguous().sum(-1, keepdim=True))


class OneUnitAtATime(Estimator):
    """An estimator that draws h and evaluates the loss with one unit at a time moved to other classes.

    Each unit tries m of its C classes, the drawn one among them, while the other units stay as drawn. So
    K = 1 + units · (m - 1), and the points, `[K, *batch, units, C]`, are held in memory once. The other units do not
    depend on the noise of this one. Given them, a subclass only has to estimate the gradient for one categorical
    variable, from its losses at m classes.
    """

    needs = frozenset({"loss"})
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (SoftmaxOneHot,)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss.

        Given the other units, the weighted sum over the chosen classes has the mean of the exact sum over all classes,
        and subclasses subtract only baselines that do not change that mean.
        """
        return Bias.NONE

    @abstractmethod
    def number_tried(self, classes: int) -> int:
        """Return m, the number of classes that a unit of this many classes tries."""

    @abstractmethod
    def choose_classes(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """Return the m classes that each unit tries, `[*batch, units, m]`, with the drawn one first.

        The drawn class is the one where `perturbed` is largest.
        """

    @abstractmethod
    def class_weights(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights w of the chosen classes, `[*batch, units, m]`, with E[Σ_c w_c g(c)] = Σ_c p_c g(c) for every g."""

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 1 + units · (m - 1)."""
        units, classes = event_shape
        return 1 + units * (self.number_tried(classes) - 1)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at h, and at h with one unit moved to another of its m classes."""
        assert isinstance(neuron, SoftmaxOneHot)
        units, _ = event_shape(neuron, a)
        noise = neuron.noise(key, a, 1)[0]
        chosen = self.choose_classes(neuron, a, neuron.perturbed(a, noise))
        h = neuron.one_hot(chosen[..., 0], a)
        others = neuron.one_hot(chosen[..., 1:].movedim(-1, 0), a)  # [m - 1, *batch, units, classes]
        points = h.repeat(1 + units * len(others), *[1] * a.ndim)
        flips = points[1:].view(units, *others.shape)
        flips.diagonal(dim1=0, dim2=-2).copy_(others.movedim(-2, -1))
        weights = self.class_weights(neuron, a, chosen) / max(1, units)
        # each unit gives an estimate of E[L]; the value is the mean of these estimates, or without units the loss itself
        first = weights[..., 0].contiguous().sum(-1) if units else a.new_ones(a.shape[:-2])
        rest = weights[..., 1:].movedim(-1, 0).movedim(-1, 0)
        return Draw(
            neuron,
            a,
            key,
            points,
            torch.cat([first[None], rest.flatten(0, 1)]),
            {"chosen": chosen},
        )

    def weighted_class_score(self, draw: Draw, weighted: Tensor) -> Tensor:
        """Return Σ_c v_c d log p_c/da over the chosen classes c, which is v - p Σ_c v_c, `[*batch, units, classes]`.

        `weighted` holds v, `[*batch, units, m]`.
        """
        assert isinstance(draw.neuron, SoftmaxOneHot)
        weighted = weighted.to(draw.a)  # losses may be wider than a, and their differences have been taken
        total = weighted.contiguous().sum(-1, keepdim=True)
        sparse = weighted.new_zeros(draw.a.shape).scatter(-1, draw.saved["chosen"], weighted)
        return sparse - draw.neuron.probability(draw.a) * total


def losses_by_class(draw: Draw, loss: Tensor) -> Tensor:
    """Return the losses `[K, *batch]` of a `OneUnitAtATime`, arranged by unit and chosen class: `[*batch, units, m]`.

    Those of classes without probability are 0.
    """
    loss = drop_impossible(loss, draw.weights)
    chosen = draw.saved["chosen"]
    units, number_tried = chosen.shape[-2:]
    rest = loss[1:].reshape(units, number_tried - 1, *loss.shape[1:]).movedim(0, -1).movedim(0, -1)
    return torch.cat([loss[0][..., None, None].expand(*loss.shape[1:], units, 1), rest], -1)
