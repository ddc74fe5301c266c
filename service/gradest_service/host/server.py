"""uvicorn as the service runs it: an address that is told, and a stop that a load balancer sees before the port closes."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from gradest_service.admit.capacity import Load
from gradest_service.host import logs
from gradest_service.host.protocol import protocol
from gradest_service.settings import Settings

__all__ = ["FAILED", "Server", "announce", "run_process", "url_of"]

FAILED = 3
"""The exit code of a service that could not start; uvicorn's."""

_ALLOCATOR = {-1: 64 << 20, -3: 32 << 20}  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes
_LAST_HANDSHAKE = 1.0  # seconds that one may still take when the service stops

_LOG = logging.getLogger("gradest_service")


class Server(uvicorn.Server):
    """One process's server.

    A first signal to stop makes /readyz say so, for `drain_seconds` unless it comes from a keyboard; then the port is closed, and
    what was accepted is finished. A second one ends the process.
    """

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        password = settings.ssl_keyfile_password
        config = uvicorn.Config(
            app,
            http=protocol(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            ssl_keyfile_password=None if password is None else password.get_secret_value(),
            timeout_graceful_shutdown=settings.grace(),
        )
        super().__init__(config)
        self.accepting = threading.Event()
        self.url = ""
        self.on_accepting: Callable[[str], None] = lambda url: None
        self.obeys_second_signal = True
        self._settings = settings
        self._load: Load = app.state.load
        self._closes_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind the port."""
        await super().startup(sockets)
        if self.started:
            self.url = url_of(self._settings, self.servers[0].sockets[0])
            self.accepting.set()
            self.on_accepting(self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        if self._closes_at is None:
            drain = 0 if sig == signal.SIGINT else self._settings.drain_seconds
            self._closes_at = time.monotonic() + drain
            self._load.draining = True
        elif self.obeys_second_signal:
            os._exit(128 + sig)  # threads at work would keep an orderly exit waiting

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to close the port."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, with nobody left at the door, and finish what was accepted."""
        loop, waiting = asyncio.get_running_loop(), list[socket.socket]()
        for server in self.servers:
            for listener in server.sockets:
                waiting += _accept_all(listener.fileno())
            server.close()
        tls = self.config.ssl
        last = None if tls is None else _LAST_HANDSHAKE
        entering = (
            loop.connect_accepted_socket(self._protocol, connection, ssl=tls, ssl_handshake_timeout=last)
            for connection in waiting
        )
        await asyncio.gather(*entering, return_exceptions=True)  # who fails to come in is gone
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        create: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return create(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def run_process(
    settings: Settings,
    create_app: Callable[[Settings], FastAPI],
    sockets: Sequence[socket.socket] = (),
    on_accepting: Callable[[str], None] | None = None,
) -> None:
    """Serve from this process until a signal; on these sockets if there are any, as a worker that others watch."""
    logs.set_up(settings)
    _keep_memory()
    # threads of the pool that each had all cores would wait for one another
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.threads))
    server = Server(settings, create_app(settings))
    told = on_accepting or announce

    def start(url: str) -> None:
        # what is loaded by now stays: the collector need not walk through all of torch again and again
        gc.collect()
        gc.freeze()
        told(url)

    server.on_accepting = start
    server.obeys_second_signal = not sockets
    server.run(list(sockets) or None)
    gc.unfreeze()  # or what is frozen would outlive the interpreter, and some libraries complain of that
    if not server.started:
        raise SystemExit(FAILED)
    if _threads_at_work():
        # uvicorn has told their clients; the interpreter would wait for them, for ever if they hang
        _LOG.warning("requests were still at work when the time to stop was over")
        os._exit(1)


def _keep_memory() -> None:
    """Let glibc keep freed memory of tens of megabytes: to take a body's pages from the system anew costs as much as its work."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:  # other C libraries have none
        for option, size in _ALLOCATOR.items():
            mallopt(option, size)


def _accept_all(listener: int) -> list[socket.socket]:
    """The connections that the system has made and nobody has accepted; it would reset them when the port closes."""
    accepted = []
    with socket.socket(fileno=os.dup(listener)) as door:
        door.setblocking(False)
        try:
            while True:
                connection, _ = door.accept()
                connection.setblocking(False)
                accepted.append(connection)
        except OSError:  # nobody is waiting
            return accepted


def _threads_at_work() -> bool:
    """Whether threads of this process go on; idle ones of the pool end by themselves."""
    threads = [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    for thread in threads:
        thread.join(1)
    return any(thread.is_alive() for thread in threads)


def announce(url: str) -> None:
    """Tell where the service is."""
    print(f"gradest is listening on {url}", flush=True)


def url_of(settings: Settings, listener: socket.socket) -> str:
    """The address of a bound socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
