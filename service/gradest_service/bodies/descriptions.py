"""The answers on what is registered and on the state of the service: they are shown at /docs, and written as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, GetJsonSchemaHandler, RootModel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gradest.analysis.certificates import Certificate
from gradest.analysis.results import Recommendation
from gradest.discovery.loading import PluginFailure

__all__ = [
    "Alive",
    "EstimatorDescription",
    "NeuronDescription",
    "ObjectiveDescription",
    "PluginListing",
    "Ready",
    "RecommendAnswer",
    "Versions",
]


class Description(BaseModel):
    """What is known about every plugin."""

    name: str
    summary: str
    formula: str = Field(description="In LaTeX.")
    reference: str
    options: dict[str, Any] = Field(description="The JSON Schema of its options.")
    capabilities: list[str]
    faults: list[str] = Field(description="What fails in its code while it is described, with file and line.")


class NeuronDescription(Description):
    """A neuron."""

    event_ndim: int = Field(description="The number of dims of an event of `a`.")
    output_ndim: int = Field(
        description="The number of dims of an event of `h`: `event_ndim`, unless its units have several inputs or outputs."
    )
    example_events: list[list[int]] = Field(description="Shapes of events of `a` that it takes.")
    estimators: list[str] = Field(description="The estimators that fit it.")


class EstimatorDescription(Description):
    """An estimator, and what holds for it on each of the neurons that it fits."""

    needs: list[Literal["loss", "grad"]]
    off_support: bool
    target: str
    needs_capabilities: list[str]
    neurons: list[str]
    bias: dict[str, str]
    evaluations: dict[str, dict[str, int | None]] = Field(description="K, by neuron and by number of units.")
    certificates: list[Certificate] | None = Field(
        None, description="Measurements of its bias; omitted from the list of all estimators."
    )


class ObjectiveDescription(Description):
    """An objective."""

    differentiable: bool = Field(description="Whether it has dL/dh, which some estimators need.")
    pointwise: bool = Field(description="Whether it is computed for one point at a time, as a simulator is.")


class Distribution(BaseModel):
    """What one distribution registered."""

    distribution: str
    version: str
    neurons: list[str]
    estimators: list[str]
    objectives: list[str]


class PluginListing(BaseModel):
    """What each distribution registered, and which plugins did not load."""

    plugins: list[Distribution]
    failures: list[PluginFailure]


class RecommendAnswer(RootModel[Recommendation]):
    """The estimators that fit, best first, and why the others were rejected."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the record itself: generators of clients make no type of a schema that is only a reference."""
        return {**handler.resolve_ref_schema(handler(core)), "title": cls.__name__}


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The service accepts requests."""

    status: Literal["ready"]
    plugins: int
    failures: int
    lost_threads: int = Field(description="Threads whose code has not ended though its deadline has passed.")
    set_aside: list[str] = Field(
        description="Plugins to which too many threads were lost; requests for them are answered 503."
    )


class Versions(BaseModel):
    """The versions of the software that computes the answers."""

    gradest: str
    plugin_api: int
    noise: int = Field(description="The version of the noise: the same version gives the same numbers for a seed.")
    torch: str
    python: str
