"""Backward refuses what is not as in the forward request that answered its digest, in whichever form the two are sent."""

import json
from dataclasses import replace

import pytest
import torch

import gradest
from gradest.client.wire import SAFETENSORS, pack
from gradest.errors import InvalidInput, ServiceError
from gradest_service.admit import digest
from gradest_service.admit.admission import admit_forward
from gradest_service.bodies.schemas import ForwardRequest
from gradest_service.run import joint_pass
from gradest_service.settings import Settings

A = torch.tensor([[0.1, -1.7, 0.0]])
ESTIMATOR = {"name": "reinforce_average", "decay": 0.7}
STATE = {"total": torch.tensor(0.3), "weight": torch.tensor(0.5)}
FIELDS = {"neuron": "bernoulli", "estimator": ESTIMATOR, "a": A, "seed": 3, "state": STATE}
OTHERS = {
    "seed": [{"seed": 4}],
    "a": [{"a": A + 1e-6}, {"a": A.flip(1)}, {"a": A[0]}, {"a": A.expand(2, 3)}, {"dtype": "float64"}],
    "neuron": [{"neuron": "bipolar"}],
    "estimator": [{"estimator": {**ESTIMATOR, "decay": 0.8}}],
    "state": [{"state": {**STATE, "total": torch.tensor(0.4)}}, {"state": None}],
}
CHANGES = [
    pytest.param(name, change, id=f"{name}{place}") for name in OTHERS for place, change in enumerate(OTHERS[name])
]


@pytest.fixture(params=["json", "safetensors"])
def post(http, request):
    """Sends fields, with tensors in each of the forms of bodies. The answer is JSON."""

    def send(route, fields, form=request.param):
        if form == "json":
            body = json.dumps(fields, default=lambda tensor: tensor.tolist())
            return http.post(f"/v1/{route}", content=body, headers={"Content-Type": "application/json"})
        state = fields.get("state") or {}
        tensors = {name: x for name, x in fields.items() if isinstance(x, torch.Tensor)}
        rest = {name: x for name, x in fields.items() if name not in tensors and name != "state"}
        tensors |= {f"state.{name}": x for name, x in state.items()}
        body = pack(tensors, {"request": json.dumps(rest)})
        return http.post(f"/v1/{route}", content=body, headers={"Content-Type": SAFETENSORS})

    return send


def digest_of(**fields):
    fields = {"neuron": "bernoulli", "estimator": "rloo", "seed": 1, **fields}
    return digest.digest_of(admit_forward(ForwardRequest(**fields), Settings(), as_json=False))


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_another_field_is_refused_by_its_name(post, refused, name, change):
    fields = {**FIELDS, **change}
    batch = fields["a"].shape[:-1]
    fields["loss"] = torch.ones(1, *batch)
    found = post("forward", FIELDS).json()["digest"]
    problem = refused(post("backward", {**fields, "digest": found}), 409)
    assert f": {name}. " in problem["detail"]
    assert [fault["field"] for fault in problem["errors"]] == [name]


def test_the_same_request_is_accepted_in_every_form(post):
    """As numbers of JSON or bytes, with defaults given or not, and with a zero that lost its sign."""
    a = torch.tensor([[0.1, -0.0, 1e-30]])
    fields = {"neuron": "bernoulli", "estimator": "reinforce_average", "a": a, "seed": 2**53 - 1}
    found = post("forward", fields).json()["digest"]
    estimator = gradest.estimator("reinforce_average")
    spelled = {"estimator": {"name": estimator.name, **dict(estimator)}}
    spelled["state"] = estimator.init(gradest.neuron("bernoulli"), a)
    for same in ({}, spelled, {"a": a.abs()}, {"dtype": "float32"}, {"a": a.double(), "dtype": "float32"}):
        for form in ("json", "safetensors"):
            answer = post("backward", {**fields, **same, "loss": torch.ones(1, 1), "digest": found}, form)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_dtype_survives_json(dtype):
    a = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(getattr(torch, dtype))
    assert digest_of(a=a, dtype=dtype) == digest_of(a=json.loads(json.dumps(a.tolist())), dtype=dtype)
    assert digest_of(a=a, dtype=dtype) != digest_of(a=a.flip(0), dtype=dtype)


def test_options_are_in_it():
    of = [{"name": "gaussian", "std": std} for std in (0.5, 0.5, 0.25)]
    same, again, other = (digest_of(neuron=neuron, estimator="pathwise", a=A).split(".") for neuron in of)
    assert same == again
    assert [mine == another for mine, another in zip(same, other, strict=True)] == [False, *[True] * 5]


def test_without_a_digest_nothing_is_checked(post):
    """As for clients that were written before there was one."""
    post("forward", FIELDS)
    assert post("backward", {**FIELDS, "seed": 4, "loss": torch.ones(1, 1)}).status_code == 200


def test_what_is_no_digest(http, refused):
    body = {"neuron": "bernoulli", "estimator": "rloo", "a": [0.5], "seed": 1, "loss": [0.1, 0.2]}
    for given in ("hunter2", "", "a.b.c.d.e.f", "\u0000" * 200):
        answer = http.post("/v1/backward", json={**body, "digest": given})
        assert "forward" in refused(answer, 409)["detail"]
        assert "hunter2" not in answer.text
    for given in (5, ["x"], "x" * 201):
        assert "digest" in refused(http.post("/v1/backward", json={**body, "digest": given}), 422)["detail"]


def test_another_version_of_the_noise_is_named(http, monkeypatch, refused):
    body = {"neuron": "bernoulli", "estimator": "rloo", "a": [0.5], "seed": 1}
    found = http.post("/v1/forward", json=body).json()["digest"]
    monkeypatch.setattr(digest, "VERSION", digest.VERSION + 1)
    problem = refused(http.post("/v1/backward", json={**body, "loss": [0.1, 0.2], "digest": found}), 409)
    assert "version of the noise" in problem["detail"]
    assert "errors" not in problem


def test_requests_that_are_computed_together_have_digests_of_their_own():
    requests = [
        ForwardRequest(neuron="bernoulli", estimator="rloo", a=[[0.5] * 2] * rows, seed=seed)
        for rows, seed in ((1, 1), (1, 2), (3, 1), (1, 1))
    ]
    jobs = [admit_forward(request, Settings(), as_json=False) for request in requests]
    assert len({job.kind for job in jobs}) == 1
    together = [answer.digest for answer in joint_pass.forward(jobs)]
    assert together == [joint_pass.forward([job])[0].digest for job in jobs]
    assert len(set(together)) == 3


def test_the_document_describes_it(http):
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert "digest" in schemas["ForwardAnswer"]["required"]
    assert "digest" not in schemas["BackwardRequest"]["required"]


# --- the client brings it without being asked ---


@pytest.mark.parametrize("change", ["seed", "a", "estimator", "neuron", "state"])
@pytest.mark.parametrize("transport", ["client", "json_client"])
def test_the_client_s_backward_is_refused_after_a_change(request, transport, change):
    client = request.getfixturevalue(transport)
    case = {"neuron": "bernoulli", "estimator": ESTIMATOR, "a": A.clone(), "state": None}
    draw = client.forward(**case, seed=3)
    loss = draw.points.sum(-1)
    step = client.backward(**case, draw=draw, loss=loss)
    if change == "seed":
        draw = replace(draw, seed=4)
    elif change == "a":
        case["a"] -= 0.1 * step.gradient  # an optimiser's step comes too early
    else:
        case |= {name: other[change] for name, (other, *_) in OTHERS.items() if name == change}
    with pytest.raises(ServiceError, match=f"forward request: {change}") as caught:
        client.backward(**case, draw=draw, loss=loss)
    assert caught.value.status == 409


def test_a_loss_that_changes_a_meanwhile_is_refused(client):
    a = A.clone()

    def f(points):
        a.add_(1)
        return points.sum(-1)

    with pytest.raises(ServiceError, match="forward request: a"):
        client.expect(f, a)


def test_a_seed_in_place_of_the_draw_is_refused(client):
    with pytest.raises(InvalidInput, match="the draw that forward returned, not int"):
        client.backward("bernoulli", "rloo", A, 3, torch.ones(2, 1))


def test_a_service_without_digests_is_sent_none(client):
    """An older one refuses a field that it does not know."""
    draw = client.forward("bernoulli", "rloo", A, seed=3)
    assert draw.digest
    older = replace(draw, digest=None)
    gradient = client.backward("bernoulli", "rloo", A, older, draw.points.sum(-1)).gradient
    assert torch.equal(gradient, client.backward("bernoulli", "rloo", A, draw, draw.points.sum(-1)).gradient)
