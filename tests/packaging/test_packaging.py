"""What is shipped: the wheel's and the sdist's content, and an installation that knows nothing of the checkout."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"gradest", "gradest_neurons", "gradest_estimators", "gradest_objectives", "gradest_service"}
HOMES = [ROOT / "gradest", ROOT / "service/gradest_service", *(ROOT / "plugins").glob("gradest_*")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """The names in the sdist, without its leading folder."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_wheel_holds_the_five_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert len(tops) == len(PACKAGES) + 1


def test_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(home.parent).as_posix()
        for home in HOMES
        for path in home.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files
    assert {f"{package}/py.typed" for package in PACKAGES} <= files


def test_wheel_has_the_entry_points_and_the_licence(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(read(wheel, "entry_points.txt"))
    assert dict(points["gradest"]) == {
        "neurons": "gradest_neurons",
        "estimators": "gradest_estimators",
        "objectives": "gradest_objectives",
    }
    assert dict(points["pytest11"]) == {"gradest": "gradest.testing.pytest_plugin"}
    assert dict(points["console_scripts"]) == {"gradest": "gradest.cli:main"}
    assert "Permission is hereby granted" in read(wheel, "licenses/LICENSE")


def test_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Name"] == "gradest"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"dev", "demo", "data", "plot", "ray"} <= set(metadata.get_all("Provides-Extra", []))


def test_sdist_holds_what_building_and_testing_take(sdist: set[str]) -> None:
    top = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"}
    wanted = top | {path.relative_to(ROOT).as_posix() for home in HOMES for path in home.rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert wanted <= sdist


def test_sdist_builds_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as second:
        assert {name: second.getinfo(name).CRC for name in second.namelist()} == {
            name: wheel.getinfo(name).CRC for name in wheel.namelist()
        }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_install_into_an_empty_environment(built: Path, tmp_path: Path) -> None:
    """`pip install` with the real dependencies, and the command line from a folder that is not the checkout."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    binaries = home / ("Scripts" if os.name == "nt" else "bin")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GRADEST", "VIRTUAL_ENV"))
    }

    def run(*command: str | Path) -> str:
        ran = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    (path,) = built.glob("*.whl")
    run(binaries / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", path)
    run(binaries / "python", "-m", "pip", "check")
    listed = json.loads(run(binaries / "gradest", "list", "--json"))
    assert listed["failures"] == []
    assert [plugin["distribution"] for plugin in listed["plugins"]] == ["gradest"]
    for kind in ("neurons", "estimators", "objectives"):
        assert listed["plugins"][0][kind] == [entry["name"] for entry in listed[kind]] != []
    sampled = json.loads(run(binaries / "gradest", "sample", "bernoulli", "--a", "0.3,-1,2", "--seed", "7", "--json"))
    assert [len(row) for row in sampled["h"]] == [3]
    where = run(binaries / "python", "-c", "import gradest, gradest_service.app; print(gradest.__file__)")
    assert str(home) in where
