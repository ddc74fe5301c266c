"""Several processes on one port: one that dies is replaced, counts are told together, and all of them end with the service."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gradest_service.admit.auth import new_key

pytestmark = pytest.mark.slow

# each request has a connection of its own; reading the certificates of authorities for it would take most of the time
get, post = (functools.partial(method, verify=False) for method in (httpx.get, httpx.post))

SAMPLE = {"neuron": "bernoulli", "a": [[0.3, -1.0, 2.0]], "samples": 4, "seed": 7}
SAMPLED = 'gradest_requests_total{method="POST",route="/v1/sample",status="200"}'
"""The metric that counts such requests."""


@contextmanager
def serving(*flags, **environment):
    """`gradest serve` with two workers: the supervisor's process and the URL."""
    command = [
        sys.executable,
        "-m",
        "gradest",
        "serve",
        "--workers",
        "2",
        "--port",
        "0",
        "--drain-seconds",
        "1",
        *flags,
    ]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            url = process.stdout.readline().rpartition(" ")[2].strip()
            assert url, process.stderr.read()
            yield process, url
        finally:
            process.kill()


def children(process):
    """The ids of the workers: all children but the one that multiprocessing keeps."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def eventually(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def scrape(url, name):
    """The sum of a metric over its labels."""
    lines = [line for line in get(f"{url}/metrics", timeout=60).text.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def service():
    """One service for the tests that follow, in their order: the last of them stops it."""
    with serving("--log-level", "warning") as found:
        yield found


def test_all_workers_answer_alike_and_count_together(service):
    process, url = service
    before = scrape(url, SAMPLED), scrape(url, "gradest_elements_total")
    assert len(children(process)) == 2
    answers = {post(f"{url}/v1/sample", json=SAMPLE, timeout=60).text for _ in range(40)}
    assert len(answers) == 1
    eventually(lambda: scrape(url, SAMPLED) == before[0] + 40)
    assert scrape(url, "gradest_elements_total") == before[1] + 40 * 12
    assert 'pid="' not in get(f"{url}/metrics").text


def test_a_killed_worker_is_replaced_and_its_counts_stay(service):
    process, url = service
    before = scrape(url, SAMPLED)
    victim, other = children(process)
    stop, failures, done = threading.Event(), [], []

    def ask():  # one connection a request, as many clients have
        while not stop.is_set():
            try:
                done.append(post(f"{url}/v1/sample", json=SAMPLE, timeout=60).status_code)
            except httpx.HTTPError as error:
                failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    eventually(lambda: len(done) > 40)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(children(process)) == 2 and victim not in children(process))
    after = len(done)
    eventually(lambda: len(done) > after + 100)
    stop.set()
    for asker in askers:
        asker.join()
    assert alive(other)
    assert set(done) == {200}
    assert len(failures) <= 4  # at most what each client had on its way to the worker that was killed
    # an answer of each client may have been sent by the worker that was killed, and not yet counted
    eventually(lambda: len(done) - 4 <= scrape(url, SAMPLED) - before <= len(done) + len(failures))
    eventually(lambda: scrape(url, "gradest_requests_in_progress") == 1)  # the dead worker's are forgotten
    log = os.read(process.stderr.fileno(), 1 << 16).decode()  # what there is, without waiting for the end
    assert len(re.findall(f"worker {victim} ended with -9 and is replaced", log)) == 1


def test_stopping_under_load_resets_no_connection(service):
    """As with one worker: until the port closes every request is answered, and then a connection is refused at once."""
    process, url = service
    stop, statuses, faults = threading.Event(), [], []

    def ask():  # a connection a request, so that they come until the port closes
        while not stop.is_set():
            try:
                statuses.append(post(f"{url}/v1/sample", json=SAMPLE, timeout=20).status_code)
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                faults.append(error)

    askers = [threading.Thread(target=ask) for _ in range(16)]
    for asker in askers:
        asker.start()
    eventually(lambda: len(statuses) > 100)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    stop.set()
    for asker in askers:
        asker.join(30)
    assert not faults
    assert set(statuses) == {200}


@pytest.mark.deep
def test_stopping_drains_every_worker_and_finishes_what_was_accepted():
    with serving("--drain-seconds", "8") as (process, url):
        workers = children(process)
        body = {**SAMPLE, "estimator": "rloo", "objective": "quadratic", "draws": 400_000}
        del body["samples"]
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(post(f"{url}/v1/estimate", json=body, timeout=60).status_code)
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: scrape(url, "gradest_requests_in_progress") > 1)
        os.kill(workers[0], signal.SIGTERM)  # as when a whole group is told; the supervisor tells them again
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert {get(f"{url}/readyz", timeout=60).status_code for _ in range(10)} == {503}
        for thread in threads:
            thread.join()
        assert answers == [200] * 4
        assert process.wait(30) == 0
        assert not any(map(alive, workers))


@pytest.mark.deep
def test_a_second_signal_kills():
    with serving("--drain-seconds", "600") as (process, url):
        workers = children(process)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: get(f"{url}/readyz", timeout=60).status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        eventually(lambda: not any(map(alive, workers)))


@pytest.mark.deep
def test_what_keeps_a_worker_from_starting_ends_the_service(tmp_path):
    (tmp_path / "keys").write_text("nonsense")
    command = [
        sys.executable,
        "-m",
        "gradest",
        "serve",
        "--workers",
        "2",
        "--port",
        "0",
        "--api-keys",
        tmp_path / "keys",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (3, "")
    assert "line 1" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.deep
def test_a_taken_port_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "gradest", "serve", "--workers", "2", "--port", str(taken.getsockname()[1])]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr.startswith("gradest: ")
    assert "in use" in found.stderr


HANGING = """
import os, time, gradest

class Hangs(gradest.Objective):
    name, summary = "hangs", "does not end"

    def __call__(self, points):
        if points.shape[0]:
            time.sleep(600)
        return points.mean(-1)

class Stops(gradest.Objective):
    name, summary = "stops", "stops its process"

    def __call__(self, points):
        if points.shape[0]:
            os.kill(os.getpid(), 19)
        return points.mean(-1)

@gradest.hookimpl
def gradest_objectives():
    return [Hangs, Stops]
"""


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    """A service with a plugin package whose objectives hang, or stop the process. The last test that uses it kills it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "hanging.py").write_text(HANGING)
    (folder / "hanging-1.dist-info").mkdir()
    (folder / "hanging-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1\n")
    (folder / "hanging-1.dist-info" / "entry_points.txt").write_text("[gradest]\nhanging = hanging\n")
    flags = ("--deadline-seconds", "2", "--threads", "1", "--log-level", "warning")
    # a worker that is stopped while it compiles a kernel would have all other tests that need it wait
    with serving(*flags, PYTHONPATH=str(folder), GRADEST_KERNELS="reference") as found:
        yield found


@pytest.mark.parametrize(("objective", "why"), [("hangs", "lost all its threads"), ("stops", "no sign of life")])
def test_a_worker_that_hangs_is_replaced(hanging, objective, why):
    process, url = hanging
    eventually(lambda: len(children(process)) == 2)
    before = set(children(process))
    body = {"neuron": "bernoulli", "estimator": "rloo", "objective": objective, "a": [0.0], "draws": 1, "seed": 1}
    with contextlib.suppress(httpx.HTTPError):  # a stopped process answers nothing
        assert post(f"{url}/v1/estimate", json=body, timeout=40).status_code == 504
    eventually(lambda: len(children(process)) == 2 and len(before & set(children(process))) == 1)
    assert why in os.read(process.stderr.fileno(), 1 << 16).decode()
    ask = lambda: post(f"{url}/v1/sample", json=SAMPLE, timeout=60).status_code  # noqa: E731
    eventually(lambda: {ask() for _ in range(10)} == {200})


def test_workers_do_not_outlive_a_killed_supervisor(hanging):
    process, url = hanging
    eventually(lambda: len(children(process)) == 2)
    workers = children(process)
    process.kill()
    eventually(lambda: not any(map(alive, workers)))
    with pytest.raises(httpx.ConnectError):
        get(f"{url}/livez")


@pytest.mark.deep
def test_workers_share_the_limits_of_a_key(tmp_path):
    """Each worker alone would let ten requests pass; and one that is killed takes nothing with it."""
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(f"{line} elements_per_minute=120")
    with serving("--api-keys", tmp_path / "keys", "--log-level", "error") as (process, url):
        bearer = {"Authorization": f"Bearer {key}"}

        def ask():  # on a connection of its own, so that both workers are asked
            return post(f"{url}/v1/sample", json=SAMPLE, headers=bearer, timeout=60).status_code

        began = time.monotonic()
        statuses = [ask() for _ in range(40)]
        assert set(statuses) == {200, 429}
        refilled = 2 * (time.monotonic() - began)
        assert 10 <= statuses.count(200) <= 11 + refilled / 12
        victim, _ = children(process)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(children(process)) == 2 and victim not in children(process))
        statuses = [ask() for _ in range(20)]
        assert statuses.count(200) <= 1 + 2 * (time.monotonic() - began) / 12
