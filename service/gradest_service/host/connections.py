"""How many connections a process holds open, in all and of each client: further ones are refused as they come.

They are counted from the moment at which they are accepted, so that a TLS handshake that never ends counts too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

from gradest_service.admit.metrics import Metrics
from gradest_service.host.protocol import LimitedProtocol, to_message
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["Connections", "Listener", "allow_files"]

_LOG = logging.getLogger("gradest_service")
_OTHER_FILES = 256  # of a process, beside those of its connections
_AT_ONCE = 64  # connections that are accepted before other events have their turn
_RETRY_SECONDS = 1.0  # after which connections are accepted again that could not be
_NETWORK_BITS = 64  # of an IPv6 address, below which a client chooses for itself


class Connections:
    """The open connections of a process, by client. Only the event loop's thread changes it.

    Those of trusted proxies count for all clients together, because each brings the requests of many.
    """

    def __init__(self, settings: Settings, most: int | None = None, metrics: Metrics | None = None) -> None:
        self.most = settings.max_connections if most is None else most
        self.most_per_client = settings.max_connections_per_client or max(1, self.most // 2)
        self.open = 0
        self._of_client: Counter[str] = Counter()
        self._proxies = [word.strip() for word in settings.trusted_proxies.split(",") if word.strip()]
        self._metrics = metrics

    def enter(self, address: str) -> Callable[[], None]:
        """Count one more connection from this address. Call the result when it has ended; a second call changes nothing.

        Raises a 503 if there are as many as allowed, and a 429 if there are of this client.
        """
        client = self._client(address)
        if self.open >= self.most:
            raise self._refused("process", 503, f"{self.most} connections are open")
        if client and self._of_client[client] >= self.most_per_client:
            raise self._refused("client", 429, f"{self.most_per_client} connections of this client are open")
        self._count(client, 1)
        left = ExitStack()
        left.callback(self._count, client, -1)
        return left.close

    def _count(self, client: str, more: int) -> None:
        self.open += more
        self._of_client[client] += more
        if not self._of_client[client]:
            del self._of_client[client]
        if self._metrics is not None:
            self._metrics.add_connections(more)

    def _refused(self, limit: str, status: int, what: str) -> Problem:
        if self._metrics is not None:
            self._metrics.count_refused_connection(limit)
        return Problem(status, f"{what}. Connect again later.", headers={"Retry-After": "1"})

    def _client(self, address: str) -> str:
        """Return whose connection it is: "" for a proxy, else the address, or of IPv6 the network that one client has."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return address
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        if any(word == "*" or _contains(word, found) for word in self._proxies):
            return ""
        if isinstance(found, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((found, _NETWORK_BITS), strict=False))
        return str(found)


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    with suppress(ValueError):  # a name, which no address is
        return address in ipaddress.ip_network(network)
    return False


class Listener:
    """A bound socket, whose connections it accepts, counts, and hands to a protocol each."""

    def __init__(
        self,
        bound: socket.socket,
        connections: Connections,
        create: Callable[[], LimitedProtocol],
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        self.socket = bound
        self._connections = connections
        self._create = create
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        bound.setblocking(False)
        self._begin()

    async def close(self, last_handshake_seconds: float) -> None:
        """Accept the connections that wait, which the system would reset otherwise, and close the socket."""
        self._handshake_seconds = last_handshake_seconds
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self.socket)
        with suppress(OSError):  # none waits any more
            while True:
                self._enter(*self.socket.accept())
        self.socket.close()
        if self._entering:
            await asyncio.wait(self._entering)

    def _begin(self) -> None:
        self._retry = None
        self._loop.add_reader(self.socket, self._accept)

    def _accept(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                self._enter(*self.socket.accept())
        except (BlockingIOError, InterruptedError, ConnectionError):  # none waits any more, or one was reset
            return
        except OSError as error:
            _LOG.error("connections cannot be accepted: %s. ulimit -n sets how many files a process may open", error)
            self._loop.remove_reader(self.socket)
            self._retry = self._loop.call_later(_RETRY_SECONDS, self._begin)

    def _enter(self, connection: socket.socket, address: tuple[str, ...]) -> None:
        connection.setblocking(False)
        try:
            leave = self._connections.enter(address[0])
        except Problem as problem:
            with connection, suppress(OSError):
                if self._tls is None:
                    connection.send(to_message(problem))
            return
        task = self._loop.create_task(self._hand_over(connection, leave))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _hand_over(self, connection: socket.socket, leave: Callable[[], None]) -> None:
        """Let a protocol serve the connection, after its TLS handshake if there is one."""
        protocol = self._create()
        protocol.on_lost = leave
        timeout = None if self._tls is None else self._handshake_seconds
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError:  # the handshake failed
            leave()
        except BaseException:
            leave()
            raise


def allow_files(connections: int) -> int:
    """Let this process open files for so many connections, if the system does; return for how many it may."""
    try:
        import resource  # noqa: PLC0415  # only Unix has it
    except ImportError:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed >= needed:
        return connections
    found = max(1, allowed - min(_OTHER_FILES, allowed // 2))
    _LOG.warning(
        "only %d connections are accepted at a time, and not max_connections, %d: this process may open %d files. Raise the "
        "limit of ulimit -n, or lower max_connections",
        found,
        connections,
        allowed,
    )
    return found
