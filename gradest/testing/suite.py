"""Run the conformance kit on a whole plugin: `gradest check` prints the outcome, `pytest --gradest-plugin` makes tests of it.

The plugin is loaded into a registry of its own, which holds the built-in plugins and no others. Every neuron, estimator and
objective of the plugin is built with each of the option sets in its `examples`. Then

- neurons and objectives are checked by themselves;
- estimators are checked on every neuron that they accept, the plugin's own and the built-in ones;
- neurons are also checked under every built-in estimator that accepts them, because only an estimator shows a fault in some
  capabilities, such as a relaxation.

Built-in plugins have their default options in these pairs.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.discovery.entry_points import PluginSource, installed
from gradest.discovery.faults import describe_error, is_of_user
from gradest.discovery.loading import PluginFailure, PluginInfo
from gradest.discovery.registry import Registry
from gradest.testing import checks

__all__ = ["CheckCase", "CheckReport", "CheckResult", "CheckSuite", "CheckedKind", "collect_checks", "run_checks"]

CheckedKind = Literal["plugin", "neuron", "estimator", "objective"]
AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check."""

    kind: CheckedKind
    plugin: str
    """The label of the neuron, estimator or objective that was checked."""
    neuron: str
    """The label of the neuron that an estimator was checked on, else an empty string."""
    check: str
    """The name of the check, without the kind of plugin."""
    diagnosis: str
    """What is wrong; an empty string if the check passed."""
    seconds: float
    """The wall-clock time of the check."""

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return not self.diagnosis


@dataclass(frozen=True)
class CheckCase:
    """A check to be run on one neuron, one objective, or one estimator with a neuron.

    `kind`, `plugin`, `neuron` and `check` are as in `CheckResult`.
    """

    kind: CheckedKind
    plugin: str
    neuron: str
    check: str
    test: Callable[[], None]
    """The check as a function without arguments, which raises if the check fails."""

    def __str__(self) -> str:
        return "-".join(filter(None, [self.plugin, self.neuron, self.check]))

    def run(self) -> CheckResult:
        """Run the check and return its outcome. An exception in the plugin's code is a failed check, and is not raised."""
        started, diagnosis = time.perf_counter(), ""
        try:
            self.test()
        except BaseException as error:
            diagnosis = _diagnose(error)
        return CheckResult(
            self.kind, self.plugin, self.neuron, self.check, diagnosis, round(time.perf_counter() - started, 3)
        )


@dataclass(frozen=True)
class CheckSuite:
    """All checks of one plugin; if the plugin did not load there are none, and `failures` says why."""

    plugin: str
    failures: tuple[PluginFailure, ...]
    cases: tuple[CheckCase, ...]


@dataclass(frozen=True)
class CheckReport:
    """The outcome of all checks of one plugin."""

    plugin: str
    failures: tuple[PluginFailure, ...]
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether the plugin loaded and passed every check."""
        return not self.failures and all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict that can be written as JSON, with a key `passed` for each result and for the whole."""
        results = [{**asdict(result), "passed": result.passed} for result in self.results]
        failures = [asdict(failure) for failure in self.failures]
        return {"plugin": self.plugin, "passed": self.passed, "failures": failures, "results": results}


def run_checks(
    source: PluginSource, *, bias: bool = True, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Run every check on a plugin, and return the outcomes.

    source, bias: as for `collect_checks`.
    progress: progress(done, checks) is called before each check, with the number that are done and the number of all.

    What the plugin's code raises becomes part of the report.
    """
    suite = collect_checks(source, bias=bias)
    results: list[CheckResult] = []
    for case in suite.cases:
        if progress is not None:
            progress(len(results), len(suite.cases))
        results.append(case.run())
    return CheckReport(suite.plugin, suite.failures, tuple(results))


def collect_checks(source: PluginSource, *, bias: bool = True) -> CheckSuite:
    """Load a plugin into a registry of its own, and return its checks without running them.

    source: where the plugin is, from `gradest.discovery.entry_points.find`.
    bias: whether to include the measurement of estimators' bias, which takes longer than all other checks together.
    """
    built_in = [] if source.built_in else [other for other in installed() if other.built_in]
    registry = Registry([*built_in, source])
    cases = (
        case
        for info in registry.plugins
        if info.distribution == source.distribution
        for case in _plugin_cases(registry, info)
    )
    selected = tuple(case for case in cases if bias or case.check != _BIAS_CHECK)
    return CheckSuite(source.distribution, registry.failures, selected)


def _plugin_cases(registry: Registry, info: PluginInfo) -> Iterator[CheckCase]:
    """The checks of all that the plugin provides, and a failing case for each class that cannot be checked."""
    broken: list[CheckCase] = []
    neurons = _build_examples("neuron", info.neurons.values(), broken)
    estimators = _build_examples("estimator", info.estimators.values(), broken)
    objectives = _build_examples("objective", info.objectives.values(), broken)
    if not (neurons or estimators or objectives or broken):
        broken.append(
            _failing_case("plugin", info.distribution, "brings_something", "its hooks return no class at all")
        )
    yield from broken
    for neuron in neurons:
        for check in checks.NEURON_CHECKS:
            yield CheckCase("neuron", neuron.label(), "", _check_name(check), partial(check, neuron))
    for objective in objectives:
        for objective_check in checks.OBJECTIVE_CHECKS:
            yield CheckCase(
                "objective", objective.label(), "", _check_name(objective_check), partial(objective_check, objective)
            )
    built_in = [cls for cls in registry.neurons.values() if cls not in info.neurons.values()]
    for estimator in estimators:
        with_other_options = (cls.build(**options) for cls in built_in for options in cls.examples)
        yield from _estimator_cases(estimator, [*neurons, *(cls() for cls in built_in)], with_other_options)
    for cls in registry.estimators.values():
        if cls not in info.estimators.values():
            yield from _estimator_cases(cls(), neurons, None)


def _estimator_cases(
    estimator: Estimator, neurons: Iterable[Neuron], fallback: Iterable[Neuron] | None
) -> Iterator[CheckCase]:
    """The checks of the estimator on each of the neurons that it accepts.

    If it accepts none of them, `fallback` neurons are tried, and it is a failure if it accepts none of these either. None for
    `fallback` means that the estimator need not accept any neuron.
    """
    fits = False
    for neuron in neurons:
        try:
            accepted = estimator.accepts(neuron)
        except BaseException as error:
            yield _failing_case("estimator", estimator.label(), "accepts", _diagnose(error), neuron.label())
            accepted, fits = False, True
        if accepted:
            fits = True
            for check in checks.ESTIMATOR_CHECKS:
                test = partial(check, estimator, neuron)
                yield CheckCase("estimator", estimator.label(), neuron.label(), _check_name(check), test)
    if fits or fallback is None:
        return
    found = list(_estimator_cases(estimator, fallback, None))
    required = " and ".join(capability.__name__ for capability in estimator.capabilities)
    reason = (
        f"it accepts no neuron, neither its plugin's nor a built-in one: `capabilities` requires {required}, and accepts() "
        "decides"
    )
    yield from found or [_failing_case("estimator", estimator.label(), "accepts", reason)]


def _build_examples(kind: CheckedKind, classes: Iterable[type[AnyPlugin]], broken: list[CheckCase]) -> list[AnyPlugin]:
    """Build each class with each of its examples; a class that cannot be built adds a failing case to `broken`."""
    built = []
    for cls in classes:
        try:
            built += [cls.build(**options) for options in cls.examples]
        except BaseException as error:
            broken.append(
                _failing_case(kind, cls.name, "examples", f"cannot be built from its examples: {_diagnose(error)}")
            )
    return built


def _failing_case(kind: CheckedKind, plugin: str, check: str, reason: str, neuron: str = "") -> CheckCase:
    """A case that fails with the diagnosis `reason`."""

    def fail() -> None:
        raise _DiagnosisError(reason)

    return CheckCase(kind, plugin, neuron, check, fail)


class _DiagnosisError(Exception):
    """Raised by a failing case; its text is the whole diagnosis."""


def _diagnose(error: BaseException) -> str:
    """Describe a failed check in one line.

    For a failed assertion of the kit this is its text. For an exception in the plugin's code it is the exception's type, text and
    place. What the user causes, such as KeyboardInterrupt, is raised again.
    """
    if is_of_user(error):
        raise error
    if isinstance(error, _DiagnosisError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and str(error) and Path(frames[-1].filename).parent == _KIT:
        return " ".join(str(error).split())
    return f"raises {describe_error(error)}"


def _check_name(check: Callable[..., None]) -> str:
    """The name of a check without the kind of plugin: "is_pure" for `neuron_is_pure`."""
    return check.__name__.partition("_")[2]


_KIT = Path(__file__).parent
_BIAS_CHECK = _check_name(checks.estimator_bias_is_as_claimed)
