"""Answers that a client does not read are counted while they wait, and their connections are cut at the deadline."""

import json
import socket
import time

from gradest.client.wire import SAFETENSORS

MEGABYTES = {"neuron": "bipolar", "a": [[0.0] * 64], "samples": 1 << 16, "seed": 1}  # sixteen of them
JSON = {"Content-Type": "application/json", "Accept": SAFETENSORS}


def ask_and_not_read(service, path, body, accept=SAFETENSORS):
    """A connection with a small window, on which a request was sent."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((service.base_url.host, service.base_url.port))
    content = json.dumps(body).encode()
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return connection


def is_cut(connection):
    """Reads what arrived before the connection was cut; false if the rest of the answer arrives too."""
    connection.settimeout(20)
    got = 0
    try:
        while part := connection.recv(1 << 20):
            got += len(part)
    except ConnectionResetError:
        return True
    return got < 1 << 24


def test_they_keep_further_work_waiting_until_the_deadline(start):
    service = start(deadline_seconds=3, max_memory_bytes=40 << 20)
    began = time.monotonic()
    with (
        ask_and_not_read(service, "/v1/sample", MEGABYTES) as one,
        ask_and_not_read(service, "/v1/sample", MEGABYTES) as other,
    ):
        time.sleep(1)
        answer = service.post("/v1/sample", json=MEGABYTES, headers=JSON)
        assert time.monotonic() - began > 2.5
        assert answer.status_code in (200, 504)
        assert is_cut(one)
        assert is_cut(other)
    until = time.monotonic() + 60
    while service.post("/v1/sample", json=MEGABYTES, headers=JSON).status_code != 200:  # there is room again
        assert time.monotonic() < until


def test_an_answer_in_parts_is_whole(start):
    service = start()
    answer = service.post("/v1/sample", json=MEGABYTES, headers=JSON)
    assert len(answer.content) == int(answer.headers["content-length"]) > 1 << 24
    assert service.head("/openapi.json").status_code == 200
