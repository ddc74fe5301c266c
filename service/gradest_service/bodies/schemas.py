"""The fields of requests and answers: what is checked, what /docs shows, and what a codec writes.

Tensors are `Any` here, since each content type has its own form of them: the JSON Schema says what they are in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, RootModel, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gradest.certificate import Certificate
from gradest.random import MAX_SEED
from gradest.recommendation import Recommendation
from gradest.registry import PluginFailure

__all__ = [
    "BackwardAnswer",
    "BackwardRequest",
    "CompareAnswer",
    "CompareRequest",
    "EstimateAnswer",
    "EstimateRequest",
    "EstimateSoFar",
    "EstimatorDescription",
    "Exact",
    "ForwardAnswer",
    "ForwardRequest",
    "MeanAnswer",
    "MeanRequest",
    "NeuronDescription",
    "ObjectiveDescription",
    "Plugins",
    "Progress",
    "Ready",
    "RecommendAnswer",
    "RecommendRequest",
    "Request",
    "SampleAnswer",
    "SampleRequest",
    "Status",
    "Versions",
]


class NestedNumbers(RootModel["float | list[NestedNumbers]"]):
    """A number, or a rectangular nested array of numbers."""


class NestedNumbersOut(RootModel['float | Literal["NaN", "Infinity", "-Infinity"] | list[NestedNumbersOut]']):
    """A number, or a nested array of numbers; "NaN", "Infinity" and "-Infinity" stand for what JSON cannot say."""


class NamedPlugin(BaseModel):
    """A plugin by its name; what else there is are its options."""

    model_config = ConfigDict(extra="allow")

    name: str


@dataclass(frozen=True, eq=False)
class _Like:
    """In the JSON Schema as this type is, though it is not checked like it: tensors have other forms than nested arrays."""

    core: CoreSchema

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.core)


def _schema_of(kind: Any) -> _Like:
    return _Like(TypeAdapter(kind).core_schema)


Numbers = Annotated[Any, _schema_of(NestedNumbers)]
NumbersOut = Annotated[Any, _schema_of(NestedNumbersOut)]
Plugin = Annotated[Any, _schema_of(str | NamedPlugin)]
Named = Annotated[dict[str, Any], _schema_of(dict[str, NestedNumbers])]
NamedOut = Annotated[Any, _schema_of(dict[str, NestedNumbersOut])]
Figure = float | Literal["NaN", "Infinity", "-Infinity"]
Seed = Annotated[int, Field(strict=True, ge=0, lt=MAX_SEED)]
Size = Annotated[int, Field(strict=True, ge=0)]
Draws = Annotated[int, Field(strict=True, ge=1)]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]

_DRAWS = "independent draws to average"
_EXACT = "the exact {0}; null where neither a closed form nor enumeration gives it"


class Request(BaseModel):
    """What every request has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuron: Plugin = Field(examples=["bernoulli"])
    a: Numbers = Field(
        examples=[[[0.5, -1.0, 2.0]]], description="pre-activations, [*batch, *event]: nested arrays of numbers"
    )
    shape: list[Size] | None = Field(
        None, description="the shape of a; needed only for what JSON cannot say, as [0, 3]"
    )
    dtype: Dtype | None = Field(
        None,
        description="the type in which a is read, and in which points and gradients come back; null takes its own from a "
        "tensor, and float32 from JSON",
    )


class SampleRequest(Request):
    """Independent outputs of a neuron."""

    samples: Size = Field(1, description="how many")
    seed: Seed | None = Field(None, description="of the noise; null takes a fresh one, which the answer reports")


class MeanRequest(Request):
    """What is known of a neuron's output without sampling it."""


class ForwardRequest(Request):
    """Where an estimator wants the loss."""

    estimator: Plugin = Field(examples=["rloo"])
    seed: Seed | None = Field(None, description="of the noise; null takes a fresh one, which the answer reports")
    state: Named | None = Field(
        None, description="the estimator's state, from the last backward answer; null at the first step"
    )


class BackwardRequest(Request):
    """The losses at those points. All else is as it was in the forward request; the service has kept nothing."""

    estimator: Plugin = Field(examples=["rloo"])
    seed: Seed = Field(examples=[7], description="the one that the forward answer reports")
    state: Named | None = Field(None, description="as in the forward request")
    loss: Numbers | None = Field(
        None,
        examples=[[[0.2], [0.3]]],
        description="the loss at the points, [K, *batch]; null only where it is not needed",
    )
    grad: Numbers | None = Field(
        None, description="dloss/dh at the points, [K, *batch, *event], where the estimator needs it"
    )


class EstimateRequest(Request):
    """The gradient of an objective's expectation, by averaging independent draws of an estimator."""

    estimator: Plugin = Field(examples=["rloo"])
    objective: Plugin = Field(examples=[{"name": "quadratic", "target": 0.499}])
    draws: Draws = Field(1000, description=_DRAWS)
    target_standard_error: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="to stop at, of every coordinate of the gradient; draws is then the cap",
    )
    seed: Seed | None = Field(None, description="of the noise; null takes a fresh one, which the answer reports")


class CompareRequest(Request):
    """Estimators side by side on one objective."""

    objective: Plugin = Field(examples=[{"name": "quadratic", "target": 0.499}])
    estimators: list[Plugin] | None = Field(
        None,
        examples=[["rloo", "straight_through"]],
        description="null takes every registered one that fits the neuron and the service's limits",
    )
    draws: Draws = Field(1000, description=f"{_DRAWS}, of each estimator")
    seed: Seed | None = Field(None, description="of the noise; null takes a fresh one, which the answer reports")


class RecommendRequest(BaseModel):
    """What a caller has and wants, as query parameters; ones that are no plain words or numbers are in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuron: Plugin = Field("bernoulli", description='a name, or {"name": ..., and its options}')
    bring: list[Literal["loss", "grad", "relaxed"]] = Field(
        ["loss"],
        min_length=1,
        description="what the caller can bring, separated by commas: loss; grad, dL/dh; relaxed, both between outputs too",
    )
    evaluations: int | None = Field(None, ge=1, description="of the loss, that one step may cost; any if not given")
    unbiased: bool = Field(False, description="only estimators without bias")
    saturated: bool = Field(False, description="the units are sure of themselves: p near 0 or 1")
    units: int | None = Field(None, ge=1, description="in an event")
    objective: Plugin | None = Field(None, description="to measure on, at a: the errors are then of this loss")
    a: Numbers | None = Field(None, description="pre-activations to measure at, [*batch, *event]")
    draws: int = Field(1000, ge=1, description="of the measurement")
    seed: int | None = Field(None, ge=0, lt=MAX_SEED, description="of the measurement's noise")


class TensorInfo(BaseModel):
    """What a nested array cannot say: the dims behind one of size 0, and the type."""

    shape: list[int]
    dtype: str


class Answer(BaseModel):
    """What every answer with tensors has."""

    tensors: dict[str, TensorInfo] = Field({}, description="shape and dtype of every tensor of the answer, by field")


class SampleAnswer(Answer):
    """Samples."""

    h: NumbersOut = Field(description="[samples, *batch, *event]; in safetensors uint8 for binary units")
    seed: int


class MeanAnswer(Answer):
    """Expectations, in at least float32."""

    mean: NumbersOut = Field(description="E[h], [*batch, *event]")
    active_probability: NumbersOut = Field(description="P(h > 0), [*batch, *event]")


class ForwardAnswer(Answer):
    """A draw."""

    points: NumbersOut = Field(description="[K, *batch, *event]: where the loss is wanted")
    weights: NumbersOut = Field(
        description="[K] or [K, *batch], in at least float32: sum_k weights_k loss_k estimates E[loss]"
    )
    needs: list[Literal["loss", "grad"]] = Field(description="what backward wants")
    seed: int


class BackwardAnswer(Answer):
    """A gradient."""

    gradient: NumbersOut = Field(description="[*batch, *event]")
    value: NumbersOut | None = Field(
        description="the estimate of E[loss], [*batch], in at least float32; null without a loss"
    )
    weights: NumbersOut | None = Field(
        description="d value / d loss, [K] or [K, *batch]: what the parameters of the loss are to be trained with; forward's "
        "weights, unless what is estimated is not linear in the losses; null without a loss"
    )
    state: NamedOut = Field(description="for the next step, in at least float32; empty where the estimator has none")


class Exact(BaseModel):
    """The truth."""

    loss: NumbersOut = Field(description="E[loss], [*batch]")
    gradient: NumbersOut = Field(description="[*batch, *event]")


class EstimateAnswer(Answer):
    """An estimate; its numbers are in at least float32."""

    loss: NumbersOut = Field(description="the mean estimate of E[loss], [*batch]")
    gradient: NumbersOut = Field(description="the mean of the draws, [*batch, *event]")
    variance: NumbersOut = Field(description="of ONE draw, per coordinate")
    standard_error: NumbersOut = Field(description="of the gradient: sqrt(variance / draws)")
    draws: int
    evaluations: int = Field(description="K: evaluations of the loss in one draw")
    seconds: float
    seed: int
    state: NamedOut = Field(description="the estimator's state at which the draws were made")
    exact: Exact | None = Field(description=_EXACT.format("loss and gradient"))


class Row(BaseModel):
    """One estimator. Figures that need the exact gradient are null where it is not to be had."""

    estimator: str
    claim: str = Field(description="the bias that the estimator claims")
    evaluations: int
    bias: Figure | None = Field(description="root mean square over coordinates of (mean gradient - exact gradient)")
    bias_in_se: Figure | None = Field(description="the same in standard errors; near 1 for an unbiased estimator")
    variance: Figure = Field(description="of one draw, mean over coordinates")
    snr: Figure = Field(description="|mean gradient| / sqrt(summed variance of one draw)")
    cosine: Figure | None = Field(description="of the angle between the mean gradient and the exact one")
    efficiency: Figure = Field(description="1 / (variance * evaluations)")
    seconds: float


class CompareAnswer(BaseModel):
    """A table of estimators."""

    neuron: str
    draws: int
    seed: int
    rows: list[Row]
    exact: NumbersOut | None = Field(description=_EXACT.format("gradient, [*batch, *event]"))


class EstimateSoFar(BaseModel):
    """What an estimate has found so far."""

    draws: int
    loss: NumbersOut
    gradient: NumbersOut
    standard_error: NumbersOut


class Progress(BaseModel):
    """How far a comparison is with one estimator; or, as `exact`, with the points of the exact gradient."""

    estimator: str
    done: int
    draws: int


# --- what is registered, and how the service is ---


class Description(BaseModel):
    """What every plugin says of itself."""

    name: str
    summary: str
    formula: str = Field(description="in LaTeX")
    reference: str
    options: dict[str, Any] = Field(description="the JSON Schema of its options")
    capabilities: list[str]


class NeuronDescription(Description):
    """A neuron."""

    event_ndim: int
    estimators: list[str] = Field(description="those that fit it")


class EstimatorDescription(Description):
    """An estimator, on the neurons that it fits."""

    needs: list[Literal["loss", "grad"]]
    off_support: bool
    target: str
    needs_capabilities: list[str]
    neurons: list[str]
    bias: dict[str, str]
    evaluations: dict[str, dict[str, int | None]] = Field(description="K by neuron and number of units")
    certificates: list[Certificate] | None = Field(None, description="what was measured; in the list of all left out")


class ObjectiveDescription(Description):
    """An objective."""


class Distribution(BaseModel):
    """What one distribution registered."""

    distribution: str
    version: str
    neurons: list[str]
    estimators: list[str]
    objectives: list[str]


class Plugins(BaseModel):
    """What each distribution registered, and what did not load."""

    plugins: list[Distribution]
    failures: list[PluginFailure]


class RecommendAnswer(RootModel[Recommendation]):
    """The estimators that fit, best first, and why the others do not."""


class Status(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """Requests are welcome."""

    status: Literal["ready"]
    plugins: int
    failures: int


class Versions(BaseModel):
    """Of what computes the answers."""

    gradest: str
    plugin_api: int
    torch: str
    python: str
