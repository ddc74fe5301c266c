"""ConditionalLinear: a linear layer under gates that computes only what the gates let through."""

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
_SMALL = 4096  # gates of which a plan is made as fast as they are counted


class Computed:
    """Multiply-adds that were done, and those of a layer that does all of them, forward and backward."""

    def __init__(self, done: int = 0, of: int = 0) -> None:
        self.of = of
        self._done: int | Tensor = done

    def add(self, done: int | Tensor, of: int) -> None:
        """Add to both; a number on a device is added there, and waited for only by who asks."""
        self.of += of
        self._done = self._done + done

    @property
    def done(self) -> int:
        """How many were done."""
        self._done = int(self._done)
        return self._done

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Computed) and (self.done, self.of) == (other.done, other.of)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Computed(done={self.done}, of={self.of})"

    @property
    def share(self) -> float:
        """done / of; 1 before the first call."""
        return self.done / self.of if self.of else 1.0


class ConditionalLinear(nn.Linear):
    """`layer(x, gates)` is gates * (x W^T + b), and only what the open gates let through is computed.

    x `[*batch, in_features]`, gates `[*batch, out_features / block_size]`, output `[*batch, out_features]`. A gate is closed
    if it is 0 (NaN is open), and open or closed for `block_size` units beside each other. Without gates it is the
    torch.nn.Linear whose parameters it has. Source: Bengio, Léonard and Courville 2013 (arXiv 1308.3432), section 5.

    closed_gate_gradient: whether gates that require a gradient get it where they are closed, as straight-through estimators
        need: dL/dgate is the sum of dL/dout (x W^T + b) over the block, for which the forward pass computes all of x W^T.
        Without it closed gates get 0, which suits estimators that go by the loss, and forward skips what is closed. Gates that
        require no gradient cost nothing either way.
    sparse_gradient: give W a sparse gradient, of the rows alone that an example opened, as torch.nn.Embedding does; for
        optimisers that take it, such as SGD. A dense one has as many zeros to write as W has closed rows.
    method: "sparse" skips what is closed; "dense" computes all and multiplies; a number is "sparse" where no larger share of the
        gates is open, and "dense" otherwise. "auto" is the faster one, found by trying both at the first call for each number
        of examples (to a factor of 2) and share of open gates (to √2), and kept in `choices`; on other devices than the CPU it
        is "dense". The two differ by rounding: runs that must repeat to the bit do not leave it to "auto", or take over the
        choices of another layer. Of the passes that skip, on the CPU in float32, float64 and bfloat16, the bits depend neither
        on the batch around an example nor on the number of threads.

    Output and gradients are those of the dense layer, but for the order of sums: with n the number of products in a sum and u
    the unit roundoff of the dtype, each differs from the exact sum by at most (n + 2) u Σ|products|, and those of the dense layer
    as much again. Sums of bfloat16 are in float32, and rounded once. What is closed has an output of exactly 0, and a row of W
    that no example opens a gradient of exactly 0, also if the dense layer has 0 · inf = NaN there.

    Under autocast it computes in the dtype of its weights. It has no second derivative. `computed` counts multiply-adds; set it
    to `Computed()` to count anew.
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
                f"blocks of {block_size} do not divide {out_features} outputs; choose a block_size that does"
            )
        if method not in ("auto", "sparse", "dense") and not (isinstance(method, float | int) and 0 <= method <= 1):
            raise InvalidOptions(f'method is "auto", "sparse", "dense" or a share from 0 to 1, not {method!r}')
        super().__init__(in_features, out_features, bias, device, dtype)
        self.block_size, self.method = block_size, method
        self.closed_gate_gradient, self.sparse_gradient = closed_gate_gradient, sparse_gradient
        self.choices: dict[tuple[Any, ...], str] = {}
        self.computed = Computed()

    def extra_repr(self) -> str:
        """As that of torch.nn.Linear."""
        return f"{super().extra_repr()}, block_size={self.block_size}, method={self.method}"

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """gates * (x W^T + b). Raises InvalidInput for shapes or dtypes that do not fit."""
        if gates is None:
            return super().forward(x)
        # the decorator takes as long as the rest of the call's bookkeeping
        return self._compiled(x, gates) if torch.compiler.is_compiling() else self._forward(x, gates)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _compiled(self, x: Tensor, gates: Tensor) -> Tensor:
        return self._forward(x, gates)

    def _forward(self, x: Tensor, gates: Tensor) -> Tensor:
        self._check(x, gates)
        batch, weight = x.shape[:-1], self.weight
        if len(batch) != 1:  # a view costs as much as a tenth of the arithmetic of one example
            x, gates = x.reshape(batch.numel(), x.shape[-1]), gates.reshape(batch.numel(), gates.shape[-1])
        with _without_autocast(x.device):
            out: Tensor = _Gated.apply(_to(x, weight.dtype), _to(gates, weight.dtype), weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out if len(batch) == 1 else out.reshape(*batch, self.out_features)

    def _check(self, x: Tensor, gates: Tensor) -> None:
        blocks = self.out_features // self.block_size
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise InvalidInput(f"x is [*batch, {self.in_features}] for this layer; it is {list(x.shape)}")
        if gates.shape != (*x.shape[:-1], blocks):
            raise InvalidInput(
                f"gates are [*batch, {blocks}], one a block of {self.block_size} of the {self.out_features} outputs, and for x "
                f"of {list(x.shape)} that is {[*x.shape[:-1], blocks]}; they are {list(gates.shape)}"
            )
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InvalidInput(f"x is of {x.dtype}, and the layer of {self.weight.dtype}; convert one of them")
        if not x.device == gates.device == self.weight.device:
            raise InvalidInput(
                f"x is on {x.device}, the gates on {gates.device} and the layer on {self.weight.device}; move them together"
            )


class _Gated(torch.autograd.Function):
    """x `[examples, inputs]`, gates `[examples, blocks]`, W, b or None, and the layer, to the output `[examples, units]`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, layer: ConditionalLinear
    ) -> Tensor:
        keep, use = ctx.needs_input_grad[1], _Use(layer, gates, weight)

        def dense() -> tuple[Tensor, Tensor | None]:
            y = linear(x, weight, bias)
            return use.gated(y), y if keep else None

        if keep and layer.closed_gate_gradient:
            method, (out, experts) = "dense", dense()
        else:
            method, (out, experts) = use.fastest(("forward", keep), lambda: use.forward(x, bias, keep), dense)
        use.count(method)
        ctx.use, ctx.closed_too = use, method == "dense"
        ctx.save_for_backward(x, gates, weight, experts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, weight, experts = ctx.saved_tensors
        use, (need_x, need_gates, need_weight, need_bias, _) = ctx.use, ctx.needs_input_grad
        grad_gates = None
        if need_gates:
            grad_gates = (grad * experts).reshape(*gates.shape, use.layer.block_size).sum(-1)
            if ctx.closed_too and not use.layer.closed_gate_gradient:
                grad_gates = grad_gates.where(gates != 0, 0)
        if not (need_x or need_weight or need_bias):
            return None, grad_gates, None, None, None

        def dense() -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            scaled, grad_weight = use.gated(grad), None
            if need_weight:
                grad_weight = scaled.T @ x
                if use.layer.sparse_gradient:
                    grad_weight = _of_rows(torch.arange(len(weight), device=weight.device), grad_weight, weight)
            return scaled @ weight if need_x else None, grad_weight, scaled.sum(0) if need_bias else None

        with _without_autocast(grad.device):
            needs = need_x, need_weight
            method, found = use.fastest(
                ("backward", *needs), lambda: use.backward(x, grad, need_x, need_weight or need_bias), dense
            )
        use.count(method, sum(needs))
        return found[0], grad_gates, found[1] if need_weight else None, found[2] if need_bias else None, None


class _Use:
    """One use of a layer, by one method or the other."""

    def __init__(self, layer: ConditionalLinear, gates: Tensor, weight: Tensor) -> None:
        self.layer, self.gates, self.weight = layer, gates, weight
        self.kernels = kernels.conditional(weight.device, weight.dtype)
        self.wide = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype

    @functools.cached_property
    def plan(self) -> Any:
        """Which examples open which block."""
        return self.kernels.plan(_to(self.gates, self.wide))

    def fastest(self, what: tuple[Any, ...], sparse: Callable[[], _T], dense: Callable[[], _T]) -> tuple[str, _T]:
        """The method of the layer, or the faster one if it is "auto", and what it gives."""
        method: str | float = self.layer.method
        if method == "auto":
            method = self._choice(what, sparse, dense)
        elif method not in ("sparse", "dense"):
            method = "sparse" if self.pairs <= float(method) * self.gates.numel() else "dense"
        return str(method), (sparse if method == "sparse" else dense)()

    @functools.cached_property
    def pairs(self) -> int:
        """How many gates are open."""
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
        """Add to what the layer has computed: a pass is the forward one, or the gradient with respect to x or to W."""
        inputs, units, examples = self.layer.in_features, self.layer.out_features, len(self.gates)
        whole = passes * examples * units * inputs
        done = whole if method == "dense" else passes * self.layer.block_size * inputs * self.plan.pairs
        self.layer.computed.add(done, whole)

    def gated(self, y: Tensor) -> Tensor:
        """gates * y."""
        return (y.reshape(*self.gates.shape, -1) * self.gates[..., None]).flatten(1) if y.numel() else y

    def forward(self, x: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        """The output, and x W^T + b at open gates if it is to be kept."""
        bias = self.weight.new_zeros(len(self.weight)) if bias is None else bias
        given = _to(x, self.wide), self.weight, _to(bias, self.wide)
        out, experts = self.kernels.forward(self.plan, *given, keep)
        return _to(out, x.dtype), experts

    def backward(
        self, x: Tensor, grad: Tensor, need_x: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients with respect to x, and to W and b."""
        dtype, grad = grad.dtype, _to(grad, self.wide)
        grad_x = _to(self.kernels.grad_input(self.plan, grad, self.weight), dtype) if need_x else None
        if not need_weight:
            return grad_x, None, None
        compact = self.layer.sparse_gradient
        grad_weight, grad_bias, index = self.kernels.grad_weight(self.plan, grad, _to(x, self.wide), compact)
        grad_weight, grad_bias = _to(grad_weight, dtype), _to(grad_bias, dtype)
        return grad_x, _of_rows(index, grad_weight, self.weight) if compact else grad_weight, grad_bias


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself where nothing is to be done, ten times as fast as torch finds that out."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _of_rows(index: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(index[None], rows, like.shape, is_coalesced=True, check_invariants=False)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def _faster(sparse: Callable[[], Any], dense: Callable[[], Any]) -> str:
    """Each three times, in turn; the best time of each counts, so that a first call may compile."""
    calls = {"sparse": sparse, "dense": dense}
    seconds = dict.fromkeys(calls, math.inf)
    for _ in range(3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(seconds, key=lambda name: seconds[name])
