"""A state of another estimator or size, and a loss that is not finite, are refused by what is wrong, wherever they are sent."""

import json

import pytest
import torch

import gradest
from gradest.client.wire import SAFETENSORS, pack
from gradest.errors import ServiceError

A = torch.tensor([[0.5, -1.0], [0.2, 0.8]])
OTHER = {"total": torch.tensor(1.0), "weight": torch.tensor(1.0)}  # the state of reinforce_average
WIDE = {"numerator": torch.ones(3), "denominator": torch.ones(3)}  # that of reinforce_centered, of three units


def calls(estimator, state):
    """Each call that takes a state, with this one."""
    return {
        "forward": lambda client: client.forward("bernoulli", estimator, A, 1, state),
        "expect": lambda client: client.expect(lambda h: h.sum(-1), A, "bernoulli", estimator, 1, state),
        "backward": lambda client: client.backward(
            "bernoulli", estimator, A, client.forward("bernoulli", estimator, A, 1), torch.ones(1, 2), state=state
        ),
        "credit": lambda client: client.credit(estimator, torch.ones(2, 2), state),
    }


@pytest.mark.parametrize("transport", ["client", "json_client"])
@pytest.mark.parametrize(
    ("estimator", "state", "routes", "named"),
    [
        (
            "reinforce_centered",
            OTHER,
            {"forward", "expect", "backward"},
            ["reinforce_centered", "numerator, denominator"],
        ),
        ("reinforce_average", WIDE, set(calls("", None)), ["reinforce_average", "total, weight", "2 of other names"]),
        ("rloo", OTHER, {"forward", "expect", "credit"}, ["rloo has no state", "2 of other names"]),
        ("reinforce_centered", WIDE, {"forward", "expect", "backward"}, ["state.numerator", "[2]", "[3]"]),
    ],
)
def test_a_state_of_another_estimator_or_size(request, transport, estimator, state, routes, named):
    client = request.getfixturevalue(transport)
    for route, call in calls(estimator, state).items():
        if route in routes:
            with pytest.raises(ServiceError) as caught:
                call(client)
            assert caught.value.status == 422
            assert all(part in caught.value.detail for part in named), (route, caught.value.detail)


def test_estimate_takes_no_state(http, refused):
    body = {"neuron": "bernoulli", "estimator": "reinforce_average", "objective": "quadratic", "a": [0.5]}
    answer = http.post("/v1/estimate", json={**body, "state": {"hunter2": 1.0}})
    assert "unknown name" in refused(answer, 422)["detail"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize("route", ["backward", "credit"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_loss_that_is_not_finite_is_named_by_its_index(http, refused, route, value, as_json):
    """1e39 is finite as a number of JSON or of float64, and not in float32."""
    loss = torch.zeros(2, 2, dtype=torch.float64)
    loss[1, 0] = value
    fields = {"estimator": "rloo", "dtype": "float32"}
    fields |= {"neuron": "bernoulli", "seed": 1, "a": A.tolist()} if route == "backward" else {}
    if as_json:
        content, kind = json.dumps({**fields, "loss": loss.tolist()}), "application/json"
    else:
        a = {"a": torch.tensor(fields.pop("a"))} if "a" in fields else {}
        content, kind = pack({**a, "loss": loss}, {"request": json.dumps(fields)}), SAFETENSORS
    answer = http.post(f"/v1/{route}", content=content, headers={"Content-Type": kind})
    assert "loss[1, 0] is not a finite number" in refused(answer, 422)["detail"]


def test_a_state_that_was_right_stays_so(client):
    built = gradest.estimator("reinforce_centered")
    first = dict(built.init(gradest.neuron("bernoulli"), A))
    draw = client.forward("bernoulli", built, A, 1, first)
    assert torch.equal(draw.points, client.forward("bernoulli", built, A, 1).points)
