"""`serve` as a process: the line it prints, the port it takes, and how it ends."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from pydantic import ValidationError

import gradest
from gradest.errors import InvalidInput
from gradest_service.app import create_app, running
from gradest_service.host.server import Server
from gradest_service.settings import Settings
from tests.selection import deep

SERVE = "from gradest_service.app import serve; from gradest_service.settings import Settings; serve(Settings({}))"


def serve(settings):
    code = SERVE.format(settings)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.mark.parametrize(
    "ending", [signal.SIGINT, *deep(signal.SIGTERM)]
)  # of which test_drain and test_cli have another
def test_serve_says_where_and_ends_well(ending):
    with serve("port=0") as process:
        line = process.stdout.readline().strip()
        assert line.startswith("gradest is listening on http://127.0.0.1:")
        with gradest.Client(line.rpartition(" ")[2]) as client:
            assert "bernoulli" in client.neurons()
        process.send_signal(ending)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, "")
    assert re.fullmatch(r"\S+ INFO answered request_id=\w+ method=GET route=/v1/neurons status=200 .*\n", errors)


def test_what_is_loaded_in_advance_is_told_once():
    """So that the collector is told to leave it alone: it takes a fifth of the time of small requests."""
    app = create_app(Settings())
    server, told = Server(Settings(), app), []
    server.on_warm = lambda: told.append(app.state.capacity.warm)

    async def start_and_tick():
        await server.on_tick(1)
        assert not told
        async with app.router.lifespan_context(app):
            while not app.state.capacity.warm:
                await asyncio.sleep(0.01)
        for tick in (2, 3):
            await server.on_tick(tick)

    asyncio.run(start_and_tick())
    assert told == [True]


@pytest.mark.deep
def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken, serve(f"port={taken.getsockname()[1]}") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "in use" in errors


def test_running_ends_and_starts_again():
    for _ in range(2):
        with running() as url:
            assert httpx.get(f"{url}/readyz").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/readyz")


def test_running_says_when_it_cannot_start():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=taken.getsockname()[1])
        with pytest.raises(InvalidInput, match="in use"), running(settings):
            pass


def test_a_request_that_outlasts_the_shutdown_is_told(registered, refused):
    entered, release, answers = threading.Event(), threading.Event(), []

    class Endless(gradest.Objective):
        name, summary = "endless", "waits"

        def __call__(self, points):
            entered.set()
            assert release.wait(20)
            return points.mean(-1)

    registered(Endless)
    body = {"neuron": "bernoulli", "estimator": "rloo", "objective": "endless", "a": [0.0]}
    with running(Settings(port=0, shutdown_seconds=0)) as url:
        post = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/estimate", json=body)))
        post.start()
        assert entered.wait(20)
        threading.Timer(0.5, release.set).start()
    post.join()
    assert "again" in refused(answers[0], 503)["detail"]
    assert answers[0].headers["retry-after"] == "1"


def test_ipv6():
    with running(Settings(host="::1", port=0)) as url:
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/livez").status_code == 200


def test_settings_are_checked_and_fixed():
    for wrong in ({"port": 70000}, {"threads": 0}, {"nonsense": 1}):
        with pytest.raises(ValidationError):
            Settings(**wrong)
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_apps_share_nothing():
    one, other = create_app(Settings(threads=1)), create_app()
    assert one.state.pool is not other.state.pool
    assert (one.state.pool.threads, other.state.pool.threads) == (1, Settings().threads)
    assert other.state.settings == Settings()


@pytest.mark.parametrize(("variable", "ready"), [("1", 503), ("0", 200)])
def test_readiness_is_about_the_plugins(monkeypatch, variable, ready, http, refused):
    monkeypatch.setenv("GRADEST_STRICT_PLUGINS", variable)
    failure = gradest.errors.PluginError("hunter2")
    if ready == 503:
        monkeypatch.setattr(type(gradest.registry), "plugins", property(lambda self: (_ for _ in ()).throw(failure)))
    answer = http.get("/readyz")
    assert answer.status_code == ready
    if ready == 503:
        assert "hunter2" not in refused(answer, 503)["detail"]
