"""What a call sends: the type of a request, and the conversion of arguments to its fields."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gradest.errors import InvalidInput

if TYPE_CHECKING:
    import torch

    from gradest.contract.plugin import Plugin
    from gradest.discovery.registry import NeuronSpec

__all__ = ["DTYPES", "ApiRequest", "Call", "check_dtype", "choose_seed", "post", "to_spec"]

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes of pre-activations and losses, by their names in a request."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ApiRequest:
    """A request to the service.

    query: the parameters of a GET.
    fields: the fields of a POST; None for a GET.
    device: where the tensors of the response are wanted.
    many: whether the response is an array of objects. Otherwise it is one object.
    progress: called with the fields of each `progress` event, if the response is to be a stream of events.
    """

    path: str
    query: Mapping[str, Any] | None = None
    fields: Mapping[str, Any] | None = None
    device: torch.device | None = None
    many: bool = False
    progress: Callable[[Any], None] | None = None


Call = Generator[ApiRequest, Any, T]
"""A generator that yields requests, is sent the fields of the response to each, and returns the result of the call."""


def post(
    path: str,
    neuron: NeuronSpec,
    a: torch.Tensor,
    fields: Mapping[str, Any],
    progress: Callable[[Any], None] | None = None,
) -> ApiRequest:
    """Return a POST of these fields, the neuron and its pre-activations. Raises InvalidInput unless `a` is a float tensor."""
    check_dtype(a, DTYPES)
    inputs = {"neuron": to_spec(neuron), "a": a, "shape": list(a.shape), "dtype": str(a.dtype).removeprefix("torch.")}
    return ApiRequest(path, fields={**inputs, **fields}, device=a.device, progress=progress)


def check_dtype(a: Any, dtypes: Sequence[str], what: str = "pre-activations") -> None:
    """Raise InvalidInput unless `a`, which the message calls `what`, is a tensor of one of the dtypes, given by name."""
    import torch

    allowed = [f"torch.{name}" for name in dtypes]
    if not isinstance(a, torch.Tensor) or str(a.dtype) not in allowed:
        found = a.dtype if isinstance(a, torch.Tensor) else type(a).__name__
        raise InvalidInput(
            f"{what} must be a torch tensor of {', '.join(allowed)}, not {found}; .float() converts a tensor"
        )


def to_spec(plugin: str | Mapping[str, Any] | Plugin) -> str | Mapping[str, Any]:
    """Return the JSON form of a plugin, in which options that are tensors stay tensors. Raises InvalidOptions for a module."""
    if isinstance(plugin, (str, Mapping)):
        return plugin
    import torch

    from gradest.contract.plugin import Plugin

    if not isinstance(plugin, Plugin):
        return plugin
    plugin.check_json()
    given = plugin.model_fields_set
    tensors = {name: value for name, value in plugin if name in given and isinstance(value, torch.Tensor)}
    return {
        "name": plugin.name,
        **plugin.model_dump(mode="json", exclude_unset=True, exclude=set(tensors)),
        **tensors,
    }


def choose_seed(seed: int | None) -> int:
    """Return the seed or, for None, a new one, so that a request sent again is the same. Raises InvalidInput."""
    from gradest.random import check_seed, fresh_seed

    return fresh_seed() if seed is None else check_seed(seed)
