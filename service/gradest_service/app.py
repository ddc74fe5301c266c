"""Builds the application and runs it: `create_app` for any ASGI server, `serve` as a process, `running` inside a program."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from anyio import create_task_group, to_thread
from fastapi import FastAPI
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

import gradest
from gradest.contract.neuron import Neuron
from gradest.errors import Cancelled
from gradest.random import Key
from gradest_service.admit import metrics
from gradest_service.admit.auth import HEALTH_PATHS, ApiKeys
from gradest_service.admit.capacity import Capacity
from gradest_service.admit.limits import light_need
from gradest_service.admit.plugins import built_in_neurons
from gradest_service.admit.pool import Pool
from gradest_service.docs import add_docs
from gradest_service.host.server import Server, bind, run_process
from gradest_service.host.workers import run_workers
from gradest_service.middleware import RequestMiddleware
from gradest_service.openapi import DocumentedApp, counted_errors, describe_text
from gradest_service.page import PATHS, add_page
from gradest_service.page.guide import add_guide, find_guide, guide_paths
from gradest_service.problems import from_http_exception, to_response
from gradest_service.resources.memory import Memory
from gradest_service.routes import router
from gradest_service.run.batching import Batcher
from gradest_service.run.cancellation import raise_if_cancelled
from gradest_service.run.device import Device, device_named
from gradest_service.settings import Settings
from gradest_service.tracing import Spans, Tracing

__all__ = ["create_app", "running", "serve"]

_LOG = logging.getLogger("gradest_service")


def create_app(settings: Settings | None = None, budgets: Path | None = None) -> FastAPI:
    """Build the service as an ASGI application. Its only state is its settings, its threads, its counts and its API keys.

    budgets: a folder through which the processes of one service share what is left of their keys' limits.
    """
    settings = settings or Settings()
    app = DocumentedApp(
        title="gradest",
        version=version("gradest"),
        description="Sampling from stochastic neurons, and gradients of expected losses through them.",
        lifespan=_lifespan,
        servers=[{"url": "."}],  # relative to the document, so that it is true below any prefix
        root_path_in_servers=False,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    counts = metrics.Metrics() if settings.metrics and metrics.available() else None
    app.state.metrics = counts
    app.state.capacity = Capacity(settings, counts)
    app.state.memory = Memory(settings.max_memory_bytes, settings.max_heavy_bytes)
    app.state.device = device_named(settings.device)
    app.state.tracing = Spans.configured() if settings.tracing else Tracing()
    app.state.pool = Pool(settings.threads, app.state.memory, counts)
    app.state.batcher = Batcher(
        app.state.pool,
        settings.batch_wait_seconds,
        settings.batch_elements,
        observe=None if counts is None else counts.observe_batch,
        enabled=settings.batching,
        need=light_need(settings),
    )
    guide = find_guide() if settings.docs else None
    open_paths = guide_paths(guide)
    app.add_middleware(
        RequestMiddleware,
        settings=settings,
        capacity=app.state.capacity,
        keys=ApiKeys(settings.api_keys, budgets) if settings.api_keys else None,
        metrics=counts,
        memory=app.state.memory,
        exempt_paths=HEALTH_PATHS | open_paths | (PATHS if settings.page else frozenset()),
        route_of=partial(_route_of, app),
        tracing=app.state.tracing,
    )
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.include_router(router)
    if settings.docs:
        add_docs(app)
        add_guide(app, guide, open_paths)
    if settings.page:
        add_page(app, open_paths)
    elif settings.docs:
        app.add_api_route("/", _to_docs, include_in_schema=False)
    if counts is not None:
        _add_metrics(app, counts)
    return app


def serve(settings: Settings | None = None) -> None:
    """Run the service until SIGINT or SIGTERM. Prints its address, with the port that it got, once it accepts connections.

    At the first signal it finishes the requests that it has accepted; after SIGTERM, /readyz first announces for a while that it
    is about to stop. At the second signal it ends at once.
    """
    settings = settings or Settings()
    if settings.workers == 1:
        run_process(settings, create_app)
    else:
        run_workers(settings, create_app)


@contextmanager
def running(settings: Settings | None = None) -> Iterator[str]:
    """Run a service in a thread of this process while the block runs, and yield its URL. By default it takes a free port.

    For notebooks and tests: it shares this process's registry, and is one worker.
    """
    settings = settings or Settings(port=0)
    server, sockets = Server(settings, create_app(settings)), bind(settings)

    def run() -> None:
        with suppress(SystemExit):  # uvicorn raises it if it cannot start
            server.run(sockets)

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


def _route_of(app: FastAPI, scope: Scope) -> str | None:
    """Return the template of the path of a request that was answered before it reached its route."""
    return next((route.path for route in _routes_of(app, scope)), None)


def _routes_of(app: FastAPI, scope: Scope) -> Iterator[Route]:
    """Yield the routes of the path of a request, whatever its method."""
    for route in (*router.routes, *app.routes):
        if isinstance(route, Route) and route.matches(scope)[0] != Match.NONE:
            yield route


def _add_metrics(app: FastAPI, counts: metrics.Metrics) -> None:
    described = describe_text("Counts") | counted_errors()

    @app.get("/metrics", name="metrics", tags=["service"], response_class=Response, responses=described)
    async def show_metrics() -> Response:
        """The metrics, in the text format of Prometheus."""
        return Response(await to_thread.run_sync(counts.render), headers={"Content-Type": counts.media_type})


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the plugins and try one neuron before the first request; try the others, and watch the threads, meanwhile."""
    neurons = await to_thread.run_sync(built_in_neurons)
    app.state.capacity.computes = await to_thread.run_sync(_warm_up, neurons[:1], app.state.device)
    async with create_task_group() as group:
        group.start_soon(_load_the_rest, neurons, app.state)
        group.start_soon(app.state.capacity.watch, app.state.pool)
        yield
        group.cancel_scope.cancel()
    await to_thread.run_sync(app.state.tracing.close)


async def _load_the_rest(neurons: Sequence[type[Neuron]], state: State) -> None:
    async with create_task_group() as group:
        group.start_soon(to_thread.run_sync, _warm_up, neurons, state.device)
        group.start_soon(to_thread.run_sync, _warm_up_backward)
    state.capacity.warm = True


def _warm_up(neurons: Sequence[type[Neuron]], device: Device) -> bool:
    """Sample each neuron once for a request alone and once for two that are computed together; return whether all could be.

    The first sample of a process takes a second, and a neuron's first on a new machine takes several, because code is loaded and
    compiled for it. So it is made before anyone waits for it.
    """
    sound = True
    for cls in neurons:
        try:
            raise_if_cancelled()
            for key in (Key(0), Key(torch.tensor([0, 0]), torch.tensor([0, 1]))):
                with device.computing():
                    a = device.put(torch.zeros([2, *cls.example_events[0]]))
                    gradest.sample(cls.name, a, samples=1, seed=key)
        except Cancelled:  # the service stops
            return sound
        except Exception:
            _LOG.exception("the first sample of %s failed", cls.name)
            sound = False
    return sound


def _warm_up_backward() -> None:
    """Have torch import what its first backward pass needs, which takes half a second that no deadline could interrupt."""
    x = torch.zeros(1, requires_grad=True)
    with torch.enable_grad():
        torch.autograd.grad(x * 2, x, torch.ones(1))


async def _to_docs() -> Response:
    """Redirect to the documentation."""
    return RedirectResponse("docs")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:  # the framework knows the methods of one of a path's routes
        methods = {method for route in _routes_of(request.app, request.scope) for method in route.methods or ()}
        methods |= {"HEAD"} if "GET" in methods else set()
        error.headers = {**(error.headers or {}), "Allow": ", ".join(sorted(methods))}
    return to_response(from_http_exception(error), request)
