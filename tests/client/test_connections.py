"""How the client reaches the service: URLs, proxies, certificates, and connections of one process and event loop."""

import asyncio
import gc
import json
import os
import ssl
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch

import gradest
from gradest.client.addresses import Address
from gradest.errors import GradestError, InvalidInput, ServiceError

A = torch.tensor([[0.5, -1.0]])
PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@contextmanager
def serving(body=None, tls=None):
    """A service that answers everything with `body`; by default with the number of the connection, as an object's name."""
    ports = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.client_address not in ports:
                ports.append(self.client_address)
            content = json.dumps({"name": ports.index(self.client_address)}).encode() if body is None else body
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask_async(url, **options):
    async def ask():
        async with gradest.AsyncClient(url, **options) as client:
            return await client.version()

    return asyncio.run(ask())


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("127.0.0.1:9", "Did you mean 'http://127.0.0.1:9'"),
        ("localhost:8000", "Did you mean 'http://localhost:8000'"),
        ("service", "Did you mean 'http://service'"),
        ("http:127.0.0.1:9", "Did you mean 'http://127.0.0.1:9'"),
        ("ftp://service", "Did you mean 'http://service'"),
        ("://service", "Did you mean 'http://service'"),
        ("", "must begin with http://"),
        ("http://", "host or its port"),
        ("http:///v1", "host or its port"),
        ("http://a b", "host or its port"),
        ("http://service:0", "host or its port"),
        ("http://service:99999", "host or its port"),
        ("http://service:port", "Invalid port"),
        ("http://[::1", "not the URL of a service"),
        ("http://service/?key=1", "no part that begins with"),
        ("http://service/#top", "no part that begins with"),
        (None, "not NoneType"),
        (8000, "not int"),
    ],
)
@pytest.mark.parametrize("kind", [gradest.Client, gradest.AsyncClient])
def test_what_is_no_url_of_a_service_is_refused_at_once(kind, url, match):
    with pytest.raises(InvalidInput, match=match):
        kind(url)


@pytest.mark.parametrize(
    "url", ["http://service", "HTTPS://Service:443/", "http://[::1]:9/gradest/", "http://10.0.0.1"]
)
def test_what_is_one_is_accepted(url):
    with gradest.Client(url) as client:
        assert client.url == url.lower().replace(":443", "")


@pytest.mark.parametrize(
    "url",
    ["http://ann:hunter2@service", "http://ann:hunter2@service:port", "ann:hunter2@service", "http://ann:hunter#2@s:1"],
)
def test_a_password_in_the_url_is_sent_and_never_shown(url):
    seen = []

    def refuse(request):
        seen.append(request)
        raise httpx.ConnectError("refused")

    with pytest.raises(GradestError) as caught:
        gradest.Client(url, retries=0, http_transport=httpx.MockTransport(refuse)).neurons()
    for text in (str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)):
        assert "hunter" not in text
    if seen:
        assert seen[0].headers["authorization"] == "Basic YW5uOmh1bnRlcjI="
        assert "hunter" not in str(seen[0].url)


def test_a_password_beside_an_api_key_is_refused():
    with pytest.raises(InvalidInput, match="one Authorization header"):
        gradest.Client("http://ann:hunter2@service", api_key="key")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"timeout": 0}, "timeout must be a number above 0, not 0"),
        ({"timeout": "3"}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"read_timeout": -1}, "read_timeout"),
        ({"retries": -1}, "retries must be a number of at least 0"),
        ({"retries": True}, "retries"),
        ({"api_key": ""}, "API key is empty"),
    ],
)
def test_settings_that_are_none(options, match):
    with pytest.raises(InvalidInput, match=match):
        gradest.Client("http://service", **options)


@pytest.mark.parametrize("kind", [gradest.Client, gradest.AsyncClient])
def test_a_closed_client_says_so(kind):
    client = kind("http://service")

    async def close_and_ask():
        await client.close()
        await client.neurons()

    if kind is gradest.Client:
        client.close()
    with pytest.raises(ServiceError, match="client is closed"):
        client.neurons() if kind is gradest.Client else asyncio.run(close_and_ask())


# --- proxies ---


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        ("http://service", "", False),
        ("http://service", "*", True),
        ("http://service", "other, service", True),
        ("http://service", "other service", True),
        ("http://my.service", "service", True),
        ("http://my.service", ".service", True),
        ("http://my.service", "*.service", True),
        ("http://myservice", "service", False),
        ("http://service:81", "service:80", False),
        ("http://service", "service:80", True),
        ("http://service", "https://service", False),
        ("http://service", "http://service", True),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2.3", True),
        ("http://11.1.2.3", "10.0.0.0/8", False),
        ("http://[2001:db8::7]:80", "[2001:db8::7]", True),
        ("http://[2001:db8::7]:80", "[2001:db8::7]:80", True),
        ("http://[2001:db8::7]:81", "[2001:db8::7]:80", False),
        ("http://[2001:db8::7]:80", "2001:db8:0::7", True),
        ("http://[2001:db8::7]:80", "2001:db8::/32", True),
        ("http://[2001:db8::7]:80", "fe80::/10,::1,[::1]", False),
        ("http://[2001:db8::7]:80", "10.0.0.0/8,nonsense]:[", False),
        ("http://127.0.0.1:8000", "", True),
        ("http://127.9.9.9", "", True),
        ("http://localhost:8000", "", True),
        ("http://[::1]:8000", "", True),
        ("http://[::ffff:127.0.0.1]:8000", "", True),
        ("http://0.0.0.0:8000", "", True),
    ],
)
def test_a_proxy_is_for_what_no_proxy_does_not_name(monkeypatch, url, no_proxy, direct):
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    proxy = Address.parse(url, True).proxy
    assert (proxy is None) == direct
    if proxy is not None:
        assert proxy.url == httpx.URL(PROXY)


@pytest.mark.parametrize(
    ("variables", "url", "name"),
    [
        ({"HTTP_PROXY": PROXY}, "https://service", ""),
        ({"HTTPS_PROXY": PROXY}, "https://service", "HTTPS_PROXY"),
        ({"ALL_PROXY": PROXY}, "https://service", "ALL_PROXY"),
        ({"ALL_PROXY": "x:1", "HTTP_PROXY": "proxy.example:3128"}, "http://service", "HTTP_PROXY"),
    ],
)
def test_the_variable_of_the_scheme_comes_before_the_one_for_all(monkeypatch, variables, url, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    address = Address.parse(url, False)
    assert address.proxy_variable == name
    assert (address.proxy is None) == (not name)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    "value", ["socks5://ann:hunter2@proxy.example:1", "socks5h://p", "gopher://p", "http://p:port"]
)
@pytest.mark.parametrize("kind", [gradest.Client, gradest.AsyncClient])
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(monkeypatch, kind, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("gradest.client.addresses.find_spec", lambda name: None)
    with pytest.raises(ServiceError, match=rf"{variable.upper()}.*NO_PROXY=service") as caught:
        kind("http://service")
    assert ("httpx[socks]" in str(caught.value)) == value.startswith("socks")
    assert "hunter2" not in str(caught.value)
    kind("http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "variables", [{"HTTP_PROXY": "http://127.0.0.1:9"}, {"ALL_PROXY": "socks5://127.0.0.1:9"}, {"NO_PROXY": "[::1]"}]
)
def test_a_service_on_this_machine_is_reached_whatever_the_environment_says(monkeypatch, variables):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with serving() as url:
        with gradest.Client(url) as client:
            assert client.version() == {"name": 0}
        assert ask_async(url) == {"name": 1}


def test_a_proxy_that_does_not_answer_is_named_in_the_error(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://ann:hunter2@127.0.0.1:9")
    for call in (
        lambda: gradest.Client("http://service", retries=0).version(),
        lambda: ask_async("http://service", retries=0),
    ):
        with pytest.raises(ServiceError, match=r"http://service \(through the proxy that HTTP_PROXY names\)") as caught:
            call()
        assert "hunter2" not in str(caught.value)


def test_a_proxy_is_asked_for_the_service(monkeypatch):
    with serving() as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy)
        with gradest.Client("http://service.example") as client:
            assert client.version() == {"name": 0}


# --- certificates ---


def test_certificates_of_one_s_own_are_trusted_by_verify(tmp_path):
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    context = ssl.create_default_context(cafile=str(certificate))
    with serving(tls=tls) as url:
        with pytest.raises(ServiceError, match="verify=FILE"):
            gradest.Client(url).version()
        for verify in (certificate, str(certificate), context, False):
            with gradest.Client(url, verify=verify) as client:
                assert "name" in client.version()
            assert "name" in ask_async(url, verify=verify)
    with serving() as url, pytest.raises(ServiceError, match="No HTTPS is spoken there"):
        gradest.Client(url.replace("http", "https")).version()


def test_certificates_that_cannot_be_read(tmp_path, monkeypatch):
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(InvalidInput, match=r"verify=.*missing"):
        gradest.Client("https://service", verify=missing)
    with pytest.raises(InvalidInput, match="http_transport"):
        gradest.Client("https://service", verify=False, http_transport=httpx.MockTransport(None))
    monkeypatch.setenv("SSL_CERT_FILE", missing)
    with pytest.raises(InvalidInput, match="SSL_CERT_FILE"):
        gradest.Client("https://service")


# --- one process and one event loop for each connection ---


def test_a_process_that_is_forked_has_connections_of_its_own():
    """Two processes on one connection read each other's answers."""
    with serving() as url, gradest.Client(url) as client:
        assert [client.version()["name"] for _ in range(2)] == [0, 0]
        child = os.fork()
        if child == 0:
            found = 99
            try:
                found = client.version()["name"] * 10 + client.version()["name"]
                client.close()
            finally:
                os._exit(found)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11
        assert client.version()["name"] == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_asynchronous_client_serves_one_event_loop_after_another_and_side_by_side():
    async def ask(times):
        return [(await client.version())["name"] for _ in range(times)]

    with serving() as url:
        client = gradest.AsyncClient(url)
        assert [asyncio.run(ask(2)) for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
        ready, found = threading.Barrier(2), []

        async def ask_in_turn():
            names = []
            for _ in range(3):
                await asyncio.to_thread(ready.wait, 10)
                names += await ask(1)
            await client._connected().aclose()
            found.append(set(names))

        threads = [threading.Thread(target=lambda: asyncio.run(ask_in_turn())) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found, key=min) == [{3}, {4}]
    gc.collect()  # connections of a loop that ended without closing them


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_transport_of_the_caller_s_with_connections_stays_where_it_is():
    with serving() as url:
        client = gradest.AsyncClient(url, http_transport=httpx.AsyncHTTPTransport())
        assert asyncio.run(client.version()) == {"name": 0}
        with pytest.raises(ServiceError, match="another process or event loop; make a client here"):
            asyncio.run(client.version())
    del client
    gc.collect()
