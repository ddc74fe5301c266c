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
EXPERTS = [  # examples, inputs, units, units an expert, and how many experts an example opens
    (256, 784, 2048, 64, 3),
    (1024, 784, 2048, 64, 3),
    (1024, 512, 2048, 128, 2),
    (1024, 1024, 1024, 256, 1),
]
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


@pytest.mark.parametrize(("batch", "inputs", "units", "block", "k"), EXPERTS)
def test_experts_against_equal_work(bench, batch, inputs, units, block, k):
    """Against a dense product of as many multiply-adds, whose weights are fewer, and products of each expert's own examples."""
    torch.manual_seed(0)
    experts = units // block
    gates = torch.zeros(batch, experts).scatter_(1, torch.rand(batch, experts).topk(k).indices, 1.0)
    x, grad = torch.randn(batch, inputs, requires_grad=True), torch.randn(batch, units)
    layer = ConditionalLinear(inputs, units, block_size=block, method="sparse")
    weight, bias = layer.weight, layer.bias
    fewer = [one[: k * block].detach().clone().requires_grad_() for one in (weight, bias)]
    opened = [gates[:, expert].nonzero()[:, 0] for expert in range(experts)]

    def by_expert() -> Tensor:
        out = x.new_zeros(batch, units)
        for expert, examples in enumerate(opened):
            own = slice(expert * block, (expert + 1) * block)
            out[examples, own] = linear(x[examples], weight[own], bias[own])
        return out

    forward = {
        "gradest": lambda: layer(x, gates),
        "dense, of equal work": lambda: linear(x, *fewer),
        "a product of each expert": by_expert,
    }
    outputs = {name: call() for name, call in forward.items()}
    torch.testing.assert_close(outputs["gradest"], outputs["a product of each expert"], rtol=1e-3, atol=1e-4)
    backward = {
        name: lambda out=out, given=given: torch.autograd.grad(
            out, (x, *given), grad[:, : out.shape[1]], retain_graph=True
        )
        for (name, out), given in zip(outputs.items(), [(weight, bias), fewer, (weight, bias)], strict=True)
    }
    for way, calls in (("forward", forward), ("backward", backward)):
        title = f"{way} of {batch} x {inputs} to {k} of {experts} experts of {block}, float32"
        bench.compare(title, bench.measure(calls, turn=0.04), at_least={"dense, of equal work": 0.8})
