"""The base of neurons, estimators and objectives: a name, a summary, a reference, and options."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from torch import Tensor, nn

from gradest.contract.modules import PYTHON_ONLY, LeftOutOfSchemas
from gradest.errors import InvalidOptions

__all__ = ["Plugin", "TensorOption"]


def _to_tensor(value: Any) -> Tensor:
    try:
        with torch.inference_mode(False):  # an inference tensor could not take part in a later autograd graph
            if isinstance(value, Tensor):
                return value.clone() if value.is_inference() else value
            return torch.tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError("give a tensor, a number, or a rectangular nested list of numbers") from error


TensorOption = Annotated[
    Tensor,
    PlainValidator(_to_tensor),
    PlainSerializer(lambda tensor: tensor.tolist()),
    WithJsonSchema({"type": ["number", "array"], "description": "a number or a rectangular nested array of numbers"}),
]
"""The type of an option that holds a tensor: a torch tensor in Python, a number or a nested array in JSON."""


def _holds_tensor(value: Any) -> bool:
    """Return whether the value is a tensor or a container that holds one."""
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple, set)) and any(map(_holds_tensor, value)))


def is_left_out(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    """Return whether a type of an option, or a part of it, is marked as one that JSON Schemas leave out."""
    marks = (*metadata, *getattr(annotation, "__metadata__", ()))
    return any(isinstance(mark, LeftOutOfSchemas) for mark in marks) or any(map(is_left_out, get_args(annotation)))


class Plugin(BaseModel, ABC):
    """A frozen pydantic model whose fields are the plugin's options.

    Flags of the command line, fields of the HTTP API and checks follow from these fields.

    A concrete plugin sets these class attributes and declares its options as fields with defaults:

        name: the name by which users and requests refer to it, in lower_snake_case;
        summary: one line, shown in tables;
        formula: what it computes, in LaTeX, or "" if the docstring says it;
        reference: authors, year and arXiv id of the publication, or "" if there is none;
        examples: sets of options with which the conformance kit builds and checks it; by default only the default options.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,  # the default of a tensor option is written as a number, which its JSON Schema can state
        ser_json_inf_nan="strings",
    )

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_tensors_that_become_numbers(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise ValueError for a tensor that the option's type converts: it would be neither trained nor followed."""
        suspects = [name for name, value in given.items() if _holds_tensor(value)] if isinstance(given, Mapping) else ()
        if not suspects:
            return handler(given)
        built = handler(given)
        for name in suspects:
            if not _holds_tensor(getattr(built, name, None)):
                raise ValueError(
                    f"{name} cannot be a tensor: an option is a fixed number, so the tensor would neither be trained nor be "
                    "followed when it changes. Give a number, such as tensor.item(). To change it between steps, as annealing "
                    f"does, call layer.set_options({name}=...). To learn it, use a neuron that takes it as a pre-activation"
                )
        return built

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the JSON Schema. Its key x-python-only has the options that it leaves out, each with the reason."""
        schema = handler(core_schema)
        left_out = {
            name: ": ".join(filter(None, [field.description, PYTHON_ONLY]))
            for name, field in cls.model_fields.items()
            if is_left_out(field.annotation, field.metadata)
        }
        if left_out:
            handler.resolve_ref_schema(schema)["x-python-only"] = left_out
        return schema

    @classmethod
    def build(cls, /, **options: Any) -> Self:
        """Build an instance with these options. Raises InvalidOptions, which names every wrong option."""
        try:
            return cls(**options)
        except ValidationError as error:
            known = ", ".join(cls.model_fields) or "none"
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'options'}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_input=False, include_context=False)
            )
            raise InvalidOptions(f"{cls.name}: {faults}. Its options: {known}.") from error

    def with_options(self, /, **options: Any) -> Self:
        """Return a copy in which these options have other values. Raises InvalidOptions as `build` does."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).build(**{**given, **options})

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change an option: layers, compiled code and other callers share the instance."""
        if name in type(self).model_fields:
            raise InvalidOptions(
                f"the options of {self.label()} cannot be changed, because others may share it. plugin.with_options({name}=...) "
                f"is a copy with another value; a layer takes it by layer.set_options({name}=...)"
            )
        super().__setattr__(name, value)

    def modules(self) -> dict[str, nn.Module]:
        """Return the options that are torch modules, by name."""
        return {name: value for name, value in self if isinstance(value, nn.Module)}

    def check_json(self) -> None:
        """Raise InvalidOptions if an option has no JSON form."""
        for name, module in self.modules().items():
            raise InvalidOptions(
                f"{self.name} has the option {name}={type(module).__name__}, which has no JSON form: {PYTHON_ONLY}. Leave it "
                "out here, or compute in this process"
            )

    def is_same(self, other: Plugin) -> bool:
        """Return whether the other one is of the same class and has the same options, modules being the same objects."""
        if self is other:
            return True
        mine, its = (plugin.model_dump(mode="json", exclude_unset=True) for plugin in (self, other))
        return type(self) is type(other) and mine == its and self.modules() == other.modules()

    def spec(self) -> dict[str, Any]:
        """Return the JSON form from which this instance can be built again: its name and each option that was given.

        Raises InvalidOptions for a `ModuleOption` that was given.
        """
        self.check_json()
        return {"name": self.name, **self.model_dump(mode="json", exclude_unset=True)}

    def label(self) -> str:
        """Return a label for tables: the name, with the options that were given."""
        options = self.model_dump(mode="json", exclude_unset=True)
        if not options:
            return self.name
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in options.items())})"
