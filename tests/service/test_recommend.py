"""GET and POST /v1/recommend, and the certificates that an estimator's description has."""

import json

import pytest
import torch

import gradest
from gradest.analysis.certificates import load_certificates


def test_is_the_librarys_answer(http):
    found = http.get(
        "/v1/recommend",
        params={"neuron": "bernoulli", "bring": "loss,grad", "evaluations": 6, "unbiased": True, "units": 4},
    )
    wanted = gradest.recommend("bernoulli", ["loss", "grad"], 6, unbiased=True, units=4)
    assert found.json() == json.loads(json.dumps(wanted.to_dict()))


def test_a_list_may_be_repeated_as_generated_clients_send_it(http):
    """The last of them alone would be another case, without a word."""
    both, joined = ({"bring": given, "evaluations": 2} for given in (["loss", "grad"], "loss,grad"))
    assert http.get("/v1/recommend", params=both).json() == http.get("/v1/recommend", params=joined).json()


def test_defaults(http):
    assert http.get("/v1/recommend").json() == json.loads(json.dumps(gradest.recommend().to_dict()))


def test_measures(http):
    spec = {"name": "polynomial", "power": 3.0, "target": 0.2}
    a = [[0.5, -1.0, 2.0]]
    body = {"neuron": "binomial", "objective": spec, "a": a, "evaluations": 4, "draws": 100, "seed": 5}
    found = http.post("/v1/recommend", json=body).json()
    wanted = gradest.recommend("binomial", ["loss"], 4, f=gradest.objective(spec), a=torch.tensor(a), draws=100, seed=5)
    assert found == json.loads(json.dumps(wanted.to_dict()))


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"neuron": "bernouli"}, 404),
        ({"bring": "losses"}, 422),
        ({"evaluations": 0}, 422),
        ({"evaluations": "many"}, 422),
        ({"unknown": 1}, 422),
        ({"objective": "quadratic"}, 422),
        ({"neuron": '{"name": "bernoulli", "low": 1}'}, 422),
        ({"neuron": '{"name"'}, 400),
    ],
)
def test_refusals(http, refused, params, status):
    refused(http.get("/v1/recommend", params=params), status)


@pytest.mark.parametrize(
    "params", [{"objective": "quadratic", "a": "[0.0]"}, {"a": "[0.0]"}, {"draws": 3}, {"seed": 1}]
)
def test_a_get_measures_nothing(http, refused, params):
    """A page of another site can have a browser send it, without asking beforehand."""
    assert "POST /v1/recommend" in refused(http.get("/v1/recommend", params=params), 422)["detail"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"a": None}, 422),
        ({"objective": "none"}, 404),
        ({"draws": 900_000}, 413),
        ({"bring": ["losses"]}, 422),
        ({"draws": 0}, 422),
    ],
)
def test_refusals_of_a_measurement(http, refused, change, status):
    body = {"a": [0.0], "objective": "quadratic", "seed": 1} | change
    refused(http.post("/v1/recommend", json={k: v for k, v in body.items() if v is not None}), status)


def test_an_estimators_description_has_its_certificates(http):
    found = http.get("/v1/estimators/disarm").json()
    assert found["certificates"] == [
        certificate.to_dict() for certificate in load_certificates(type(gradest.estimator("disarm")))
    ]
    assert {certificate["neuron"] for certificate in found["certificates"]} == set(found["neurons"])
    listed = {estimator["name"]: estimator for estimator in http.get("/v1/estimators").json()}
    assert "certificates" not in listed["disarm"]
