"""API keys: who comes in, on which routes, how often and for how much work."""

import ast
import hashlib
import hmac
import math
import os
import re
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from gradest.errors import InvalidInput
from gradest_service.admit import auth
from gradest_service.app import create_app, running
from gradest_service.page.guide import find_guide
from gradest_service.problems import Problem
from gradest_service.resources.budgets import TokenBucket
from gradest_service.settings import Settings

SERVICE = Path(auth.__file__).parents[1]
SAMPLE = {"neuron": "bernoulli", "a": [0.0] * 10, "seed": 1}
ALICE, BOB = "gradest_of_alice", "gradest_of_bob"


def line(name, key, limits=""):
    return f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()} {limits}\n"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# who\n\n" + line("alice", ALICE))
    return path


def replace(path, text):
    """As `mv new keys` does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_every_route_needs_a_key_but_two_and_the_page(start, file, refused):
    service = start(api_keys=file)
    paths = {route.path for route in create_app(Settings(api_keys=file)).routes if hasattr(route, "path")}
    document = set(service.get("/openapi.json", headers=bearer(ALICE)).json()["paths"])
    everywhere = (
        paths | document | {"/docs", "/openapi.json", "/metrics", "/", "/v1/sample", "/nowhere", "/v1/neurons/x"}
    )
    everywhere |= {"/livez/", "/readyz/x", "//livez", "/livez%2f", "/LIVEZ", "/metrics/", "*", ""}
    everywhere |= {"/page/app.js", "/page/", "/page/none.js", "/page/app.js/", "/page/../v1/neurons"}
    assert everywhere >= {"/v1/compare", "/livez", "/readyz", "/version"}
    for path in sorted(everywhere):
        for method in ("GET", "POST", "PUT", "OPTIONS", "HEAD"):
            answer = service.request(method, f"/{path.removeprefix('/')}" if path != "*" else "/*", json=SAMPLE)
            # as it was sent: httpx takes //livez for a host, and asks for /
            if answer.request.url.path == "/guide" and find_guide():
                assert answer.status_code == (307 if method in ("GET", "HEAD") else 405)
            elif answer.request.url.path.rstrip("/") in ("/livez", "/readyz", "", "/page/app.js"):
                assert answer.status_code == (200 if method in ("GET", "HEAD") else 405)
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or "alice" not in refused(answer, 401)["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE}x"},
        {"Authorization": f"Bearer {ALICE[:-1]}"},
        {"Authorization": f"Bearer {hashlib.sha256(ALICE.encode()).hexdigest()}"},
        {"Authorization": "Bearer ü".encode("latin-1")},
        {"X-API-Key": ALICE},
        [("Authorization", "Bearer x"), ("Authorization", f"Bearer {ALICE}")],
        [("Authorization", f"Bearer {ALICE}"), ("Authorization", "Bearer x")],
    ],
)
def test_what_is_no_key(start, file, refused, headers):
    answer = start(api_keys=file).get("/version", headers=headers)
    refused(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_lets_in(start, file):
    service = start(api_keys=file)
    assert service.post("/v1/sample", json=SAMPLE, headers=bearer(ALICE)).status_code == 200
    assert service.get("/version", headers={"authorization": f"bearer  {ALICE}"}).status_code == 200
    assert service.get("/nowhere", headers=bearer(ALICE)).status_code == 404


def test_keys_rotate_without_a_restart(start, file, caplog):
    service = start(api_keys=file)
    status = lambda key: service.get("/version", headers=bearer(key)).status_code  # noqa: E731
    assert (status(ALICE), status(BOB)) == (200, 401)
    replace(file, line("alice", ALICE) + line("bob", BOB))
    assert (status(ALICE), status(BOB)) == (200, 200)
    replace(file, line("bob", BOB))
    assert (status(ALICE), status(BOB)) == (401, 200)
    replace(file, "bob sha256:nonsense")  # a fault leaves what was in force, and is logged once
    assert [status(BOB) for _ in range(3)] == [200] * 3
    file.unlink()
    assert (status(ALICE), status(BOB)) == (401, 200)
    assert [record.levelname for record in caplog.records].count("ERROR") == 2
    replace(file, "")
    assert (status(ALICE), status(BOB)) == (401, 401)


def test_all_keys_are_compared_in_constant_time(file, monkeypatch):
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    keys = auth.ApiKeys(file)
    assert keys.identify([f"Bearer {ALICE}"]).name == "alice"
    assert len(compared) == 2
    with pytest.raises(auth.Problem):
        keys.identify(["Bearer x"])
    assert len(compared) == 4


def test_the_file_does_not_hold_the_key():
    key, entry = auth.new_key("carol")
    assert key not in entry
    assert len(key.removeprefix("gradest_")) == 43  # 256 bits
    assert auth.new_key("carol")[0] != key
    for name in ("", "a b", "a#", "x" * 65, "a\nb"):
        with pytest.raises(InvalidInput):
            auth.new_key(name)


def test_a_new_key_works(tmp_path):
    key, entry = auth.new_key("carol")
    path = tmp_path / "keys"
    path.write_text(entry + " requests_per_second=2.5  # of the lab\n")
    found = auth.ApiKeys(path).identify(Headers(bearer(key)).getlist("authorization"))
    assert (found.name, found.requests_per_second, found.elements_per_minute) == ("carol", 2.5, None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("alice\n", "line 1"),
        ("\nalice sha256:00\n", "line 2"),
        (line("alice", ALICE).upper(), "line 1"),
        (line("a/b", ALICE), "line 1"),
        (line("alice", ALICE, "speed=1"), "limits are"),
        (line("alice", ALICE, "requests_per_second=0"), "above 0"),
        (line("alice", ALICE, "requests_per_second=nan"), "above 0"),
        (line("alice", ALICE, "requests_per_second=x"), "line 1"),
        (line("alice", ALICE, "requests_per_second=1 requests_per_second=2"), "limits are"),
        (line("alice", ALICE) + line("alice", BOB), "same name"),
        (line("alice", ALICE) + line("bob", ALICE), "same hash"),
        (b"\xff", "utf-8"),
    ],
)
def test_faults_of_the_file_are_named(file, text, named):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput, match=named) as caught:
        create_app(Settings(api_keys=file))
    assert hashlib.sha256(ALICE.encode()).hexdigest() not in str(caught.value)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_bucket_fills_at_its_rate_and_takes_debt():
    clock = Clock()
    bucket = TokenBucket(rate=2, capacity=3, clock=clock)
    assert bucket.wait(1) == 0
    bucket.take(10)
    assert bucket.wait(1) == 4  # from -7 to 1 at 2 a second
    clock.now = 3.5
    assert bucket.wait(1) == 0.5
    clock.now = 4.0
    assert bucket.wait(1) == 0
    clock.now = 1000.0
    assert (bucket.wait(3), bucket.wait(4)) == (0, 0.5)  # no more than its capacity


def test_processes_share_what_is_left_of_a_budget(tmp_path):
    """Each thread has a bucket of its own on the same file, as each worker has; together they take no more than it holds."""
    shared = tmp_path, "alice"
    taken = []

    def take():
        bucket = TokenBucket(rate=1e-6, capacity=300, shared=shared)
        taken.append(sum(bucket.take_or_wait(1) == 0 for _ in range(200)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 300
    assert TokenBucket(rate=1e-6, capacity=300, shared=(tmp_path, "bob")).take_or_wait(300) == 0


def test_a_process_that_is_killed_leaves_the_budget_whole(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from gradest_service.resources.budgets import TokenBucket\n"
        "bucket = TokenBucket(1e-6, 1e9, shared=(pathlib.Path(sys.argv[1]), 'alice'))\n"
        "bucket.take(7)\n"
        "print('taken', flush=True)\n"
        "with bucket._full_at.locked():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline().strip() for _ in range(2)] == ["taken", "locked"]
        process.kill()
    bucket = TokenBucket(1e-6, 1e9, shared=(tmp_path, "alice"))
    assert bucket.take_or_wait(1e9 - 7) == 0
    assert bucket.wait(1) > 0


def test_requests_a_second(start, file, refused):
    file.write_text(line("alice", ALICE, "requests_per_second=0.5") + line("bob", BOB))
    service = start(api_keys=file)
    assert service.get("/version", headers=bearer(ALICE)).status_code == 200
    answer = service.get("/version", headers=bearer(ALICE))
    assert "0.5 requests a second" in refused(answer, 429)["detail"]
    assert answer.headers["retry-after"] in ("1", "2")
    assert [service.get("/version", headers=bearer(BOB)).status_code for _ in range(20)] == [200] * 20


@pytest.mark.parametrize(
    ("path", "body", "elements"),
    [
        ("sample", {**SAMPLE, "samples": 2}, 20),
        ("forward", {**SAMPLE, "estimator": "rloo"}, 20),
        ("backward", {**SAMPLE, "estimator": "rloo", "loss": [0.1, 0.2]}, 20),
        # with the two nodes of each unit's law, of which the exact values are made
        ("estimate", {**SAMPLE, "estimator": "rloo", "objective": "quadratic", "draws": 1}, 40),
        ("compare", {**SAMPLE, "a": [0.0] * 5, "estimators": ["rloo"] * 2, "objective": "quadratic", "draws": 1}, 30),
    ],
)
def test_elements_a_minute(start, file, refused, path, body, elements):
    file.write_text(line("alice", ALICE, f"elements_per_minute={elements}"))
    service = start(api_keys=file)
    first = service.post(f"/v1/{path}", json=body, headers=bearer(ALICE))
    assert first.status_code == 200
    answer = service.post(f"/v1/{path}", json=body, headers=bearer(ALICE))
    assert f"{elements} elements a minute" in refused(answer, 429)["detail"]
    assert int(answer.headers["retry-after"]) <= math.ceil(60 / elements)  # it is empty, and not in debt


def test_a_debt_is_waited_off(start, file, refused):
    file.write_text(line("alice", ALICE, "elements_per_minute=60"))
    service = start(api_keys=file)
    assert service.post("/v1/sample", json={**SAMPLE, "samples": 12}, headers=bearer(ALICE)).status_code == 200
    answer = service.post("/v1/sample", json=SAMPLE, headers=bearer(ALICE))
    refused(answer, 429)
    assert 58 <= int(answer.headers["retry-after"]) <= 61  # from -60 to 1, at one a second
    replace(file, "# the same line in another file keeps its debt\n" + file.read_text())
    assert service.post("/v1/sample", json=SAMPLE, headers=bearer(ALICE)).status_code == 429
    replace(file, line("alice", ALICE, "elements_per_minute=61"))
    assert service.post("/v1/sample", json=SAMPLE, headers=bearer(ALICE)).status_code == 200


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "127.0.0.1.example.org", "::ffff:8.8.8.8"]
)
def test_other_machines_need_a_key_or_a_word(host, file):
    with pytest.raises(ValidationError, match="allow_anonymous"):
        Settings(host=host)
    assert Settings(host=host, allow_anonymous=True).host == host
    assert Settings(host=host, api_keys=file).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert Settings(host=host).host == host


@pytest.mark.parametrize("path", ["/livez", "/v1/neurons", "/nowhere", "/docs", "/openapi.json"])
def test_response_headers(http, path):
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path == "/docs" else "no-store")  # its files have an ETag
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers


def test_the_docs_page_loads_files_of_the_service_alone(http):
    page = http.get("/docs")
    scripts = page.headers["content-security-policy"].partition("script-src ")[2].partition(";")[0]
    assert scripts == "'self'"
    links = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(links) == 4
    assert all(http.get(f"/{link}").status_code == 200 for link in links)


def test_docs_can_be_turned_off(start, refused):
    service = start(docs=False)
    for path in ("/docs", "/docs/start.js", "/openapi.json", "/redoc"):
        refused(service.get(path), 404)
    assert service.get("/v1/neurons").status_code == 200


def test_openapi_has_the_keys(file):
    document = create_app(Settings(api_keys=file)).openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["security"] == [{"key": []}]
    free = {
        path
        for path, item in document["paths"].items()
        for operation in item.values()
        if operation.get("security") == []
    }
    assert free == auth.HEALTH_PATHS
    assert "securitySchemes" not in create_app().openapi()["components"]


def test_tls(tmp_path, file):
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "certificate"]
    subprocess.run(command, check=True, capture_output=True)
    settings = Settings(port=0, api_keys=file, ssl_certfile=tmp_path / "certificate", ssl_keyfile=tmp_path / "key")
    with running(settings) as url:
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=tmp_path / "certificate")
        assert httpx.get(f"{url}/version", verify=trusting, headers=bearer(ALICE)).status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/version")
    with pytest.raises(ValidationError, match="certificate"):
        Settings(ssl_keyfile=tmp_path / "key")


UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}


@pytest.mark.parametrize("path", sorted(SERVICE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.partition(".")[0] for name in names} & UNSAFE
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"eval", "exec", "compile", "__import__", "torch.load", "numpy.load"}


def test_no_request_loads_a_plugin(http, monkeypatch):
    """The registry is loaded once, when the service starts: what is asked for by name is looked up, never imported."""
    from importlib import metadata

    loads = []

    def load(self):
        loads.append(self)

    monkeypatch.setattr(metadata.EntryPoint, "load", load)
    for name in ("os:system", "gradest_neurons.bernoulli", "../../etc/passwd", "bernoulli"):
        http.post("/v1/sample", json={**SAMPLE, "neuron": name})
    http.get("/v1/plugins")
    http.get("/readyz")
    assert loads == []


def test_a_file_that_is_rewritten_in_place_keeps_the_last_whole_keys(file, caplog):
    """Nobody who has a key is refused while the file is half written; the new keys are in force a second after the last write."""
    keys = auth.ApiKeys(file)
    name = lambda key: keys.identify([f"Bearer {key}"]).name  # noqa: E731
    with file.open("w") as writing:
        assert name(ALICE) == "alice"  # the file is empty
        writing.write(line("bob", BOB)[:30])
        writing.flush()
        assert name(ALICE) == "alice"  # and now has half a line
        writing.write(line("bob", BOB)[30:])
    assert name(ALICE) == "alice"
    assert not caplog.records
    long_ago = file.stat().st_mtime - 2
    os.utime(file, (long_ago, long_ago))
    assert name(BOB) == "bob"
    with pytest.raises(Problem, match="no such API key"):
        name(ALICE)
    file.write_text("")
    os.utime(file, (long_ago, long_ago))
    assert name(BOB) == "bob"
    os.utime(file, (long_ago - 10, long_ago - 10))
    with pytest.raises(Problem, match="no such API key"):
        name(BOB)


def test_a_file_without_keys_is_warned_of(file, caplog):
    auth.ApiKeys(file)
    assert not caplog.records
    file.write_text("# nobody yet\n")
    auth.ApiKeys(file)
    assert "--new-api-key" in caplog.text
