"""The public names of gradest: one list, the stub, which users and type checkers see alike."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import gradest
import gradest.client
import gradest.testing

PACKAGES = (
    "gradest",
    "gradest_neurons",
    "gradest_estimators",
    "gradest_objectives",
    "gradest_experiments",
    "gradest_service",
)
SUBMODULES = {"contract", "errors", "nn", "random", "testing"}
UNDOCUMENTED = {
    "ModuleOption",
    "OLDEST_PLUGIN_API",
    "PLUGIN_API",
    "State",
    "TensorOption",
}  # an integer and three aliases of types, documented where they are defined


def names_of(stub: Path) -> list[str]:
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]


@pytest.mark.parametrize("package", [gradest, gradest.client, gradest.testing], ids=lambda package: package.__name__)
def test_the_stub_is_the_one_list(package: ModuleType) -> None:
    names = names_of(Path(package.__file__ or "").with_suffix(".pyi"))
    assert sorted(set(names)) == sorted(names) == sorted(package.__all__)
    assert set(names) <= set(dir(package))
    assert all(hasattr(package, name) for name in names)


@pytest.mark.parametrize("name", gradest.__all__)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(gradest, name)
    assert inspect.ismodule(value) == (name in SUBMODULES)
    assert name in UNDOCUMENTED or inspect.getdoc(value)


def test_submodules_need_no_import_and_torch_s_compiler_is_not_waited_for() -> None:
    """Importing the compiler takes seconds, and before something is compiled neither the service nor a layer needs it."""
    script = """
        import sys
        import gradest
        for name in ("errors", "testing", "contract", "random"):  # none of them imports one that follows it
            assert name not in vars(gradest), name
            getattr(gradest, name)
        import gradest_service.app, torch
        gradest.sample("bernoulli", torch.zeros(2))
        assert "nn" not in vars(gradest)
        a = torch.zeros(2, 3, requires_grad=True)
        layer = gradest.nn.Stochastic("bernoulli", "reinforce_centered")
        expectation = gradest.nn.Expectation("bernoulli", "rloo")
        linear = gradest.nn.ConditionalLinear(3, 3)
        with gradest.nn.StochasticGraph(layer, samples=2) as graph:
            graph.add_cost(layer(graph.expand(a)).sum(-1))
            graph.surrogate().backward()
        gradest.nn.broadcast_loss(layer, layer(linear(a, torch.ones(2, 3))).sum(-1)).backward()
        expectation(lambda h: h.sum(-1), a).sum().backward()
        assert "torch._dynamo" not in sys.modules
        """
    environment = os.environ | {"GRADEST_KERNELS": "reference"}  # kernels would only be waited for
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)


def test_the_version_is_the_distribution_s() -> None:
    assert gradest.__version__ == version("gradest")


def test_no_module_shares_a_name_with_a_public_attribute() -> None:
    """Else importing the module would put it in the attribute's place."""
    modules = {module.name for module in pkgutil.iter_modules(gradest.__path__)}
    assert modules & set(gradest.__all__) == SUBMODULES


def packages() -> Iterator[ModuleType]:
    for name in PACKAGES:
        top = importlib.import_module(name)
        yield top
        for module in pkgutil.walk_packages(top.__path__, f"{name}."):
            if module.ispkg:
                yield importlib.import_module(module.name)


def test_no_package_binds_the_name_of_its_own_submodule() -> None:
    """Which of the two a reader gets would depend on what was imported before."""
    clashes = [
        f"{package.__name__}.{module.name}"
        for package in packages()
        for module in pkgutil.iter_modules(package.__path__)
        if not inspect.ismodule(vars(package).get(module.name, package))
    ]
    assert clashes == []


def test_submodules_hold_what_they_say_they_do() -> None:
    for module in pkgutil.walk_packages(gradest.__path__, "gradest."):
        if (
            module.name.endswith("__main__") or ".cuda" in module.name
        ):  # the one runs when imported, the other needs Triton
            continue
        loaded = importlib.import_module(module.name)
        assert [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)] == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gradest.no_such_name  # type: ignore[attr-defined]


def test_packages_are_marked_as_typed() -> None:
    for package in PACKAGES:
        assert (Path(importlib.import_module(package).__file__ or "").parent / "py.typed").exists()


def test_importing_gradest_does_not_import_torch() -> None:
    script = "import gradest, sys; print(*sorted({'torch', 'pluggy', 'pydantic', 'numba'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == ""
    )
