"""Bodies with tensors: the safetensors format, and the names that tensors of nested fields have in it.

A body is eight bytes with the length of its header, little-endian; the header, JSON with dtype, shape and place of each tensor;
and the tensors' bytes. It is read and written here because the package of that name copies every tensor when it reads, gives no
metadata for a body in memory, lets the last of two equal names win, and refuses to write tensors that share memory. The tests
hold the two against each other.

Fields that are no tensors travel as JSON in the header's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic_core import to_json
from torch import Tensor

from gradest.errors import InvalidInput

__all__ = ["MAX_HEADER", "SAFETENSORS", "Malformed", "join_tensors", "pack", "split_tensors", "unpack"]

SAFETENSORS = "application/vnd.safetensors"
MAX_HEADER = 1 << 20
"""The bytes that a header may have, checked before it is parsed."""

_MAX_DIMS = 64
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Malformed(ValueError):
    """A body is not what it should be; the message repeats nothing of it."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Tensors of any device and strides as a body. Raises InvalidInput for a dtype that has no code there."""
    header: dict[str, Any] = {_METADATA: metadata}
    parts, end = list[memoryview](), 0
    for name in sorted(
        tensors, key=lambda name: -tensors[name].element_size()
    ):  # the widest first: all are aligned then
        tensor = tensors[name]
        if tensor.dtype not in _CODES:
            raise InvalidInput(f"a tensor of {tensor.dtype} cannot be sent; these can: {', '.join(map(str, _CODES))}")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        parts.append(flat.view(torch.uint8).numpy().data)
        place = [end, end := end + len(parts[-1])]
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = to_json(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpack(body: bytes | bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a body; raises Malformed.

    The tensors are views of a bytearray, which must not change while they live; bytes, which torch cannot view, are copied once.
    """
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > len(body) - 8:
        raise Malformed("it ends within its header")
    if size > MAX_HEADER:
        raise Malformed(f"its header may have {MAX_HEADER} bytes")
    header = _parse(bytes(body[8 : 8 + size]))
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise Malformed("its metadata is not an object of strings")
    entries = {name: _check_entry(entry) for name, entry in header.items()}
    _check_places([place for _, _, place in entries.values()], len(body) - 8 - size)
    buffer = body if isinstance(body, bytearray) else bytearray(body)
    return {name: _view(buffer, 8 + size, *entry) for name, entry in entries.items()}, metadata


_Entry = tuple[torch.dtype, list[int], tuple[int, int]]


def _parse(header: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        found = json.loads(header.decode(), object_pairs_hook=_once_each, parse_constant=refuse)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed("its header is not JSON") from error
    if header[:1] != b"{" or not isinstance(found, dict):
        raise Malformed("its header is not a JSON object")
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("its header has a name twice")
    return found


def _check_entry(entry: Any) -> _Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed("each tensor in its header has a dtype, a shape and data_offsets, and nothing else")
    code, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise Malformed(f"the dtype of a tensor is none of {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise Malformed(f"the shape of a tensor is not a list of at most {_MAX_DIMS} sizes")
    dtype = _DTYPES[code]
    if not _are_sizes(place) or len(place) != 2 or place[1] - place[0] != math.prod(shape) * dtype.itemsize:
        raise Malformed("the data_offsets of a tensor are not as far apart as its dtype and shape say")
    return dtype, shape, (place[0], place[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_places(places: Iterable[tuple[int, int]], total: int) -> None:
    """Tensors lie one after the other, with nothing between them or behind."""
    position = 0
    for begin, end in sorted(places):
        if begin != position:
            raise Malformed("its tensors overlap, or there is a gap between them")
        position = end
    if position != total:
        raise Malformed("it has more or fewer bytes than its tensors")


def _view(buffer: bytearray, data: int, dtype: torch.dtype, shape: list[int], place: tuple[int, int]) -> Tensor:
    begin, end = (data + offset for offset in place)
    try:
        if begin == end:
            return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # a shape whose strides overflow
        raise Malformed("the shape of a tensor is too large") from error
    if begin % dtype.itemsize:
        buffer, begin, end = buffer[begin:end], 0, end - begin
    if dtype == torch.bool:  # a byte other than 0 and 1 is no bool to torch
        return torch.frombuffer(buffer, dtype=torch.uint8, count=end - begin, offset=begin).ne(0).reshape(shape)
    return torch.frombuffer(buffer, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin).reshape(shape)


def split_tensors(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields that are no tensors, and the tensors by name: "a", "state.total", "objective.target", "estimators.0.slope"."""
    rest: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            rest[name], inner = split_tensors(value)
            tensors |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            rest[name] = list(value)
            for place, item in enumerate(value):
                if isinstance(item, Mapping):
                    rest[name][place], inner = split_tensors(item)
                    tensors |= {f"{name}.{place}.{key}": tensor for key, tensor in inner.items()}
        else:
            rest[name] = value
    return rest, tensors


def join_tensors(fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Puts the tensors where `split_tensors` took them from, and returns the fields; raises Malformed.

    A plugin that is a name alone becomes {"name": ..., **options} if there are tensors among its options.
    """
    for name, tensor in tensors.items():
        holder, key = _holder(fields, name)
        if key in holder:
            raise Malformed("a field is given twice, among its tensors and in JSON")
        holder[key] = tensor
    return fields


def _holder(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Where a tensor of that name goes, and what it is called there."""
    outer, dot, inner = name.partition(".")
    if not dot:
        return fields, name
    inside: dict[str, Any] | list[Any] = fields
    key: Any = outer
    if isinstance(fields.get(outer), list):
        place, _, inner = inner.partition(".")
        inside, key = fields[outer], int(place) if place.isdecimal() and len(place) < 9 else -1
        if not 0 <= key < len(inside):
            raise Malformed("the name of a tensor has a place in a list that is not there")
    holder = inside[key] if isinstance(inside, list) else inside.get(key)
    if holder is None:
        holder = {}
    elif isinstance(holder, str):
        holder = {"name": holder}
    if not isinstance(holder, dict) or not inner:
        raise Malformed("the name of a tensor is that of no field that holds tensors")
    inside[key] = holder
    return holder, inner
