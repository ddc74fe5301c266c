"""The base of the stochastic layers: a neuron and an estimator whose options may change, and the estimator's state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from gradest.contract.estimator import Estimator, State
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import Incompatible, InvalidInput, InvalidOptions
from gradest.estimation.arguments import check_count, check_form, check_pre_activations
from gradest.estimation.ask_tell import first_state
from gradest.estimation.distributed import fresh_key
from gradest.estimation.events import EventDims, check_event_dims
from gradest.kernels.stable import widen
from gradest.nn.recomputation import FirstRuns
from gradest.nn.sampler import Pair

__all__ = ["Evaluation", "StochasticModule"]

Evaluation = Literal["mean", "sample", "threshold"]
"""What a layer emits after `eval()`: E[h], a sample as in training, or E[h] where P(h > 0) is above a threshold and else 0."""
_STATE = "state_"
_SHOWN = 3  # the number of tensors of a state that an error shows
_Shape = tuple[int | None, ...]  # None is a size that depends on the event
_Form = dict[str, tuple[_Shape, torch.dtype]]


class StochasticModule(nn.Module):
    """A module with a neuron, an estimator, the estimator's state, and a mode of evaluation.

    The state is a set of tensors, `state_NAME`, which keep their dtype when the module is cast. They are buffers from the
    start if their shapes are known then: if they are the same for all events, or if `event` is given. Otherwise the first use
    creates them as plain attributes, which this class moves, saves and loads. They are no buffers, because torch matches the
    buffers of a model and of a copy by position (AveragedModel does), and later buffers would shift all that follow.
    """

    threshold: Tensor
    _pair_type: ClassVar[type[Pair]] = Pair
    _runs: FirstRuns

    def __init__(
        self,
        neuron: NeuronSpec,
        estimator: EstimatorSpec,
        evaluation: Evaluation = "mean",
        threshold: float = 0.5,
        event: Sequence[int] | None = None,
        event_dims: EventDims | None = None,
    ) -> None:
        super().__init__()
        self._pair = self._pair_type(registry.neuron(neuron), registry.estimator(estimator))
        if event_dims is not None:
            check_event_dims(self.neuron, event_dims)
        self.event_dims = event_dims
        self.evaluation, self._level = evaluation, float(threshold)
        if not math.isfinite(self._level):
            raise InvalidInput(f"threshold must be a finite number, not {threshold!r}")
        self._event = None if event is None else _checked_event(event, self.neuron)
        self.register_buffer("threshold", torch.tensor(self._level))
        self.changes = 0  # how many times the neuron, the estimator or their options have been changed
        self._names: tuple[str, ...] = ()  # of the tensors of the state
        self._form: _Form | None = None  # of the state, or None if it is unknown
        self._expected: tuple[object, _Form] = (None, {})  # the form at the latest event, with what it depends on
        self.steps = 0  # how many times the state has been updated
        self.__dict__.update(self._volatile())
        self._begin_state()

    def _volatile(self) -> dict[str, Any]:
        """Return first values of the attributes that belong to this object alone: a copy does not take them over."""
        return {"_runs": FirstRuns()}

    def __getstate__(self) -> dict[str, Any]:
        volatile = self._volatile()
        return {name: value for name, value in self.__dict__.items() if name not in volatile}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, **self._volatile()})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Return the neuron, the estimator, the mode of evaluation and what is said of events, for the module's repr."""
        event = "" if self.event is None else f", event={self.event}"
        dims = "" if self.event_dims is None else f", event_dims={self.event_dims!r}"
        return f"{self.neuron.label()}, {self.estimator.label()}, evaluation={self.evaluation}{event}{dims}"

    @property
    def evaluation(self) -> Evaluation:
        """What the layer emits in evaluation. Assigning another value than the three raises InvalidInput."""
        return self._evaluation

    @evaluation.setter
    def evaluation(self, evaluation: Evaluation) -> None:
        if evaluation not in ("mean", "sample", "threshold"):
            raise InvalidInput(f'evaluation must be "mean", "sample" or "threshold", not {evaluation!r}')
        self._evaluation = evaluation

    @property
    def event(self) -> tuple[int, ...] | None:
        """The shape of one event that the layer was made for, or None for any."""
        return self._event

    @property
    def neuron(self) -> Neuron:
        """The neuron. Another one may be assigned, in any form that the constructor takes; see `set_options`."""
        return self._pair.neuron

    @neuron.setter
    def neuron(self, spec: NeuronSpec) -> None:
        self._replace(registry.neuron(spec), self.estimator)

    @property
    def estimator(self) -> Estimator:
        """The estimator. Another one may be assigned, in any form that the constructor takes; see `set_options`."""
        return self._pair.estimator

    @estimator.setter
    def estimator(self, spec: EstimatorSpec) -> None:
        self._replace(self.neuron, registry.estimator(spec))

    def _refuse_state_in_transform(self, a: Tensor) -> None:
        """Raise Incompatible, inside a transform of torch.func, if the estimator has a state."""
        if self._form is not None:
            stateful = bool(self._form)
        else:
            zeros = torch.zeros(a.shape, dtype=widen(a).dtype, device=a.device)
            stateful = bool(first_state(self.estimator, self.neuron, zeros))
        if stateful:
            raise Incompatible(
                f"{self.estimator.label()} has a state, which a transform of torch.func cannot update; "
                "use gradest.expect, which takes the state as an argument and returns the next one"
            )

    def set_options(self, **options: Any) -> None:
        """Change options of the estimator or of the neuron, such as a temperature that falls during training.

            layer.set_options(temperature=max(0.5, 0.999**step))

        Options that are not named keep their values. A sample that was drawn before gets the gradient of the options with which
        it was drawn. A compiled function uses the new options from its next call on and need not be compiled again; because it
        draws its samples again in backward, a change between its forward and its backward pass raises InvalidInput there.

        The state is kept if the estimator is of the same class, its options that are modules are the same objects, and its
        tensors have the same names and shapes as before; otherwise it starts again. The same holds if `layer.estimator` or
        `layer.neuron` is assigned.

        Raises InvalidOptions if neither or both have such an option or if a value is not accepted, Incompatible if the two would
        no longer fit each other, and InvalidInput while a StochasticGraph of the layer is open. Nothing has changed then.
        """
        estimator, neuron = self.estimator, self.neuron
        theirs = {name: value for name, value in options.items() if name in type(estimator).model_fields}
        its = {name: value for name, value in options.items() if name in type(neuron).model_fields}
        for name in options:
            if name in theirs and name in its:
                raise InvalidOptions(
                    f"{estimator.name} and {neuron.name} both have an option {name}; assign the one you mean, for instance "
                    f"layer.estimator = layer.estimator.with_options({name}=...)"
                )
            if name not in theirs and name not in its:
                known = (
                    f"{plugin.name}: {', '.join(type(plugin).model_fields) or 'none'}" for plugin in (estimator, neuron)
                )
                raise InvalidOptions(f"the layer has no option {name}. Its options are those of {'; '.join(known)}")
        self._replace(neuron.with_options(**its), estimator.with_options(**theirs))

    @property
    def state(self) -> State:
        """The estimator's state. It is empty for a stateless estimator, and before the first step if its shapes are unknown."""
        return {name: getattr(self, _STATE + name) for name in self._names}

    def reset_state(self) -> None:
        """Return the estimator's state to what it is before the first step. Samples drawn before no longer change it."""
        self._begin_state()
        self._forget_earlier()

    def _begin_state(self) -> None:
        for name in self._names:
            delattr(self, _STATE + name)
        self._form, initial = _known_form(self._pair, self.event)
        self._names = tuple(initial)
        for name, value in initial.items():
            self.register_buffer(_STATE + name, value.to(self.threshold.device))

    def reset_parameters(self) -> None:
        """Set the threshold and the state to their first values, as is needed after `to_empty`."""
        with torch.no_grad():
            self.threshold.fill_(self._level)
        self.reset_state()

    def state_for(self, a: Tensor) -> State:
        """Return the state for a use at `a`, which is created if there is none yet, with the device and precision of `a`.

        Raises InvalidInput if the state was made for another event.
        """
        if self._form == {}:
            return {}
        wide = check_form(a, self.neuron)
        if self._names:
            return self.fitted(self.state, wide)
        state = first_state(self.estimator, self.neuron, wide)
        self._set_state(state)
        return state

    def fitted(self, state: State, a: Tensor) -> State:
        """Return a state with the device of `a` and at least the precision that the estimator has for `a`.

        Raises InvalidInput if it was made for another event or another estimator.
        """
        if not state:
            return state
        event = tuple(a.shape[a.ndim - self.neuron.event_ndim :])
        key = event, a.dtype
        if self._expected[0] != key:
            self._expected = key, _form_of(first_state(self.estimator, self.neuron, a.new_zeros((0, *event))))
        form, given = self._expected[1], _form_of(state)
        if not _fits(given, form):
            found, wanted = _difference(given, form)
            raise InvalidInput(
                f"the state of this layer has {found}, but {self.estimator.label()} has {wanted} for events {list(event)} of "
                f"{self.neuron.label()}. A state belongs to one shape of events: use one layer for each, or call "
                "layer.reset_state() to start again. If the number of units changes because they are positions, "
                f"event_dims={self.neuron.event_ndim - 1} makes each of them an event of its own"
            )
        device = a.device
        return {
            name: value
            if value.dtype == form[name][1] and value.device == device
            else value.to(device, torch.promote_types(value.dtype, form[name][1]))
            for name, value in state.items()
        }

    def _set_state(self, state: State) -> None:
        # a new tensor each time, so that callers that hold the earlier state have it unchanged
        for name, value in state.items():
            setattr(self, _STATE + name, value)
        self._names = tuple(state)

    def _forget_earlier(self) -> None:
        """Keep samples drawn before from moving the state on."""
        self.steps += 2

    def _replace(self, neuron: Neuron, estimator: Estimator) -> None:
        """Take another neuron, another estimator or other options. Nothing has changed if they are refused."""
        pair = self._pair_type(neuron, estimator)
        self._check_replaceable()
        if self.event is not None:
            _checked_event(self.event, neuron)
        keep = (
            type(estimator) is type(self.estimator)
            and estimator.modules() == self.estimator.modules()
            and _known_form(pair, self.event)[0] == self._form
        )
        self._pair, self._expected = pair, (None, {})
        self.changes += 1
        if not keep:
            self.reset_state()

    def _check_replaceable(self) -> None:
        """Raise InvalidInput if the options cannot be changed now."""

    def _check_event(self, a: Tensor) -> None:
        event = self._event
        if event is not None and isinstance(a, Tensor) and tuple(a.shape[-len(event) :]) != event:
            raise InvalidInput(
                f"this layer was made for events {list(event)} of {self.neuron.label()}, but its input is {list(a.shape)}; "
                "use one layer for each shape of events, or leave `event` out"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the module. Its threshold and its state follow to another device, but keep their dtype."""
        kept = {"threshold": self.threshold, **{_STATE + name: value for name, value in self.state.items()}}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            moved = self._buffers[name] if name in self._buffers else fn(before)
            assert moved is not None
            setattr(self, name, moved if moved.dtype == before.dtype else before.to(moved.device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + _STATE + name: value for name, value in self.state.items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = prefix + _STATE
        keys = {
            key.removeprefix(start): key
            for key in state_dict
            if key.startswith(start) and "." not in key.removeprefix(start)
        }
        given, own = {name: state_dict[key] for name, key in keys.items()}, set(keys.values())
        rest = {key: value for key, value in state_dict.items() if key not in own}
        if self._form == {}:
            unexpected_keys.extend(keys.values())
        elif given and self._form is not None and not _fits(_form_of(given), self._form):
            found, wanted = _difference(_form_of(given), self._form)
            error_msgs.append(
                f"the state of {prefix.rstrip('.') or 'the layer'} in the state_dict has {found}, but {self.estimator.label()} "
                f"has {wanted} for {'all events' if self.event is None else f'events {list(self.event)}'} of {self.neuron.name}. "
                "Load it into a layer with the estimator and the events of the one that was saved, or leave out the keys "
                f"{start}* and load with strict=False"
            )
        elif given:
            as_it_is = local_metadata.get("assign_to_params_buffers", False)
            device = next(iter(self.state.values()), self.threshold).device
            self._set_state(
                {name: self._loaded(name, value, None if as_it_is else device) for name, value in given.items()}
            )
            self._forget_earlier()
        elif self._names and not self._declared and prefix + "threshold" in state_dict:
            self.reset_state()  # the layer was saved before its first step
        if given:  # torch copies buffers that are not missing; these are copied onto themselves
            rest |= {start + name: value for name, value in self.state.items() if _STATE + name in self._buffers}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    @property
    def _declared(self) -> bool:
        """Whether the state is in buffers, which exist from construction."""
        return all(_STATE + name in self._buffers for name in self._names)

    def _loaded(self, name: str, value: Tensor, device: torch.device | None) -> Tensor:
        """Return a loaded tensor of the state, in the precision it was saved with, or the estimator's if that is higher."""
        dtype = value.dtype if self._form is None else torch.promote_types(value.dtype, self._form[name][1])
        return value.to(dtype) if device is None else value.to(device, dtype, copy=True)

    def emit(self, a: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the output for `a` that `evaluation` selects: E[h], one sample, or the thresholded output."""
        if not torch.compiler.is_compiling():
            check_pre_activations(a, self.neuron)  # what is refused in training is refused in evaluation too
        if self.evaluation == "mean":
            return self.neuron.mean(a)
        if self.evaluation == "threshold":
            return self.neuron.threshold(a, self.threshold)
        return self._samples(a, 1, rows)[0]

    def _samples(self, a: Tensor, samples: int, rows: Tensor | None = None) -> Tensor:
        wide = check_pre_activations(a, self.neuron)
        key = fresh_key(a, self.neuron.event_ndim, examples=rows)
        return self.neuron.sample(key, wide, samples).to(a.dtype)


def _checked_event(event: Sequence[int], neuron: Neuron) -> tuple[int, ...]:
    if isinstance(event, str) or not isinstance(event, Sequence) or len(event) != neuron.event_ndim:
        raise InvalidInput(
            f"event is the shape of one event, the last {neuron.event_ndim} dim(s) of the input of {neuron.name}, such as "
            f"{(200,) if neuron.event_ndim == 1 else (20, 10, *[4] * (neuron.event_ndim - 2))}; it cannot be {event!r}"
        )
    for size in event:
        check_count("a size in event", size, least=0)
    neuron.output_event(tuple(event))  # raises for an event that the neuron cannot take
    return tuple(event)


def _form_of(state: State) -> _Form:
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _known_form(pair: Pair, event: tuple[int, ...] | None) -> tuple[_Form | None, State]:
    """Return what is known of the state before its first use: its form, and the first state if its shapes are known.

    Without `event`, the estimator is asked for two events; sizes in which the two states differ depend on the event.
    """

    def initial(*event: int) -> State:
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        with torch.device("cpu"):  # also where the module is made on the meta device
            return first_state(pair.estimator, pair.neuron, torch.zeros((0, *event), dtype=dtype))

    if event is not None:
        state = initial(*event)
        return _form_of(state), state
    try:
        one, other = (initial(*[size] * pair.neuron.event_ndim) for size in (2, 3))
    except Exception:  # a plugin may refuse these two events; it is asked again at the first use
        return None, {}
    if one.keys() != other.keys() or any(one[name].ndim != other[name].ndim for name in one):
        return None, {}
    form: _Form = {}
    for name, value in one.items():
        sizes = zip(value.shape, other[name].shape, strict=True)
        form[name] = tuple(size if size == changed else None for size, changed in sizes), value.dtype
    same = all(value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in one.items())
    return form, one if same else {}


def _fits(found: _Form, form: _Form) -> bool:
    """Return whether a state has the names and the sizes of a form, with any size where that has None."""
    return found.keys() == form.keys() and all(
        len(shape) == len(form[name][0])
        and all(size in (None, given) for given, size in zip(shape, form[name][0], strict=True))
        for name, (shape, _) in found.items()
    )


def _difference(found: _Form, form: _Form) -> tuple[str, str]:
    """Describe the tensors in which two forms differ, those of each."""
    names = [
        name
        for name in {**found, **form}
        if name not in found or name not in form or not _fits({name: found[name]}, {name: form[name]})
    ]
    return _described(found, names), _described(form, names)


def _described(form: _Form, names: Sequence[str]) -> str:
    shown = [name for name in names if name in form]
    sizes = ([("*" if size is None else str(size)) for size in form[name][0]] for name in shown[:_SHOWN])
    parts = [f"{name} [{', '.join(size)}]" for name, size in zip(shown, sizes, strict=False)]
    more = len(shown) - len(parts)
    return (
        ", ".join(parts) + (f" and {more} more" if more else "") if parts else "no such state" if form else "no state"
    )
