"""The arrays that a client takes and returns: torch tensors, NumPy arrays, and those that NumPy can read, such as JAX's.

An array is sent by its `ArrayBytes`. A result has the kind of the array that was given: a tensor on the same device for a torch
tensor, an array of the same library where that follows the array API standard, as JAX does, and else a NumPy array. torch is
imported only where it is already in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from typing_extensions import TypeVar

from gradest.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "Array",
    "ArrayBytes",
    "ArrayLike",
    "Builder",
    "builder_like",
    "cast",
    "dtype_name",
    "is_array",
    "is_tensor",
    "to_bytes",
    "to_list",
    "to_tensor",
]


class ArrayLike(Protocol):
    """A torch tensor, a NumPy array, or an array that NumPy can read."""

    @property
    def shape(self) -> Any:
        """The sizes of its dims."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Return it as a NumPy array."""


Array = TypeVar("Array", bound=ArrayLike, default="Tensor")
"""The kind of the arrays of a call."""


@dataclass(frozen=True, eq=False)
class ArrayBytes:
    """The numbers of an array, in C order and little-endian, in a buffer that is aligned for them.

    dtype: the name that torch and NumPy have for it, such as "float32".
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Return whether the value is a torch tensor."""
    torch = sys.modules.get("torch")  # without it there are none
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Return whether the value is a torch tensor or an array. A NumPy scalar, such as numpy.float32(1), is a number."""
    if is_tensor(value):
        return True
    readable = hasattr(value, "__array__") or hasattr(value, "__dlpack__")
    return readable and not isinstance(value, type) and not _is_numpy_scalar(value)


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def dtype_name(array: Any) -> str:
    """Return the name of the dtype of an array, such as "float32"."""
    if is_tensor(array):
        return str(array.dtype).removeprefix("torch.")
    return str(_to_numpy(array).dtype.name)


def to_bytes(array: Any) -> ArrayBytes:
    """Return the numbers of an array, which may be on any device and have any strides. Raises InvalidInput if it has no bytes."""
    if is_tensor(array):
        import torch

        flat = array.detach().cpu().contiguous().reshape(-1)
        return ArrayBytes(dtype_name(array), tuple(array.shape), flat.view(torch.uint8).numpy().data)
    import numpy as np

    found = _to_numpy(array)
    if found.dtype.byteorder == ">":
        found = found.astype(found.dtype.newbyteorder("<"))
    data = np.ascontiguousarray(found).reshape(-1).view(np.uint8).data
    return ArrayBytes(str(found.dtype.name), found.shape, data)


def to_list(value: Any) -> Any:
    """Return an array as nested lists of numbers, and a NumPy scalar as a number. Raises InvalidInput for any other value."""
    if is_tensor(value):
        import torch

        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    if _is_numpy_scalar(value):
        return value.item()
    if not is_array(value):
        raise InvalidInput(f"a request cannot hold {type(value).__name__}, which is neither JSON nor an array")
    found = _to_numpy(value)
    plain = {"bool": "uint8", "bfloat16": "float32"}.get(found.dtype.name)
    return (found if plain is None else found.astype(plain)).tolist()


def cast(array: Any, dtype: str) -> Any:
    """Return an array in another dtype, given by its name."""
    if is_tensor(array):
        import torch

        return array.to(getattr(torch, dtype))
    if not hasattr(array, "astype"):
        array = _to_numpy(array)
    return array.astype(_numpy_dtype(dtype))


class Builder(Protocol):
    """Makes arrays of one kind."""

    def from_bytes(self, found: ArrayBytes) -> Any:
        """Return an array that shares the memory of the bytes, if it is on the CPU."""

    def from_list(self, numbers: Any, dtype: str, shape: Sequence[int]) -> Any:
        """Return an array of nested lists of numbers."""


def builder_like(like: Any) -> Builder:
    """Return what makes arrays of the kind of `like`, on its device."""
    if is_tensor(like):
        return _TensorBuilder(like.device)
    if like is None or _is_numpy(like) or not hasattr(like, "__array_namespace__"):
        return _NumpyBuilder(lambda array: array)
    namespace, device = like.__array_namespace__(), like.device
    return _NumpyBuilder(lambda array: namespace.asarray(array, device=device))


@dataclass(frozen=True, eq=False)
class _TensorBuilder:
    device: torch.device

    def from_bytes(self, found: ArrayBytes) -> Tensor:
        return to_tensor(found).to(self.device)

    def from_list(self, numbers: Any, dtype: str, shape: Sequence[int]) -> Tensor:
        import torch

        return torch.tensor(numbers, dtype=getattr(torch, dtype), device=self.device).reshape(tuple(shape))


@dataclass(frozen=True, eq=False)
class _NumpyBuilder:
    finish: Callable[[NDArray[Any]], Any]
    """Turns a NumPy array into the kind that is wanted."""

    def from_bytes(self, found: ArrayBytes) -> Any:
        import numpy as np

        numbers = np.frombuffer(found.data, np.uint8 if found.dtype == "bool" else _numpy_dtype(found.dtype))
        return self.finish((numbers != 0 if found.dtype == "bool" else numbers).reshape(found.shape))

    def from_list(self, numbers: Any, dtype: str, shape: Sequence[int]) -> Any:
        import numpy as np

        return self.finish(np.array(numbers, _numpy_dtype(dtype)).reshape(tuple(shape)))


def _is_numpy(array: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(array, numpy.ndarray)


def to_tensor(found: ArrayBytes) -> Tensor:
    """Return a torch tensor that shares the memory of the bytes, which must be writable."""
    import torch

    dtype: torch.dtype = getattr(torch, found.dtype)
    if not found.data.nbytes:
        return torch.empty(found.shape, dtype=dtype)
    if dtype == torch.bool:  # torch expects the bytes 0 and 1 only
        return torch.frombuffer(found.data, dtype=torch.uint8).ne(0).reshape(found.shape)
    return torch.frombuffer(found.data, dtype=dtype).reshape(found.shape)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of this name. Raises InvalidInput for bfloat16, which NumPy alone does not have."""
    import numpy as np

    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise InvalidInput(
            "NumPy has no bfloat16: `pip install ml_dtypes`, which adds it, or use float32 arrays"
        ) from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _to_numpy(array: Any) -> NDArray[Any]:
    """Return an array of any library as NumPy's. Raises InvalidInput if it cannot be read, or has a mask."""
    import numpy as np

    if isinstance(array, np.ma.MaskedArray):
        raise InvalidInput(
            "an array with a mask cannot be sent, because the mask would be lost; use array.filled(value)"
        )
    try:
        return np.asarray(array) if hasattr(array, "__array__") else np.from_dlpack(array)
    except Exception as error:  # whatever the library of the array raises
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InvalidInput(
            f"{kind} cannot be read as a NumPy array: {reason}. An array inside jax.jit or jax.grad has no values yet: call the "
            "client outside, or by jax.pure_callback"
        ) from error
