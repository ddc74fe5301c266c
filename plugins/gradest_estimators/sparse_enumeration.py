"""Exact marginalisation over the classes that have weight."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.law import configurations, count_configurations
from gradest.contract.neuron import Neuron, RandomOneHot, per_event
from gradest.contract.numerics import drop_impossible, leading_sum, portable
from gradest.random import Key
from gradest_estimators._score import scores


class SparseEnumeration(Estimator):
    """The sum over the classes of a one-hot unit that have weight: exact if they are at most m, and else one more is drawn.

    ĝ = Σ_h w(h) (L(h) - L(h_0)) d log P(h)/da over the configurations h of m classes of each unit. Those are its m - 1 most
    probable classes, each with its probability, and a single one for all the rest: drawn from them in proportion to their
    probabilities, with the sum of these as its weight. h_0 has the most probable class of each unit. w(h) is the product
    over units. If a unit has at most m classes with weight, as `sparse_categorical` has, the rest is a single class, so
    that the sum is exact and has no variance. The option `support` is m.

    Unbiased for every loss in either case: the class that is drawn stands for the rest in the mean, the units are drawn
    independently, and h_0 is not drawn.

    K = m^D for D units (C^D if there are only C classes), the same for all rows of a batch. Raises TooManyPoints above
    2^20. Where fewer than m classes have weight, the remaining points repeat the most probable class with weight 0, so that
    the loss is evaluated only at outputs that the unit gives. Memory: three to five times the points, `[K, *batch, D, C]`.

    Described by Correia, Niculae, Aziz and Martins (2020), Efficient Marginalization of Discrete and Structured Latent
    Variables via Sparsity, arXiv 2007.01919, for at most m classes; the draw from the rest is that of Liu, Regier, Tripuraneni,
    Jordan and McAuliffe (2019), arXiv 1810.04777.
    """

    name = "sparse_enumeration"
    summary = "the sum over the classes that have weight: exact if they are few"
    reference = "Correia, Niculae, Aziz, Martins 2020, arXiv 2007.01919"
    formula = r"\hat g = \sum_{h:\,P(h) > 0} L(h)\,\nabla_a P(h)"
    needs = frozenset({"loss"})
    capabilities = (RandomOneHot,)

    examples = ({}, {"support": 2})

    support: int = Field(8, ge=2, description="number m of classes of each unit for which the loss is evaluated")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: every class has its probability as weight, by itself or in the mean."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = m^D; raise TooManyPoints if it exceeds 2^20."""
        return count_configurations(neuron, event_shape, min(self.support, event_shape[-1]))

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at every configuration of the m classes of each unit."""
        assert isinstance(neuron, RandomOneHot)
        total = self.evaluations(neuron, tuple(a.shape[-2:]))
        p = neuron.mean(a)  # E[h] of a one-hot output
        listed, order = p.sort(dim=-1, descending=True, stable=True)
        first = order[..., :1]
        kept = min(self.support, a.shape[-1]) - 1
        rest = p.scatter(-1, order[..., :kept], 0.0)
        wait = -portable.log(key.uniform_like(a, 1, neuron.event_ndim)[0]) / rest  # infinite for a class without weight
        classes = torch.cat([order[..., :kept], wait.argmin(-1, keepdim=True)], -1)
        weights = torch.cat([listed[..., :kept], rest.contiguous().sum(-1, keepdim=True)], -1)
        classes = torch.where(weights > 0, classes, first)
        law = neuron.one_hot(classes.movedim(-1, 0), a), weights.movedim(-1, 0)
        points, joint = configurations(neuron, a, law, 0, total)
        return Draw(neuron, a, key, points, joint)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k w_k (L_k - L_0) score_k.

        The first configuration has the most probable classes, which are not drawn, so that subtracting its loss leaves the mean
        as it is.
        """
        loss = drop_impossible(feedback.get_loss(), draw.weights)
        return leading_sum(per_event(draw.weights * (loss - loss[:1]), draw.neuron) * scores(draw)), state
