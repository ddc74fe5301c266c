"""POST /v1/credit: the weights of scores from the losses of a caller's own samples."""

import json

import pytest
import torch

import gradest
from gradest.client import wire
from gradest.contract.score_function import ScoreFunction
from gradest_service.admit.auth import new_key

LOSS = torch.tensor([[0.3, -2.0], [1.1, 0.4], [-0.7, 0.4], [2.5, 3.0]])
LENGTH = torch.tensor([[1.0, 3.0], [2.0, 0.0], [5.0, 4.0], [1.0, 2.0]])
INPUTS = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.4]])
NAMES = [name for name, cls in gradest.registry.estimators.items() if issubclass(cls, ScoreFunction)]
FEATURES = {"nvil": INPUTS, "opo": LENGTH, "otb": LENGTH}


@pytest.mark.parametrize("kind", ["client", "json_client"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_library_s(request, kind, name):
    """Bit for bit, two steps of it, so that a state goes out and comes back."""
    client, features = request.getfixturevalue(kind), FEATURES.get(name)
    here = there = None
    for loss in (LOSS, 2 * LOSS + 1):
        wanted, here = gradest.credit(name, loss, here, features)
        found, there = client.credit(name, loss, there, features)
        assert torch.equal(found, wanted)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[key], here[key]) for key in here)


def test_as_json(http):
    found = (
        http.post("/v1/credit", json={"estimator": {"name": "rloo"}, "loss": LOSS.tolist()}).raise_for_status().json()
    )
    torch.testing.assert_close(torch.tensor(found["weights"]), gradest.credit("rloo", LOSS)[0])
    assert found["state"] == {}
    assert found["tensors"] == {"weights": {"shape": [4, 2], "dtype": "float64"}}  # of numbers in JSON
    body = {"estimator": "opo", "loss": [0.25, 1.0], "features": [3, 1], "dtype": "float64"}
    found = http.post("/v1/credit", json=body).raise_for_status().json()
    assert found["tensors"]["weights"]["dtype"] == "float64"
    wanted, _ = gradest.credit("opo", torch.tensor([0.25, 1.0]).double(), features=torch.tensor([3, 1]))
    assert found["weights"] == wanted.tolist()
    empty = {"estimator": "rloo", "loss": [[], []], "shape": [2, 0]}
    assert http.post("/v1/credit", json=empty).raise_for_status().json()["tensors"]["weights"]["shape"] == [2, 0]


def test_in_safetensors(http):
    body = wire.pack({"loss": LOSS.bfloat16(), "features": LENGTH.double()}, {"request": '{"estimator": "opo"}'})
    types = {"Content-Type": wire.SAFETENSORS, "Accept": wire.SAFETENSORS}
    tensors, metadata = wire.unpack(http.post("/v1/credit", content=body, headers=types).raise_for_status().content)
    wanted, _ = gradest.credit("opo", LOSS.bfloat16(), features=LENGTH.double())
    assert torch.equal(tensors["weights"], wanted)
    assert json.loads(metadata["response"])["state"] == {}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"estimator": "rlo", "loss": [1.0, 2.0]}, 404, "Did you mean rloo"),
        ({"estimator": "disarm", "loss": [1.0, 2.0]}, 422, "has no credit"),
        ({"estimator": "rloo", "loss": [1.0]}, 422, "cannot credit K = 1 sample"),
        ({"estimator": "rloo", "loss": 1.0}, 422, "not a single number"),
        ({"estimator": "rloo", "loss": []}, 422, "cannot credit K = 0 sample"),
        ({"estimator": "rloo", "loss": [[1.0], [2.0, 3.0]]}, 422, "not rectangular"),
        ({"estimator": "rloo", "loss": [1.0, "x"]}, 422, "loss[1] is not a number."),
        ({"estimator": "rloo", "loss": [1.0, None]}, 422, "but null, which is what JSON.stringify makes of NaN"),
        ({"estimator": "rloo", "loss": {"0": 1.0}}, 422, "convert it with Array.from"),
        ({"estimator": "rloo", "loss": [1.0, [2.0]]}, 422, "loss is not rectangular: loss[1] is an array"),
        ({"estimator": "rloo", "loss": [1.0, 2.0], "features": [1.0, 2.0]}, 422, "omit features"),
        ({"estimator": "opo", "loss": [1.0, 2.0]}, 422, "there are none"),
        ({"estimator": "opo", "loss": [1.0, 2.0], "features": [1.0, -2.0]}, 422, "must not be negative"),
        ({"estimator": "opo", "loss": [1.0, 2.0], "features": [1.0]}, 422, "they have shape [1]"),
        ({"estimator": "nvil", "loss": [1.0, 2.0], "features": 3.0}, 422, "pass them as features"),
        ({"estimator": {"name": "rloo", "samples": 3}, "loss": [1.0, 2.0]}, 422, "samples=3"),
        ({"estimator": "rloo", "loss": [1.0, 2.0], "state": {"x": 1.0}}, 422, "state must hold"),
        ({"estimator": "reinforce_average", "loss": [1.0], "state": {"total": 1.0}}, 422, "state must hold"),
        (
            {"estimator": "reinforce_average", "loss": [1.0], "state": {"total": [1.0], "weight": 1.0}},
            422,
            "state.total",
        ),
        ({"estimator": "rloo", "loss": [1.0, 2.0], "neuron": "bernoulli"}, 422, "unknown name"),
        ({"loss": [1.0, 2.0]}, 422, "estimator: Field required"),
    ],
)
def test_what_it_refuses(http, refused, body, status, detail):
    assert detail in refused(http.post("/v1/credit", json=body), status)["detail"]


def test_numbers_that_are_not_finite(http, refused):
    text = b'{"estimator": "rloo", "loss": [1.0, NaN]}'
    answer = http.post("/v1/credit", content=text, headers={"Content-Type": "application/json"})
    assert "loss[1] is not a finite number" in refused(answer, 422)["detail"]


def test_its_limits(start, refused):
    small = start(max_elements=20, max_json_elements=12, max_work=40)
    post = lambda **body: small.post("/v1/credit", json={"estimator": "rloo", **body})  # noqa: E731
    assert post(loss=[[0.0] * 5] * 2).status_code == 200
    assert "loss may have 12 elements" in refused(post(loss=[[0.0] * 7] * 2), 413)["detail"]
    assert "K x loss would be 49" in refused(post(loss=[0.0] * 7), 413)["detail"]
    wide = {"estimator": {"name": "nvil", "hidden": 64}, "loss": [0.0], "features": [1.0]}
    assert "nvil would compute 715" in refused(post(**wide), 413)["detail"]
    small = start(max_elements=20, max_json_elements=12)
    assert "the state would be" in refused(post(**wide), 413)["detail"]


def test_a_key_pays_for_the_losses(start, tmp_path, refused):
    """Six elements a minute at most: the second request of six is refused."""
    key, line = new_key("alice")
    file = tmp_path / "keys"
    file.write_text(f"{line.strip()} elements_per_minute=6\n")
    service = start(api_keys=file)
    headers = {"Authorization": f"Bearer {key}"}
    body = {"estimator": "rloo", "loss": [[0.0] * 3] * 2}
    assert service.post("/v1/credit", json=body, headers=headers).status_code == 200
    refused(service.post("/v1/credit", json=body, headers=headers), 429)
