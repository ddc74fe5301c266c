"""Bodies of requests and responses: JSON, or safetensors with the other fields as JSON in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import from_json, to_json

from gradest.client.wire import SAFETENSORS, join_tensors, pack, split_tensors, unpack
from gradest.errors import InvalidInput

if TYPE_CHECKING:
    import torch

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
    return to_json(value, inf_nan_mode="constants", fallback=_to_plain)


def _to_plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise InvalidInput(f"a request cannot hold a {type(value).__name__}")


def decode(content_type: str, body: str | bytes | bytearray, device: torch.device | None) -> Any:
    """Return the fields of a response, with its tensors on `device`. A malformed body raises an exception of any type."""
    if content_type == SAFETENSORS:
        assert not isinstance(body, str)
        tensors, metadata = unpack(body)
        fields = from_json(metadata.get("response", ""))
    else:
        fields = from_json(body)
        described = fields.pop("tensors", {}) if isinstance(fields, dict) else {}
        tensors = {name: _take_tensor(fields, name, info) for name, info in described.items()}
    if tensors:
        join_tensors(fields, {name: tensor.to(device) for name, tensor in tensors.items()})
    return fields


def _take_tensor(fields: dict[str, Any], name: str, info: Mapping[str, Any]) -> torch.Tensor:
    """Take the nested list of that name out of the fields; return it as a tensor."""
    import torch

    *outer, last = name.split(".", 1)
    holder = fields[outer[0]] if outer else fields
    numbers = with_non_finite(holder.pop(last))
    return torch.tensor(numbers, dtype=getattr(torch, info["dtype"])).reshape(info["shape"])


def with_non_finite(numbers: Any) -> Any:
    """Return a number or nested list with the strings "NaN", "Infinity" and "-Infinity" replaced by numbers."""
    if isinstance(numbers, list):
        return [with_non_finite(number) for number in numbers]
    return float(numbers) if isinstance(numbers, str) else numbers
