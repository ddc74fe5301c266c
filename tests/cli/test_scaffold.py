"""`gradest new-plugin`: what it writes, and that it works as written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradest.cli.scaffold import write_plugin
from gradest.errors import InvalidInput

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
        ("", "cannot be the name of a plugin"),
        ("My-plugin", "cannot be the name of a plugin"),
        ("9-lives", "cannot be the name of a plugin"),
        ("a--b", "cannot be the name of a plugin"),
        ("trailing-", "cannot be the name of a plugin"),
        ("../up", "cannot be the name of a plugin"),
        ("a" * 41, "cannot be the name of a plugin"),
        ("a\n", "cannot be the name of a plugin"),
        ("class", "is a keyword of Python"),
        ("json", "a module 'json' exists already"),
        ("gradest-estimators", "a module 'gradest_estimators' exists already"),
        ("tests", "a module 'tests' exists already"),
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
    with pytest.raises(InvalidInput, match="is not a folder"):
        write_plugin("my-plugin", tmp_path / "no/where")


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import atexit, sys; atexit.register(lambda: print({'torch', 'numba'} & set(sys.modules)));"
        "import gradest.__main__"
    )
    command = [sys.executable, "-c", script, "new-plugin", "my-plugin", "--directory", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout == (
        f"{tmp_path}/my-plugin is written. Next: pip install -e '{tmp_path}/my-plugin[test]', "
        f"then `gradest check {tmp_path}/my-plugin`\nset()\n"
    )
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(f"gradest: {tmp_path}/my-plugin exists already")
