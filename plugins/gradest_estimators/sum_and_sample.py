"""Summing over the likely classes and sampling one of the others."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_of


class SumAndSample(OneUnitAtATime):
    """ĝ = Σ_{c in T} L(c) dp_c/da + (1 - P(T)) L(z) d log p_z/da, T the likeliest classes and z one of the others. Unbiased.

    For each unit, the other units held at one sample. z is drawn from the law of the unit restricted to the classes outside
    T, so that it is the class of the unit's own sample or that sample is in T; K = 1 + units · |T|. From L the mean of L over
    T is subtracted, which does not depend on z. With all but one class in T one unit has no variance.
    Memory: the points once, `[K, *batch, units, C]`.
    """

    name = "sum_and_sample"
    summary = "the likely classes of a unit exactly, one of the others sampled"
    reference = "Liu, Regier, Tripuraneni, Jordan, McAuliffe 2019, arXiv 1810.04777"
    formula = (
        r"\hat g = \sum_{c \in T} L(c)\,\nabla_a p_c + \bigl(1 - P(T)\bigr) L(z)\,\nabla_a \log p_z, \quad z "
        r"\notin T"
    )

    examples = ({}, {"summed": 2})

    summed: int = Field(1, ge=1, description="how many classes, of C at most C - 1, are summed over")

    def tried(self, classes: int) -> int:
        """Those summed over, and one."""
        return min(self.summed, classes - 1) + 1

    def choose(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """T and z, the class drawn first: it is one of them."""
        top = self._top(a)
        z = perturbed.scatter(-1, top, float("-inf")).argmax(-1, keepdim=True)
        both = perturbed.new_zeros(perturbed.shape).scatter(-1, top, 1).scatter(-1, z, 1)
        return perturbed.masked_fill(both == 0, float("-inf")).topk(self.tried(a.shape[-1]), -1).indices

    def weigh(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """p where a class is in T, and all that is left for z."""
        p, top = neuron.probability(a), self._top(a)
        left = p.scatter(-1, top, 0).sum(-1, keepdim=True)
        return left.expand_as(p).scatter(-1, top, p.gather(-1, top)).gather(-1, chosen)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Σ_c weight_c (L(c) - mean of L over T) d log p_c/da over T and z."""
        neuron, a, chosen = draw.neuron, draw.a, draw.saved["chosen"]
        assert isinstance(neuron, SoftmaxOneHot)
        loss, weight = losses_of(draw, feedback.get_loss()), self.weigh(neuron, a, chosen)
        summed = a.new_zeros(a.shape).scatter(-1, self._top(a), 1).gather(-1, chosen) * weight
        total = summed.contiguous().sum(-1, keepdim=True)
        baseline = (summed * loss).contiguous().sum(-1, keepdim=True) / total.clamp(min=1e-30)
        return self.gradient(draw, weight * (loss - baseline)), state

    def _top(self, a: Tensor) -> Tensor:
        return a.topk(self.tried(a.shape[-1]) - 1, -1).indices
