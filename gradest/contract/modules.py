"""Options that are torch modules, such as a network of the user's own as a control variate.

    class Fitted(gradest.MonteCarlo):
        network: gradest.ModuleOption | None = Field(None, description="what is subtracted from the loss")

        def init(self, neuron, a):
            return {} if self.network is None else module_state("network", self.network, a.device)

        def backward(self, draw, feedback, state):
            c = call_module("network", self.network, state, draw.points)

Python code alone can give such an option: it has no JSON form, so that the schemas of the service leave it out and say why. An
estimator never writes to the module. What it learns is in its state, which begins as a copy of the module's tensors, so that
layers save it, and a module may serve several estimators.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import GetJsonSchemaHandler, PlainSerializer, PlainValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticOmit
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradest.errors import InvalidOptions

__all__ = ["PYTHON_ONLY", "LeftOutOfSchemas", "ModuleOption", "call_module", "module_state"]

PYTHON_ONLY = "it takes a torch.nn.Module, which only Python code can give: neither a request nor the command line can"
"""Why an option is left out of JSON Schemas."""

_SWAPPING = threading.RLock()  # functional_call puts other tensors into a module for the time of a call


def _to_module(value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise ValueError(PYTHON_ONLY)
    if any(is_lazy(tensor) for tensor in (*value.parameters(), *value.buffers())):
        raise ValueError("its parameters have no shapes yet; call the module once, on an input such as it will get")
    return value


class LeftOutOfSchemas:
    """Leaves an option out of the JSON Schema of a plugin."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Omit the option."""
        raise PydanticOmit


ModuleOption = Annotated[
    nn.Module,
    PlainValidator(_to_module),
    PlainSerializer(lambda module: type(module).__name__, return_type=str, when_used="json"),
    LeftOutOfSchemas(),
]
"""The type of an option that holds a torch.nn.Module, in Python alone."""


def _names(name: str, module: nn.Module) -> dict[str, str]:
    """Return the names of the module's tensors in a state, by their own names."""
    own = [own for own, _ in (*module.named_parameters(), *module.named_buffers())]
    names = {tensor: f"{name}__{tensor.replace('.', '__')}" for tensor in own}
    if len(set(names.values())) < len(names):
        raise InvalidOptions(f"{name}: two of its tensors differ in . and __ alone; rename one of {', '.join(own)}")
    return names


def module_state(
    name: str, module: nn.Module, device: torch.device, *, trained: bool | None = None
) -> dict[str, Tensor]:
    """Return copies of a module's parameters and buffers, for an estimator's state: `weight` of its part `0` is NAME__0__weight.

    name: that of the option. Numbers are float64, whatever the precision of the module is.
    trained: True for the parameters that require a gradient alone, False for all other tensors alone.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        kept: (tensor.detach().double() if tensor.is_floating_point() else tensor.detach()).to(device, copy=True)
        for own, kept in _names(name, module).items()
        for tensor in [tensors[own]]
        if trained is None or tensor.requires_grad == trained
    }


def call_module(name: str, module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return module(x) with the tensors that `module_state` named, in the precision of x, in place of the module's own.

    It is differentiable in x and in these tensors.
    """
    tensors = {own: state[kept] for own, kept in _names(name, module).items()}
    tensors = {own: tensor.to(x.dtype) if tensor.is_floating_point() else tensor for own, tensor in tensors.items()}
    with _SWAPPING:
        found: Tensor = torch.func.functional_call(module, tensors, (x,))
    return found
