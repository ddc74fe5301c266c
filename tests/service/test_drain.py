"""How a process stops: seen coming, without losing what it accepted, and at once if told twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

SLOW = """
import sys, time
import gradest
from gradest_service.app import serve
from gradest_service.settings import Settings

class Slow(gradest.Objective):
    "Takes its time, outside of Python's lock."

    name, summary = "slow", "sleeps"
    seconds: float = 0.0

    def __call__(self, points):
        if points.shape[0]:
            print("working", flush=True)
            time.sleep(self.seconds)
        return points.mean(-1)

gradest.registry.register(Slow)
serve(Settings(port=0, log_level="warning", {}))
"""


def slow(seconds):
    objective = {"name": "slow", "seconds": seconds}
    return {"neuron": "bernoulli", "estimator": "rloo", "objective": objective, "a": [0.0], "draws": 1, "seed": 1}


@contextmanager
def serving(**settings):
    """A service in a process of its own, with an objective that takes its time: the process, and a client of it."""
    code = SLOW.format(", ".join(f"{name}={value!r}" for name, value in settings.items()))
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        try:
            url = process.stdout.readline().rpartition(" ")[2].strip()
            assert url, process.stderr.read()
            with httpx.Client(base_url=url, timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def post(client, seconds):
    """Sends a slow request from a thread; joining it gives the answer, or the error."""
    answers = []

    def send():
        try:
            answers.append(client.post("/v1/estimate", json=slow(seconds)))
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=send)
    thread.start()

    def join():
        thread.join()
        return answers[0]

    return join


def begun(process):
    """Waits until the objective is asked."""
    assert process.stdout.readline() == "working\n"


def test_readyz_says_so_before_the_port_closes():
    """And who was asked before answers."""
    with serving(drain_seconds=3) as (process, client):
        assert client.get("/readyz").status_code == 200
        accepted = post(client, 2.5)
        begun(process)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while (answer := client.get("/readyz")).status_code == 200:
            assert time.monotonic() - told < 1
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        served = 0
        while time.monotonic() - told < 2:  # new connections too are served meanwhile
            assert httpx.get(f"{client.base_url}/readyz").status_code == 503
            assert httpx.post(f"{client.base_url}/v1/estimate", json=slow(0)).status_code == 200
            served += 1
        assert served > 0
        assert accepted().status_code == 200
        assert process.wait(20) == 0
        assert 2.9 < time.monotonic() - told < 60
        with pytest.raises(httpx.ConnectError):
            client.get("/livez")


@pytest.mark.deep
def test_a_keyboard_does_not_wait():
    with serving(drain_seconds=60) as (process, client):
        client.get("/livez")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.deep
def test_what_was_accepted_is_finished():
    with serving(drain_seconds=1, threads=1) as (process, client):
        running, waiting = post(client, 2.5), post(client, 0)
        begun(process)
        process.send_signal(signal.SIGTERM)
        assert running().status_code == waiting().status_code == 200
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.deep
def test_a_second_signal_stops_at_once():
    with serving(drain_seconds=60) as (process, client):
        cut = post(client, 60)
        begun(process)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        assert isinstance(cut(), httpx.RemoteProtocolError)


@pytest.mark.deep
def test_the_process_ends_even_where_a_plugin_hangs():
    with serving(drain_seconds=0, deadline_seconds=1, shutdown_seconds=2) as (process, client):
        hanging = post(client, 600)
        begun(process)
        process.send_signal(signal.SIGTERM)
        assert hanging().status_code == 504
        assert process.wait(20) == 1
        assert "still being computed" in process.stderr.read()


@pytest.mark.deep
def test_who_is_at_the_door_is_let_in():
    """Connections that the system has made while the process could not accept them, with a request or soon with one."""
    with serving(drain_seconds=0) as (process, client), ExitStack() as stack:
        client.get("/livez")
        address, request = (client.base_url.host, client.base_url.port), b"GET /livez HTTP/1.1\r\nhost: gradest\r\n\r\n"
        process.send_signal(signal.SIGSTOP)
        visitors = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(30)]
        for early in visitors[::2]:
            early.sendall(request)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=10)
        visitors[1].sendall(request[:20])
        for late in visitors[3::2]:
            late.sendall(request)
        answers = [b"".join(iter(lambda visitor=visitor: visitor.recv(1 << 16), b"")) for visitor in visitors]
        assert answers[1].startswith(b"HTTP/1.1 408 ")
        assert {answer.split(b"\r\n")[0] for answer in answers[2:]} == {b"HTTP/1.1 200 OK"}
        assert process.wait(20) == 0


@pytest.mark.deep
def test_under_load_every_accepted_request_is_answered():
    """Clients with a connection a request, before, during and after the signal: each is answered, or never let in."""
    with serving(drain_seconds=1, threads=1) as (process, client):
        url, stop, outcomes = f"{client.base_url}/v1/estimate", threading.Event(), []

        def ask():
            while not stop.is_set():
                try:
                    outcomes.append(httpx.post(url, json=slow(0.02), timeout=60).status_code)
                except httpx.ConnectError:
                    return  # the port is closed
                except httpx.HTTPError as error:
                    outcomes.append(error)

        askers = [threading.Thread(target=ask) for _ in range(8)]
        for asker in askers:
            asker.start()
        for _ in range(10):
            begun(process)
        process.send_signal(signal.SIGTERM)
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        assert process.wait(30) == 0
        stop.set()
        for thread in (*askers, drain):
            thread.join()
        assert len(outcomes) > 20
        assert set(outcomes) == {200}


def test_a_stream_that_is_stopped_says_so():
    with serving(drain_seconds=0, shutdown_seconds=1) as (process, client):
        body, answers = slow(600), []
        headers = {"Accept": "text/event-stream"}
        asker = threading.Thread(
            target=lambda: answers.append(client.post("/v1/estimate", json=body, headers=headers).text)
        )
        asker.start()
        begun(process)
        process.send_signal(signal.SIGTERM)
        asker.join(20)
        event, data = answers[0].strip().split("\n")
        assert event == "event: error"
        assert json.loads(data.removeprefix("data: "))["status"] == 503
