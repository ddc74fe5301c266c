"""Stochastic: the module of stochastic neurons, which emits one sample."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from gradest.contract.estimator import State
from gradest.contract.neuron import output_shape
from gradest.errors import Incompatible, InvalidInput
from gradest.estimation.events import EventLayout
from gradest.estimation.losses.evaluation import expect_led, losses_in_progress
from gradest.estimation.losses.repetition import is_recomputed
from gradest.kernels import transformed
from gradest.kernels.stable import cast, widen
from gradest.nn.module import StochasticModule
from gradest.nn.sampler import NO_PATHS, Pair, Paths, Sampler
from gradest.nn.slopes import Slope, check_led
from gradest.nn.uses import (
    Emit,
    EmitTransformed,
    Recorded,
    RecordedEagerly,
    RecordedInTransform,
    Use,
    keep_alive,
    missing_loss,
    used_inside_loss,
)
from gradest.random import fresh_seed, fresh_seed_tensor

try:
    from gradest.nn.operators import Handle, RecordedInGraph, draw
except ImportError:  # before torch 2.13 no operator takes an object
    Handle = RecordedInGraph = draw = None  # type: ignore[assignment, misc]

__all__ = ["Stochastic"]

_MOST_SLOPES = 64  # uses of a layer since the last broadcast_loss, of which it is known whether dL/dh reached them


class _Uses:
    """What a layer remembers of its uses in one thread.

    scope: the innermost open StochasticGraph of the layer. Outside of scopes: `alive` are the eager uses whose output is alive,
    by their numbers, and `latest` heads the list of those in compiled code and in transforms of torch.func, which are not known
    to die. `number` counts the eager uses, `recorded` those since the last broadcast_loss, and `told` the uses that it told, if
    there was no forward pass since. `called` says whether the layer was ever called, and `steps` counts the scopes and calls of
    broadcast_loss. `slopes` are those of the latest eager uses outside of scopes.
    """

    def __init__(self) -> None:
        self.scope: Any = None
        self.alive: dict[int, weakref.ref[Recorded]] = {}
        self.latest: Recorded | None = None
        self.number = self.recorded = 0
        self.told = 0
        self.called = False
        self.steps = 0
        self.slopes: deque[Slope] = deque(maxlen=_MOST_SLOPES)

    def record(self, use: Recorded) -> None:
        """Record an eager use outside of scopes, for as long as it is alive."""
        self.number, self.recorded = self.number + 1, self.recorded + 1
        # one of the weakref module's containers would take several times as long to fill, to read and to clear
        self.alive[self.number] = weakref.ref(use, partial(self.alive.pop, self.number))


class _PerThread(threading.local):
    """The uses of a layer in each thread, in an object of its own: torch.compile loses what is written to a threading.local."""

    def __init__(self) -> None:
        self.uses = _Uses()


class Stochastic(StochasticModule):
    """A layer of stochastic neurons, from `a` `[*batch, *event]` to one sample h of the same shape.

    A neuron whose outputs have another event, event' = `neuron.output_event(event)`, gives h `[*batch, *event']`: the unit of
    mean and log std takes `[batch, units, 2]` and gives `[batch, units]`.

    If the estimator needs only dL/dh, autograd trains the layer like any other. If it needs the loss, call backward on
    `broadcast_loss(model, loss)`, or open a `StochasticGraph` for several costs or several whole-path samples; backward without
    either raises MissingLoss. An estimator that credits K independent samples against each other, such as `rloo`, needs
    `StochasticGraph(model, samples=K)`. One that asks for other points (K > 1) cannot be used in a layer that emits one sample;
    the error Incompatible names `Expectation`, which takes it.

    neuron, estimator: a name, {"name": ..., **options}, or an instance.
    evaluation: what the layer emits after `layer.eval()`: "mean" is E[h], which is differentiable; "sample" is one sample;
        "threshold" is the deterministic `neuron.threshold(a, layer.threshold)`. `layer.threshold.fill_(level)` sets the level,
        which is saved in state_dict.
    event: the shape of one event, such as (200,) for 200 units. It is optional. With it, the state has its shape from the start,
        and an input with other events raises InvalidInput.
    event_dims: the number of trailing dims of `a` that are one event, by default the neuron's own; see `gradest.expect`. 2 for
        `[batch, positions, units]` makes all positions of an example one event. 1 for `[batch, positions, classes]` makes each
        position an example, so that the number of positions may change although the estimator has a state. "all" is for
        parameters: all dims, but for the path in a scope of paths. `event` is the shape that the neuron reads, such as
        (positions · units,).

    `layer.set_options(temperature=0.5)` changes options, and `layer.estimator = ...` and `layer.neuron = ...` take others.

    The estimator's state, `layer.state`, is in state_dict and moves with the module, but keeps its dtype when the module is cast.
    It is in buffers from the start if its shapes do not depend on the event, or if `event` is given; otherwise the first step
    creates it. A state belongs to one estimator and one shape of events: an input or a state_dict with another raises an error.
    `layer.reset_state()` starts it again. If a layer is used several times before one backward, each use has the same state, and
    the next states are averaged. Copies and pickles have the state, and none of the uses that wait for their loss.

    A pre-activation that is written to in place before its gradient is computed raises RuntimeError, and so does a second
    derivative, which an estimate does not have.

    torch.compile(fullgraph=True) keeps the layer in the graph, with any neuron and estimator, from torch 2.13 on; an older torch
    breaks the graph. If the estimator's state depends on the event, give `event`, or call the model once before compiling.
    torch.func can map over a layer and differentiate it if the estimator has no state and uses no autograd of its
    own; vmap's `randomness` decides whether examples share their noise.

    >>> import torch, gradest
    >>> layer = gradest.nn.Stochastic("bernoulli", "reinforce_centered")
    >>> a = torch.zeros(4, 3, requires_grad=True)
    >>> gradest.nn.broadcast_loss(layer, layer(a).sum(-1)).backward()
    >>> a.grad.shape
    torch.Size([4, 3])
    """

    _pair: Sampler
    _pair_type: ClassVar[type[Pair]] = Sampler
    _thread: _PerThread
    _moving: threading.Lock
    _handle: Handle  # None with a torch that is too old for the operators
    _compiled_slopes: dict[int, Slope]  # of samples that compiled code drew, by their seeds
    _merged: int = 0  # how many uses the last update averages

    @property
    def sampler(self) -> Sampler:
        """The neuron and the estimator, with their options of now."""
        return self._pair

    def _volatile(self) -> dict[str, Any]:
        fresh = {
            "_thread": _PerThread(),
            "_moving": threading.Lock(),
            "_handle": None if draw is None else Handle(self),
            "_compiled_slopes": {},
        }
        return {**super()._volatile(), **fresh}

    def forward(self, a: Tensor, baseline: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Return one sample of the neuron in training mode, else what `evaluation` selects.

        baseline: a number for each example, `[*batch]` or its leading dims, that is subtracted from the loss this use is told. It
            must be known before the sample is drawn, such as a critic's value of the state; the gradient stays unbiased whatever
            it is. It is not differentiated. Estimators that need no loss do not use it.
        rows: the numbers of the examples of `a` in a whole batch, integers `[batch]`, for a batch that is computed in parts. If
            torch's generator is in the same state before each part, each has the noise that the whole batch has. Not in compiled
            code, nor in transforms of torch.func.
        Raises InvalidInput for a bad input or baseline or for an event that differs from that of the state, and Incompatible
        if the estimator needs a scope of paths, or if it needs the loss and is used inside the function f of an Expectation.
        """
        if torch.compiler.is_compiling():
            if draw is None:
                from gradest.nn.outside import stochastic_forward  # noqa: PLC0415  # it imports the compiler

                h: Tensor = stochastic_forward(self, a, baseline, rows)
                return h
            if rows is not None:
                raise Incompatible(
                    "a compiled layer takes no rows; call the layer outside of torch.compile, or leave rows out"
                )
            return self._in_layout(self._compiled, a, baseline)
        return self._in_layout(self._interpreted, a, baseline, rows)

    def _in_layout(self, run: Callable[..., Tensor], a: Tensor, *rest: Tensor | None) -> Tensor:
        """Run a form of `forward` on `a` in the neuron's shape, and return what it emits in the caller's."""
        if self.event_dims is None:
            return run(a, *rest)
        scope = self._thread.uses.scope
        paths = 0 if scope is None or scope.samples is None else 1
        layout = EventLayout.of(self.neuron, a, self.event_dims, batch_dims=paths)
        return layout.restore_output(run(layout.flatten(a), *rest))

    def _interpreted(self, a: Tensor, baseline: Tensor | None, rows: Tensor | None) -> Tensor:
        """Run `forward` in code that is not compiled."""
        uses = self._thread.uses
        uses.told, uses.called = 0, True
        self._check_event(a)
        if not self.training:
            return self.emit(a, rows)
        scope, paths = uses.scope, NO_PATHS
        if scope is not None:
            paths = scope.paths_of(a, self.neuron)
        if rows is not None:
            paths = replace(paths, rows=rows)
        in_transform = transformed()
        learns = torch.is_grad_enabled() and (in_transform or a.requires_grad)
        if self._pair.credits_paths and learns and not paths.samples and not is_recomputed():
            raise self._paths_missing()
        run = self._transformed if in_transform else self._eagerly
        return run(a, baseline, paths, learns)

    def _eagerly(self, a: Tensor, baseline: Tensor | None, paths: Paths, learns: bool) -> Tensor:
        """Run `forward` in eager code."""
        if is_recomputed() and torch.is_grad_enabled():
            return self._again(a, learns)
        uses, sampler, step = self._thread.uses, self._pair, self.steps
        state = self.state_for(a)  # after the step: another thread may move both
        drawn = sampler.draw(a, state, paths)
        if not learns:
            self._runs.record_without_graph(sampler, drawn.key.seed, step, paths)
            return cast(drawn.points[0], a.dtype)
        use = Use(self, sampler, drawn, state, step, paths)
        h: Tensor
        h, port = Emit.apply(a, use)  # type: ignore[no-untyped-call]
        self._runs.record(use)
        if use.slope is not None:
            if losses_in_progress():
                expect_led(use.slope, check_led)
            else:
                (uses.slopes if uses.scope is None else uses.scope.slopes).append(use.slope)
        if not sampler.needs_loss:
            return h
        recorded = RecordedEagerly(use, port, baseline)
        if uses.scope is not None:
            uses.scope.record(recorded)
            return h
        self._check_place()
        uses.record(recorded)
        keep_alive(h, recorded)
        use.intact = h._version
        return h

    def _again(self, a: Tensor, learns: bool) -> Tensor:
        """Run the layer again in backward, as an activation checkpoint does. It is no other use: nothing waits for a loss."""
        seed = fresh_seed()
        first = self._runs.recorded(seed)
        if first is None:
            if self._pair.needs_loss and learns:
                raise missing_loss(self.estimator)
            first = self._runs.without_graph(seed, self.state, self.steps)
        sampler = first.sampler
        assert isinstance(sampler, Sampler)
        drawn = sampler.draw(a, first.state, first.paths, seed)
        if not learns:
            return drawn.points[0].to(a.dtype)
        use = Use(self, sampler, drawn, first.state, first.step, first.paths)
        h: Tensor
        h, _ = Emit.apply(a, use)  # type: ignore[no-untyped-call]
        return h

    def _transformed(self, a: Tensor, baseline: Tensor | None, paths: Paths, learns: bool) -> Tensor:
        """Run `forward` inside a transform of torch.func."""
        self._refuse_state_in_transform(a)
        seed = fresh_seed_tensor()
        h: Tensor
        h, port = EmitTransformed.apply(a, seed, self, self._pair, paths)  # type: ignore[no-untyped-call]
        if self._pair.needs_loss and learns:
            self._record(RecordedInTransform(self, self._pair, port, baseline, a.detach(), seed, paths))
        return h

    def _compiled(self, a: Tensor, baseline: Tensor | None) -> Tensor:
        """Run `forward` in the form that torch.compile traces."""
        if transformed():
            raise Incompatible(
                "a stochastic layer cannot be compiled inside a transform of torch.func; use the transform without torch.compile"
            )
        uses = self._thread.uses
        uses.told, uses.called = 0, True
        self._check_event(a)
        if not self.training:
            if self.evaluation != "sample":
                return self.emit(a)
            state = list(self.state.values())
            shape = output_shape(self.neuron, a)
            sampled: Tensor = draw(self._handle, a.detach(), state, torch.empty(0), shape, 0, False, False, False)[0]
            return cast(sampled, a.dtype)
        scope, paths = uses.scope, NO_PATHS
        if scope is not None:
            paths = scope.paths_of(a, self.neuron)
        if not self._names and self._form != {}:
            from gradest.nn.outside import begin_state  # noqa: PLC0415  # it imports the compiler

            begin_state(self.state_for, a)
        state = list(self.state.values())
        learns = torch.is_grad_enabled() and a.requires_grad
        if self._pair.credits_paths and learns and not paths.samples:
            raise self._paths_missing()
        given, keeps_sample = a if learns else a.detach(), self._pair.draws_points_alone and learns
        sample: Tensor
        sample, flag, drawn = draw(
            self._handle,
            given,
            state,
            torch.empty(0),
            output_shape(self.neuron, a),
            paths.samples,
            paths.flat,
            self._pair.needs_slope and learns,
            keeps_sample,
        )
        if self._pair.needs_loss and learns:
            still, kept = a.detach(), sample.detach() if keeps_sample else None
            port = widen(a - still)
            self._record(
                RecordedInGraph(self._pair, self._handle, port, baseline, flag, still, state, drawn, kept, paths)
            )
        return sample.to(a.dtype, copy=keeps_sample)

    def _record(self, recorded: Recorded) -> None:
        """Record a use that is not known to die, in compiled code or in a transform of torch.func."""
        uses = self._thread.uses
        if uses.scope is not None:
            uses.scope.record(recorded)
        else:
            self._check_place()
            recorded.previous, uses.latest = uses.latest, recorded

    def _check_place(self) -> None:
        """Raise Incompatible for a use outside of scopes that is inside the function f of an expectation."""
        if losses_in_progress():
            raise used_inside_loss(self._pair)

    def _paths_missing(self) -> Incompatible:
        label = self.estimator.label()
        return Incompatible(
            f"{label} credits several samples against each other, but a Stochastic layer emits one; open "
            "gradest.nn.StochasticGraph(model, samples=K), whose K paths are the samples, or use gradest.nn.Expectation(neuron, "
            "estimator)"
        )

    def _check_replaceable(self) -> None:
        if self.scope is not None:
            raise InvalidInput(
                f"the options of the layer {self.neuron.label()}, {self.estimator.label()} cannot be changed while a "
                "StochasticGraph records it; change them before the scope is opened, or after it"
            )

    @property
    def scope(self) -> Any:
        """The innermost open StochasticGraph that records this layer in this thread, or None."""
        return self._thread.uses.scope

    def enter_scope(self, scope: Any) -> Any:
        """Record the uses of this layer in the scope. Return the outer scope."""
        outer, self._thread.uses.scope = self._thread.uses.scope, scope
        return outer

    def leave_scope(self, outer: Any) -> None:
        """Record the uses of this layer in the outer scope again."""
        self._thread.uses.scope = outer

    def waits_outside(self) -> bool:
        """Return whether a use outside of scopes, whose output is alive, waits for its loss."""
        return bool(self._thread.uses.alive)

    def waiting_uses(self) -> tuple[list[Recorded], int]:
        """Return the uses that wait for their loss outside of a scope, in order, and how many have died."""
        uses = self._thread.uses
        found: list[Recorded] = []
        recorded = uses.latest
        while recorded is not None:
            found.append(recorded)
            recorded = recorded.previous
        found.reverse()
        if torch.compiler.is_compiling() or transformed():
            return found, 0
        # wrapped tensors belong to transforms that have ended
        reachable = [use for use in found if not is_functorch_wrapped_tensor(use.port)]
        alive = [use for reference in list(uses.alive.values()) if (use := reference()) is not None]
        return reachable + alive, len(found) - len(reachable) + uses.recorded - len(alive)

    def forget_uses(self, told: int = 0) -> None:
        """Forget the uses that wait outside of a scope; `told` of them were told their loss."""
        uses = self._thread.uses
        uses.latest, uses.recorded = None, 0
        uses.alive.clear()
        uses.slopes.clear()
        uses.told = told or uses.told

    def await_slope(self, seed: int) -> None:
        """Expect dL/dh to reach a sample that compiled code has drawn from this seed, as `_eagerly` does."""
        if losses_in_progress():
            return
        uses, slope = self._thread.uses, Slope(self, self._pair, compiled=True)
        (uses.slopes if uses.scope is None else uses.scope.slopes).append(slope)
        waiting = self._compiled_slopes
        waiting[seed] = slope
        while len(waiting) > _MOST_SLOPES:
            waiting.pop(next(iter(waiting)), None)

    def slope_reached(self, seed: int) -> None:
        """Note that dL/dh has reached a sample that compiled code has drawn from this seed."""
        slope = self._compiled_slopes.pop(seed, None)
        if slope is not None:
            slope.reached = True

    def awaited_slopes(self) -> list[Slope]:
        """Return the slopes of the uses outside of scopes, since the last broadcast_loss, that backward has not reached."""
        return [slope for slope in self._thread.uses.slopes if not slope.reached]

    def count_step(self) -> int:
        """Count a step of this thread, and return its number, from 1."""
        self._thread.uses.steps += 1
        return self._thread.uses.steps

    def was_called(self) -> bool:
        """Return whether the layer was ever called in this thread."""
        return self._thread.uses.called

    def was_told(self) -> bool:
        """Return whether uses outside of a scope were told their loss, and there was no forward pass since."""
        return self._thread.uses.told > 0

    def advance(self, state: State, since: int) -> None:
        """Set the next state, which a use of the layer computed from the state of step `since`."""
        if not state:
            return
        with self._moving:  # several threads may train one model, and backward may run in threads of its own
            if since == self.steps:
                self.steps, self._merged = self.steps + 1, 1
            elif since == self.steps - 1:
                self._merged += 1
                state = {name: _move(old, state[name], 1 / self._merged) for name, old in self.state.items()}
            else:  # a graph from before the last step, whose state is out of date
                return
            self._set_state(state)


def _move(old: Tensor, new: Tensor, by: float) -> Tensor:
    return old + (new - old) * by if new.is_floating_point() else new
