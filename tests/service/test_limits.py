"""What a request multiplies is bounded before it is allocated, and the answer says what the limit is."""

import json
import resource
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
import torch

import gradest
from gradest.client.wire import SAFETENSORS, pack
from gradest_service.admit.admission import (
    admit_comparison,
    admit_credit,
    admit_estimate,
    admit_forward,
    admit_recommendation,
    admit_sample,
)
from gradest_service.admit.jobs import ObjectiveJob
from gradest_service.admit.limits import are_brief, exact_work, need_of
from gradest_service.bodies.schemas import (
    CompareRequest,
    CreditRequest,
    EstimateRequest,
    ForwardRequest,
    MeasureRequest,
    SampleRequest,
)
from gradest_service.settings import Settings

JSON = {"Content-Type": "application/json"}
SAMPLE = {"neuron": "bernoulli", "a": [0.0] * 10, "seed": 1}
FORWARD = {**SAMPLE, "estimator": "rloo"}
BACKWARD = {**FORWARD, "loss": [0.1, 0.2]}
ESTIMATE = {**FORWARD, "objective": "quadratic", "draws": 10}
COMPARE = {**SAMPLE, "objective": "quadratic", "draws": 10, "estimators": ["rloo"]}
HUGE = {"name": "rloo", "samples": 10**12}


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("sample", {**SAMPLE, "samples": 10**15}, "65536"),
        ("sample", {**SAMPLE, "samples": 6554}, "65536"),
        ("sample", {**SAMPLE, "a": [], "samples": 10**15}, "65536"),
        ("sample", {**SAMPLE, "a": [], "shape": [0, 10**18]}, "65536"),
        ("sample", {**SAMPLE, "a": [[]] * 40000, "samples": 2}, "65536"),
        ("sample", {**SAMPLE, "a": [0] * 65537}, "65536"),
        ("sample", {**SAMPLE, "a": [[]] * 65537}, "65536"),
        ("forward", {**FORWARD, "estimator": HUGE}, "4194304"),
        ("forward", {**FORWARD, "estimator": {"name": "rloo", "samples": 6554}}, "65536"),
        ("forward", {**FORWARD, "estimator": "enumeration", "a": [0.0] * 13}, "65536"),
        ("forward", {**FORWARD, "estimator": "enumeration", "a": [0.0] * 30}, "2^20"),
        ("backward", {**BACKWARD, "estimator": HUGE}, "4194304"),
        ("backward", {**BACKWARD, "loss": [0] * 65537}, "65536"),
        ("estimate", {**ESTIMATE, "draws": 10**15}, "1000000"),
        ("estimate", {**ESTIMATE, "estimator": HUGE}, "4194304"),
        ("estimate", {**ESTIMATE, "a": [0.0] * 1000, "draws": 10**6}, str(1 << 27)),
        ("estimate", {**ESTIMATE, "estimator": "enumeration", "a": [0.0] * 19}, "4194304"),
        ("estimate", {**ESTIMATE, "objective": {"name": "quadratic", "target": [0] * 65538}}, "65536"),
        ("compare", {**COMPARE, "draws": 10**15}, "1000000"),
        ("compare", {**COMPARE, "estimators": ["rloo"] * 101}, "100"),
        ("compare", {**COMPARE, "estimators": ["rloo", HUGE]}, "4194304"),
        ("compare", {**COMPARE, "a": [0.0] * 500, "draws": 10**5, "estimators": ["rloo"] * 2}, str(1 << 27)),
    ],
)
def test_caps(http, refused, path, body, limit):
    assert limit in refused(http.post(f"/v1/{path}", json=body), 413)["detail"]


STATED = {
    # what a plugin holds or computes beside its points
    "inner samples": (
        "backward",
        {"neuron": "categorical", "estimator": {"name": "gumbel_rao", "conditional_samples": 10**9}},
    ),
    "network": ("forward", {"neuron": "bernoulli", "estimator": {"name": "nvil", "hidden": 256}}),
    "network of an estimate": (
        "estimate",
        {"neuron": "bernoulli", "estimator": {"name": "relax", "hidden": 256}, "objective": "quadratic", "draws": 1},
    ),
    "pairs of samples": ("forward", {"neuron": "bernoulli", "estimator": {"name": "vimco", "samples": 65536}}),
    "pairs of samples of classes": (
        "backward",
        {"neuron": "categorical", "estimator": {"name": "carms", "samples": 16384}},
    ),
    "nodes": ("mean", {"neuron": "binary_concrete"}),
    "tables": ("mean", {"neuron": "plackett_luce"}),
    "tables of samples": ("sample", {"neuron": {"name": "k_subset", "k": 1000}, "samples": 2}),
}


@pytest.mark.parametrize("what", STATED)
def test_what_a_plugin_takes_beside_its_points_is_refused_before_it_runs(http, refused, what, monkeypatch):
    """What it would run does not run: every method that computes raises here."""
    path, body = STATED[what]
    units = {
        "nodes": 65000,
        "tables": 2000,
        "tables of samples": 3000,
        "pairs of samples": 1,
        "pairs of samples of classes": 1,
    }.get(what, 60000)
    a = torch.zeros(1, units, 1) if body["neuron"] == "categorical" else torch.zeros(1, units)
    a = a if body["neuron"] in ("bernoulli", "binary_concrete", "categorical") else a.reshape(1, 1, -1)
    for plugin in (body["neuron"], body.get("estimator")):
        name = plugin["name"] if isinstance(plugin, dict) else plugin
        kind = gradest.registry.neurons.get(name) or gradest.registry.estimators.get(name)
        for method in {"init", "forward", "noise", "law", "mean"} & {*dir(kind)} if kind else ():
            monkeypatch.setattr(kind, method, None)
    fields = {**body, "seed": 1} if path != "mean" else body
    message = pack({"a": a}, {"request": json.dumps(fields)})
    answer = http.post(f"/v1/{path}", content=message, headers={"Content-Type": SAFETENSORS, "Accept": SAFETENSORS})
    detail = refused(answer, 413)["detail"]
    assert "the limit is" in detail


def test_rows_of_a_mean_are_computed_in_parts(http, start):
    """With the same bits, so that memory does not grow with rows."""
    body = {"neuron": "binary_concrete", "a": torch.linspace(-3, 3, 60).reshape(5, 4, 3).tolist()}
    whole = http.post("/v1/mean", json=body).json()
    parts = start(max_points=96 * 3 * 4 * 2)  # two rows
    calls, mean = [], gradest.registry.neurons["binary_concrete"].mean
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gradest.registry.neurons["binary_concrete"], "mean", lambda self, a: calls.append(a) or mean(self, a)
        )
        assert parts.post("/v1/mean", json=body).json() == whole
    assert [call.shape for call in calls] == [(2, 3)] * 10


def test_exact_is_left_out_where_the_law_would_not_fit(http):
    """The law of many units has a hundred nodes for each; the estimate needs none of them."""
    a = torch.zeros(1, 20000)
    fields = {"neuron": "binary_concrete", "estimator": "pathwise", "objective": "quadratic", "draws": 2, "seed": 1}
    for columns, known in ((20000, False), (2000, True)):
        message = pack({"a": a[:, :columns].contiguous()}, {"request": json.dumps(fields)})
        answer = http.post("/v1/estimate", content=message, headers={"Content-Type": SAFETENSORS})
        assert answer.status_code == 200
        assert (answer.json()["exact"] is not None) == known


def test_an_objective_that_would_spread_its_points_is_refused_unevaluated(http, refused):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spread = {"name": "quadratic", "target": [[0.1]] * 60000}
    body = {**ESTIMATE, "a": [[0.0] * 60000], "objective": spread}  # 60000 x 60000 x 8 bytes if it were evaluated
    refused(http.post("/v1/estimate", json=body), 422)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024


def test_the_tensors_of_an_objective_count_as_work(http, refused):
    wide = {"name": "cross_entropy", "weight": [[0.1]] * 60000, "labels": 0}
    refused(http.post("/v1/estimate", json={**ESTIMATE, "a": [0.0], "objective": wide, "draws": 10**5}), 413)


def test_exact_is_left_out_where_it_would_take_too_long(http, refused, start):
    small = start(max_work=4000)
    objective = {"name": "cross_entropy", "weight": [[0.1] * 10] * 2, "labels": 0}
    body = {**ESTIMATE, "objective": objective}
    assert http.post("/v1/estimate", json=body).json()["exact"] is not None
    assert small.post("/v1/estimate", json=body).json()["exact"] is None
    assert "exact" in refused(small.post("/v1/compare", json={**COMPARE, "objective": objective}), 413)["detail"]


def test_a_comparison_of_all_leaves_out_what_is_beyond_the_limits(start):
    small = start(max_points=1000, max_work=100_000)
    body = {**COMPARE, "neuron": "binomial", "estimators": None}
    rows = small.post("/v1/compare", json=body, headers={"Accept": "application/json"}).json()["rows"]
    names = {row["estimator"] for row in rows}
    assert "rloo" in names
    assert "enumeration" not in names


def test_every_setting_is_a_cap(start, refused):
    small = start(max_elements=20, max_samples=3, max_draws=5, max_points=40, max_work=200, max_estimators=1)
    post = lambda path, **body: small.post(f"/v1/{path}", json=body)  # noqa: E731
    a = [0.0] * 10
    assert post("sample", neuron="bernoulli", a=a, samples=2).status_code == 200
    refused(post("sample", neuron="bernoulli", a=a, samples=3), 413)
    refused(post("sample", neuron="bernoulli", a=[0.0], samples=4), 413)
    refused(post("sample", neuron="bernoulli", a=[0.0] * 21), 413)
    assert post("forward", neuron="bernoulli", a=a, estimator="rloo").status_code == 200
    refused(post("forward", neuron="bernoulli", a=a, estimator={"name": "rloo", "samples": 3}), 413)
    estimate = {"neuron": "bernoulli", "a": a, "objective": "linear"}
    assert post("estimate", **estimate, estimator="rloo", draws=5).status_code == 200
    refused(post("estimate", **estimate, estimator="rloo", draws=6), 413)
    refused(post("estimate", **estimate, estimator={"name": "rloo", "samples": 5}, draws=2), 413)
    refused(post("estimate", **estimate, estimator="reinforce_average", draws=1), 413)  # its 100 steps to warm up count
    refused(post("compare", **estimate, estimators=["rloo", "rloo"], draws=1), 413)


@pytest.mark.parametrize("path", ["/v1/sample", "/nowhere", "/livez"])
def test_a_declared_body_over_the_cap(start, refused, path):
    refused(start(max_body_bytes=1000).post(path, content=b" " * 1001, headers=JSON), 413)


def test_a_chunked_body_over_the_cap(start, refused):
    small = start(max_body_bytes=1000)
    chunks = (b" " * 100 for _ in range(11))
    answer = small.post("/v1/sample", content=chunks, headers=JSON)
    assert "1000 bytes" in refused(answer, 413)["detail"]
    body = b'{"neuron": "bernoulli", "a": [0]}'
    assert small.post("/v1/sample", content=iter([body[:9], body[9:]]), headers=JSON).status_code == 200


def test_a_body_that_never_ends_is_cut(start):
    small = start(max_body_bytes=1000)
    with socket.create_connection((small.base_url.host, small.base_url.port), timeout=20) as connection:
        head = b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"7d0\r\n" + b" " * 2000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_client_that_goes_away_in_its_body_harms_nothing(http, url, caplog):
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(
            b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    time.sleep(0.2)
    assert http.get("/livez").status_code == 200
    assert not caplog.records


def test_requests_beyond_the_pool_wait_and_the_loop_stays_free(start):
    service = start(threads=1)
    body = {**ESTIMATE, "a": [[0.1] * 100] * 10, "draws": 1500}
    answers = []
    jobs = [threading.Thread(target=lambda: answers.append(service.post("/v1/estimate", json=body))) for _ in range(3)]
    for job in jobs:
        job.start()
    pings = []
    while any(job.is_alive() for job in jobs):
        began = time.perf_counter()
        assert service.get("/livez").status_code == 200
        pings.append(time.perf_counter() - began)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(pings) > 3
    wanted = gradest.estimate(gradest.objective("quadratic"), torch.full((10, 100), 0.1), draws=1500, seed=1)
    for answer in answers:
        assert torch.equal(torch.tensor(answer.json()["gradient"]), wanted.gradient)


def test_no_exact_gradient_of_counts_without_end(http):
    """The Poisson law lists more counts the larger a is; past its limit the estimate stands alone."""
    body = {**ESTIMATE, "neuron": "poisson", "a": [[0.0, 1e12]] * 40}
    assert http.post("/v1/estimate", json=body).json()["exact"] is None
    assert http.post("/v1/estimate", json={**body, "a": [[0.0, 1.0]]}).json()["exact"] is not None


def test_the_work_of_an_exact_gradient_counts_the_outputs_at_the_largest_a():
    neuron, target = gradest.neuron("poisson"), gradest.estimator("rloo").target()
    readout = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "labels": torch.zeros(2, dtype=torch.int64)}
    objective = gradest.objective("cross_entropy", **readout)
    a = torch.tensor([[0.0, 0.0], [0.0, 30.0]])
    atoms = [len(neuron.law(rows)[0]) for rows in (a[:1], a)]
    job = ObjectiveJob(neuron=neuron, a=a, wide=a, objective=objective, draws=1, seed=0)
    low, high = (exact_work(replace(job, a=rows, wide=rows), target) for rows in (a[:1].expand(2, 2), a))
    assert high / low == pytest.approx((atoms[1] / atoms[0]) ** 2)
    exact_work(replace(job, a=a[:0], wide=a[:0]), target)  # no rows, and no error


def test_work_that_ends_soon():
    a, settings = torch.zeros(1, 1 << 10), Settings()

    def is_brief(**fields):
        request = ForwardRequest(**{"neuron": "bernoulli", "estimator": "rloo", "a": a, **fields})
        return are_brief([admit_forward(request, settings, False)])

    assert is_brief()
    assert is_brief(a=torch.zeros(1, 1 << 16))
    assert not is_brief(a=torch.zeros(1 << 10, 1 << 10))
    some = torch.zeros(1, 1 << 16)
    assert not is_brief(a=some, estimator={"name": "rloo", "samples": 3})  # what options ask for is not measured
    assert is_brief(estimator={"name": "rloo", "samples": 3})  # but it is little
    assert is_brief(a=torch.zeros(1 << 13, 4), estimator="enumeration")  # 16 points are few
    assert not is_brief(a=torch.zeros(1 << 10, 5), estimator="enumeration")  # 32 points
    assert not is_brief(neuron="poisson", estimator="reinforce", a=torch.zeros(1, 1 << 17))
    assert is_brief(neuron="binomial", estimator="reinforce", a=torch.zeros(1, 1 << 17))
    assert is_brief(neuron="k_subset", a=torch.zeros(1, 64, 64))
    assert not is_brief(neuron="k_subset", a=torch.zeros(1, 1, 1 << 12))  # little, but a step for each item


@pytest.mark.parametrize("estimator", ["entropic_risk", "vimco"])
def test_credit_that_leaves_each_loss_out_is_charged_for_it(estimator):
    """Some thousand losses take as many steps over all of them, which is no moment's work."""
    job = admit_credit(CreditRequest(estimator=estimator, loss=torch.zeros(1 << 12, 1)), Settings(), False)
    assert job.cost.work >= 1 << 24
    assert not are_brief([job])


def test_the_work_of_others_plugins_is_not_known_to_end_soon(registered):
    class Slow(gradest.neuron("bernoulli").__class__):
        name, summary = "slow", "a neuron of somebody else"

    registered(Slow)
    job = admit_sample(SampleRequest(neuron="slow", a=torch.zeros(1, 1 << 17), samples=1), Settings(), False)
    assert not are_brief([job])
    assert are_brief([replace(job, neuron=gradest.neuron("bernoulli"))])


def test_exact_work_is_charged_and_leaves_a_thread_to_lighter_work():
    """Two draws of vimco take some hundred elements; its exact values are sums over the pairs of 1024 points."""
    settings, pairs, a = Settings(), 1 << 20, [[0.0] * 10] * 12
    fields = {"neuron": "bernoulli", "objective": "linear", "a": a, "draws": 2, "seed": 1}
    vimco = EstimateRequest(**fields, estimator="vimco")
    estimate = admit_estimate(vimco, settings, True)
    assert estimate.cost.work - pairs * 120 < 1000
    assert need_of(settings, estimate).heavy
    assert estimate.cost.held > 1 << 20  # losses of pairs, in each chunk, beside the points
    assert admit_estimate(vimco, Settings(max_work=1000), True).cost.work < 1000  # without exact values
    # the work of the draws and of the exact values may each be as large as the limit
    both = admit_estimate(vimco, Settings(max_work=pairs * 120), True)
    assert both.cost.work > pairs * 120
    few = {**fields, "a": [[0.0] * 9] * 12, "estimators": ["vimco", "pass_at_k", "rloo"]}
    comparison = admit_comparison(CompareRequest(**few), settings)
    # of two targets; the third has a closed form, which takes the law of each unit
    assert 0 < comparison.cost.work - 2 * (1 << 18) * 108 < 3000
    readout = {"name": "cross_entropy", "weight": [[0.1] * 10] * 2, "labels": 0}
    measured = {**fields, "a": [0.0] * 10, "objective": readout}
    short, long = (
        admit_recommendation(MeasureRequest(**{**measured, "draws": draws}), settings) for draws in (100, 300)
    )  # of 200 and 400 steps with those of the warm-up
    assert 2 * short.cost.work - long.cost.work == exact_work(short.measure, gradest.estimator("rloo").target()) > 0


def test_a_closed_form_is_charged_and_not_computed_before_the_request_has_its_turn(registered):
    """That of a neuron whose law is a quadrature takes seconds at the limits."""

    class Watched(gradest.objective("linear").__class__):
        name, summary = "watched", "sees what its closed form is asked for"

        def expectation(self, neuron, a):
            assert not a.numel()
            return super().expectation(neuron, a)

    registered(Watched)
    objective = {"name": "watched", "event_ndim": 2}
    fields = {"neuron": "noisy_top_k", "objective": objective, "estimators": ["dense_mixer"], "draws": 1, "seed": 1}
    job = admit_comparison(CompareRequest(**fields, a=torch.zeros(64, 2, 4)), Settings())
    assert job.cost.work > job.neuron.law_size(job.wide) > 64 * 8
