"""The functions of the conditional layer: they make plans, and run the kernels in threads."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import torch
from numba import cfunc
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import array
from gradest.kernels.cpu.conditional import blocks as of_blocks
from gradest.kernels.cpu.conditional import plans
from gradest.kernels.cpu.conditional import units as of_units
from gradest.kernels.cpu.tensors import run_in_team, zeros_as

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]

_PRODUCTS_PER_THREAD = 1 << 17  # fewer are not worth a thread of their own
_ARGUMENTS = 16
_Arguments = ctypes.c_int64 * _ARGUMENTS
_tuple: Any = to_fixed_tuple

# bfloat16 is passed as its bits, which are the upper half of a float32
_LIKE: dict[torch.dtype, Any] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
}


class Plan:
    """The open gates among gates `[batch, blocks]`, listed for the functions of this module.

    pairs: the number of open gates. blocks: the number of blocks that some example opens. A single example is not listed before
    the gradient of W needs it, because the other kernels read its gates themselves.
    """

    def __init__(self, gates: Tensor) -> None:
        self.gates = gates.contiguous()
        self.chunks = -(-len(gates) // plans.CHUNK)
        if len(gates) == 1:
            self.pairs = self.blocks = count(self.gates)
        else:
            self.words  # noqa: B018  # which counts them, too

    @functools.cached_property
    def words(self) -> Tensor:
        """The lists in memory, as gradest.kernels.cpu.conditional.plans describes them."""
        batch, blocks = self.gates.shape
        size = blocks + self.chunks * (blocks + 1 + min(batch, plans.CHUNK) * blocks + 1)
        words = torch.empty(size, dtype=torch.int32, device="cpu")
        given = _Arguments(batch, blocks, self.chunks, words.data_ptr(), self.gates.data_ptr())
        _function(plans.list_gates, self.gates.dtype, self.gates.dtype)(given)
        self.pairs, self.blocks = given[-1] >> 32, given[-1] & 0xFFFFFFFF
        return words


def plan(gates: Tensor) -> Plan:
    """Make the plan for gates `[batch, blocks]`. A gate is closed if it is 0; NaN is open."""
    return Plan(gates)


def count(gates: Tensor) -> int:
    """Count the open gates, without making a plan; ten times as fast as torch.count_nonzero."""
    gates = gates.contiguous()
    given = _Arguments(gates.numel(), gates.data_ptr())
    _function(plans.count_gates, gates.dtype, gates.dtype)(given)
    return int(given[-1])


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep_ungated: bool) -> tuple[Tensor, Tensor | None]:
    """Compute the same as `reference.conditional.forward`.

    x and bias are in the gates' dtype, weight in the same, or in bfloat16 for float32.
    """
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = zeros_as(x, len(x), len(weight))
    ungated = zeros_as(x, *out.shape) if keep_ungated else None
    tensors = (x, weight, bias, out)
    ungated_at = 0 if ungated is None else ungated.data_ptr()
    block = len(weight) // plan.gates.shape[1]
    _run_kernel(
        _kernels(plan, block).forward, plan, x.shape[1], weight.dtype, block, *map(Tensor.data_ptr, tensors), ungated_at
    )
    return out, ungated


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """Compute the same as `reference.conditional.grad_input`."""
    grad, weight = grad.contiguous(), weight.contiguous()
    out = grad.new_empty(len(grad), weight.shape[1])
    block, tensors = len(weight) // plan.gates.shape[1], (grad, weight, out)
    _run_kernel(
        _kernels(plan, block).grad_input, plan, weight.shape[1], weight.dtype, block, *map(Tensor.data_ptr, tensors)
    )
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the same as `reference.conditional.grad_weight`."""
    grad, x, blocks = grad.contiguous(), x.contiguous(), plan.gates.shape[1]
    units, inputs = grad.shape[1], x.shape[1]
    block = units // blocks
    # if few blocks are open, the rows of the others are zeros of the operating system's, which cost little until they are read
    fill = not compact and 2 * plan.blocks > blocks
    bias, index = x.new_zeros(units), None
    if compact:
        index = (plan.words[:blocks] >= 0).nonzero()
        index = (index * block + torch.arange(block, device=index.device)).flatten() if block > 1 else index[:, 0]
        out = x.new_empty(len(index), inputs)
    else:
        out = x.new_empty(units, inputs) if fill else zeros_as(x, units, inputs)
    tensors = (grad, x, out, bias)
    _run_kernel(
        _kernels(plan, block).grad_weight, plan, inputs, x.dtype, block, *map(Tensor.data_ptr, tensors), compact, fill
    )
    return out, bias, index


def _kernels(plan: Plan, block: int) -> Any:
    """Return the module whose kernels are faster for a plan of blocks of so many units. They have the same bits."""
    several = block >= of_blocks.FEWEST_UNITS and plan.pairs >= of_blocks.FEWEST_EXAMPLES * plan.blocks
    return of_blocks if several and len(plan.gates) > 1 else of_units


def _run_kernel(kernel: Any, plan: Plan, inputs: int, weight_dtype: torch.dtype, block: int, *rest: int) -> None:
    """Run the kernel, in as many threads as torch uses if there is enough to do.

    The tensors whose addresses it takes must stay alive meanwhile.
    """
    batch, blocks = plan.gates.shape
    words = (
        None if batch == 1 and kernel is not of_units.grad_weight else plan.words
    )  # another thread may list them again
    lists = plan.chunks, 0 if words is None else words.data_ptr(), plan.gates.data_ptr()
    given = _Arguments(batch, inputs, blocks, block, *lists, *rest)
    function = _function(kernel, plan.gates.dtype, weight_dtype)
    threads = min(torch.get_num_threads(), plan.pairs * block * inputs // _PRODUCTS_PER_THREAD)
    if threads <= 1 or not run_in_team(function, given, threads):
        function(given)


@functools.cache
def _function(kernel: Any, dtype: torch.dtype, weight_dtype: torch.dtype) -> Any:
    """Make the kernel a C function of the address of its arguments, the last of which is the counter."""
    like, weight_like, last = _LIKE[dtype], _LIKE[weight_dtype], 8 * (_ARGUMENTS - 1)

    @cfunc("void(int64)")
    def call(at: Any) -> None:
        kernel(_tuple(array(at, (_ARGUMENTS,), plans.INT64), _ARGUMENTS), at + last, like, weight_like)

    address: Any = call.address
    function: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    function.code = call  # numba frees the code together with this object
    return function
