"""What keeps the tree simple to change: which package may import which, where pluggy lives, and who knows a built-in's name."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradest

ROOT = Path(__file__).parents[1]
PLUGIN_PACKAGES = ["gradest_neurons", "gradest_estimators", "gradest_objectives"]
HOMES = {
    "gradest": ROOT / "gradest",
    "gradest_service": ROOT / "service/gradest_service",
    "gradest_experiments": ROOT / "plugins/gradest_experiments",
    **{name: ROOT / "plugins" / name for name in PLUGIN_PACKAGES},
}
MAY_IMPORT = {
    "gradest": {"gradest"},
    "gradest_service": {"gradest_service", "gradest"},
    "gradest_experiments": {"gradest_experiments", "gradest"},
    **{name: {name, "gradest"} for name in PLUGIN_PACKAGES},
}
LAYERS: dict[
    str, list[set[str]]
] = {  # the parts of a package, lowest first; those of one layer do not import each other
    "gradest": [
        {"errors"},
        {"kernels", "seeds"},
        {"random"},
        {"contract"},
        {"discovery"},
        {"estimation"},
        {"analysis", "nn"},
        {"client", "testing"},
        {"cli"},
        {"__main__"},
    ],
    "gradest_service": [
        {"phases", "plugin_frames", "resources", "settings"},
        {"problems", "tracing"},
        {"bodies"},
        {"admit"},
        {"host", "run", "static_files"},
        {"docs", "middleware", "openapi", "page"},
        {"routes"},
        {"app"},
        {"cli", "ray"},
    ],
    "gradest_experiments": [
        {"engine"},
        {"belief", "gated", "report", "toys", "vae"},
        {"bengio2013", "blocks", "demo", "experts"},
        {"benchmark"},
        {"cli"},
        {"__main__"},
    ],
}
FOR_AUTHORS = {"gradest", "gradest.contract", "gradest.random", "gradest.errors"}  # what a plugin may import
MOST_MODULES = 12  # in a package without sub-packages, but for the packages of plugins
FILES = {
    path.relative_to(ROOT).as_posix(): package for package, home in HOMES.items() for path in sorted(home.rglob("*.py"))
}
MODULES = {
    ".".join(Path(path).relative_to(HOMES[package].parent.relative_to(ROOT)).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path, package in FILES.items()
}
NAMES_ARE_DATA = {
    "gradest/testing/inputs.py",  # a table of methods, one of which has the name of an estimator
    "plugins/gradest_experiments/gated/gaters.py",  # a table of a paper, by the names of its neurons and estimators
    "plugins/gradest_experiments/demo/scenes.py",  # shows the built-ins at work, as the next
    "plugins/gradest_experiments/demo/tables.py",
    "plugins/gradest_experiments/toys/quadratic.py",  # like the four that follow, a table or a figure of a paper
    "plugins/gradest_experiments/toys/learning.py",
    "plugins/gradest_experiments/toys/probability.py",
    "plugins/gradest_experiments/toys/polynomial.py",
    "plugins/gradest_experiments/toys/subsets.py",
    "plugins/gradest_experiments/benchmark/polynomial.py",  # the units of each problem
    "plugins/gradest_experiments/benchmark/subsets.py",
    "plugins/gradest_experiments/benchmark/select.py",
    "plugins/gradest_experiments/benchmark/variance.py",
    "plugins/gradest_experiments/blocks/settings.py",
    "plugins/gradest_experiments/experts/settings.py",  # the routers that are compared
    "plugins/gradest_experiments/belief/settings.py",  # the unit of which such a network consists
    "plugins/gradest_experiments/vae/settings.py",  # which estimators the benchmark compares
    "gradest/discovery/validation.py",  # lists the flags of an estimator, one of which has the name of an objective
    "gradest/analysis/bias.py",  # calls losses of its own by their degree, which is also the name of an objective
}


@functools.cache
def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


@functools.cache
def nodes(path: str) -> list[ast.AST]:
    """Every node of a file's tree; to walk it takes longer than what a test looks for."""
    return list(ast.walk(parse(path)))


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names; relative ones stay inside their package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module or ""]
    return []


@functools.cache
def modules_imported(path: str) -> set[str]:
    """The modules of this tree that a file imports, whether as `import a.b` or as `from a import b`."""
    named = set()
    for node in nodes(path):
        for name in imported(node):
            taken = {f"{name}.{alias.name}" for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if not taken or taken - MODULES.keys():  # else only its submodules are meant
                named.add(name)
            named |= taken
    return named & MODULES.keys()


@functools.cache
def imports(path: str) -> set[str]:
    return {name.partition(".")[0] for node in nodes(path) for name in imported(node)}


def test_all_packages_are_looked_at() -> None:
    assert set(FILES.values()) == set(HOMES)


@pytest.mark.parametrize("path", FILES)
def test_packages_import_one_way(path: str) -> None:
    assert imports(path) & HOMES.keys() <= MAY_IMPORT[FILES[path]]


@pytest.mark.parametrize("package", LAYERS)
def test_parts_of_a_package_import_what_is_below_them(package: str) -> None:
    height = {part: layer for layer, parts in enumerate(LAYERS[package]) for part in parts}
    upwards = []
    for module, path in MODULES.items():
        if not module.startswith(f"{package}."):
            continue
        part = module.split(".")[1]
        for name in modules_imported(path):
            other = name.split(".")[1] if name.startswith(f"{package}.") else part
            if other != part and height[other] >= height[part]:
                upwards.append(f"{module} -> {name}")
    assert upwards == []


def test_no_import_closes_a_circle() -> None:
    """Imports inside functions and for types alone count as well."""
    graph = {module: {name for name in modules_imported(path) if name != module} for module, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", [path for path, package in FILES.items() if package in PLUGIN_PACKAGES])
def test_built_in_plugins_import_what_anybody_s_may(path: str) -> None:
    named = {name for node in nodes(path) for name in imported(node) if name.partition(".")[0] == "gradest"}
    assert {".".join(name.split(".")[:2]) for name in named} <= FOR_AUTHORS


def test_packages_are_small() -> None:
    large = {}
    for home in HOMES.values():
        for folder in {path.parent for path in home.rglob("__init__.py")}:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            if len(modules) > MOST_MODULES and folder.name not in PLUGIN_PACKAGES:
                large[folder.relative_to(ROOT).as_posix()] = len(modules)
    assert large == {}


def test_pluggy_lives_in_two_files() -> None:
    assert [path for path in FILES if "pluggy" in imports(path)] == [
        "gradest/contract/hookspecs.py",
        "gradest/discovery/loading.py",
    ]


@pytest.mark.parametrize("path", [path for path, package in FILES.items() if package not in PLUGIN_PACKAGES])
def test_core_and_service_name_a_built_in_only_as_a_default(path: str) -> None:
    registry = gradest.registry
    names = {*registry.neurons, *registry.estimators, *registry.objectives}
    allowed = {id(node) for place in excused(path) for node in ast.walk(place)}
    named = [
        f"{path}:{node.lineno}: {node.value!r}"
        for node in nodes(path)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in allowed
    ]
    assert path in NAMES_ARE_DATA or not named


def excused(path: str) -> Iterator[ast.AST]:
    """Where a built-in's name may stand: defaults of parameters and fields, examples of fields; and __all__, where a function
    may share the name.
    """
    for node in nodes(path):
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
    """The public classes and functions, and those of public classes. A property's getter documents its setter."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_") and not is_overload_or_setter(node):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{name}", inner) for name, inner in definitions(node))


def is_overload_or_setter(node: Definition) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return "overload" in decorators or f"{node.name}.setter" in decorators


def test_contributing_fits_one_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 40
