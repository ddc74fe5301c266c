"""The public names of gradest: one list, sorted, each importable, and the same for type checkers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gradest


def rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_sorted_and_is_what_the_package_offers() -> None:
    assert gradest.__all__ == sorted(set(gradest.__all__), key=rank)
    lazy = {name for name, value in vars(type(gradest)).items() if isinstance(value, property)}
    assert lazy == set(gradest.__all__)
    assert lazy <= set(dir(gradest))


@pytest.mark.parametrize("name", gradest.__all__)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(gradest, name)
    assert not inspect.ismodule(value)
    assert isinstance(value, int) or name in ("State", "TensorOption") or inspect.getdoc(value)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(gradest))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    seen |= {ast.unparse(target) for node in block.body if isinstance(node, ast.Assign) for target in node.targets}
    seen |= {ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)}
    assert set(gradest.__all__) <= seen


@pytest.mark.parametrize(
    "name", sorted({module.name for module in pkgutil.iter_modules(gradest.__path__)} & set(gradest.__all__))
)
def test_importing_a_submodule_leaves_the_function_of_its_name(name: str) -> None:
    before = getattr(gradest, name)
    module = importlib.import_module(f"gradest.{name}")
    assert inspect.ismodule(module)
    assert getattr(gradest, name) is before
    assert not inspect.ismodule(before)


def test_submodules_hold_what_they_say_they_do() -> None:
    for module in pkgutil.iter_modules(gradest.__path__):
        if module.name == "__main__":  # runs when it is imported
            continue
        loaded = importlib.import_module(f"gradest.{module.name}")
        assert [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)] == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gradest.no_such_name  # type: ignore[attr-defined]


def test_packages_are_marked_as_typed() -> None:
    for package in ("gradest", "gradest_neurons", "gradest_estimators", "gradest_objectives", "gradest_service"):
        assert (Path(importlib.import_module(package).__file__ or "").parent / "py.typed").exists()


def test_importing_gradest_does_not_import_torch() -> None:
    script = "import gradest, sys; print(*sorted({'torch', 'pluggy', 'pydantic', 'numba'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""
    )
