"""A compiled stochastic layer: its first call, and whether it is as fast as the eager one.

torch.compile itself takes seconds for a model, and at small sizes more time at each call than eager code. So the same model with
a ReLU in place of the layer, and with the layer by hand, are measured beside it.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from .compiled import CLASSES, LAYERS, PIXELS, model_and_step

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

MOST_SECONDS = 10  # beyond torch's own compile
SIZES = (100, 200), (256, 2048)  # images and units
OURS = ("straight_through", "reinforce")


@pytest.mark.filterwarnings("ignore")  # of the compiler's own code
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_a_compiled_step_beside_an_eager_one(bench, size):
    _skip_if_short(bench)
    images, units = size
    calls = {}
    for layer in LAYERS:
        model, step = model_and_step(layer, images, units)
        calls[layer, "eager"] = partial(step, model)
        calls[layer, "compiled"] = partial(step, torch.compile(model))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = bench.least_in_turns(calls, 200 if images == 100 else 50)
    finally:
        torch.set_num_threads(threads)
    title = f"{images} images, {PIXELS}-{units}-{CLASSES}, forward and backward, CPU time"
    for layer in LAYERS:
        eager, compiled = found[layer, "eager"][0], found[layer, "compiled"][0]
        bench.bound(title, f"{layer}, compiled", "× eager", [compiled / eager], at_most=1 if layer in OURS else None)


def test_the_first_call_of_a_compiled_model(bench):
    """In a process of its own for each layer, with an empty cache of torch's compiler; kernels of gradest are compiled before."""
    _skip_if_short(bench)
    seconds = {layer: _first_call(layer) for layer in LAYERS}
    title = f"first call of a compiled model {PIXELS}-200-{CLASSES}, CPU seconds"
    for layer in LAYERS:
        bench.bound(title, layer, "s", [seconds[layer]])
    for layer in OURS:
        bench.bound(title, f"{layer}, beyond ReLU", "s", [seconds[layer] - seconds["ReLU"]], at_most=MOST_SECONDS)


def _skip_if_short(bench) -> None:
    if bench.short:
        pytest.skip("the compiler of torch takes minutes")


def _first_call(layer: str) -> float:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.benchmarks.compiled", layer]
    return float(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
