"""What a plugin class must have before it is registered. The conformance kit tests how it behaves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import nn

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin, is_left_out
from gradest.discovery.faults import contained, place_of

__all__ = ["InvalidPlugin", "Phase", "check_class"]

Phase = Literal["missing", "import", "api", "hooks", "call", "class", "duplicate"]
"""The phase in which a plugin failed, in the order of the literals: GRADEST_LOAD_PLUGINS names a distribution that is not
installed; its import raised; it is written for a PLUGIN_API that is not supported; a hook is misspelt or malformed; a hook
raised; a class is invalid; a name is taken."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class InvalidPlugin(Exception):
    """The reason for which a plugin is not registered, of one or several parts."""

    def __init__(self, phase: Phase, *reason: str) -> None:
        super().__init__(" ".join(reason))
        self.phase: Phase = phase


def check_class(cls: type[Plugin]) -> None:
    """Raise InvalidPlugin, naming the class and the fault, unless it is concrete, has valid attributes, and can be built."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if faults := "; ".join(_faults(cls)):
        raise InvalidPlugin("class", f"{where}: {faults}{place_of(cls)}")
    if issubclass(cls, Objective):
        return  # it may have options that it cannot do without, such as labels
    with contained(InvalidPlugin, "class", f"{where} cannot be built with its default options:"):
        cls()


def _are_events(examples: object, dims: int) -> bool:
    """Return whether these are shapes, at least one, of this number of dims and without a dim of size 0."""
    return (
        isinstance(examples, (tuple, list))
        and len(examples) > 0
        and all(isinstance(event, tuple) and len(event) == dims for event in examples)
        and all(type(size) is int and size > 0 for event in examples for size in event)
    )


def _are_devices(kinds: object) -> bool:
    """Return whether this is a tuple of types of devices that torch knows, without a number."""
    try:
        return isinstance(kinds, tuple) and all(
            isinstance(kind, str) and torch.device(kind).index is None for kind in kinds
        )
    except RuntimeError:
        return False


def _flag_faults(cls: type[Plugin], attributes: Iterable[str]) -> Iterator[str]:
    for attribute in attributes:
        if not isinstance(getattr(cls, attribute), bool):
            yield f"`{attribute}` must be True or False, not {getattr(cls, attribute)!r}"


def _holds_module(annotation: Any) -> bool:
    """Return whether a type of an option, or a part of it, is a class of torch modules."""
    if isinstance(annotation, type) and issubclass(annotation, nn.Module):
        return True
    return any(map(_holds_module, get_args(annotation)))


def _neuron_faults(cls: type[Neuron]) -> Iterator[str]:
    if type(cls.event_ndim) is not int or cls.event_ndim < 1:
        yield f"`event_ndim` must be an integer of at least 1, not {cls.event_ndim!r}"
    elif not _are_events(cls.example_events, cls.event_ndim):
        yield (
            f"`example_events` must be a sequence of shapes of {cls.event_ndim} dim(s) each, event_ndim, such as "
            f"{Neuron.example_events!r}, not {cls.example_events!r}"
        )
    if not _are_devices(cls.kernel_devices):
        yield f'`kernel_devices` must be a tuple of types of devices, such as ("cuda",), not {cls.kernel_devices!r}'


def _faults(cls: type[Plugin]) -> Iterator[str]:
    if inspect.isabstract(cls):
        yield f"it leaves abstract: {', '.join(sorted(cls.__abstractmethods__))}"
    name, summary, reference = (getattr(cls, attribute, None) for attribute in ("name", "summary", "reference"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"`name` must be in lower_snake_case, not {name!r}"
    if not isinstance(summary, str) or len(summary.splitlines()) != 1:
        yield f"`summary` must be one line of text, not {summary!r}"
    for attribute, text in (("reference", reference), ("formula", getattr(cls, "formula", None))):
        if not isinstance(text, str):
            yield f'`{attribute}` must be text ("" for none), not {text!r}'
    for option, field in getattr(cls, "model_fields", {}).items():
        if _holds_module(field.annotation) and not is_left_out(field.annotation, field.metadata):
            yield f"the option `{option}` is a torch.nn.Module, so declare it as {option}: gradest.ModuleOption"
    yield from _neuron_faults(cls) if issubclass(cls, Neuron) else ()
    yield from _flag_faults(cls, ("differentiable", "pointwise") if issubclass(cls, Objective) else ())
    if issubclass(cls, Estimator):
        needs = getattr(cls, "needs", None)
        if not isinstance(needs, frozenset) or not needs or not needs <= {"loss", "grad"}:
            yield f"`needs` must be a frozenset of 'loss', 'grad' or both, not {needs!r}"
        yield from _flag_faults(cls, ("off_support", "linear"))
        wanted = cls.capabilities
        if not isinstance(wanted, tuple) or not all(isinstance(c, type) and issubclass(c, Neuron) for c in wanted):
            yield f"`capabilities` must be a tuple of subclasses of Neuron, not {wanted!r}"
