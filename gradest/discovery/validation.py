"""What a plugin class must have before it is registered. The conformance kit tests how it behaves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Literal

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin

__all__ = ["PLUGIN_EXCEPTIONS", "InvalidPlugin", "Phase", "check_class"]

Phase = Literal["missing", "import", "api", "hooks", "call", "class", "duplicate"]
"""The phase in which a plugin failed, in the order of the literals: GRADEST_LOAD_PLUGINS names a distribution that is not
installed; its import raised; it is written for another PLUGIN_API; a hook is misspelt or malformed; a hook raised; a class is
invalid; a name is taken."""

PLUGIN_EXCEPTIONS = (Exception, SystemExit)
"""Exceptions of a plugin's code that are recorded as its failure. KeyboardInterrupt is not one: it is the user's."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class InvalidPlugin(Exception):
    """The reason for which a plugin is not registered."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(reason)
        self.phase: Phase = phase


def check_class(cls: type[Plugin]) -> None:
    """Raise InvalidPlugin, naming the class and the fault, unless it is concrete, has valid attributes, and can be built."""
    where = f"{cls.__module__}.{cls.__qualname__}"
    if faults := "; ".join(_faults(cls)):
        raise InvalidPlugin("class", f"{where}: {faults}")
    if issubclass(cls, Objective):
        return  # it may have options that it cannot do without, such as labels
    try:
        cls()
    except PLUGIN_EXCEPTIONS as error:
        raise InvalidPlugin("class", f"{where} cannot be built with its default options: {error}") from error


def _faults(cls: type[Plugin]) -> Iterator[str]:
    if inspect.isabstract(cls):
        yield f"it leaves abstract: {', '.join(sorted(cls.__abstractmethods__))}"
    name, summary, reference = (getattr(cls, attribute, None) for attribute in ("name", "summary", "reference"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"`name` must be in lower_snake_case, not {name!r}"
    if not isinstance(summary, str) or len(summary.splitlines()) != 1:
        yield f"`summary` must be one line of text, not {summary!r}"
    if not isinstance(reference, str):
        yield f'`reference` must be text ("" for none), not {reference!r}'
    if issubclass(cls, Neuron) and not (isinstance(cls.event_ndim, int) and cls.event_ndim >= 1):
        yield f"`event_ndim` must be an integer of at least 1, not {cls.event_ndim!r}"
    if issubclass(cls, Estimator):
        needs = getattr(cls, "needs", None)
        if not isinstance(needs, frozenset) or not needs or not needs <= {"loss", "grad"}:
            yield f"`needs` must be a frozenset of 'loss', 'grad' or both, not {needs!r}"
        wanted = cls.capabilities
        if not isinstance(wanted, tuple) or not all(isinstance(c, type) and issubclass(c, Neuron) for c in wanted):
            yield f"`capabilities` must be a tuple of subclasses of Neuron, not {wanted!r}"
