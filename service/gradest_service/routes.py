"""Which path does what. Every request is decoded, admitted and run, and its answer is encoded; `answer_joinable` shows it.

Bodies are read raw. They are decoded, and answers computed and encoded, in the threads of a bounded pool.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import torch
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

import gradest
from gradest.analysis import catalog
from gradest.errors import PluginError, UnknownPlugin
from gradest.random import VERSION as NOISE_VERSION
from gradest_service.admit import admission
from gradest_service.admit.jobs import (
    BackwardJob,
    ComparisonJob,
    CreditJob,
    EstimateJob,
    ForwardJob,
    Job,
    NeuronJob,
    RecommendationJob,
    SampleJob,
)
from gradest_service.admit.limits import light_need, need_of
from gradest_service.admit.plugins import only_built_ins, unknown_plugin
from gradest_service.admit.pool import Pool
from gradest_service.admit.request_context import reserve
from gradest_service.bodies import descriptions, schemas
from gradest_service.bodies.codec import CODECS, JSON, Codec, answer_codec, parse_json, prefers
from gradest_service.bodies.request_body import RequestBody, read_body, validate
from gradest_service.openapi import (
    counted_errors,
    describe_answer,
    describe_errors,
    describe_list,
    describe_path_name,
    describe_query,
    describe_request,
)
from gradest_service.phases import phase
from gradest_service.problems import Problem
from gradest_service.run import joint_pass, operations
from gradest_service.run.batching import Batcher
from gradest_service.run.cancellation import raise_if_cancelled
from gradest_service.run.device import Device
from gradest_service.run.event_stream import EventStream, Report
from gradest_service.run.streaming import stream_comparison, stream_estimate
from gradest_service.settings import Settings

__all__ = ["answer_joinable", "router"]

_SMALL_BYTES = 1 << 13  # up to this size, decoding a body on the event loop takes less time than handing it to a thread
_HEALTH_ERRORS = describe_errors(413, 500)
AnyRequest = TypeVar("AnyRequest", bound=schemas.NeuronRequest)
AnyJob = TypeVar("AnyJob", SampleJob, ForwardJob, BackwardJob)
AnyAdmitted = TypeVar("AnyAdmitted", bound=Job)
Endpoint = Callable[[Request], Any]


class _RawRoute(APIRoute):
    """A route whose function takes the request and returns the response, with nothing for FastAPI to convert between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function itself."""
        return self.endpoint


router = APIRouter(default_response_class=Response, route_class=_RawRoute)


# --- sampling and estimation ---


@dataclass(frozen=True)
class JoinableOperation(Generic[AnyRequest, AnyJob]):
    """An operation whose requests can be computed together with others of their kind."""

    summary: str
    request: type[AnyRequest]
    answer: type[BaseModel]
    admit: Callable[[AnyRequest, Settings, bool], AnyJob]
    run: Callable[[Sequence[AnyJob], Device], Sequence[BaseModel]]
    errors: Sequence[int] = ()
    """The statuses of errors that other operations do not have."""

    def run_and_encode(self, device: Device, items: Sequence[tuple[AnyJob, Codec]]) -> list[bytes]:
        """Run several jobs of one kind together, and encode the answer to each."""
        with phase("compute"):
            answers = self.run([job for job, _ in items], device)
        with phase("encode"):
            return [codec.encode(answer) for (_, codec), answer in zip(items, answers, strict=True)]


async def answer_joinable(request: Request, operation: JoinableOperation[AnyRequest, AnyJob]) -> Response:
    """Answer a request to /v1/sample, /v1/forward or /v1/backward: decode, admit, run, encode."""
    settings, pool, batcher = _parts(request)
    body = await read_body(request, settings)
    codec = answer_codec(request.headers.get("accept", ""))
    work = partial(operation.run_and_encode, _device(request))

    @phase("decode")
    def decode_and_admit() -> AnyJob:
        return operation.admit(body.decode(operation.request), settings, codec is JSON)

    def answer_unless_joined() -> tuple[AnyJob, bytes | None]:
        job = decode_and_admit()
        if need_of(settings, job).heavy:
            return job, None
        return job, batcher.run_alone(job.kind, work, (job, codec))

    encoded = None
    if body.size <= _SMALL_BYTES and only_built_ins():  # others' code may hang, and must not stop the event loop
        job = decode_and_admit()
    else:
        job, encoded = await pool.run(answer_unless_joined, light_need(settings))
    if encoded is None:
        reserve(job.bytes - body.size)
        need = need_of(settings, job)
        encoded = await batcher.run(job.kind, work, (job, codec), job.cost.work, need)
    return Response(encoded, media_type=codec.media_type)


async def mean(request: Request) -> Response:
    """E[h] and P(h > 0), in closed form or as exactly as the neuron provides them."""
    settings, _, _ = _parts(request)
    body = await read_body(request, settings)
    codec = answer_codec(request.headers.get("accept", ""))

    def admit() -> NeuronJob:
        return admission.admit_mean(body.decode(schemas.MeanRequest), settings, codec is JSON)

    return await _answer(request, body, admit, lambda job: operations.mean(job, settings, _device(request)), codec)


async def credit(request: Request) -> Response:
    """The weights of the scores of the caller's own samples, as `gradest.credit` returns them."""
    settings, _, _ = _parts(request)
    body = await read_body(request, settings)
    codec = answer_codec(request.headers.get("accept", ""))

    def admit() -> CreditJob:
        return admission.admit_credit(body.decode(schemas.CreditRequest), settings, codec is JSON)

    return await _answer(request, body, admit, lambda job: operations.credit(job, _device(request)), codec)


async def estimate(request: Request) -> Response:
    """The mean and the variance of many draws.

    If Accept prefers text/event-stream, the answer is a stream of the estimate so far, which ends with the estimate.
    """
    settings, _, _ = _parts(request)
    body = await read_body(request, settings)
    accept = request.headers.get("accept", "")
    codec = answer_codec(accept)
    streamed = prefers(accept, EventStream.media_type, JSON.media_type)
    as_json = streamed or codec is JSON

    def admit() -> EstimateJob:
        return admission.admit_estimate(body.decode(schemas.EstimateRequest), settings, as_json)

    if streamed:
        job = await _admit(request, body, admit)
        return _stream(request, job, partial(stream_estimate, job, settings, _device(request)))
    return await _answer(request, body, admit, lambda job: operations.estimate(job, settings, _device(request)), codec)


async def compare(request: Request) -> Response:
    """A stream of `progress` events, then one `result` or `error`. If Accept prefers JSON, the result alone."""
    settings, _, _ = _parts(request)
    body = await read_body(request, settings)

    def admit() -> ComparisonJob:
        return admission.admit_comparison(body.decode(schemas.CompareRequest), settings)

    if not prefers(request.headers.get("accept", ""), JSON.media_type, EventStream.media_type):
        job = await _admit(request, body, admit)
        return _stream(request, job, partial(stream_comparison, job, _device(request)))
    return await _answer(
        request, body, admit, lambda job: operations.compare(job, raise_if_cancelled, _device(request)).to_dict(), JSON
    )


async def _admit(request: Request, body: RequestBody, admit: Callable[[], AnyAdmitted]) -> AnyAdmitted:
    """Decode and admit a request in a thread, and reserve room for what its tensors take beyond its body."""
    settings, pool, _ = _parts(request)
    job = await pool.run(phase("decode")(admit), light_need(settings))
    reserve(job.bytes - body.size)
    return job


async def _answer(
    request: Request,
    body: RequestBody,
    admit: Callable[[], AnyAdmitted],
    compute: Callable[[AnyAdmitted], Any],
    codec: Codec,
) -> Response:
    """Decode, admit, compute and encode in one thread, except that heavy work first waits for its turn and for what it takes."""
    settings, pool, _ = _parts(request)

    def answer_if_light() -> tuple[AnyAdmitted, bytes | None]:
        job = phase("decode")(admit)()
        return job, None if need_of(settings, job).heavy else _compute(partial(compute, job), codec)

    job, encoded = await pool.run(answer_if_light, light_need(settings))
    if encoded is None:
        reserve(job.bytes - body.size)
        encoded = await pool.run(lambda: _compute(partial(compute, job), codec), need_of(settings, job))
    return Response(encoded, media_type=codec.media_type)


def _stream(request: Request, job: Job, run: Callable[[Report], Any]) -> EventStream:
    settings, pool, _ = _parts(request)
    return EventStream(run, pool, request.app.state.memory, request.state.request_id, need_of(settings, job))


def _compute(compute: Callable[[], Any], codec: Codec) -> bytes:
    """Compute an answer, and encode it."""
    with phase("compute"):
        answer = compute()
    with phase("encode"):
        return codec.encode(answer)


def _parts(request: Request) -> tuple[Settings, Pool, Batcher]:
    state = request.app.state
    return state.settings, state.pool, state.batcher


def _device(request: Request) -> Device:
    device: Device = request.app.state.device
    return device


# The name of a route is its operationId in the OpenAPI document, from which generated clients take the names of their functions.


def _add_joinable(path: str, operation: JoinableOperation[Any, Any]) -> None:
    async def endpoint(request: Request) -> Response:
        return await answer_joinable(request, operation)

    endpoint.__doc__ = operation.summary
    _add_post(path, endpoint, operation.request, operation.answer, *CODECS, errors=operation.errors)


def _add_post(
    path: str,
    endpoint: Endpoint,
    request: type[BaseModel],
    answer: type[BaseModel],
    *media_types: str,
    name: str = "",
    errors: Sequence[int] = (),
) -> None:
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        name=name or path.rpartition("/")[2],
        tags=["estimation"],
        summary=request.__doc__,
        responses=describe_answer(answer, media_types or (JSON.media_type,))
        | counted_errors(400, 404, 408, 415, 422, *errors),
        openapi_extra=describe_request(request),
    )


_add_joinable(
    "/v1/sample",
    JoinableOperation(
        summary="Sample a neuron, as `gradest.sample` does.",
        request=schemas.SampleRequest,
        answer=schemas.SampleAnswer,
        admit=admission.admit_sample,
        run=joint_pass.sample,
    ),
)
_add_joinable(
    "/v1/forward",
    JoinableOperation(
        summary="Compute the first half of a gradient, as `gradest.ask` does.",
        request=schemas.ForwardRequest,
        answer=schemas.ForwardAnswer,
        admit=admission.admit_forward,
        run=joint_pass.forward,
    ),
)
_add_joinable(
    "/v1/backward",
    JoinableOperation(
        summary="Compute the second half of a gradient, as `gradest.tell` does, from the draw that forward made.",
        request=schemas.BackwardRequest,
        answer=schemas.BackwardAnswer,
        admit=admission.admit_backward,
        run=joint_pass.backward,
        errors=[409],
    ),
)
_add_post("/v1/mean", mean, schemas.MeanRequest, schemas.MeanAnswer, *CODECS)
_add_post("/v1/credit", credit, schemas.CreditRequest, schemas.CreditAnswer, *CODECS)
_add_post("/v1/estimate", estimate, schemas.EstimateRequest, schemas.EstimateAnswer, *CODECS, EventStream.media_type)
_add_post(
    "/v1/compare", compare, schemas.CompareRequest, schemas.CompareAnswer, JSON.media_type, EventStream.media_type
)


# --- what is registered ---


@dataclass(frozen=True)
class _PluginKind:
    """One of the kinds of plugins, as the registry names it."""

    name: str
    describe: Callable[[Any], dict[str, Any]]
    model: type[BaseModel]

    def registered(self) -> Mapping[str, type]:
        """Return the registered plugins of this kind."""
        found: Mapping[str, type] = getattr(gradest.registry, f"{self.name}s")
        return found

    def describe_all(self) -> list[dict[str, Any]]:
        """Describe every registered plugin of this kind."""
        return [self.describe(cls) for cls in self.registered().values()]

    def describe_one(self, name: str) -> dict[str, Any]:
        """Describe one plugin fully; raises a 404 with near matches if there is none of this name."""
        if name not in self.registered():
            try:
                getattr(gradest.registry, self.name)(name)  # raises, with near matches
            except UnknownPlugin as error:
                raise unknown_plugin(error, name) from error
        return catalog.describe_with_certificates(self.registered()[name])


def _add_kind(kind: _PluginKind) -> None:
    async def describe_all(request: Request) -> Response:
        return await _answer_json(request, kind.describe_all)

    async def describe_one(request: Request) -> Response:
        return await _answer_json(request, partial(kind.describe_one, request.path_params["name"]))

    every, one = f"Every {kind.name}", f"One {kind.name}"
    router.add_api_route(
        f"/v1/{kind.name}s",
        describe_all,
        name=f"list_{kind.name}s",
        summary=every,
        tags=["registry"],
        responses=describe_list(kind.model, every) | counted_errors(),
    )
    router.add_api_route(
        f"/v1/{kind.name}s/{{name}}",
        describe_one,
        name=f"get_{kind.name}",
        summary=one,
        tags=["registry"],
        responses=describe_answer(kind.model, description=one) | counted_errors(404),
        openapi_extra=describe_path_name(),
    )


_add_kind(_PluginKind("neuron", catalog.describe_neuron, descriptions.NeuronDescription))
_add_kind(_PluginKind("estimator", catalog.describe_estimator, descriptions.EstimatorDescription))
_add_kind(_PluginKind("objective", catalog.describe_objective, descriptions.ObjectiveDescription))


@router.get(
    "/v1/plugins",
    name="list_plugins",
    tags=["registry"],
    responses=describe_answer(descriptions.PluginListing) | counted_errors(),
)
async def plugins(request: Request) -> Response:
    """What each distribution registered, and which plugins did not load."""
    return await _answer_json(request, catalog.describe_plugins)


@router.get(
    "/v1/recommend",
    summary="Which estimator fits",
    tags=["registry"],
    responses=describe_answer(descriptions.RecommendAnswer) | counted_errors(400, 404, 422),
    openapi_extra=describe_query(schemas.RecommendRequest),
)
async def recommend(request: Request) -> Response:
    """The estimators that fit a case, best first, with reasons, and why the others do not fit."""
    settings, _, _ = _parts(request)
    if _MEASURED & request.query_params.keys():
        raise Problem(
            422, f"{', '.join(sorted(_MEASURED))} are for a measurement: send them to POST /v1/recommend, in the body."
        )
    query = {name: _query_value(name, request.query_params.getlist(name)) for name in request.query_params}
    criteria = validate(schemas.RecommendRequest, query, "query")
    return await _answer_json(request, lambda: operations.recommend(admission.admit_recommendation(criteria, settings)))


async def measure(request: Request) -> Response:
    """The estimators that fit a case, with their errors measured on an objective: as for GET, with the body's fields."""
    settings, _, _ = _parts(request)
    body = await read_body(request, settings)

    def admit() -> RecommendationJob:
        return admission.admit_recommendation(body.decode(schemas.MeasureRequest), settings)

    return await _answer(request, body, admit, lambda job: operations.recommend(job, _device(request)), JSON)


_MEASURED = schemas.MeasureRequest.model_fields.keys() - schemas.RecommendRequest.model_fields.keys()
_add_post("/v1/recommend", measure, schemas.MeasureRequest, descriptions.RecommendAnswer, name="measure")


def _query_value(name: str, texts: Sequence[str]) -> Any:
    """Convert a parameter's texts: to a list if the field is one, else the last of them, from JSON if it is no plain word."""
    if name == "bring":
        return [word.strip() for text in texts for word in text.split(",")]
    return parse_json(texts[-1], name) if texts[-1][:1] in ("{", "[") else texts[-1]


async def _answer_json(request: Request, describe: Callable[[], Any]) -> Response:
    _, pool, _ = _parts(request)
    return Response(await pool.run(lambda: _compute(describe, JSON)), media_type=JSON.media_type)


# --- the state of the service ---


@router.get("/livez", tags=["service"], responses=describe_answer(descriptions.Alive) | _HEALTH_ERRORS)
async def livez(request: Request) -> Response:
    """Whether the process answers at all."""
    return Response(JSON.encode({"status": "alive"}), media_type=JSON.media_type)


@router.get(
    "/readyz", tags=["service"], responses=describe_answer(descriptions.Ready) | describe_errors(503) | _HEALTH_ERRORS
)
async def readyz(request: Request) -> Response:
    """Whether the service accepts requests: plugins are loaded, there is room for more, it is not about to stop. Else 503."""
    request.app.state.capacity.check_ready()
    try:
        counts = {
            "status": "ready",
            "plugins": len(gradest.registry.plugins),
            "failures": len(gradest.registry.failures),
            "lost_threads": request.app.state.capacity.lost_threads,
            "set_aside": sorted(request.app.state.capacity.set_aside),
        }
    except PluginError as error:
        raise Problem(503, "A plugin did not load, and GRADEST_STRICT_PLUGINS=1 requires all of them.") from error
    # not in the pool: all its threads may be busy, and the plugins were loaded before the first request
    return Response(JSON.encode(counts), media_type=JSON.media_type)


_VERSIONS = {
    "gradest": version("gradest"),
    "plugin_api": gradest.PLUGIN_API,
    "noise": NOISE_VERSION,
    "torch": torch.__version__,
    "python": platform.python_version(),
}


@router.get(
    "/version", name="version", tags=["service"], responses=describe_answer(descriptions.Versions) | counted_errors()
)
async def show_version(request: Request) -> Response:
    """The versions of the software that computes the answers."""
    return Response(JSON.encode(_VERSIONS), media_type=JSON.media_type)
