"""What a call asks for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradest.contract.plugin import Plugin
from gradest.discovery.registry import NeuronSpec
from gradest.errors import InvalidInput
from gradest.random import check_seed, fresh_seed

__all__ = ["Call", "Request", "check_dtype", "fix_seed", "post", "to_spec"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Request:
    """A POST of `fields`, or a GET with `query` where they are None. The answer's tensors are wanted on `device`.

    progress: takes the fields of `progress` events, where the answer is a stream of them before its `result`.
    """

    path: str
    query: Mapping[str, Any] | None = None
    fields: Mapping[str, Any] | None = None
    device: torch.device | None = None
    progress: Callable[[Any], None] | None = None


Call = Generator[Request, Any, T]
"""Yields requests, goes on with the fields of the answer to each, and returns the result."""


def post(
    path: str,
    neuron: NeuronSpec,
    a: Tensor,
    fields: Mapping[str, Any],
    progress: Callable[[Any], None] | None = None,
) -> Request:
    """The request of these fields and the inputs that all have. Raises InvalidInput."""
    check_dtype(a, _DTYPES)
    inputs = {"neuron": to_spec(neuron), "a": a, "shape": list(a.shape), "dtype": str(a.dtype).removeprefix("torch.")}
    return Request(path, fields={**inputs, **fields}, device=a.device, progress=progress)


def check_dtype(a: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises InvalidInput unless `a` is a tensor of one of the dtypes."""
    if not isinstance(a, Tensor) or a.dtype not in dtypes:
        kinds = ", ".join(map(str, dtypes))
        found = a.dtype if isinstance(a, Tensor) else type(a).__name__
        raise InvalidInput(f"pre-activations are a torch tensor of {kinds}, not {found}; a.float() converts one")


def to_spec(plugin: str | Mapping[str, Any] | Plugin) -> str | Mapping[str, Any]:
    """The JSON form of a plugin, but for options that are tensors, which stay tensors."""
    if not isinstance(plugin, Plugin):
        return plugin
    tensors = {name: value for name, value in plugin if name in plugin.model_fields_set and isinstance(value, Tensor)}
    return {
        "name": plugin.name,
        **plugin.model_dump(mode="json", exclude_unset=True, exclude=set(tensors)),
        **tensors,
    }


def fix_seed(seed: int | None) -> int:
    """The seed, a fresh one for None, so that a request sent again is the same request. Raises InvalidInput."""
    return fresh_seed() if seed is None else check_seed(seed)
