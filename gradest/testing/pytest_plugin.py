"""The conformance kit as a pytest plugin: `pytest --gradest-plugin my-plugin` adds a test for each check.

A test is named PLUGIN-NEURON-CHECK, so `-k` can select tests. The rest of gradest is not imported unless the option is given.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradest.discovery.entry_points import PluginSource
    from gradest.testing.suite import CheckCase

__all__ = ["pytest_addoption", "pytest_configure", "pytest_make_collect_report"]

_SOURCES = pytest.StashKey["list[PluginSource]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option --gradest-plugin."""
    parser.getgroup("gradest").addoption(
        "--gradest-plugin",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="Run gradest's conformance kit on a plugin: a .py file, a project's folder, an installed distribution, or a "
        "module. The option may be repeated.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Find the plugins that the command line names; raise pytest.UsageError if one of them cannot be found."""
    if not (arguments := config.getoption("gradest_plugin")):
        return
    from gradest.discovery.entry_points import find
    from gradest.errors import GradestError

    try:
        config.stash[_SOURCES] = [find(argument) for argument in dict.fromkeys(arguments)]
    except GradestError as error:
        raise pytest.UsageError(f"--gradest-plugin: {error}") from error


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add a collector for each plugin to what the session collects."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        for source in collector.config.stash.get(_SOURCES, []):
            name = f"gradest:{source.distribution}"
            report.result.append(_Plugin.from_parent(collector, name=name, nodeid=name, source=source))
    return report


class _Plugin(pytest.Collector):
    """A collector for the checks of one plugin."""

    def __init__(self, *, source: PluginSource, **rest: Any) -> None:
        super().__init__(**rest)
        self._source = source

    def collect(self) -> Iterator[pytest.Item]:
        from gradest.testing.suite import collect_checks

        suite = collect_checks(self._source)
        for failure in suite.failures:
            yield _Check.from_parent(self, name=f"{failure.distribution}-loads", failure=f"did not load: {failure}")
        for case in suite.cases:
            yield _Check.from_parent(self, name=str(case), case=case)


class _Check(pytest.Item):
    """A test that runs one check, or fails with the reason why the plugin did not load."""

    def __init__(self, *, case: CheckCase | None = None, failure: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self._case = case
        self._failure = failure

    def runtest(self) -> None:
        diagnosis = self._case.run().diagnosis if self._case else self._failure
        if diagnosis:
            pytest.fail(diagnosis, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
