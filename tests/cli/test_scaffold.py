"""`gradest new-plugin`: what it writes, and that it works as written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradest.cli.scaffold import write_plugin
from gradest.errors import InvalidInput

ROOT = Path(__file__).parents[2]
NAMES = ["my-plugin", "my_plugin", "z9", "a-plugin-of-as-many-characters-as-may-be"]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_a_package_that_ruff_has_nothing_to_say_about(name: str, tmp_path: Path) -> None:
    folder = write_plugin(name, tmp_path)
    assert folder == tmp_path / name
    package = name.replace("-", "_")
    assert files(folder) == {
        ".github/workflows/test.yml",
        "README.md",
        "pyproject.toml",
        f"{package}/__init__.py",
        f"{package}/probit.py",
        f"{package}/py.typed",
        f"{package}/running_baseline.py",
        "tests/test_conformance.py",
        "tests/test_values.py",
    }
    assert "${{ matrix.python }}" in (folder / ".github/workflows/test.yml").read_text()
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "."], ["format", "--check", "."]):
        ran = subprocess.run([*ruff, *command, "--no-cache"], cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is no name for a plugin"),
        ("My-plugin", "is no name for a plugin"),
        ("9-lives", "is no name for a plugin"),
        ("a--b", "is no name for a plugin"),
        ("trailing-", "is no name for a plugin"),
        ("../up", "is no name for a plugin"),
        ("a" * 41, "is no name for a plugin"),
        ("a\n", "is no name for a plugin"),
        ("class", "is a word of the language"),
        ("json", "there is a module 'json' already"),
        ("gradest-estimators", "there is a module 'gradest_estimators' already"),
        ("tests", "there is a module 'tests' already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=reason):
        write_plugin(name, tmp_path)
    assert not files(tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my-plugin").mkdir()
    (tmp_path / "a-file").write_text("kept")
    (tmp_path / "a-link").symlink_to("nowhere")
    for name in ("my-plugin", "a-file", "a-link"):
        with pytest.raises(InvalidInput, match="exists already"):
            write_plugin(name, tmp_path)
    assert files(tmp_path) == {"a-file"}
    with pytest.raises(InvalidInput, match="is no folder"):
        write_plugin("my-plugin", tmp_path / "no/where")


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print({'torch', 'numba'} & set(sys.modules)));"
        "import gradest.__main__"
    )
    command = [sys.executable, "-c", script, "new-plugin", "my-plugin", "--directory", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout == (
        f"{tmp_path}/my-plugin is there. Next: pip install -e '{tmp_path}/my-plugin[test]', "
        f"then `gradest check {tmp_path}/my-plugin`\nset()\n"
    )
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(f"gradest: {tmp_path}/my-plugin exists already")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_written_is_typed_installs_and_passes_as_it_is(tmp_path: Path) -> None:
    """From wheels, gradest's and its own, in a place of their own: its tests, `gradest list`, and the conformance kit."""
    folder = write_plugin("my-plugin", tmp_path)
    typed = subprocess.run([sys.executable, "-m", "mypy"], cwd=folder, capture_output=True, text=True)
    assert typed.returncode == 0, typed.stdout
    for source in (ROOT, folder):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "wheels"]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", site, *(tmp_path / "wheels").iterdir()], check=True, capture_output=True)
    shutil.copytree(folder / "tests", elsewhere / "tests")
    shutil.rmtree(folder)

    def run(*module: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": ""}
        ran = subprocess.run([sys.executable, "-m", *module], cwd=elsewhere, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    assert " passed" in run("pytest", "-q", "tests")
    listed = json.loads(run("gradest", "list", "--json"))
    assert listed["failures"] == []
    assert listed["plugins"][1] == {
        "distribution": "my-plugin",
        "version": "0.1.0",
        "neurons": ["my_plugin_probit"],
        "estimators": ["my_plugin_running_baseline"],
        "objectives": [],
    }
    report = json.loads(run("gradest", "check", "My.Plugin", "--fast", "--json"))
    assert report["passed"]
    assert {result["plugin"] for result in report["results"]} > {"my_plugin_probit", "my_plugin_running_baseline"}
    # by its own entry point in the group pytest11, and with every file of gradest marked for rewriting by pytest
    ran = run(
        "pytest", "-q", "--gradest-plugin", "my-plugin", "tests/test_values.py", "-W", "error", "-k", "is_pure or score"
    )
    assert " passed" in ran
