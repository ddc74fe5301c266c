"""The command line as a whole: its help, its version, its errors, and the encodings of its output."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command

import gradest_experiments.cli
from gradest.cli import app, display, main
from gradest.cli.commands import COMMANDS
from tests.cli.results import Run

HELPED = [["reproduce", name] for name in ("toys", "binary-vae", "block-gated", "experts", "bengio2013")]


def test_help_needs_no_torch() -> None:
    script = "import atexit, sys; atexit.register(lambda: print({'torch', 'numba'} & set(sys.modules))); import gradest.__main__"
    shown = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "set()" in shown
    commands = (
        "list",
        "describe",
        "sample",
        "compare",
        "recommend",
        "certify",
        "docs",
        "new-plugin",
        "check",
        "train",
        "reproduce",
        "serve",
        "demo",
    )
    for command in commands:
        assert f" {command} " in shown


def test_no_arguments_show_the_help_and_are_a_mistake(run: Run) -> None:
    ran = run()
    assert ran.code == 2
    assert "Usage: gradest" in ran.out + ran.err


def test_version(run: Run) -> None:
    assert run("--version").out == f"{importlib.metadata.version('gradest')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["lst"],
        ["list", "neuron"],
        ["sample", "bernoulli"],
        ["sample", "bernoulli", "--a", "1", "--samples", "x"],
        ["train", "--nope"],
        ["reproduce", "toy"],
        ["reproduce", "toys", "--seed", "-1"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: gradest" in ran.err


FAILURES = [
    (["sample", "bernulli", "--a", "1"], "no neuron is named 'bernulli'. Did you mean bernoulli?"),
    (["sample", "bernoulli", "--a", "1", "--option", "std=2"], "bernoulli: std: Extra inputs are not permitted"),
    (["sample", "bernoulli", "--a", "1", "--option", "std"], "an option must have the form key=value, not 'std'"),
    (["sample", "bernoulli", "--a", "nan"], "pre-activations must be finite, but a[0] is nan"),
    (["sample", "bernoulli", "--a", "1,x"], "'1,x' is neither numbers, such as \"0.3,-1,2\", nor a nested JSON array"),
    (["sample", "bernoulli", "--a", "[1, 2"], "'[1, 2' is not a JSON array of numbers"),
    (["sample", "bernoulli", "--a", "[[1, 2], [3]]"], "--a: give numbers, or a rectangular nested array of numbers"),
    (["sample", "bernoulli", "--a", '["x"]'], "--a: give numbers, or a rectangular nested array of numbers"),
    (["sample", "bernoulli", "--a", "[null]"], "--a: give numbers, or a rectangular nested array of numbers"),
    (["sample", "bernoulli", "--a", "-"], "standard input is not a JSON array of numbers"),
    (["sample", "bernoulli", "--a", "1", "--samples", "-1"], "samples must be an integer of at least 0"),
    (["sample", "bernoulli", "--a", "1", "--seed", "-1"], "a seed must be an integer with 0 <= seed < 2**53"),
    (["compare", "--a", "1", "--draws", "0"], "draws must be an integer of at least 1"),
    (["compare", "--a", "1", "--estimator", "pathwise"], "pathwise does not fit bernoulli: it needs a neuron that is"),
    (["compare", "--a", "1", "--estimator", "{rloo}"], "'{rloo}' is not JSON"),
    (["compare", "--a", "1", "--objective", "cross_entropy"], "cross_entropy: weight: Field required"),
    (["compare", "--a", "1", "--plot", "x.gif"], "--plot x.gif: the name of a chart must end in one of .html"),
    (["train", "--epochs", "0", "--learning-rate", "x"], "than or equal to 1; --learning-rate: Input should be"),
    (["train", "--gaters", "--neuron", "bernoulli"], "--gaters has its own neurons and estimators: omit --neuron"),
    (["train", "--estimator", "rloo:samples=2.5"], "rloo: samples: Input should be a valid integer"),
    (["train", "--resume", "--epochs", "1"], "resume needs the folder of the run"),
    (["serve", "--port", "x"], "--port: Input should be a valid integer"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "reason"), FAILURES, ids=[" ".join(arguments) for arguments, _ in FAILURES])
def test_an_error_is_one_line_on_standard_error(run: Run, arguments: list[str], reason: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("gradest: ")
    assert reason in ran.err
    assert ran.err.count("\n") == 1


def test_an_error_in_a_process_of_its_own_has_no_traceback() -> None:
    ran = subprocess.run([sys.executable, "-m", "gradest", "sample", "x", "--a", "1"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("gradest: no neuron is named 'x'. Known: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), *HELPED], ids=" ".join)
def test_the_help_shows_every_text_whole(run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Text in square brackets would be lost, if it were taken for markup."""
    monkeypatch.setenv("COLUMNS", "1000")
    command: Any = get_command(gradest_experiments.cli.reproduce if words[0] == "reproduce" else app)
    options = command.commands[words[-1]].params
    shown = " ".join(run(*words, "--help").out.split())
    assert options
    for option in options:
        assert option.help in shown
        if isinstance(option.show_default, str):
            assert f"[default: ({option.show_default})]" in shown


def test_a_default_that_depends_on_another_option_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert "The epochs of each run. [default: (40; with --quick 2)]" in " ".join(
        run("reproduce", "block-gated", "--help").out.split()
    )


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("latin-1", ["list", "neurons"]),
        ("cp1252", ["describe", "bernoulli"]),
        ("ascii", ["list", "estimators", "--markdown"]),
    ],
)
def test_every_encoding_of_the_output_will_do(monkeypatch: pytest.MonkeyPatch, encoding: str, words: list[str]) -> None:
    """Docstrings have σ and summaries é; what the encoding lacks is printed as one plain character, so that columns align."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["gradest", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.flush()
    assert not ended.value.code
    text = printed.getvalue().decode(encoding)
    assert (
        "Yin, Land, Haviv, Pe'er, Tavare 2022" if encoding == "ascii" else "binary unit, 1 with probability ?(a)"
    ) in text
    if words == ["list", "neurons"]:
        assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_table_in_a_narrow_terminal_leaves_columns_out(capsys, monkeypatch):
    def shown(width, **options):
        monkeypatch.setattr(display, "_WIDTH", width)
        display.show_rows(["name", "value", "seconds"], [["an estimator", 1.25, 3600]], "a title", "Some.", **options)
        return capsys.readouterr().out

    assert "seconds" in shown(60, always=2)
    assert "Left out" not in shown(60, always=2)
    for width in (30, 10):  # any terminal gets the first two
        assert "value" in " ".join(shown(30, always=2).split())
        assert "3600" not in shown(width, always=2)
        assert "Left out, as the terminal is narrow: seconds." in " ".join(shown(width, always=2).split())
    assert "3600" in shown(30)
