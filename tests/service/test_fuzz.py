"""schemathesis, with every check that it has, on the OpenAPI document: what the service does is what the document says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gradest_service.admit.auth import new_key

HOOKS = Path(__file__).with_name("fuzz_hooks.py")
SMALL = {"max_work": 100_000, "max_points": 2000, "max_elements": 5000, "max_requests": 64}


@pytest.fixture
def fuzz(tmp_path):
    """Runs `st run`, in a folder of the test's own, where it leaves its cache; fails with its report if a check does."""
    return lambda service, *flags: _run(tmp_path, service, *flags)


def _run(folder, service, *flags):
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    command += ["--checks", "all", "--seed", "1", "--generation-deterministic"]
    command += ["--continue-on-failure", "--no-color", "--request-timeout", "60", "--max-response-time", "60"]
    command += ["--warnings", "off", *flags]
    found = subprocess.run(
        [*command, f"{service.base_url}/openapi.json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS), "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stdout + found.stderr


def accepted(service):
    """The routes that answered 200: that every request was refused would prove little."""
    lines = service.get("/metrics").text.splitlines()
    return {
        re.search('route="(.*?)"', line)[1]
        for line in lines
        if line.startswith("gradest_requests_total") and 'status="200"' in line
    }


@pytest.fixture
def keyed(start, tmp_path):
    """A service that asks for a key, and the flags with one."""
    key, line = new_key("fuzz")
    file = tmp_path / "keys"
    file.write_text(line)
    return start(api_keys=file, **SMALL), ["--header", f"Authorization: Bearer {key}"]


# a body, a query, a name in the path, and a route without any; what estimators cost is measured in the deep tests
SOME = [
    flag
    for operation in ("sample", "recommend", "get_objective", "readyz")
    for flag in ("--include-operation-id", operation)
]


def test_the_document_is_true(start, fuzz):
    service = start(**SMALL)
    fuzz(service, "-n", "10", *SOME)
    assert accepted(service) >= {"/v1/sample", "/v1/recommend", "/v1/objectives/{name}"}


@pytest.mark.deep
def test_the_document_is_true_where_keys_are_asked_for(keyed, fuzz):
    service, flags = keyed
    fuzz(service, "-n", "5", *flags, *SOME[:2], *SOME[-2:])


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_the_whole_document_is_true(start, fuzz):
    service = start(**SMALL)
    fuzz(service, "-n", "40")
    paths = httpx.get(f"{service.base_url}/openapi.json").json()["paths"]
    assert accepted(service) >= paths.keys() - {"/metrics"}  # that counts itself later


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_the_whole_document_is_true_where_keys_are_asked_for(keyed, fuzz):
    service, flags = keyed
    fuzz(service, "-n", "20", *flags)
