"""Kernels that are not compiled yet: the reference serves at once, and a process beside this one compiles them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numba
import pytest

from gradest.kernels.cpu.compilation import background, compiler
from gradest.kernels.cpu.compilation.background import NotCompiled

PROGRAM = """
import time, torch
from gradest.kernels import reference, select
from gradest.kernels.cpu import statistics

x = torch.full((70000,), 2.0)
for kind in (torch.float32, torch.float64):
    assert select("all_finite", x.device)(x.to(kind))
kernel = statistics._largest_bits
assert not kernel.signatures, "the first call must not have compiled it"
ends = time.monotonic() + 100
while not kernel.signatures and time.monotonic() < ends:
    time.sleep(0.1)
    assert select("all_finite", x.device)(x)
assert sum(kernel.stats.cache_hits.values()) == 1, "what the other process has kept is loaded"
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "GRADEST_KERNELS"}
    return {**kept, "NUMBA_CACHE_DIR": str(folder), **more}


def test_the_reference_serves_until_another_process_has_compiled(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("gradest: the kernels for the CPU are being compiled") == 1
    assert "GRADEST_KERNELS=reference does without them" in run.stderr


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kernel of which nothing is kept, in a process that does not wait for kernels."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("GRADEST_KERNELS", raising=False)
    background._compiler_of.cache_clear()
    yield doubling()
    background._compiler_of.cache_clear()


def doubling() -> Any:
    """A new object of one kernel, as another process has it."""

    def twice(x: float) -> float:
        return 2 * x

    return compiler.compiled(twice)


def test_where_no_process_can_be_started_the_first_call_compiles(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert kernel(3.0) == 6.0


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import sys; sys.stdin.buffer.read(1)"])
def test_a_process_that_ends_without_having_compiled_is_asked_twice(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(background, "_RUN", program)
    started, start = [], background._start
    monkeypatch.setattr(background, "_start", lambda: started.append(start()) or started[-1])
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            assert kernel(3.0) == 6.0
            break
        except NotCompiled:
            time.sleep(0.05)
    assert kernel.signatures
    assert 1 <= len(started) <= 2


def test_the_disk_is_looked_at_once_while_a_kernel_is_compiled(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_RUN", "import sys; sys.stdin.buffer.readlines()")
    looked: list[object] = []
    monkeypatch.setattr(background, "is_kept", lambda *given: bool(looked.append(given)))
    for _ in range(3):
        with pytest.raises(NotCompiled):
            kernel(3.0)
    assert len(looked) == 1


def test_a_kernel_that_waits_is_compiled_by_its_first_call(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_start", lambda: pytest.fail("a process was started"))

    def half(x: float) -> float:
        return x / 2

    assert compiler.compiled_with_fma(half)(3.0) == 1.5
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")
    assert kernel(3.0) == 6.0


def test_what_is_kept_is_loaded_by_the_first_call(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")
    assert kernel(3.0) == 6.0
    monkeypatch.delenv("GRADEST_KERNELS")
    monkeypatch.setattr(background, "_start", lambda: pytest.fail("a process was started"))
    again = doubling()
    assert again(3.0) == 6.0
    assert sum(again.stats.cache_hits.values()) == 1
