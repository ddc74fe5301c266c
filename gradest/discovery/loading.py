"""Loading of one plugin distribution: import it, call its hooks, check its classes, and accept all of them or none.

pluggy's own loader stops at the first broken plugin, leaves an invalid one registered, and silently skips the second of two
equal entry-point names. So what a distribution brings is staged and checked here; `gradest.discovery.registry` then commits it,
or keeps the failure.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any

import pluggy

from gradest.contract import hookspecs
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.faults import contained
from gradest.discovery.validation import InvalidPlugin, Phase, check_class

__all__ = ["KINDS", "PluginFailure", "PluginInfo", "Stage", "load_entry_point"]

KINDS: Mapping[str, type[Plugin]] = {"neuron": Neuron, "estimator": Estimator, "objective": Objective}


@dataclass(frozen=True)
class PluginFailure:
    """A plugin distribution that did not load, with the reason."""

    distribution: str
    version: str
    entry_point: str
    phase: Phase
    error: str

    def __str__(self) -> str:
        where = " ".join(filter(None, [self.distribution, self.version, self.entry_point and f"({self.entry_point})"]))
        return f"{where}: {self.phase}: {self.error}"


@dataclass(frozen=True, eq=False)
class PluginInfo:
    """The classes that one distribution, or one call of `register`, registered, by name."""

    distribution: str
    version: str
    neurons: Mapping[str, type[Neuron]]
    estimators: Mapping[str, type[Estimator]]
    objectives: Mapping[str, type[Objective]]

    def tables(self) -> tuple[Mapping[str, type[Plugin]], ...]:
        """Return the three tables."""
        return self.neurons, self.estimators, self.objectives


class Stage:
    """The classes of one distribution while they are checked against each other and against those already registered.

    committed: what is registered.
    earlier: those of them that may be replaced, because they are earlier definitions of the same classes.
    """

    def __init__(
        self, distribution: str, version: str, committed: Sequence[PluginInfo], earlier: Collection[PluginInfo] = ()
    ) -> None:
        self.replaced: set[PluginInfo] = set()
        """Those of `earlier` that have the name of one of the classes."""
        self._distribution = distribution
        self._version = version
        self._committed = committed
        self._earlier = earlier
        self._tables: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}

    def commit(self) -> PluginInfo:
        """Return the staged classes, in read-only tables."""
        tables = {f"{kind}s": MappingProxyType(dict(sorted(table.items()))) for kind, table in self._tables.items()}
        return PluginInfo(self._distribution, self._version, **tables)

    def add_hooks(self, name: str, hooks: object) -> None:
        """Check a module or object with hook implementations, call them, and add the classes they return."""
        with contained(InvalidPlugin, "hooks", f"{name} raised"):
            callers = _hook_callers(name, hooks)
        for caller in callers:
            for cls in _classes(caller):
                self.add_class(cls)

    def add_class(self, cls: Any) -> None:
        """Check a class and add it."""
        with contained(InvalidPlugin, "class", "a class raised"):
            self._add_class(cls)

    def _add_class(self, cls: Any) -> None:
        kind = next((kind for kind, base in KINDS.items() if isinstance(cls, type) and issubclass(cls, base)), None)
        if kind is None:
            raise InvalidPlugin("class", f"{cls!r} is not a subclass of Neuron, Estimator or Objective")
        check_class(cls)
        if self._tables[kind].setdefault(cls.name, cls) is not cls:
            raise InvalidPlugin("duplicate", f"two {kind}s of {self._distribution} are named {cls.name!r}")
        for owner in self._committed:
            if cls.name not in getattr(owner, f"{kind}s"):
                continue
            if owner in self._earlier:
                self.replaced.add(owner)
            else:
                taken = f"{kind} {cls.name!r} of {self._distribution} is already provided by {owner.distribution}"
                raise InvalidPlugin("duplicate", taken)


def load_entry_point(point: EntryPoint) -> object:
    """Import what the entry point names. Raises InvalidPlugin if the import raises."""
    with contained(InvalidPlugin, "import"):
        return point.load()


def _hook_callers(name: str, hooks: object) -> list[pluggy.HookCaller]:
    """Return what calls the hooks of a module or object. Raises InvalidPlugin if one is malformed, or there is none."""
    oldest, newest = hookspecs.OLDEST_PLUGIN_API, hookspecs.PLUGIN_API
    stated = getattr(hooks, "GRADEST_PLUGIN_API", newest)
    if type(stated) is not int or not oldest <= stated <= newest:
        newer = type(stated) is int and stated > newest
        raise InvalidPlugin(
            "api",
            f"written for plugin API {stated!r}; this gradest supports {oldest} to {newest}. "
            + ("Install a newer gradest" if newer else "Install a newer version of the plugin"),
        )
    manager = pluggy.PluginManager("gradest")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(hooks, name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise InvalidPlugin("hooks", str(error)) from error
    callers = manager.get_hookcallers(hooks) or []
    found = {caller.name for caller in callers}
    for hook in vars(manager.hook).keys() - found:
        if inspect.isroutine(getattr(hooks, hook, None)):
            raise InvalidPlugin("hooks", f"{hook} of {name} is not marked with @gradest.hookimpl")
    if not found:
        raise InvalidPlugin("hooks", f"{name} implements no gradest hook; see gradest.contract.hookspecs")
    return callers


def _classes(caller: pluggy.HookCaller) -> list[Any]:
    """Call the hook, which has one implementation, and return its list of classes."""
    with contained(InvalidPlugin, "call", f"{caller.name} raised"):
        returned = caller()
        # pluggy drops a result that is None
        classes = returned[0] if returned else None
        if isinstance(classes, Iterable) and not isinstance(classes, (str, bytes)):
            return list(classes)
    raise InvalidPlugin("class", f"{caller.name} must return a list of classes, not {type(classes).__name__}")
