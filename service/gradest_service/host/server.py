"""uvicorn as the service runs it: it announces its address, and a load balancer sees that it stops before the port closes."""

from __future__ import annotations

import asyncio
import errno
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

from gradest.errors import InvalidInput
from gradest_service.admit.capacity import Capacity
from gradest_service.host import logs
from gradest_service.host.connections import Connections, Listener, allow_files
from gradest_service.host.protocol import LimitedProtocol, limited_protocol
from gradest_service.resources.allocator import keep_freed_blocks
from gradest_service.settings import Settings

__all__ = ["FAILED", "Server", "announce", "bind", "run_process", "url_of"]

FAILED = 3
"""The exit code of a service that could not start, as uvicorn has it."""

_TICKS_PER_BEAT = 10  # uvicorn has ten ticks a second
_BACKLOG = 2048  # connections that wait to be accepted
_TAKEN = (errno.EADDRINUSE, errno.EACCES)
_LAST_HANDSHAKE_SECONDS = 1.0  # for a TLS handshake when the service stops

_LOG = logging.getLogger("gradest_service")


class Server(uvicorn.Server):
    """One process's server.

    After a first signal to stop, /readyz answers 503 for `drain_seconds`, unless the signal comes from a keyboard; then the port
    is closed, and the accepted requests are finished. A second signal ends the process.
    """

    def __init__(self, settings: Settings, app: FastAPI, most_connections: int | None = None) -> None:
        password = settings.ssl_keyfile_password
        config = uvicorn.Config(
            app,
            http=limited_protocol(settings),
            ws="none",  # a connection that changed its protocol would leave all limits behind
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
        self.on_warm: Callable[[], None] | None = None
        self.obeys_second_signal = True
        self._settings = settings
        self._capacity: Capacity = app.state.capacity
        self._connections = Connections(settings, most_connections, app.state.metrics)
        self._listeners: list[Listener] = []
        self._closes_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on sockets that `bind` has made, and announce the address."""
        await super().startup([])
        self._listeners = [
            Listener(each, self._connections, self._protocol, self.config.ssl, self._settings.head_seconds)
            for each in sockets or []
        ]
        self.url = url_of(self._settings, self._listeners[0].socket)
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
        if self.on_warm is not None and self._capacity.warm:
            self.on_warm()
            self.on_warm = None
        if self.on_beat is not None and counter % _TICKS_PER_BEAT == 0:
            self.on_beat(self._capacity.stuck)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections that wait, close the port, and finish the accepted requests."""
        await asyncio.gather(*(listener.close(_LAST_HANDSHAKE_SECONDS) for listener in self._listeners))
        await super().shutdown()

    def _protocol(self) -> LimitedProtocol:
        create: Callable[..., LimitedProtocol] = self.config.http_protocol_class  # type: ignore[assignment]
        return create(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _keep_what_is_loaded() -> None:
    """Spare the collector from walking through all of torch and the compiled kernels again and again, as they stay loaded."""
    gc.collect()
    gc.freeze()


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
    server = Server(settings, create_app(settings), allow_files(settings.max_connections))
    announce_address = on_accepting or announce

    def start(url: str) -> None:
        _keep_what_is_loaded()
        announce_address(url)

    server.on_accepting = start
    server.on_warm = _keep_what_is_loaded
    server.on_beat = on_beat
    server.obeys_second_signal = not sockets
    server.run(list(sockets) or bind(settings))
    gc.unfreeze()  # frozen objects would outlive the interpreter, about which some libraries complain
    if not server.started:
        raise SystemExit(FAILED)
    if _threads_busy():
        # uvicorn has answered their clients; the interpreter would wait for them, for ever if they hang
        _LOG.warning("requests were still being computed at the end of the time to stop")
        logs.flush()
        os._exit(1)


def _threads_busy() -> bool:
    """Tell whether threads of this process still run; idle ones of the pool end by themselves."""
    threads = [
        thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    for thread in threads:
        thread.join(1)
    return any(thread.is_alive() for thread in threads)


def bind(settings: Settings) -> list[socket.socket]:
    """Create the listening sockets of all addresses that the host has; raises InvalidInput if there are none.

    A free port is the same for all.
    """
    bound, port, faults = list[socket.socket](), settings.port, list[OSError]()
    try:
        for family, *_, address in socket.getaddrinfo(
            settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                bound.append(socket.create_server((address[0], port, *address[2:]), family=family, backlog=_BACKLOG))
                port = bound[0].getsockname()[1]
            except OSError as error:  # such as IPv6 where the machine has none
                faults.append(error)
    except OSError as error:  # the name has no address
        faults.append(error)
    if not bound or any(fault.errno in _TAKEN for fault in faults):
        for each in bound:
            each.close()
        reason = str(faults[0].strerror).partition(" (")[0]  # without the address once more
        raise InvalidInput(
            f"the service cannot listen on port {settings.port} of {settings.host}: {reason}. Choose another port "
            "or host, or stop what uses it; port 0 takes a free one"
        )
    return bound


def announce(url: str) -> None:
    """Print the address of the service."""
    print(f"gradest is listening on {url}", flush=True)


def url_of(settings: Settings, listener: socket.socket) -> str:
    """Return the address of a bound socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
