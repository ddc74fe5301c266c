"""Pages of the public names of gradest: signatures, docstrings, and what classes have."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import signature, stringify_signature

from gradest.analysis.markdown import table
from gradest.analysis.pages.prose import cell, to_markdown

__all__ = ["MODULES", "home_of", "public_names", "write_api"]

MODULES = MappingProxyType(
    {
        "gradest": "The library",
        "gradest.nn": "Layers",
        "gradest.client": "Clients of the service",
        "gradest.random": "The noise",
        "gradest.errors": "Errors",
        "gradest.testing": "The conformance kit",
        "gradest.contract.neuron": "The contract: neurons",
        "gradest.contract.estimator": "The contract: estimators",
        "gradest.contract.score_function": "The contract: score functions",
        "gradest.contract.objective": "The contract: objectives",
        "gradest.contract.plugin": "The contract: options",
        "gradest.contract.target": "The contract: targets",
        "gradest.contract.law": "The contract: laws",
        "gradest.contract.cost": "The contract: costs",
        "gradest.contract.modules": "The contract: modules",
        "gradest.contract.numerics": "The contract: numerics",
        "gradest.contract.hookspecs": "The contract: hooks, and the guide for authors",
    }
)
"""The modules whose names are public, and the titles of their pages."""

_MEMBERS = (property, cached_property, classmethod, staticmethod)


class Undocumented(ExtensionError):
    """A public name has no docstring."""


def public_names(module: str) -> list[str]:
    """Return the public names of a module, in the order of its list."""
    return list(importlib.import_module(module).__all__)


def write_api(out: Path) -> list[str]:
    """Write a page for each module, and return their names. Raises Undocumented for a public name without a docstring."""
    out.mkdir(parents=True, exist_ok=True)
    for module, title in MODULES.items():
        (out / f"{module}.md").write_text(_page(module, title), encoding="utf-8")
    return list(MODULES)


def _page(module: str, title: str) -> str:
    found = importlib.import_module(module)
    parts = [f"# {title}: `{module}`", f"```{{py:module}} {module}\n```", to_markdown(found.__doc__ or "")]
    elsewhere = {
        name: home for name in public_names(module) if (home := home_of(module, name)) in MODULES and home != module
    }
    own = [name for name in public_names(module) if name not in elsewhere]
    parts += [_entry(module, name, getattr(found, name)) for name in own]
    if elsewhere:
        rows = [[f"`{home}.{name}`", cell(_first_line(getattr(found, name)))] for name, home in elsewhere.items()]
        parts.append(f"## Names that are documented elsewhere\n\n{table(['name', 'what it is'], rows, 'll')}")
    return "\n\n".join(part for part in parts if part) + "\n"


@cache
def _imports(module: str) -> Mapping[str, str]:
    """Return where a package imports its names from, by its stub if it has one."""
    path = Path(importlib.import_module(module).__file__ or "")
    stub = path.with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else path).read_text(encoding="utf-8"))
    return {
        alias.name: ".".join(part for part in (module if node.level else "", node.module) if part)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("gradest"))
        for alias in node.names
    }


def home_of(module: str, name: str) -> str:
    """Return the module that defines a public name, or the public one from which it is had."""
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, ModuleType):
        return found.__name__
    own = found.__module__ if inspect.isclass(found) or inspect.isroutine(found) else module
    home = _imports(module).get(name) or own
    if home not in MODULES or home == module:
        return home
    further = home_of(home, name)
    return further if further in MODULES else home  # a public module may have its names from one that is not


def _first_line(found: Any) -> str:
    return (inspect.getdoc(found) or "").partition("\n")[0]


@cache
def _comments(module: str) -> Mapping[tuple[str, str], list[str]]:
    """Return the docstrings of attributes, by class and name."""
    return ModuleAnalyzer.for_module(module).find_attr_docs()


def _entry(module: str, name: str, found: Any) -> str:
    home = home_of(module, name)
    if isinstance(found, ModuleType):
        return f"## `{name}`\n\n{to_markdown(found.__doc__ or '')}"
    if inspect.isclass(found):
        return _class(module, name, found)
    if inspect.isroutine(found) or hasattr(found, "__wrapped__"):
        return _directive("function", f"{name}{_signature(found)}", _body(found, module, name))
    comment = "\n".join(_comments(home).get(("", name), ()))
    text = comment or (inspect.getdoc(type(found)) if type(found).__module__.startswith("gradest") else "")
    if not text:
        raise Undocumented(f"{module}.{name} has no docstring")
    kind = f"\n:type: {_shown(type(found).__name__)}" if isinstance(found, (int, str, tuple)) else ""
    return _directive("data", name, to_markdown(text), kind)


def _shown(name: str) -> str:
    return {"tuple": "tuple of functions"}.get(name, name)


def _class(module: str, name: str, cls: type) -> str:
    bases = [base.__name__ for base in cls.__bases__ if base.__module__.startswith("gradest")]
    text = _body(cls, module, name)
    if bases:
        text += f"\n\nBases: {', '.join(f'`{base}`' for base in bases)}."
    kind = "exception" if issubclass(cls, BaseException) else "class"
    shown = "" if kind == "exception" else _signature(cls)
    members = "\n\n".join(_members(module, name, cls))
    return _directive(kind, f"{name}{shown}", f"{text}\n\n{members}", depth=4)


def _members(module: str, name: str, cls: type) -> Iterator[str]:
    comments = _comments(cls.__module__)
    for member, value in vars(cls).items():
        if member.startswith("_") or member in {"model_config", "model_fields", "model_computed_fields"}:
            continue
        full = f"{name}.{member}"
        comment = comments.get((cls.__name__, member))
        if isinstance(value, (property, cached_property)):
            yield _directive("property", full, _body(value, module, f"{name}.{member}"))
        elif isinstance(value, (classmethod, staticmethod)):
            head = full + _signature(value.__func__, bound=isinstance(value, classmethod))
            text = _body(value.__func__, module, f"{name}.{member}")
            yield _directive("method", head, text, f"\n:{type(value).__name__}:")
        elif inspect.isfunction(value):
            yield _directive("method", full + _signature(value, bound=True), _body(value, module, f"{name}.{member}"))
        elif comment:
            yield _directive("attribute", full, to_markdown("\n".join(comment)))
    for (owner, member), comment in comments.items():
        if owner == cls.__name__ and member not in vars(cls) and not member.startswith("_"):
            yield _directive("attribute", f"{name}.{member}", to_markdown("\n".join(comment)))


def _body(found: Any, module: str, name: str) -> str:
    text = inspect.getdoc(found)
    if not text:
        raise Undocumented(f"{module}.{name} has no docstring")
    try:
        names = set(inspect.signature(found).parameters) if callable(found) else set()
    except (TypeError, ValueError):
        names = set()
    return to_markdown(text, names)


def _signature(found: Any, bound: bool = False) -> str:
    try:
        shape = signature(found, bound_method=False)
    except (TypeError, ValueError):
        return "()"
    if bound:
        shape = shape.replace(parameters=list(shape.parameters.values())[1:])
    return stringify_signature(shape, unqualified_typehints=True, show_return_annotation=not inspect.isclass(found))


def _directive(kind: str, head: str, text: str, options: str = "", depth: int = 3) -> str:
    fence = ":" * depth
    return f"{fence}{{py:{kind}}} {head}{options}\n\n{text}\n{fence}"
