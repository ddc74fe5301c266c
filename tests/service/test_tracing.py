"""Where a request stands in its caller's trace, and the spans and figures of its phases."""

import logging
import socket
import subprocess
import sys
import threading
from collections import defaultdict

import httpx
import pytest
import torch
from opentelemetry import propagate
from opentelemetry.propagators.textmap import default_getter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import gradest
from gradest_service.app import create_app
from gradest_service.settings import Settings
from gradest_service.tracing import Spans, Tracing
from tests.service.test_metrics import eventually, scrape

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SAMPLE = {"neuron": "bernoulli", "a": [[0.0, 1.0]], "seed": 1}
ESTIMATE = {"neuron": "bernoulli", "estimator": "rloo", "objective": "quadratic", "a": [0.0], "draws": 3}


@pytest.fixture
def spans(monkeypatch):
    """What a traced service has reported: spans() gives those that are over, by the names of their parents and their own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(Spans, "configured", classmethod(lambda cls: cls(provider)))
    return exporter.get_finished_spans


def tree(spans):
    """The names of the spans below each request's, as `name` or `parent/name`, in the order of their beginnings."""
    by_id = {span.context.span_id: span for span in spans}
    below = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time):
        names, parent = [span.name], by_id.get(span.parent and span.parent.span_id)
        while parent is not None and parent.kind is not SpanKind.SERVER:
            names.append(parent.name)
            parent = by_id.get(parent.parent and parent.parent.span_id)
        if parent is not None:
            below[parent.context.span_id].append("/".join(reversed(names)))
    return list(below.values())


def servers(spans):
    return [span for span in spans if span.kind is SpanKind.SERVER]


class Capitalised(TraceContextTextMapPropagator):
    """Asks for its header by a name with capitals, as the propagator of AWS X-Ray does."""

    def extract(self, carrier, context=None, getter=default_getter):
        (parent,) = getter.get(carrier, "X-Trace") or [""]
        return super().extract({"traceparent": parent}, context)


def test_a_propagator_may_write_names_of_headers_with_capitals(start, spans, monkeypatch):
    monkeypatch.setattr(propagate, "get_global_textmap", Capitalised)
    start(tracing=True).post("/v1/sample", json=SAMPLE, headers={"X-Trace": TRACED["traceparent"]})
    eventually(lambda: servers(spans()))
    assert f"{servers(spans())[0].context.trace_id:032x}" == TRACE


def test_a_request_is_a_span_below_its_caller_s_with_its_phases_inside(start, spans):
    service = start(tracing=True)
    answer = service.post("/v1/sample", json=SAMPLE, headers={**TRACED, "X-Request-ID": "run-7"})
    eventually(lambda: servers(spans()))
    (request,) = servers(spans())
    assert request.name == "POST /v1/sample"
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/sample",
        "http.response.status_code": 200,
        "gradest.request_id": "run-7",
        "gradest.elements": 2,
    }
    assert tree(spans()) == [["decode", "queue", "batch", "batch/compute", "batch/encode"]]
    (batch,) = [span for span in spans() if span.name == "batch"]
    assert batch.attributes["gradest.batch.requests"] == 1
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in spans())


@pytest.mark.parametrize(
    ("path", "body", "accept"),
    [
        ("mean", SAMPLE | {"seed": None}, "application/json"),
        ("estimate", ESTIMATE, "application/json"),
        ("estimate", ESTIMATE, "text/event-stream"),
        ("compare", {k: v for k, v in ESTIMATE.items() if k != "estimator"} | {"estimators": ["rloo"]}, "*/*"),
    ],
)
def test_phases_of_what_runs_alone(start, spans, path, body, accept):
    body = {name: value for name, value in body.items() if value is not None}
    service = start(tracing=True)
    assert service.post(f"/v1/{path}", json=body, headers={"Accept": accept}).status_code == 200
    eventually(lambda: servers(spans()))
    own_turn = [] if accept == "application/json" else ["queue"]  # of the stream, which is decoded before it begins
    assert tree(spans()) == [["queue", "decode", *own_turn, "compute", "encode"]]
    assert servers(spans())[0].parent is None


def test_each_request_of_a_batch_has_its_phases_in_its_own_trace(start, spans, poisson_waits):
    """One request holds the only thread; two others wait, and are then computed together."""
    service = start(tracing=True, threads=1)

    def post(body, trace):
        headers = {"traceparent": f"00-{trace}-{PARENT}-01"}
        thread = threading.Thread(target=service.post, args=("/v1/sample",), kwargs={"json": body, "headers": headers})
        thread.start()
        return thread

    traces = [f"{number:032x}" for number in (1, 2)]
    try:
        threads = [post(SAMPLE | {"neuron": "poisson", "samples": 3}, TRACE)]
        assert poisson_waits.held.wait(20)
        threads += [post(SAMPLE, trace) for trace in traces]
        eventually(lambda: scrape(service)["gradest_requests_in_progress"] == 4)  # and the scrape itself
        eventually(lambda: scrape(service)["gradest_requests_waiting"] == 1)
    finally:
        poisson_waits.may_go.set()
    for thread in threads:
        thread.join()
    eventually(lambda: len([span for span in servers(spans()) if span.name == "POST /v1/sample"]) == 3)
    for trace in traces:
        mine = [span for span in spans() if f"{span.context.trace_id:032x}" == trace]
        assert tree(mine) == [["decode", "queue", "batch", "batch/compute", "batch/encode"]]
        (batch,) = [span for span in mine if span.name == "batch"]
        assert batch.attributes["gradest.batch.requests"] == 2


def test_a_fault_of_a_plugin_is_an_error_and_is_counted(start, spans, registered):
    class Faulty(gradest.Objective):
        name, summary = "faulty", "fails"

        def __call__(self, points):
            if points.shape[0]:
                raise ZeroDivisionError
            return points.mean(-1)

    registered(Faulty)
    service = start(tracing=True)
    for accept in ("application/json", "text/event-stream"):
        service.post("/v1/estimate", json=ESTIMATE | {"objective": "faulty"}, headers={"Accept": accept})
    eventually(lambda: scrape(service).get('gradest_plugin_faults_total{plugin="faulty"}') == 2)
    eventually(lambda: [span.status.status_code for span in servers(spans())].count(StatusCode.ERROR) == 1)
    service.post("/v1/estimate", json=ESTIMATE | {"draws": 0})
    eventually(lambda: scrape(service)['gradest_requests_total{method="POST",route="/v1/estimate",status="422"}'] == 1)
    assert sum(value for name, value in scrape(service).items() if "plugin_faults_total" in name) == 2


def test_a_client_names_the_span_in_which_it_is_called(start, spans):
    service = start(tracing=True)
    tracer = TracerProvider().get_tracer("a program")
    with gradest.Client(str(service.base_url)) as client:
        with tracer.start_as_current_span("step") as step:
            client.sample("bernoulli", torch.zeros(2, 3), seed=1)
        client.plugins()
    eventually(lambda: len(servers(spans())) == 2)
    inside, outside = sorted(servers(spans()), key=lambda span: span.start_time)
    assert (inside.context.trace_id, inside.parent.span_id) == (step.context.trace_id, step.context.span_id)
    assert outside.parent is None


def test_a_client_does_not_import_opentelemetry():
    code = "import sys, gradest.client.transports as t; assert t._trace_headers() == {}; print('opentelemetry' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_probes_are_no_spans(start, spans):
    service = start(tracing=True)
    for path in ("/livez", "/readyz/", "/version"):
        service.get(path, headers=TRACED)
    eventually(lambda: servers(spans()))
    assert [span.name for span in servers(spans())] == ["GET /version"]


def test_without_spans_a_trace_is_passed_on_to_the_answer_and_the_log(start, caplog, spans):
    service = start()
    with caplog.at_level(logging.INFO, "gradest_service.requests"):
        answer = service.get("/version", headers=TRACED)
    assert answer.headers["traceparent"] == TRACED["traceparent"]
    assert "traceparent" not in service.get("/version").headers
    assert spans() == ()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\r\nX: 1",
    ],
)
def test_what_is_no_traceparent_is_ignored(wrong):
    trace = Tracing().begin(httpx.Headers({"traceparent": wrong}))
    assert (trace.trace_id, trace.headers) == ("", {})


def test_the_line_of_a_request_has_its_trace(logged_lines):
    service, lines = logged_lines
    service.get("/version", headers=TRACED)
    service.get("/version")
    eventually(lambda: len(lines()) == 2)
    assert [line.count(f"trace_id={TRACE}") for line in lines()] == [1, 0]


@pytest.fixture
def logged_lines(start):
    """A service, and the lines of its log as they are written."""
    from gradest_service.host import logs

    written = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(logs._Text().format(record))
    logger = logging.getLogger("gradest_service.requests")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield start(), lambda: written
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_metrics_of_phases_and_memory(start):
    service = start()
    service.post("/v1/sample", json=SAMPLE)
    service.post("/v1/mean", json={"neuron": "bernoulli", "a": [0.0]})
    count = 'gradest_phase_seconds_count{{phase="{}"}}'.format
    eventually(lambda: scrape(service).get(count("encode")) == 2)
    eventually(lambda: scrape(service)["gradest_resident_bytes"] > 1 << 26)
    found = scrape(service)
    assert {name: found[count(name)] for name in ("decode", "queue", "batch", "compute")} == {
        "decode": 2,
        "queue": 2,
        "batch": 1,
        "compute": 2,
    }
    assert found["gradest_body_bytes"] == 0


def test_bytes_of_bodies_in_progress_are_counted(start):
    service = start()
    with socket.create_connection((service.base_url.host, service.base_url.port)) as connection:
        connection.sendall(
            b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1001\r\n\r\n"
            + b" " * 1000
        )
        eventually(lambda: scrape(service)["gradest_body_bytes"] == 1000)
    eventually(lambda: scrape(service)["gradest_body_bytes"] == 0)


def test_tracing_without_opentelemetry_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(gradest.errors.InvalidInput, match=r"gradest\[otel\]"):
        create_app(Settings(tracing=True))


def test_spans_go_where_the_environment_says(monkeypatch):
    """A collector on loopback gets the spans of a service that stops, with its name."""
    import http.server

    from gradest_service.app import running

    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with running(Settings(port=0, tracing=True)) as url:
            httpx.post(f"{url}/v1/sample", json=SAMPLE)
        collector.shutdown()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = b"".join(body for _, body in received)
    assert all(word in sent for word in (b"gradest", b"POST /v1/sample", b"batch", b"compute", b"encode"))
