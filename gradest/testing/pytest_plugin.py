"""The conformance kit as a plugin of pytest: `pytest --gradest-plugin my-plugin` adds a test for each check.

The tests are named plugin-neuron-check, so that `-k` selects among them. Nothing is imported unless the option is given.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradest.discovery.entry_points import PluginSource
    from gradest.testing.suite import Case

__all__ = ["pytest_addoption", "pytest_configure", "pytest_make_collect_report"]

_SOURCES = pytest.StashKey["list[PluginSource]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --gradest-plugin."""
    parser.getgroup("gradest").addoption(
        "--gradest-plugin",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="Run gradest's conformance kit on a plugin: a .py file, a project's folder, an installed distribution or a module; "
        "may be repeated.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Find the plugins; a name that is none is a mistake in the command line."""
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
    """Collect the plugins beside what the session collects."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        for source in collector.config.stash.get(_SOURCES, []):
            name = f"gradest:{source.distribution}"
            report.result.append(_Plugin.from_parent(collector, name=name, nodeid=name, source=source))
    return report


class _Plugin(pytest.Collector):
    """The checks of one plugin."""

    def __init__(self, *, source: PluginSource, **rest: Any) -> None:
        super().__init__(**rest)
        self._source = source

    def collect(self) -> Iterator[pytest.Item]:
        from gradest.testing.suite import collect

        suite = collect(self._source)
        for failure in suite.failures:
            yield _Check.from_parent(self, name=f"{failure.distribution}-loads", failure=f"did not load: {failure}")
        for case in suite.cases:
            yield _Check.from_parent(self, name=str(case), case=case)


class _Check(pytest.Item):
    """One check, or the failure that leaves nothing to check."""

    def __init__(self, *, case: Case | None = None, failure: str = "", **rest: Any) -> None:
        super().__init__(**rest)
        self._case = case
        self._failure = failure

    def runtest(self) -> None:
        diagnosis = self._case.run().diagnosis if self._case else self._failure
        if diagnosis:
            pytest.fail(diagnosis, pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
