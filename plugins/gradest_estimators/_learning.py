"""Shared parts of the learned control variates: a small network, Adam, and a step that lowers the variance.

Parameters and Adam's moments are float64 for every dtype of the loss. The second moment of the gradient of a squared
estimate grows with the fourth power of the loss, which exceeds the range of float32 for losses above 4e9.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.estimator import Bias, Cost, Draw, Estimator, Feedback, State
from gradest.contract.modules import ModuleOption, call_module, module_state
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import sigmoid
from gradest.errors import InvalidOptions

PARAMETERS = ("inner", "outer", "linear", "constant")
"""The names of the parameters of `network`."""

_MOMENTS = {"_mean": 0.9, "_square": 0.999}  # Adam's averages of the gradient and of its square, and their decay rates
_TINY = 1e-30


def new_network(inputs: int, hidden: int, device: torch.device) -> State:
    """Return the parameters of a `network` that starts as the zero function.

    `inner`, `[hidden, inputs + 1]`, holds fixed pseudo-random weights and biases of the hidden units; `outer`,
    `[hidden]`, `linear`, `[inputs]`, and `constant`, `[]`, are zero.
    """
    inner = torch.randn(
        hidden, inputs + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    ).to(device)
    zeros = inner.new_zeros
    return {"inner": inner, "outer": zeros(hidden), "linear": zeros(inputs), "constant": zeros(())}


def network(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the output `[...]` of the network at x `[..., D]`: a linear function of x plus a hidden layer of H tanh units.

    Hidden units are added one at a time, and sums run over a contiguous last dimension, so that a row has the same bits
    in any batch. Adam's steps do not shrink as learning converges; dividing by √D and √H makes their effect on the
    output independent of the size of the network.
    """
    x = x.contiguous() / x.shape[-1] ** 0.5
    inner, outer, linear, constant = (parameters[name].to(x) for name in PARAMETERS)
    total = constant + (x * linear).sum(-1)
    outer = outer / max(1, len(outer)) ** 0.5
    for weight, out in zip(inner, outer, strict=True):
        total = total + out * (2 * sigmoid(2 * ((x * weight[:-1]).sum(-1) + weight[-1])) - 1)
    return total


def network_cost(calls: Cost, inputs: int, hidden: int) -> Cost:
    """Return the cost of a draw that costs `calls` without a hidden layer, and of the state of a `network`."""
    state = 3 * (hidden + 1) * (inputs + 2)
    return calls * (1 + hidden) + Cost(state, state)


def with_moments(parameters: State) -> dict[str, Tensor]:
    """Return the parameters together with Adam's two averages for each and the number of steps taken, all zero."""
    moments = {name + kind: torch.zeros_like(value) for name, value in parameters.items() for kind in _MOMENTS}
    steps = next(iter(parameters.values())).new_zeros(())
    return {**parameters, **moments, "steps": steps}


def adam(state: State, gradients: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
    """Return the state after one step of Adam on the parameters that `gradients` names.

    The method is that of Kingma and Ba (2015), Adam: A Method for Stochastic Optimization, arXiv 1412.6980.
    """
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
    """An estimator with a learned control variate, which is unbiased whatever the parameters are.

    Adam moves the parameters along the gradient of ĝ², summed over the event and averaged over the batch. E[ĝ] does not
    depend on the parameters, so this lowers the variance. A step first uses the parameters of earlier steps and then
    moves them; parameters that already depended on the samples of this step would bias ĝ.
    """

    learn: bool = Field(True, description="whether the control variate is learned")
    learning_rate: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="Adam's learning rate for the control variate"
    )

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss, as the control variate has mean zero for parameters of earlier steps."""
        return Bias.NONE

    @abstractmethod
    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return ĝ, differentiable in `parameters`, which are the tensors of the state for which Adam keeps averages."""

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return ĝ at the present parameters, and the state with the parameters moved unless `learn` is False."""
        names = [name for name in state if name + "_mean" in state]
        learn = self.learn and draw.a.numel() > 0 and bool(names)
        with torch.enable_grad():
            parameters = {name: state[name].detach().requires_grad_(learn) for name in names}
            gradient = self.gradient(draw, feedback, state, parameters)
            if not learn:
                return gradient.detach(), state
            square = gradient.double().square().flatten(-draw.neuron.event_ndim).sum(-1).mean()
            slopes = torch.autograd.grad(square, tuple(parameters.values()), materialize_grads=True)
        return gradient.detach(), adam(state, dict(zip(names, slopes, strict=True)), self.learning_rate)


class NetworkControlVariate(ControlVariate):
    """An estimator whose control variate is a network of the numbers of an event: the built-in one, or one of the user's."""

    hidden: int = Field(8, ge=0, le=256, description="hidden units of the built-in network")
    network: ModuleOption | None = Field(
        None,
        description="a network of your own in place of the built-in one, from [*, D] to [*] or [*, 1], D being the numbers of an "
        "event in one dim; its parameters are learned in the estimator's state",
    )

    @model_validator(mode="after")
    def _refuse_hidden_units(self) -> Self:
        if self.network is not None and "hidden" in self.model_fields_set:
            raise ValueError("hidden is of the built-in network, so it has no effect on your own; leave it out")
        return self

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw with its network, of which a layer holds no more numbers for a point than parameters."""
        calls = super().cost(neuron, event, batch)
        if self.network is None:
            return network_cost(calls, neuron.draw_size(event), self.hidden)
        size = sum(parameter.numel() for parameter in self.network.parameters())
        return calls + Cost(size, size) * (self.evaluations(neuron, event) * math.prod(batch) + 3)

    def learned_network(self, inputs: int, device: torch.device) -> State:
        """Return the tensors of the network, and Adam's averages of those that are learned."""
        if self.network is None:
            return with_moments(new_network(inputs, self.hidden, device))
        self._check_network(
            torch.linspace(-0.9, 0.7, 2 * inputs, dtype=torch.float64, device=device).reshape(2, inputs)
        )
        learned = module_state("network", self.network, device, trained=True)
        fixed = module_state("network", self.network, device, trained=False)
        return {**fixed, **(with_moments(learned) if learned else {})}

    def apply_network(self, state: State, x: Tensor) -> Tensor:
        """Return the output `[*]` of the network for x `[*, D]`."""
        if self.network is None:
            return network(state, x)
        c = call_module("network", self.network, state, x)
        return c if c.ndim < x.ndim else c.squeeze(-1)

    def _check_network(self, x: Tensor) -> None:
        """Raise InvalidOptions unless the user's network is a function of each row alone, differentiable, of one number."""
        if x.is_meta or self.network is None:
            return
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone()
            call = partial(self._call_checked, module_state("network", self.network, x.device))
            whole = call(x)
            for other, why in (
                (call(x), "draws noise of its own, as dropout does in training mode"),
                (call(x[:1]), "depends on the other rows of a batch, as batch normalisation does in training mode"),
            ):
                if not torch.allclose(whole[: len(other)], other, rtol=1e-6, atol=1e-9):
                    raise self._refusal(f"its output {why}; call network.eval() first, or use another layer")
            moving = x.clone().requires_grad_()
            c = call(moving).sum()
            if not c.requires_grad or torch.autograd.grad(c, moving, allow_unused=True)[0] is None:
                raise self._refusal("its output is not differentiable in its input")

    def _call_checked(self, state: State, x: Tensor) -> Tensor:
        """Return the output of the user's network for x `[rows, D]`. Raises InvalidOptions unless each row has one number."""
        assert self.network is not None
        try:
            found = call_module("network", self.network, state, x)
        except Exception as error:
            raise self._refusal(f"it cannot be called with an input of shape {list(x.shape)}: {error}") from error
        if not isinstance(found, Tensor) or found.shape not in (x.shape[:-1], (*x.shape[:-1], 1)):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise self._refusal(
                f"for an input of shape {list(x.shape)} it returns {shape}, not one number for each row"
            )
        return found.reshape(x.shape[:-1])

    def _refusal(self, reason: str) -> InvalidOptions:
        return InvalidOptions(f"{self.name} cannot use this network as control variate: {reason}")
