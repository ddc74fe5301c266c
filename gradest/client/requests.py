"""What a call sends: the type of a request, and the conversion of arguments to its fields."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gradest.client.arrays import ArrayLike, dtype_name, is_array, is_tensor
from gradest.errors import InvalidInput
from gradest.seeds import MAX_SEED, check_seed

if TYPE_CHECKING:
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
    like: an array; those of the response are to be of its kind, and on its device.
    many: whether the response is an array of objects. Otherwise it is one object.
    progress: called with the fields of each `progress` event, if the response is to be a stream of events.
    """

    path: str
    query: Mapping[str, Any] | None = None
    fields: Mapping[str, Any] | None = None
    like: Any = None
    many: bool = False
    progress: Callable[[Any], None] | None = None


Call = Generator[ApiRequest, Any, T]
"""A generator that yields requests, is sent the fields of the response to each, and returns the result of the call."""


def post(
    path: str,
    neuron: NeuronSpec,
    a: ArrayLike,
    fields: Mapping[str, Any],
    progress: Callable[[Any], None] | None = None,
) -> ApiRequest:
    """Return a POST of these fields, the neuron and its pre-activations. Raises InvalidInput unless `a` is an array of floats."""
    dtype = check_dtype(a, DTYPES)
    inputs = {"neuron": to_spec(neuron), "a": a, "shape": list(a.shape), "dtype": dtype}
    return ApiRequest(path, fields={**inputs, **fields}, like=a, progress=progress)


def check_dtype(a: Any, dtypes: Sequence[str], what: str = "pre-activations") -> str:
    """Return the name of the dtype of `a`, which a message calls `what`.

    Raises InvalidInput unless it is an array of one of the dtypes, which are given by name.
    """
    if not is_array(a):
        found, remedy = type(a).__name__, "numpy.asarray(a, 'float32') makes an array of a list"
    elif (found := dtype_name(a)) in dtypes:
        return found
    else:
        remedy = ".float() converts a tensor" if is_tensor(a) else ".astype('float32') converts an array"
    raise InvalidInput(f"{what} must be a torch tensor or an array of {', '.join(dtypes)}, not {found}; {remedy}")


def to_spec(plugin: str | Mapping[str, Any] | Plugin) -> str | Mapping[str, Any]:
    """Return the JSON form of a plugin, in which options that are tensors stay tensors. Raises InvalidOptions for a module."""
    if isinstance(plugin, (str, Mapping)) or "gradest.contract.plugin" not in sys.modules:  # there are no instances yet
        return cast(str | Mapping[str, Any], plugin)
    from gradest.contract.plugin import Plugin

    if not isinstance(plugin, Plugin):
        return plugin
    plugin.check_json()
    given = plugin.model_fields_set
    tensors = {name: value for name, value in plugin if name in given and is_tensor(value)}
    return {
        "name": plugin.name,
        **plugin.model_dump(mode="json", exclude_unset=True, exclude=set(tensors)),
        **tensors,
    }


def choose_seed(seed: int | None, like: Any = None) -> int:
    """Return the seed or, for None, a new one, so that a request sent again is the same. Raises InvalidInput.

    like: the array of the call. With a tensor, a new seed is drawn from torch's global generator; else it is from NumPy's.
    """
    if seed is None:
        return _fresh_seed(like)
    numpy = sys.modules.get("numpy")
    return check_seed(int(seed) if numpy is not None and isinstance(seed, numpy.integer) else seed)


def _fresh_seed(like: Any) -> int:
    if is_tensor(like):
        from gradest.random import fresh_seed

        return fresh_seed()
    import numpy as np

    return int(np.random.randint(0, MAX_SEED, dtype=np.int64))  # the generator that numpy.random.seed rules
