"""What all tests share: their order, what they need, and reproducible examples."""

from __future__ import annotations

import os
import shutil
import signal
from importlib.util import find_spec

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("GRADEST_KERNELS", "cpu")  # kernels are waited for, so that it is they that are tested

hypothesis.settings.register_profile("gradest", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gradest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests last: what fails fast is seen fast. But first in a worker of xdist, so that all workers end together."""
    first = hasattr(config, "workerinput")
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None) == first)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With --dist loadfile, the tests of Ray run in one worker though they are in two files, because they share a cluster."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class TogetherOnRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/ray" if nodeid.startswith("tests/ray/") else super()._split_scope(nodeid)

    return TogetherOnRay(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need what this machine lacks are skipped, with the reason."""
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
