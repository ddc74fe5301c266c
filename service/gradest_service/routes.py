"""Which path does what. Bodies are read raw; they are parsed, computed on and written in a bounded pool of threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

import gradest
from gradest import catalog
from gradest.errors import PluginError, UnknownPlugin
from gradest.expectation import Estimate
from gradest_service.admit.pool import Pool
from gradest_service.admit.request_context import stop_if_told
from gradest_service.bodies import schemas
from gradest_service.bodies.codec import CODECS, JSON, SAFETENSORS, Codec, answer_codec, find_codec, parse_json, prefers
from gradest_service.problems import REF, Problem, ProblemDetails, describe_faults, documented
from gradest_service.run import joint_pass as joint
from gradest_service.run import operations
from gradest_service.run.batching import Batcher
from gradest_service.run.event_stream import EventStream, Report
from gradest_service.settings import Settings

__all__ = ["router"]

Result = TypeVar("Result")
_SMALL_BYTES = 1 << 13  # of a body that the event loop's thread reads itself
_REPORT_SECONDS = 0.1  # between the events of an estimate
AnyModel = TypeVar("AnyModel", bound=BaseModel)
AnyRequest = TypeVar("AnyRequest", bound=schemas.Request)
Endpoint = Callable[[Request], Any]


def _refer(model: type[BaseModel]) -> dict[str, Any]:
    """A place in the OpenAPI document that holds this model; the application adds the models themselves."""
    return {"schema": {"$ref": REF.format(model=model.__name__)}}


def _answer(description: str, content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The answer of a request that went well."""
    return {200: {"description": description, "content": content}}


def _body(model: type[BaseModel], media_type: str) -> dict[str, Any]:
    """A body that holds this model."""
    if media_type == EventStream.media_type:
        return {"schema": {"oneOf": [_event("progress", _PROGRESS[model]), _event("result", model), _ERROR_EVENT]}}
    if media_type != SAFETENSORS.media_type:
        return _refer(model)
    key = "request" if issubclass(model, schemas.Request) else "response"
    description = (
        f"Tensors by the names of the fields of {model.__name__}, those inside a field as state.NAME or objective.NAME; "
        f"the other fields as a JSON object, in text, under the key `{key}` of the metadata."
    )
    return {"schema": {"type": "string", "format": "binary", "description": description}}


def _event(name: str, data: type[BaseModel]) -> dict[str, Any]:
    """One event of a stream, its data this model as JSON."""
    content = {"type": "string", "contentMediaType": JSON.media_type, "contentSchema": _refer(data)["schema"]}
    return {"type": "object", "properties": {"event": {"const": name}, "data": content}, "required": ["event", "data"]}


_PROGRESS: dict[type[BaseModel], type[BaseModel]] = {
    schemas.EstimateAnswer: schemas.EstimateSoFar,
    schemas.CompareAnswer: schemas.Progress,
}
_ERROR_EVENT = _event("error", ProblemDetails)
_COUNTED = documented(413, 429, 500, 503, 504)  # what may come of any request but those for the service's health
_HEALTH = documented(413, 500)

router = APIRouter(default_response_class=Response)


# --- estimation ---


async def compare(request: Request) -> Response:
    """A stream of `progress` events, then one `result` or `error`; the result as JSON alone if Accept prefers that."""
    settings: Settings = request.app.state.settings
    fields = await _read(request)
    run = await _in_pool(request, lambda: operations.plan_comparison(fields(schemas.CompareRequest), settings))
    if prefers(request.headers.get("accept", ""), JSON.media_type, EventStream.media_type):
        answer = await _in_pool(request, lambda: JSON.encode(run(stop_if_told).to_dict()))
        return Response(answer, media_type=JSON.media_type)

    def stream(report: Report) -> dict[str, Any]:
        def progress(estimator: str, done: int, draws: int) -> None:
            stop_if_told()
            if done:  # else it is a step of a warm-up
                report({"estimator": estimator, "done": done, "draws": draws})

        return run(progress).to_dict()

    return EventStream(stream, request.app.state.pool, request.state.request_id)


async def mean(request: Request) -> Response:
    """E[h] and P(h > 0), in closed form or as exactly as the neuron has them."""
    settings: Settings = request.app.state.settings
    body = await _read(request)
    codec = answer_codec(request.headers.get("accept", ""))

    def work() -> bytes:
        return codec.encode(operations.mean(body(schemas.MeanRequest), settings, codec is JSON))

    return Response(await _in_pool(request, work), media_type=codec.media_type)


async def estimate(request: Request) -> Response:
    """The mean and the variance of many draws; as a stream of what there is so far, if Accept prefers text/event-stream."""
    settings: Settings = request.app.state.settings
    body = await _read(request)
    accept = request.headers.get("accept", "")
    codec = answer_codec(accept)
    streamed = prefers(accept, EventStream.media_type, JSON.media_type)
    as_json = streamed or codec is JSON
    run = await _in_pool(request, lambda: operations.estimate(body(schemas.EstimateRequest), settings, as_json))
    if not streamed:
        return Response(await _in_pool(request, lambda: codec.encode(run(None))), media_type=codec.media_type)

    def stream(report: Report) -> schemas.EstimateAnswer:
        told = time.monotonic()

        def watch(found: Estimate) -> None:
            nonlocal told
            if time.monotonic() - told >= _REPORT_SECONDS:
                told = time.monotonic()
                report(operations.to_answer(found))

        return run(watch)

    return EventStream(stream, request.app.state.pool, request.state.request_id)


def _add_operation(
    path: str,
    operation: Callable[[AnyRequest, Settings, bool], operations.Pass[Any]],
    schema: type[AnyRequest],
    answer: type[BaseModel],
) -> None:
    """A route whose requests may be computed on together with others of their kind."""

    async def endpoint(request: Request) -> Response:
        settings: Settings = request.app.state.settings
        batcher: Batcher | None = request.app.state.batcher
        body = await _read(request)
        codec = answer_codec(request.headers.get("accept", ""))

        def prepare() -> operations.Pass[Any]:
            return operation(body(schema), settings, codec is JSON)

        def finish(ready: operations.Pass[Any]) -> bytes:
            return codec.encode(ready())

        async def join(ready: operations.Pass[Any]) -> bytes:
            if batcher is None or ready.kind is None:
                return await _in_pool(request, lambda: finish(ready))
            item = (ready.rows, lambda result: codec.encode(ready.answer(result)))
            return await batcher.run(ready.kind, partial(_work_and_write, ready.work), item, ready.elements)

        def prepare_and_finish() -> operations.Pass[Any] | bytes:
            ready = prepare()
            if batcher is None or ready.kind is None:
                return finish(ready)
            return batcher.run_alone(lambda: finish(ready)) or ready

        # what takes less time than to hand it to a thread is done at once, unless it calls others' code, which may hang
        at_once = body.size <= _SMALL_BYTES and operations.calls_own_code_alone()
        found = prepare() if at_once else await _in_pool(request, prepare_and_finish)
        answered = found if isinstance(found, bytes) else await join(found)
        return Response(answered, media_type=codec.media_type)

    endpoint.__doc__ = operation.__doc__
    _add_post(path, endpoint, schema, answer, *CODECS)


def _work_and_write(
    work: Callable[[Sequence[joint.Rows]], Sequence[Result]],
    items: Sequence[tuple[joint.Rows, Callable[[Result], bytes]]],
) -> list[bytes]:
    """One pass for several requests, each with what makes the body of its answer."""
    results = work([rows for rows, _ in items])
    return [write(result) for (_, write), result in zip(items, results, strict=True)]


def _add_post(
    path: str, endpoint: Endpoint, request: type[BaseModel], answer: type[BaseModel], *media_types: str
) -> None:
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        name=path.rpartition("/")[2],
        tags=["estimation"],
        summary=request.__doc__,
        responses=_answer(answer.__doc__ or "", {t: _body(answer, t) for t in media_types})
        | documented(400, 404, 408, 415, 422)
        | _COUNTED,
        openapi_extra={"requestBody": {"required": True, "content": {t: _body(request, t) for t in CODECS}}},
    )


_add_operation("/v1/sample", operations.sample, schemas.SampleRequest, schemas.SampleAnswer)
_add_operation("/v1/forward", operations.forward, schemas.ForwardRequest, schemas.ForwardAnswer)
_add_operation("/v1/backward", operations.backward, schemas.BackwardRequest, schemas.BackwardAnswer)
_add_post("/v1/mean", mean, schemas.MeanRequest, schemas.MeanAnswer, *CODECS)
_add_post("/v1/estimate", estimate, schemas.EstimateRequest, schemas.EstimateAnswer, *CODECS, EventStream.media_type)
_add_post(
    "/v1/compare", compare, schemas.CompareRequest, schemas.CompareAnswer, EventStream.media_type, JSON.media_type
)


# --- what is registered ---


def _add_catalog(kind: str, describe: Callable[[Any], dict[str, Any]], description: type[BaseModel]) -> None:
    def table() -> Mapping[str, type]:
        found: Mapping[str, type] = getattr(gradest.registry, f"{kind}s")
        return found

    def describe_fully(name: str) -> dict[str, Any]:
        if name not in table():
            try:
                getattr(gradest.registry, kind)(name)  # raises, with near matches
            except UnknownPlugin as error:
                raise operations.unknown_plugin(error, name) from error
        return catalog.describe_fully(table()[name])

    async def list_all(request: Request) -> Response:
        return await _json(request, lambda: [describe(cls) for cls in table().values()])

    async def show(request: Request) -> Response:
        return await _json(request, lambda: describe_fully(request.path_params["name"]))

    def add(path: str, endpoint: Endpoint, summary: str, schema: dict[str, Any], *, named: bool) -> None:
        # declared here, for FastAPI would promise a 422 of its own with it
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        router.add_api_route(
            path,
            endpoint,
            name=summary,
            summary=summary,
            tags=["registry"],
            responses=_answer(summary, {JSON.media_type: schema}) | (documented(404) if named else {}) | _COUNTED,
            openapi_extra={"parameters": [name]} if named else None,
        )

    one = _refer(description)
    add(f"/v1/{kind}s", list_all, f"Every {kind}", {"schema": {"type": "array", "items": one["schema"]}}, named=False)
    add(f"/v1/{kind}s/{{name}}", show, f"One {kind}", one, named=True)


def _json_answer(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return _answer(model.__doc__ or "", {JSON.media_type: _refer(model)})


_add_catalog("neuron", catalog.describe_neuron, schemas.NeuronDescription)
_add_catalog("estimator", catalog.describe_estimator, schemas.EstimatorDescription)
_add_catalog("objective", catalog.describe_objective, schemas.ObjectiveDescription)


@router.get("/v1/plugins", tags=["registry"], responses=_json_answer(schemas.Plugins) | _COUNTED)
async def plugins(request: Request) -> Response:
    """What each distribution registered, and what did not load."""
    return await _json(request, catalog.describe_plugins)


async def recommend(request: Request) -> Response:
    """The estimators that fit a case, best first, with reasons, and why the others do not."""
    settings: Settings = request.app.state.settings
    query = {name: _query_value(name, text) for name, text in request.query_params.items()}
    work = _validate(schemas.RecommendRequest, query, "query")
    return await _json(request, lambda: operations.recommend(work, settings))


def _parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """A field in a query: left out rather than null, and in JSON where it is no plain word, number or list of words."""
    while "anyOf" in schema:
        schema = schema["anyOf"][0]
    return {"content": {JSON.media_type: {"schema": schema}}} if "$ref" in schema else {"schema": schema}


_QUERY = schemas.RecommendRequest.model_json_schema(ref_template=REF)["properties"]
router.add_api_route(
    "/v1/recommend",
    recommend,
    methods=["GET"],
    name="recommend",
    summary="Which estimator fits",
    tags=["registry"],
    responses=_json_answer(schemas.RecommendAnswer) | documented(400, 404, 422) | _COUNTED,
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "description": schema["description"], "explode": False, **_parameter(schema)}
            for name, schema in _QUERY.items()
        ]
    },
)


def _query_value(name: str, text: str) -> Any:
    """A list where the field is one, and JSON where the text is no plain word."""
    if name == "bring":
        return [word.strip() for word in text.split(",")]
    return parse_json(text, name) if name == "a" or text[:1] in ("{", "[") else text


# --- the service itself ---


@router.get("/livez", tags=["service"], responses=_json_answer(schemas.Status) | _HEALTH)
async def livez() -> Response:
    """Whether the process answers at all."""
    return Response(JSON.encode({"status": "alive"}), media_type=JSON.media_type)


@router.get("/readyz", tags=["service"], responses=_json_answer(schemas.Ready) | documented(503) | _HEALTH)
async def readyz(request: Request) -> Response:
    """Whether requests are welcome: plugins loaded, room for more, not about to stop; 503 if not."""
    request.app.state.load.check_ready()
    try:
        found = {
            "status": "ready",
            "plugins": len(gradest.registry.plugins),
            "failures": len(gradest.registry.failures),
        }
    except PluginError as error:
        raise Problem(503, "A plugin did not load, and GRADEST_STRICT_PLUGINS=1 asks for all of them.") from error
    # not in the pool: its threads may all be taken, and they were loaded before the first request
    return Response(JSON.encode(found), media_type=JSON.media_type)


_VERSIONS = {
    "gradest": version("gradest"),
    "plugin_api": gradest.PLUGIN_API,
    "torch": torch.__version__,
    "python": platform.python_version(),
}


@router.get("/version", tags=["service"], responses=_json_answer(schemas.Versions) | _COUNTED)
async def show_version() -> Response:
    """The versions of what computes the answers."""
    return Response(JSON.encode(_VERSIONS), media_type=JSON.media_type)


# --- the way in and out ---


class _Body:
    """A request's body, which becomes a request of a schema when it is called, once: that is left to the pool."""

    def __init__(self, chunks: list[bytes], codec: Codec, settings: Settings) -> None:
        self.size = sum(map(len, chunks))
        self._chunks = chunks
        self._codec = codec
        self._settings = settings

    def __call__(self, schema: type[AnyRequest]) -> AnyRequest:
        whole = bytearray().join(
            self._chunks
        )  # tensors are views of it, which torch grants of what may be written to alone
        self._chunks.clear()
        return _validate(schema, self._codec.decode(whole, self._settings), "body")


async def _read(request: Request) -> _Body:
    codec = find_codec(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "Send the body as it is, without a Content-Encoding.")
    return _Body([chunk async for chunk in request.stream()], codec, request.app.state.settings)


def _validate(schema: type[AnyModel], found: Any, place: str) -> AnyModel:
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        faults = describe_faults(error, list(schema.model_fields))
        listed = "; ".join(f"{fault.field or place}: {fault.message}" for fault in faults)
        raise Problem(422, f"The request does not fit its schema: {listed}.", faults) from error


async def _in_pool(request: Request, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread; as many at a time as the settings say, the others wait."""
    pool: Pool = request.app.state.pool
    return await pool.run(work)


async def _json(request: Request, describe: Callable[[], Any]) -> Response:
    return Response(await _in_pool(request, lambda: JSON.encode(describe())), media_type=JSON.media_type)
