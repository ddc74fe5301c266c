"""What is counted and logged of each request."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time

import pytest

import gradest
from gradest_service.admit import metrics
from gradest_service.admit.request_context import RequestContext, current_request
from gradest_service.app import create_app
from gradest_service.host import logs
from gradest_service.settings import Settings

SAMPLE = {"neuron": "bernoulli", "a": [0.0] * 10, "seed": 1, "samples": 3}


def scrape(service):
    """Every sample by its name and labels."""
    answer = service.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def eventually(true, seconds=20):
    """Waits for what happens after an answer is out."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def service(start):
    return start(max_body_bytes=10_000)


def test_requests_are_counted_by_route_method_and_status(service):
    for _ in range(3):
        service.post("/v1/sample", json=SAMPLE)
    service.post("/v1/sample", json={})
    service.post("/v1/sample", content=b"x" * 10_001)
    service.get("/v1/neurons/bernoulli")
    service.get("/v1/neurons/nothing")
    service.get("/nowhere/1")
    service.get("/nowhere/2")
    service.put("/livez")
    service.request("PROPFIND", "/v1/sample")

    def counted():
        found = {name: value for name, value in scrape(service).items() if name.startswith("gradest_requests_total")}
        return {tuple(re.findall(r'"([^"]*)"', name)): value for name, value in found.items() if "/metrics" not in name}

    eventually(lambda: ("other", "/v1/sample", "405") in counted())
    assert counted() == {  # method, route, status
        ("POST", "/v1/sample", "200"): 3,
        ("POST", "/v1/sample", "422"): 1,
        ("POST", "/v1/sample", "413"): 1,
        ("GET", "/v1/neurons/{name}", "200"): 1,
        ("GET", "/v1/neurons/{name}", "404"): 1,
        ("GET", "none", "404"): 2,
        ("PUT", "/livez", "405"): 1,
        ("other", "/v1/sample", "405"): 1,
    }


def test_elements_bytes_and_latency(service):
    sent = service.build_request("POST", "/v1/sample", json=SAMPLE)
    received = len(service.send(sent).content)
    route = '{route="/v1/sample"}'
    eventually(lambda: f"gradest_elements_total{route}" in scrape(service))
    found = scrape(service)
    assert found[f"gradest_elements_total{route}"] == 30
    assert found[f"gradest_received_bytes_total{route}"] == len(sent.content)
    assert found[f"gradest_sent_bytes_total{route}"] == received
    assert found[f"gradest_request_seconds_count{route}"] == 1
    assert 0 < found[f"gradest_request_seconds_sum{route}"] < 60
    assert found['gradest_request_seconds_bucket{le="+Inf",route="/v1/sample"}'] == 1


def test_a_refused_request_computes_nothing(service):
    service.post("/v1/sample", json={**SAMPLE, "samples": 10**9})
    name = 'gradest_elements_total{route="/v1/sample"}'
    eventually(lambda: name in scrape(service))
    assert scrape(service)[name] == 0


def test_requests_in_progress(service, registered):
    entered, release = threading.Semaphore(0), threading.Event()

    class Waiting(gradest.Objective):
        name, summary = "waiting", "waits"

        def __call__(self, points):
            if points.shape[0]:
                entered.release()
                assert release.wait(20)
            return points.mean(-1)

    registered(Waiting)
    body = {"neuron": "bernoulli", "estimator": "rloo", "objective": "waiting", "a": [0.0], "draws": 1}
    posts = [threading.Thread(target=service.post, args=("/v1/estimate",), kwargs={"json": body}) for _ in range(2)]
    for post in posts:
        post.start()
    for _ in posts:
        assert entered.acquire(timeout=20)
    assert scrape(service)["gradest_requests_in_progress"] == 3  # and the scrape itself
    release.set()
    for post in posts:
        post.join()
    eventually(lambda: scrape(service)["gradest_requests_in_progress"] == 1)


def test_two_apps_count_apart(start):
    one, other = start(), start()
    one.get("/livez")
    eventually(lambda: any("/livez" in name for name in scrape(one)))
    assert not any("/livez" in name for name in scrape(other))


def test_metrics_can_be_turned_off_or_not_be_installed(start, refused, monkeypatch):
    refused(start(metrics=False).get("/metrics"), 404)
    monkeypatch.setattr(metrics, "available", lambda: False)
    service = start()
    refused(service.get("/metrics"), 404)
    assert service.post("/v1/sample", json=SAMPLE).status_code == 200


def test_a_line_a_request(start, caplog, tmp_path):
    from gradest_service.admit.auth import new_key

    key, entry = new_key("alice")
    (tmp_path / "keys").write_text(entry)
    service = start(api_keys=tmp_path / "keys")
    with caplog.at_level(logging.INFO, "gradest_service.requests"):
        service.post("/v1/sample", json=SAMPLE, headers={"Authorization": f"Bearer {key}", "X-Request-ID": "run-7"})
        service.get("/nowhere%0aforged")
        eventually(lambda: len(caplog.records) == 2)  # a line is written when its answer is out
    first, second = sorted(caplog.records, key=lambda record: record.fields["status"])
    fields = first.fields
    assert fields.pop("seconds") > 0
    assert fields.pop("bytes_in") > 0
    assert fields.pop("bytes_out") > 0
    assert fields == {"method": "POST", "route": "/v1/sample", "status": 200, "elements": 30, "key": "alice"} | {
        "client": "127.0.0.1"
    }
    assert (second.fields["status"], second.fields["route"], second.fields["key"]) == (401, "none", "")
    assert key not in caplog.text


@pytest.fixture
def logged(capsys):
    """Sets up the service's log in a format, and gives what it wrote; the tests' own handlers come back afterwards."""
    root, own = logging.getLogger(), logging.getLogger("gradest_service")
    kept = root.handlers[:], root.level, own.level

    def set_up(**settings):
        logs.set_up(Settings(**settings))

        def read():
            logs.flush()
            return capsys.readouterr().err

        return read

    yield set_up
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    own.setLevel(kept[2])


def test_json_logs(logged):
    read = logged(log_format="json")
    token = current_request.set(RequestContext("run-7", "GET"))
    try:
        logs.log_request(RequestContext("run-7", "GET", "/v1/sample", elements=3), 200, 0.25)
        try:
            raise ValueError("line\nbreak")
        except ValueError:
            logging.getLogger("gradest_service").exception("request %s failed", "run-7")
    finally:
        current_request.reset(token)
    logging.getLogger("elsewhere").warning("hello")
    answered, failed, other = map(json.loads, read().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered.pop("time"))
    assert answered == {
        "level": "info",
        "logger": "gradest_service.requests",
        "message": "answered",
        "request_id": "run-7",
        "method": "GET",
        "route": "/v1/sample",
        "status": 200,
        "seconds": 0.25,
        "elements": 3,
        "bytes_in": 0,
        "bytes_out": 0,
        "key": "",
        "client": "",
    }
    assert (failed["level"], failed["request_id"]) == ("error", "run-7")
    assert "ValueError: line\nbreak" in failed["exception"]
    assert (other["message"], "request_id" in other) == ("hello", False)


def test_text_logs_and_levels(logged):
    read = logged(log_level="warning")
    logs.log_request(RequestContext("run-7", "GET"), 200, 0.25)
    logging.getLogger("gradest_service").warning("attention")
    (line,) = read().splitlines()
    assert line.endswith("Z WARNING attention")


def test_the_id_is_on_what_plugins_log(start, registered, logged):
    class Talking(gradest.Objective):
        name, summary = "talking", "logs"

        def __call__(self, points):
            logging.getLogger("talking").warning("computing")
            return points.mean(-1)

    registered(Talking)
    service = start()
    read = logged(log_format="json", log_level="warning")
    body = {"neuron": "bernoulli", "estimator": "rloo", "objective": "talking", "a": [0.0], "draws": 1}
    service.post("/v1/estimate", json=body, headers={"X-Request-ID": "run-8"})
    lines = [json.loads(line) for line in read().splitlines()]
    assert lines
    assert {(line["logger"], line["request_id"]) for line in lines} == {("talking", "run-8")}


def test_a_dead_worker_s_requests_are_forgotten_and_its_counts_are_not(tmp_path):
    def run(code):
        imports = "from gradest_service.admit import metrics; from gradest_service.admit.request_context import RequestContext"
        code = f"import os; {imports}; m = metrics.Metrics(); {code}"
        environment = {**os.environ, metrics.FOLDER_VARIABLE: str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        return process.pid, process.communicate(timeout=60)[0]

    dead, _ = run("m.begin(); m.begin(); m.end(RequestContext('x', 'GET', '/livez'), 200, 0.5); os._exit(9)")
    show = "print(m.render().decode())"
    _, shown = run(f"{show}; metrics.forget_worker({dead}, {str(tmp_path)!r}); print('forgotten'); {show}")
    before, _, shown = shown.partition("forgotten")
    assert "gradest_requests_in_progress 1.0" in before
    assert "gradest_requests_in_progress 1.0" not in shown
    assert 'gradest_requests_total{method="GET",route="/livez",status="200"} 1.0' in shown


def test_no_globals():
    """An application leaves nothing in prometheus-client's own registry, nor in the log's handlers."""
    from prometheus_client import REGISTRY

    before, handlers = set(REGISTRY._names_to_collectors), logging.getLogger().handlers[:]
    create_app()
    assert set(REGISTRY._names_to_collectors) == before
    assert logging.getLogger().handlers == handlers


def test_what_waits_for_a_thread_and_what_ran_together_is_counted(start, poisson_waits):
    """One request holds the only thread; of three that wait meanwhile two are of one kind, so two passes wait."""
    service = start(threads=1)

    def send(neuron):
        thread = threading.Thread(target=lambda: service.post("/v1/sample", json={**SAMPLE, "neuron": neuron}))
        thread.start()
        return thread

    try:
        threads = [send("poisson")]
        assert poisson_waits.held.wait(20)
        threads += [send(neuron) for neuron in ("bernoulli", "bernoulli", "bipolar")]
        eventually(lambda: scrape(service)["gradest_requests_waiting"] == 2 and requests_in(service) == 4)
    finally:
        poisson_waits.may_go.set()
    for thread in threads:
        thread.join()
    eventually(lambda: scrape(service)["gradest_requests_waiting"] == 0)
    found = scrape(service)
    assert (found["gradest_batch_requests_count"], found["gradest_batch_requests_sum"]) == (3, 4)
    assert found['gradest_batch_requests_bucket{le="1.0"}'] == 2


def requests_in(service):
    """Those in progress, less the scrape itself."""
    return scrape(service)["gradest_requests_in_progress"] - 1


def test_a_log_that_nobody_reads_stops_no_request(monkeypatch):
    """Lines beyond those that wait are dropped and counted; what reads again is told how many."""
    reading, writing = os.pipe()
    monkeypatch.setattr(logs, "_MOST_LINES", 50)
    with os.fdopen(writing, "w") as stream, os.fdopen(reading) as reader:
        handler = logs._Unblocked(stream)
        handler.setFormatter(logs._Text())
        record = logging.makeLogRecord({"msg": "x" * 1000, "levelname": "INFO"})
        lines = 2000  # 2 MB; a pipe holds 64 kB
        done = threading.Event()

        def log():
            for _ in range(lines):
                handler.emit(record)
            done.set()

        threading.Thread(target=log, daemon=True).start()
        assert done.wait(20)
        read = []
        threading.Thread(target=lambda: read.extend(iter(reader.readline, "")), daemon=True).start()
        handler.flush()
        handler.emit(record)  # the next line is preceded by what was dropped before it
        handler.flush()
        told = lambda: sum(int(found) for found in re.findall(r"(\d+) lines were dropped", "".join(read)))  # noqa: E731
        eventually(lambda: told() > lines / 2)
        eventually(lambda: sum("xxx" in line for line in read) == lines + 1 - told())  # no other line is missing
        stream.close()


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.9"), ("10.0.0.1", "127.0.0.1")]
)
def test_the_log_has_the_address_behind_trusted_proxies_alone(start, caplog, trusted, address):
    service = start(trusted_proxies=trusted)
    with caplog.at_level(logging.INFO, "gradest_service.requests"):
        service.get("/version", headers={"X-Forwarded-For": "203.0.113.9"})
        eventually(lambda: len(caplog.records) == 1)
    assert caplog.records[0].fields["client"] == address


def test_refusals_before_the_route_have_it_too(start, caplog, tmp_path):
    from gradest_service.admit.auth import new_key

    key, entry = new_key("alice")
    (tmp_path / "keys").write_text(entry + " requests_per_second=0.01")
    service = start(api_keys=tmp_path / "keys")
    with caplog.at_level(logging.INFO, "gradest_service.requests"):
        service.get("/v1/neurons/secret")
        for _ in range(2):
            service.post(
                "/v1/mean", json={"neuron": "bernoulli", "a": [0.0]}, headers={"Authorization": f"Bearer {key}"}
            )
        eventually(lambda: len(caplog.records) == 3)
    found = sorted((record.fields["status"], record.fields["route"]) for record in caplog.records)
    assert found == [(200, "/v1/mean"), (401, "/v1/neurons/{name}"), (429, "/v1/mean")]
