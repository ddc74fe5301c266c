"""Every code block of the README and of docs/ does what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path

import pytest
import torch

from gradest.cli import main
from gradest.testing import checks as testing
from gradest_service.app import running

ROOT = Path(__file__).parents[1]
ELSEWHERE = [
    ROOT / "docs/guides/clients.md",  # tests/docs/test_clients.py runs its blocks
    ROOT / "docs/guides/deploy.md",  # and tests/service/test_deploy.py those of this one
]
DOCUMENTS = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {*ELSEWHERE})]
BLOCKS = [
    block
    for path in DOCUMENTS
    for block in re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
]
ADDRESS = "http://127.0.0.1:8000"


def blocks(language, containing=""):
    return [text for kind, text in BLOCKS if kind == language and containing in text]


def only(language, containing):
    (block,) = blocks(language, containing)
    return block


@pytest.fixture(scope="module")
def url():
    with running() as url:
        yield url


@pytest.fixture
def shell(tmp_path):
    """Runs a block where its commands find `gradest`, as in an activated environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(text):
        return subprocess.run(
            ["bash", "-ec", text],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return run


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs a block of `gradest` commands in this process, and gives what they print."""

    def run(text):
        monkeypatch.chdir(tmp_path)
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                assert words[0] == "gradest"
                monkeypatch.setattr(sys, "argv", words)
                with pytest.raises(SystemExit) as ended:
                    main()
                assert not ended.value.code
        return capsys.readouterr().out

    return run


def test_every_block_is_of_a_kind_that_is_run_here():
    handled = [*blocks("python"), *blocks("toml")]
    shell = (
        "make demo",
        "gradest serve --port",
        "gradest serve --new",
        "curl",
        "gradest check",
        "gradest recommend",
        "gradest compare",
        "gradest reproduce",
        "gradest benchmark",
    )
    handled += [only("sh", word) for word in shell]
    assert sorted(handled) == sorted(text for _, text in BLOCKS)


@pytest.mark.parametrize(
    "block", [text for text in blocks("python") if "my_plugin" not in text and ADDRESS not in text]
)
def test_python_blocks(block, capsys):
    namespace = {}
    torch.manual_seed(0)
    exec(compile(block, "block", "exec"), namespace)
    if "compare" in block:
        assert namespace["a"].grad.abs().sum() > 0
        assert "| rloo | none | 2 |" in capsys.readouterr().out
    elif "tell" in block:
        p = torch.sigmoid(namespace["a"])
        expected = (p * (1 - p)).sum() + (p.sum() - 3) ** 2  # of (Σ h - 3)²; 1.5 at the start
        assert expected < 0.6
        assert len(block.splitlines()) - block.splitlines().count("") <= 10
    elif "create_graph" in block:
        assert namespace["product"].abs().sum() > 0
    elif "score_surrogate" in block:
        assert namespace["value"].mean() < 0.2  # 0.8 at the start
    else:
        modules = [value for value in namespace.values() if isinstance(value, torch.nn.Module)]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        leaves = [value for value in namespace.values() if isinstance(value, torch.Tensor) and value.requires_grad]
        learned = parameters or [leaf for leaf in leaves if leaf.is_leaf]
        assert learned
        assert all(tensor.grad is not None for tensor in learned)


def test_client_block(url, capsys):
    exec(compile(only("python", ADDRESS).replace(ADDRESS, url), "block", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_curl_block(url, shell):
    answer = json.loads(shell(only("sh", "curl").replace(ADDRESS, url)))
    assert {"loss", "gradient", "variance", "standard_error", "evaluations", "seed", "exact"} <= answer.keys()
    assert answer["seed"] == 7


@pytest.mark.deep
def test_serve_block(shell):
    block = only("sh", "gradest serve --port").strip().removesuffix("&").replace("8000", "0")
    out = shell(
        f"{block} > out & for i in $(seq 300); do grep -q listening out && break; sleep 0.1; done; kill $!; wait $!; cat out"
    )
    assert "gradest is listening on http://127.0.0.1:" in out


def test_the_options_of_the_serve_block(here):
    words = only("sh", "gradest serve --port").split()
    assert words[:2] == ["gradest", "serve"]
    shown = here("gradest serve --help")
    assert all(word in shown for word in words if word.startswith("--"))


def test_keys_block(shell, tmp_path):
    out = shell(only("sh", "gradest serve --new"))
    assert re.fullmatch(r"alice sha256:[0-9a-f]{64}\n", (tmp_path / "keys").read_text())
    for shown in ("host +│ 0.0.0.0 +│ --host", "workers +│ 2 ", "api_keys +│ keys "):
        assert re.search(shown, out)


def test_compare_block(here, tmp_path):
    """It draws a picture of the estimators that the README's picture shows."""
    here(only("sh", "gradest compare").replace("200000", "200"))
    drawn = (tmp_path / "comparison.svg").read_text()
    kept = (ROOT / "docs/results/images/comparison.svg").read_text()
    for text in ("reinforce_centered", "rloo", "straight_through(derivative=sigmoid)", "root mean square error"):
        assert text in drawn
        assert text in kept


def test_recommend_block(here):
    commands = only("sh", "gradest recommend")
    out = here(commands)
    assert out.count("not for this case") == commands.count("gradest recommend") == 3
    assert "double_cv(samples=8)" in out


@pytest.mark.parametrize("word", ["gradest reproduce", "gradest benchmark"])
def test_blocks_of_experiments(here, word):
    """Their commands and options are there; tests/experiments runs them."""
    for line in only("sh", word).splitlines():
        words = line.partition("#")[0].split()
        command = words[: 3 if "reproduce" in words else 2]
        shown = here(f"{' '.join(command)} --help")
        assert all(word in shown for word in words if word.startswith("--"))


def test_make_block():
    for line in only("sh", "make demo").splitlines():
        target = line.split()[:2]
        assert shutil.which("make")
        subprocess.run([*target, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_plugin_blocks(tmp_path):
    source = only("python", "my_plugin")
    (tmp_path / "my_plugin.py").write_text(source)
    (name, module), *more = tomllib.loads(only("toml", ""))["project"]["entry-points"]["gradest"].items()
    assert not more
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gradest]\n{name} = {module}\n")
    listed = subprocess.run(
        [sys.executable, "-m", "gradest", "list", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shifted" in [neuron["name"] for neuron in json.loads(listed.stdout)["neurons"]]
    spec = util.spec_from_file_location("my_plugin", tmp_path / "my_plugin.py")
    plugin = util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    for check in testing.NEURON_CHECKS:
        check(plugin.Shifted())


@pytest.mark.deep
def test_new_plugin_block(shell):
    """What is written conforms; `-e` would stop at a check that fails. tests/packaging does so from wheels, without bias."""
    out = shell(only("sh", "gradest check"))
    assert "my-plugin is written" in out
    assert re.search(r"my-plugin conforms: (\d+) of \1 checks passed", out)


def test_names_in_the_table_of_advice_exist():
    import gradest

    advice = (ROOT / "docs/guides/choosing.md").read_text()
    names = re.findall(r"\| `(\w+)`", advice)
    assert len(names) > 10
    assert set(names) <= set(gradest.registry.estimators)
