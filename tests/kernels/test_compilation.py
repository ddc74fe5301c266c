"""How kernels are chosen, compiled and kept: once, whoever asks, and again when their source has changed."""

import multiprocessing
import os
import pkgutil
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from filelock import FileLock
from scipy import special

import gradest
import gradest.nn
from gradest.errors import InvalidInput
from gradest.kernels import cpu, fused, reference, select


def test_a_kernel_is_compiled_once_for_words_of_each_row_and_for_words_of_all():
    rows = torch.arange(2, dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        for words in (((3, 5), 2), ((rows, 5), 2), ((rows, rows), rows)):
            cpu.uniform(*words, 0, 1, 5, dtype)
    assert len(cpu.noise._uniform.signatures) == 2


def test_several_threads_at_once():
    keys = [gradest.Key(seed) for seed in range(8)]
    wanted = [key.uniform((500,), (1200,)) for key in keys]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda key: key.uniform((500,), (1200,)), keys))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork():
    wanted = gradest.Key(3).uniform((500,), (1200,))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_total).result(60) == float(wanted.numpy().sum(dtype=np.float64))


def _total():
    # by numpy, because torch's own threads do not survive a fork
    return float(gradest.Key(3).uniform((500,), (1200,)).numpy().sum(dtype=np.float64))


def test_the_environment_forces_a_kernel(monkeypatch):
    device = torch.device("cpu")
    assert select("uniform", device).__wrapped__ is cpu.uniform
    assert select("uniform", torch.device("meta")) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    assert select("uniform", device) is reference.uniform
    monkeypatch.setenv("GRADEST_KERNELS", "gpu")
    with pytest.raises(InvalidInput, match="GRADEST_KERNELS must be reference, cpu, cuda or unset; it is 'gpu'"):
        select("uniform", device)


def test_no_module_has_the_name_of_a_kernel():
    """For else `fused` would return the module for the kernel."""
    for backend in (reference, cpu):
        modules = {module.name for module in pkgutil.iter_modules(backend.__path__)}
        assert "conditional" in modules
        assert not modules & {*reference.__all__, *cpu.__all__}
        assert all(callable(getattr(backend, name)) for name in backend.__all__)
    for name in ("noise", "conditional", "sigmoid"):
        assert fused(name, torch.device("cpu")) is None


def test_the_digest_of_all_sources_is_part_of_the_name_that_a_kernel_is_kept_by():
    from gradest.kernels.cpu.conditional import units

    for kernel in (cpu.noise._uniform, cpu.binaries._draw_binary, units.forward):
        assert kernel.py_func.__qualname__.endswith(f"-{cpu.compilation.compiler._DIGEST}")


def test_no_two_kernels_are_kept_by_one_name():
    """numba finds a kept kernel by its file and its name. Kernels of samplers are made by one function, in one file."""
    kernels = [kernel for some in cpu.compilation.background._kernels_by_name().values() for kernel in some]
    names = {(kernel.py_func.__code__.co_filename, kernel.py_func.__qualname__) for kernel in kernels}
    assert len(names) == len({id(kernel.py_func) for kernel in kernels}) > 40


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_processes_that_start_together_one_compiles_and_the_others_load(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    @cpu.compilation.compiler.compiled
    def double(x):
        return 2 * x

    fork = multiprocessing.get_context("fork")
    together, compilations = fork.Barrier(2), fork.Queue()

    def call():
        together.wait(60)
        assert double(21) == 42
        compilations.put(sum(double.stats.cache_misses.values()))

    processes = [fork.Process(target=call) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(compilations.get(timeout=60) for _ in processes) == [0, 1]
    for process in processes:
        process.join(60)


def test_a_kernel_is_compiled_though_its_lock_is_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu.compilation.compiler, "_PATIENCE", 0.0)

    @cpu.compilation.compiler.compiled
    def double(x):
        return 2 * x

    with FileLock(Path(double.stats.cache_path) / f"{__name__}.{double.py_func.__qualname__}.lock"):
        assert double(21) == 42


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_kernels_kept_on_disk_are_stale_once_a_file_that_is_compiled_into_them_changes(tmp_path):
    """σ(1) by `repeated`, whose own file stays: it takes a function of one other file, and constants of another."""
    shutil.copytree(Path(gradest.__file__).parent, tmp_path / "gradest", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import torch; from gradest.kernels import cpu; print(cpu.__file__, float(cpu.repeated(1, torch.ones(1), 2)))"
    )

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.startswith(str(tmp_path)), done.stderr
        return float(done.stdout.split()[-1])

    found = [run()]
    assert found[0] == pytest.approx(special.expit(1), rel=1e-6)
    for file, line, edited in (
        ("portable.py", "exp=_taylor(7)", "exp=_taylor(2)"),
        ("cpu/functions.py", "r + np.float32(1)", "r + np.float32(2)"),
    ):
        path = tmp_path / "gradest/kernels" / file
        assert path.read_text().count(line) == 1
        path.write_text(path.read_text().replace(line, edited))
        found.append(run())
    assert len(set(found)) == 3
