"""ScoreFunction: an estimator that weights the scores of independent samples by a function of their losses, their credit."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Discrete, Neuron
from gradest.errors import InvalidInput
from gradest.kernels.stable import leading_mean

__all__ = ["ScoreFunction"]


class ScoreFunction(MonteCarlo):
    """An estimator of the form ĝ = Σ_k weights_k d log P(h_k)/da for K independent samples h_k of a discrete neuron.

    The weights are the credit of the samples: `credit` computes them from the K losses, and needs nothing else. So the same
    estimator serves a single layer (`backward`), K whole-path samples of a model (`gradest.nn.StochasticGraph`), and a sampler of
    the caller's own (`gradest.score_surrogate`).

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

    def credit_state(self, loss: Tensor, features: Tensor | None) -> State:
        """Return the state before the first call of `credit` with such arguments; it is empty for a stateless estimator."""
        return {}

    def combine(self, loss: Tensor) -> Tensor:
        """Return the estimate of the target from the losses of K samples, `[K, *batch]` to `[*batch]`, differentiable.

        By default it is the mean loss. It must agree with `value`.
        """
        return leading_mean(loss)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k weights_k d log P(h_k)/da, with the weights that `credit` computes, and the next state."""
        assert isinstance(draw.neuron, Discrete)
        features = self.features(draw.neuron, draw.points, draw.a)
        weights, state = self.credit(feedback.get_loss(), state, features)
        return draw.neuron.weighted_score(draw.points, draw.a, weights), state
