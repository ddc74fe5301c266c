"""`read_summary`: the line that describes an object of a module, read from the module's source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pkgutil import get_importer

__all__ = ["read_summary"]


def read_summary(module: str, name: str) -> str:
    """Return the first line of what the module's source says about the name.

    This is the docstring of a function or class, the text in `name = f(help="...")`, and otherwise the docstring of the module.
    Returns "" if there is no source, as for an extension module. Raises ImportError if importing the module would:
    it is missing, cannot be parsed, or imports a package that is missing.
    """
    tree = _parse(module)
    text = _describe(tree, name) or ast.get_docstring(tree) or ""
    return text.strip().partition("\n")[0].strip()


@cache
def _parse(module: str) -> ast.Module:
    spec = _find(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    get_source = getattr(spec.loader, "get_source", None)
    try:
        tree = ast.parse((get_source(module) if get_source else None) or "", spec.origin or module)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ImportError(f"{spec.origin or module} cannot be parsed: {error}") from error
    for package in _imported(tree):
        if _find(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}, which {module} imports")
    return tree


def _find(module: str) -> ModuleSpec | None:
    """Return the spec of a module. Unlike `find_spec`, this does not import the packages that contain the module."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError as error:  # the module is running and has no spec, such as __main__
        raise ImportError(str(error)) from error
    name = top
    for part in rest:
        name = f"{name}.{part}"
        spec = None if spec is None else _find_in(name, spec.submodule_search_locations or ())
    return spec


def _find_in(name: str, folders: Iterable[str]) -> ModuleSpec | None:
    """Return the spec of a module, perhaps a namespace package, in the folders of the package that contains it."""
    portions: list[str] = []
    for folder in folders:
        finder = get_importer(folder)
        spec = None if finder is None else finder.find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        portions += (spec and spec.submodule_search_locations) or ()
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace if portions else None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level packages that the module imports unconditionally."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _describe(tree: ast.Module, name: str) -> str | None:
    """Return the docstring of the function or class of that name, or the text of `help` in the call that makes the object."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return ast.get_docstring(node)
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets) and isinstance(node.value, ast.Call):
            return next((_text(keyword.value) for keyword in node.value.keywords if keyword.arg == "help"), None)
    return None


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
