"""uvicorn as the service runs it: it announces its address, and a load balancer sees that it stops before the port closes."""

from __future__ import annotations

import asyncio
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

from gradest_service.admit.capacity import Capacity
from gradest_service.host import logs
from gradest_service.host.protocol import limited_protocol
from gradest_service.resources.allocator import keep_freed_blocks
from gradest_service.settings import Settings

__all__ = ["FAILED", "Server", "announce", "run_process", "url_of"]

FAILED = 3
"""The exit code of a service that could not start, as uvicorn has it."""

_TICKS_PER_BEAT = 10  # uvicorn has ten ticks a second
_LAST_HANDSHAKE_SECONDS = 1.0  # for a TLS handshake when the service stops

_LOG = logging.getLogger("gradest_service")


class Server(uvicorn.Server):
    """One process's server.

    After a first signal to stop, /readyz answers 503 for `drain_seconds`, unless the signal comes from a keyboard; then the port
    is closed, and the accepted requests are finished. A second signal ends the process.
    """

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        password = settings.ssl_keyfile_password
        config = uvicorn.Config(
            app,
            http=limited_protocol(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            ssl_keyfile_password=None if password is None else password.get_secret_value(),
            timeout_graceful_shutdown=settings.grace(),
        )
        super().__init__(config)
        self.accepting = threading.Event()
        self.url = ""
        self.on_accepting: Callable[[str], None] = lambda url: None
        self.on_beat: Callable[[bool], None] | None = None
        self.obeys_second_signal = True
        self._settings = settings
        self._capacity: Capacity = app.state.capacity
        self._closes_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind the port, and announce the address."""
        await super().startup(sockets)
        if self.started:
            self.url = url_of(self._settings, self.servers[0].sockets[0])
            self.accepting.set()
            self.on_accepting(self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop at the first signal; end the process at the second."""
        if self._closes_at is None:
            drain = 0 if sig == signal.SIGINT else self._settings.drain_seconds
            self._closes_at = time.monotonic() + drain
            self._capacity.draining = True
        elif self.obeys_second_signal:
            os._exit(128 + sig)  # an orderly exit would wait for busy threads

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether it is time to close the port."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        if self.on_beat is not None and counter % _TICKS_PER_BEAT == 0:
            self.on_beat(self._capacity.stuck)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that wait, close the port, and finish the accepted requests."""
        loop, waiting = asyncio.get_running_loop(), list[socket.socket]()
        for server in self.servers:
            for listener in server.sockets:
                waiting += _accept_all(listener.fileno())
            server.close()
        tls = self.config.ssl
        last = None if tls is None else _LAST_HANDSHAKE_SECONDS
        entering = (
            loop.connect_accepted_socket(self._protocol, connection, ssl=tls, ssl_handshake_timeout=last)
            for connection in waiting
        )
        await asyncio.gather(*entering, return_exceptions=True)  # a client whose handshake fails is gone
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        create: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return create(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def run_process(
    settings: Settings,
    create_app: Callable[[Settings], FastAPI],
    sockets: Sequence[socket.socket] = (),
    on_accepting: Callable[[str], None] | None = None,
    on_beat: Callable[[bool], None] | None = None,
) -> None:
    """Serve from this process until a signal; with sockets, serve on them as a worker of a supervisor.

    on_beat: called by the event loop once a second, with whether all threads are lost.
    """
    logs.set_up(settings)
    keep_freed_blocks()
    # if each thread of the pool had all cores, they would wait for one another
    torch.set_num_threads(max(1, torch.get_num_threads() // settings.threads))
    server = Server(settings, create_app(settings))
    announce_address = on_accepting or announce

    def start(url: str) -> None:
        # what is loaded by now stays loaded: the collector need not walk through all of torch again and again
        gc.collect()
        gc.freeze()
        announce_address(url)

    server.on_accepting = start
    server.on_beat = on_beat
    server.obeys_second_signal = not sockets
    server.run(list(sockets) or None)
    gc.unfreeze()  # frozen objects would outlive the interpreter, about which some libraries complain
    if not server.started:
        raise SystemExit(FAILED)
    if _threads_busy():
        # uvicorn has answered their clients; the interpreter would wait for them, for ever if they hang
        _LOG.warning("requests were still being computed at the end of the time to stop")
        logs.flush()
        os._exit(1)


def _accept_all(listener: int) -> list[socket.socket]:
    """Accept the connections that wait in the listener's queue; the system would reset them when the port closes."""
    accepted = []
    with socket.socket(fileno=os.dup(listener)) as copy:
        copy.setblocking(False)
        try:
            while True:
                connection, _ = copy.accept()
                connection.setblocking(False)
                accepted.append(connection)
        except OSError:  # the queue is empty
            return accepted


def _threads_busy() -> bool:
    """Tell whether threads of this process still run; idle ones of the pool end by themselves."""
    threads = [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    for thread in threads:
        thread.join(1)
    return any(thread.is_alive() for thread in threads)


def announce(url: str) -> None:
    """Print the address of the service."""
    print(f"gradest is listening on {url}", flush=True)


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Return the address of a bound socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
