"""ConditionalLinear: a linear layer whose outputs are multiplied by gates, and which skips the outputs of closed gates."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from gradest import kernels
from gradest.errors import InvalidInput, InvalidOptions

__all__ = ["Computed", "ConditionalLinear", "Method"]

Method = Literal["auto", "sparse", "dense"]
_T = TypeVar("_T")
_SMALL = 4096  # for at most this many gates, making a plan is as fast as counting them


class Computed:
    """A count of multiply-adds, forward and backward: those that were computed, and those that the dense layer would compute."""

    def __init__(self, done: int = 0, of: int = 0) -> None:
        self.of = of
        self._done: int | Tensor = done

    def add(self, done: int | Tensor, of: int) -> None:
        """Add to both counts. A tensor on a device is added there; only reading `done` waits for it."""
        self.of += of
        self._done = self._done + done

    @property
    def done(self) -> int:
        """The number of multiply-adds that were computed."""
        self._done = int(self._done)
        return self._done

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Computed) and (self.done, self.of) == (other.done, other.of)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Computed(done={self.done}, of={self.of})"

    @property
    def share(self) -> float:
        """done / of, or 1 before the first call."""
        return self.done / self.of if self.of else 1.0


class ConditionalLinear(nn.Linear):
    """A linear layer under gates: `layer(x, gates)` is gates * (x W^T + b), computed only for the units of open gates.

    x is `[*batch, in_features]`, gates are `[*batch, out_features / block_size]`, the output is `[*batch, out_features]`. A gate
    is closed if it is 0 (NaN counts as open); each gate belongs to `block_size` adjacent units. Called without gates, the layer
    is the torch.nn.Linear with the same parameters. Source: Bengio, Léonard and Courville (2013), arXiv 1308.3432, section 5.

    closed_gate_gradient: whether closed gates receive their gradient, as straight-through estimators need. dL/dgate is the sum of
        dL/dout (x W^T + b) over the block, so the forward pass then computes all of x W^T. If it is False, closed gates receive
        0, which is enough for estimators that use the loss alone, and the forward pass skips their units. Gates that do not
        require a gradient cost nothing in either case.
    sparse_gradient: whether the gradient of W is a sparse tensor that holds only the rows opened by some example, as that of
        torch.nn.Embedding, for optimisers that accept it, such as SGD. A dense gradient costs the writing of zeros for all other
        rows.
    method: "sparse" skips the units of closed gates. "dense" computes all units and multiplies. A number means "sparse" if at
        most that share of the gates is open, and "dense" otherwise. "auto" tries both at the first call for each number of
        examples (to a factor of 2) and share of open gates (to √2), takes the faster, and records it in `choices`; on devices
        other than the CPU it is "dense". The two methods round differently, so runs that must repeat to the bit set the method,
        or copy the `choices` of another layer. The bits of "sparse" on the CPU, in float32, float64 and bfloat16, depend neither
        on the batch around an example nor on the number of threads.

    Output and gradients equal those of the dense layer up to the order of summation. If a sum has n products and u is the unit
    roundoff of the dtype, each differs from the exact sum by at most (n + 2) u Σ|products|, and so does the dense layer. Sums of
    bfloat16 are in float32 and rounded once. A closed unit has an output of exactly 0, and a row of W that no example opens has a
    gradient of exactly 0, even where the dense layer would have 0 · inf = NaN.

    Under autocast the layer computes in the dtype of its weights. It has no second derivative. `computed` counts multiply-adds;
    set it to `Computed()` to restart the count. Raises InvalidOptions for a block size or a method that is not possible.

    >>> import torch, gradest
    >>> layer = gradest.nn.ConditionalLinear(8, 4)
    >>> gates = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    >>> (layer(torch.randn(1, 8), gates) == 0).tolist()
    [[False, True, True, False]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        block_size: int = 1,
        *,
        method: Method | float = "auto",
        closed_gate_gradient: bool = True,
        sparse_gradient: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if block_size < 1 or out_features % block_size:
            raise InvalidOptions(
                f"block_size={block_size} does not divide {out_features} outputs; choose one that does"
            )
        super().__init__(in_features, out_features, bias, device, dtype)
        self._block_size, self.method = block_size, method
        self.closed_gate_gradient, self.sparse_gradient = closed_gate_gradient, sparse_gradient
        self.choices: dict[tuple[Any, ...], str] = {}
        self.computed = Computed()

    @property
    def block_size(self) -> int:
        """The number of adjacent units of each gate."""
        return self._block_size

    @property
    def method(self) -> Method | float:
        """How the layer computes. Assigning what the constructor refuses raises InvalidOptions."""
        return self._method

    @method.setter
    def method(self, method: Method | float) -> None:
        if method not in ("auto", "sparse", "dense") and not (isinstance(method, float | int) and 0 <= method <= 1):
            raise InvalidOptions(f'method must be "auto", "sparse", "dense" or a share from 0 to 1, not {method!r}')
        self._method = method

    def extra_repr(self) -> str:
        """Return the settings of the layer, for its repr."""
        return f"{super().extra_repr()}, block_size={self.block_size}, method={self.method}"

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Return gates * (x W^T + b). Raises InvalidInput for shapes, dtypes or devices that do not fit."""
        if gates is None:
            return super().forward(x)
        if torch.compiler.is_compiling():
            from gradest.nn.outside import conditional_forward  # noqa: PLC0415  # it imports the compiler

            return conditional_forward(self._forward, x, gates)
        return self._forward(x, gates)

    def _forward(self, x: Tensor, gates: Tensor) -> Tensor:
        self._check(x, gates)
        batch, weight = x.shape[:-1], self.weight
        if len(batch) != 1:  # a view costs a tenth of the arithmetic of one example
            x, gates = x.reshape(batch.numel(), x.shape[-1]), gates.reshape(batch.numel(), gates.shape[-1])
        with _without_autocast(x.device):
            out: Tensor = _GatedLinear.apply(_to(x, weight.dtype), _to(gates, weight.dtype), weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out if len(batch) == 1 else out.reshape(*batch, self.out_features)

    def _check(self, x: Tensor, gates: Tensor) -> None:
        blocks = self.out_features // self.block_size
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise InvalidInput(f"x must be [*batch, {self.in_features}] for this layer, not {list(x.shape)}")
        if gates.shape != (*x.shape[:-1], blocks):
            raise InvalidInput(
                f"gates must be [*batch, {blocks}], one for each block of {self.block_size} of the {self.out_features} outputs: "
                f"{[*x.shape[:-1], blocks]} for x of {list(x.shape)}, not {list(gates.shape)}"
            )
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InvalidInput(f"x has dtype {x.dtype}, but the layer has {self.weight.dtype}; convert one of them")
        if not x.device == gates.device == self.weight.device:
            raise InvalidInput(
                f"x is on {x.device}, the gates on {gates.device} and the layer on {self.weight.device}; move them together"
            )


class _GatedLinear(torch.autograd.Function):
    """Maps x `[examples, inputs]`, gates `[examples, blocks]`, W, b or None, and the layer to the output `[examples, units]`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, layer: ConditionalLinear
    ) -> Tensor:
        keep, call = ctx.needs_input_grad[1], _GatedCall(layer, gates, weight)

        def dense() -> tuple[Tensor, Tensor | None]:
            y = linear(x, weight, bias)
            return call.apply_gates(y), y if keep else None

        if keep and layer.closed_gate_gradient:
            method, (out, experts) = "dense", dense()
        else:
            method, (out, experts) = call.fastest(("forward", keep), lambda: call.forward(x, bias, keep), dense)
        call.count(method)
        ctx.call, ctx.closed_too = call, method == "dense"
        ctx.save_for_backward(x, gates, weight, experts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, weight, experts = ctx.saved_tensors
        call, (need_x, need_gates, need_weight, need_bias, _) = ctx.call, ctx.needs_input_grad
        grad_gates = None
        if need_gates:
            grad_gates = (grad * experts).reshape(*gates.shape, call.layer.block_size).sum(-1)
            if ctx.closed_too and not call.layer.closed_gate_gradient:
                grad_gates = grad_gates.where(gates != 0, 0)
        if not (need_x or need_weight or need_bias):
            return None, grad_gates, None, None, None

        def dense() -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            scaled, grad_weight = call.apply_gates(grad), None
            if need_weight:
                grad_weight = scaled.T @ x
                if call.layer.sparse_gradient:
                    grad_weight = _of_rows(torch.arange(len(weight), device=weight.device), grad_weight, weight)
            return scaled @ weight if need_x else None, grad_weight, scaled.sum(0) if need_bias else None

        with _without_autocast(grad.device):
            needs = need_x, need_weight
            method, found = call.fastest(
                ("backward", *needs), lambda: call.backward(x, grad, need_x, need_weight or need_bias), dense
            )
        call.count(method, sum(needs))
        return found[0], grad_gates, found[1] if need_weight else None, found[2] if need_bias else None, None


class _GatedCall:
    """One call of a layer: its gates, and the kernels and method that compute it."""

    def __init__(self, layer: ConditionalLinear, gates: Tensor, weight: Tensor) -> None:
        self.layer, self.gates, self.weight = layer, gates, weight
        self.kernels = kernels.conditional(weight.device, weight.dtype)
        self.wide = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype

    @functools.cached_property
    def plan(self) -> Any:
        """The lists of examples that open each block, as the kernels take them."""
        return self.kernels.plan(_to(self.gates, self.wide))

    def fastest(self, what: tuple[Any, ...], sparse: Callable[[], _T], dense: Callable[[], _T]) -> tuple[str, _T]:
        """Run the layer's method, or the faster of the two if it is "auto". Return the method and its result."""
        plain = kernels.recorded() or not self.layer.out_features
        method: str | float = "dense" if plain else self.layer.method
        if method == "auto":
            method = self._choice(what, sparse, dense)
        elif method not in ("sparse", "dense"):
            method = "sparse" if self.pairs <= float(method) * self.gates.numel() else "dense"
        return str(method), (sparse if method == "sparse" else dense)()

    @functools.cached_property
    def pairs(self) -> int:
        """The number of open gates."""
        small = self.gates.numel() <= _SMALL
        return int(self.plan.pairs if small else self.kernels.count(_to(self.gates, self.wide)))

    def _choice(self, what: tuple[Any, ...], sparse: Callable[[], Any], dense: Callable[[], Any]) -> str:
        if self.gates.device.type != "cpu":
            return "dense"
        if not self.pairs:
            return "sparse"
        share = math.floor(2 * math.log2(self.pairs / self.gates.numel()))
        key = (*what, str(self.gates.dtype), torch.get_num_threads(), len(self.gates).bit_length(), share)
        choices = self.layer.choices
        if key not in choices:
            choices[key] = _faster(sparse, dense)
        return choices[key]

    def count(self, method: str, passes: int = 1) -> None:
        """Add passes to the layer's count. A pass is the forward pass, the gradient in x, or the gradient in W."""
        inputs, units, examples = self.layer.in_features, self.layer.out_features, len(self.gates)
        whole = passes * examples * units * inputs
        done = whole if method == "dense" else passes * self.layer.block_size * inputs * self.plan.pairs
        self.layer.computed.add(done, whole)

    def apply_gates(self, y: Tensor) -> Tensor:
        """Return gates * y."""
        return (y.reshape(*self.gates.shape, -1) * self.gates[..., None]).flatten(1) if y.numel() else y

    def forward(self, x: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output and, if `keep`, x W^T + b at open gates."""
        bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias
        given = _to(x, self.wide), self.weight, _to(bias, self.wide)
        out, experts = self.kernels.forward(self.plan, *given, keep)
        return _to(out, x.dtype), experts

    def backward(
        self, x: Tensor, grad: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients in x, in W and in b."""
        dtype, grad = grad.dtype, _to(grad, self.wide)
        grad_x = _to(self.kernels.grad_input(self.plan, grad, self.weight), dtype) if need_x else None
        if not need_weight:
            return grad_x, None, None
        compact = self.layer.sparse_gradient
        grad_weight, grad_bias, index = self.kernels.grad_weight(self.plan, grad, _to(x, self.wide), compact)
        grad_weight, grad_bias = _to(grad_weight, dtype), _to(grad_bias, dtype)
        return grad_x, _of_rows(index, grad_weight, self.weight) if compact else grad_weight, grad_bias


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to the dtype, and a view that negates to its values. For other tensors it is ten times as fast as `Tensor.to`."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()  # kernels read memory
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _of_rows(index: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(index[None], rows, like.shape, is_coalesced=True, check_invariants=False)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def _faster(sparse: Callable[[], Any], dense: Callable[[], Any]) -> str:
    """Return the name of the faster method. Each runs three times, in turn, and its best time counts: the first may compile."""
    calls = {"sparse": sparse, "dense": dense}
    seconds = dict.fromkeys(calls, math.inf)
    for _ in range(3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(seconds, key=lambda name: seconds[name])
