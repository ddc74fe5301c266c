"""The hooks themselves: each documented, each tested, and the guide's example runs as it is printed."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gradest
from gradest.cli import app
from gradest.contract import hookspecs
from gradest.discovery import entry_points as discovery
from gradest.discovery.registry import Registry

HOOKS = [name for name in vars(hookspecs) if name.startswith("gradest_")]


def test_there_is_a_hook_for_each_kind_of_plugin() -> None:
    assert HOOKS == ["gradest_neurons", "gradest_estimators", "gradest_objectives"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    assert re.search(r"subclasses of `gradest\.\w+`", getattr(hookspecs, hook).__doc__)
    assert f" {hook}() " in (hookspecs.__doc__ or ""), "the guide names it"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_implemented_by_a_plugin_that_the_tests_install(hook: str) -> None:
    installed = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
    assert f"def {hook}()" in installed


@pytest.mark.parametrize("hook", HOOKS)
def test_what_every_hook_returns_arrives(hook: str, load: Callable[..., Registry]) -> None:
    registry = load("acme-good")
    kind = hook.removeprefix("gradest_")
    (info,) = (info for info in registry.plugins if info.distribution == "acme-good")
    brought = getattr(info, kind)
    assert len(brought) == 1
    assert brought.items() <= getattr(registry, kind).items()


def test_the_guide_names_what_authors_use() -> None:
    guide = hookspecs.__doc__ or ""
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"gradest\s+(\w[\w-]*)", guide)) & commands
    assert named >= {"new-plugin", "check", "list", "describe", "certify"}
    for module in (discovery, sys.modules[Registry.__module__]):
        assert set(re.findall(r"GRADEST_[A-Z_]+", inspect.getsource(module))) <= set(
            re.findall(r"GRADEST_[A-Z_]+", guide)
        )
    for word in (
        "--gradest-plugin",
        "GRADEST_PLUGIN_API = 2",
        "GRADEST_STRICT_PLUGINS",
        "off_support",
        "target()",
        "examples",
    ):
        assert word in guide


def test_the_example_of_the_guide_runs() -> None:
    source = (hookspecs.__doc__ or "").partition("# my_plugin.py")[2].partition("# pyproject.toml")[0]
    module = types.ModuleType("my_plugin")
    exec("\n".join(line.removeprefix("    ") for line in source.splitlines()), vars(module))
    registry = Registry()
    registry.register(module)
    damped = registry.estimator("damped")
    a = torch.zeros(3, requires_grad=True)
    loss, _ = gradest.expect(lambda h: (3 * h).sum(-1), a, neuron="bernoulli", estimator=damped, seed=0)
    loss.sum().backward()
    assert torch.equal(a.grad, torch.full((3,), 1.5))  # half of dL/dh
