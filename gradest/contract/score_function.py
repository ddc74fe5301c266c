"""ScoreFunction: an estimator that weights the scores of independent samples by a function of their losses, their credit."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.target import Target
from gradest.errors import InvalidInput
from gradest.kernels.stable import leading_mean, leading_sum

__all__ = ["ScoreFunction"]


class ScoreFunction(MonteCarlo):
    """An estimator of the form ĝ = Σ_k weights_k d log P(h_k)/da for K independent samples h_k of a discrete neuron.

    The weights are the credit of the samples: `credit` computes them from the K losses, and needs nothing else. So the same
    estimator serves a single layer (`backward`), K whole-path samples of a model (`gradest.nn.StochasticGraph`), and a sampler of
    the caller's own (`gradest.score_surrogate`). One that is unbiased for E[L] also has second derivatives in `gradest.expect`.

    A subclass implements `credit` and, if its weights make the estimate biased, `bias`. One whose credit depends on more than the
    losses implements `features`, for layers, and `check_features`, for callers who pass their own.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (Discrete,)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: the score has mean zero, so a baseline that does not depend on h_k cancels in expectation."""
        return Bias.NONE

    @abstractmethod
    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the weights of the scores, `[K, *batch]`, and the state for the next step.

        loss: `[K, *batch]`, the losses of K samples for each element of the batch. K is `loss.shape[0]`.
        features: what `features` returned, or what the caller of `gradest.credit` passed.
        The weights of an element of the batch depend on its own losses, on its features and on the state, and on nothing else.
        """

    def of_samples(self, samples: int) -> Self:
        """Return this estimator for K samples.

        Raises InvalidInput if the option `samples` was given and is another number, and InvalidOptions if the estimator cannot do
        with so few.
        """
        if samples == self.samples:
            return self
        if "samples" in self.model_fields_set:
            raise InvalidInput(
                f"{self.label()} credits {self.samples} samples against each other, but there are {samples}; give the same "
                "number, or leave the option samples out"
            )
        return type(self).build(**{name: getattr(self, name) for name in self.model_fields_set}, samples=samples)

    def features(self, neuron: Neuron, h: Tensor, a: Tensor) -> Tensor | None:
        """Return what `credit` needs to know of the samples beside their losses, or None if it needs nothing.

        h: `[K, *batch, *event']`, samples of the neuron at `a`, which is `[*batch, *event]` or `[K, *batch, *event]`.
        """
        return None

    def check_features(self, loss: Tensor, features: Tensor | None) -> None:
        """Raise InvalidInput unless `credit` can take these features for this loss. By default it takes none.

        It may read values, and so is called only where that is possible: not inside torch.compile and torch.func.
        """
        if features is not None:
            raise InvalidInput(f"{self.name} credits samples by their losses alone; omit features")

    def credit_cost(self, loss: Tensor, features: Tensor | None) -> Cost:
        """Return what `credit` takes for losses `[K, *batch]` and these features, before it runs. By default their sizes.

        An estimator that compares all pairs of samples, or has a network, overrides it, as it does `cost`.
        """
        elements = loss.numel() + (0 if features is None else features.numel())
        return Cost(elements, elements)

    def credit_state(self, loss: Tensor, features: Tensor | None) -> State:
        """Return the state before the first call of `credit` with such arguments; it is empty for a stateless estimator."""
        return {}

    def combine(self, loss: Tensor) -> Tensor:
        """Return the estimate of the target from the losses of K samples, `[K, *batch]` to `[*batch]`, differentiable.

        By default it is the mean loss. It must agree with `value`.
        """
        return leading_mean(loss)

    def value_in(self, a: Tensor, draw: Draw, loss: Tensor, state: State) -> Tensor | None:
        """Return `value` + Σ_k w_k (P(h_k|a) / P(h_k) - 1), where P(h_k) and the points are constants and w_k is the credit.

        The ratios are 1, and their derivatives are the scores (MagicBox of Foerster et al. 2018, DiCE, arXiv 1802.05098). Each
        has the expectation 1 for every `a`. So with w_k = (L_k - b_k) / K and baselines b_k that do not depend on h_k, these
        cancel at every order (Mao et al. 2019, ICML), and the expectation is E[L] as a function of `a`. That holds for all credit
        that is unbiased for every loss: on a categorical unit, whose scores span all functions of mean zero, it means that
        Σ_k E[w_k | h_k = h] = L(h) + constant.

        None for a biased estimator and for another target than E[L], which depends on several samples at once; and for a neuron
        whose `log_prob` autograd does not differentiate.
        """
        neuron = draw.neuron
        assert isinstance(neuron, Discrete)
        if not self.bias(neuron).unbiased or self.target() != Target():
            return None
        log_prob = neuron.log_prob(draw.points, a).sum(-1)
        if not log_prob.requires_grad:
            return None
        weights, _ = self.credit(loss, state, self.features(neuron, draw.points, draw.a))
        return self.value(draw, loss) + leading_sum(weights * (torch.exp(log_prob - log_prob.detach()) - 1))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k weights_k d log P(h_k)/da, with the weights that `credit` computes, and the next state."""
        assert isinstance(draw.neuron, Discrete)
        features = self.features(draw.neuron, draw.points, draw.a)
        weights, state = self.credit(feedback.get_loss(), state, features)
        return draw.neuron.weighted_score(draw.points, draw.a, weights), state
