"""The conformance kit on a whole plugin, in plain data: what `gradest check` prints and `pytest --gradest-plugin` runs.

A plugin is loaded into a registry of its own, beside the built-ins and nothing else. Its neurons and objectives go through
their checks in each of their `examples`. Its estimators, in each of theirs, are tried on every neuron that they accept, its
own and the built-in ones; its neurons also under every built-in estimator that accepts them, which is what finds a fault in a
capability, such as a relaxation, that only estimators use. Built-ins have their default options there.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import gradest
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.discovery.entry_points import PluginSource, installed
from gradest.discovery.loading import PluginFailure, PluginInfo
from gradest.discovery.registry import Registry
from gradest.discovery.validation import PLUGIN_EXCEPTIONS
from gradest.testing import checks

__all__ = ["Case", "Kind", "Report", "Result", "Suite", "collect", "run_checks"]

Kind = Literal["plugin", "neuron", "estimator", "objective"]
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)

_LIBRARIES = tuple(f"{Path(library.__file__ or '').parent}{os.sep}" for library in (gradest, torch))


@dataclass(frozen=True)
class Result:
    """How one check went."""

    kind: Kind
    plugin: str
    """The label of the neuron, estimator or objective."""
    neuron: str
    """The label of the neuron that an estimator was tried on, else ""."""
    check: str
    diagnosis: str
    """What is wrong; "" where the check passed."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.diagnosis


@dataclass(frozen=True)
class Case:
    """One check, of one neuron or objective or of an estimator on a neuron, not yet made."""

    kind: Kind
    plugin: str
    neuron: str
    check: str
    test: Callable[[], None]

    def __str__(self) -> str:
        return "-".join(filter(None, [self.plugin, self.neuron, self.check]))

    def run(self) -> Result:
        """Make the check. Whatever the plugin's code raises is its failure."""
        started, diagnosis = time.perf_counter(), ""
        try:
            self.test()
        except PLUGIN_EXCEPTIONS as error:
            diagnosis = _diagnosis(error)
        return Result(
            self.kind, self.plugin, self.neuron, self.check, diagnosis, round(time.perf_counter() - started, 3)
        )


@dataclass(frozen=True)
class Suite:
    """What there is to check of a plugin; no cases where it did not load."""

    plugin: str
    failures: tuple[PluginFailure, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Report:
    """How all checks of a plugin went."""

    plugin: str
    failures: tuple[PluginFailure, ...]
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether it loaded and passed every check."""
        return not self.failures and all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """In plain data."""
        results = [{**asdict(result), "passed": result.passed} for result in self.results]
        failures = [asdict(failure) for failure in self.failures]
        return {"plugin": self.plugin, "passed": self.passed, "failures": failures, "results": results}


def run_checks(
    source: PluginSource, *, bias: bool = True, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check the plugin; `bias` and `source` as for `collect`. `progress` is told how many of how many checks are done."""
    suite = collect(source, bias=bias)
    results: list[Result] = []
    for case in suite.cases:
        if progress is not None:
            progress(len(results), len(suite.cases))
        results.append(case.run())
    return Report(suite.plugin, suite.failures, tuple(results))


def collect(source: PluginSource, *, bias: bool = True) -> Suite:
    """Load the plugin, and say what there is to check.

    source: what `gradest.discovery.entry_points.find` returns.
    bias: whether to measure it, which takes longer than all other checks together.
    """
    built_in = [] if source.built_in else [other for other in installed() if other.built_in]
    registry = Registry([*built_in, source])
    cases = (
        case for info in registry.plugins if info.distribution == source.distribution for case in _cases(registry, info)
    )
    kept = tuple(case for case in cases if bias or case.check != _BIAS)
    return Suite(source.distribution, registry.failures, kept)


def _cases(registry: Registry, info: PluginInfo) -> Iterator[Case]:
    """The checks of what the plugin brings, and a case that fails for all that stands in the way of one."""
    broken: list[Case] = []
    neurons = _build("neuron", info.neurons.values(), broken)
    estimators = _build("estimator", info.estimators.values(), broken)
    objectives = _build("objective", info.objectives.values(), broken)
    if not (neurons or estimators or objectives or broken):
        broken.append(_failing("plugin", info.distribution, "brings_something", "its hooks return no class at all"))
    yield from broken
    for neuron in neurons:
        for check in checks.NEURON_CHECKS:
            yield Case("neuron", neuron.label(), "", _name(check), partial(check, neuron))
    for objective in objectives:
        for of_objective in checks.OBJECTIVE_CHECKS:
            yield Case("objective", objective.label(), "", _name(of_objective), partial(of_objective, objective))
    built_in = [cls for cls in registry.neurons.values() if cls not in info.neurons.values()]
    for estimator in estimators:
        in_other_forms = (cls.build(**options) for cls in built_in for options in cls.examples)
        yield from _pairs(estimator, [*neurons, *(cls() for cls in built_in)], in_other_forms)
    for cls in registry.estimators.values():
        if cls not in info.estimators.values():
            yield from _pairs(cls(), neurons, None)


def _pairs(estimator: Estimator, neurons: Iterable[Neuron], further: Iterable[Neuron] | None) -> Iterator[Case]:
    """The checks on the neurons that the estimator accepts; if there is none, on those of `further`, one of which must fit."""
    fits = False
    for neuron in neurons:
        try:
            accepted = estimator.accepts(neuron)
        except PLUGIN_EXCEPTIONS as error:
            yield _failing("estimator", estimator.label(), "accepts", _diagnosis(error), neuron.label())
            accepted, fits = False, True
        if accepted:
            fits = True
            for check in checks.ESTIMATOR_CHECKS:
                test = partial(check, estimator, neuron)
                yield Case("estimator", estimator.label(), neuron.label(), _name(check), test)
    if fits or further is None:
        return
    found = list(_pairs(estimator, further, None))
    wanted = " and ".join(capability.__name__ for capability in estimator.capabilities)
    reason = f"it accepts no neuron, its plugin's or built-in: `capabilities` asks for {wanted}, and accepts() decides"
    yield from found or [_failing("estimator", estimator.label(), "accepts", reason)]


def _build(kind: Kind, classes: Iterable[type[AnyPlugin]], broken: list[Case]) -> list[AnyPlugin]:
    """The classes in each of their examples; those that cannot be built go to `broken`."""
    built = []
    for cls in classes:
        try:
            built += [cls.build(**options) for options in cls.examples]
        except PLUGIN_EXCEPTIONS as error:
            broken.append(
                _failing(kind, cls.name, "examples", f"cannot be built from its examples: {_diagnosis(error)}")
            )
    return built


def _failing(kind: Kind, plugin: str, check: str, reason: str, neuron: str = "") -> Case:
    def fail() -> None:
        raise _Stated(reason)

    return Case(kind, plugin, neuron, check, fail)


class _Stated(Exception):
    """Its text is the whole diagnosis."""


def _diagnosis(error: BaseException) -> str:
    """What the kit says; of an exception in the plugin's own code also its type, and where it arose."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    from_the_kit = isinstance(error, AssertionError) and frames[-1].filename == checks.__file__
    if text and (from_the_kit or isinstance(error, _Stated)):
        return text
    theirs = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    where = f" ({Path(theirs[-1].filename).name}:{theirs[-1].lineno}, in {theirs[-1].name})" if theirs else ""
    return f"raises {type(error).__name__}: {text}{where}"


def _name(check: Callable[..., None]) -> str:
    """Of a check, without the kind of plugin that it is for."""
    return check.__name__.partition("_")[2]


_BIAS = _name(checks.estimator_bias_is_as_claimed)
