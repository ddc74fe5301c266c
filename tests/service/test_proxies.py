"""nginx and Caddy in front of a service, with the very files that the guide shows; only addresses and ports differ."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

import gradest
from gradest_service.admit.auth import new_key
from gradest_service.app import running
from gradest_service.settings import Settings

pytestmark = pytest.mark.deep

DEPLOY = Path(__file__).parents[2] / "service/deploy"
CLIENT = "127.0.0.9"  # the address from which the tests' requests come
MIB = 1 << 20

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/gradest.conf;
}}
"""


class Gated(gradest.Objective):
    """Computes as long as the client has not seen what was computed before."""

    name, summary = "gated", "waits for its reader"

    def __call__(self, points):
        if points.shape[0]:
            type(self).asked += 1
            time.sleep(0.15)
            assert type(self).asked < 5 or type(self).seen.wait(20)
        return points.mean(-1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def nginx(folder, service, port):
    text = (DEPLOY / "nginx.conf").read_text()
    assert text.count("listen 80;") == text.count("server 127.0.0.1:8000;") == 1
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("127.0.0.1:8000", service)
    (folder / "gradest.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""  # who may write to the test's folder
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user=user))
    return ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]


def caddy(folder, service, port):
    text = (DEPLOY / "Caddyfile").read_text()
    assert len(re.findall("^lab.example {", text, re.MULTILINE)) == text.count("127.0.0.1:8000") == 1
    address = f"http://:{port} {{\n\tbind 127.0.0.1"
    text = re.sub("^lab.example {", address, text, flags=re.MULTILINE).replace("127.0.0.1:8000", service)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return ["caddy", "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    key, line = new_key("alice")
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(line)
    return file, key


@pytest.fixture(scope="module", params=[nginx, caddy], ids=lambda proxy: proxy.__name__)
def proxied(request, tmp_path_factory, keys):
    """A client whose requests pass through the proxy, and the service's log."""
    proxy, folder, port = request.param, tmp_path_factory.mktemp("proxy"), free_port()
    if shutil.which(proxy.__name__) is None:
        pytest.skip(f"needs {proxy.__name__}: apt-get install {proxy.__name__}")
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.fields)
    logger = logging.getLogger("gradest_service.requests")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with running(Settings(port=0, api_keys=keys[0], trusted_proxies="127.0.0.1")) as url:
        command = proxy(folder, url.removeprefix("http://"), port)
        with (
            open(folder / "output", "wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
        ):
            try:
                wait_for(port, process, folder / "output")
                transport = httpx.HTTPTransport(local_address=CLIENT)
                with httpx.Client(
                    base_url=f"http://127.0.0.1:{port}",
                    transport=transport,
                    timeout=60,
                    headers={"Authorization": f"Bearer {keys[1]}"},
                ) as http:
                    yield http, lines, proxy.__name__
            finally:
                process.terminate()
                process.wait(20)
    logger.removeHandler(handler)
    logger.setLevel(level)


def wait_for(port, process, output):
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        else:
            return


def test_pages_and_their_links_work_below_the_prefix(proxied):
    http, _, _ = proxied
    answer = http.get("/gradest")
    assert (answer.status_code, answer.headers["location"]) == (308, "/gradest/")
    for page in ("/gradest/", "/gradest/docs"):
        links = [link for link in re.findall(r'(?:src|href)="([^"#]+)"', http.get(page).text) if "://" not in link]
        assert len(links) > 3
        for link in links:
            assert http.get(http.base_url.join(page).join(link)).status_code == 200, link
    answer = http.get("/gradest/docs/")
    assert http.get(answer.url.join(answer.headers["location"])).text == http.get("/gradest/docs").text
    assert "alive" not in http.get("/livez").text  # nothing else of the service is reached


def test_a_client_gets_the_same_bits(proxied, keys):
    http, _, _ = proxied
    a = torch.linspace(-2, 2, 12).reshape(3, 4)
    with gradest.Client(f"{http.base_url}/gradest", api_key=keys[1]) as client:
        h = client.sample("noisy_rectifier", a, 5, seed=3)
        assert torch.equal(h, gradest.sample("noisy_rectifier", a, samples=5, seed=3))
    with gradest.Client(f"{http.base_url}/gradest", api_key="wrong") as client, pytest.raises(gradest.GradestError):
        client.neurons()


@pytest.fixture
def gated():
    Gated.asked, Gated.seen = 0, threading.Event()
    gradest.registry.register(Gated)
    yield Gated
    Gated.seen.set()
    gradest.registry.unregister(Gated)


def test_events_arrive_while_they_are_made(proxied, gated):
    """The work goes on only once the first of them has been read, so a proxy that collects them fails the test."""
    http, _, _ = proxied
    body = {"neuron": "bernoulli", "estimator": "rloo", "objective": "gated", "a": [0.0] * 4000, "draws": 3000}
    names = []
    with http.stream("POST", "/gradest/v1/estimate", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("event:"):
                names.append(line.removeprefix("event: "))
                gated.seen.set()
    assert gated.asked > 5
    assert names[-1] == "result"
    assert set(names[:-1]) == {"progress"}


def test_who_refuses_a_body_that_is_too_large(proxied):
    http, _, name = proxied
    sizes = {"service": 32 * MIB + 1, "proxy": 33 * MIB + 1}
    headers = {"Content-Type": "application/vnd.safetensors"}
    answers = {
        who: http.post("/gradest/v1/sample", content=bytes(size), headers=headers) for who, size in sizes.items()
    }
    assert answers["service"].status_code == 413
    assert answers["service"].headers["content-type"] == "application/problem+json"
    assert "bytes" in answers["service"].json()["detail"]
    assert answers["proxy"].status_code == 413
    assert ("x-request-id" in answers["proxy"].headers) == (name != "nginx")


def test_the_log_has_the_client_s_address_and_not_what_it_claims(proxied):
    http, lines, _ = proxied
    del lines[:]
    claims = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"}
    http.get("/gradest/version", headers=claims)
    until = time.monotonic() + 20
    while not lines:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [(line["route"], line["client"], line["key"]) for line in lines] == [("/version", CLIENT, "alice")]


def test_ids_and_traces_pass(proxied):
    http, _, _ = proxied
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = http.get("/gradest/v1/neurons", headers={"X-Request-ID": "run-7", "traceparent": trace})
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == ("run-7", trace)
    assert json.loads(answer.content)
