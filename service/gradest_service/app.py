"""The application, and ways to run it: `create_app` for any ASGI server, `serve` for a process, `running` for a program."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from typing import Any

import torch
from anyio import create_task_group, to_thread
from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

import gradest
from gradest.neuron import Neuron
from gradest.random import Key
from gradest_service.admit import metrics
from gradest_service.admit.auth import OPEN, Keys
from gradest_service.admit.capacity import Load
from gradest_service.admit.pool import Pool
from gradest_service.admit.request_context import stop_if_told
from gradest_service.bodies import schemas
from gradest_service.docs import add_docs
from gradest_service.host.server import Server, run_process
from gradest_service.host.workers import run_workers
from gradest_service.middleware import Envelope
from gradest_service.page import PATHS, add_page
from gradest_service.problems import REF, ProblemDetails, documented, from_http_exception, to_response
from gradest_service.routes import router
from gradest_service.run import operations
from gradest_service.run.batching import Batcher
from gradest_service.settings import Settings

__all__ = ["Service", "create_app", "running", "serve"]

_LOG = logging.getLogger("gradest_service")
_MODELS = [getattr(schemas, name) for name in schemas.__all__] + [ProblemDetails]


class Service(FastAPI):
    """FastAPI, with the schemas of the raw bodies and the keys in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=REF)
        document["components"] = {"schemas": definitions["$defs"]}
        if self.state.settings.api_keys:
            scheme = {"type": "http", "scheme": "bearer", "description": "An API key, from whoever runs the service."}
            document["components"]["securitySchemes"] = {"key": scheme}
            document["security"] = [{"key": []}]
            for path, item in document["paths"].items():
                for operation in item.values():
                    if path in OPEN:
                        operation["security"] = []
                    else:
                        operation["responses"] |= {"401": documented(401)[401]}
        return document


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application. It keeps no more than its settings, its threads, its counts and its keys."""
    settings = settings or Settings()
    app = Service(
        title="gradest",
        version=version("gradest"),
        description="Sampling from stochastic neurons, and gradients of expected losses through them.",
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.load = Load(settings)
    counts = metrics.Metrics() if settings.metrics and metrics.available() else None
    app.state.pool = Pool(settings.threads, counts)
    app.state.batcher = None
    if settings.batching:
        observe = None if counts is None else counts.observe_batch
        app.state.batcher = Batcher(app.state.pool, settings.batch_wait_seconds, settings.batch_elements, observe)
    keys = Keys(settings.api_keys) if settings.api_keys else None
    free = OPEN | PATHS if settings.page else OPEN
    app.add_middleware(Envelope, settings=settings, load=app.state.load, keys=keys, metrics=counts, free=free)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.include_router(router)
    if settings.docs:
        add_docs(app)
    if settings.page:
        add_page(app)
    elif settings.docs:
        app.add_api_route("/", _to_docs, include_in_schema=False)
    if counts is not None:
        _add_metrics(app, counts)
    return app


def serve(settings: Settings | None = None) -> None:
    """Run the service until SIGINT or SIGTERM. Prints the address, with the port it got, once it accepts connections.

    At the first signal it finishes what it has accepted, after SIGTERM when it has shown for a while that it is about to stop;
    at the second it ends at once.
    """
    settings = settings or Settings()
    if settings.workers == 1:
        run_process(settings, create_app)
    else:
        run_workers(settings, create_app)


@contextmanager
def running(settings: Settings | None = None) -> Iterator[str]:
    """A service in a thread of this process, on a free port unless the settings name one; gives its URL.

    For notebooks and tests: it shares this process's registry, and is one worker.
    """
    settings = settings or Settings(port=0)
    server = Server(settings, create_app(settings))

    def run() -> None:
        with suppress(SystemExit):  # how uvicorn ends if it cannot start
            server.run()

    thread = threading.Thread(target=run, name="gradest-service")
    thread.start()
    try:
        while not server.accepting.wait(0.1):
            if not thread.is_alive():
                raise RuntimeError("the service did not start; the log says why")
        yield server.url
    finally:
        server.should_exit = True
        thread.join()


def _add_metrics(app: FastAPI, counts: metrics.Metrics) -> None:
    counted: dict[int | str, dict[str, Any]] = {
        200: {"description": "Counts", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }

    @app.get(
        "/metrics",
        tags=["service"],
        response_class=Response,
        responses=counted | documented(413, 429, 500, 503, 504),
    )
    async def show_metrics() -> Response:
        """What Prometheus scrapes."""
        return Response(await to_thread.run_sync(counts.render), headers={"Content-Type": counts.media_type})


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the plugins, and try a neuron, before the first request; the others, and a look at the threads, beside them."""
    neurons = await to_thread.run_sync(operations.own_neurons)
    await to_thread.run_sync(_warm_up, neurons[:1])
    async with create_task_group() as group:
        group.start_soon(to_thread.run_sync, _warm_up, neurons)
        group.start_soon(app.state.load.watch, app.state.pool)
        yield
        group.cancel_scope.cancel()


def _warm_up(neurons: Sequence[type[Neuron]]) -> None:
    """The first sample of a process takes a second, and that of a neuron on a new machine takes several, because code is loaded
    and compiled for it; so it is made before anyone waits, for a request alone and for two in one pass.
    """
    for cls in neurons:
        stop_if_told()
        try:
            for key in (Key(0), Key(torch.tensor([0, 0]), torch.tensor([0, 1]))):
                gradest.sample(cls.name, torch.zeros([2, *[2] * cls.event_ndim]), samples=1, seed=key)
        except Exception:
            _LOG.exception("the first sample, from %s, failed", cls.name)


async def _to_docs() -> Response:
    """The documentation."""
    return RedirectResponse("docs")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return to_response(from_http_exception(error), request)
