"""What learned control variates share: a small network whose rows do not touch, Adam, and the step that lowers the variance.

Parameters and moments are float64 whatever the loss is: the second moment of the gradient of a squared estimate goes with the
fourth power of the loss, which leaves the range of float32 from 4e9 on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import sigmoid

PARAMETERS = ("inner", "outer", "linear", "constant")
"""The names of a network's parameters."""

_MOMENTS = {"_mean": 0.9, "_square": 0.999}  # Adam's averages of the gradient and of its square, and their decays
_TINY = 1e-30


def new_network(inputs: int, hidden: int, device: torch.device) -> State:
    """Parameters of `network`: fixed pseudo-random weights inside, zero outside, so that it starts as the zero function."""
    inner = torch.randn(hidden, inputs + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    zeros = inner.new_zeros
    return {"inner": inner, "outer": zeros(hidden), "linear": zeros(inputs), "constant": zeros(())}


def network(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """x `[..., D]` to `[...]`: linear in x, plus a hidden layer of H tanh units.

    One hidden unit at a time, with products and sums over a contiguous last dim, so that a row has the same bits in any batch.
    The division by √D and √H keeps what Adam's unceasing steps do to the output independent of the size of the network.
    """
    x = x.contiguous() / x.shape[-1] ** 0.5
    inner, outer, linear, constant = (parameters[name].to(x) for name in PARAMETERS)
    total = constant + (x * linear).sum(-1)
    outer = outer / max(1, len(outer)) ** 0.5
    for weight, out in zip(inner, outer, strict=True):
        total = total + out * (2 * sigmoid(2 * ((x * weight[:-1]).sum(-1) + weight[-1])) - 1)
    return total


def with_moments(parameters: State) -> dict[str, Tensor]:
    """The parameters with Adam's averages beside them, and the number of steps taken."""
    moments = {name + kind: torch.zeros_like(value) for name, value in parameters.items() for kind in _MOMENTS}
    steps = next(iter(parameters.values())).new_zeros(())
    return {**parameters, **moments, "steps": steps}


def adam(state: State, gradients: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
    """The state after one step of Adam (Kingma, Ba 2015, arXiv 1412.6980) on the parameters that have a gradient here."""
    steps = state["steps"] + 1
    after = {**state, "steps": steps}
    for name, gradient in gradients.items():
        unbiased = []
        for (kind, decay), now in zip(_MOMENTS.items(), (gradient, gradient * gradient), strict=True):
            after[name + kind] = decay * state[name + kind] + (1 - decay) * now
            unbiased.append(after[name + kind] / (1 - decay**steps))
        after[name] = state[name] - learning_rate * unbiased[0] / (unbiased[1].sqrt() + _TINY)
    return after


class ControlVariate(Estimator):
    """An estimator with a control variate whose parameters are learned, and without bias whatever they are.

    They go by Adam along the gradient of ĝ², summed over the event and averaged over the batch: E[ĝ] does not depend on them,
    so this lowers the variance. A step uses the parameters of earlier steps and only then moves them, or ĝ would be biased.
    """

    learn: bool = Field(True, description="whether the control variate is learned")
    learning_rate: float = Field(0.01, gt=0, allow_inf_nan=False, description="of the control variate")

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    @abstractmethod
    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """ĝ, differentiable in the parameters: what the state holds with moments beside it."""

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the parameters, then moves them."""
        learn = self.learn and draw.a.numel() > 0
        names = [name for name in state if name + "_mean" in state]
        with torch.enable_grad():
            parameters = {name: state[name].detach().requires_grad_(learn) for name in names}
            gradient = self.gradient(draw, feedback, state, parameters)
            if not learn:
                return gradient.detach(), state
            square = gradient.double().square().flatten(-draw.neuron.event_ndim).sum(-1).mean()
            slopes = torch.autograd.grad(square, tuple(parameters.values()), materialize_grads=True)
        return gradient.detach(), adam(state, dict(zip(names, slopes, strict=True)), self.learning_rate)
