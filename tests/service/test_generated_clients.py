"""Clients that generators make of the OpenAPI document: their types fit, and what they compute is the library's, bit for bit.

The programs that use the clients are in `generated/`. They are checked by mypy --strict and tsc --strict, then run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

import gradest

PROGRAMS = Path(__file__).with_name("generated")
PYTHON_GENERATOR = "openapi-python-client==0.29.1"  # not among the dev extras: it needs an older typer
ESTIMATOR = {"name": "reinforce_average", "samples": 2}
A = torch.tensor([[0.5, -1.0, 2.0], [-0.25, 0.125, 0.0]])

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def install(*command, cwd):
    """Run an installer, and skip the test if it cannot reach a registry; in CI that is an error."""
    try:
        run(*command, cwd=cwd)
    except (AssertionError, OSError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{command[0]} could not install the generator, which needs a network: {str(error)[-300:]}")


@pytest.fixture
def document(url, tmp_path):
    path = tmp_path / "openapi.json"
    path.write_bytes(httpx.get(f"{url}/openapi.json").content)
    return path


def check(found):
    """Hold the output of a program to the library."""
    assert torch.equal(torch.tensor(found["sample"]), gradest.sample("noisy_rectifier", A, 3, seed=7))
    state = None
    for seed, step in zip((1, 2), found["steps"], strict=True):
        draw, state = gradest.ask("bernoulli", ESTIMATOR, A, seed, state)
        assert torch.equal(torch.tensor(step["points"]), draw.points)
        loss = draw.points.double().sum(-1) ** 2
        gradient, state = gradest.tell(ESTIMATOR, draw, gradest.Feedback(loss), state)
        assert torch.equal(torch.tensor(step["gradient"]), gradient)
        assert step["value"] == loss.mean(0).tolist()
        assert step["state"] == {name: x.tolist() for name, x in state.items()}
    assert [text.lower() for text in found["variance"]] == ["nan"] * 6
    assert (found["rows"], found["neuron"]) == (["rloo"], "bernoulli")
    assert found["ranked"] == len(gradest.recommend("bernoulli", ["loss", "grad"], 2).rows)
    assert "less than 9007199254740992" in found["refused"]["seed"]


def test_a_client_in_python(url, document, tmp_path):
    tool = tmp_path / "tool"
    install(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--target",
        tool,
        PYTHON_GENERATOR,
        cwd=tmp_path,
    )
    config = tmp_path / "config.yaml"
    config.write_text("post_hooks: []")  # its style is of no interest
    generate = ["-m", "openapi_python_client", "generate", "--path", document, "--meta", "none", "--config", config]
    said = run(
        sys.executable, *generate, "--output-path", tmp_path / "gradest_client", cwd=tmp_path, PYTHONPATH=str(tool)
    )
    assert "will not be generated" not in said
    assert "Unable to parse" not in said
    program = shutil.copy(PROGRAMS / "use_client.py", tmp_path)
    # the generator casts more often than it must
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-warn-redundant-casts", "--config-file=", program]
    run(*mypy, cwd=tmp_path)
    check(json.loads(run(sys.executable, program, url, cwd=tmp_path)))


@pytest.mark.skipif(not (shutil.which("npm") or os.environ.get("CI")), reason="needs npm, which comes with Node.js")
def test_a_client_in_typescript(url, document, tmp_path):
    for path in PROGRAMS.iterdir():
        if path.suffix in (".ts", ".json"):
            shutil.copy(path, tmp_path)
    install("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=tmp_path)
    tools = tmp_path / "node_modules" / ".bin"
    run(tools / "openapi-typescript", document, "--output", "schema.ts", cwd=tmp_path)
    run(tools / "tsc", "--project", tmp_path, cwd=tmp_path)
    found = json.loads(run("node", "built/use_client.js", url, cwd=tmp_path))
    check(found)
    assert "JSON.stringify makes of NaN" in found["refused"]["nan"]
    assert "Array.from" in found["refused"]["typed"]
