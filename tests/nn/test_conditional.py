"""ConditionalLinear against the dense layer under its gates: values, gradients, bits, and what is computed."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import linear

from gradest.errors import InvalidInput, InvalidOptions
from gradest.nn import ConditionalLinear
from tests.nn.conditional import DTYPES, dense, differentiate, output_gradient, problem, run

# examples, inputs, outputs, block; odd ones reach the ends of vectors and chunks, and the weights of the last have over 1 MB
SHAPES = [
    (1, 37, 6, 1),
    (5, 64, 12, 3),
    (7, 129, 40, 8),
    (140, 20, 10, 2),
    (33, 1, 5, 5),
    (4, 91, 70, 1),
    (1, 700, 400, 1),
]


def assert_rounded(found, exact, magnitude, terms):
    """Within what rounding can do to a sum of so many products, whose magnitudes have that sum."""
    unit = torch.finfo(torch.float32 if found.dtype == torch.bfloat16 else found.dtype).eps / 2
    # two roundings for the product with the gate; a bfloat16 result is rounded once more
    bound = (terms + 2) * unit * magnitude * (1 + (terms + 2) * unit)
    if found.dtype == torch.bfloat16:
        bound = bound + torch.finfo(torch.bfloat16).eps / 2 * (exact.abs() + bound)
    excess = (found.double() - exact).abs() - bound
    assert float(excess.max()) <= 1e-300 if excess.numel() else True


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_dense_ones_to_rounding(shape, dtype, kernel, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    layer, x, gates = problem(*shape, dtype=dtype)
    batch, inputs, units, block = shape
    wide, given, w = (t.detach().double() for t in (gates.repeat_interleave(block, -1), x, layer.weight))
    bias = layer.bias.detach().double()
    out = layer(x, gates)
    found = differentiate(out, (x, layer.weight, layer.bias))
    assert {tensor.dtype for tensor in (out, *found)} == {dtype}
    assert_rounded(
        out.detach(), wide * linear(given, w, bias), wide.abs() * linear(*map(abs, (given, w, bias))), inputs + 1
    )
    assert bool((out[wide == 0] == 0).all())
    scaled = wide * output_gradient(out).double()
    formulas = (lambda s, x, w: s @ w), (lambda s, x, w: s.T @ x), (lambda s, x, w: s.sum(0))
    for mine, formula, terms in zip(found, formulas, (units, batch, batch), strict=True):
        assert_rounded(mine, formula(scaled, given, w), formula(*map(abs, (scaled, given, w))), terms)
    closed = (wide == 0).all(0)
    assert bool((found[1][closed] == 0).all())
    assert bool((found[2][closed] == 0).all())


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("method", ["sparse", "dense", "auto", 0.5])
def test_closed_gates_get_their_gradient_unless_it_is_declined(method, block):
    layer, x, gates = problem(6, 30, 8, block, dtype=torch.float64)
    layer.method = method
    gates.requires_grad_()
    out, exact = layer(x, gates), dense(layer, x, gates)
    torch.testing.assert_close(out, exact)
    inputs = (x, layer.weight, layer.bias, gates)
    for mine, theirs in zip(differentiate(out, inputs), differentiate(exact, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    layer.closed_gate_gradient = False
    exact = dense(layer, x, gates)
    out = layer(x, gates)
    torch.testing.assert_close(out, exact)
    (mine,), (theirs,) = differentiate(out, [gates]), differentiate(exact, [gates])
    closed = gates == 0
    assert 0 < int(closed.sum()) < closed.numel()
    assert bool((theirs[closed] != 0).all())
    assert bool((mine[closed] == 0).all())
    torch.testing.assert_close(mine[~closed], theirs[~closed])


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("block", [1, 3])
def test_gradients_by_finite_differences(block, closed):
    layer, x, gates = problem(3, 5, 6, block, dtype=torch.float64, closed_gate_gradient=closed)
    if not closed:  # where a gate is 0 its derivative is declined
        gates = gates.where(gates != 0, 0.5)
    gates.requires_grad_()

    def function(x, gates, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, gates))

    assert torch.autograd.gradcheck(function, (x, gates, layer.weight, layer.bias))


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4)))
def test_each_subset_of_gradients(wanted):
    layer, x, gates = problem(5, 8, 6, 2, dtype=torch.float64, closed_gate_gradient=False)
    tensors = (x, layer.weight, layer.bias, gates)
    for tensor, needed in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(needed)
    out = layer(x, gates)
    assert out.requires_grad is any(wanted)
    if any(wanted):
        out.sum().backward()
    for tensor, needed in zip(tensors, wanted, strict=True):
        assert (tensor.grad is not None) is needed
    given = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    exact = given[3].repeat_interleave(2, -1) * linear(*given[:3])
    exact.sum().backward()
    given[3].grad[gates == 0] = 0
    for tensor, other in zip(tensors, given, strict=True):
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("block", [1, 4])
def test_no_gate_open_and_all_open(block, kernel, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    layer, x, gates = problem(5, 20, 8, block, dtype=torch.float64)
    for level in (0.0, -0.0, 1.0):
        for mine, theirs in zip(
            run(layer, x, torch.full_like(gates, level)),
            run(ConditionalDense(layer), x, torch.full_like(gates, level)),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)
            assert level != 0 or not bool(mine.any())


class ConditionalDense:
    """The same parameters, dense, by plain torch."""

    def __init__(self, layer):
        self.weight, self.bias, self.block = layer.weight, layer.bias, layer.block_size

    def __call__(self, x, gates):
        return gates.repeat_interleave(self.block, -1) * linear(x, self.weight, self.bias)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("sparse_gradient", [True, False])
def test_empty_batches(sparse_gradient, kernel, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    for method in ("auto", "sparse", "dense", 0.1):
        for shape in ((0,), (3, 0), (0, 2)):
            layer = ConditionalLinear(4, 6, block_size=2, method=method, sparse_gradient=sparse_gradient)
            x, gates = torch.randn(*shape, 4, requires_grad=True), torch.zeros(*shape, 3, requires_grad=True)
            out = layer(x, gates)
            assert out.shape == (*shape, 6)
            out.sum().backward()
            assert x.grad.shape == x.shape
            assert gates.grad.shape == gates.shape
            assert not bool(layer.weight.grad.to_dense().any())
            assert not bool(layer.bias.grad.any())


@pytest.mark.parametrize("method", ["sparse", "auto", 0.5])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_of_no_units(method):
    """torch.nn.Linear takes it, and so does "dense"."""
    layer, x = ConditionalLinear(4, 0, method=method), torch.randn(3, 4, requires_grad=True)
    out = layer(x, torch.zeros(3, 0))
    assert out.shape == (3, 0)
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 4))
    assert layer.weight.grad.shape == (0, 4)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_a_gate_that_is_not_finite_is_open_and_a_closed_one_hides_what_is_not(kernel, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    layer, x, gates = problem(2, 5, 3, 1)
    gates = torch.tensor([[torch.nan, 0.0, torch.inf], [0.0, 2.0, 0.0]])
    with torch.no_grad():
        layer.weight[0, 2] = torch.inf
        layer.weight[1, 0] = 0.5
    out, grad_x, grad_weight, _ = run(layer, x, gates)
    assert torch.isnan(out[0, 0])
    assert torch.isinf(out[0, 2])
    assert out[0, 1] == out[1, 0] == out[1, 2] == 0
    assert bool(torch.isfinite(out[1]).all())
    assert bool(torch.isfinite(grad_x[1]).all())  # a dense layer has 0 · inf there
    assert torch.isnan(grad_weight[0]).all()
    assert bool(torch.isfinite(grad_weight[1]).all())


def test_shapes_strides_and_batches_of_several_dims():
    layer, x, gates = problem(24, 10, 6, 2, dtype=torch.float64)
    out, grad_x, grad_weight, grad_bias = run(layer, x, gates)
    batched = run(layer, x.reshape(2, 3, 4, 10), gates.reshape(2, 3, 4, 3))
    assert torch.equal(batched[0], out.reshape(2, 3, 4, 6))
    single = layer(x[3], gates[3])
    assert single.shape == (6,)
    assert torch.equal(single, out[3])
    strided = torch.stack([x.detach(), x.detach()], -1)[..., 0]
    assert not strided.is_contiguous()
    gates_strided = gates.T.contiguous().T
    again = layer(strided.requires_grad_(), gates_strided)
    assert torch.equal(again, out)
    weight = output_gradient(out)
    found = torch.autograd.grad(again, (strided, layer.weight, layer.bias), weight.T.contiguous().T)
    assert all(torch.equal(one, two) for one, two in zip(found, (grad_x, grad_weight, grad_bias), strict=True))
    again = layer(x, gates)
    again.sum().backward()  # the gradient that comes in is one number, expanded
    torch.testing.assert_close(layer.bias.grad, gates.repeat_interleave(2, -1).sum(0))


def test_arguments_are_left_as_they_were():
    layer, x, gates = problem(9, 20, 8, 2)
    before = [tensor.detach().clone() for tensor in (x, gates, layer.weight, layer.bias)]
    run(layer, x, gates)
    for tensor, copied in zip((x, gates, layer.weight, layer.bias), before, strict=True):
        assert torch.equal(tensor, copied)


def test_a_tensor_changed_between_forward_and_backward_is_an_error():
    layer, x, gates = problem(9, 20, 8, 2)
    out = layer(x, gates)
    gates.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gates_of_other_dtypes():
    layer, x, gates = problem(6, 10, 8, 2)
    for kind in (torch.bool, torch.int64, torch.float64, torch.uint8):
        assert torch.equal(layer(x, (gates != 0).to(kind)), layer(x, (gates != 0).float()))


def test_the_state_is_that_of_a_linear_layer():
    layer, x, gates = problem(6, 10, 8, 2)
    plain = torch.nn.Linear(10, 8)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x, gates), gates.repeat_interleave(2, -1) * plain(x))
    assert torch.equal(layer(x), plain(x))
    layer.load_state_dict(torch.nn.Linear(10, 8).state_dict())
    layer.choices["key",] = "dense"
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, gates), layer(x, gates))
        assert other.choices == layer.choices
    assert "block_size=2, method=sparse" in repr(layer)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["sparse", "dense"])
def test_views_that_negate_are_read_as_the_numbers_they_are(method, dtype, kernel, monkeypatch):
    """As of an imaginary part of a conjugate. The kernels read memory, which holds the opposite numbers."""
    monkeypatch.setenv("GRADEST_KERNELS", kernel)
    layer, x, gates = problem(6, 10, 8, 2, dtype)
    layer.method = method
    negated = torch._neg_view(-x.detach()).requires_grad_()
    out, right = layer(negated, torch._neg_view(-gates)), layer(x, gates)
    assert torch.equal(out, right)
    grad = output_gradient(out)
    found = torch.autograd.grad(out, [negated, layer.weight, layer.bias], torch._neg_view(-grad))
    for one, other in zip(found, torch.autograd.grad(right, [x, layer.weight, layer.bias], grad), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", ["sparse", "dense", "auto", 0.5])
def test_a_recorded_program_depends_on_its_input(method):
    """make_fx had the output of the kernels as a constant."""
    layer, x, gates = problem(6, 10, 8, 2)
    layer.method = method
    given, others = (x.detach(), gates), (torch.randn(6, 10), (torch.rand(6, 4) < 0.5).float())
    for program in (make_fx(layer)(*given), torch.jit.trace(layer, given)):
        torch.testing.assert_close(program(*others), layer(*others))


@pytest.mark.parametrize("method", ["sparse", "dense"])
def test_without_a_bias(method):
    layer, x, gates = problem(6, 10, 8, 2, bias=False)
    layer.method = method
    out = layer(x, gates)
    torch.testing.assert_close(out.double(), dense(layer, x, gates))
    (grad,) = differentiate(out, [layer.weight])
    torch.testing.assert_close(grad, differentiate(dense(layer, x, gates), [layer.weight])[0])


def test_a_second_derivative_is_refused():
    layer, x, gates = problem(3, 4, 2, 1)
    (grad,) = torch.autograd.grad(layer(x, gates).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_breaks_the_graph_there():
    layer, x, gates = problem(6, 10, 8, 2)
    compiled = torch.compile(lambda x, gates: layer(x * 2, gates).square().sum(), backend="eager")
    assert torch.equal(compiled(x, gates), layer(x * 2, gates).square().sum())
    compiled(x, gates).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(layer(x * 2, gates).square().sum(), x)[0])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a ConditionalLinear layer with gates breaks the graph"):
        torch.compile(lambda x, gates: layer(x * 2, gates), backend="eager", fullgraph=True)(x, gates)


@pytest.mark.parametrize(
    ("x", "gates", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), r"x must be \[\*batch, 4\] for this layer, not \[3, 5\]"),
        (torch.zeros(()), torch.zeros(4), r"x must be \[\*batch, 4\]"),
        (
            torch.zeros(3, 4),
            torch.zeros(3, 8),
            r"gates must be \[\*batch, 4\], one for each block of 2.*\[3, 4\] for x of \[3, 4\], not \[3, 8\]",
        ),
        (torch.zeros(3, 4), torch.zeros(1, 4), r"\[3, 4\] for x of \[3, 4\], not \[1, 4\]"),
        (torch.zeros(3, 4), torch.zeros(4), r"\[3, 4\] for x of \[3, 4\], not \[4\]"),
        (torch.zeros(3, 4).double(), torch.zeros(3, 4), "x has dtype torch.float64, but the layer has torch.float32"),
        (torch.zeros(3, 4), torch.zeros(3, 4, device="meta"), "gates on meta and the layer on cpu; move them together"),
    ],
)
def test_what_does_not_fit_is_named(x, gates, message):
    with pytest.raises(InvalidInput, match=message):
        ConditionalLinear(4, 8, block_size=2)(x, gates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 3}, "block_size=3 does not divide 8 outputs"),
        ({"block_size": 0}, "block_size=0 does not divide"),
        ({"method": "fast"}, "method must be .* not 'fast'"),
        ({"method": 1.5}, "a share from 0 to 1, not 1.5"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(InvalidOptions, match=message):
        ConditionalLinear(4, 8, **options)
