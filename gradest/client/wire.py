"""The bodies with tensors that client and service exchange: safetensors, and the names of nested tensors in it.

A body consists of eight bytes with the length of the header, little-endian; the header, which is JSON with the dtype, shape and
offsets of each tensor; and the bytes of the tensors. Fields that are not tensors are JSON in the metadata of the header.

The package safetensors is not used because it copies every tensor when it reads, does not return the metadata of a body in
memory, accepts a name twice, and refuses to write tensors that share memory. The tests compare the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pydantic_core import to_json

from gradest.client.arrays import ArrayBytes, is_array, to_bytes, to_tensor
from gradest.errors import InvalidInput

__all__ = ["MAX_HEADER", "SAFETENSORS", "Malformed", "join_tensors", "pack", "split_tensors", "unpack"]

SAFETENSORS = "application/vnd.safetensors"
"""The media type of these bodies."""
MAX_HEADER = 1 << 20
"""The largest number of bytes of a header, checked before it is parsed."""

_MAX_DIMS = 64
_METADATA = "__metadata__"
_DTYPES = {  # by the code of the format: the name that torch and NumPy have, and the bytes of an element
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_CODES = {name: (code, size) for code, (name, size) in _DTYPES.items()}

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Malformed(ValueError):
    """A body violates the format. The message quotes nothing of it."""


def pack(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return a body of the tensors or other arrays, which may be on any device and have any strides.

    Raises InvalidInput for a dtype that the format lacks.
    """
    header: dict[str, Any] = {_METADATA: metadata}
    parts, end = list[memoryview](), 0
    found = {name: to_bytes(tensor) for name, tensor in tensors.items()}
    for tensor in found.values():
        if tensor.dtype not in _CODES:
            raise InvalidInput(f"a tensor of {tensor.dtype} cannot be sent; these dtypes can: {', '.join(_CODES)}")
    # with the widest elements first, all tensors are aligned
    for name, tensor in sorted(found.items(), key=lambda item: -_CODES[item[1].dtype][1]):
        parts.append(tensor.data)
        place = [end, end := end + len(tensor.data)]
        header[name] = {"dtype": _CODES[tensor.dtype][0], "shape": list(tensor.shape), "data_offsets": place}
    text = to_json(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


@overload
def unpack(body: bytes | bytearray) -> tuple[dict[str, Tensor], dict[str, str]]: ...
@overload
def unpack(body: bytes | bytearray, build: Callable[[ArrayBytes], T]) -> tuple[dict[str, T], dict[str, str]]: ...
def unpack(
    body: bytes | bytearray, build: Callable[[ArrayBytes], Any] = to_tensor
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors, by default torch's, and the metadata of a body. Raises Malformed.

    The tensors are views of a bytearray, which must not change while they are used. bytes, which torch cannot view, are copied
    once.
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
    buffer = memoryview(body if isinstance(body, bytearray) else bytearray(body))
    return {name: _build(build, buffer, 8 + size, *entry) for name, entry in entries.items()}, metadata


_Entry = tuple[str, list[int], tuple[int, int]]
"""The code of the dtype, the shape and the offsets of a tensor."""


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
    if not _are_sizes(place) or len(place) != 2 or place[1] - place[0] != math.prod(shape) * _DTYPES[code][1]:
        raise Malformed("the data_offsets of a tensor are not as far apart as its dtype and shape say")
    return code, shape, (place[0], place[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_places(places: Iterable[tuple[int, int]], total: int) -> None:
    """Raise Malformed unless the tensors follow each other with nothing between or after them."""
    position = 0
    for begin, end in sorted(places):
        if begin != position:
            raise Malformed("its tensors overlap, or there is a gap between them")
        position = end
    if position != total:
        raise Malformed("it has more or fewer bytes than its tensors")


def _build(
    build: Callable[[ArrayBytes], T], buffer: memoryview, data: int, code: str, shape: list[int], place: tuple[int, int]
) -> T:
    dtype, size = _DTYPES[code]
    begin, end = (data + offset for offset in place)
    numbers = buffer[begin:end]
    if begin % size:  # an address that is no multiple of the size cannot be viewed
        numbers = memoryview(bytearray(numbers))
    try:
        return build(ArrayBytes(dtype, tuple(shape), numbers))
    except InvalidInput:
        raise
    except (RuntimeError, ValueError) as error:  # the strides of the shape overflow
        raise Malformed("the shape of a tensor is too large") from error


def split_tensors(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that are not tensors, and the tensors and other arrays by name.

    Names of tensors are like "a", "state.total", "objective.target", "estimators.0.slope".
    """
    rest: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for name, value in fields.items():
        if is_array(value):
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


def join_tensors(fields: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Put the tensors into the fields, from where `split_tensors` took them, and return the fields. Raises Malformed.

    A plugin that is only a name becomes {"name": ..., **options} if there are tensors among its options.
    """
    for name, tensor in tensors.items():
        holder, key = _holder(fields, name)
        if key in holder:
            raise Malformed("a field is given twice, among its tensors and in JSON")
        holder[key] = tensor
    return fields


def _holder(fields: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the dict in which a tensor of that name belongs, and its key there."""
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
