"""Bodies, as a client writes and reads them: JSON, or safetensors with the other fields as JSON in the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic_core import from_json, to_json
from torch import Tensor

from gradest.client.wire import SAFETENSORS, join_tensors, pack, split_tensors, unpack
from gradest.errors import InvalidInput

__all__ = ["JSON", "Transport", "decode", "encode", "encode_json", "with_non_finite"]

Transport = Literal["safetensors", "json"]
JSON = "application/json"


def encode(fields: Mapping[str, Any], transport: Transport) -> tuple[str, bytes]:
    """The content type and the bytes of a request."""
    if transport == "json":
        return JSON, encode_json(fields)
    rest, tensors = split_tensors(fields)
    return SAFETENSORS, pack(tensors, {"request": encode_json(rest).decode()})


def encode_json(value: Any) -> bytes:
    """JSON, with tensors as nested lists. Raises InvalidInput for what JSON cannot hold."""
    # non-finite numbers go as they are, so that the service can say where they stand
    return to_json(value, inf_nan_mode="constants", fallback=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to(torch.uint8) if value.dtype == torch.bool else value).tolist()
    raise InvalidInput(f"a request cannot hold a {type(value).__name__}")


def decode(content_type: str, body: bytes | bytearray, device: torch.device | None) -> Any:
    """The fields of an answer, their tensors on `device`; raises any error if it is malformed."""
    if content_type == SAFETENSORS:
        tensors, metadata = unpack(body)
        fields = from_json(metadata.get("response", ""))
    else:
        fields = from_json(body)
        tensors = {}
        for name, info in fields.pop("tensors", {}).items() if isinstance(fields, dict) else ():
            *outer, last = name.split(".", 1)
            holder = fields[outer[0]] if outer else fields
            dtype = getattr(torch, info["dtype"])
            tensors[name] = torch.tensor(with_non_finite(holder.pop(last)), dtype=dtype).reshape(info["shape"])
    if tensors:
        join_tensors(fields, {name: tensor.to(device) for name, tensor in tensors.items()})
    return fields


def with_non_finite(numbers: Any) -> Any:
    """The strings "NaN", "Infinity" and "-Infinity" as numbers."""
    if isinstance(numbers, list):
        return [with_non_finite(number) for number in numbers]
    return float(numbers) if isinstance(numbers, str) else numbers
