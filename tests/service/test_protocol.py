"""The head of a request: its time and its size are limited, and what is no HTTP is a problem, by either of uvicorn's parsers."""

import json
import select
import socket
import time
from contextlib import suppress

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def connect(request, start, monkeypatch):
    monkeypatch.setattr("gradest_service.host.protocol.AutoHTTPProtocol", request.param)
    service = start(deadline_seconds=1, max_body_bytes=1 << 20)

    def open_one():
        connection = socket.create_connection((service.base_url.host, service.base_url.port), timeout=20)
        request.addfinalizer(connection.close)
        return connection

    return open_one


def read(connection):
    """All that comes until the other side closes."""
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def answered(connection):
    found = b""
    while b"alive" not in found:
        found += (chunk := connection.recv(65536))
        assert chunk
    return found


def refused(answer, status):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert f"x-request-id: {problem['request_id']}".encode() in head
    return problem["detail"]


@pytest.mark.parametrize(
    "what", [b"FOO BAR BAZ\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http(connect, what):
    connection = connect()
    connection.sendall(what)
    assert "HTTP" in refused(read(connection), 400)


def test_a_head_that_does_not_come(connect):
    connection, began = connect(), time.monotonic()
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    while not select.select([connection], [], [], 0.2)[0]:
        connection.sendall(b"X-Slow: 1\r\n")  # each of which would start a timer of silence anew
        assert time.monotonic() - began < 10
    assert "1 seconds" in refused(read(connection), 408)
    assert time.monotonic() - began > 0.9


def test_a_connection_that_says_nothing(connect):
    connection, began = connect(), time.monotonic()
    assert read(connection) == b""
    assert 0.9 < time.monotonic() - began < 10


def test_a_head_without_end(connect):
    connection = connect()
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    try:
        for _ in range(40):
            connection.sendall(b"X-Long: " + b"x" * 4096 + b"\r\n")
            time.sleep(0.005)
    except ConnectionError:
        pass  # it has closed
    assert connection.recv(100).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))  # h11 has a limit of its own


def test_a_second_head_has_as_long(connect):
    connection = connect()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answered(connection)
    time.sleep(0.7)
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    time.sleep(0.7)  # 1.4 since the connection, 0.7 since its own first byte
    connection.sendall(b"Host: localhost\r\n\r\n")
    assert answered(connection)
    connection.sendall(b"GET /livez HTTP/1.1\r\n")
    assert read(connection).startswith(b"HTTP/1.1 408")


def test_the_rest_of_a_body_that_was_refused_is_no_head(connect):
    """The next request on the connection is answered, though the service did not wait for that rest."""
    connection = connect()
    size = (1 << 20) + 1
    connection.sendall(b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
    assert b" 413 " in connection.recv(65536)
    connection.sendall(b"x" * size)
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 200 " in answered(connection)


def test_the_rest_of_a_body_that_was_answered_has_as_long_as_a_head(connect):
    """Bytes that drip do not give it more, and the answer needs no key."""
    connection, began = connect(), time.monotonic()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
    assert b" 200 " in answered(connection)
    with suppress(ConnectionError):  # if the last byte crosses the end
        while not select.select([connection], [], [], 0.3)[0]:
            connection.sendall(b"x")
            assert time.monotonic() - began < 10
        assert read(connection) == b""
    assert time.monotonic() - began > 0.9
