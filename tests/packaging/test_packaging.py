"""What is shipped: the wheel's and the sdist's content, and an installation that knows nothing of the checkout."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from gradest.cli.scaffold import write_plugin

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "gradest",
    "gradest_neurons",
    "gradest_estimators",
    "gradest_objectives",
    "gradest_experiments",
    "gradest_service",
}
HOMES = [ROOT / "gradest", ROOT / "service/gradest_service", *(ROOT / "plugins").glob("gradest_*")]


def build(source: Path, folder: Path, *targets: str) -> None:
    """Build what the targets say, "wheel" or "sdist", of the source into the folder."""
    command = [sys.executable, "-m", "hatchling", "build", *(word for target in targets for word in ("-t", target))]
    subprocess.run([*command, "-d", folder], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "wheel", "sdist")
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


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
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
    kept = ROOT / "docs/results/leaderboard"
    results = {f"gradest/leaderboard/{path.relative_to(kept).as_posix()}" for path in kept.rglob("*.json")}
    assert results
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in shipped if not name.startswith("gradest_service/site/")} == files | results
    assert ("gradest_service/site/index.html" in shipped) == (ROOT / "build/site/index.html").exists()
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


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_sdist_holds_what_building_and_testing_take(sdist: set[str]) -> None:
    top = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"}
    top |= {
        "CITATION.cff",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*") if _is_source(path)),
    }
    wanted = top | {path.relative_to(ROOT).as_posix() for home in HOMES for path in home.rglob("*.py")}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert wanted <= sdist


def test_sdist_builds_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path, "wheel")
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(again) as second:
        assert {name: second.getinfo(name).CRC for name in second.namelist()} == {
            name: wheel.getinfo(name).CRC for name in wheel.namelist()
        }


def test_every_library_that_tests_import_is_declared() -> None:
    """Not only a requirement of a requirement, which may go; tests of speed have requirements of their own, the extra `bench`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    declared = {re.split(r"[^\w-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in stated}
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        if not {"benchmarks", "generated"}
        & {*path.parts}  # a program of the second runs beside the client generated for it
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    ours = PACKAGES | {"tests", *sys.stdlib_module_names}
    known = packages_distributions()
    for name in sorted(imported - ours):
        distributions = known.get(name, [name])  # a peer that is not installed has the name of its module
        assert declared & {distribution.lower().replace("_", "-") for distribution in distributions}, name


@pytest.fixture(scope="module")
def written(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What `gradest new-plugin my-plugin` writes; and a folder in which its wheel and gradest's are installed."""
    home = tmp_path_factory.mktemp("written")
    folder = write_plugin("my-plugin", home)
    build(folder, home, "wheel")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    wheels = [*built.glob("*.whl"), *home.glob("*.whl")]
    subprocess.run([*pip, "--target", home / "site", *wheels], check=True, capture_output=True)
    return folder, home / "site"


def run_installed(site: Path, folder: Path, *module: str) -> str:
    """Standard output of a module of Python, with what is installed in `site`, in a folder that is not the checkout."""
    # kernels for the CPU would be compiled again there, for a minute
    env = {**os.environ, "PYTHONPATH": str(site), "PYTEST_ADDOPTS": "", "GRADEST_KERNELS": "reference"}
    ran = subprocess.run([sys.executable, "-m", *module], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradest_and_a_new_plugin_work_from_wheels(written: tuple[Path, Path], tmp_path: Path) -> None:
    """`gradest list`, the conformance kit by `gradest check`, and pytest with a plugin's own tests and `--gradest-plugin`."""
    folder, site = written
    shutil.copytree(folder / "tests", tmp_path / "tests")
    listed = json.loads(run_installed(site, tmp_path, "gradest", "list", "--json"))
    assert listed["failures"] == []
    assert listed["plugins"][1] == {
        "distribution": "my-plugin",
        "version": "0.1.0",
        "neurons": ["my_plugin_probit"],
        "estimators": ["my_plugin_running_baseline"],
        "objectives": [],
    }
    report = json.loads(run_installed(site, tmp_path, "gradest", "check", "My.Plugin", "--fast", "--json"))
    assert report["passed"]
    assert {result["plugin"] for result in report["results"]} > {"my_plugin_probit", "my_plugin_running_baseline"}
    # the kit by its own entry point in the group pytest11, and with every file of gradest marked for rewriting by pytest
    kit = ["--gradest-plugin", "my-plugin", "-k", "is_pure or score or values", "-W", "error"]
    ran = run_installed(site, tmp_path, "pytest", "-q", "-rA", *kit, "tests")
    for part in ("tests/test_values.py::", "tests/test_conformance.py::", "gradest:my-plugin"):
        assert f"PASSED {part}" in ran


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_all_tests_of_a_new_plugin_pass(written: tuple[Path, Path], tmp_path: Path) -> None:
    folder, site = written
    shutil.copytree(folder / "tests", tmp_path / "tests")
    assert " passed" in run_installed(site, tmp_path, "pytest", "-q", "tests")


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_a_new_plugin_is_typed(tmp_path: Path) -> None:
    typed = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=write_plugin("my-plugin", tmp_path), capture_output=True, text=True
    )
    assert typed.returncode == 0, typed.stdout


@pytest.mark.deep
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
