"""The modules that train through stochastic neurons: Stochastic, which emits one sample, and Expectation, which takes a loss."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from gradest.contract.estimator import Estimator, State
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import Incompatible, InvalidInput
from gradest.estimation.ask_tell import ask, check_pre_activations
from gradest.estimation.distributed import fresh_key, world_size
from gradest.estimation.expectation import expect
from gradest.kernels import transformed
from gradest.kernels.stable import widen
from gradest.nn.uses import Emit, EmitTransformed, KeepAlive, LivenessToken, Use
from gradest.random import fresh_seed_tensor

try:
    from gradest.nn.operators import Handle, emit
except ImportError:  # before torch 2.13 no operator takes an object
    Handle = emit = None  # type: ignore[assignment, misc]

__all__ = ["Evaluation", "Expectation", "Stochastic"]

Evaluation = Literal["mean", "sample", "threshold"]
_STATE = "state_"


class _StochasticModule(nn.Module):
    """A module with a neuron, an estimator, the estimator's state in buffers, and a mode of evaluation."""

    threshold: Tensor

    def __init__(
        self, neuron: NeuronSpec, estimator: EstimatorSpec, evaluation: Evaluation = "mean", threshold: float = 0.5
    ) -> None:
        super().__init__()
        if evaluation not in ("mean", "sample", "threshold"):
            raise InvalidInput(f'evaluation must be "mean", "sample" or "threshold", not {evaluation!r}')
        self.neuron, self.estimator = registry.neuron(neuron), registry.estimator(estimator)
        registry.check_fit(self.neuron, self.estimator)
        self.evaluation = evaluation
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def extra_repr(self) -> str:
        """Return the neuron, the estimator and the mode of evaluation, for the module's repr."""
        return f"{self.neuron.label()}, {self.estimator.label()}, evaluation={self.evaluation}"

    @property
    def state(self) -> State:
        """The estimator's state. It is empty before the first step, and always for a stateless estimator."""
        return {
            name.removeprefix(_STATE): value
            for name, value in self.named_buffers(recurse=False)
            if name.startswith(_STATE)
        }

    def _set_state(self, state: State) -> None:
        for name, value in state.items():
            # a new tensor each time, so that callers that hold the earlier state have it unchanged
            self.register_buffer(_STATE + name, value)

    def _state_for(self, a: Tensor) -> State:
        state = self.state
        if not state:
            state = self.estimator.init(self.neuron, widen(a.detach()))
            self._set_state(state)
        return state

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # a layer knows the shapes of its state only after the first step; a new one takes them from the state_dict
        for name, value in state_dict.items():
            if name.startswith(prefix + _STATE) and "." not in name[len(prefix) :]:
                self.register_buffer(name[len(prefix) :], torch.empty_like(value, device=self.threshold.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _evaluate(self, a: Tensor) -> Tensor:
        if self.evaluation == "mean":
            return self.neuron.mean(a)
        if self.evaluation == "threshold":
            return self.neuron.threshold(a, self.threshold)
        wide = check_pre_activations(a, self.neuron)
        return self.neuron.sample(fresh_key(a, self.neuron.event_ndim), wide, 1)[0].to(a.dtype)


class Stochastic(_StochasticModule):
    """A layer of stochastic neurons, from `a` `[*batch, *event]` to one sample h of the same shape.

    If the estimator needs only dL/dh, autograd trains the layer like any other. If it needs the loss, call backward on
    `broadcast_loss(model, loss)`; backward without it raises MissingLoss. An estimator that asks for several points (K > 1)
    cannot be used in a layer that emits one sample; the error Incompatible names `Expectation`, which takes it.

    neuron, estimator: a name, {"name": ..., **options}, or an instance.
    evaluation: what the layer emits after `layer.eval()`: "mean" is E[h], which is differentiable; "sample" is one sample;
        "threshold" is the deterministic `neuron.threshold(a, layer.threshold)`. `layer.threshold.fill_(level)` sets the level,
        which is saved in state_dict.

    From the first training step on, the estimator's state is in buffers: it is in state_dict and moves with the module. If a
    layer is used several times before one backward, each use has the same state, and the next states are averaged.

    torch.compile(fullgraph=True) keeps the layer in the graph, with any neuron and estimator, from torch 2.13 on; an older torch
    breaks the graph. If the estimator has a state, call the model once before compiling, because the shapes of the state follow
    from the input. torch.func can map over a layer and differentiate it if the estimator has no state and uses no autograd of its
    own; vmap's `randomness` decides whether examples share their noise.
    """

    def __init__(
        self, neuron: NeuronSpec, estimator: EstimatorSpec, evaluation: Evaluation = "mean", threshold: float = 0.5
    ) -> None:
        super().__init__(neuron, estimator, evaluation, threshold)
        asked = self.estimator.evaluations(self.neuron, (2,) * self.neuron.event_ndim)
        if asked != 1:
            raise Incompatible(
                f"{self.estimator.label()} asks for the loss at {asked} points, but a Stochastic layer emits one sample; "
                "use gradest.nn.Expectation(neuron, estimator), whose layer(f, a) evaluates f at all of them"
            )
        self._waiting_uses: weakref.WeakKeyDictionary[LivenessToken, tuple[Use, Tensor]] = weakref.WeakKeyDictionary()
        self._loss_channels: list[Tensor] = []  # those of uses in compiled code and inside transforms of torch.func
        self._handle = None if emit is None else Handle(self)
        self._steps = 0  # how many times the state has been updated
        self._merged = 0  # how many uses the last update averages

    def __getstate__(self) -> dict[str, Any]:
        # uses that wait for their backward belong to this object; a copy starts without any
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_waiting_uses", "_loss_channels", "_handle")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        fresh = {
            "_waiting_uses": weakref.WeakKeyDictionary(),
            "_loss_channels": [],
            "_handle": None if emit is None else Handle(self),
        }
        super().__setstate__({**state, **fresh})  # type: ignore[no-untyped-call]

    def forward(self, a: Tensor) -> Tensor:
        """Return one sample of the neuron in training mode, else what `evaluation` selects."""
        if torch.compiler.is_compiling():
            return self._outside(a) if emit is None else self._compiled(a)
        if transformed():
            return self._transformed(a)
        if not self.training:
            return self._evaluate(a)
        draw, state = ask(self.neuron, self.estimator, a, fresh_key(a, self.neuron.event_ndim), self._state_for(a))
        if not (torch.is_grad_enabled() and a.requires_grad):
            return draw.points[0].to(a.dtype)
        use = Use(self, draw, state, self._steps)
        h, anchor = Emit.apply(a, use)  # type: ignore[no-untyped-call]
        if "loss" in self.estimator.needs:
            token = LivenessToken()
            h = KeepAlive.apply(h, token)  # type: ignore[no-untyped-call]
            self._waiting_uses[token] = (use, anchor)
        out: Tensor = h
        return out

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="a gradest.nn.Stochastic layer is part of a whole graph from torch 2.13 on"
    )
    def _outside(self, a: Tensor) -> Tensor:
        h: Tensor = self(a)
        return h

    def _transformed(self, a: Tensor) -> Tensor:
        """Run `forward` inside a transform of torch.func."""
        if not self.training:
            return self._evaluate(a)
        if self.estimator.init(self.neuron, torch.zeros(a.shape, dtype=widen(a).dtype, device=a.device)):
            raise Incompatible(
                f"{self.estimator.label()} has a state, which a transform of torch.func cannot update; "
                "use gradest.expect, which takes the state as an argument and returns the next one"
            )
        h, channel = EmitTransformed.apply(a, fresh_seed_tensor(), self)  # type: ignore[no-untyped-call]
        if "loss" in self.estimator.needs and torch.is_grad_enabled():
            self._loss_channels.append(channel)
        out: Tensor = h
        return out

    def _compiled(self, a: Tensor) -> Tensor:
        """Run `forward` in the form that torch.compile traces."""
        if not self.training and self.evaluation != "sample":
            return self._evaluate(a)
        state = list(self.state.values())
        if not state and type(self.estimator).init is not Estimator.init:
            self._begin(a)
            state = list(self.state.values())
        learns = self.training and torch.is_grad_enabled() and a.requires_grad
        needs_loss = learns and "loss" in self.estimator.needs
        given = a if learns else a.detach()
        h, channel, _ = emit(self._handle, given, state, torch.empty(0), needs_loss, self.neuron.event_ndim)
        if needs_loss:
            self._loss_channels.append(channel)
        out: Tensor = h
        return out

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="the shapes of this estimator's state follow from its input: call the model once before it is compiled, "
        "under torch.no_grad() if you like"
    )
    def _begin(self, a: Tensor) -> None:
        self._state_for(a)

    def _emit(self, a: Tensor, state: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        key = fresh_key(a, self.neuron.event_ndim)
        draw, _ = ask(self.neuron, self.estimator, a, key, dict(zip(self.state, state, strict=True)))
        return draw.points[0].to(a.dtype, copy=True), (int(key.seed), self._steps)

    def _tell(
        self, a: Tensor, state: list[Tensor], seed: int | Tensor, step: int, grad_h: Tensor, loss_gradient: Tensor
    ) -> Tensor:
        if not a.numel() and world_size() == 1:  # other processes may hold the rest of the batch and wait for this one
            return torch.zeros_like(a)
        named = dict(zip(self.state, state, strict=True))
        draw, _ = ask(self.neuron, self.estimator, a, fresh_key(a, self.neuron.event_ndim, seed), named)
        use, scale = Use(self, draw, named, step), loss_gradient.new_ones(())
        if loss_gradient.numel() or (not a.numel() and loss_gradient.ndim > 1):
            loss, factor, received = loss_gradient
            scale = factor.flatten()[0] if factor.numel() else scale
            if transformed() or bool(received.all()):  # a transform does not allow reading values
                use.set_loss(loss, 1.0)
        return use.gradient(grad_h, scale).to(a.dtype)

    def _take_loss_channels(self) -> list[Tensor]:
        channels, self._loss_channels = self._loss_channels, []
        if torch.compiler.is_compiling() or transformed():
            return channels
        # wrapped tensors belong to transforms that have ended
        return [channel for channel in channels if not is_functorch_wrapped_tensor(channel)]

    def _take_waiting_uses(self) -> list[tuple[Use, Tensor]]:
        waiting = list(self._waiting_uses.values())
        self._waiting_uses.clear()
        return waiting

    def _advance(self, state: State, since: int) -> None:
        """Set the next state, which a use of the layer computed from the state of step `since`."""
        if not state:
            return
        if since == self._steps:
            self._steps, self._merged = self._steps + 1, 1
        elif since == self._steps - 1:
            self._merged += 1
            state = {name: _move(old, state[name], 1 / self._merged) for name, old in self.state.items()}
        else:  # a graph from before the last step, whose state is out of date
            return
        self._set_state(state)


class Expectation(_StochasticModule):
    """A layer for estimators of any K: `layer(f, a)` is `gradest.expect`, with the estimator's state in buffers.

    f maps points `[K, *batch, *event]` to losses `[K, *batch]`; it is the rest of the network and the loss. The result,
    `[*batch]`, is differentiable in `a` and in the parameters of f. After `layer.eval()` it is f at the mean, at one sample, or
    at the thresholded output, as `evaluation` selects. The arguments are those of `Stochastic`.
    """

    def forward(self, f: Loss, a: Tensor) -> Tensor:
        """Return the estimate of E[f(h)], `[*batch]`."""
        if torch.compiler.is_compiling():
            outside: Tensor = self._forward_outside(f, a)
            return outside
        if not self.training:
            return f(self._evaluate(a)[None])[0]
        key = fresh_key(a, self.neuron.event_ndim)
        value, state = expect(f, a, self.neuron, self.estimator, key, self._state_for(a))
        if torch.is_grad_enabled():
            self._set_state(state)
        return value

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="an Expectation layer breaks the graph; where it must be whole use gradest.nn.Stochastic"
    )
    def _forward_outside(self, f: Loss, a: Tensor) -> Tensor:
        value: Tensor = self(f, a)
        return value


def _move(old: Tensor, new: Tensor, by: float) -> Tensor:
    return old + (new - old) * by if new.is_floating_point() else new
