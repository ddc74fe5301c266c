"""The fields of requests and answers: what is checked, what /docs shows, and what a codec writes.

Tensors are `Any` here, since each content type has its own form of them: the JSON Schema says what they are in JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from gradest.random import MAX_SEED

__all__ = [
    "BackwardAnswer",
    "BackwardRequest",
    "CompareAnswer",
    "CompareRequest",
    "EstimateAnswer",
    "EstimateRequest",
    "Exact",
    "ForwardAnswer",
    "ForwardRequest",
    "RecommendRequest",
    "Request",
    "SampleAnswer",
    "SampleRequest",
]

_NUMBERS = {"description": "a number, or a rectangular nested array of numbers", "type": ["number", "array"]}
_NUMBERS_OUT = {
    "description": 'a number, or a nested array of numbers; "NaN", "Infinity" and "-Infinity" stand for what JSON cannot say',
    "type": ["number", "string", "array"],
}
_PLUGIN = {
    "description": 'a name, or {"name": ..., and its options}',
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "additionalProperties": True,
        },
    ],
}

Numbers = Annotated[Any, WithJsonSchema(_NUMBERS)]
NumbersOut = Annotated[Any, WithJsonSchema(_NUMBERS_OUT)]
Plugin = Annotated[Any, WithJsonSchema(_PLUGIN)]
Named = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": _NUMBERS})]
NamedOut = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": _NUMBERS_OUT})]
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
    bias: float | None = Field(description="root mean square over coordinates of (mean gradient - exact gradient)")
    bias_in_se: float | None = Field(description="the same in standard errors; near 1 for an unbiased estimator")
    variance: float = Field(description="of one draw, mean over coordinates")
    snr: float | str = Field(description="|mean gradient| / sqrt(summed variance of one draw)")
    cosine: float | str | None = Field(description="of the angle between the mean gradient and the exact one")
    efficiency: float | str = Field(description="1 / (variance * evaluations)")
    seconds: float


class CompareAnswer(BaseModel):
    """A table of estimators."""

    neuron: str
    draws: int
    seed: int
    rows: list[Row]
    exact: NumbersOut | None = Field(description=_EXACT.format("gradient, [*batch, *event]"))
