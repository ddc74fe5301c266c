"""Every GET route, the OpenAPI document, and the header that goes round."""

import asyncio

import httpx
import jsonschema
import pytest

import gradest
from gradest.discovery.loading import PluginFailure
from gradest_service.app import create_app
from gradest_service.settings import Settings

KINDS = ["neuron", "estimator", "objective"]
NAMES = [(kind, name) for kind in KINDS for name in getattr(gradest.registry, f"{kind}s")]


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_the_live_registry(http, kind):
    listed = http.get(f"/v1/{kind}s").json()
    assert [found["name"] for found in listed] == list(getattr(gradest.registry, f"{kind}s"))
    assert listed[0].items() <= http.get(f"/v1/{kind}s/{listed[0]['name']}").json().items()


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_descriptions(http, kind, name):
    cls = getattr(gradest.registry, f"{kind}s")[name]
    found = http.get(f"/v1/{kind}s/{name}").json()
    assert (found["name"], found["summary"], found["reference"]) == (cls.name, cls.summary, cls.reference)
    jsonschema.Draft202012Validator.check_schema(found["options"])
    options = found["options"]
    assert {*options["properties"], *options.get("x-python-only", [])} == set(cls.model_fields)
    base = getattr(gradest, kind.capitalize())
    for capability in found["capabilities"]:
        assert issubclass(cls, getattr(gradest, capability))
        assert getattr(gradest, capability) is not base


def test_a_neuron_names_its_estimators(http):
    found = http.get("/v1/neurons/bernoulli").json()
    assert {"Binary", "Discrete", "Relaxable"} <= set(found["capabilities"])
    assert found["event_ndim"] == 1
    assert found["estimators"] == list(gradest.registry.fitting(gradest.neuron("bernoulli")))


def test_an_estimator_tells_needs_bias_and_evaluations(http):
    found = http.get("/v1/estimators/enumeration").json()
    assert found["needs"] == ["loss"]
    assert found["needs_capabilities"] == ["Discrete"]
    assert "bernoulli" in found["neurons"]
    assert "noisy_rectifier" not in found["neurons"]
    assert found["bias"].keys() == found["evaluations"].keys() == set(found["neurons"])
    assert found["bias"]["bernoulli"] == "none"
    assert found["evaluations"]["bernoulli"] == {"1": 2, "2": 4, "4": 16, "8": 256, "16": 65536, "32": None}
    assert http.get("/v1/estimators/straight_through").json()["bias"]["bernoulli"] == "biased"


def test_a_tensor_default_stands_in_the_schema(http):
    options = http.get("/v1/objectives/quadratic").json()["options"]["properties"]
    assert options["target"]["default"] == 0.0


def test_a_plugin_registered_later_is_served(http, registered):
    class Halved(gradest.registry.estimators["straight_through"]):
        name, summary = "halved", "half of it"

    registered(Halved)
    assert http.get("/v1/estimators/halved").json()["summary"] == "half of it"
    body = {"neuron": "bernoulli", "estimator": "halved", "a": [0.0], "seed": 1}
    assert http.post("/v1/forward", json=body).status_code == 200
    assert "test_routes" in http.get("/v1/plugins").json()["plugins"][-1]["distribution"]


def test_plugins(http):
    found = http.get("/v1/plugins").json()
    own = found["plugins"][0]
    assert own["distribution"] == "gradest"
    assert own["version"]
    assert "bernoulli" in own["neurons"]
    assert "rloo" in own["estimators"]
    assert "quadratic" in own["objectives"]
    assert isinstance(found["failures"], list)


def test_plugins_tells_of_failures(http, monkeypatch):
    failure = gradest.registry.failures
    fields = dict.fromkeys(["distribution", "version", "entry_point", "phase", "error"], "x")
    monkeypatch.setattr(gradest.registry, "_failures", [PluginFailure(**fields)])
    assert http.get("/v1/plugins").json()["failures"] == [fields]
    monkeypatch.undo()
    assert gradest.registry.failures == failure


def test_health_and_version(http):
    assert http.get("/livez").json() == {"status": "alive"}
    assert http.get("/readyz").json()["status"] == "ready"
    found = http.get("/version").json()
    assert found["plugin_api"] == gradest.PLUGIN_API
    assert found.keys() == {"gradest", "plugin_api", "noise", "torch", "python"}


def test_without_the_page_the_front_is_the_documentation(start, http, refused):
    service = start(page=False)
    answer = service.get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "docs"
    refused(service.get("/page/app.js"), 404)
    refused(start(page=False, docs=False).get("/"), 404)
    assert "text/html" in http.get("/docs").headers["content-type"]


def test_openapi(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    operations = ("sample", "mean", "forward", "backward", "credit", "estimate", "compare", "recommend")
    assert set(posts) == {f"/v1/{name}" for name in operations}
    for path, post in posts.items():
        schema = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        name = schema.rpartition("/")[2]
        called = {"recommend": "Measure"}.get(path.rpartition("/")[2], path.rpartition("/")[2].capitalize())
        assert name == f"{called}Request"
        needed = {"/v1/credit": {"estimator", "loss"}, "/v1/recommend": {"objective", "a"}}.get(path, {"neuron", "a"})
        assert needed <= set(schemas[name]["required"])
        errors = {status: answer for status, answer in post["responses"].items() if status != "200"}
        own = {"409"} if path == "/v1/backward" else set()
        assert (
            errors.keys() == {"400", "403", "404", "421", "408", "413", "415", "422", "429", "500", "503", "504"} | own
        )
        assert all(error["content"].keys() == {"application/problem+json"} for error in errors.values())
    gets = {path for path, item in document["paths"].items() if "get" in item}
    kinds = {f"/v1/{kind}s{tail}" for kind in KINDS for tail in ("", "/{name}")}
    assert gets == kinds | {"/v1/plugins", "/v1/recommend", "/livez", "/readyz", "/metrics", "/version"}
    for reference in _references(document):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_openapi_names_do_not_change(http):
    """Generated clients have functions of these names."""
    document = http.get("/openapi.json").json()
    found = {o["operationId"]: (m, path) for path, item in document["paths"].items() for m, o in item.items()}
    posts = {name: ("post", f"/v1/{name}") for name in ("sample", "forward", "backward", "mean", "credit", "estimate")}
    posts |= {"compare": ("post", "/v1/compare"), "measure": ("post", "/v1/recommend")}
    gets = {f"list_{kind}s": ("get", f"/v1/{kind}s") for kind in ("plugin", "neuron", "estimator", "objective")}
    gets |= {f"get_{kind}": ("get", f"/v1/{kind}s/{{name}}") for kind in ("neuron", "estimator", "objective")}
    gets |= {name: ("get", f"/{name}") for name in ("livez", "readyz", "version", "metrics")}
    assert found == posts | gets | {"recommend": ("get", "/v1/recommend")}


def test_openapi_has_no_recursion_and_its_requests_no_defaults(http):
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    names = {name: {r.rpartition("/")[2] for r in _references(schema)} for name, schema in schemas.items()}
    while names:  # take away those that refer to nothing that is left
        free = {name for name, inner in names.items() if not inner & names.keys()}
        assert free, f"recursive: {sorted(names)}"
        names = {name: inner for name, inner in names.items() if name not in free}
    requests = [schema for name, schema in schemas.items() if name.endswith("Request")]
    assert len(requests) == 8
    assert not [about for schema in requests for about in schema["properties"].values() if "default" in about]
    assert schemas["SampleRequest"]["properties"]["samples"]["description"] == "Number of samples; 1 if omitted."


def test_openapi_has_an_example_of_every_operation(http):
    """Each fits its schema. What is sent is accepted, and the answer is the one that stands there."""
    document = http.get("/openapi.json").json()
    brief = {"measure", "recommend", "version", "readyz", "livez", "list_plugins"}  # whose answer is cut, or differs
    brief |= {f"list_{kind}s" for kind in KINDS}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name, answer = operation["operationId"], operation["responses"]["200"]["content"]
            parameters = {p["name"]: p["example"] for p in operation.get("parameters", ()) if "example" in p}
            wanted = next(iter(answer.values())).get("example")
            body = None
            if method == "post":
                body = operation["requestBody"]["content"]["application/json"]
                assert not _fault(document, body["schema"], body["example"]), name
                body = body["example"]
            assert wanted or parameters, name
            if "application/json" not in answer:
                continue
            query = {key: ",".join(v) if isinstance(v, list) else v for key, v in parameters.items() if key != "name"}
            url = path.format(name=parameters.get("name"))
            found = http.request(method, url, json=body, params=query or None, headers={"Accept": "application/json"})
            assert found.status_code == 200, found.text
            schema = answer["application/json"]["schema"]
            assert not _fault(document, schema, found.json()), name
            assert not (wanted and _fault(document, schema, wanted)), name
            if wanted and name not in brief:
                _assert_close(found.json(), wanted)


def _fault(document, schema, value):
    """The first fault of a value against a schema of the document."""
    checked = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    return next(checked.iter_errors(value), None)


def _assert_close(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted.keys() - {"seconds"}:
            _assert_close(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for inner, outer in zip(found, wanted, strict=True):
            _assert_close(inner, outer)
    else:
        assert found == (pytest.approx(wanted, rel=1e-4) if isinstance(wanted, float) else wanted)


def _references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _references(item)


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/neurons/nothing"])
def test_a_sane_request_id_comes_back(http, path):
    assert http.get(path, headers={"X-Request-ID": "run-7.a:b_c"}).headers["x-request-id"] == "run-7.a:b_c"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "<script>", "a;b"])
def test_another_request_id_is_replaced(http, bad):
    answer = http.get("/nowhere", headers={"X-Request-ID": bad})
    made = answer.headers["x-request-id"]
    assert len(made) == 32
    assert answer.json()["request_id"] == made


GETS = [
    "/livez",
    "/readyz",
    "/version",
    "/metrics",
    "/v1/neurons",
    "/v1/neurons/bernoulli",
    "/v1/plugins",
    "/openapi.json",
    "/docs",
    "/",
]


@pytest.mark.parametrize("path", GETS)
def test_head_has_the_headers_of_get_and_no_body(http, path):
    got, head = http.get(path), http.head(path)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    different = {"date", "x-request-id", "content-length"} if path == "/metrics" else {"date", "x-request-id"}
    assert {k: v for k, v in got.headers.items() if k not in different} == {
        k: v for k, v in head.headers.items() if k not in different
    }


def test_head_of_what_is_not_there(http):
    assert http.head("/nowhere").status_code == 404
    assert http.head("/v1/sample").status_code == 405


@pytest.mark.parametrize("path", [path for path in GETS if path != "/"])
def test_a_last_slash_is_the_same_path(http, path):
    assert http.get(f"{path}/", follow_redirects=True).status_code == 200


@pytest.mark.parametrize("root", ["", "/tools/gradest"])
def test_a_last_slash_below_a_prefix(root):
    paths = [root + path for path in ("/", "/v1/neurons", "/v1/neurons/", "/livez/")]

    async def statuses():
        transport = httpx.ASGITransport(create_app(Settings()), root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            found = [(await http.request(method, path)).status_code for method in ("GET", "HEAD") for path in paths]
            link = await http.get(paths[0], headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
            return [*found, link.status_code]

    assert set(asyncio.run(statuses())) == {200}


def test_a_last_slash_of_a_post(http):
    body = {"neuron": "bernoulli", "a": [0.0], "seed": 1}
    assert http.post("/v1/sample/", json=body).json() == http.post("/v1/sample", json=body).json()
