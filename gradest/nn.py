"""Torch modules: stochastic layers that train, keep their estimator's state, and behave in evaluation.

    layer = gradest.nn.Stochastic("bernoulli", "reinforce_centered")
    h = layer(a)                                                      # somewhere inside a model
    gradest.nn.broadcast_loss(model, loss_per_example).backward()     # in place of loss_per_example.mean().backward()

Seeds come from torch's global generator, so `torch.manual_seed` rules the noise. Under torch.distributed, example i of the
process of rank r is example r + i · world_size of the joined batch, the order in which DistributedSampler deals them out:
processes that were seeded alike draw the noise that one process would have drawn for the joined batch, and a state is what the
estimator makes of the joined batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from gradest.conditional import ConditionalLinear
from gradest.ears import ear, whisper
from gradest.errors import Incompatible, InvalidInput, MissingLoss
from gradest.estimator import Draw, Estimator, Feedback, State
from gradest.exchange import ask, check_pre_activations, tell
from gradest.expectation import EstimatorSpec, NeuronSpec, expect
from gradest.kernels import transformed
from gradest.kernels.reference import widen
from gradest.neuron import Neuron
from gradest.objective import Loss
from gradest.parallel import row_numbers, world_size
from gradest.random import Key, fresh_seed, fresh_seed_tensor
from gradest.registry import registry

try:
    from gradest.operators import Handle, emit
except ImportError:  # before torch 2.13 no operator takes an object
    Handle = emit = None  # type: ignore[assignment, misc]

__all__ = ["ConditionalLinear", "Evaluation", "Expectation", "Stochastic", "broadcast_loss"]

Evaluation = Literal["mean", "sample", "threshold"]
_STATE = "state_"


class _StochasticModule(nn.Module):
    """A neuron, an estimator, the estimator's state in buffers, and what the module does in evaluation."""

    threshold: Tensor

    def __init__(
        self, neuron: NeuronSpec, estimator: EstimatorSpec, evaluation: Evaluation = "mean", threshold: float = 0.5
    ) -> None:
        super().__init__()
        if evaluation not in ("mean", "sample", "threshold"):
            raise InvalidInput(f'evaluation is "mean", "sample" or "threshold", not {evaluation!r}')
        self.neuron, self.estimator = registry.neuron(neuron), registry.estimator(estimator)
        registry.check_fit(self.neuron, self.estimator)
        self.evaluation = evaluation
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def extra_repr(self) -> str:
        """The pair, as tables show it."""
        return f"{self.neuron.label()}, {self.estimator.label()}, evaluation={self.evaluation}"

    @property
    def state(self) -> State:
        """The estimator's state; empty before the first step, and always for a stateless estimator."""
        return {
            name.removeprefix(_STATE): value
            for name, value in self.named_buffers(recurse=False)
            if name.startswith(_STATE)
        }

    def _set_state(self, state: State) -> None:
        for name, value in state.items():
            # a new tensor each time: whoever holds the earlier state still has it unchanged
            self.register_buffer(_STATE + name, value)

    def _state_for(self, a: Tensor) -> State:
        state = self.state
        if not state:
            state = self.estimator.init(self.neuron, widen(a.detach()))
            self._set_state(state)
        return state

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # the state's shapes are known from the first step on; a fresh layer takes them from what it loads
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
        return self.neuron.sample(_key(a, self.neuron.event_ndim), wide, 1)[0].to(a.dtype)


class Stochastic(_StochasticModule):
    """A layer of stochastic neurons: a `[*batch, *event]` to one sample h of the same shape.

    Where the estimator needs dL/dh alone, autograd trains it as any layer. Where it needs the loss, call backward on
    `broadcast_loss(model, loss)`; backward without it raises MissingLoss. Estimators that ask for several points (K > 1) do
    not fit a layer that emits one sample, and are sent to `Expectation`.

    neuron, estimator: a name, {"name": ..., **options}, or an instance.
    evaluation: what `layer.eval()` emits: the mean E[h] (differentiable), one sample, or the deterministic
        `neuron.threshold(a, layer.threshold)`. `layer.threshold.fill_(level)` sets the level; it is saved in state_dict.

    The estimator's state is in buffers from the first training step on: it is in state_dict, and moves with the module. A
    layer that is used several times before one backward gives each use the same state, and averages their next ones.

    torch.compile(fullgraph=True) keeps it in the graph, with any neuron and estimator, from torch 2.13 on; with an older torch it
    breaks the graph. Where the estimator has a state, call the model once before, as its shapes follow from the input.
    torch.func maps over a layer and differentiates it where the estimator has no state and uses no autograd of its own; vmap's
    `randomness` says whether examples share their noise.
    """

    def __init__(
        self, neuron: NeuronSpec, estimator: EstimatorSpec, evaluation: Evaluation = "mean", threshold: float = 0.5
    ) -> None:
        super().__init__(neuron, estimator, evaluation, threshold)
        asked = self.estimator.evaluations(self.neuron, (2,) * self.neuron.event_ndim)
        if asked != 1:
            raise Incompatible(
                f"{self.estimator.label()} asks for the loss at {asked} points, and a Stochastic layer emits one sample; "
                "use gradest.nn.Expectation(neuron, estimator), whose layer(f, a) evaluates f at all of them"
            )
        self._pending: weakref.WeakKeyDictionary[_Pass, tuple[_Ticket, Tensor]] = weakref.WeakKeyDictionary()
        self._ears: list[Tensor] = []  # of uses in compiled code, and inside transforms of torch.func
        self._handle = None if emit is None else Handle(self)
        self._steps = 0  # how often the state has moved on
        self._merged = 0  # how many uses the last move is the average of

    def __getstate__(self) -> dict[str, Any]:
        # passes that wait for their backward belong to this object alone: copies start without
        return {name: value for name, value in self.__dict__.items() if name not in ("_pending", "_ears", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fresh = {
            "_pending": weakref.WeakKeyDictionary(),
            "_ears": [],
            "_handle": None if emit is None else Handle(self),
        }
        super().__setstate__({**state, **fresh})  # type: ignore[no-untyped-call]

    def forward(self, a: Tensor) -> Tensor:
        """One sample of the neuron in training; what `evaluation` says otherwise."""
        if torch.compiler.is_compiling():
            return self._outside(a) if emit is None else self._compiled(a)
        if transformed():
            return self._transformed(a)
        if not self.training:
            return self._evaluate(a)
        draw, state = ask(self.neuron, self.estimator, a, _key(a, self.neuron.event_ndim), self._state_for(a))
        if not (torch.is_grad_enabled() and a.requires_grad):
            return draw.points[0].to(a.dtype)
        ticket = _Ticket(self, draw, state, self._steps)
        h, anchor = _Emit.apply(a, ticket)  # type: ignore[no-untyped-call]
        if "loss" in self.estimator.needs:
            waiting = _Pass()
            h = _Follow.apply(h, waiting)  # type: ignore[no-untyped-call]
            self._pending[waiting] = (ticket, anchor)
        out: Tensor = h
        return out

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="a gradest.nn.Stochastic layer is part of a whole graph from torch 2.13 on"
    )
    def _outside(self, a: Tensor) -> Tensor:
        h: Tensor = self(a)
        return h

    def _transformed(self, a: Tensor) -> Tensor:
        """`forward` inside a transform of torch.func."""
        if not self.training:
            return self._evaluate(a)
        if self.estimator.init(self.neuron, torch.zeros(a.shape, dtype=widen(a).dtype, device=a.device)):
            raise Incompatible(
                f"{self.estimator.label()} carries a state from step to step, for which a transform of torch.func has no place; "
                "use gradest.expect, which takes the state as an argument and returns the next one"
            )
        h, listening = _Pure.apply(a, fresh_seed_tensor(), self)  # type: ignore[no-untyped-call]
        if "loss" in self.estimator.needs and torch.is_grad_enabled():
            self._ears.append(listening)
        out: Tensor = h
        return out

    def _compiled(self, a: Tensor) -> Tensor:
        """`forward` as torch.compile traces it."""
        if not self.training and self.evaluation != "sample":
            return self._evaluate(a)
        state = list(self.state.values())
        if not state and type(self.estimator).init is not Estimator.init:
            self._begin(a)
            state = list(self.state.values())
        learns = self.training and torch.is_grad_enabled() and a.requires_grad
        hears = learns and "loss" in self.estimator.needs
        given = a if learns else a.detach()
        h, listening, _ = emit(self._handle, given, state, torch.empty(0), hears, self.neuron.event_ndim)
        if hears:
            self._ears.append(listening)
        out: Tensor = h
        return out

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
        reason="the shapes of this estimator's state follow from its input: call the model once before it is compiled, "
        "under torch.no_grad() if you like"
    )
    def _begin(self, a: Tensor) -> None:
        self._state_for(a)

    def _emit(self, a: Tensor, state: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        key = _key(a, self.neuron.event_ndim)
        draw, _ = ask(self.neuron, self.estimator, a, key, dict(zip(self.state, state, strict=True)))
        return draw.points[0].to(a.dtype, copy=True), (int(key.seed), self._steps)

    def _tell(
        self, a: Tensor, state: list[Tensor], seed: int | Tensor, step: int, grad_h: Tensor, grad_ear: Tensor
    ) -> Tensor:
        if not a.numel() and world_size() == 1:  # other processes may have the rest of the batch, and wait for this one
            return torch.zeros_like(a)
        named = dict(zip(self.state, state, strict=True))
        draw, _ = ask(self.neuron, self.estimator, a, _key(a, self.neuron.event_ndim, seed), named)
        ticket, scale = _Ticket(self, draw, named, step), grad_ear.new_ones(())
        if grad_ear.numel() or (not a.numel() and grad_ear.ndim > 1):
            loss, factor, heard = grad_ear
            scale = factor.flatten()[0] if factor.numel() else scale
            if transformed() or bool(heard.all()):  # no transform allows a look at numbers
                ticket.take(loss, 1.0)
        return ticket.gradient(grad_h, scale).to(a.dtype)

    def _take_ears(self) -> list[Tensor]:
        ears, self._ears = self._ears, []
        if torch.compiler.is_compiling() or transformed():
            return ears
        return [ear for ear in ears if not is_functorch_wrapped_tensor(ear)]  # those are of transforms that have ended

    def _take_pending(self) -> list[tuple[_Ticket, Tensor]]:
        waiting = list(self._pending.values())
        self._pending.clear()
        return waiting

    def _advance(self, state: State, since: int) -> None:
        """Take over the next state that a use of the layer computed from the state of step `since`."""
        if not state:
            return
        if since == self._steps:
            self._steps, self._merged = self._steps + 1, 1
        elif since == self._steps - 1:
            self._merged += 1
            state = {name: _move(old, state[name], 1 / self._merged) for name, old in self.state.items()}
        else:  # a graph from before the last step: its state is out of date
            return
        self._set_state(state)


class Expectation(_StochasticModule):
    """`layer(f, a)` is `gradest.expect` with the estimator's state kept in buffers, for estimators of any K.

    f maps points `[K, *batch, *event]` to losses `[K, *batch]`: it is the rest of the network and the loss. The result,
    `[*batch]`, is differentiable in a and in f's parameters. In evaluation it is f at the mean, at one sample, or at the
    thresholded output. Arguments as for `Stochastic`.
    """

    def forward(self, f: Loss, a: Tensor) -> Tensor:
        """The estimate of E[f(h)], `[*batch]`."""
        if torch.compiler.is_compiling():
            outside: Tensor = self._forward_outside(f, a)
            return outside
        if not self.training:
            return f(self._evaluate(a)[None])[0]
        key = _key(a, self.neuron.event_ndim)
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


def broadcast_loss(model: nn.Module, loss: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """The scalar to call backward on: the mean (or sum) of `loss`, which also tells each stochastic layer its loss.

    loss: `[*batch]`, one number an example, its dims leading in each layer's batch dims (a layer may have more of them, such
    as positions in an image, which then share their example's loss). It need not be differentiable. The scalar may be scaled,
    as gradient accumulation and loss scaling do. Every use of a layer since the last call whose output is still alive is told.
    In compiled code and inside transforms of torch.func, alive or not: what is not to be told there runs under torch.no_grad().
    A layer that is used inside such a transform is told inside it.
    """
    if reduction not in ("mean", "sum"):
        raise InvalidInput(f'reduction is "mean" or "sum", not {reduction!r}')
    total = loss.mean() if reduction == "mean" else loss.sum()
    share = 1 / max(1, loss.numel()) if reduction == "mean" else 1.0
    for layer in model.modules():
        if isinstance(layer, Stochastic):
            for listening in layer._take_ears():
                spread = _spread(loss, listening.shape[1:], layer.neuron)
                total = total + whisper(listening, spread, share)
            if torch.compiler.is_compiling():
                continue
            for ticket, anchor in layer._take_pending():
                ticket.take(loss, share)
                total = total + anchor
    return total


def _spread(loss: Tensor, batch: tuple[int, ...], neuron: Neuron) -> Tensor:
    """The loss `[*batch]` of a layer, whose batch dims those of `loss` lead."""
    if loss.shape != batch[: loss.ndim]:
        raise InvalidInput(
            f"the loss is one number an example, so its shape must be, or begin, the batch {list(batch)} of the layer "
            f"{neuron.label()}; it is {list(loss.shape)}. Reduce the loss over its other dims, not over the batch"
        )
    return loss.detach()[(..., *[None] * (len(batch) - loss.ndim))].expand(batch)


class _Pass:
    """Lives as long as what was computed from a layer's output; a pass nobody can call backward on is forgotten with it."""

    __slots__ = ("__weakref__",)


class _Ticket:
    """One use of a layer: what backward needs, and the loss once it is known."""

    def __init__(self, layer: Stochastic, draw: Draw, state: State, step: int) -> None:
        self.layer, self.draw, self.state, self.step = layer, draw, state, step
        self.loss: Tensor | None = None
        self.share = 1.0
        self.emitted = draw.points

    def take(self, loss: Tensor, share: float) -> None:
        neuron = self.layer.neuron
        self.loss = _spread(loss, self.draw.points.shape[1 : self.draw.points.ndim - neuron.event_ndim], neuron)
        self.share = share

    def gradient(self, grad_h: Tensor, scale: Tensor) -> Tensor:
        estimator = self.layer.estimator
        if self.emitted._version:  # the points may have been written over
            with torch.no_grad():
                self.draw = estimator.forward(self.draw.neuron, self.draw.a, self.draw.key, self.state)
        grad = grad_h[None] if "grad" in estimator.needs else None
        if "loss" not in estimator.needs:
            gradient, state = tell(estimator, self.draw, Feedback(None, grad), self.state)
        else:
            if self.loss is None:
                raise MissingLoss(
                    f"{estimator.label()} needs the loss of each example: call backward on "
                    "gradest.nn.broadcast_loss(model, loss), with loss [*batch], instead of on the reduced loss"
                )
            # the scalar that backward was called on holds each example's loss times this
            factor = widen(scale * self.share)
            if grad is not None:
                grad = grad / torch.where(factor == 0, 1, factor)
            gradient, state = tell(estimator, self.draw, Feedback(self.loss[None], grad), self.state)
            gradient = gradient * factor
        self.layer._advance(state, self.step)
        return gradient


class _Emit(torch.autograd.Function):
    """Emits the sample, and a zero whose gradient tells how backward's scalar was scaled."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, ticket: _Ticket) -> tuple[Tensor, Tensor]:
        ctx.ticket, ctx.dtype = ticket, a.dtype
        points, given = ticket.draw.points, ticket.draw.a
        if points.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            points = points.clone()  # of a neuron that may emit `a` itself
        h = points[0].to(a.dtype).data  # the memory of the points, yet no view of them: whoever has h may write to it
        ticket.emitted = h.detach()  # counts those writes
        return h, a.new_zeros((), dtype=ticket.draw.a.dtype)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_anchor: Tensor) -> tuple[Tensor, None]:
        return ctx.ticket.gradient(grad_h, grad_anchor).to(ctx.dtype), None


class _Follow(torch.autograd.Function):
    """The identity; its node keeps the pass alive for as long as a graph that leads back to it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, waiting: _Pass) -> Tensor:
        ctx.waiting = waiting
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Pure(torch.autograd.Function):
    """`gradest.operators.emit` for torch.func, of a layer without a state: plain torch, in which torch sees what it maps over."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, seed: Tensor, layer: Stochastic) -> tuple[Tensor, Tensor]:
        neuron = layer.neuron
        draw, _ = ask(neuron, layer.estimator, a, _key(a, neuron.event_ndim, seed), {})
        return draw.points[0].to(a.dtype, copy=True), ear(a, "loss" in layer.estimator.needs, neuron.event_ndim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        a, seed, ctx.layer = inputs
        ctx.save_for_backward(a, seed)
        ctx.set_materialize_grads(False)  # what heard nothing gets None

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_ear: Tensor | None) -> tuple[Tensor, None, None]:
        a, seed = ctx.saved_tensors
        grad_h = torch.zeros_like(a) if grad_h is None else grad_h
        grad_ear = a.new_zeros(3, 0) if grad_ear is None else grad_ear
        return ctx.layer._tell(a, [], seed, 0, grad_h, grad_ear), None, None


def _key(a: Tensor, event_ndim: int, seed: int | Tensor | None = None) -> Key:
    """A key for `a`, a fresh one by default, whose row numbers are global under torch.distributed."""
    key = Key(fresh_seed() if seed is None else seed)
    if world_size() == 1:
        return key
    return replace(key, rows=row_numbers(a.shape[: max(0, a.ndim - event_ndim)]), shared=True)


def _move(old: Tensor, new: Tensor, by: float) -> Tensor:
    return old + (new - old) * by if new.is_floating_point() else new
