"""The two content types of bodies: JSON, where a tensor is a nested array, and safetensors, where it is its bytes.

A codec decodes a request's body to named fields and encodes an answer to a body. In safetensors, the fields that are no tensors
are JSON text in the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import from_json, to_json
from torch import Tensor

from gradest.client.wire import SAFETENSORS as SAFETENSORS_TYPE
from gradest.client.wire import Malformed, join_tensors, pack, split_tensors, unpack
from gradest_service.bodies.sizes import check_json_bytes
from gradest_service.bodies.tensors import dtype_name
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["CODECS", "JSON", "SAFETENSORS", "Codec", "answer_codec", "parse_json", "prefers", "request_codec"]

_ACCEPT_HEADERS = 64  # that are kept in mind; clients have few


@dataclass(frozen=True)
class Codec:
    """One content type."""

    media_type: str
    decode: Callable[[bytearray, Settings], dict[str, Any]]
    encode: Callable[[Any], bytes]


def _decode_json(body: bytearray, settings: Settings) -> dict[str, Any]:
    """Return the fields of a JSON object."""
    check_json_bytes(settings, len(body))
    return _parse_object(body, "The body")


def _parse_object(text: str | bytearray, what: str) -> dict[str, Any]:
    fields = parse_json(text, what)
    if not isinstance(fields, dict):
        raise Problem(422, f"{what} must be a JSON object, with the request's fields by name.")
    return fields


def parse_json(text: str | bytes | bytearray, what: str) -> Any:
    """Parse JSON; raises a 400 that names `what`.

    It accepts NaN and infinity, which are refused later, where the error can name their place.
    """
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError as error:
            raise Problem(400, f"{what} has half of a surrogate pair, which is no character.") from error
    try:
        return from_json(text, allow_inf_nan=True)
    except ValueError as error:
        # the reason names a line and a column, and no text; the parser refuses more than 200 levels of nesting
        raise Problem(400, f"{what} is not JSON: {error}.") from error


def _encode_json(answer: Any) -> bytes:
    """Encode an answer as JSON, with non-finite numbers as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(answer, BaseModel):
        fields = answer.model_dump()
        answer = {**fields, "tensors": dict(_describe_tensors(fields))}
    return to_json(answer, inf_nan_mode="strings", fallback=_to_list)


def _describe_tensors(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in fields.items():
        if isinstance(value, Tensor):
            yield prefix + name, {"shape": list(value.shape), "dtype": dtype_name(value.dtype)}
        elif isinstance(value, dict):
            yield from _describe_tensors(value, f"{prefix}{name}.")


def _to_list(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise TypeError(f"an answer cannot hold a {type(value).__name__}")


def _decode_safetensors(body: bytearray, settings: Settings) -> dict[str, Any]:
    """Return the tensors by their fields' names, and the fields of the JSON object under the metadata key `request`."""
    try:
        tensors, metadata = unpack(body)
        text = metadata.get("request")
        if text is None:
            raise Malformed("its metadata has no key `request`, which holds the other fields as JSON")
        return join_tensors(_parse_object(text, "`request` in the metadata"), tensors)
    except Malformed as error:
        raise Problem(400, f"The body is not valid safetensors of a request: {error}.") from error


def _encode_safetensors(answer: BaseModel) -> bytes:
    """Encode the tensors by their fields' names, and the other fields as JSON under the metadata key `response`."""
    rest, tensors = split_tensors(answer.model_dump(exclude={"tensors"}))  # the header has their shapes and dtypes
    return pack(tensors, {"response": to_json(rest, inf_nan_mode="strings").decode()})


JSON = Codec("application/json", _decode_json, _encode_json)
SAFETENSORS = Codec(SAFETENSORS_TYPE, _decode_safetensors, _encode_safetensors)
CODECS = {codec.media_type: codec for codec in (JSON, SAFETENSORS)}


def request_codec(content_type: str) -> Codec:
    """Return the codec of a request's Content-Type; raises a 415 if there is none."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in CODECS:
        raise Problem(415, f"Send the body with Content-Type: {' or '.join(CODECS)}.")
    return CODECS[media_type]


def answer_codec(accept: str) -> Codec:
    """Return the codec of an answer: JSON unless the Accept header prefers safetensors."""
    return SAFETENSORS if prefers(accept, SAFETENSORS.media_type, JSON.media_type) else JSON


@lru_cache(_ACCEPT_HEADERS)
def prefers(accept: str, media_type: str, default: str) -> bool:
    """Tell whether an Accept header ranks `media_type` above `default`, by RFC 9110's quality values.

    Of two with equal quality it prefers the one that it names to the one that a wildcard matches.
    """
    return _rank(accept, media_type) > _rank(accept, default)


def _rank(accept: str, media_type: str) -> tuple[float, int]:
    """Return the quality of the most specific range that matches, and how specific that range is."""
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
