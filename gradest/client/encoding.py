"""Bodies of requests and responses: JSON, or safetensors with the other fields as JSON in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import PydanticSerializationError, from_json, to_json

from gradest.client.arrays import builder_like, to_list
from gradest.client.wire import SAFETENSORS, join_tensors, pack, split_tensors, unpack
from gradest.errors import InvalidInput

__all__ = ["JSON", "Transport", "decode", "encode", "encode_json", "with_non_finite"]

Transport = Literal["safetensors", "json"]
"""How a client sends tensors, and asks for them."""

JSON = "application/json"
"""The media type of JSON."""


def encode(fields: Mapping[str, Any], transport: Transport) -> tuple[str, bytes]:
    """Return the content type and the bytes of a request with these fields."""
    if transport == "json":
        return JSON, encode_json(fields)
    rest, tensors = split_tensors(fields)
    return SAFETENSORS, pack(tensors, {"request": encode_json(rest).decode()})


def encode_json(value: Any) -> bytes:
    """Return the value as JSON, with tensors as nested lists. Raises InvalidInput for a value that JSON cannot hold."""
    # numbers that are not finite are written as constants, so that the service can report where they are
    try:
        return to_json(value, inf_nan_mode="constants", fallback=to_list)
    except PydanticSerializationError as error:  # which has the message of what `to_list` raised
        message = str(error).removeprefix("Error serializing to JSON: ").removeprefix("InvalidInput: ")
        raise InvalidInput(message) from error


def decode(content_type: str, body: str | bytes | bytearray, like: Any) -> Any:
    """Return the fields of a response, with arrays of the kind of `like`, on its device.

    A malformed body raises an exception of any type, but InvalidInput, which is raised for a dtype that NumPy does not have.
    """
    build = builder_like(like)
    if content_type == SAFETENSORS:
        assert not isinstance(body, str)
        tensors, metadata = unpack(body, build.from_bytes)
        fields = from_json(metadata.get("response", ""))
    else:
        fields = from_json(body)
        described = fields.pop("tensors", {}) if isinstance(fields, dict) else {}
        tensors = {
            name: build.from_list(_take_list(fields, name), info["dtype"], info["shape"])
            for name, info in described.items()
        }
    return join_tensors(fields, tensors) if tensors else fields


def _take_list(fields: dict[str, Any], name: str) -> Any:
    """Take the nested list of that name out of the fields."""
    *outer, last = name.split(".", 1)
    holder = fields[outer[0]] if outer else fields
    return with_non_finite(holder.pop(last))


def with_non_finite(numbers: Any) -> Any:
    """Return a number or nested list with the strings "NaN", "Infinity" and "-Infinity" replaced by numbers."""
    if isinstance(numbers, list):
        return [with_non_finite(number) for number in numbers]
    return float(numbers) if isinstance(numbers, str) else numbers
