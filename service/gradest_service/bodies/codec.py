"""Bytes to fields and tensors, and back.

A codec turns a body into named fields and an answer into a body. There are two: JSON for people, where a tensor is a nested
list, and safetensors, where it is its bytes and what else there is stands as JSON in the metadata.
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

from gradest.exchange import first_non_finite
from gradest.wire import SAFETENSORS as SAFETENSORS_TYPE
from gradest.wire import Malformed, join_tensors, pack, split_tensors, unpack
from gradest_service.admit.limits import check_elements, check_json_body
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = [
    "CODECS",
    "DTYPES",
    "JSON",
    "SAFETENSORS",
    "Codec",
    "answer_codec",
    "check_options",
    "decode_a",
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
    decode: Callable[[bytearray, Settings], dict[str, Any]]
    encode: Callable[[Any], bytes]


def _decode_json(body: bytearray, settings: Settings) -> dict[str, Any]:
    """The fields of a JSON object."""
    check_json_body(settings, len(body))
    return _parse_object(body, "The body")


def _parse_object(text: str | bytearray, what: str) -> dict[str, Any]:
    fields = parse_json(text, what)
    if not isinstance(fields, dict):
        raise Problem(422, f"{what} must be a JSON object, with the request's fields by name.")
    return fields


def parse_json(text: str | bytes | bytearray, what: str) -> Any:
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


def _decode_safetensors(body: bytearray, settings: Settings) -> dict[str, Any]:
    """The tensors by their fields' names, and the fields of the JSON object under the metadata key `request`."""
    try:
        tensors, metadata = unpack(body)
        text = metadata.get("request")
        if text is None:
            raise Malformed("its metadata has no key `request`, where the other fields stand as JSON")
        return join_tensors(_parse_object(text, "`request` in the metadata"), tensors)
    except Malformed as error:
        raise Problem(400, f"The body is not the safetensors that it should be: {error}.") from error


def _encode_safetensors(answer: BaseModel) -> bytes:
    """The tensors by their fields' names, and the other fields as JSON under the metadata key `response`."""
    rest, tensors = split_tensors(answer.model_dump(exclude={"tensors"}))  # the header tells their shapes and dtypes
    return pack(tensors, {"response": to_json(rest, inf_nan_mode="strings").decode()})


JSON = Codec("application/json", _decode_json, _encode_json)
SAFETENSORS = Codec(SAFETENSORS_TYPE, _decode_safetensors, _encode_safetensors)
CODECS = {codec.media_type: codec for codec in (JSON, SAFETENSORS)}


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
    """A tensor from a nested list, or from a tensor, of finite numbers; 422 names the place of the first fault, 413 the cap.

    shape: what the tensor must have. JSON cannot say the dims behind one of size 0, so a tensor without elements takes them
    from here.
    """
    as_json = not isinstance(value, Tensor)
    if isinstance(value, Tensor):
        numbers, found = value, tuple(value.shape)
        _check_size(field, found, settings, as_json)
        if not (value.is_floating_point() if dtype.is_floating_point else value.dtype == dtype):
            wanted = "floating point" if dtype.is_floating_point else _name(dtype)
            raise Problem(422, f"{field} must be {wanted}, not {_name(value.dtype)}.")
    else:
        flat, found = _flatten(field, value, settings)
        numbers = _to_numbers(field, flat, found, dtype)
    if shape is not None and tuple(shape) != found:
        _check_size(field, shape, settings, as_json)
        if numbers.numel() or math.prod(shape) or tuple(shape[: len(found)]) != found:
            raise Problem(422, f"{field} must have shape {list(shape)}, not {list(found)}.")
        numbers = numbers.reshape(tuple(shape))
    tensor = numbers.to(dtype)
    _check_finite(field, tensor, f" of {_name(dtype)}")
    return tensor


def decode_a(value: Any, dtype: str | None, shape: Sequence[int] | None, settings: Settings) -> Tensor:
    """The pre-activations, in `dtype`; if that is None in their own, or in float32 if they are JSON."""
    if dtype is None:
        dtype = _name(value.dtype) if isinstance(value, Tensor) else "float32"
        if dtype not in DTYPES:
            raise Problem(422, f"a must be one of {', '.join(DTYPES)}, not {dtype}.")
    return decode_tensor("a", value, DTYPES[dtype], settings, shape)


def _check_finite(field: str, tensor: Tensor, kind: str = "") -> None:
    index = first_non_finite(tensor)
    if index is not None:
        raise Problem(422, f"{_at(field, index)} is not a finite number{kind}; only finite ones are taken.")


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
        check_elements(settings, f"{field}'s options", (count,), as_json=True)
        if isinstance(leaf, Tensor):
            _check_size(f"{field}'s options", leaf.shape, settings, as_json=False)
            _check_finite(field, leaf)
        elif isinstance(leaf, float) and not math.isfinite(leaf):
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
        _check_size(field, shape, settings, as_json=True)
        level = [number for item in level for number in item]
    return level, tuple(shape)


def _check_size(field: str, shape: Sequence[int], settings: Settings, as_json: bool) -> None:
    if len(shape) > _MAX_DIMS:
        raise Problem(422, f"{field} may have {_MAX_DIMS} dims at most.")
    check_elements(settings, field, shape, as_json)


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


def answer_codec(accept: str) -> Codec:
    """The form of an answer: JSON unless an Accept header prefers safetensors."""
    return SAFETENSORS if prefers(accept, SAFETENSORS.media_type, JSON.media_type) else JSON


def prefers(accept: str, media_type: str, default: str) -> bool:
    """Whether an Accept header ranks `media_type` above `default`, by RFC 9110's quality values.

    Of two equal ones it prefers what it names over what a wildcard stands for.
    """
    return _rank(accept, media_type) > _rank(accept, default)


def _rank(accept: str, media_type: str) -> tuple[float, int]:
    """The quality of the most specific range that matches, and how specific it is."""
    ranges: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            ranges[name] = float(quality)
        except ValueError:
            ranges[name] = 0.0
    matching = ("*/*", f"{media_type.partition('/')[0]}/*", media_type)
    specific = max((rank for rank, name in enumerate(matching) if name in ranges), default=0)
    best = ranges.get(matching[specific], 0.0)
    return best, specific if best else 0
