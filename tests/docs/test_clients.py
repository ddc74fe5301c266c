"""The code blocks of docs/guides/clients.md, each against a service."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import gradest
from gradest_service.app import running

GUIDE = Path(__file__).parents[2] / "docs/guides/clients.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url():
    with running() as found:
        yield found


def only(language, containing=""):
    (block,) = [text for kind, text in BLOCKS if kind == language and containing in text]
    return block


def expected_loss(a):
    """E[(Σ h - 3)²], 1.5 at the start of the examples, where a is 0."""
    p = 1 / (1 + np.exp(-np.asarray(a, float)))
    return (p * (1 - p)).sum() + (p.sum() - 3) ** 2


def test_every_block_is_run_or_is_an_installation_or_a_generation():
    wanted = [only("python", "np.float32"), only("python", "jax"), only("sh", "curl"), only("js")]
    wanted += [
        only("sh", "pip install"),
        only("sh", "openapi-typescript"),
    ]  # tests of the client and the service do these
    assert sorted(wanted) == sorted(text for _, text in BLOCKS)


def run_python(block, url, capsys):
    namespace = {}
    exec(compile(block.replace(ADDRESS, url), "block", "exec"), namespace)
    assert capsys.readouterr().out.strip()
    return namespace


def test_numpy_block(url, capsys):
    found = run_python(only("python", "np.float32"), url, capsys)
    assert isinstance(found["a"], np.ndarray)
    assert expected_loss(found["a"]) < 1


def test_jax_block(url, capsys):
    jax = pytest.importorskip(
        "jax", reason="JAX is not among the packages of the tests; `pip install jax` to run this one"
    )
    found = run_python(only("python", "jax"), url, capsys)
    assert isinstance(found["a"], jax.Array)
    assert isinstance(found["state"]["total"], jax.Array)
    assert (found["w"] != 1).any()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_block(url, tmp_path):
    block = only("sh", "curl").replace(ADDRESS, url)
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, capture_output=True, text=True, check=True)
    draw, state = gradest.ask("bernoulli", "disarm", torch.tensor([[0.5, -1.0, 2.0]]), 7)
    assert json.loads((tmp_path / "draw.json").read_text())["points"] == draw.points.tolist()
    loss = torch.tensor([[1.0], [0.25]], dtype=torch.float64)
    gradient, _ = gradest.tell("disarm", draw, gradest.Feedback(loss), state)
    assert json.loads(done.stdout)["gradient"] == gradient.tolist()


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript_block_and_numpy_block_have_the_same_bits(url, tmp_path, capsys):
    (tmp_path / "train.mjs").write_text(only("js"))
    done = subprocess.run(["node", "train.mjs", url], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = run_python(only("python", "np.float32"), url, capsys)
    numbers = [float(text) for text in re.findall(r"-?[\d.]+(?:e-?\d+)?", done.stdout)]
    assert numbers == found["a"][0].tolist()
