"""Summing over the most likely classes and sampling one of the others."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_by_class


class SumAndSample(OneUnitAtATime):
    """The most likely classes T of a unit summed exactly, and one of the other classes, z, sampled.

    ĝ = Σ_{c in T} L(c) dp_c/da + (1 - P(T)) L(z) d log p_z/da for each unit, while the other units stay at one sample.
    z is drawn from the unit's law restricted to the classes outside T. So the unit's own sample is either z or in T,
    and K = 1 + units · |T|.

    Unbiased for every loss: the sum over T is exact, and 1 - P(T) is the weight that the sampled class stands for. From
    L the mean of L over T is subtracted, which does not depend on z. With all but one class in T, a single unit has no
    variance. Memory: the points, `[K, *batch, units, C]`, are held once.

    Introduced by Liu, Regier, Tripuraneni, Jordan and McAuliffe (2019), Rao-Blackwellized Stochastic Gradients for
    Discrete Distributions, arXiv 1810.04777.
    """

    name = "sum_and_sample"
    summary = "most likely classes of a unit summed exactly, one of the others sampled"
    reference = "Liu, Regier, Tripuraneni, Jordan, McAuliffe 2019, arXiv 1810.04777"
    formula = (
        r"\hat g = \sum_{c \in T} L(c)\,\nabla_a p_c + \bigl(1 - P(T)\bigr) L(z)\,\nabla_a \log p_z, \quad z "
        r"\notin T"
    )

    examples = ({}, {"summed": 2})

    summed: int = Field(1, ge=1, description="number of classes that are summed over, at most one less than there are")

    def number_tried(self, classes: int) -> int:
        """Return the number of classes summed over, at most C - 1, plus the one that is sampled."""
        return min(self.summed, classes - 1) + 1

    def choose_classes(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """Return T and z, with the unit's own sample, which is among them, first."""
        top = self._likeliest(a)
        z = perturbed.scatter(-1, top, float("-inf")).argmax(-1, keepdim=True)
        both = perturbed.new_zeros(perturbed.shape).scatter(-1, top, 1).scatter(-1, z, 1)
        return perturbed.masked_fill(both == 0, float("-inf")).topk(self.number_tried(a.shape[-1]), -1).indices

    def class_weights(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """Return p for a class in T, and for z the probability of all classes outside T."""
        p, top = neuron.probability(a), self._likeliest(a)
        left = p.scatter(-1, top, 0).sum(-1, keepdim=True)
        return left.expand_as(p).scatter(-1, top, p.gather(-1, top)).gather(-1, chosen)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_c weight_c (L(c) - mean of L over T) d log p_c/da, for c in T and z."""
        neuron, a, chosen = draw.neuron, draw.a, draw.saved["chosen"]
        assert isinstance(neuron, SoftmaxOneHot)
        loss, weight = losses_by_class(draw, feedback.get_loss()), self.class_weights(neuron, a, chosen)
        summed = a.new_zeros(a.shape).scatter(-1, self._likeliest(a), 1).gather(-1, chosen) * weight
        total = summed.contiguous().sum(-1, keepdim=True)
        baseline = (summed * loss).contiguous().sum(-1, keepdim=True) / total.clamp(min=1e-30)
        return self.weighted_class_score(draw, weight * (loss - baseline)), state

    def _likeliest(self, a: Tensor) -> Tensor:
        return a.topk(self.number_tried(a.shape[-1]) - 1, -1).indices
