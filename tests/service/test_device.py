"""Where answers are computed: what is sent to the device and fetched from it, and what becomes of a lack of memory.

No device but the CPU is needed, save by the tests marked `gpu`.
"""

import copy
import json
import threading

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from gradest_service.app import create_app
from gradest_service.run.device import CPU, Device, device_named
from gradest_service.settings import Settings

A = [[0.5, -1.0, 2.0], [0.0, 0.3, -0.2]]
BINARY = {"neuron": "bernoulli", "a": A, "seed": 7}
STATEFUL = {**BINARY, "estimator": "reinforce_average", "loss": [[0.1, 0.2]]}
REQUESTS = {
    "sample": {**BINARY, "neuron": "gaussian", "samples": 3},
    "mean": {"neuron": "bernoulli", "a": A},
    "forward": {**BINARY, "estimator": "rebar"},
    "backward": {**BINARY, "estimator": "rloo", "loss": [[0.1, 0.2], [0.5, 0.1]]},
    "backward by dL/dh": {**BINARY, "estimator": "straight_through", "grad": [A]},
    "backward with a state": {**STATEFUL, "state": {}},
    "credit": {"estimator": "reinforce_average", "loss": [[0.2, 1.0], [0.3, 0.0]]},
    "estimate": {**BINARY, "estimator": "rloo", "objective": "quadratic", "draws": 10},
    "compare": {**BINARY, "estimators": ["rloo"], "objective": "quadratic", "draws": 10},
    "recommend": {"neuron": "gaussian", "bring": ["grad"], "unbiased": True, "evaluations": 2}
    | {"objective": "quadratic", "a": [[2.0]], "draws": 4, "seed": 7},
}


class Elsewhere(Device):
    """A device in the same memory: what is sent to it is doubled, and what is fetched from it has one more."""

    def __init__(self):
        self._here = threading.local()

    def put(self, x):
        assert self._here.computing
        return 2 * x

    def fetch(self, x):
        assert self._here.computing
        return x + 1

    def computing(self):
        self._here.computing = True
        return super().computing()


@pytest.fixture
def elsewhere(start, monkeypatch):
    monkeypatch.setattr("gradest_service.app.device_named", lambda name: Elsewhere())
    return start()


def changed(values, by):
    return [changed(value, by) for value in values] if isinstance(values, list) else by(values)


def as_computed(fields, by, names):
    """The fields with `by` applied to the numbers of those with these names, however deep."""
    found = copy.deepcopy(fields)
    for name, value in fields.items():
        if name in names and isinstance(value, (list, float)):
            found[name] = changed(value, by)
        elif isinstance(value, dict):
            found[name] = as_computed(value, by, value.keys() if name == "state" else names)
    return found


SENT = {"a", "loss", "grad", "features"}
FETCHED = {"h", "mean", "active_probability", "points", "weights", "gradient", "value", "loss", "variance"}


@pytest.mark.parametrize("case", [name for name in REQUESTS if name not in ("compare", "recommend")])
def test_tensors_are_sent_and_fetched(http, elsewhere, case):
    """The answer is that to a request of doubled tensors, but that each of its tensors has one more."""
    path, request = f"/v1/{case.split()[0]}", dict(REQUESTS[case])
    if request.get("state") == {}:
        asked = http.post("/v1/backward", json={**request, "state": None}).json()
        request["state"] = asked["state"]
    answer = elsewhere.post(path, json=request)
    assert answer.status_code == 200, answer.text
    wanted = http.post(path, json=as_computed(request, lambda x: 2 * x, SENT)).json()
    wanted = as_computed(wanted, lambda x: x + 1, FETCHED | {"standard_error"})
    found = answer.json()
    assert len(found["tensors"]) > 0
    for fields in (found, wanted):
        for name in ("digest", "seconds"):
            fields.pop(name, None)
    flat = [json.dumps(changed_to_float(fields), sort_keys=True) for fields in (found, wanted)]
    assert flat[0] == flat[1]


def changed_to_float(value):
    """Numbers to six digits: one more than a float32 is rounded."""
    if isinstance(value, dict):
        return {name: changed_to_float(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [changed_to_float(inner) for inner in value]
    return round(value, 5) + 0.0 if isinstance(value, float) else value


@pytest.mark.parametrize("path", ["compare", "recommend"])
def test_comparisons_are_computed_there(http, elsewhere, path):
    request, headers = REQUESTS[path], {"Accept": "application/json"}
    answer = elsewhere.post(f"/v1/{path}", json=request, headers=headers)
    assert answer.status_code == 200, answer.text
    doubled = as_computed(request, lambda x: 2 * x, SENT)
    texts = [
        json.dumps(service.post(f"/v1/{path}", json=body, headers=headers).json(), sort_keys=True)
        for service, body in ((elsewhere, request), (http, doubled), (http, request))
    ]
    name = {"compare": "variance", "recommend": "error"}[path]
    figures = [[row[name] for row in json.loads(text)["rows"]] for text in texts]
    assert figures[0] == figures[1] != figures[2]


def test_a_cpu_service_has_its_tensors_as_they_are():
    x = torch.zeros(3)
    assert CPU.put(x) is x
    assert CPU.fetch(x) is x
    assert device_named("cpu") is CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    assert device_named("auto") is CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(InvalidInput, match=rf"no {name}\."):
            create_app(Settings(device=name))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "", "mps"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="device"):
        Settings(device=name)


def _no_memory(kind):
    if kind == "torch":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if kind == "cpu":
        return torch.empty(1 << 60, dtype=torch.uint8)
    raise MemoryError


@pytest.mark.parametrize("kind", ["torch", "cpu", "numpy"])
def test_a_lack_of_memory_is_a_503_for_that_request_alone(start, refused, monkeypatch, poisson_waits, kind):
    """Of three requests that are computed together one is too large for the device; the others get their answers."""
    released = []
    monkeypatch.setattr(CPU, "release", lambda: released.append(1), raising=False)
    bernoulli = type(gradest.neuron("bernoulli"))
    sample = bernoulli.sample

    def sample_or_fail(neuron, key, a, draws):
        if (a == 5).any():
            _no_memory(kind)
        return sample(neuron, key, a, draws)

    monkeypatch.setattr(bernoulli, "sample", sample_or_fail)
    service, answers = start(threads=1), {}

    def post(name, **fields):
        answers[name] = service.post("/v1/sample", json={**BINARY, **fields})

    def send(name, **fields):
        thread = threading.Thread(target=post, args=(name,), kwargs=fields)
        thread.start()
        return thread

    threads = [send("first", neuron="poisson", samples=3)]
    try:
        assert poisson_waits.held.wait(20)
        threads += [send("one"), send("large", a=[[5.0, 5.0, 5.0]]), send("other", seed=8)]
    finally:
        threading.Timer(0.5, poisson_waits.may_go.set).start()
    for thread in threads:
        thread.join()
    assert [answers[name].status_code for name in ("first", "one", "other")] == [200] * 3
    problem = refused(answers["large"], 503)
    assert "memory" in problem["detail"]
    assert "GiB" not in problem["detail"]
    assert answers["large"].headers["retry-after"] == "5"
    assert released
    wanted = gradest.sample("bernoulli", torch.tensor(A), seed=8)
    assert torch.equal(torch.tensor(answers["other"].json()["h"]), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("case", REQUESTS)
def test_a_cuda_service_answers_as_a_cpu_service(start, http, case):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    path, request = f"/v1/{case.split()[0]}", dict(REQUESTS[case])
    if request.get("state") == {}:
        request["state"] = http.post("/v1/backward", json={**request, "state": None}).json()["state"]
    headers = {"Accept": "application/json"}
    found, wanted = (
        service.post(path, json=request, headers=headers).json() for service in (start(device="cuda"), http)
    )
    for name in wanted.get("tensors", {}):
        place = name.split(".")
        pair = [fields[place[0]] if len(place) == 1 else fields[place[0]][place[1]] for fields in (found, wanted)]
        if pair[1] is not None:
            torch.testing.assert_close(torch.tensor(pair[0]), torch.tensor(pair[1]), rtol=1e-4, atol=1e-6)
    assert found.keys() == wanted.keys()
    if case == "sample":
        assert found["h"] == wanted["h"]


@pytest.mark.gpu
def test_a_device_without_memory_goes_on(start, refused, registered):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    class Large(gradest.Objective):
        name, summary = "large", "takes more than there is"

        def __call__(self, points):
            if points.shape[0]:
                torch.empty(1 << 45, dtype=torch.uint8, device=points.device)
            return points.mean(-1)

    registered(Large)
    service = start(device="cuda")
    assert (
        "memory"
        in refused(service.post("/v1/estimate", json={**REQUESTS["estimate"], "objective": "large"}), 503)["detail"]
    )
    assert service.post("/v1/estimate", json=REQUESTS["estimate"]).status_code == 200
