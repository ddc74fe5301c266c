"""Kernels that call each other by address, also where one process has kept what another one loads."""

import multiprocessing
import sys
from pathlib import Path

import numba
import pytest

from gradest.kernels.cpu.compilation.compiler import compiled, with_functions

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def inner(x):
    return 2 * x


def outer(x):
    return inner(x) + 1


def forked(call):
    """Return what the call returns in a new process, which an unresolved symbol would end."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    process = fork.Process(target=lambda: answers.put(call()))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return answers.get()


def result_and_sources(*before):
    """Make both kernels, after others for these numbers, and return outer(20), and which were loaded: the callee, the caller."""
    for number in before:
        compiled(with_functions(inner))(number)
    callee = compiled(with_functions(inner))
    sys.modules[__name__].inner = callee
    caller = compiled(with_functions(outer, inner=callee))
    found = caller(20)
    return found, [sum(one.stats.cache_hits.values()) for one in (callee, caller)]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder in which another process has kept both kernels."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert forked(result_and_sources) == (41, [0, 0])
    return tmp_path


def test_a_kept_kernel_loads_those_that_it_calls(kept):
    assert forked(result_and_sources) == (41, [1, 1])


def test_a_kept_kernel_finds_one_that_was_compiled_again_under_another_symbol(kept):
    for path in kept.rglob("*inner*.nb?"):
        Path(path).unlink()
    assert forked(lambda: result_and_sources(1.5, 1j, True)) == (41, [0, 1])


def test_a_caller_has_no_copy_of_what_it_calls():
    callee = compiled(with_functions(inner))
    caller = compiled(with_functions(outer, inner=callee))
    assert caller(20) == 41
    (name,) = {one.fndesc.llvm_func_name for one in callee.overloads.values()}
    (result,) = caller.overloads.values()
    (found,) = [one for one in result.library._final_module.functions if one.name == name]
    assert found.is_declaration
