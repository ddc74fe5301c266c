"""The score-function estimator with a learned baseline that depends on the input (NVIL)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Cost, State
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import sigmoid
from gradest.errors import InvalidInput
from gradest_estimators._learning import PARAMETERS, adam, network, network_cost, new_network, with_moments
from gradest_estimators.reinforce_average import ReinforceAverage


class Nvil(ReinforceAverage):
    """The score function with a baseline that is the sum of a learned function of a and a moving average.

    ĝ = (L - C(a) - m)(d log P(h)/da), where C is a small network of the pre-activations and m the moving average of
    earlier L - C(a).

    Unbiased for every loss: neither C(a) nor m depends on the samples of this step, and the score has mean zero. After
    its use, C is fitted to L - m by squared error with Adam. It starts as 0. Its input is tanh(a/2), which stays
    bounded where units saturate. The learning rate is in units of the loss per step.

    Introduced by Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks, arXiv 1402.0030.
    Their C is a function of the model's input x; a stochastic layer sees only a, so a takes its place. They also divide
    L - C - m by max(1, its running standard deviation). That is left out here: it rescales each layer's gradient by a
    factor that changes from step to step, after which the estimate is no longer unbiased.
    """

    name = "nvil"
    summary = "score function with a learned function of the pre-activations and a moving average as baseline"
    reference = "Mnih, Gregor 2014, arXiv 1402.0030"
    formula = r"\hat g = \bigl(L(h) - C(a) - m\bigr)\nabla_a \log P(h)"

    examples = ({}, {"samples": 3, "hidden": 2, "learning_rate": 0.1})

    hidden: int = Field(8, ge=0, le=256, description="number of hidden units of the network")
    learn: bool = Field(True, description="whether the network is learned; the moving average always is")
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="Adam's learning rate for the network")

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw with its network."""
        return network_cost(super().cost(neuron, event, batch), math.prod(event), self.hidden)

    def credit_cost(self, loss: Tensor, features: Tensor | None) -> Cost:
        """Return the cost of a step with its network, of one input for each feature."""
        given = self._check(features)
        return network_cost(super().credit_cost(loss, given), given.shape[-1], self.hidden)

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return an empty average, and the network's parameters with Adam's averages of them."""
        return self._first(a, a.shape[a.ndim - neuron.event_ndim :].numel())

    def credit_state(self, loss: Tensor, features: Tensor | None) -> State:
        """Return what `init` returns, for a network of as many inputs as there are features."""
        return self._first(loss, self._check(features).shape[-1])

    def _first(self, like: Tensor, inputs: int) -> State:
        return {**super().credit_state(like, None), **with_moments(new_network(inputs, self.hidden, like.device))}

    def features(self, neuron: Neuron, h: Tensor, a: Tensor) -> Tensor:
        """Return tanh(a/2), with the event in one dim."""
        return (sigmoid(a) - sigmoid(-a)).flatten(-neuron.event_ndim)

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - C - m) / K. Then fit C to L - m, and move m towards the mean of L - C.

        features: `[*batch, features]` or `[K, *batch, features]`, the input of C: known before the samples are drawn.
        """
        learn = self.learn and loss.numel() > 0
        with torch.enable_grad():
            parameters = {name: state[name].detach().requires_grad_(learn) for name in PARAMETERS}
            baseline = network(parameters, self._check(features))
        weights, moved = super().credit(loss - baseline.detach(), state)
        after = {**state, **moved}
        if not learn:
            return weights, after
        rest = loss.detach() - self.average(state).to(loss)
        with torch.enable_grad():
            error = (rest - baseline).double().square().mean()
            slopes = torch.autograd.grad(error, tuple(parameters.values()), materialize_grads=True)
        return weights, adam(after, dict(zip(PARAMETERS, slopes, strict=True)), self.learning_rate)

    def check_features(self, loss: Tensor, features: Tensor | None) -> None:
        """Raise InvalidInput unless the features are `[*batch, features]` or `[K, *batch, features]`, at least one of them."""
        shape = self._check(features).shape
        if shape[:-1] not in (loss.shape, loss.shape[1:]) or shape[-1] == 0:
            raise InvalidInput(
                f"{self.name} needs features of shape [*batch, features] or [K, *batch, features], at least one of them, for a "
                f"loss [K, *batch] of {list(loss.shape)}; these are {list(shape)}"
            )

    def _check(self, features: Tensor | None) -> Tensor:
        if features is None or features.ndim == 0:
            raise InvalidInput(
                f"{self.name} learns a baseline from features [*batch, features], which must be known before the samples are "
                "drawn; pass them as features"
            )
        return features
