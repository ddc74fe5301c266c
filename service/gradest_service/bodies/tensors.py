"""The values of a request's fields to checked tensors: rectangular, finite, of the right shape and within the caps.

An error names the field and the index of the first fault. It never repeats a value or a name that the caller made up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradest.estimation.arguments import first_non_finite
from gradest_service.bodies.sizes import check_elements
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["DTYPES", "check_finite", "check_options", "decode_floats", "decode_state", "decode_tensor", "dtype_name"]

_MAX_OPTIONS = 100  # of a plugin
_MAX_DIMS = 32  # of a tensor in a request; torch itself stops at 64, and estimators add leading dims

_JAVASCRIPT = {  # what becomes of numbers there that look right to their author
    type(None): " but null, which is what JSON.stringify makes of NaN and Infinity",
    dict: " but an object, which is what JSON.stringify makes of a typed array; convert it with Array.from",
}

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The dtypes of pre-activations and losses, by their names in a request."""


def decode_tensor(
    field: str,
    value: Any,
    dtype: torch.dtype,
    settings: Settings,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """Convert a nested list or a tensor of finite numbers to a tensor of `dtype`.

    shape: the shape that the tensor must have. JSON cannot express the dims behind one of size 0, so a tensor without elements
        takes them from here.
    Raises a 422 that names the place of the first fault, or a 413 for a tensor over the cap.
    """
    as_json = not isinstance(value, Tensor)
    if isinstance(value, Tensor):
        numbers, found = value, tuple(value.shape)
        _check_size(field, found, settings, as_json)
        if not (value.is_floating_point() if dtype.is_floating_point else value.dtype == dtype):
            wanted = "floating point" if dtype.is_floating_point else dtype_name(dtype)
            raise Problem(422, f"{field} must be {wanted}, not {dtype_name(value.dtype)}.")
    else:
        flat, found = _flatten(field, value, settings)
        numbers = _to_numbers(field, flat, found, dtype)
    if shape is not None and tuple(shape) != found:
        _check_size(field, shape, settings, as_json)
        if numbers.numel() or math.prod(shape) or tuple(shape[: len(found)]) != found:
            raise Problem(422, f"{field} must have shape {list(shape)}, not {list(found)}.")
        numbers = numbers.reshape(tuple(shape))
    tensor = numbers.to(dtype)
    check_finite(field, tensor)
    return tensor


def decode_floats(
    field: str,
    value: Any,
    dtype: str | None,
    shape: Sequence[int] | None,
    settings: Settings,
    json_dtype: str = "float32",
) -> Tensor:
    """Convert a field to a tensor of the named `dtype`; by default a tensor keeps its dtype, and JSON becomes `json_dtype`."""
    if dtype is None:
        dtype = dtype_name(value.dtype) if isinstance(value, Tensor) else json_dtype
        if dtype not in DTYPES:
            raise Problem(422, f"{field} must be one of {', '.join(DTYPES)}, not {dtype}.")
    return decode_tensor(field, value, DTYPES[dtype], settings, shape)


def decode_state(
    estimator: str, value: Mapping[str, Any], like: Mapping[str, Tensor], settings: Settings
) -> dict[str, Tensor]:
    """Convert the state of the estimator of this name.

    Its names, dtypes and shapes must be those of `like`, the estimator's state before the first step. Raises a 422 that names
    them.
    """
    if value.keys() != like.keys():
        missing, others = [name for name in like if name not in value], len(value.keys() - like.keys())
        found = [f"it lacks {', '.join(missing)}"] if missing else []
        found += [f"it has {others} of other names"] if others else []
        wanted = (
            f"the tensors of {estimator}'s last answer, {', '.join(like)}"
            if like
            else f"none, as {estimator} has no state"
        )
        raise Problem(
            422,
            f"state must hold {wanted}; but {' and '.join(found)}. Is it another estimator's? Send null at the first step.",
        )
    return {
        name: decode_tensor(f"state.{name}", value[name], first.dtype, settings, first.shape)
        for name, first in like.items()
    }


def check_options(field: str, spec: Any, settings: Settings) -> None:
    """Refuse options that hold non-finite numbers (422) or more values than a tensor may have (413)."""
    if isinstance(spec, dict) and len(spec) > _MAX_OPTIONS:
        raise Problem(
            422, f"{field} may have at most {_MAX_OPTIONS} options, and GET /v1/{field}s lists those that it has."
        )
    for count, (place, leaf) in enumerate(_leaves(field, spec), 1):
        check_elements(settings, f"{field}'s options", (count,), as_json=True)
        if isinstance(leaf, Tensor):
            _check_size(f"{field}'s options", leaf.shape, settings, as_json=False)
            check_finite(field, leaf)
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            raise Problem(422, f"{place} is not a finite number; only finite numbers are accepted.")


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value inside, with its place; names are the caller's own, so a place has indices alone."""
    if isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(f"{place}[{index}]", item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(place, item)
    else:
        yield place, value


def _flatten(field: str, value: Any, settings: Settings) -> tuple[list[Any], tuple[int, ...]]:
    """Return the numbers of a nested list in order, and its shape; each level is checked to be rectangular."""
    level, shape = [value], list[int]()
    while level and isinstance(level[0], list):
        size = len(level[0])
        for position, item in enumerate(level):
            if not isinstance(item, list) or len(item) != size:
                raise Problem(
                    422, f"{field} is not rectangular: {_place(field, _unravel(position, shape))} differs in size."
                )
        shape.append(size)
        _check_size(field, shape, settings, as_json=True)
        level = [number for item in level for number in item]
    return level, tuple(shape)


def _check_size(field: str, shape: Sequence[int], settings: Settings, as_json: bool) -> None:
    if len(shape) > _MAX_DIMS:
        raise Problem(422, f"{field} may have at most {_MAX_DIMS} dims.")
    check_elements(settings, field, shape, as_json)


def check_finite(field: str, tensor: Tensor) -> None:
    """Raise a 422 that names the place of the first number that is not finite in the dtype of the tensor."""
    index = first_non_finite(tensor)
    if index is not None:
        kind = dtype_name(tensor.dtype)
        raise Problem(
            422, f"{_place(field, index)} is not a finite number of {kind}; only finite numbers are accepted."
        )


def _to_numbers(field: str, flat: list[Any], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the numbers as float64, or in `dtype` if that is an integer type, so that no digit is lost on the way."""
    whole = not dtype.is_floating_point
    for position, number in enumerate(flat):
        if isinstance(number, list):  # after a number, which ended the search for further dims
            place = _place(field, _unravel(position, shape))
            raise Problem(422, f"{field} is not rectangular: {place} is an array, and others beside it are numbers.")
        if type(number) is not int and (whole or type(number) is not float):
            kind = "a whole number" if whole else "a number"
            hint = _JAVASCRIPT.get(type(number), "")
            raise Problem(422, f"{_place(field, _unravel(position, shape))} is not {kind}{hint}.")
    try:
        return torch.tensor(flat, dtype=dtype if whole else torch.float64).reshape(shape)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise Problem(422, f"{field} has a whole number that {dtype_name(dtype)} cannot hold.") from error


def _unravel(position: int, shape: Sequence[int]) -> list[int]:
    index = []
    for size in reversed(shape):
        position, place = divmod(position, size)
        index.append(place)
    return index[::-1]


def _place(field: str, index: Sequence[int]) -> str:
    return f"{field}[{', '.join(map(str, index))}]" if index else field


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without the prefix `torch.`."""
    return str(dtype).removeprefix("torch.")
