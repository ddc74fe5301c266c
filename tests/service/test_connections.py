"""Open connections are limited, in all and for each client, from the moment at which they are accepted."""

import asyncio
import errno
import resource
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, suppress

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gradest_service.host import connections
from gradest_service.host.connections import Connections, Listener, allow_files
from gradest_service.problems import Problem
from gradest_service.settings import Settings


@pytest.fixture
def opened():
    """Opens connections to a service, and closes them at the end."""
    with ExitStack() as stack:

        def open_some(service, number):
            where = service.base_url.host, service.base_url.port
            return [stack.enter_context(socket.create_connection(where, timeout=20)) for _ in range(number)]

        yield open_some


def read(connection):
    """All that comes until the other side closes."""
    found = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


def eventually(true, seconds=20):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def scrape(service, name):
    lines = service.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def ask(connection):
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection.recv(65536)


def test_idle_connections_leave_the_service_to_those_that_it_has(start, opened):
    service = start(max_connections=300, max_connections_per_client=1000)
    assert service.get("/livez").status_code == 200  # its connection stays open
    idle = opened(service, 299)
    for answer in map(read, opened(service, 100)):
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert b"300 connections are open" in answer
    assert scrape(service, "gradest_connections ") == 300
    assert scrape(service, 'gradest_refused_connections_total{limit="process"}') == 100
    assert ask(idle[7]).startswith(b"HTTP/1.1 200")
    for connection in idle[:5]:
        connection.close()
    eventually(lambda: scrape(service, "gradest_connections ") == 295)
    assert ask(*opened(service, 1)).startswith(b"HTTP/1.1 200")


def test_one_client_does_not_have_them_all(start, opened):
    service = start(max_connections=40)
    idle = opened(service, 20)
    (refused,) = opened(service, 1)
    assert read(refused).startswith(b"HTTP/1.1 429 ")
    idle[0].close()
    eventually(lambda: service.get("/metrics").status_code == 200)
    assert scrape(service, 'gradest_refused_connections_total{limit="client"}') >= 1


def test_a_trusted_proxy_brings_many_clients(start, opened):
    service = start(max_connections=40, max_connections_per_client=2, trusted_proxies="127.0.0.0/8")
    assert [ask(connection)[9:12] for connection in opened(service, 20)] == [b"200"] * 20


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nX-Slow: "])
def test_heads_that_do_not_come_give_their_places_back(start, opened, sent):
    service = start(max_connections=200, max_connections_per_client=200, head_seconds=0.7)
    for connection in (slow := opened(service, 200)):
        connection.sendall(sent)
    assert {read(connection)[:12] for connection in slow} == {b"HTTP/1.1 408" if sent else b""}
    eventually(lambda: service.get("/livez").status_code == 200)
    assert scrape(service, "gradest_connections ") == 1


@pytest.mark.parametrize("parser", [H11Protocol, HttpToolsProtocol])
def test_a_request_for_a_websocket_is_answered_in_http_and_counts_no_longer(start, opened, monkeypatch, caplog, parser):
    """There are none; a connection that changed its protocol would never be counted out."""
    monkeypatch.setattr("gradest_service.host.protocol.AutoHTTPProtocol", parser)
    service = start(max_connections=20, max_connections_per_client=20)
    for _ in range(30):
        (connection,) = opened(service, 1)
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.close()
    eventually(lambda: scrape(service, "gradest_connections ") == 1)
    assert "pgrade" not in caplog.text


@pytest.fixture
def tls(tmp_path):
    """The settings of a certificate, and a context that trusts it."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run(command, check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=tmp_path / "certificate")
    return {"ssl_certfile": tmp_path / "certificate", "ssl_keyfile": tmp_path / "key"}, trusting


def test_a_handshake_that_does_not_come_counts_and_ends(start, opened, tls):
    settings, trusting = tls
    service = start(**settings, max_connections=4, max_connections_per_client=4, head_seconds=1)
    silent = opened(service, 3)
    with trusting.wrap_socket(*opened(service, 1), server_hostname="127.0.0.1") as served:
        began = time.monotonic()
        assert read(*opened(service, 1)) == b""  # at once, as there is no room
        assert ask(served).startswith(b"HTTP/1.1 200")
        assert [read(connection) for connection in silent] == [b""] * 3
        assert time.monotonic() - began < 10

    def is_served():
        with (
            suppress(ConnectionResetError),
            trusting.wrap_socket(*opened(service, 1), server_hostname="127.0.0.1") as one,
        ):
            return ask(one).startswith(b"HTTP/1.1 200")

    eventually(is_served)  # their places are free


def refused(counted, address):
    with pytest.raises(Problem) as found:
        counted.enter(address)
    return found.value.status


def test_who_a_client_is():
    counted = Connections(Settings(max_connections_per_client=1, trusted_proxies="10.0.0.0/8, ::1, proxy"))
    for _ in range(3):
        counted.enter("10.1.2.3"), counted.enter("::1"), counted.enter("::ffff:10.0.0.1")
    leave = counted.enter("192.0.2.1")
    assert refused(counted, "192.0.2.1") == refused(counted, "::ffff:192.0.2.1") == 429
    counted.enter("2001:db8:0:1::1")
    assert refused(counted, "2001:db8:0:1:ffff::") == 429
    counted.enter("2001:db8:0:2::1")
    counted.enter("fe80::1%eth0")
    assert counted.open == 13
    for _ in range(3):
        leave()
    assert counted.open == 12
    counted.enter("192.0.2.1")


@pytest.mark.parametrize(
    ("soft", "hard", "granted", "connections"),
    [(100_000, 100_000, None, 1000), (1024, 4096, 1256, 1000), (512, 600, 600, 344), (64, 64, 64, 32)],
)
def test_as_many_files_as_connections_take_are_allowed(monkeypatch, caplog, soft, hard, granted, connections):
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.__setitem__(slice(None), wanted))
    assert allow_files(1000) == connections
    assert limits == [granted or soft, hard]
    assert ("max_connections" in caplog.text) == (connections < 1000)


class OutOfFiles(socket.socket):
    """The process has no more files the first time."""

    faults = 1

    def accept(self):
        if type(self).faults:
            type(self).faults -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_connections_wait_while_there_are_no_files(monkeypatch, caplog):
    monkeypatch.setattr(connections, "_RETRY_SECONDS", 0.1)

    class Greeting(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"hello")
            transport.close()

    async def scenario():
        with OutOfFiles() as bound:
            bound.bind(("127.0.0.1", 0))
            bound.listen()
            listener = Listener(bound, Connections(Settings()), Greeting, None, 1.0)
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            assert await reader.read() == b"hello"
            writer.close()
            await listener.close(1.0)

    asyncio.run(scenario())
    assert "ulimit -n" in caplog.text
