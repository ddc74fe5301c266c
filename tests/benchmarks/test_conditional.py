"""How fast a linear layer is that skips what its gates close, against the dense one, gates * (x W^T + b) in plain torch.

Backward gives the gradients of x, W and b; the layer is asked for a sparse one of W where that is said.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from gradest.nn import ConditionalLinear

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

OPEN = 0.1
CASES = [  # examples, inputs, units, units a gate, and how many times as fast as dense it was asked to be
    (1, 784, 2000, 1, 6),
    (1, 4096, 4096, 1, 6),
    (32, 784, 2048, 64, 5),
    (32, 784, 2000, 1, 1.5),
    (256, 784, 2000, 1, None),
]


@pytest.mark.parametrize(("batch", "inputs", "units", "block", "asked"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_against_dense(bench, dtype, batch, inputs, units, block, asked):
    if bench.short and dtype != torch.float32:
        pytest.skip("the short form is of float32")
    torch.manual_seed(0)
    gates = (torch.rand(batch, units // block) < OPEN).to(dtype)
    x = torch.randn(batch, inputs, dtype=dtype, requires_grad=True)
    wide, grad = gates.repeat_interleave(block, -1), torch.randn(batch, units, dtype=dtype)
    layers = {
        name: ConditionalLinear(inputs, units, block_size=block, method=method, sparse_gradient=sparse, dtype=dtype)
        for name, method, sparse in (
            ("gradest", "auto", False),
            ("sparse", "sparse", False),
            ("sparse, with a sparse gradient of W", "sparse", True),
        )
    }
    weight, bias = layers["gradest"].weight, layers["gradest"].bias
    for layer in layers.values():
        layer.weight, layer.bias = weight, bias

    def dense() -> Tensor:
        return wide * linear(x, weight, bias)

    forward = {name: lambda layer=layer: layer(x, gates) for name, layer in layers.items()} | {"dense": dense}
    outputs = {name: call() for name, call in forward.items()}
    backward = {
        name: lambda out=out: torch.autograd.grad(out, (x, weight, bias), grad, retain_graph=True)
        for name, out in outputs.items()
    }
    tolerance = {"rtol": 0.1, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-4}
    for name in layers:
        torch.testing.assert_close(outputs[name], outputs["dense"], **tolerance)
        for mine, theirs in zip(backward[name](), backward["dense"](), strict=True):
            torch.testing.assert_close(mine.to_dense(), theirs, **tolerance)
    kind = str(dtype).removeprefix("torch.")
    for way, calls in (("forward", forward), ("backward", backward)):
        title = f"{way} of {batch} x {inputs} to {units} in blocks of {block}, {OPEN:.0%} open, {kind}"
        at_least = {"dense": asked} if asked and dtype == torch.float32 else None
        bench.compare(title, bench.measure(calls, turn=0.04), at_least=at_least)
