"""A batch that is run in parts has the bits of the whole, if each part says which rows it has."""

import pytest
import torch
from torch.func import vmap

import gradest
from gradest.errors import InvalidInput
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def in_parts(run, rows):
    parts = []
    for part in rows:
        torch.manual_seed(7)
        parts.append(run(part))
    return torch.cat(parts)


@pytest.mark.parametrize("extra", [(), (3,)])
def test_a_batch_in_parts_has_the_bits_of_the_whole(extra):
    """Values, samples and gradients in `a`, whatever the size and the order of the parts."""
    a = torch.randn(8, *extra, 5)
    order = torch.tensor([6, 1, 0, 7, 2, 5, 4, 3])
    rows = order.split([2, 5, 1])

    def f(h):
        return (h.sum(-1) - 1.3) ** 2

    def gradient(layer, part, given):
        x = a[part].requires_grad_()
        h = layer(x, rows=given)
        loss = f(h)
        return torch.autograd.grad(broadcast_loss(layer, loss.flatten(1).sum(-1) if extra else loss, "sum"), x)[0]

    def of_paths(layer, part, given):
        x = a[part].requires_grad_()
        with StochasticGraph(layer, 4) as graph:
            h = layer(graph.expand(x), rows=given)
            graph.add_cost(f(h))
            return torch.autograd.grad(graph.surrogate("sum"), x)[0]

    def value(part, given):
        return gradest.expect(f, a[part], estimator="disarm", seed=7, rows=given)[0]

    layer, paths = Stochastic("bernoulli", "reinforce"), Stochastic("bernoulli", "rloo")
    expectation = Expectation("bernoulli", "arms")
    sampled = Stochastic("bernoulli", "reinforce", evaluation="sample").eval()
    for run in (
        lambda part, given: gradient(layer, part, given),
        lambda part, given: of_paths(paths, part, given),
        lambda part, given: expectation(f, a[part], rows=given),
        lambda part, given: sampled(a[part], rows=given),
        value,
    ):
        torch.manual_seed(7)
        whole = run(torch.arange(8), None)
        assert torch.equal(in_parts(lambda part, run=run: run(part, part), rows), whole[order])
        assert not torch.equal(in_parts(lambda part, run=run: run(part, None), rows), whole[order])


def test_what_rows_refuse():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    for wrong in (
        torch.arange(3),
        torch.arange(4.0),
        [0, 1, 2, 3],
        torch.zeros(4, dtype=torch.bool),
        torch.arange(4) - 1,
    ):
        with pytest.raises(InvalidInput, match="row"):
            layer(a, rows=wrong)
        with pytest.raises(InvalidInput, match="row"):
            gradest.expect(lambda h: h.sum(-1), a, rows=wrong)
    positions = torch.zeros(1, 4, 3, requires_grad=True)
    for large in (1 << 62, 1 << 30, 1 << 32):  # times 4 positions the first was that of row 0
        with pytest.raises(InvalidInput, match="row"):
            layer(positions, rows=torch.tensor([large]))
        with pytest.raises(InvalidInput, match="row"):
            gradest.expect(lambda h: h.sum(-1), positions, rows=torch.tensor([large]))
    with pytest.raises(InvalidInput, match="given twice"):
        gradest.expect(lambda h: h.sum(-1), a, seed=gradest.Key(1, rows=torch.arange(4)), rows=torch.arange(4))
    with pytest.raises(InvalidInput, match="transform"):
        vmap(lambda a, row: layer(a[None], rows=row[None]), randomness="same")(a, torch.arange(4))
    with pytest.raises(Exception, match="a compiled layer takes no rows"):
        torch.compile(layer, backend="eager", fullgraph=True)(a, rows=torch.arange(4))
