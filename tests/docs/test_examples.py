"""The examples in the docstrings of public names run, and what a user calls has one."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

import gradest

MODULES = ("gradest", "gradest.nn", "gradest.random", "gradest.testing", "gradest.client", "gradest.contract.target")
CONTRACT = "gradest.contract."  # its classes are to be subclassed: the pages of plugins have their examples
RECORDS = {
    "AsyncClient",  # the methods of Client, with await
    "BiasRecord",
    "Comparison",
    "Cost",
    "Draw",
    "Estimate",
    "GradestError",
    "RayExecutor",  # needs a cluster
    "Recommendation",
    "RemoteDraw",
    "RemoteEstimate",
    "RemoteGradient",
    "RemoteMean",
    "example_objectives",
    "example_pairs",
    "check_words",
}
"""What a user gets, or does not need, and so does not call."""
NAMES = {
    f"{module}.{name}": found
    for module in MODULES
    for name in importlib.import_module(module).__all__
    if not inspect.ismodule(found := getattr(importlib.import_module(module), name))
}


def has_example(found: object) -> bool:
    return ">>> " in (inspect.getdoc(found) or "")


@pytest.mark.parametrize("name", sorted(name for name in NAMES if has_example(NAMES[name])))
def test_the_example_of_a_name_runs(name: str) -> None:
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]) or "", {}, name, None, None)
    printed: list[str] = []
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append).failed
    assert not failed, "".join(printed)


def test_what_a_user_calls_has_an_example() -> None:
    lacking = {
        name
        for name, found in NAMES.items()
        if (inspect.isclass(found) or inspect.isroutine(found))
        and not has_example(found)
        and name.rpartition(".")[2] not in RECORDS
        and not (inspect.isclass(found) and issubclass(found, gradest.contract.plugin.Plugin))
    }
    assert lacking == set()
