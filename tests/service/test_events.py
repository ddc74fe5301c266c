"""The event stream of a comparison."""

import json
import threading

import pytest
import torch

import gradest
from gradest.analysis.comparison import comparable_estimators
from gradest.contract.objective import Objective
from gradest.errors import InvalidInput

BODY = {"neuron": "bernoulli", "objective": "quadratic", "a": [0.5, -1.0], "draws": 20, "seed": 1}


def parse(text):
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    pairs = [block.split("\n") for block in blocks]
    return [(event.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for event, data in pairs]


def test_progress_then_one_result(http):
    answer = http.post("/v1/compare", json={**BODY, "neuron": "noisy_rectifier"})  # which few estimators fit
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-request-id"]
    events = parse(answer.text)
    fitting = [estimator.name for estimator in comparable_estimators(gradest.neuron("noisy_rectifier"))]
    assert [data["estimator"] for name, data in events if name == "progress"] == fitting
    assert [name for name, _ in events] == ["progress"] * len(fitting) + ["result"]
    assert events[0][1] == {"estimator": fitting[0], "done": 20, "draws": 20}
    result = events[-1][1]
    assert result.keys() == {
        "neuron",
        "draws",
        "seed",
        "rows",
        "failures",
        "skipped",
        "unresolved",
        "exact",
        "no_exact",
    }
    assert [row["estimator"] for row in result["rows"]] == fitting
    assert torch.tensor(result["exact"]).shape == (2,)


def test_json_alone_is_the_result(http):
    body = {**BODY, "estimators": ["rloo", "reinforce_average", "straight_through"]}
    streamed = parse(http.post("/v1/compare", json=body).text)[-1][1]
    alone = http.post("/v1/compare", json=body, headers={"Accept": "application/json"}).json()
    for row in (*streamed["rows"], *alone["rows"]):
        del row["seconds"]
    assert alone == streamed


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("application/json, text/event-stream", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("text/html", "text/event-stream"),
        ("application/json", "application/json"),
        ("application/json, */*;q=0.1", "application/json"),
        ("APPLICATION/JSON; q=1, text/event-stream;q=0.9", "application/json"),
        ("application/*", "application/json"),
        ("application/json;q=nonsense", "text/event-stream"),
    ],
)
def test_accept(http, accept, media_type):
    body = {**BODY, "estimators": ["rloo"], "draws": 2}
    answer = http.post("/v1/compare", json=body, headers={"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == media_type


def test_what_is_wrong_beforehand_is_no_stream(http, refused):
    refused(http.post("/v1/compare", json={**BODY, "estimators": ["pathwise"]}), 422)
    refused(http.post("/v1/compare", json={**BODY, "objective": "nothing"}), 404)
    refused(http.post("/v1/compare", json={**BODY, "draws": 10**9}), 413)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("hunter2"), 500), (InvalidInput("so it is"), 422)])
def test_what_goes_wrong_later_is_an_event(http, registered, error, status):
    class Late(Objective):
        name, summary = "late", "raises once it is evaluated"

        def __call__(self, points):
            if points.shape[0]:
                raise error
            return points.sum(-1)

    registered(Late)
    answer = http.post("/v1/compare", json={**BODY, "objective": "late"}, headers={"X-Request-ID": "run-1"})
    assert answer.status_code == 200
    ((name, problem),) = parse(answer.text)
    assert name == "error"
    assert (problem["status"], problem["request_id"]) == (status, "run-1")
    assert "hunter2" not in answer.text


def test_a_client_that_goes_away_stops_the_work(start, registered):
    service = start(threads=1)
    entered, release, evaluations = threading.Event(), threading.Event(), []

    class Slow(Objective):
        name, summary = "slow", "waits at its second evaluation"

        def __call__(self, points):
            if points.shape[0]:
                evaluations.append(points.shape[0])
                entered.set()
                assert release.wait(20)
            return points.mean(-1)

        def expectation(self, neuron, a):
            return a.sum(-1)

    registered(Slow)
    estimators = [{"name": "rloo", "samples": samples} for samples in range(2, 12)]
    body = {**BODY, "objective": "slow", "estimators": estimators, "draws": 2}
    with service.stream("POST", "/v1/compare", json=body) as answer:
        assert answer.status_code == 200
        assert entered.wait(20)
    release.set()
    # the only thread is free again once the comparison has stopped, at its next report
    assert service.post("/v1/sample", json={"neuron": "bernoulli", "a": [0.0]}).status_code == 200
    assert len(evaluations) < len(estimators)


def test_a_quiet_stream_is_kept_alive(start, registered, monkeypatch):
    monkeypatch.setattr("gradest_service.run.event_stream._KEEP_ALIVE_SECONDS", 0.05)
    release = threading.Event()

    class Waiting(Objective):
        name, summary = "waiting", "waits"

        def __call__(self, points):
            assert not points.shape[0] or release.wait(20)
            return points.mean(-1)

        def expectation(self, neuron, a):
            return a.sum(-1)

    registered(Waiting)
    body = {**BODY, "objective": "waiting", "estimators": ["rloo"], "draws": 2}
    with start().stream("POST", "/v1/compare", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": still running"
        release.set()
        assert "event: result" in list(lines)


ESTIMATE = {
    "neuron": "bernoulli",
    "estimator": "rloo",
    "objective": {"name": "quadratic", "target": 0.3, "reduction": "sum"},
    "a": [[0.5, -1.0, 2.0, 0.1]] * 50,
    "draws": 60_000,
    "seed": 3,
}
STREAM = {"Accept": "text/event-stream"}


def test_an_estimate_streams_what_there_is_so_far(http):
    events = parse(http.post("/v1/estimate", json=ESTIMATE, headers=STREAM).text)
    alone = http.post("/v1/estimate", json=ESTIMATE).json()
    name, result = events[-1]
    assert name == "result"
    assert {**result, "seconds": 0} == {**alone, "seconds": 0}
    progress = [data for name, data in events if name == "progress"]
    assert progress
    draws = [data["draws"] for data in progress]
    assert draws == sorted(set(draws))
    errors = [torch.tensor(data["standard_error"]).max() for data in progress]
    assert errors[-1] <= errors[0]
    assert torch.tensor(progress[0]["gradient"]).shape == (50, 4)


def test_an_estimate_stops_where_it_is_good_enough(http):
    target = 0.002
    found = http.post("/v1/estimate", json={**ESTIMATE, "target_standard_error": target}).json()
    assert 256 <= found["draws"] < ESTIMATE["draws"]
    assert torch.tensor(found["standard_error"]).max() <= target
    a = torch.tensor(ESTIMATE["a"])
    wanted = gradest.estimate(
        gradest.objective(ESTIMATE["objective"]), a, draws=ESTIMATE["draws"], seed=3, target_standard_error=target
    )
    assert found["draws"] == wanted.draws
    assert torch.equal(torch.tensor(found["gradient"]), wanted.gradient)


@pytest.mark.parametrize("wrong", [0, -1.0, "NaN", "small"])
def test_a_target_must_be_a_positive_number(http, refused, wrong):
    refused(http.post("/v1/estimate", json={**ESTIMATE, "target_standard_error": wrong}), 422)


def test_a_client_that_does_not_read_holds_the_newest_progress_alone(start):
    """An event has megabytes here. All but the first, which fill the socket's buffers, and the last are dropped and counted."""
    service = start(threads=1, max_json_elements=1 << 17)
    body = {
        "neuron": "bernoulli",
        "objective": "quadratic",
        "estimator": "rloo",
        "a": [[0.5] * 60000],
        "draws": 800,
        "seed": 1,
    }
    with service.stream("POST", "/v1/estimate", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert (
            service.post("/v1/sample", json={"neuron": "bernoulli", "a": [0.0], "seed": 1}).status_code == 200
        )  # it has ended
        events = parse(answer.read().decode())
    assert events[-1][0] == "result"
    assert events[-1][1]["draws"] == 800
    drawn = [data["draws"] for name, data in events if name == "progress"]
    assert drawn == sorted(drawn)
    lines = dict(line.rsplit(" ", 1) for line in service.get("/metrics").text.splitlines())
    assert float(lines['gradest_dropped_events_total{route="/v1/estimate"}']) > 0  # how many depends on the machine
