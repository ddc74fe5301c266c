"""Running the conformance kit on a plugin: what `gradest check` and `pytest --gradest-plugin` share.

subject = find("my-plugin")                   # or a module, a .py file, a project's folder
for case in cases(subject):
    print(case.id, run(case) or "passed")
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from gradest import testing
from gradest.checks import STRANGE_ERRORS
from gradest.discovery import GROUP, discover, normalised
from gradest.errors import GradestError, PluginError
from gradest.estimator import Estimator
from gradest.neuron import Neuron
from gradest.plugin import Plugin
from gradest.registry import PluginInfo, Registry

__all__ = ["Case", "Subject", "cases", "find", "run"]


@dataclass(frozen=True)
class Subject:
    """What is checked: a plugin's classes, in a registry that has the built-in ones beside it."""

    name: str
    registry: Registry
    plugins: tuple[PluginInfo, ...]
    failures: tuple[str, ...]
    """What of it could not be registered, and why."""


@dataclass(frozen=True)
class Case:
    """One check of one plugin; of an estimator, on one neuron."""

    plugin: str
    neuron: str | None
    check: str
    call: Callable[[], None]

    @property
    def id(self) -> str:
        """A name for reports."""
        return "-".join(part for part in (self.plugin, self.neuron, self.check) if part)


def find(target: str) -> Subject:
    """The plugin that `target` names: an installed distribution, a module, a .py file, or a folder with a pyproject.toml.

    A file or folder need not be installed; where it is, what is in the folder is checked. Raises PluginError if there is none.
    """
    path = Path(target)
    if path.suffix == ".py" or path.is_dir():
        return _register(target, _of_folder(path) if path.is_dir() else {path.stem: partial(_import_file, path)})
    if any(normalised(source.distribution) == normalised(target) for source in discover()):
        return _of_distribution(target)
    if _is_module(target):
        return _register(target, {target: partial(importlib.import_module, target)})
    raise PluginError(
        f"{target!r} is no installed distribution with plugins, no module, no .py file and no folder with a pyproject.toml; "
        "`gradest list plugins` shows what is installed"
    )


def cases(subject: Subject, bias: bool = True) -> Iterator[Case]:
    """Every check: of neurons and objectives, and of estimators on each neuron they accept, of the plugin's own or built in.

    bias: whether the claims of bias are measured, which takes seconds for each pair.
    """
    neurons = testing.neurons(subject.registry)
    for info in subject.plugins:
        for neuron in _examples(info.neurons.values()):
            yield from _checks(neuron, None, testing.NEURON_CHECKS)
        for estimator in _examples(info.estimators.values()):
            yield from _estimator_cases(estimator, neurons, bias)
        for objective in _examples(info.objectives.values()):
            yield from _checks(objective, None, testing.OBJECTIVE_CHECKS)


def run(case: Case) -> str | None:
    """None if the check passes, else a diagnosis."""
    try:
        case.call()
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except STRANGE_ERRORS as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(at.filename).name}, line {at.lineno})"
    return None


# --- finding ---


def _of_distribution(name: str) -> Subject:
    registry = Registry(load=name)
    plugins = tuple(info for info in registry.plugins if normalised(info.distribution) == normalised(name))
    return Subject(name, registry, plugins, tuple(map(str, registry.failures)))


def _of_folder(folder: Path) -> dict[str, Callable[[], ModuleType]]:
    """The hook modules of a project, by the entry points of its pyproject.toml."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        points: dict[str, str] = project["project"]["entry-points"][GROUP]
    except FileNotFoundError as error:
        raise PluginError(f"{folder} has no pyproject.toml") from error
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise PluginError(f"{folder}/pyproject.toml has no table [project.entry-points.{GROUP}]: {error}") from error
    roots = [str(root.resolve()) for root in (folder / "src", folder) if root.is_dir()]
    sys.path[:0] = [root for root in roots if root not in sys.path]
    return {name: partial(importlib.import_module, module) for name, module in points.items()}


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PluginError(f"{path} is no Python file that can be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pydantic looks a class's module up to resolve its annotations
    spec.loader.exec_module(module)
    return module


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _register(name: str, hooks: dict[str, Callable[[], ModuleType]]) -> Subject:
    registry = Registry(load="")
    built_in = len(registry.plugins)
    failures = []
    for point, load in hooks.items():
        try:
            registry.register(load())
        except GradestError as error:
            failures.append(str(error))
        except STRANGE_ERRORS as error:
            failures.append(f"{point}: import: {type(error).__name__}: {error}")
    return Subject(name, registry, registry.plugins[built_in:], tuple(failures))


# --- cases ---


def _examples(classes: Any) -> Iterator[Any]:
    for cls in classes:
        for options in cls.examples:
            yield cls.build(**options)


def _checks(plugin: Plugin, neuron: Neuron | None, checks: Sequence[Callable[..., None]]) -> Iterator[Case]:
    arguments = (plugin,) if neuron is None else (plugin, neuron)
    for check in checks:
        label = None if neuron is None else neuron.label()
        yield Case(plugin.label(), label, check.__name__, partial(check, *arguments))


def _estimator_cases(estimator: Estimator, neurons: Sequence[Neuron], bias: bool) -> Iterator[Case]:
    fitting = [neuron for neuron in neurons if estimator.accepts(neuron)]
    if not fitting:
        yield Case(estimator.label(), None, "estimator_accepts_a_neuron", _accepts_none)
    checks = [check for check in testing.ESTIMATOR_CHECKS if bias or check is not testing.estimator_bias_is_as_claimed]
    for neuron in fitting:
        yield from _checks(estimator, neuron, checks)


def _accepts_none() -> None:
    raise AssertionError(
        "accepts no neuron, neither a built-in one nor one of this plugin: see `capabilities` and `accepts`"
    )
