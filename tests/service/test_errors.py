"""Every kind of error is a problem with its status; none repeats what was sent, none shows a traceback."""

import logging

import pytest

import gradest
from gradest.contract.objective import Objective

SAMPLE = {"neuron": "bernoulli", "a": [[0.5, -1.0]], "seed": 1}
FORWARD = {**SAMPLE, "estimator": "rloo"}
BACKWARD = {**FORWARD, "loss": [[0.1], [0.2]]}
ESTIMATE = {**FORWARD, "objective": "quadratic", "draws": 2}
COMPARE = {**SAMPLE, "objective": "quadratic", "draws": 2, "estimators": ["rloo"]}
JSON = {"Content-Type": "application/json"}
SECRET = "hunter2hunter2"


def without(body, name):
    return {field: value for field, value in body.items() if field != name}


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/sample/x"])
def test_unknown_route(http, refused, path):
    refused(http.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/sample", "POST"), ("POST", "/v1/neurons", "GET, HEAD"), ("PUT", "/livez", "GET, HEAD")],
)
def test_method_not_allowed(http, refused, method, path, allowed):
    answer = http.request(method, path)
    refused(answer, 405)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("kind", ["neuron", "estimator", "objective"])
def test_unknown_plugin_names_near_matches(http, refused, kind):
    near = {"neuron": "bernouli", "estimator": "reinforse", "objective": "quadratik"}[kind]
    wanted = {"neuron": "bernoulli", "estimator": "reinforce", "objective": "quadratic"}[kind]
    answers = [http.get(f"/v1/{kind}s/{near}"), http.post("/v1/estimate", json={**ESTIMATE, kind: near})]
    answers.append(http.post("/v1/estimate", json={**ESTIMATE, kind: {"name": near}}))
    for answer in answers:
        assert wanted in refused(answer, 404)["detail"]
        assert near not in answer.text.replace(wanted, "")


def test_unknown_plugin_of_any_length(http, refused):
    refused(http.post("/v1/sample", json={**SAMPLE, "neuron": "x" * 10**6}), 404)
    assert "bernoulli" in refused(http.get("/v1/neurons/%3Cscript%3E"), 404)["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b'{"a": 1} x', b"\xff\xfe", b'{"a": 01}', b"nonsense"])
def test_malformed_json(http, refused, body):
    refused(http.post("/v1/sample", content=body, headers=JSON), 400)


@pytest.mark.parametrize("levels", [201, 10**5, 10**6])
def test_deep_nesting(http, refused, levels):
    body = b'{"neuron": "bernoulli", "a": ' + b"[" * levels + b"]" * levels + b"}"
    refused(http.post("/v1/sample", content=body, headers=JSON), 400)
    assert http.get("/livez").status_code == 200


def test_nesting_beyond_what_a_tensor_has(http, refused):
    body = b'{"neuron": "bernoulli", "a": ' + b"[" * 150 + b"1" + b"]" * 150 + b"}"
    refused(http.post("/v1/sample", content=body, headers=JSON), 422)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"'])
def test_a_body_is_an_object(http, refused, body):
    refused(http.post("/v1/sample", content=body, headers=JSON), 422)


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {**JSON, "Content-Encoding": "gzip"}])
def test_unsupported_media_type(http, refused, headers):
    refused(http.post("/v1/sample", content=b"{}", headers=headers), 415)


def test_an_integer_may_be_written_with_a_point(http):
    """As JSON Schema has it, and as clients write it that know only floats."""
    plain = {**ESTIMATE, "a": [[0.5, 1.0]], "shape": [1, 2], "draws": 20, "seed": 7, "event_dims": 1}
    pointed = {**plain, "shape": [1.0, 2.0], "draws": 20.0, "seed": 7.0, "event_dims": 1.0}
    answers = [http.post("/v1/estimate", json=body) for body in (plain, pointed)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json()["gradient"] == answers[0].json()["gradient"]


def test_a_charset_is_taken(http):
    answer = http.post(
        "/v1/sample",
        content=b'{"neuron": "bernoulli", "a": [0]}',
        headers={"Content-Type": "Application/JSON; charset=utf-8"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("sample", without(SAMPLE, "neuron"), "neuron"),
        ("sample", without(SAMPLE, "a"), "a"),
        ("sample", {**SAMPLE, "samples": -1}, "samples"),
        ("sample", {**SAMPLE, "samples": 1.5}, "samples"),
        ("sample", {**SAMPLE, "samples": True}, "samples"),
        ("sample", {**SAMPLE, "samples": SECRET}, "samples"),
        ("sample", {**SAMPLE, "seed": -1}, "seed"),
        ("sample", {**SAMPLE, "seed": 2**53}, "seed"),
        ("sample", {**SAMPLE, "seed": 1.5}, "seed"),
        ("sample", {**SAMPLE, "seed": "1"}, "seed"),
        ("sample", {**SAMPLE, "dtype": SECRET}, "dtype"),
        ("sample", {**SAMPLE, "shape": [-1]}, "shape.0"),
        ("sample", {**SAMPLE, SECRET: 1}, ""),
        ("backward", without(BACKWARD, "seed"), "seed"),
        ("backward", {**BACKWARD, "seed": None}, "seed"),
        ("backward", {**BACKWARD, "state": [SECRET]}, "state"),
        ("estimate", {**ESTIMATE, "draws": 0}, "draws"),
        ("estimate", {**ESTIMATE, "draws": None}, "draws"),
        ("compare", {**COMPARE, "estimators": SECRET}, "estimators"),
    ],
)
def test_schema(http, refused, path, body, field):
    answer = http.post(f"/v1/{path}", json=body)
    assert [fault["field"] for fault in refused(answer, 422)["errors"]] == [field]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("neuron", "field"),
    [
        ({"name": "noisy_rectifier", "std": -1, "distribution": "gaussian"}, "neuron.std"),
        ({"name": "noisy_rectifier", "distribution": SECRET}, "neuron.distribution"),
        ({"name": "noisy_rectifier", SECRET: 1}, "neuron"),
        ({"name": "noisy_rectifier", "std": {SECRET: {SECRET: 1}}}, "neuron.std"),
        ({"name": "bernoulli", "cls": 1}, "neuron"),
    ],
)
def test_options(http, refused, neuron, field):
    answer = http.post("/v1/sample", json={**SAMPLE, "neuron": neuron})
    assert [fault["field"] for fault in refused(answer, 422)["errors"]] == [field]
    assert SECRET not in answer.text


@pytest.mark.parametrize("neuron", [None, 3, [], {}, {"name": None}, {"name": ["bernoulli"]}])
def test_a_plugin_is_a_name_or_an_object_with_one(http, refused, neuron):
    assert "name" in refused(http.post("/v1/sample", json={**SAMPLE, "neuron": neuron}), 422)["detail"]


def test_an_estimator_in_a_list_is_named_by_its_place(http, refused):
    body = {**COMPARE, "estimators": ["rloo", {"name": "rloo", "samples": 0}]}
    assert refused(http.post("/v1/compare", json=body), 422)["errors"][0]["field"] == "estimators.1.samples"


@pytest.mark.parametrize("path", ["forward", "backward", "estimate"])
def test_incompatible_pair_names_those_that_fit(http, refused, path):
    body = {"forward": FORWARD, "backward": BACKWARD, "estimate": ESTIMATE}[path]
    answer = http.post(f"/v1/{path}", json={**body, "neuron": "noisy_rectifier"})
    assert "pathwise" in refused(answer, 422)["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_non_finite_pre_activations_are_named(http, refused, number):
    body = f'{{"neuron": "bernoulli", "a": [[0.5, 1.0], [2.0, {number}]]}}'
    answer = http.post("/v1/sample", content=body, headers=JSON)
    assert "a" in refused(answer, 422)["detail"]
    if not number.startswith("10"):
        assert "a[1, 1]" in answer.json()["detail"]


def test_a_number_that_its_dtype_cannot_hold(http, refused):
    answer = http.post("/v1/sample", json={**SAMPLE, "a": [1.0, 7e4], "dtype": "float16"})
    assert "a[1] is not a finite number of float16" in refused(answer, 422)["detail"]
    assert http.post("/v1/sample", json={**SAMPLE, "a": [1.0, 7e4], "dtype": "bfloat16"}).status_code == 200


@pytest.mark.parametrize("place", ["loss", "grad", "state", "option", "tensor option"])
def test_non_finite_numbers_elsewhere(http, refused, place):
    text = {
        "loss": '"estimator": "rloo", "loss": [[0.1], [NaN]]',
        "grad": '"estimator": "straight_through", "grad": [[[0.1, Infinity]]]',
        "state": '"estimator": "reinforce_average", "loss": [[1]], "state": {"total": NaN, "weight": 1}',
        "option": '"estimator": {"name": "straight_through", "slope": Infinity}, "grad": [[[0, 0]]]',
        "tensor option": '"objective": {"name": "quadratic", "target": [0.1, -Infinity]}, "estimator": "rloo"',
    }[place]
    named = {
        "loss": "loss[1, 0]",
        "grad": "grad[0, 0, 1]",
        "state": "state.total",
        "option": "estimator",
        "tensor option": "objective[1]",
    }[place]
    path = "estimate" if place == "tensor option" else "backward"
    answer = http.post(
        f"/v1/{path}", content=f'{{"neuron": "bernoulli", "a": [[0.5, 1]], "seed": 1, {text}}}', headers=JSON
    )
    assert refused(answer, 422)["detail"].startswith(named)


@pytest.mark.parametrize(
    ("a", "named"),
    [
        ([[1.0, 2.0], [3.0]], "a[1]"),
        ([[1.0], 2.0], "a[1]"),
        ([1.0, [2.0]], "a[1]"),
        ([[1.0, "2.0"]], "a[0, 1]"),
        ([[1.0, None]], "a[0, 1]"),
        ([True], "a[0]"),
        ([{SECRET: 1}], "a[0]"),
        ({SECRET: 1}, "a"),
        (SECRET, "a"),
        (None, "a"),
        (1.0, "[*batch, units]"),
    ],
)
def test_bad_tensors(http, refused, a, named):
    answer = http.post("/v1/sample", json={**SAMPLE, "a": a})
    assert named in refused(answer, 422)["detail"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(("a", "shape"), [([1.0], [2]), ([[1.0]], [1]), ([], [1, 3]), ([[]], [2, 0]), ([], [3, 0])])
def test_a_shape_that_does_not_fit(http, refused, a, shape):
    assert "shape" in refused(http.post("/v1/sample", json={**SAMPLE, "a": a, "shape": shape}), 422)["detail"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"loss": [0.1, 0.2]}, "[2, 1]"),
        ({"loss": None}, "needs the loss"),
        ({"grad": [[[0.1]]]}, "grad must have shape [2, 1, 2]"),
        ({"state": {SECRET: 1}}, "state"),
        ({"estimator": "straight_through"}, "loss must have shape [1, 1]"),
        ({"estimator": "straight_through", "loss": None}, "needs the grad"),
        ({"estimator": "reinforce_average", "loss": [[1]], "state": {}}, "it lacks total, weight"),
        ({"estimator": "reinforce_average", "loss": [[1]], "state": {"total": [1], "weight": 1}}, "state.total"),
        ({"estimator": "reinforce_average", "loss": [[1]], "state": {"total": 1, "weight": SECRET}}, "state.weight"),
    ],
)
def test_bad_feedback(http, refused, change, named):
    answer = http.post("/v1/backward", json={**BACKWARD, **change})
    assert named in refused(answer, 422)["detail"]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "quadratic", "target": [0.1, 0.2, 0.3]},
        {"name": "quadratic", "target": [[0.1, 0.2]] * 3},
        {"name": "linear", "weight": [[[1.0]]] * 4},
        {"name": "cross_entropy", "weight": [[1.0, 2.0, 3.0]], "labels": 0},
        {"name": "cross_entropy", "weight": [[1.0, 2.0]], "labels": [0, 0, 0]},
        {"name": "cross_entropy", "weight": [[1.0, 2.0]], "labels": 5},
        {"name": "cross_entropy"},
        {"name": "quadratic", "target": [[0.1], [0.2, 0.3]]},
        {"name": "quadratic", "event_ndim": 2},
        {"name": "load_balance"},
    ],
)
@pytest.mark.parametrize("path", ["estimate", "compare"])
def test_options_of_an_objective_that_do_not_fit(http, refused, path, objective):
    body = {"estimate": ESTIMATE, "compare": COMPARE}[path]
    refused(http.post(f"/v1/{path}", json={**body, "objective": objective}), 422)


@pytest.fixture
def broken(registered):
    class Broken(Objective):
        name, summary = "broken", "raises"

        def __call__(self, points):
            if points.shape[0]:
                raise RuntimeError(SECRET)
            return points.sum(-1)

    registered(Broken)
    return {"objective": "broken"}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("path", ["estimate", "compare"])
def test_a_plugin_that_raises(http, refused, broken, caplog, path, accept):
    body = {"estimate": ESTIMATE, "compare": COMPARE}[path]
    headers = {"Accept": accept, "X-Request-ID": "find-me"}
    with caplog.at_level(logging.ERROR, "gradest_service"):
        answer = http.post(f"/v1/{path}", json={**body, **broken}, headers=headers)
    if accept != "text/event-stream":
        assert refused(answer, 500)["request_id"] == "find-me"
    assert SECRET not in answer.text
    (record,) = caplog.records
    assert "find-me" in record.getMessage()
    assert SECRET in str(record.exc_info[1])


def test_keys_inside_an_option_are_not_repeated(http, refused, registered):
    class Weighted(Objective):
        name, summary = "weighted", "has an option whose keys are the caller's own"
        weights: dict[str, list[float]] = {}  # noqa: RUF012

        def __call__(self, points):
            return points.sum(-1)

    registered(Weighted)
    objective = {"name": "weighted", "weights": {SECRET: [1.0, "much"]}}
    answer = http.post("/v1/estimate", json={**ESTIMATE, "objective": objective})
    (fault,) = refused(answer, 422)["errors"]
    assert fault["field"] == "objective.weights.1"
    assert SECRET not in answer.text


def test_a_plugin_that_cannot_be_described_is_listed_with_its_fault(http, registered):
    class Undescribed(gradest.registry.estimators["rloo"]):
        name, summary = "undescribed", "its bias raises"

        def bias(self, neuron):
            raise ZeroDivisionError(SECRET)

    registered(Undescribed)
    answer = http.get("/v1/estimators/undescribed")
    assert answer.status_code == 200
    assert "ZeroDivisionError" in str(answer.json()["faults"])


def test_an_option_that_is_a_module_has_no_schema_and_no_request(http, refused):
    described = http.get("/v1/estimators/lax").json()
    assert "network" not in described["options"]["properties"]
    assert "only Python code can give" in described["options"]["x-python-only"]["network"]
    body = {"neuron": "gaussian", "estimator": {"name": "lax", "network": "Linear"}, "a": [[0.1]]}
    problem = refused(http.post("/v1/forward", json=body), 422)
    (fault,) = problem["errors"]
    assert fault["field"] == "estimator.network"
    assert "it takes a torch.nn.Module, which only Python code can give: neither a request" in fault["message"]


MANY = 50_000


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("sample", {"neuron": "bernoulli", "a": [0.0], "shape": [-1] * MANY}, "shape.0"),
        ("sample", {"neuron": "bernoulli", "a": [0.0], **{f"x{place}": 0 for place in range(MANY)}}, f"{MANY} fields"),
        ("sample", {"neuron": {"name": "bernoulli", **{f"x{i}": 0 for i in range(MANY)}}, "a": [0.0]}, "100 options"),
        ("compare", {"neuron": "bernoulli", "a": [0.0], "objective": "linear", "estimators": [1] * MANY}, "estimators"),
        (
            "forward",
            {
                "neuron": "bernoulli",
                "estimator": "reinforce_average",
                "a": [0.0],
                "state": {str(i): 0 for i in range(MANY)},
            },
            "of other names",
        ),
        ("sample", {"neuron": {"name": "bernoulli", **{f"x{i}": 0 for i in range(99)}}, "a": [0.0]}, "79 more"),
    ],
)
def test_an_answer_does_not_grow_with_the_faults_of_a_request(http, path, body, said):
    answer = http.post(f"/v1/{path}", json=body)
    assert answer.status_code in (413, 422)
    assert said in answer.text
    assert len(answer.content) < 20_000
    assert len(answer.json().get("errors", ())) <= 21
