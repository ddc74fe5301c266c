"""What keeps the tree simple to change: which package may import which, where pluggy lives, and who knows a built-in's name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradest

ROOT = Path(__file__).parents[1]
PLUGIN_PACKAGES = ["gradest_neurons", "gradest_estimators", "gradest_objectives"]
HOMES = {
    "gradest": ROOT / "gradest",
    "gradest_service": ROOT / "service/gradest_service",
    **{name: ROOT / "plugins" / name for name in PLUGIN_PACKAGES},
}
MAY_IMPORT = {
    "gradest": {"gradest"},
    "gradest_service": {"gradest_service", "gradest"},
    **{name: {name, "gradest"} for name in PLUGIN_PACKAGES},
}
FILES = {
    path.relative_to(ROOT).as_posix(): package for package, home in HOMES.items() for path in sorted(home.rglob("*.py"))
}
NAMES_ARE_DATA = {
    "plugins/gradest_experiments/gated/gaters.py",  # a table of the source, by the names of its neurons and estimators
    "plugins/gradest_experiments/demo.py",  # shows the built-ins at work
    "plugins/gradest_experiments/toys/quadratic.py",  # like the three that follow, a table or a figure of a paper
    "plugins/gradest_experiments/toys/learning.py",
    "plugins/gradest_experiments/toys/probability.py",
    "plugins/gradest_experiments/toys/polynomial.py",
    "plugins/gradest_experiments/blocks/settings.py",
    "plugins/gradest_experiments/vae/settings.py",  # which estimators the benchmark compares
    "gradest/analysis/bias.py",  # calls losses of its own by their degree, which is also the name of an objective
}


def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names; relative ones stay inside their package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module or ""]
    return []


def imports(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for node in ast.walk(tree) for name in imported(node)}


def test_all_five_packages_are_looked_at() -> None:
    assert set(FILES.values()) == set(HOMES)


@pytest.mark.parametrize("path", FILES)
def test_imports_run_one_way(path: str) -> None:
    tree = parse(path)
    if path == "gradest/cli/__init__.py":  # `gradest serve` is the one door from the core to the service
        (serve,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "serve")
        assert "gradest_service" in imports(serve)
        tree.body.remove(serve)
    assert imports(tree) & HOMES.keys() <= MAY_IMPORT[FILES[path]]


def test_pluggy_lives_in_two_files() -> None:
    assert [path for path in FILES if "pluggy" in imports(parse(path))] == [
        "gradest/hookspecs.py",
        "gradest/registry.py",
    ]


@pytest.mark.parametrize("path", [path for path, package in FILES.items() if package in ("gradest", "gradest_service")])
def test_core_and_service_name_a_built_in_only_as_a_default(path: str) -> None:
    registry = gradest.registry
    names = {*registry.neurons, *registry.estimators, *registry.objectives}
    tree = parse(path)
    allowed = {id(node) for place in excused(tree) for node in ast.walk(place)}
    named = [
        f"{path}:{node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in allowed
    ]
    assert path in NAMES_ARE_DATA or not named


def excused(tree: ast.Module) -> Iterator[ast.AST]:
    """Where a built-in's name may stand: defaults of parameters and fields, examples of fields; and __all__, where a function
    may share the name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            yield from [*node.defaults, *filter(None, node.kw_defaults)]
        elif isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.value:
                    yield from field_defaults(field.value)
        elif isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            yield node


def field_defaults(value: ast.expr) -> Iterator[ast.AST]:
    if not isinstance(value, ast.Call):
        yield value
        return
    yield from value.args[:1]
    yield from (keyword.value for keyword in value.keywords if keyword.arg in ("default", "examples"))


@pytest.mark.parametrize("path", FILES)
def test_everything_public_has_a_docstring(path: str) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), path
    assert [name for name, node in definitions(tree) if not ast.get_docstring(node)] == []


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Definition]]:
    """The public classes and functions, and those of public classes."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and not is_overload(node):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in definitions(node))


def is_overload(node: Definition) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def test_contributing_fits_one_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 40


def test_the_service_does_not_wait_for_torch_s_compiler():
    """Importing it takes seconds, and nothing here needs it before a model is compiled or a layer made."""
    script = "import sys, gradest_service.app, gradest; gradest.sample('bernoulli', __import__('torch').zeros(2))"
    script += "; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
