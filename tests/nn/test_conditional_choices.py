"""How ConditionalLinear computes: what is counted, which method it takes, sparse gradients, and in which precision."""

from __future__ import annotations

import pytest
import torch

from gradest.kernels import conditional
from gradest.nn.conditional import Computed
from tests.nn.conditional import dense, problem, run


@pytest.mark.parametrize("method", ["sparse", "dense"])
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("block", [1, 4])
def test_sparse_gradients_have_the_open_rows(block, kernel, method, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    layer, x, gates = problem(2, 30, 24, block, share=0.3, seed=3)
    wanted = run(layer, x, gates)
    layer.sparse_gradient, layer.method = True, method
    found = run(layer, x, gates)
    assert found[2].is_sparse
    assert found[2].is_coalesced()
    torch.testing.assert_close(found[2].to_dense(), wanted[2])
    torch.testing.assert_close(found[3], wanted[3])
    rows = (gates != 0).any(0).repeat_interleave(block).nonzero()[:, 0]
    assert 0 < len(rows) < 24
    if method == "sparse":
        assert torch.equal(found[2].indices()[0], rows)
        assert torch.equal(found[2].to_dense(), wanted[2])


def test_training_with_sparse_gradients_is_training_with_dense_ones():
    layers = [problem(6, 10, 12, 3, sparse_gradient=sparse)[0] for sparse in (True, False)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in layers]
    for step in range(5):
        _, x, gates = problem(6, 10, 12, 3, share=0.2, seed=step)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(x, gates).square().sum().backward()
            optimizer.step()
    for one, two in zip(*(layer.parameters() for layer in layers), strict=True):
        torch.testing.assert_close(one, two)


def test_what_is_computed_is_counted():
    layer, x, gates = problem(10, 7, 12, 3)
    assert layer.computed == Computed()
    assert layer.computed.share == 1
    pairs, whole = int((gates != 0).sum()), 10 * 12 * 7
    out = layer(x, gates)
    assert layer.computed == Computed(pairs * 3 * 7, whole)
    out.sum().backward()  # with respect to x and to W
    assert layer.computed == Computed(3 * pairs * 3 * 7, 3 * whole)
    assert layer.computed.share == pytest.approx(pairs / gates.numel())
    layer.computed = Computed()
    layer(x.detach(), gates).sum().backward()
    assert layer.computed == Computed(2 * pairs * 3 * 7, 2 * whole)
    layer.computed = Computed()
    layer(x.detach(), gates.requires_grad_()).sum().backward()  # forward for closed gates too
    assert layer.computed == Computed(whole + pairs * 3 * 7, 2 * whole)
    layer.method, layer.computed = "dense", Computed()
    layer(x, gates).sum().backward()
    assert layer.computed == Computed(3 * whole, 3 * whole)


def test_a_share_as_the_method_decides_by_what_is_open():
    layer, x, _ = problem(4, 6, 10, 1)
    gates = torch.zeros(4, 10)
    gates[:, :3] = 1
    for method, share in ((0.29, 1.0), (0.3, 0.3), (0, 1.0), (1, 0.3)):
        layer.method, layer.computed = method, Computed()
        layer(x, gates).sum().backward()
        assert layer.computed.share == pytest.approx(share), method


def test_auto_keeps_its_choices_and_takes_others(monkeypatch):
    from gradest.nn import conditional as module

    trials = []
    monkeypatch.setattr(module, "_faster", lambda sparse, dense: trials.append((sparse(), dense())) or "dense")
    layer, x, gates = problem(8, 6, 16, 1, share=0.2)
    layer.method = "auto"
    for _ in range(3):
        layer(x, gates).sum().backward()
    assert set(layer.choices.values()) == {"dense"}
    assert len(trials) == len(layer.choices) == 2  # forward, backward
    assert layer.computed.share == 1
    layer(x, torch.ones_like(gates))  # another share
    layer(x.repeat(2, 1), gates.repeat(2, 1))  # another number of examples
    assert len(trials) == 4
    layer.choices = dict.fromkeys(layer.choices, "sparse")
    layer.computed = Computed()
    layer(x, gates)
    assert layer.computed.share < 0.5
    assert len(trials) == 4
    layer(x, torch.zeros_like(gates))  # nothing to do needs no trial
    assert len(trials) == 4


def test_auto_takes_the_faster_one():
    import time

    from gradest.nn.conditional import _faster

    assert _faster(lambda: None, lambda: time.sleep(0.002)) == "sparse"
    assert _faster(lambda: time.sleep(0.002), lambda: None) == "dense"
    slow_at_first = iter([0.01])
    assert _faster(lambda: time.sleep(next(slow_at_first, 0)), lambda: time.sleep(0.001)) == "sparse"


@pytest.mark.parametrize("method", ["sparse", "dense", "auto"])
def test_autocast_computes_in_the_dtype_of_the_weights(method):
    layer, x, gates = problem(6, 40, 8, 2)
    wanted = run(layer, x, gates)
    layer.method = method
    with torch.autocast("cpu", torch.bfloat16):
        found = run(layer, x, gates)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16(), gates.bfloat16())
    torch.testing.assert_close(out, layer(x.bfloat16().float(), gates.bfloat16().float()))


def test_half_precision_goes_by_the_reference():
    assert conditional(torch.device("cpu"), torch.float16).__name__ == "gradest.kernels.reference.conditional"
    layer, x, gates = problem(6, 40, 8, 2, dtype=torch.float16)
    torch.testing.assert_close(layer(x, gates).double(), dense(layer, x, gates), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(70, 131), (1, 5), (0, 5), (3, 0)])
def test_gates_are_counted_as_plans_count_them(dtype, shape):
    """Closed are 0 and -0; NaN is open. float16 has the kernels in plain torch."""
    gates = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.1).to(dtype)
    gates.flatten()[:3] = torch.tensor([float("nan"), -0.0, -2.0][: gates.numel()])
    module = conditional(gates.device, dtype)
    gates = gates.float() if dtype == torch.bfloat16 else gates
    opened = sum(gate != 0 for gate in gates.flatten().tolist())
    for given in (gates, gates.T.contiguous().T):
        assert module.count(given) == module.plan(given).pairs == opened
