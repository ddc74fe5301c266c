"""Kernels where nothing can be kept on disk, or where numba does not compile: the same bits, and one warning."""

from __future__ import annotations

import errno
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba.core import caching

import gradest
from gradest import kernels
from gradest.errors import GradestWarning
from gradest.kernels.cpu.compilation import compiler


def compiled() -> Any:
    """Compile a function, each time for the first time as a new process does."""

    def twice(x: float) -> float:
        return 2 * x

    return compiler.compiled(twice)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which kernels are kept, which is empty; and no warning has been given."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiler._warn.cache_clear()
    return tmp_path


def test_no_folder_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.warns(GradestWarning, match="NUMBA_CACHE_DIR") as warned:
        assert [compiled()(3.0), compiled()(4.0)] == [6.0, 8.0]
    assert len(warned) == 1


def test_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    with pytest.warns(GradestWarning, match="No space left on device") as warned:
        assert [compiled()(3.0), compiled()(4.0)] == [6.0, 8.0]
    assert len(warned) == 1


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the system refuse writes beyond so many bytes of a file, which fail as on a disk that becomes full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # by which writes raise OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 100, 2000], ids=["at once", "in the index", "in the kernel"])
def test_the_system_stops_a_write(folder: Path, size: int) -> None:
    with pytest.warns(GradestWarning, match="not kept on disk.*NUMBA_CACHE_DIR") as warned, files_of_at_most(size):
        assert [compiled()(3.0), compiled()(4.0)] == [6.0, 8.0]
    assert len(warned) == 1
    compiler._warn.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [compiled()(3.0), compiled()(4.0)] == [6.0, 8.0], "what was left must not be taken for a whole kernel"


@pytest.mark.parametrize("place", ["/proc/self/kernels", "{folder}/file/kernels", "{folder}/file"])
def test_the_folder_cannot_be_made(folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("no folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", place.format(folder=folder))
    monkeypatch.setattr(
        caching.CompileResultCacheImpl, "_locator_classes", caching.CompileResultCacheImpl._locator_classes[:1]
    )
    with pytest.warns(GradestWarning, match="no folder for them can be written to") as warned:
        assert [compiled()(3.0), compiled()(4.0)] == [6.0, 8.0]
    assert len(warned) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 64, None], ids=["empty", "zeros", "half"])
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_a_kept_kernel_is_truncated(folder: Path, pattern: str, content: bytes | None) -> None:
    assert compiled()(3.0) == 6.0
    (file,) = folder.rglob(pattern)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.warns(GradestWarning, match="cannot be read") as warned:
        assert compiled()(3.0) == 6.0
    assert len(warned) == 1
    kernel = compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel(3.0) == 6.0
    assert sum(kernel.stats.cache_hits.values()) == 1, "the whole file must have replaced the broken one"


@pytest.mark.parametrize("fault", ["NUMBA_DISABLE_JIT", "missing"])
def test_numba_does_not_compile(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    a = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = gradest.sample("bernoulli", a, 5, seed=1)
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    kernels._has_numba.cache_clear()
    try:
        with pytest.warns(GradestWarning, match="not compiled") as warned:
            found = [gradest.sample("bernoulli", a, 5, seed=1) for _ in range(2)]
        assert len(warned) == 1
        assert kernels.explain_backend(a.device).startswith("reference")
    finally:
        kernels._has_numba.cache_clear()
    assert all(torch.equal(h, expected) for h in found)


def _read_only(monkeypatch: pytest.MonkeyPatch, *unwritable: str) -> None:
    """Have these folders refuse files, as on a read-only file system, also for root."""
    make = caching.tempfile.TemporaryFile

    def temporary_file(**options: Any) -> Any:
        if str(options["dir"]).startswith(unwritable):
            raise OSError(errno.EROFS, "Read-only file system")
        return make(**options)

    monkeypatch.setattr(caching.tempfile, "TemporaryFile", temporary_file)


def hits_and_misses(kernel: Any) -> tuple[int, int]:
    return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


def test_kept_kernels_are_read_where_nothing_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only root, whose image has the kernels."""
    compiled()(3.0)
    before = sorted(folder.rglob("*"))
    _read_only(monkeypatch, "")
    kernel = compiled()
    assert kernel(4.0) == 8.0
    assert hits_and_misses(kernel) == (1, 0)
    assert sorted(folder.rglob("*")) == before
    kernel = compiled()
    with pytest.warns(GradestWarning, match="for other processors") as warned:
        assert kernel(np.float32(4.0)) == 8.0  # for these types nothing is kept
    assert (hits_and_misses(kernel), len(warned)) == ((0, 1), 1)
    assert sorted(folder.rglob("*")) == before


def test_kernels_of_the_installation_are_read_beside_the_user_s_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As for a user of an installation that root has warmed up; what is missing there is kept in a folder of the user's."""
    compiled()(3.0)
    _read_only(monkeypatch, str(folder), str(Path(__file__).parent))
    own = tmp_path_factory.mktemp("own")
    monkeypatch.setattr(caching.AppDirs, "user_cache_dir", str(own))
    kernel = compiled()
    assert kernel(4.0) == 8.0
    assert hits_and_misses(kernel) == (1, 0)
    assert not list(own.rglob("*.nbc"))
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")  # else another process would compile it
    assert kernel(np.float32(4.0)) == 8.0
    assert len(list(own.rglob("*.nbc"))) == 1
    again = compiled()
    assert (again(np.float32(5.0)), again(5.0)) == (10.0, 10.0)
    assert hits_and_misses(again) == (2, 0)
