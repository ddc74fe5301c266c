"""Commands of plugins: how they are found, described and called, and how one that is broken is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from typer.testing import CliRunner, Result

from gradest.cli import app
from gradest.cli.commands import COMMANDS
from gradest.cli.docstrings import read_summary
from gradest.cli.plugins import find_commands, list_failures
from gradest.errors import PluginError

BUILT_IN = ["benchmark", "demo", "leaderboard", "report", "reproduce", "serve", "train"]

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution of entry points (name to value) and modules (path to source) in a folder on the search path."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, points: dict[str, str], modules: dict[str, str]) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[gradest.commands]", *lines, ""]))
        for path, source in modules.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(dedent(source))

    return write


def invoke(words: list[str]) -> Result:
    return CliRunner().invoke(app, words, prog_name="gradest")


def show_help() -> str:
    shown = invoke(["--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_gradest_s_own_commands_come_through_the_group() -> None:
    assert [command.entry_point.name for command in find_commands(COMMANDS)] == BUILT_IN
    assert list_failures(COMMANDS) == []


def test_a_command_gets_the_arguments_and_its_name(install: Install) -> None:
    source = '''
        """Fitting."""
        import argparse

        def fit(arguments, prog_name):
            """Fit [a] model.

            At length.
            """
            parser = argparse.ArgumentParser(prog_name)
            parser.add_argument("--steps", type=int)
            print(parser.prog, parser.parse_args(arguments).steps)
    '''
    install("acme-fit", {"fit": "acme_fit:fit"}, {"acme_fit.py": source})
    line = next(line for line in show_help().splitlines() if "│ fit " in line)
    assert "Fit [a] model." in line
    assert "At length" not in line
    ran = invoke(["fit", "--steps", "3"])
    assert (ran.exit_code, ran.stdout) == (0, "gradest fit 3\n")
    assert "usage: gradest fit" in invoke(["fit", "--help"]).stdout
    assert invoke(["fit", "--nope"]).exit_code == 2
    assert "No such command 'fitt'. Did you mean 'fit'?" in invoke(["fitt"]).output


def test_a_typer_app_is_a_command(install: Install) -> None:
    source = '''
        import typer

        grid = typer.Typer(help="Search a grid.", no_args_is_help=True)

        @grid.command()
        def random(points: int = 4) -> None:
            """Search at random."""
            print(points)

        @grid.command()
        def full() -> None:
            """Search everywhere."""
    '''
    install("acme-grid", {"grid": "acme_grid.cli:grid"}, {"acme_grid/__init__.py": "", "acme_grid/cli.py": source})
    assert "Search a grid." in show_help()
    assert invoke(["grid", "random", "--points", "7"]).stdout == "7\n"
    assert "Usage: gradest grid random" in invoke(["grid", "random", "--help"]).stdout


def test_help_runs_no_code_of_a_plugin_and_needs_no_torch(install: Install, tmp_path: Path) -> None:
    """Not even that of the package that the module is in."""
    source = '"""A line of the module."""\nimport torch\nfrom somewhere import *\n'
    install(
        "acme-slow",
        {"slow": "acme_slow.deep.cli:run"},
        {
            "acme_slow/__init__.py": "raise SystemExit(3)",
            "acme_slow/deep/cli.py": source,
            "somewhere.py": "import torch",
        },
    )
    script = "import atexit, sys; atexit.register(lambda: print({'torch', 'acme_slow', 'gradest_service'} & set(sys.modules)))"
    script += "; import gradest.__main__"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert "set()" in shown
    assert "A line of the module." in shown
    assert all(f" {command} " in shown for command in [*COMMANDS, *BUILT_IN])


BROKEN = {
    "gone": ("acme_gone.cli:run", {}, "ModuleNotFoundError: No module named 'acme_gone.cli'"),
    "odd": ("acme odd", {}, "ImportError: 'acme odd' is not of the form module:object"),
    "unparsed": ("acme_unparsed:run", {"acme_unparsed.py": "def"}, "cannot be parsed: invalid syntax"),
    "needy": (
        "acme_needy:run",
        {"acme_needy.py": "from acme_absent import x"},
        "ModuleNotFoundError: No module named 'acme_absent', which acme_needy imports",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_command_whose_source_shows_that_it_is_broken_is_named_in_the_help(install: Install, name: str) -> None:
    value, modules, reason = BROKEN[name]
    install("acme-broken", {name: value}, modules)
    shown = show_help()
    assert f"Not available: acme-broken 1.0 ({name}): " in shown
    assert reason in shown
    assert all(f" {command} " in shown for command in BUILT_IN)
    (failure,) = list_failures(COMMANDS)
    assert (failure.distribution, failure.entry_point, failure.phase) == ("acme-broken", name, "import")
    assert reason in failure.error
    error = invoke([name]).exception
    assert isinstance(error, PluginError)
    assert str(error).startswith(f"the command {name!r} does not load: ")
    assert reason in str(error)


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("raises", "1 / 0", "ZeroDivisionError: division by zero (acme_raises_command.py:1, in <module>)"),
        ("exits", "raise SystemExit(5)", "SystemExit: 5 (acme_exits_command.py:1, in <module>)"),
        ("absent", "", "AttributeError: module 'acme_absent_command' has no attribute 'run'"),
        ("uncallable", "run = 3", "acme_uncallable_command:run is of type int, which cannot be called"),
    ],
)
def test_a_command_that_does_not_load_is_named_in_the_list(
    install: Install, name: str, source: str, reason: str
) -> None:
    module = f"acme_{name}_command"
    install("acme-import", {name: f"{module}:run"}, {f"{module}.py": source})
    assert "Not available" not in show_help()
    ran = invoke(["list", "objectives", "--json"])
    (failure,) = json.loads(ran.stdout)["failures"]
    assert failure == {
        "distribution": "acme-import", "version": "1.0", "entry_point": name, "phase": "import", "error": reason
    }  # fmt: skip
    shown = invoke(["list", "objectives"]).stdout
    assert "plugins that did not load" in shown
    assert reason in shown
    error = invoke([name]).exception
    assert isinstance(error, PluginError)
    assert str(error) == f"the command {name!r} does not load: {reason}"


def test_a_name_is_its_first_owner_s(install: Install) -> None:
    """gradest's, then that of the distribution whose name comes first."""
    module = {"acme_first.py": "def run(arguments, prog_name): print('first')"}
    install("acme-first", {"list": "acme_first:run", "serve": "acme_first:run", "own": "acme_first:run"}, module)
    install(
        "acme-second", {"own": "acme_second:run"}, {"acme_second.py": "def run(arguments, prog_name): print('second')"}
    )
    taken = [
        "acme-first 1.0 (list): gradest has a command 'list' already",
        "acme-first 1.0 (serve): gradest has a command 'serve' already",
        "acme-second 1.0 (own): acme-first has a command 'own' already",
    ]
    failures = list_failures(COMMANDS)
    assert [str(failure) for failure in failures] == taken
    assert {failure.phase for failure in failures} == {"duplicate"}
    shown = show_help()
    assert all(f"Not available: {line}" in shown for line in taken)
    assert invoke(["own"]).stdout == "first\n"
    assert "Show what is registered" in invoke(["list", "--help"]).stdout
    assert "Serve the registry" in invoke(["serve", "--help"]).stdout


def test_the_restriction_on_plugins_holds_for_commands(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme-kept", {"kept": "acme_kept:run"}, {"acme_kept.py": ""})
    install("acme-left-out", {"left-out": "acme_left_out:run"}, {"acme_left_out.py": ""})
    monkeypatch.setenv("GRADEST_LOAD_PLUGINS", "acme.kept")
    assert [command.entry_point.name for command in find_commands(COMMANDS)] == [*BUILT_IN, "kept"]
    script = "import gradest; print(gradest.registry.failures)"
    environment = {**os.environ, "PYTHONPATH": sys.path[0]}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "()\n", "a distribution that brings commands alone is a plugin too"


def test_an_error_of_a_command_is_one_line(install: Install, tmp_path: Path) -> None:
    source = """
        from gradest.errors import InvalidInput

        def run(arguments, prog_name):
            raise InvalidInput("no such\\ndata")
    """
    install("acme-data", {"data": "acme_data:run"}, {"acme_data.py": source})
    ran = subprocess.run(
        [sys.executable, "-m", "gradest", "data"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "gradest: no such data\n")


def test_a_summary_is_read_where_there_is_one(install: Install) -> None:
    source = '''
        """The module.

        More.
        """
        from pathlib import Path as path

        class Tool:
            """A class.
            More."""

        bare = Tool()
        shown, twice = Tool(help="An app."), 2
        app = twin = Tool(name="x", help="Another app.")

        def silent(): pass
    '''
    install("acme-summary", {}, {"acme_summary.py": source, "acme_namespace/inner.py": "x = 1"})
    summaries = {name: read_summary("acme_summary", name) for name in ("Tool", "bare", "app", "twin", "silent", "path")}
    assert summaries == {
        "Tool": "A class.", "bare": "The module.", "app": "Another app.", "twin": "Another app.", "silent": "The module.",
        "path": "The module.",
    }  # fmt: skip
    assert read_summary("acme_namespace.inner", "x") == ""
    assert read_summary("math", "pi") == ""
    with pytest.raises(ModuleNotFoundError, match=r"acme_summary\.inner"):
        read_summary("acme_summary.inner", "x")
