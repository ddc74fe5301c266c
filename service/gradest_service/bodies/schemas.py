"""The fields of requests and of answers with results: they are checked by these models, shown at /docs, and written by a codec.

Tensors are `Any` here, because each content type has its own form of them; the JSON Schema describes their form in JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    RootModel,
    TypeAdapter,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

from gradest.analysis.results import Excluded
from gradest.random import MAX_SEED

__all__ = [
    "BackwardAnswer",
    "BackwardRequest",
    "CompareAnswer",
    "CompareRequest",
    "ComparisonRow",
    "CreditAnswer",
    "CreditRequest",
    "EstimateAnswer",
    "EstimateRequest",
    "EstimateSoFar",
    "Exact",
    "ForwardAnswer",
    "ForwardRequest",
    "MeanAnswer",
    "MeanRequest",
    "MeasureRequest",
    "NeuronRequest",
    "Progress",
    "RecommendRequest",
    "SampleAnswer",
    "SampleRequest",
]


# Generators of clients make no types of a recursive schema, so these say what nested arrays are without recursion.
class NestedNumbers(
    RootModel[float | list[float] | list[list[float]] | list[list[list[float]]] | list[list[list[list[Any]]]]]
):
    """A number, or a rectangular nested array of numbers."""


class NumberOut(RootModel[float | Annotated[str, Field(pattern="^(NaN|-?Infinity)$")]]):
    """A number; one that is not finite is the string "NaN", "Infinity" or "-Infinity"."""


class NestedNumbersOut(RootModel[NumberOut | list[Any]]):
    """A number, or a rectangular nested array of numbers; those that are not finite are strings, as in NumberOut."""


class State(RootModel[dict[str, NestedNumbers]]):
    """The tensors of an estimator's state, by name."""


class StateOut(RootModel[dict[str, NestedNumbersOut]]):
    """The tensors of an estimator's state, by name. Send them back as they are."""


class NamedPlugin(BaseModel):
    """A plugin by its name; the other fields are its options."""

    model_config = ConfigDict(extra="allow")

    name: str


@dataclass(frozen=True, eq=False)
class _DescribedAs:
    """Describes a field in the JSON Schema as this type, without checking it: tensors have other forms than nested arrays."""

    core: CoreSchema

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self.core)


def _described_as(kind: Any) -> _DescribedAs:
    core = TypeAdapter(kind).core_schema
    if "ref" in core:  # a model by itself is described by a reference, as it is inside other types
        reference = core_schema.definition_reference_schema(core["ref"])
        core = core_schema.definitions_schema(reference, [core])
    return _DescribedAs(core)


Numbers = Annotated[Any, _described_as(NestedNumbers)]
NumbersOut = Annotated[Any, _described_as(NestedNumbersOut)]
PluginSpec = Annotated[Any, _described_as(str | NamedPlugin)]
NamedTensors = Annotated[dict[str, Any], _described_as(State)]
NamedTensorsOut = Annotated[Any, _described_as(StateOut)]


def _integral(value: Any) -> Any:
    """Return an integer for a float that is one, such as 364.0, because JSON Schema and many clients do not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_INTEGRAL = BeforeValidator(_integral)
Seed = Annotated[int, Field(strict=True, ge=0, lt=MAX_SEED), _INTEGRAL]
Size = Annotated[int, Field(strict=True, ge=0), _INTEGRAL]
Shape = Annotated[list[Size], Field(fail_fast=True)]  # one fault is enough
Draws = Annotated[int, Field(strict=True, ge=1), _INTEGRAL]
Dtype = TypeAliasType("Dtype", Literal["float32", "float64", "bfloat16", "float16"])

_DRAWS = "Number of independent draws to average"
_SEED = "Seed of the noise; null takes a fresh one, which the answer reports."
_EXACT = "The exact {0}; null if neither a closed form nor enumeration gives it."


class NeuronRequest(BaseModel):
    """The fields of every request that has pre-activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuron: PluginSpec
    a: Numbers = Field(description="Pre-activations, [*batch, *event], as nested arrays of numbers.")
    shape: Shape | None = Field(
        None, description="The shape of a; needed only for shapes that JSON cannot express, such as [0, 3]."
    )
    dtype: Dtype | None = Field(
        None,
        description="The dtype to which a is converted, and which points and gradients have; null keeps the dtype of a "
        "tensor, and takes float32 for JSON.",
    )


class EventRequest(NeuronRequest):
    """The fields of every request in which a loss is taken of events."""

    event_dims: Size | Literal["all"] | None = Field(
        None,
        description="How many trailing dims of a are one event, with one loss; null takes the neuron's own number. It is 2 for "
        'a of [B, T, units] whose T positions share a loss [B], and "all" for parameters, which have no batch. An objective '
        "receives the event in the neuron's own shape, here [T * units].",
    )


class SampleRequest(NeuronRequest):
    """Independent outputs of a neuron."""

    samples: Size = Field(1, description="Number of samples.")
    seed: Seed | None = Field(None, description=_SEED)


class MeanRequest(NeuronRequest):
    """Moments of a neuron's output that need no sampling."""


class ForwardRequest(EventRequest):
    """The points at which an estimator needs the loss."""

    estimator: PluginSpec
    seed: Seed | None = Field(None, description=_SEED)
    state: NamedTensors | None = Field(
        None, description="The estimator's state, from the last backward answer; null at the first step."
    )


class BackwardRequest(EventRequest):
    """The losses at those points. All else is as in the forward request, of which the service has kept nothing."""

    estimator: PluginSpec
    seed: Seed = Field(description="The seed that the forward answer reports.")
    state: NamedTensors | None = Field(None, description="The state that the forward request had.")
    digest: str | None = Field(
        None,
        max_length=200,
        description="The digest that the forward answer reports. With it, a request whose neuron, estimator, a, seed or state is "
        "not that of the forward request is refused with 409; without it, the gradient would be wrong.",
    )
    loss: Numbers | None = Field(
        None,
        description="The loss at the points, [K, *batch]; null only if the estimator does not need it.",
    )
    loss_dtype: Dtype | None = Field(
        None,
        description="The dtype to which the loss is converted, in which differences of losses are taken unless that of a is "
        "wider; null keeps the dtype of a tensor, and takes float64 for JSON.",
    )
    grad: Numbers | None = Field(
        None, description="dL/dh at the points, [K, *batch, *event]; null only if the estimator does not need it."
    )


class EstimateRequest(EventRequest):
    """The gradient of an objective's expectation, by averaging independent draws of an estimator."""

    estimator: PluginSpec
    objective: PluginSpec
    draws: Draws = Field(1000, description=f"{_DRAWS}.")
    target_standard_error: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Stop once every coordinate of the gradient has this standard error or less; draws is then the maximum.",
    )
    seed: Seed | None = Field(None, description=_SEED)


class CompareRequest(EventRequest):
    """Several estimators compared on one objective."""

    objective: PluginSpec
    estimators: list[PluginSpec] | None = Field(
        None,
        description="Null takes every registered estimator that fits the neuron and the service's limits.",
    )
    draws: Draws = Field(1000, description=f"{_DRAWS}, for each estimator.")
    seed: Seed | None = Field(None, description=_SEED)


class CreditRequest(BaseModel):
    """The weights with which a score-function estimator multiplies the scores of the caller's own samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimator: PluginSpec = Field(description="An estimator that weights scores by losses alone.")
    loss: Numbers = Field(
        description="The losses of K samples, [K, *batch]; the estimator credits all K against each other.",
    )
    shape: Shape | None = Field(
        None, description="The shape of the loss; needed only for shapes that JSON cannot express, such as [4, 0]."
    )
    dtype: Dtype | None = Field(
        None,
        description="The dtype to which the loss is converted; null keeps that of a tensor, and takes float64 for JSON.",
    )
    features: Numbers | None = Field(
        None,
        description="What some estimators must know beside the losses: for opo the lengths of sequences, [K, *batch]; for nvil "
        "the inputs of its baseline, [*batch, features].",
    )
    state: NamedTensors | None = Field(
        None, description="The estimator's state, from the last answer; null at the first step."
    )


class RecommendRequest(BaseModel):
    """What a caller has and wants; as query parameters, a value that is no plain word or number is in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neuron: PluginSpec = Field("bernoulli", description='A name, or {"name": ..., and its options}.')
    bring: Annotated[list[Literal["loss", "grad", "relaxed"]], Field(fail_fast=True)] = Field(
        ["loss"],
        min_length=1,
        description="What the caller can compute, repeated or separated by commas: loss; grad, which is dL/dh; relaxed, which is "
        "both at points between the neuron's outputs too.",
    )
    evaluations: Annotated[int, Field(ge=1), _INTEGRAL] | None = Field(
        None, description="Maximum evaluations of the loss in one step; no maximum if omitted."
    )
    unbiased: bool = Field(False, description="Recommend only estimators without bias.")
    saturated: bool = Field(False, description="Whether the units' probabilities are near 0 or 1.")
    units: Annotated[int, Field(ge=1), _INTEGRAL] | None = Field(None, description="Number of units in one event.")
    p: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="For Bernoulli units, the probability of the rarer output, 0 or 1, mean over units.",
    )
    curvature: float | None = Field(
        None,
        ge=0,
        le=1,
        description="For Bernoulli units, the share of the variance of L that is not that of a sum of functions of single units.",
    )


class MeasureRequest(RecommendRequest):
    """A case as for GET, and what the errors of the estimators are to be measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    objective: PluginSpec = Field(
        description="The objective on which the errors are measured, at the pre-activations a."
    )
    a: Numbers = Field(description="Pre-activations to measure at, [*batch, *event].")
    draws: Draws = Field(1000, description=f"{_DRAWS}, for each estimator.")
    seed: Seed | None = Field(None, description=_SEED)


class TensorInfo(BaseModel):
    """What a nested array cannot express: the dims behind one of size 0, and the dtype."""

    shape: list[int]
    dtype: str


class Answer(BaseModel):
    """The field of every answer with tensors."""

    tensors: dict[str, TensorInfo] = Field({}, description="Shape and dtype of each tensor of the answer, by field.")


class SampleAnswer(Answer):
    """Samples."""

    h: NumbersOut = Field(description="[samples, *batch, *event]; in safetensors uint8 for binary units.")
    seed: int


class MeanAnswer(Answer):
    """Moments, in at least float32."""

    mean: NumbersOut = Field(description="E[h], [*batch, *event].")
    active_probability: NumbersOut = Field(description="P(h > 0), [*batch, *event].")


class ForwardAnswer(Answer):
    """A draw."""

    points: NumbersOut = Field(description="The points at which to evaluate the loss, [K, *batch, *event].")
    weights: NumbersOut = Field(
        description="[K] or [K, *batch], in at least float32: sum_k weights_k loss_k estimates E[loss]."
    )
    needs: list[Literal["loss", "grad"]] = Field(description="What the backward request must have.")
    seed: int
    event_dims: int = Field(description="How many trailing dims of a are one event, with one loss.")
    digest: str = Field(description="Identifies the draw. Send it with the backward request, as it is.")


class BackwardAnswer(Answer):
    """A gradient."""

    gradient: NumbersOut = Field(description="[*batch, *event].")
    value: NumbersOut | None = Field(
        description="The estimate of E[loss], [*batch], in the precision of the loss, at least float32; null without a loss."
    )
    weights: NumbersOut | None = Field(
        description="d value / d loss, [K] or [K, *batch], with which the parameters of the loss are trained. These are "
        "forward's weights unless the value is not linear in the losses. Null without a loss."
    )
    state: NamedTensorsOut = Field(
        description="The state for the next step, in at least float32; empty if the estimator has none."
    )


class CreditAnswer(Answer):
    """Credit, in at least float32."""

    weights: NumbersOut = Field(
        description="[K, *batch]: the estimate is the sum over the samples of their weight times the gradient of their "
        "log-probability."
    )
    state: NamedTensorsOut = Field(description="The state for the next step; empty if the estimator has none.")


class Exact(BaseModel):
    """The exact values, by a closed form or by enumeration."""

    loss: NumbersOut = Field(description="E[loss], [*batch].")
    gradient: NumbersOut = Field(description="[*batch, *event].")


class EstimateAnswer(Answer):
    """An estimate; its numbers are in at least float32."""

    loss: NumbersOut = Field(description="The mean estimate of E[loss], [*batch].")
    gradient: NumbersOut = Field(description="The mean of the draws, [*batch, *event].")
    variance: NumbersOut = Field(description="The variance of ONE draw, for each coordinate.")
    standard_error: NumbersOut = Field(description="The standard error of the gradient: sqrt(variance / draws).")
    draws: int
    evaluations: int = Field(description="K: evaluations of the loss in one draw.")
    seconds: float
    seed: int
    state: NamedTensorsOut = Field(description="The estimator's state with which the draws were made.")
    exact: Exact | None = Field(description=_EXACT.format("loss and gradient"))


class ComparisonRow(BaseModel):
    """One estimator. Figures that need the exact gradient are null if it cannot be computed."""

    estimator: str
    claim: str = Field(description="The bias that the estimator claims.")
    evaluations: int
    bias: NumberOut | None = Field(description="Root mean square over coordinates of (mean gradient - exact gradient).")
    bias_in_se: NumberOut | None = Field(description="The same in standard errors; near 1 for an unbiased estimator.")
    variance: NumberOut = Field(description="The variance of one draw, averaged over coordinates.")
    snr: NumberOut = Field(description="|mean gradient| / sqrt(summed variance of one draw).")
    cosine: NumberOut | None = Field(description="Cosine of the angle between the mean gradient and the exact one.")
    efficiency: NumberOut = Field(description="1 / (variance * evaluations).")
    seconds: float


class CompareAnswer(BaseModel):
    """A table of estimators."""

    neuron: str
    draws: int
    seed: int
    rows: list[ComparisonRow]
    failures: list[Excluded] = Field(description="The estimators without a row, because the code of a plugin failed.")
    skipped: list[Excluded] = Field(
        description="The estimators without a row, because they need dL/dh, which the objective does not have."
    )
    unresolved: list[Excluded] = Field(
        description="The estimators whose bias_in_se is no evidence of bias, because the draws hardly show outputs that the "
        "gradient needs."
    )
    exact: NumbersOut | None = Field(description=_EXACT.format("gradient, [*batch, *event]"))
    no_exact: str | None = Field(None, description="Why there is no exact gradient; null if there is one.")


class EstimateSoFar(BaseModel):
    """What an estimate has found so far."""

    draws: int
    loss: NumbersOut
    gradient: NumbersOut
    standard_error: NumbersOut


class Progress(BaseModel):
    """How many draws one estimator of a comparison has made; or, for `exact`, how many points the exact gradient has."""

    estimator: str
    done: int
    draws: int
