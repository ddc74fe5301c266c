"""What a web page of another site can do to a service on its user's machine: nothing, unless the operator allows its origin."""

import httpx
import pytest

from gradest_service.admit.auth import new_key

SAMPLE = {"neuron": "bernoulli", "a": [0.0], "seed": 1}
EVIL, LAB = "https://evil.example", "https://lab.example"
CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": EVIL}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "x"]
)
@pytest.mark.parametrize("path", ["/v1/neurons", "/", "/metrics", "/nowhere", "/openapi.json"])
def test_a_name_that_was_rebound_gets_nothing(http, refused, host, path):
    assert "allowed_hosts" in refused(http.get(path, headers={"Host": host}), 421)["detail"]
    refused(http.post("/v1/sample", json=SAMPLE, headers={"Host": host}), 421)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:99", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "localhost."]
)
def test_names_of_this_machine_and_addresses_are_taken(http, host):
    assert http.post("/v1/sample", json=SAMPLE, headers={"Host": host}).status_code == 200


def test_health_is_asked_for_by_any_name(http):
    assert http.get("/readyz", headers={"Host": "pod.cluster"}).status_code == 200


def test_the_operator_names_the_hosts(start, refused):
    service = start(allowed_hosts="Gradest.Lab.Example, gpu")
    for host in ("gradest.lab.example:443", "gpu"):
        assert service.get("/version", headers={"Host": host}).status_code == 200
    refused(service.get("/version", headers={"Host": "localhost"}), 421)
    assert start(allowed_hosts="*").get("/version", headers={"Host": "any"}).status_code == 200


def test_with_keys_any_name_is_taken(start, tmp_path, refused):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    service = start(api_keys=tmp_path / "keys")
    assert service.get("/version", headers={"Host": "proxy", "Authorization": f"Bearer {key}"}).status_code == 200
    refused(service.get("/version", headers={"Host": "proxy"}), 401)


@pytest.mark.parametrize("path", ["/v1/neurons", "/v1/recommend", "/metrics", "/nowhere"])
def test_requests_from_pages_of_other_sites_are_refused(http, refused, path):
    assert "cors_origins" in refused(http.get(path, headers=CROSS), 403)["detail"]
    refused(http.get(path, headers=CROSS | {"Sec-Fetch-Mode": "navigate"}), 403)
    refused(http.post("/v1/sample", json=SAMPLE, headers=CROSS), 403)


def test_links_of_other_sites_lead_to_the_page(http):
    for path in ("/", "/docs", "/page/app.js"):
        assert http.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
def test_other_requests_of_browsers_are_taken(http, site):
    answer = http.post("/v1/sample", json=SAMPLE, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_elsewhere_may_be_allowed(start, refused, tmp_path):
    """Its requests, errors and questions beforehand have the headers that its browser wants; those of others do not."""
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    service = start(api_keys=tmp_path / "keys", cors_origins=f"{LAB}/, https://other.example")
    ask = {"Origin": LAB, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = service.options("/v1/sample", headers=ask | {"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == LAB
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    from_lab = CROSS | {"Origin": LAB}
    for headers, status in ((from_lab, 401), (from_lab | {"Authorization": f"Bearer {key}"}, 200)):
        answer = service.post("/v1/sample", json=SAMPLE, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == LAB
        assert answer.headers["vary"] == "Origin"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    answer = service.options("/v1/sample", headers=ask | {"Origin": EVIL})
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers
    answer = service.get("/v1/neurons", headers=CROSS | {"Authorization": f"Bearer {key}"})
    refused(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_any_page_may_be_allowed(start):
    assert start(cors_origins="*").get("/version", headers=CROSS).headers["access-control-allow-origin"] == EVIL


def test_a_client_without_these_headers_is_taken(url):
    with httpx.Client() as plain:
        assert plain.get(f"{url}/version").status_code == 200
