"""Bits of ConditionalLinear depend on a row alone: not on its batch, threads, forks or the run."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch

from gradest.kernels.cpu.conditional import blocks
from gradest.nn import ConditionalLinear
from tests.nn.conditional import DTYPES, output_gradient, problem, run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("units", "block"), [(90, 1), (96, 16), (95, 5)])
def test_bits_of_a_row_depend_on_that_row_alone(units, block, dtype):
    layer, x, gates = problem(300, 203, units, block, dtype=dtype)
    out, grad_x = run(layer, x, gates)[:2]
    weight = output_gradient(out)
    for rows in (slice(0, 1), slice(5, 7), slice(120, 135), slice(299, 300), [7, 290, 3, 8, 9]):
        part = x.detach()[rows].requires_grad_()
        alone = layer(part, gates[rows])
        assert torch.equal(alone, out[rows])
        assert torch.equal(torch.autograd.grad(alone, part, weight[rows])[0], grad_x[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "inputs", "units", "block"), [(13, 203, 12, 4), (40, 70, 134, 67), (1100, 19, 16, 8)]
)
def test_kernels_for_blocks_have_the_bits_of_those_for_units(batch, inputs, units, block, dtype, monkeypatch):
    """With tiles that are full and that are not, in every dimension, and with several groups of chunks."""
    each = problem(batch, inputs, units, block, dtype=dtype)
    by_block = run(*each)
    monkeypatch.setattr(blocks, "FEWEST_UNITS", 1 << 30)
    for one, two in zip(run(*each), by_block, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("units", "block"), [(600, 1), (640, 64)])
def test_bits_depend_neither_on_threads_nor_on_the_run(units, block):
    layer, x, gates = problem(200, 301, units, block)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            results.append(run(layer, x, gates))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(result, results[0], strict=True))


def test_several_threads_at_once():
    problems = [problem(64, 300, 256, block, seed=block) for block in (1, 2, 4, 8, 16, 32)]
    wanted = [run(*each) for each in problems]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda each: run(*each), problems))
    assert all(
        torch.equal(one, two)
        for mine, theirs in zip(found, wanted, strict=True)
        for one, two in zip(mine, theirs, strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork():
    layer, x, gates = problem(200, 301, 640, 64)
    wanted = layer(x, gates).detach()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        found = pool.submit(_forward, layer.state_dict(), x.detach(), gates).result(60)
    assert torch.equal(found, wanted)


def _forward(state, x, gates):
    layer = ConditionalLinear(301, 640, block_size=64, method="sparse")
    layer.load_state_dict(state)
    with torch.no_grad():
        return layer(x, gates)
