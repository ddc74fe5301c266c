"""The application, and ways to run it: `create_app` for any ASGI server, `serve` for a process, `running` for a program."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from typing import Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import gradest
from gradest_service import schemas
from gradest_service.middleware import Envelope
from gradest_service.problems import ProblemDetails, from_http_exception, to_response
from gradest_service.routes import router
from gradest_service.settings import Settings

__all__ = ["Service", "create_app", "running", "serve"]

_MODELS = [getattr(schemas, name) for name in schemas.__all__] + [ProblemDetails]


class Service(FastAPI):
    """FastAPI, with the schemas of the raw bodies in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
        document["components"] = {"schemas": definitions["$defs"]}
        return document


_REF = "#/components/schemas/{model}"


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application. It keeps no state but its settings and its pool of threads."""
    settings = settings or Settings()
    app = Service(
        title="gradest",
        version=version("gradest"),
        description="Sampling from stochastic neurons, and gradients of expected losses through them.",
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.limiter = CapacityLimiter(settings.threads)
    app.add_middleware(Envelope, max_body_bytes=settings.max_body_bytes)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.include_router(router)
    return app


def serve(settings: Settings | None = None) -> None:
    """Run the service until SIGINT or SIGTERM. Prints the address, with the port it got, once it accepts connections."""
    server = _Server(settings or Settings())

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn takes the signals while it runs and raises them again at its end, where these handlers let it end well
    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def running(settings: Settings | None = None) -> Iterator[str]:
    """A service in a thread of this process, on a free port unless the settings name one; gives its URL.

    For notebooks and tests: it shares this process's registry.
    """
    server = _Server(settings or Settings(port=0), announce=False)

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


class _Server(uvicorn.Server):
    """uvicorn, with the address told when the socket accepts."""

    def __init__(self, settings: Settings, announce: bool = True) -> None:
        config = uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        super().__init__(config)
        self.accepting = threading.Event()
        self.url = ""
        self._announce = announce

    async def startup(self, sockets: Any = None) -> None:
        """Bind the socket."""
        await super().startup(sockets)
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.accepting.set()
        if self._announce:
            print(f"gradest is listening on {self.url}", flush=True)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the plugins before the first request."""
    await to_thread.run_sync(lambda: gradest.registry.plugins)
    yield


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return to_response(from_http_exception(error), request)
