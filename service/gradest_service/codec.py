"""Bytes to fields and tensors, and back.

A codec turns a body into named fields and an answer into a body. There is one, for JSON; another content type is another
entry of `CODECS`. A tensor is a nested list in JSON; one that a codec has decoded already is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from torch import Tensor

from gradest_service.limits import check_elements
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = [
    "CODECS",
    "DTYPES",
    "JSON",
    "Codec",
    "check_options",
    "decode_state",
    "decode_tensor",
    "find_codec",
    "parse_json",
    "prefers",
]

_MAX_DIMS = 32  # of a tensor in a request; torch itself stops at 64, and estimators put dims in front

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Codec:
    """One content type."""

    media_type: str
    decode: Callable[[bytes], dict[str, Any]]
    encode: Callable[[Any], bytes]


def _decode_json(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object."""
    fields = parse_json(body, "The body")
    if not isinstance(fields, dict):
        raise Problem(422, "The body must be a JSON object, with the request's fields by name.")
    return fields


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON. Not-a-number and infinity are let through here, to be refused where they stand."""
    try:
        return from_json(text, allow_inf_nan=True)
    except ValueError as error:
        # the reason, which names a line and a column; jiter refuses more than 200 levels of nesting
        raise Problem(400, f"{what} is not JSON: {error}.") from error


def _encode_json(answer: Any) -> bytes:
    """JSON with the non-finite numbers as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(answer, BaseModel):
        fields = answer.model_dump()
        answer = {**fields, "tensors": dict(_describe_tensors(fields))}
    return to_json(answer, inf_nan_mode="strings", fallback=_plain)


def _describe_tensors(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in fields.items():
        if isinstance(value, Tensor):
            yield prefix + name, {"shape": list(value.shape), "dtype": _name(value.dtype)}
        elif isinstance(value, dict):
            yield from _describe_tensors(value, f"{prefix}{name}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise TypeError(f"an answer cannot hold a {type(value).__name__}")


JSON = Codec("application/json", _decode_json, _encode_json)
CODECS = {codec.media_type: codec for codec in (JSON,)}


def find_codec(content_type: str) -> Codec:
    """The codec of a request's Content-Type; 415 without one."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in CODECS:
        raise Problem(415, f"Send the body with Content-Type: {' or '.join(CODECS)}.")
    return CODECS[media_type]


def decode_tensor(
    field: str,
    value: Any,
    dtype: torch.dtype,
    settings: Settings,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """A tensor from a nested list of finite numbers; 422 names the place of the first fault, 413 the cap.

    shape: what the tensor must have. JSON cannot say the dims behind one of size 0, so a tensor without elements takes them
    from here.
    """
    if isinstance(value, Tensor):
        numbers, found = value, tuple(value.shape)
        _check_size(field, found, settings)
    else:
        flat, found = _flatten(field, value, settings)
        numbers = _to_numbers(field, flat, found, dtype)
    if shape is not None and tuple(shape) != found:
        _check_size(field, shape, settings)
        if numbers.numel() or math.prod(shape) or tuple(shape[: len(found)]) != found:
            raise Problem(422, f"{field} must have shape {list(shape)}, not {list(found)}.")
        numbers = numbers.reshape(tuple(shape))
    tensor = numbers.to(dtype)
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        index = (~finite).nonzero()[0].tolist()
        raise Problem(422, f"{_at(field, index)} is not a finite number of {_name(dtype)}; only finite ones are taken.")
    return tensor


def decode_state(value: Mapping[str, Any], like: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """An estimator's state, with the names, dtypes and shapes of `like`, its state before the first step."""
    if value.keys() != like.keys():
        wanted = ", ".join(like) or "none: this estimator carries no state"
        raise Problem(422, f"state must hold these tensors, as the last answer did: {wanted}.")
    return {
        name: decode_tensor(f"state.{name}", value[name], empty.dtype, settings, empty.shape)
        for name, empty in like.items()
    }


def check_options(field: str, spec: Any, settings: Settings) -> None:
    """Refuse options with non-finite numbers (422) or with more values than a tensor may have (413)."""
    for count, (place, leaf) in enumerate(_leaves(field, spec), 1):
        check_elements(settings, f"{field}'s options", (count,))
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise Problem(422, f"{place} is not a finite number; only finite ones are taken.")


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value inside, with its place; the names are the caller's, so a place shows the indices alone."""
    if isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(f"{place}[{index}]", item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(place, item)
    else:
        yield place, value


def _flatten(field: str, value: Any, settings: Settings) -> tuple[list[Any], tuple[int, ...]]:
    """The numbers of a nested list in order, and its shape: one level after the other, each checked to be rectangular."""
    level, shape = [value], list[int]()
    while level and isinstance(level[0], list):
        size = len(level[0])
        for position, item in enumerate(level):
            if not isinstance(item, list) or len(item) != size:
                raise Problem(
                    422, f"{field} is not rectangular: {_at(field, _unravel(position, shape))} differs in size."
                )
        shape.append(size)
        _check_size(field, shape, settings)
        level = [number for item in level for number in item]
    return level, tuple(shape)


def _check_size(field: str, shape: Sequence[int], settings: Settings) -> None:
    if len(shape) > _MAX_DIMS:
        raise Problem(422, f"{field} may have {_MAX_DIMS} dims at most.")
    check_elements(settings, field, shape)


def _to_numbers(field: str, flat: list[Any], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The numbers as float64, or in an integer type where that is wanted: no digit is lost on the way to `dtype`."""
    whole = not dtype.is_floating_point
    for position, number in enumerate(flat):
        if type(number) is not int and (whole or type(number) is not float):
            kind = "a whole number" if whole else "a number"
            raise Problem(422, f"{_at(field, _unravel(position, shape))} is not {kind}.")
    try:
        return torch.tensor(flat, dtype=dtype if whole else torch.float64).reshape(shape)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise Problem(422, f"{field} holds a whole number that {_name(dtype)} cannot.") from error


def _unravel(position: int, shape: Sequence[int]) -> list[int]:
    index = []
    for size in reversed(shape):
        position, place = divmod(position, size)
        index.append(place)
    return index[::-1]


def _at(field: str, index: Sequence[int]) -> str:
    return f"{field}[{', '.join(map(str, index))}]" if index else field


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def prefers(accept: str, media_type: str, default: str) -> bool:
    """Whether an Accept header ranks `media_type` above `default`, by RFC 9110's quality values."""
    return _quality(accept, media_type) > _quality(accept, default)


def _quality(accept: str, media_type: str) -> float:
    """The quality of the most specific range that matches."""
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            ranges[name] = float(quality)
        except ValueError:
            ranges[name] = 0.0
    matching = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((ranges[name] for name in matching if name in ranges), 0.0)
