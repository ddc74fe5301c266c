"""Lets `import gradest` and `gradest --help` start without torch: public names are imported at their first use."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

__all__ = ["attach"]


def attach(package: str, exports: Mapping[str, str]) -> None:
    """Give `package` the public names of `exports`, {name: "module:attribute"}, each resolved at its first use.

    Some of the names (`gradest.neuron`, say) are also names of submodules. Importing such a submodule would put the module in
    the place of the function, whenever it happens; so the names are properties of the package, which an import cannot replace.
    """
    resolved: dict[str, Any] = {}

    def resolver(name: str) -> property:
        def get(self: ModuleType) -> Any:
            if name not in resolved:
                module, _, attribute = exports[name].partition(":")
                resolved[name] = operator.attrgetter(attribute)(importlib.import_module(module))
            return resolved[name]

        def keep(self: ModuleType, module: object) -> None:
            """Ignore the import system's assignment of the submodule of this name."""

        return property(get, keep)

    def list_names(self: ModuleType) -> list[str]:
        return sorted({*self.__dict__, *exports})

    namespace = {"__dir__": list_names, **{name: resolver(name) for name in exports}}
    sys.modules[package].__class__ = type("LazyPackage", (ModuleType,), namespace)
