"""The fixture `bench`, and where its results go."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Bench
from .report import bars


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks")
    group.addoption("--short", action="store_true", help="fewer rounds and smaller sizes")
    group.addoption("--results", type=Path, help="a folder for results.json")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The short form leaves out what does not know of it."""
    if config.getoption("--short", False):
        items[:] = [item for item in items if "bench" in getattr(item, "fixturenames", ())]


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    config = request.config
    found = Bench(short=config.getoption("--short", False))
    yield found
    print(f"\n{bars(found.rows)}")
    folder = config.getoption("--results", None)
    if folder and not request.session.testsfailed:
        folder.mkdir(parents=True, exist_ok=True)
        results = found.results("pytest " + shlex.join(map(str, config.invocation_params.args)))
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
