"""The registry: finds plugins by the entry-point group `gradest`, checks each distribution whole, and looks names up.

pluggy's own loader stops at the first broken plugin, leaves an invalid one registered, and skips the second of two equal
entry-point names without a word. So loading is a loop of our own: every distribution is staged in a plugin manager of its
own, checked, and then committed or dropped as a whole. What was dropped stands in `Registry.failures`.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, TypeVar

import pluggy

from gradest import hookspecs
from gradest.errors import Incompatible, InvalidOptions, PluginError, UnknownPlugin
from gradest.estimator import Estimator
from gradest.neuron import Neuron
from gradest.objective import Objective
from gradest.plugin import Plugin

__all__ = ["PluginFailure", "PluginInfo", "Registry", "registry"]

GROUP = "gradest"
_OWN = "gradest"  # the distribution whose plugins come first, so that a stranger cannot take a built-in's name
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LOG = logging.getLogger("gradest")

AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


@dataclass(frozen=True)
class PluginFailure:
    """A plugin distribution that did not load, and why."""

    distribution: str
    version: str
    entry_point: str
    phase: str
    """One of "import", "api", "hooks" (a misspelt or malformed hook), "call" (a hook raised), "class", "duplicate"."""
    error: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point}): {self.phase}: {self.error}"


@dataclass
class PluginInfo:
    """What one distribution, or one call of `register`, brought."""

    distribution: str
    version: str
    neurons: dict[str, type[Neuron]] = field(default_factory=dict)
    estimators: dict[str, type[Estimator]] = field(default_factory=dict)
    objectives: dict[str, type[Objective]] = field(default_factory=dict)

    def kinds(self) -> Iterator[tuple[str, type[Plugin], dict[str, Any]]]:
        """(kind, its base class, the table of that kind), for each kind."""
        yield "neuron", Neuron, self.neurons
        yield "estimator", Estimator, self.estimators
        yield "objective", Objective, self.objectives


class _Rejected(Exception):
    """Why a plugin cannot be committed."""

    def __init__(self, phase: str, reason: str) -> None:
        super().__init__(reason)
        self.phase = phase


class Registry:
    """Every neuron, estimator and objective that is installed or registered. Loading happens at the first look.

    Environment:
        GRADEST_LOAD_PLUGINS: a comma-separated list of distributions; third-party plugins not in it are not imported (empty:
            none are).
        GRADEST_STRICT_PLUGINS: 1 raises PluginError for the first plugin that fails instead of recording it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loaded = False
        self._plugins: list[PluginInfo] = []
        self._failures: list[PluginFailure] = []
        self._registered: list[tuple[object, PluginInfo]] = []

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
        """The distributions that loaded, in order, then what `register` was given."""
        self._load()
        return tuple(self._plugins)

    @property
    def failures(self) -> tuple[PluginFailure, ...]:
        """The plugins that did not load."""
        self._load()
        return tuple(self._failures)

    def neuron(self, spec: str | Mapping[str, Any] | Neuron | type[Neuron], **options: Any) -> Neuron:
        """A neuron from its name, from {"name": ..., **options}, or an instance as it is.

        Raises UnknownPlugin with near matches, or InvalidOptions.
        """
        return self._build("neuron", Neuron, self.neurons, spec, options)

    def estimator(self, spec: str | Mapping[str, Any] | Estimator | type[Estimator], **options: Any) -> Estimator:
        """An estimator, by the same rules as `neuron`."""
        return self._build("estimator", Estimator, self.estimators, spec, options)

    def objective(self, spec: str | Mapping[str, Any] | Objective | type[Objective], **options: Any) -> Objective:
        """An objective, by the same rules as `neuron`."""
        return self._build("objective", Objective, self.objectives, spec, options)

    def fitting(self, neuron: Neuron) -> dict[str, Estimator]:
        """The estimators, with default options, that accept the neuron."""
        built = {name: cls() for name, cls in self.estimators.items()}
        return {name: estimator for name, estimator in built.items() if estimator.accepts(neuron)}

    def check_fit(self, neuron: Neuron, estimator: Estimator) -> None:
        """Raise Incompatible, with the reason and the estimators that would fit, unless the estimator accepts the neuron."""
        if estimator.accepts(neuron):
            return
        missing = [wanted.__name__ for wanted in estimator.capabilities if not isinstance(neuron, wanted)]
        reason = f"it needs a neuron that is {' and '.join(missing)}" if missing else "it refuses this neuron's options"
        names = ", ".join(self.fitting(neuron)) or "none is registered"
        raise Incompatible(
            f"{estimator.label()} does not fit {neuron.label()}: {reason}. Estimators that fit {neuron.name}: {names}."
        )

    def register(self, plugin: Any) -> Any:
        """Add a plugin class, or a module or object with hook implementations; returns it, so it serves as a decorator.

        Raises PluginError, and registers nothing, if it is invalid or a name is taken.
        """
        self._load()
        with self._lock:
            source = getattr(plugin, "__module__", None) or getattr(plugin, "__name__", None) or type(plugin).__module__
            info = PluginInfo(f"registered by {source}", "")
            try:
                if isinstance(plugin, type) and issubclass(plugin, Plugin):
                    self._add_class(info, plugin)
                else:
                    self._call_hooks(info, [(repr(plugin), plugin)])
                self._check_unique(info)
            except _Rejected as rejected:
                raise PluginError(f"cannot register {plugin!r}: {rejected.phase}: {rejected}") from rejected
            self._plugins.append(info)
            self._registered.append((plugin, info))
            return plugin

    def unregister(self, plugin: Any) -> None:
        """Take back what `register` added; raises PluginError for anything else."""
        with self._lock:
            for position, (registered, info) in enumerate(self._registered):
                if registered is plugin:
                    del self._registered[position]
                    self._plugins = [kept for kept in self._plugins if kept is not info]
                    return
        raise PluginError(f"{plugin!r} was not registered here, so it cannot be unregistered")

    def _table(self, kind: str) -> Mapping[str, Any]:
        self._load()
        merged = {name: cls for info in tuple(self._plugins) for name, cls in getattr(info, kind).items()}
        return MappingProxyType(dict(sorted(merged.items())))

    def _build(
        self, kind: str, base: type[AnyPlugin], table: Mapping[str, type[AnyPlugin]], spec: Any, options: dict[str, Any]
    ) -> AnyPlugin:
        if isinstance(spec, base):
            if options:
                raise InvalidOptions(f"{spec.name} is built already; options go with its name")
            return spec
        if isinstance(spec, type) and issubclass(spec, base):
            return spec.build(**options)
        if isinstance(spec, Mapping):
            options = {**{key: value for key, value in spec.items() if key != "name"}, **options}
            spec = spec.get("name")
        if not isinstance(spec, str):
            raise InvalidOptions(
                f'{"an" if kind[0] in "aeo" else "a"} {kind} is a name, {{"name": ..., **options}} or an instance, '
                f"not {type(spec).__name__}"
            )
        if spec not in table:
            near = difflib.get_close_matches(spec, table, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(table)}."
            raise UnknownPlugin(f"no {kind} is named {spec!r}. {hint}")
        return table[spec].build(**options)

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            try:
                for (distribution, version), found in _discover():
                    self._load_distribution(distribution, version, found)
            except PluginError:
                self._loaded = False
                self._plugins.clear()
                raise

    def _load_distribution(self, distribution: str, version: str, found: list[EntryPoint]) -> None:
        info = PluginInfo(distribution, version)
        at = found[0].name
        try:
            hooks = []
            for entry_point in found:
                at = entry_point.name
                hooks.append((at, _import(entry_point)))
            self._call_hooks(info, hooks)
            self._check_unique(info)
        except _Rejected as rejected:
            failure = PluginFailure(distribution, version, at, rejected.phase, str(rejected))
            if os.environ.get("GRADEST_STRICT_PLUGINS") == "1":
                raise PluginError(str(failure)) from rejected
            self._failures.append(failure)
            _LOG.warning("plugin not loaded: %s", failure)
        else:
            self._plugins.append(info)

    def _call_hooks(self, info: PluginInfo, hooks: Iterable[tuple[str, object]]) -> None:
        """Stage the hook implementations, check them, and add what they return."""
        stage = pluggy.PluginManager("gradest")
        stage.add_hookspecs(hookspecs)
        for name, hook in hooks:
            stated = getattr(hook, "GRADEST_PLUGIN_API", hookspecs.PLUGIN_API)
            if stated != hookspecs.PLUGIN_API:
                raise _Rejected("api", f"written for plugin API {stated}; this gradest has {hookspecs.PLUGIN_API}")
            try:
                stage.register(hook, name)
                stage.check_pending()
            except (pluggy.PluginValidationError, ValueError) as error:
                raise _Rejected("hooks", str(error)) from error
            if not stage.get_hookcallers(hook):
                raise _Rejected("hooks", f"{name} implements no gradest hook; mark them with @gradest.hookimpl")
        for call in (stage.hook.gradest_neurons, stage.hook.gradest_estimators, stage.hook.gradest_objectives):
            try:
                returned = call()
            except Exception as error:  # whatever a stranger's hook raises is that plugin's failure, not ours
                raise _Rejected("call", f"{call.name} raised {type(error).__name__}: {error}") from error
            for classes in returned:
                if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
                    raise _Rejected("class", f"{call.name} must return a list of classes, not {type(classes).__name__}")
                for cls in classes:
                    self._add_class(info, cls)

    def _add_class(self, info: PluginInfo, cls: Any) -> None:
        for kind, base, table in info.kinds():
            if isinstance(cls, type) and issubclass(cls, base):
                _check_class(kind, cls)
                if table.setdefault(cls.name, cls) is not cls:
                    raise _Rejected("duplicate", f"two {kind}s of {info.distribution} are named {cls.name!r}")
                return
        raise _Rejected("class", f"{cls!r} is no subclass of Neuron, Estimator or Objective")

    def _check_unique(self, info: PluginInfo) -> None:
        for owner in self._plugins:
            for (kind, _, new), (_, _, taken) in zip(info.kinds(), owner.kinds(), strict=True):
                if both := sorted(new.keys() & taken.keys()):
                    raise _Rejected(
                        "duplicate",
                        f"{kind} {both[0]!r} of {info.distribution} is already registered by {owner.distribution}",
                    )


registry = Registry()
"""The process's registry; also `gradest.registry`."""


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _discover() -> list[tuple[tuple[str, str], list[EntryPoint]]]:
    """((distribution, version), its entry points), gradest's own first and then by name; restricted by the environment."""
    wanted = os.environ.get("GRADEST_LOAD_PLUGINS")
    names = None if wanted is None else {_normalised(name.strip()) for name in wanted.split(",")} | {_OWN}
    found: dict[tuple[str, str], list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        dist = entry_point.dist
        owner = (dist.name, dist.version) if dist else ("unknown distribution", "")
        if names is None or _normalised(owner[0]) in names:
            found.setdefault(owner, []).append(entry_point)
    by_name = sorted(found.items(), key=lambda item: (_normalised(item[0][0]) != _OWN, _normalised(item[0][0])))
    return [(owner, sorted(points, key=lambda point: point.name)) for owner, points in by_name]


def _import(entry_point: EntryPoint) -> object:
    try:
        return entry_point.load()
    except Exception as error:  # whatever a stranger's module raises is that plugin's failure, not ours
        raise _Rejected("import", f"{type(error).__name__}: {error}") from error


def _check_class(kind: str, cls: type[Plugin]) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}"
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise _Rejected("class", f"{where} leaves abstract: {missing}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _Rejected("class", f"{where}: `name` must be lower_snake_case, not {name!r}")
    if not isinstance(getattr(cls, "summary", None), str):
        raise _Rejected("class", f"{where}: `summary` must be one line of text")
    if issubclass(cls, Estimator):
        needs = getattr(cls, "needs", None)
        if not isinstance(needs, frozenset) or not needs or not needs <= {"loss", "grad"}:
            raise _Rejected("class", f"{where}: `needs` must be a frozenset of 'loss', 'grad' or both, not {needs!r}")
    if kind != "objective":  # an objective may have options that it cannot do without, such as labels
        try:
            cls()
        except Exception as error:
            raise _Rejected("class", f"{where} cannot be built with its default options: {error}") from error
