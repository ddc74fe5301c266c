"""How fast a linear layer is that skips what its gates close, as ratios to the dense one within one run: `make bench`, or
`pytest -m benchmark -s tests/benchmarks/test_conditional.py`.

Layer and dense layer take turns, so that a busy machine slows both alike. The dense one is gates * (x W^T + b) in plain torch.
Backward gives the gradients of x, W and b. The layer is asked for sparse ones of W where that is said. What was computed is
checked before it is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from gradest.conditional import Computed
from gradest.nn import ConditionalLinear

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

INPUTS, OPEN, ROUNDS = 784, 0.1, 60
CASES = [  # examples, units, units a gate
    (1, 2000, 1),
    (32, 2048, 64),
    (32, 2000, 1),
    (256, 2000, 1),
]


def in_turns(calls: list[Callable[[], object]]) -> list[list[float]]:
    for call in calls:
        for _ in range(3):
            call()  # kernels compile, caches fill, "auto" makes its choice
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return seconds


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_against_dense(dtype, two_threads):
    print(f"\n{INPUTS} inputs, {OPEN:.0%} of the gates open, {dtype}, 2 threads")
    print(f"  {'examples x units, block':24} {'method':14} {'pass':9} {'computed':>9} {'median ms':>10} {'quartiles':>15} "
          f"{'dense ms':>9} {'dense takes':>12}")  # fmt: skip
    for batch, units, block in CASES:
        torch.manual_seed(0)
        gates = (torch.rand(batch, units // block) < OPEN).to(dtype)
        x = torch.randn(batch, INPUTS, dtype=dtype, requires_grad=True)
        wide, grad = gates.repeat_interleave(block, -1), torch.randn(batch, units, dtype=dtype)
        for method, sparse_gradient in (("auto", False), ("sparse", False), ("sparse", True)):
            layer = ConditionalLinear(
                INPUTS, units, block_size=block, method=method, sparse_gradient=sparse_gradient, dtype=dtype
            )
            tensors = (x, layer.weight, layer.bias)

            def dense(tensors: tuple[Tensor, ...] = tensors, wide: Tensor = wide) -> Tensor:
                return wide * linear(*tensors)

            def ours(layer: ConditionalLinear = layer, x: Tensor = x, gates: Tensor = gates) -> Tensor:
                return layer(x, gates)

            y, y_dense = ours(), dense()
            tolerance = {"rtol": 0.1, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(y, y_dense, **tolerance)
            back = [
                lambda out=out, tensors=tensors, grad=grad: torch.autograd.grad(out, tensors, grad, retain_graph=True)
                for out in (y, y_dense)
            ]
            for mine, theirs in zip(back[0](), back[1](), strict=True):
                torch.testing.assert_close(mine.to_dense(), theirs, **tolerance)
            name = method + ", sparse W'" * sparse_gradient
            for kind, calls in (("forward", [ours, dense]), ("backward", back)):
                layer.computed = Computed()
                mine, theirs = in_turns(calls)
                lower, middle, upper = (1e3 * t for t in statistics.quantiles(mine, n=4))
                ratio = statistics.median(other / own for own, other in zip(mine, theirs, strict=True))
                print(
                    f"  {f'{batch} x {units}, {block}':24} {name:14} {kind:9} {layer.computed.share:9.1%} {middle:10.3f} "
                    f"{lower:7.3f}-{upper:7.3f} {1e3 * statistics.median(theirs):9.3f} {ratio:11.2f}x"
                )
