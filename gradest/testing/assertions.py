"""What the checks of the conformance kit expect of tensors: shapes, equal bits, unchanged arguments, small differences.

Each raises AssertionError with a diagnosis. The word PYTEST_DONT_REWRITE, in this docstring and in those of the checks, keeps
pytest from adding its own explanation to a failing assertion: the diagnosis is the whole message.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradest.contract.estimator import State

__all__ = ["ExpectUnchanged", "expect_close", "expect_like", "expect_own_memory", "expect_same_bits", "expect_shape"]


def expect_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Expect a tensor of this shape."""
    assert tensor.shape == torch.Size(shape), f"{name} has shape {list(tensor.shape)}, not {list(shape)}"


def expect_like(name: str, tensor: Tensor, shape: Sequence[int], a: Tensor) -> None:
    """Expect a tensor of this shape, with the dtype and the device of `a`."""
    expect_shape(name, tensor, shape)
    assert tensor.dtype == a.dtype, f"{name} is {tensor.dtype} for an input of {a.dtype}"
    assert tensor.device == a.device, f"{name} is on {tensor.device} for an input on {a.device}"


def expect_same_bits(diagnosis: str, one: Tensor, two: Tensor) -> None:
    """Expect equal shapes and equal numbers, bit for bit; `diagnosis` is the message if they are not."""
    assert torch.equal(one, two), diagnosis


def expect_close(names: str, given: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Expect the largest absolute difference to be at most `tolerance`; `names` says of which two."""
    worst = float((given - wanted).abs().max())
    assert worst <= tolerance, f"{names} differ by up to {worst:.2e}"


def expect_own_memory(name: str, tensor: Tensor, argument: Tensor) -> None:
    """Expect a tensor that a later write to the argument would not change."""
    shared = tensor.numel() and tensor.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()
    assert not shared, f"{name} shares memory with an argument, which the caller may write to: return a copy"


class ExpectUnchanged:
    """A context manager that asserts, at exit, that nothing was written to the tensors, the state or torch's global generator.

    method: the name of what runs inside.
    """

    def __init__(self, method: str, *tensors: Tensor, state: State | None = None) -> None:
        self._method = method
        self._before = [(tensor, tensor.clone(), tensor._version) for tensor in tensors]
        self._state, self._items = state, None if state is None else list(state.items())

    def __enter__(self) -> None:
        self._generator = torch.get_rng_state()

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            return
        for tensor, before, writes in self._before:
            assert tensor._version == writes, f"an argument was changed in place by {self._method}"
            expect_same_bits(f"an argument was changed in place by {self._method}", tensor, before)
        if self._state is not None and self._items is not None:
            now = list(self._state.items())
            same = [(name, id(x)) for name, x in now] == [(name, id(x)) for name, x in self._items]
            assert same, f"the mapping of the state was changed in place by {self._method}: return a new one"
        expect_same_bits("noise was taken from torch's global generator", torch.get_rng_state(), self._generator)
