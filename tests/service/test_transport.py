"""safetensors over HTTP, written and read by the package of that name: any client that has it needs no more."""

import json
import subprocess
from pathlib import Path
from shutil import which

import pytest
import torch
from safetensors.torch import load, save

import gradest
from gradest.estimation.ask_tell import ask
from gradest.random import Key

SAFETENSORS = "application/vnd.safetensors"
HEADERS = {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}
A = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]])
SECRET = "hunter2hunter2"


def body_of(tensors, **fields):
    return save(tensors, {"request": json.dumps(fields)})


def post(http, path, tensors, accept=SAFETENSORS, **fields):
    headers = {**HEADERS, "Accept": accept}
    return http.post(f"/v1/{path}", content=body_of(tensors, **fields), headers=headers)


def read(answer):
    """The tensors and the other fields."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == SAFETENSORS
    size = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + size])["__metadata__"]
    assert metadata.keys() == {"response"}
    return load(answer.content), json.loads(metadata["response"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_sample(http, dtype):
    a = A.to(dtype)
    tensors, rest = read(post(http, "sample", {"a": a}, neuron="noisy_rectifier", samples=4, seed=7))
    assert rest == {"seed": 7}
    assert tensors["h"].dtype == dtype
    assert torch.equal(tensors["h"], gradest.sample("noisy_rectifier", a, 4, seed=7))
    as_asked, _ = read(post(http, "sample", {"a": a}, neuron="noisy_rectifier", seed=7, dtype="float64"))
    assert torch.equal(as_asked["h"], gradest.sample("noisy_rectifier", a.double(), seed=7))


@pytest.mark.parametrize(("neuron", "dtype"), [("bernoulli", torch.uint8), ("bipolar", torch.float32)])
def test_the_outputs_of_binary_units_are_bytes_where_they_fit(http, neuron, dtype):
    tensors, _ = read(post(http, "sample", {"a": A}, neuron=neuron, samples=4, seed=7))
    assert tensors["h"].dtype == dtype
    assert torch.equal(tensors["h"].float(), gradest.sample(neuron, A, 4, seed=7))


def test_256_x_1024(http):
    a = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    tensors, _ = read(post(http, "sample", {"a": a}, neuron="bernoulli", seed=7))
    assert torch.equal(tensors["h"].float(), gradest.sample("bernoulli", a, seed=7))


def test_a_private_loss_with_a_state(http):
    fields = {"neuron": "bernoulli", "estimator": "reinforce_average", "seed": 3}
    state = {"state.total": torch.tensor(2.0), "state.weight": torch.tensor(0.5)}
    draw, rest = read(post(http, "forward", {"a": A, **state}, **fields))
    wanted, _ = ask(gradest.neuron("bernoulli"), gradest.estimator("reinforce_average"), A, Key(3))
    assert torch.equal(draw["points"], wanted.points)
    assert (rest["needs"], rest["seed"]) == (["loss"], 3)
    loss = draw["points"].sum(-1)
    found, rest = read(post(http, "backward", {"a": A, "loss": loss, **state}, **fields))
    assert rest == {"state": {}}
    assert found.keys() == {"gradient", "value", "weights", "state.total", "state.weight"}
    in_json = http.post(
        "/v1/backward",
        json={**fields, "a": A.tolist(), "loss": loss.tolist(), "state": {"total": 2.0, "weight": 0.5}},
    ).json()
    for name, tensor in found.items():
        value = in_json["state"][name[6:]] if name.startswith("state.") else in_json[name]
        assert torch.equal(torch.tensor(value, dtype=tensor.dtype), tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_losses_of_any_float_type_are_taken(http, dtype):
    loss, grad = torch.tensor([[0.5, 2.0]]), torch.tensor([[[0.5, 1.0, 2.0], [0.25, 4.0, 8.0]]])
    fields = {"neuron": "bernoulli", "estimator": "straight_through", "seed": 3}
    wanted, _ = read(post(http, "backward", {"a": A, "loss": loss, "grad": grad}, **fields))
    found, _ = read(post(http, "backward", {"a": A, "loss": loss.to(dtype), "grad": grad.to(dtype)}, **fields))
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)


def test_estimate_with_tensors_among_the_options(http):
    target = torch.tensor([0.1, 0.2, 0.3])
    fields = {"neuron": "bernoulli", "estimator": "rloo", "draws": 5, "seed": 2}
    wanted = gradest.estimate(gradest.objective("quadratic", target=target), A, draws=5, seed=2)
    for objective in ("quadratic", {"name": "quadratic", "reduction": "mean"}):
        tensors, rest = read(
            post(http, "estimate", {"a": A, "objective.target": target}, objective=objective, **fields)
        )
        assert torch.equal(tensors["gradient"], wanted.gradient)
        assert tensors["exact.loss"].shape == (2,)
        assert rest["exact"] == {}
        assert rest["evaluations"] == 2
    labels = {"objective.weight": torch.ones(2, 21), "objective.labels": torch.tensor([0, 1])}
    large = torch.zeros(2, 21)
    tensors, rest = read(post(http, "estimate", {"a": large, **labels}, objective="cross_entropy", **fields))
    assert rest["exact"] is None
    assert tensors["gradient"].shape == (2, 21)


def test_compare_takes_tensors_and_answers_in_json(http):
    fields = {"neuron": "bernoulli", "estimators": ["rloo"], "draws": 5, "seed": 2, "objective": "quadratic"}
    tensors = {"a": A, "objective.target": torch.tensor([0.1, 0.2, 0.3])}
    found = post(http, "compare", tensors, accept="application/json", **fields).json()
    wanted = gradest.compare(
        gradest.objective("quadratic", target=tensors["objective.target"]), A, estimators=["rloo"], draws=5, seed=2
    ).to_dict()
    assert found["exact"] == wanted["exact"]
    assert found["rows"][0]["variance"] == wanted["rows"][0]["variance"]
    streamed = post(http, "compare", tensors, accept=SAFETENSORS, **fields)  # which it does not have
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_forms_may_differ_between_request_and_answer(http):
    wanted = gradest.sample("bernoulli", A, 2, seed=7)
    as_json = post(http, "sample", {"a": A}, accept="application/json", neuron="bernoulli", samples=2, seed=7)
    assert torch.equal(torch.tensor(as_json.json()["h"]), wanted)
    assert as_json.json()["tensors"] == {"h": {"shape": [2, 2, 3], "dtype": "float32"}}
    asked = {"neuron": "bernoulli", "a": A.tolist(), "samples": 2, "seed": 7}
    tensors, _ = read(http.post("/v1/sample", json=asked, headers={"Accept": SAFETENSORS}))
    assert torch.equal(tensors["h"].float(), wanted)
    by_default = http.post(
        "/v1/sample", content=body_of({"a": A}, neuron="bernoulli"), headers={"Content-Type": SAFETENSORS}
    )
    assert by_default.headers["content-type"] == "application/json"


def test_the_weights_of_backward_train_the_parameters_of_a_loss(http):
    """For an estimator whose value is not linear in the losses they are not those of forward."""
    loss = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    found, _ = read(
        post(http, "backward", {"a": A, "loss": loss.detach()}, neuron="bernoulli", estimator="vimco", seed=4)
    )
    value = gradest.Target(2).combine(loss)
    value.sum().backward()
    assert torch.equal(found["value"], value.detach())
    assert torch.equal(found["weights"], loss.grad)
    assert not torch.allclose(loss.grad, torch.tensor(0.5))
    found, _ = read(
        post(http, "backward", {"a": A, "loss": loss.detach()}, neuron="bernoulli", estimator="rloo", seed=4)
    )
    assert found["weights"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("path", "tensors", "fields", "status", "named"),
    [
        ("sample", {"a": A.long()}, {}, 422, "a must be one of float32"),
        ("sample", {"a": A.bool()}, {"dtype": "float32"}, 422, "a must be floating point"),
        ("sample", {"a": A.where(A < 1, torch.nan)}, {}, 422, "a[0, 2]"),
        ("sample", {"a": A.double() * 1e300}, {"dtype": "float32"}, 422, "a[0, 0] is not a finite number of float32"),
        ("sample", {"a": A}, {"shape": [3, 2]}, 422, "shape"),
        ("sample", {"a": A}, {"a": [1.0]}, 400, "twice"),
        ("sample", {"a": A, SECRET: A + 1}, {}, 422, "unknown name"),
        ("sample", {"a": A, f"{SECRET}.x": A + 1}, {}, 422, "unknown name"),
        ("sample", {"a": A, "neuron.std": A + 1}, {}, 422, "neuron"),
        ("sample", {"a": A, "seed.x": A + 1}, {"seed": 1}, 400, "no field"),
        ("sample", {}, {}, 422, "a: Field required"),
        ("sample", {"a": A.reshape([1] * 32 + [6])}, {}, 422, "32 dims"),
        ("backward", {"a": A, "loss": A + 1}, {}, 422, "loss must have shape [2, 2]"),
        ("backward", {"a": A, "loss": torch.ones(2, 2).long()}, {}, 422, "loss must be one of float32"),
        ("backward", {"a": A, "loss": torch.full((2, 2), torch.inf)}, {}, 422, "loss[0, 0]"),
        ("backward", {"a": A, "loss": torch.ones(2, 2), "state.x": A + 1}, {}, 422, "state"),
        ("estimate", {"a": A, "objective.target": torch.tensor([0.0, torch.inf, 0.0])}, {}, 422, "objective[1]"),
        ("estimate", {"a": A, f"objective.{SECRET}": torch.ones(3)}, {}, 422, "objective"),
        ("estimate", {"a": A, "estimator.samples": torch.tensor([1.0, 2.0])}, {}, 422, "estimator.samples"),
    ],
)
def test_what_is_wrong_with_tensors(http, refused, path, tensors, fields, status, named):
    always = {"neuron": "bernoulli", "seed": 1}
    if path != "sample":
        always["estimator"] = "rloo"
    if path == "estimate":
        always |= {"objective": "quadratic", "draws": 2}
    answer = post(http, path, tensors, **{**always, **fields})
    assert named in refused(answer, status)["detail"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 100,
        body_of({"a": A}, neuron="bernoulli")[:-1],
        body_of({"a": A}, neuron="bernoulli") + b"x",
        body_of({"a": A}, neuron="bernoulli").replace(b'"F32"', b'"F8X"'),
        (1 << 40).to_bytes(8, "little") + b"{}",
        (1 << 21).to_bytes(8, "little") + b"{" + b" " * (1 << 21),
        save({"a": A}, {"request": f"{{{SECRET}"}),
        save({"a": A}, {SECRET: "{}"}),
    ],
)
def test_malformed_bodies(http, refused, body):
    answer = http.post("/v1/sample", content=body, headers=HEADERS)
    refused(answer, 400)
    assert SECRET not in answer.text


def test_json_that_is_too_large_is_told_of_safetensors(http, refused):
    pointer = "application/vnd.safetensors"
    large = {"neuron": "bernoulli", "a": [0.0] * 65537}
    assert f"Content-Type: {pointer}" in refused(http.post("/v1/sample", json=large), 413)["detail"]
    many = {"neuron": "bernoulli", "a": [0.0] * 1000, "samples": 66}
    assert f"Accept: {pointer}" in refused(http.post("/v1/sample", json=many), 413)["detail"]
    assert read(http.post("/v1/sample", json=many, headers={"Accept": SAFETENSORS}))[0]["h"].shape == (66, 1000)
    bytes_of = b'{"neuron": "bernoulli", "a": [0], "x": "%s"}' % (b" " * (8 << 20))
    answer = http.post("/v1/sample", content=bytes_of, headers={"Content-Type": "application/json"})
    assert pointer in refused(answer, 413)["detail"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("sample", {}),
        ("forward", {"estimator": "rloo"}),
        ("backward", {"estimator": "reinforce"}),
        ("estimate", {"estimator": "rloo", "objective": "linear", "draws": 1}),
        ("compare", {"estimators": ["rloo"], "objective": "linear", "draws": 1}),
    ],
)
def test_tensors_that_only_safetensors_hold_are_not_answered_in_json(http, refused, path, fields):
    tensors = {"a": torch.zeros(70_000)}
    if path == "backward":
        tensors["loss"] = torch.zeros(1)
    answer = post(http, path, tensors, accept="application/json", neuron="bernoulli", seed=1, **fields)
    assert f"Accept: {SAFETENSORS}" in refused(answer, 413)["detail"]
    if path != "compare":
        read(post(http, path, tensors, neuron="bernoulli", seed=1, **fields))


def test_the_cap_on_elements_is_for_safetensors_too(start, refused):
    small = start(max_elements=20, max_json_elements=10)
    assert post(small, "sample", {"a": torch.zeros(20)}, neuron="bernoulli").status_code == 200
    assert "20 elements" in refused(post(small, "sample", {"a": torch.zeros(21)}, neuron="bernoulli"), 413)["detail"]
    assert (
        "holds 20"
        in refused(post(small, "sample", {"a": torch.zeros(7)}, neuron="bernoulli", samples=3), 413)["detail"]
    )
    refused(small.post("/v1/sample", json={"neuron": "bernoulli", "a": [0] * 11}), 413)


def test_openapi_has_both_forms(http):
    paths = http.get("/openapi.json").json()["paths"]
    for name in ("sample", "forward", "backward", "estimate", "compare"):
        post = paths[f"/v1/{name}"]["post"]
        answers = {"application/json"} | ({SAFETENSORS} if name != "compare" else set())
        answers |= {"text/event-stream"} if name in ("compare", "estimate") else set()
        assert post["requestBody"]["content"].keys() == {"application/json", SAFETENSORS}
        assert post["responses"]["200"]["content"].keys() == answers
        described = post["requestBody"]["content"][SAFETENSORS]["schema"]
        assert (described["type"], described["format"]) == ("string", "binary")
        assert "`request`" in described["description"]
        if name != "compare":
            assert "`response`" in post["responses"]["200"]["content"][SAFETENSORS]["schema"]["description"]


@pytest.mark.skipif(which("node") is None, reason="needs Node")
def test_javascript_trains_with_a_loss_of_its_own(url):
    script = Path(__file__).with_name("train.mjs")
    out = subprocess.run(["node", script, url], capture_output=True, text=True, check=True, timeout=60).stdout
    steps = json.loads(out)
    assert steps["mean loss"][0] > 0.3
    assert steps["mean loss"][-1] < 0.1
    a = torch.tensor(steps["first a"], dtype=torch.float32)
    assert torch.equal(torch.tensor(steps["first h"]), gradest.sample("bernoulli", a, seed=0)[0])
