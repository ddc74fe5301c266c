"""What all tests share: their order, what they need, and reproducible examples."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> object:
    """Make no test of a deep case if the deep tests are left out: there are more of those than of all others.

    What is left has the name that it has beside the others. If nothing is left, one case stays, for pytest to deselect.
    """
    found = yield
    if metafunc.config.getoption("markexpr").startswith("not deep"):
        cases = metafunc._calls  # pytest has no public place where cases are taken out
        deep = metafunc.definition.get_closest_marker("deep") is not None
        cases[:] = [case for case in cases if not deep and all(mark.name != "deep" for mark in case.marks)] or cases[:1]
    return found


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> object:
    """Collect without searching for garbage, and leave what was collected out of all later searches."""
    gc.disable()
    try:
        with _the_first_alone(session.config):
            return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else extension modules find their objects alive at the end
        gc.enable()


@contextmanager
def _the_first_alone(config: pytest.Config) -> Iterator[None]:
    """Have the other workers of xdist wait until the first has collected: in a new clone it compiles the modules for them."""
    worker = getattr(config, "workerinput", None)
    if worker is None:
        yield
        return
    collected = Path(tempfile.gettempdir()) / f"gradest-collected-{worker['testrunuid']}"
    if worker["workerid"] == "gw0":
        try:
            yield
        finally:
            collected.touch()
            atexit.register(collected.unlink)
        return
    end = time.monotonic() + 60
    while not collected.exists() and time.monotonic() < end:
        time.sleep(0.1)
    yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests last: what fails fast is seen fast. But first in a worker of xdist, so that all workers end together.

    Those of the page come after all others. The browser's driver runs an event loop, beside which no other test could start
    its own; and by then the kernels are compiled for which pictures would have to wait.
    """
    first = hasattr(config, "workerinput")
    items.sort(
        key=lambda item: (
            item.get_closest_marker("browser") is not None,
            (item.get_closest_marker("slow") is None) == first,
        )
    )


_WAITING = {
    "tests/client/test_unreliable_services.py",
    *(
        f"tests/service/test_{name}.py"
        for name in ("capacity", "connections", "drain", "faulty_plugins", "metrics", "protocol", "unread", "workers")
    ),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With --dist loadfile, the tests of Ray run in one worker though they are in two files, because they share a cluster.

    So do those that mostly wait: one waits at a time, while the other workers use the cores.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "tests/ray" if file.startswith("tests/ray/") else "those that wait" if file in _WAITING else file

    return Together(config, log)


def _starts_others(config: pytest.Config) -> bool:
    """Whether this is the process that starts the workers of xdist, and runs no test itself."""
    return bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need what this machine lacks are skipped, with the reason."""
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("browser") and not (item.config.chromium and find_spec("playwright")):
        pytest.skip("needs Chromium, and playwright")
    if item.get_closest_marker("ray") and find_spec("ray") is None:
        pytest.skip("needs ray")


def pytest_configure(config: pytest.Config) -> None:
    """Look for Chromium. And a shell that starts the tests in the background has them ignore SIGINT, which some of them send."""
    config.chromium = shutil.which("chromium") or shutil.which("chromium-browser")  # type: ignore[attr-defined]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _starts_others(config):
        _set_up()


def _set_up() -> None:
    """Set what tests rely on. The imports are slow."""
    import hypothesis
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("GRADEST_KERNELS", "cpu")  # kernels are waited for, so that it is they that are tested
    hypothesis.settings.register_profile("gradest", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("gradest")
