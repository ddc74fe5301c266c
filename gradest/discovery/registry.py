"""The registry: the table of all plugins, and the lookup of a neuron, an estimator or an objective by name.

Each distribution is registered whole or not at all. `Registry.failures` lists those that were not, with the reason.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.entry_points import OWN, PluginSource, discover
from gradest.discovery.faults import (
    contained_in_class,
    describe_error,
    is_of_user,
    name_of_class,
    place_of,
    read_attribute,
    read_bases,
)
from gradest.discovery.loading import KINDS, PluginFailure, PluginInfo, Stage, load_entry_point
from gradest.discovery.validation import InvalidPlugin
from gradest.errors import (
    GradestError,
    Incompatible,
    InvalidOptions,
    PluginError,
    PluginFault,
    TooManyPoints,
    UnknownPlugin,
)

__all__ = ["EstimatorSpec", "NeuronSpec", "Registry", "Spec", "registry", "unknown_plugin"]

_LOG = logging.getLogger("gradest")

AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)
Registrable = TypeVar("Registrable")


class Registry:
    """Every neuron, estimator and objective that is installed or registered. Installed plugins are loaded at the first lookup.

    Environment:
        GRADEST_LOAD_PLUGINS: a comma-separated list of distributions. Third-party plugins that are not in it are not imported; if
            it is empty, none is.
        GRADEST_STRICT_PLUGINS: if it is 1, the first plugin that fails raises PluginError instead of being recorded.

    sources: the plugins to load instead of those that are installed.

    >>> import gradest
    >>> "rloo" in gradest.registry.estimators
    True
    """

    def __init__(self, sources: Sequence[PluginSource] | None = None) -> None:
        self._sources = sources
        self._lock = threading.RLock()
        self._loaded = False
        self._plugins: tuple[PluginInfo, ...] = ()
        self._failures: tuple[PluginFailure, ...] = ()
        self._registered: list[tuple[object, PluginInfo]] = []
        self._tables: tuple[object, dict[str, Mapping[str, Any]]] = (None, {})
        self._built: tuple[tuple[PluginInfo, ...], dict[tuple[str, str], Any]] = ((), {})

    @property
    def neurons(self) -> Mapping[str, type[Neuron]]:
        """The neurons by name, sorted."""
        return self._table("neurons")

    @property
    def estimators(self) -> Mapping[str, type[Estimator]]:
        """The estimators by name, sorted."""
        return self._table("estimators")

    @property
    def objectives(self) -> Mapping[str, type[Objective]]:
        """The objectives by name, sorted."""
        return self._table("objectives")

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """The distributions that loaded, gradest first and then by name, followed by what was given to `register`."""
        self._load()
        return self._plugins

    @property
    def failures(self) -> tuple[PluginFailure, ...]:
        """The plugins that did not load."""
        self._load()
        return self._failures

    def neuron(self, spec: str | Mapping[str, Any] | Neuron | type[Neuron], /, **options: Any) -> Neuron:
        """Return a neuron from its name or from {"name": ..., **options}; an instance is returned as it is.

        Raises UnknownPlugin, which lists names close to the given one, or InvalidOptions.

        >>> import gradest
        >>> gradest.neuron("k_subset", k=3)
        KSubset(k=3)
        """
        return self._find("neuron", Neuron, spec, options)

    def estimator(self, spec: str | Mapping[str, Any] | Estimator | type[Estimator], /, **options: Any) -> Estimator:
        """Return an estimator, by the same rules as `neuron`.

        >>> import gradest
        >>> gradest.estimator({"name": "rloo", "samples": 8})
        Rloo(samples=8)
        """
        return self._find("estimator", Estimator, spec, options)

    def objective(self, spec: str | Mapping[str, Any] | Objective | type[Objective], /, **options: Any) -> Objective:
        """Return an objective, by the same rules as `neuron`.

        >>> import torch, gradest
        >>> gradest.objective("quadratic", target=0.5)(torch.ones(1, 2))
        tensor([0.2500])
        """
        return self._find("objective", Objective, spec, options)

    def fitting(self, neuron: Neuron) -> dict[str, Estimator]:
        """Return the estimators, with default options, that accept the neuron. One whose code fails does not."""
        return self.ask_fitting(neuron)[0]

    def ask_fitting(self, neuron: Neuron) -> tuple[dict[str, Estimator], dict[str, PluginFault]]:
        """Return the estimators, with default options, that accept the neuron; and the faults of those whose code fails."""
        fitting: dict[str, Estimator] = {}
        faults: dict[str, PluginFault] = {}
        for name, cls in self.estimators.items():
            try:
                estimator = self.build_default(cls)
                if self.call(estimator, "accepts", neuron):
                    fitting[name] = estimator
            except PluginFault as fault:
                faults[name] = fault
        return fitting, faults

    def build_default(self, cls: type[AnyPlugin]) -> AnyPlugin:
        """Return an instance with default options. Raises PluginFault if that fails, though it did not when it was checked."""
        with contained_in_class(cls, f"{name_of_class(cls)} cannot be built with its default options:"):
            return cls()

    def label(self, plugin: Plugin) -> str:
        """Return `plugin.label()`, or the name alone if that fails."""
        try:
            label: str = self.call(plugin, "label", kind=str)
        except PluginFault:
            return name_of_class(type(plugin))
        return label

    def call(self, plugin: Plugin, method: str, *arguments: Any, kind: type = object) -> Any:
        """Return what a method of a plugin returns. Whoever asks all plugins asks by this, so that a fault of one stays its own.

        kind: the type of what it must return.

        Raises PluginFault, with file and line, if it returns something else and for whatever it raises, but TooManyPoints, which
        is an answer, and what the user causes, such as KeyboardInterrupt.
        """
        try:
            found = getattr(plugin, method)(*arguments)
        except TooManyPoints:
            raise
        except BaseException as error:
            if is_of_user(error):
                raise
            raise self.as_fault(error, plugin, method) from error
        if isinstance(found, kind):
            return found
        wrong = f"{plugin.name}.{method} must return an object of type {kind.__name__}, not {type(found).__name__}"
        raise PluginFault(wrong + place_of(getattr(plugin, method, None)), type(plugin))

    @contextmanager
    def containing(self, failures: dict[str, PluginFault], name: str) -> Iterator[None]:
        """Keep a fault of an estimator or a neuron that the block raises as failures[name]; raise any other error."""
        try:
            yield
        except BaseException as error:
            if not self.is_fault(error, (Estimator, Neuron)):
                raise
            failures[name] = self.as_fault(error)

    def is_fault(self, error: BaseException, kinds: tuple[type[Plugin], ...]) -> bool:
        """Return whether a method of a plugin of these kinds raised the error, in its traceback, or broke the contract.

        Other errors that gradest raises on purpose are answers to what the caller gave, and are no faults.
        """
        if isinstance(error, GradestError) or is_of_user(error):
            return isinstance(error, PluginFault)
        return any(base in kinds for cls, _ in _calls(error) for base in read_bases(cls))

    def as_fault(self, error: BaseException, plugin: Plugin | None = None, method: str = "") -> PluginFault:
        """Return an error that a method of a plugin raised, perhaps while it called another plugin's, as a fault.

        The plugin at fault is the innermost one of those in the traceback that are not gradest's own; else the innermost one.
        plugin, method: what was called, for the case that the traceback shows none.
        """
        if isinstance(error, PluginFault):
            return error if plugin is None or error.plugin is not None else PluginFault(str(error), type(plugin))
        calls = _calls(error) if plugin is None else [(type(plugin), method), *_calls(error)]
        found, name = next((call for call in reversed(calls) if not self.is_built_in(call[0])), calls[-1])
        name = method if plugin is not None and found is type(plugin) else name
        what = describe_error(error, read_attribute(found, "__module__").partition(".")[0])
        fault = PluginFault(f"{name_of_class(found)}.{name} raised {what}", found)
        fault.__cause__ = error
        return fault

    def is_built_in(self, cls: type[Plugin]) -> bool:
        """Return whether gradest itself registered the class."""
        owner = next((info for info in self.plugins if any(cls in table.values() for table in info.tables())), None)
        return owner is not None and owner.distribution == OWN

    def check_fit(self, neuron: Neuron, estimator: Estimator) -> None:
        """Raise Incompatible, with the reason and a list of estimators that fit, unless the estimator accepts the neuron."""
        if self.call(estimator, "accepts", neuron):
            return
        missing = [wanted.__name__ for wanted in estimator.capabilities if not isinstance(neuron, wanted)]
        reason = (
            f"it needs a neuron that is {' and '.join(missing)}"
            if missing
            else "it does not take this neuron with these options"
        )
        names = ", ".join(self.fitting(neuron)) or "none is registered"
        raise Incompatible(
            f"{self.label(estimator)} does not fit {self.label(neuron)}: {reason}. Estimators that fit {neuron.name}: {names}."
        )

    def register(self, plugin: Registrable) -> Registrable:
        """Register a plugin class, or a module or object with hook implementations. Returns it, so that it can be a decorator.

        A registered class is replaced by one of the same module, qualified name and `name`, as when the cell of a notebook runs
        again. So is an object with hooks by one whose class is defined at the same place, and a module by one of its name, if
        they have a class of the same name. Instances of the old class, and layers made with them, keep it.

        Raises PluginError, and changes nothing, if the plugin is invalid or a name is taken by another class.
        """
        self._load()
        with self._lock:
            source = getattr(plugin, "__module__", None) or getattr(plugin, "__name__", None) or type(plugin).__module__
            earlier = [info for registered, info in self._registered if _definition(registered) == _definition(plugin)]
            stage = Stage(f"{source} (registered)", "", self._plugins, earlier)
            try:
                if isinstance(plugin, Plugin) or (isinstance(plugin, type) and issubclass(plugin, Plugin)):
                    stage.add_class(plugin)
                else:
                    stage.add_hooks(repr(plugin), plugin)
            except InvalidPlugin as rejected:
                raise PluginError(f"cannot register {plugin!r}: {rejected.phase}: {rejected}") from rejected
            info = stage.commit()
            kept = [(other, owned) for other, owned in self._registered if owned not in stage.replaced]
            self._registered = [*kept, (plugin, info)]
            self._plugins = (*(owned for owned in self._plugins if owned not in stage.replaced), info)
            return plugin

    def unregister(self, plugin: object) -> None:
        """Remove what `register` added. Raises PluginError for anything else."""
        with self._lock:
            for position, (registered, info) in enumerate(self._registered):
                if registered is plugin:
                    del self._registered[position]
                    self._plugins = tuple(kept for kept in self._plugins if kept is not info)
                    return
        raise PluginError(f"{plugin!r} was not added by register, so it cannot be unregistered")

    @contextmanager
    def using(self, source: PluginSource) -> Iterator[None]:
        """Have a plugin that is not installed registered for the block. One that is installed, and has loaded, stays as it is.

        Raises PluginError, which gives the reason, if it cannot be loaded or a name is taken.
        """
        self._load()
        if source.distribution in {info.distribution for info in self._plugins}:
            yield
            return
        folders, info = list(sys.path), None
        try:
            with self._lock:
                info = self._stage(source)
                self._plugins = (*self._plugins, info)
            yield
        except _NotLoaded as error:
            raise PluginError(f"plugin not loaded: {error.failure}") from error.__cause__
        finally:
            with self._lock:
                self._plugins = tuple(kept for kept in self._plugins if kept is not info)
            sys.path[:] = [folder for folder in sys.path if folder in folders]

    def _table(self, kind: str) -> Mapping[str, Any]:
        """Return the classes of all plugins by name. The table is rebuilt only when plugins are added or removed."""
        plugins = self.plugins
        made_from, tables = self._tables
        if made_from is not plugins:
            tables = {f"{kind}s": _merged(getattr(info, f"{kind}s") for info in plugins) for kind in KINDS}
            self._tables = plugins, tables
        return tables[kind]

    def _find(self, kind: str, base: type[AnyPlugin], spec: Any, options: dict[str, Any]) -> AnyPlugin:
        if isinstance(spec, base) and not options:
            return spec
        if not isinstance(spec, str) or options:
            return _build(kind, base, lambda: self._table(f"{kind}s"), spec, options)
        # instances are frozen, so callers that give a name alone share one, until plugins are added or removed
        built_from, built = self._built
        if built_from is not self._plugins or (kind, spec) not in built:
            built_from, built = self._built = (self.plugins, built if built_from is self.plugins else {})
            built[kind, spec] = _build(kind, base, lambda: self._table(f"{kind}s"), spec, options)
        found: AnyPlugin = built[kind, spec]
        return found

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            # set first, so that a plugin that looks something up while it loads sees what is registered so far
            self._loaded = True
            try:
                for source in discover() if self._sources is None else self._sources:
                    self._load_source(source)
            except BaseException:
                self._loaded, self._plugins, self._failures = False, (), ()
                raise

    def _load_source(self, source: PluginSource) -> None:
        """Add a plugin, or keep the reason why it did not load."""
        try:
            self._plugins = (*self._plugins, self._stage(source))
        except _NotLoaded as error:
            if os.environ.get("GRADEST_STRICT_PLUGINS") == "1":
                raise PluginError(f"plugin not loaded: {error.failure}") from error.__cause__
            self._failures = (*self._failures, error.failure)
            _LOG.warning("plugin not loaded: %s", error.failure)

    def _stage(self, source: PluginSource) -> PluginInfo:
        """Import a plugin and check its classes. Raises _NotLoaded."""
        stage = Stage(source.distribution, source.version, self._plugins)
        at = ""
        try:
            if not source.entry_points:
                raise InvalidPlugin(
                    "missing", "GRADEST_LOAD_PLUGINS names it, but no plugin distribution of this name is installed"
                )
            sys.path[:0] = [folder for folder in map(str, source.folders) if folder not in sys.path]
            for point in source.entry_points:
                at = point.name
                stage.add_hooks(at, load_entry_point(point))
        except InvalidPlugin as rejected:
            failure = PluginFailure(source.distribution, source.version, at, rejected.phase, str(rejected))
            raise _NotLoaded(failure) from rejected
        return stage.commit()


class _NotLoaded(Exception):
    """A plugin was rejected, for the reason that is the cause."""

    def __init__(self, failure: PluginFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _definition(plugin: object) -> tuple[Any, ...]:
    """Return what two definitions of one class, of objects of one class, or of one module have in common."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    if cls is not plugin and isinstance(plugin, ModuleType):
        return (plugin.__name__,)
    return isinstance(plugin, type), read_attribute(cls, "__module__"), type.__dict__["__qualname__"].__get__(cls)


def _calls(error: BaseException) -> list[tuple[type[Plugin], str]]:
    """Return the classes of plugins and their methods in the traceback, outermost first: methods of instances and of classes."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    named = ((frame.f_locals.get("self"), frame.f_locals.get("cls"), frame.f_code.co_name) for frame in frames)
    classes = ((type(found) if isinstance(found, Plugin) else cls, name) for found, cls, name in named)
    return [(cls, name) for cls, name in classes if isinstance(cls, type) and Plugin in read_bases(cls)]


def _merged(tables: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return MappingProxyType(dict(sorted(item for table in tables for item in table.items())))


def _build(
    kind: str,
    base: type[AnyPlugin],
    known: Callable[[], Mapping[str, type[AnyPlugin]]],
    spec: Any,
    options: dict[str, Any],
) -> AnyPlugin:
    if isinstance(spec, base):
        if options:
            raise InvalidOptions(f"{spec.name} is already an instance; options can only be given with its name")
        return spec
    if isinstance(spec, type) and issubclass(spec, base):
        return _build_class(spec, options)
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str):
        given = "no name" if isinstance(spec, Mapping) and name is None else type(name).__name__
        raise InvalidOptions(f'{kind}: give its name, {{"name": ..., **options}} or an instance, not {given}')
    if isinstance(spec, Mapping):
        options = {**{str(key): value for key, value in spec.items() if key != "name"}, **options}
    table = known()
    if name not in table:
        raise unknown_plugin(kind, name, table)
    return _build_class(table[name], options)


def _build_class(cls: type[AnyPlugin], options: dict[str, Any]) -> AnyPlugin:
    """Build an instance. Raises PluginFault if the code of the class fails; what gradest raises on purpose is an answer."""
    try:
        return cls.build(**options)
    except GradestError:
        raise
    except BaseException as error:
        if is_of_user(error):
            raise
        raise PluginFault(f"{name_of_class(cls)} cannot be built: {describe_error(error)}", cls) from error


def unknown_plugin(kind: str, name: str, known: Collection[str]) -> UnknownPlugin:
    """Return the error for an unknown name. Its message lists known names that are close to it, or all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) or difflib.get_close_matches(name, known, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known) or 'none'}."
    return UnknownPlugin(f"no {kind} is named {name!r}. {hint}")


registry = Registry()
"""The registry of this process, which is also `gradest.registry`."""


Spec = str | Mapping[str, Any]


NeuronSpec = Spec | Neuron


EstimatorSpec = Spec | Estimator

neuron, estimator, objective = registry.neuron, registry.estimator, registry.objective
