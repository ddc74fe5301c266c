"""The command line: what it prints for scripts and for people, and how it fails."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.main import get_command

import gradest
import gradest_experiments.cli
from gradest.analysis.certificates import Certificate, certify, from_json, load_certificates, options_of
from gradest.analysis.comparison import comparable_estimators
from gradest.cli import app, main
from gradest.cli.arguments import read_numbers, read_options, read_spec
from gradest.cli.commands import COMMANDS
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.discovery.loading import PluginFailure
from gradest.errors import InvalidInput, InvalidOptions

HELPED = [["reproduce", name] for name in ("toys", "binary-vae", "block-gated", "experts", "bengio2013")]
KINDS = ("neurons", "estimators", "objectives")


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be strict JSON and nothing else."""

        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is no JSON")

        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=refuse)


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["gradest", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        if isinstance(ended.value.code, str):  # what the interpreter prints, with exit code 1
            return Ran(1, out, err + ended.value.code + "\n")
        return Ran(ended.value.code or 0, out, err)

    return command


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


def test_list_json_holds_all_that_is_registered(run: Run) -> None:
    found = run("list", "--json").json
    assert list(found) == [*KINDS, "plugins", "failures", "faults"]
    for kind in KINDS:
        assert [entry["name"] for entry in found[kind]] == list(getattr(gradest.registry, kind))
    assert [plugin["distribution"] for plugin in found["plugins"]] == [p.distribution for p in gradest.registry.plugins]


@pytest.mark.parametrize("kind", [*KINDS, "plugins"])
def test_list_json_of_one_kind_is_that_kind_and_the_failures(run: Run, kind: str) -> None:
    assert list(run("list", kind, "--json").json) == [kind, "failures", "faults"]


def test_list_shows_every_name(run: Run) -> None:
    shown = run("list").out
    for kind in KINDS:
        assert all(name in shown for name in getattr(gradest.registry, kind))
    assert "did not load" not in shown


def test_list_shows_what_computes_each_neuron(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("list", "--kernels", "--json").json
    assert found["devices"][0] == {"device": "cpu", "kernels": "cpu"}
    on_cpu = {row["neuron"]: (row["forward"], row["backward"]) for row in found["kernels"] if row["device"] == "cpu"}
    assert list(on_cpu) == list(gradest.registry.neurons)
    assert on_cpu["bernoulli"] == on_cpu["noisy_rectifier"] == ("fused", "fused")
    assert on_cpu["categorical"] == ("fused", "torch")
    assert on_cpu["gaussian"] == ("fused", "torch")
    assert on_cpu["poisson"] == ("fused", "torch")
    assert on_cpu["gumbel_softmax"] == on_cpu["noisy_sigmoid"] == ("fused", "fused")
    assert on_cpu["heaviside"] == ("fused", None)
    assert {name: forward for name, (forward, _) in on_cpu.items() if forward != "fused"} == {
        "argmax": "torch",
        "correlated_bernoulli": "noise fused",
        "correlated_binary_concrete": "noise fused",
        "diagonal_gaussian": "noise fused",
        "invertible_gaussian": "noise fused",
        "logistic_normal": "noise fused",
        "noisy_top_k": "noise fused",
        "plackett_luce": "noise fused",
        "sign": "torch",
        "stochastic_rounding": "noise fused",
        "tempered_binary_concrete": "noise fused",
        "tempered_gumbel_softmax": "noise fused",
    }
    monkeypatch.setenv("GRADEST_KERNELS", "reference")
    found = run("list", "--kernels", "--json").json
    assert found["devices"][0] == {"device": "cpu", "kernels": "reference, for GRADEST_KERNELS=reference"}
    assert {(row["forward"], row["backward"]) for row in found["kernels"]} == {("torch", "torch"), ("torch", None)}
    assert "reference, for GRADEST_KERNELS=reference" in run("list", "--kernels").out


def test_list_shows_plugins_that_did_not_load(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = PluginFailure("acme", "1.0", "broken", "import", "ImportError: no [module]")
    monkeypatch.setattr(type(gradest.registry), "failures", (failure,))
    shown = run("list", "neurons").out
    assert "plugins that did not load" in shown
    assert all(part in shown for part in ("acme", "1.0", "broken", "import", "ImportError: no [module]"))
    assert run("list", "neurons", "--json").json["failures"] == [
        {"distribution": "acme", "version": "1.0", "entry_point": "broken", "phase": "import", "error": failure.error}
    ]


@pytest.mark.parametrize(
    ("kind", "step"),
    [*((kind, 20) for kind in KINDS), *(pytest.param(kind, 1, marks=pytest.mark.deep) for kind in KINDS)],
)
def test_describe_every_plugin(run: Run, kind: str, step: int) -> None:
    """Every twentieth of them in `make test`."""
    for name, cls in list(getattr(gradest.registry, kind).items())[::step]:
        found = run("describe", name, "--kind", kind[:-1], "--json").json
        assert (found["kind"], found["name"], found["summary"]) == (kind[:-1], name, cls.summary)
        options = found["options"]
        python_only = options.get("x-python-only", {})
        assert [*options["properties"]] == [option for option in cls.model_fields if option not in python_only]
        assert {*options["properties"], *python_only} == cls.model_fields.keys()
        shown = run("describe", name, "--kind", kind[:-1]).out
        assert (cls.__doc__ or "").splitlines()[0] in shown
        assert all(option in shown for option in cls.model_fields)


def test_describe_tells_of_an_estimator_what_it_needs_and_costs(run: Run) -> None:
    found = run("describe", "enumeration", "--json").json
    assert found["needs"] == ["loss"]
    assert found["bias"]["bernoulli"] == "none"
    assert found["evaluations"]["bernoulli"] == {"1": 2, "2": 4, "4": 16, "8": 256, "16": 65536, "32": None}
    assert "cross_entropy" not in found["neurons"]


def test_describe_an_unknown_name(run: Run) -> None:
    assert run("describe", "bernulli") == Ran(
        1, "", "gradest: no plugin is named 'bernulli'. Did you mean bernoulli?\n"
    )
    assert (
        "no objective is named 'bernoulli'. Known: cross_entropy"
        in run("describe", "bernoulli", "--kind", "objective").err
    )


def test_describe_a_name_of_two_kinds(run: Run) -> None:
    class Namesake(MonteCarlo):
        """A namesake."""

        name, summary, needs = "bernoulli", "an estimator", frozenset({"loss"})

        def bias(self, neuron: gradest.Neuron) -> Bias:
            return Bias.BIASED

        def backward(self, draw: Any, feedback: Any, state: Any) -> Any:
            return draw.a, state

    gradest.registry.register(Namesake)
    try:
        assert run("describe", "bernoulli").err == (
            "gradest: 'bernoulli' is the name of neuron and estimator: choose one with --kind\n"
        )
        assert run("describe", "bernoulli", "--kind", "estimator", "--json").json["summary"] == "an estimator"
    finally:
        gradest.registry.unregister(Namesake)


def test_sample_is_the_library_s(run: Run) -> None:
    found = run("sample", "bernoulli", "--a", "0.3,-1,2", "--samples", "5", "--seed", "7", "--json").json
    assert found["h"] == gradest.sample("bernoulli", torch.tensor([0.3, -1.0, 2.0]), samples=5, seed=7).tolist()
    assert (found["seed"], found["neuron"]) == (7, {"name": "bernoulli"})


def test_sample_reports_a_fresh_seed_that_gives_the_same_again(run: Run) -> None:
    first = run("sample", "noisy_rectifier", "--a", "1,2", "--json").json
    again = run("sample", "noisy_rectifier", "--a", "1,2", "--json", "--seed", str(first["seed"])).json
    assert again == first
    assert run("sample", "noisy_rectifier", "--a", "1,2", "--json").json["seed"] != first["seed"]


def test_sample_takes_options_and_a_type(run: Run) -> None:
    arguments = ["--a", "[[0.3, -1], [2, 1]]", "--seed", "1", "--dtype", "float64", "--json"]
    first = run("sample", "noisy_rectifier", "--option", "distribution=gaussian", "--option", "std=2", *arguments).json
    assert first["neuron"] == {"name": "noisy_rectifier", "distribution": "gaussian", "std": 2}
    assert run("sample", "noisy_rectifier:distribution=gaussian,std=2", *arguments).json == first
    neuron = gradest.neuron("noisy_rectifier", distribution="gaussian", std=2)
    a = torch.tensor([[0.3, -1], [2, 1]], dtype=torch.float64)
    assert first["h"] == gradest.sample(neuron, a, seed=1).tolist()


def test_sample_reads_a_file_and_standard_input(run: Run, tmp_path: Path) -> None:
    wanted = run("sample", "bernoulli", "--a", "1,2", "--seed", "1", "--json").json
    (tmp_path / "a.json").write_text("[1, 2]")
    assert run("sample", "bernoulli", "--a", str(tmp_path / "a.json"), "--seed", "1", "--json").json == wanted
    assert run("sample", "bernoulli", "--a", "-", "--seed", "1", "--json", stdin="[1, 2]").json == wanted


def test_sample_shows_a_row_a_unit(run: Run) -> None:
    shown = run("sample", "bernoulli", "--a", "[[0, 1, 2]]", "--samples", "40", "--seed", "7").out
    assert all(part in shown for part in ("E[h]", "P(h > 0)", "0, 2", "0.8808", "seed: 7", "--json gives them all"))


@pytest.mark.parametrize(("a", "samples"), [("[]", 3), ("[[], []]", 2), ("1", 0)])
def test_sample_of_nothing(run: Run, a: str, samples: int) -> None:
    shape = torch.tensor(run("sample", "bernoulli", "--a", a, "--samples", str(samples), "--json").json["h"]).shape
    assert shape.numel() == 0
    assert run("sample", "bernoulli", "--a", a, "--samples", str(samples)).code == 0


def test_compare_is_the_library_s(run: Run) -> None:
    found = run(
        *[
            "compare",
            "--a",
            "0.3,-1,2",
            "--draws",
            "50",
            "--seed",
            "3",
            "--objective",
            "quadratic:target=0.4",
            "--json",
        ],
        *["--estimator", "rloo:samples=4", "--estimator", '{"name": "straight_through", "derivative": "sigmoid"}'],
    ).json
    wanted = gradest.compare(
        gradest.objective("quadratic", target=0.4),
        torch.tensor([0.3, -1.0, 2.0]),
        estimators=[{"name": "rloo", "samples": 4}, {"name": "straight_through", "derivative": "sigmoid"}],
        draws=50,
        seed=3,
    ).to_dict()
    for row in [*found["rows"], *wanted["rows"]]:
        del row["seconds"]
    assert found == wanted


def test_compare_by_default_takes_all_that_fit_and_is_strict_json_though_some_numbers_are_infinite(run: Run) -> None:
    """On a neuron that fewer estimators fit than the default, because those that learn are warmed up."""
    found = run("compare", "--neuron", "binomial", "--a", "0.5", "--draws", "5", "--seed", "3", "--json").json
    rows = {row["estimator"]: row for row in found["rows"]}
    assert list(rows) == [estimator.name for estimator in comparable_estimators(gradest.neuron("binomial"))]
    assert rows["enumeration"]["snr"] == "Infinity"


def test_compare_shows_a_table(run: Run) -> None:
    ran = run("compare", "--a", "0.5,1", "--draws", "5", "--seed", "3", "--estimator", "rloo")
    parts = ("rloo", "bias/SE", "claimed bias", "draws: 5", "seed: 3", "the exact gradient is known")
    assert all(part in ran.out for part in parts)
    assert ran.err == "", "no progress bar where standard error is no terminal"


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_compare_saves_a_chart(run: Run, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("altair")
    chart = tmp_path / f"chart.{suffix}"
    assert run("compare", "--a", "0.5", "--draws", "5", "--estimator", "rloo", "--plot", str(chart)).code == 0
    assert "rloo" in chart.read_text()


def test_progress_bars_are_shown_on_a_terminal() -> None:
    """Under a terminal of our own, on standard error alone."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = ["compare", "--a", "0.5", "--draws", "2000", "--estimator", "reinforce", "--estimator", "rloo", "--json"]
    running = subprocess.Popen(
        [sys.executable, "-m", "gradest", *command], stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # how a pseudo-terminal says that the other side is closed
            break
        if not read:
            break
        shown += read
    os.close(ours)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"reinforce" in shown
    assert b"rloo" in shown
    assert len(json.loads(out)["rows"]) == 2


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


def test_a_chart_that_cannot_be_written_loses_no_results(run: Run, tmp_path: Path) -> None:
    ran = run(
        "compare",
        "--a",
        "0.5",
        "--draws",
        "5",
        "--estimator",
        "rloo",
        "--plot",
        str(tmp_path / "no/where.svg"),
        "--json",
    )
    assert ran.code == 1
    assert json.loads(ran.out)["rows"]
    assert "No such file or directory" in ran.err


def test_an_error_in_a_process_of_its_own_has_no_traceback() -> None:
    ran = subprocess.run([sys.executable, "-m", "gradest", "sample", "x", "--a", "1"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("gradest: no neuron is named 'x'. Known: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", [1]),
        ("-1e-3,.5", [-0.001, 0.5]),
        (" 1 , 2 ", [1, 2]),
        ("[[1], [2]]", [[1], [2]]),
        (" [1]", [1]),
        ("[]", []),
    ],
)
def test_read_numbers(text: str, numbers: list[Any]) -> None:
    assert read_numbers(text) == numbers


def test_read_numbers_of_a_file_with_a_lone_number(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("3")
    assert read_numbers(str(tmp_path / "a")) == [3]
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="is neither numbers"):
        read_numbers(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("rloo", {"name": "rloo"}),
        (" rloo : samples=4", {"name": "rloo", "samples": 4}),
        ("x:a=1,b=text,c=[1,2],d={\"e\": [3, 4]},f=null,g=1.5e-3,h=true", {
            "name": "x", "a": 1, "b": "text", "c": [1, 2], "d": {"e": [3, 4]}, "f": None, "g": 0.0015, "h": True,
        }),
        ('{"name": "rloo", "samples": 4}', {"name": "rloo", "samples": 4}),
        ("x:a=b=c", {"name": "x", "a": "b=c"}),
        ("x:", {"name": "x"}),
    ],
)  # fmt: skip
def test_read_spec(text: str, spec: dict[str, Any]) -> None:
    assert read_spec(text) == spec


@pytest.mark.parametrize("text", ["x:a", "x:=1", "{", "{]"])
def test_read_spec_refuses_what_is_none(text: str) -> None:
    with pytest.raises(InvalidOptions):
        gradest.estimator(read_spec(text))


def test_read_options_takes_the_last_of_two() -> None:
    assert read_options(["a=1", "a=2"]) == {"a": 2}


def test_train_has_a_flag_for_every_setting_with_its_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradest_experiments.gated.settings import GatedSettings

    monkeypatch.setenv("COLUMNS", "250")
    shown = run("train", "--help").out
    assert "Usage: gradest train" in shown
    for name, field in GatedSettings.model_fields.items():
        (line,) = (line for line in shown.splitlines() if f" --{name.replace('_', '-')} " in line)
        assert str(field.description) in line
        assert field.default is None or f"({field.default})" in line
    for flag in ("--out", "--resume", "--gaters", "--json"):
        assert f" {flag} " in shown
    assert "digits|mnist" in shown


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


def test_serve_has_a_flag_for_every_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradest_service.settings import Settings

    monkeypatch.setenv("COLUMNS", "250")
    shown = run("serve", "--help").out
    assert all(f" --{name.replace('_', '-')} " in shown for name in Settings.model_fields)


def test_train_trains_and_resumes(run: Run, tmp_path: Path) -> None:
    small = [
        "train",
        "--epochs",
        "1",
        "--gates",
        "20",
        "--hidden",
        "8",
        "--seed",
        "3",
        "--json",
        "--out",
        str(tmp_path),
    ]
    small += ["--neuron", '{"name": "bernoulli"}', "--estimator", "straight_through:derivative=sigmoid"]
    found = run(*small).json
    assert found["settings"]["estimator"] == {"name": "straight_through", "derivative": "sigmoid"}
    assert (found["settings"]["gates"], found["settings"]["seed"], len(found["epochs"])) == (20, 3, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "metrics.jsonl", "checkpoint.pt", "model.pt"}
    again = run(*small)
    assert (again.code, again.out) == (1, "")
    assert "holds a run already: resume it" in again.err
    assert run(*small, "--resume").json == found


@pytest.mark.deep
def test_train_gaters_trains_all_of_them(run: Run) -> None:
    from gradest_experiments.gated.gaters import GATERS

    small = ["train", "--gaters", "--epochs", "1", "--gates", "20", "--hidden", "8"]
    found = run(*small, "--json").json
    assert [result["settings"]["gates"] for result in found] == [20] * len(GATERS)
    shown = run(*small).out
    assert "stochastic_times_smooth + held_noise" in shown


def test_reproduce_toys_has_its_options_and_writes_its_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradest_experiments.toys.probability import ProbabilityPart

    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    monkeypatch.setattr(ProbabilityPart, "quick", {"units": 3, "places": 3, "draws": 20})
    small = ["reproduce", "toys", "--quick", "--part", "probability", "--seed", "4", "--out", str(tmp_path)]
    ran = run(*small)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'report.md'}\n")
    found = json.loads((tmp_path / "probability" / "run.json").read_text())["settings"]
    assert (found["units"], found["draws"], found["seed"]) == (3, 20, 4)
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json", ".jsonl", ".svg", ".png", ".md"}
    assert "seed 4 (now 5)" in run(*small, "--seed", "5").err
    assert "reproduce toys" in run("reproduce", "toys", "--help").out
    ran = run("reproduce", "toys", "--part", "probabilty", "--out", str(tmp_path / "other"))
    assert (ran.code, ran.out) == (1, "")
    assert "no part is named 'probabilty'; there are: quadratic, learning, probability, polynomial, subsets" in ran.err
    assert not (tmp_path / "other").exists()


def test_serve_serves_and_stops() -> None:
    command = [sys.executable, "-m", "gradest", "serve", "--port", "0", "--max-samples", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        url = serving.stdout.readline().rpartition(" ")[2].strip()
        try:
            with gradest.Client(url) as client:
                h = client.sample("bernoulli", torch.tensor([0.3]), samples=3, seed=1)
            assert torch.equal(h, gradest.sample("bernoulli", torch.tensor([0.3]), samples=3, seed=1))
        finally:
            serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0


def test_recommend_is_the_library_s(run: Run) -> None:
    found = run("recommend", "--bring", "loss,grad", "--evaluations", "4", "--unbiased", "--json").json
    wanted = gradest.recommend("bernoulli", ["loss", "grad"], 4, unbiased=True)
    assert found == json.loads(json.dumps(wanted.to_dict()))
    measured = run("recommend", "--objective", "quadratic:target=0.4", "--a", "0.5,1", "--draws", "50", "--seed", "1")
    assert "measured on the objective given" in measured.out
    assert "not for this case" in measured.out


def test_list_markdown_is_of_estimators(run: Run) -> None:
    out = run("list", "estimators", "--markdown").out
    assert all(f"| {name} |" in out for name in gradest.registry.estimators)
    assert run("list", "--markdown").code == 1


def test_describe_shows_what_was_measured(run: Run) -> None:
    out = run("describe", "straight_through").out
    assert "bias, linear" in out
    assert "± 0 %" in out


@pytest.fixture
def certified_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of its own with one registered estimator, enumeration under another name, on one neuron."""
    package = tmp_path / "certified"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from gradest.discovery.registry import registry\n"
        "class Certified(registry.estimators['enumeration']):\n"
        "    name = 'certified'\n"
        "    def accepts(self, neuron):\n"
        "        return neuron.name == 'bernoulli'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = importlib.import_module("certified").Certified
    gradest.registry.register(plugin)
    yield package
    gradest.registry.unregister(plugin)
    del sys.modules["certified"]


def test_certify_writes_what_is_missing_or_stale(
    run: Run, certified_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured once; each further time that it would be, it is what was found then."""
    measured: list[Certificate] = []

    def once(*arguments: Any) -> Certificate:
        if not measured:
            measured.append(certify(*arguments))
        return measured[0]

    monkeypatch.setattr("gradest.cli.certifying.certify", once)
    arguments = ("certify", "--package", "certified", "--out", str(certified_package), "--json")
    path = certified_package / "certificates.json"
    (found,) = run(*arguments).json
    assert (found["estimator"], found["neuron"], found["claim"]) == ("certified", "bernoulli", "none")
    assert from_json(path.read_text())[0].faults == ()
    assert "### certified" in (certified_package / "certificates.md").read_text()
    marked = path.read_text().replace('"draws": 4096', '"draws": 4095')  # by which a record that is kept is known
    path.write_text(marked)
    assert run(*arguments).json[0]["records"][0]["draws"] == 4095
    path.write_text(marked.replace('"claim": "none"', '"claim": "biased"'))
    assert run(*arguments).json[0]["records"][0]["draws"] == 4096
    path.write_text(marked)
    assert run(*arguments, "certified").json[0]["records"][0]["draws"] == 4096
    path.write_text("what is this")
    assert run(*arguments).json[0]["records"][0]["draws"] == 4096


def test_certify_says_what_is_at_fault(run: Run, certified_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = gradest.registry.estimators["certified"]
    right = plugin.backward
    monkeypatch.setattr(plugin, "backward", lambda self, *rest: (-right(self, *rest)[0], {}))
    ended = run("certify", "--package", "certified", "--out", str(certified_package))
    assert ended.code == 1
    assert "certified on bernoulli: claims bias none, but on a linear loss" in ended.err


@pytest.fixture
def certified_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A single module with a neuron, as the README's, and an estimator, both with examples of options."""
    path = tmp_path / "one_file.py"
    path.write_text(
        "from pydantic import Field\n"
        "import gradest\n"
        "class Level(gradest.LogisticBinary):\n"
        "    name, summary, low, high = 'level', 'levels', 0.0, 1.0\n"
        "    examples = ({}, {'k': 3})\n"
        "    k: int = Field(1)\n"
        "    def active_probability(self, a):\n"
        "        return self.probability(a)\n"
        "class Tuned(gradest.registry.estimators['enumeration']):\n"
        "    name = 'tuned'\n"
        "    examples = ({}, {'k': 2})\n"
        "    k: int = Field(1)\n"
        "    def accepts(self, neuron):\n"
        "        return neuron.name == 'level'\n"
        "@gradest.hookimpl\n"
        "def gradest_neurons():\n"
        "    return [Level]\n"
        "@gradest.hookimpl\n"
        "def gradest_estimators():\n"
        "    return [Tuned]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = gradest.registry.register(importlib.import_module("one_file"))
    yield path
    gradest.registry.unregister(module)
    del sys.modules["one_file"]


def test_certify_takes_a_single_module_and_its_examples(
    run: Run, certified_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = set()

    def like_built_in(estimator: gradest.Estimator, neuron: gradest.Neuron, progress: object) -> Certificate:
        """Take the certificate of the built-in estimator on bernoulli."""
        measured.add((estimator.label(), neuron.label()))
        like = gradest.registry.estimators["enumeration" if estimator.name == "tuned" else estimator.name]
        (kept,) = (one for one in load_certificates(like) if one.neuron == "bernoulli")
        names = {"estimator": estimator.name, "neuron": neuron.name}
        return replace(kept, **names, options=options_of(estimator), neuron_options=options_of(neuron))

    monkeypatch.setattr("gradest.cli.certifying.certify", like_built_in)
    monkeypatch.setattr("gradest.cli.certifying.is_current", lambda *_: True)
    arguments = ("certify", "--package", "one_file", "--out", str(certified_module.parent))
    assert run(*arguments).code == 0
    on_level = set(gradest.registry.fitting(gradest.neuron("level"))) - {"tuned"}
    assert measured == {
        ("tuned", "level"),
        ("tuned(k=2)", "level"),
        ("tuned", "level(k=3)"),
        *product(on_level, ("level", "level(k=3)")),
    }
    kept = from_json((certified_module.parent / "one_file.certificates.json").read_text())
    assert {one.labels for one in kept} == measured
    assert "### tuned(k=2)" in (certified_module.parent / "certificates.md").read_text()
    tuned = gradest.registry.estimators["tuned"]
    assert {one.labels for one in load_certificates(tuned)} == {
        labels for labels in measured if labels[0].startswith("tuned")
    }
    errors = {row.label: row.error for row in gradest.recommend({"name": "level", "k": 3}).rows}
    assert errors["rloo"] is not None  # from a file that is not of rloo's package
    assert "level(k=3)" in run("describe", "rloo").out
    assert "level, with k=2" in run("describe", "tuned").out
    measured.clear()
    run(*arguments, "--no-examples")
    assert not measured
    kept = from_json((certified_module.parent / "one_file.certificates.json").read_text())
    assert {one.labels for one in kept} == {("tuned", "level"), *product(on_level, ("level",))}


def test_certify_refuses_what_it_does_not_know(run: Run, certified_package: Path) -> None:
    assert "has no registered estimator rlo" in run("certify", "rlo", "--package", "certified").err
    assert "the package 'nowhere' has no registered estimator or neuron" in run("certify", "--package", "nowhere").err


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    from gradest_service.app import running

    with running() as url:
        yield url


REMOTE = [
    ["list", "--json"],
    ["list", "neurons"],
    ["describe", "rloo", "--json"],
    ["describe", "bernoulli", "--kind", "neuron", "--json"],
    ["sample", "noisy_rectifier:std=2,distribution=gaussian", "--a", "[[3, -1]]", "--samples", "3", "--seed", "7", "--json"],
    ["sample", "bernoulli", "--a", "1,2", "--seed", "7", "--dtype", "float64", "--json"],
    ["compare", "--a", "0.3,-1", "--draws", "20", "--seed", "1", "--estimator", "rloo:samples=3", "--json"],
    ["recommend", "--neuron", "noisy_rectifier:std=2,distribution=gaussian", "--bring", "loss, grad", "--evaluations", "4",
     "--unbiased", "--json"],
    ["recommend", "--saturated", "--units", "3"],
    ["recommend", "--objective", "polynomial:power=3,target=0.4", "--a", "0.5,1", "--draws", "20", "--seed", "1",
     "--bring", "grad", "--evaluations", "4", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", REMOTE, ids=" ".join)
def test_a_service_answers_as_this_process_does(run: Run, service: str, arguments: list[str]) -> None:
    here, there = run(*arguments), run(*arguments, "--url", service)
    assert there.err == ""
    if "--json" not in arguments:
        assert there.out == here.out
        return
    found, wanted = there.json, here.json
    if arguments[0] == "compare":
        assert all(row.pop("seconds") >= 0 for row in [*found["rows"], *wanted["rows"]])
    assert found == wanted


def test_tables_of_a_service(run: Run, service: str) -> None:
    assert "reinforce, estimator: loss times score" in run("describe", "reinforce", "--url", service).out
    shown = run("sample", "bernoulli", "--a", "0,1", "--samples", "2", "--seed", "7", "--url", service).out
    assert "bernoulli, samples: 2, seed:" in shown
    assert "E[h]" not in shown  # the neuron may be unknown here
    assert "rloo" in run("compare", "--a", "0", "--draws", "5", "--estimator", "rloo", "--url", service).out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["sample", "bernouli", "--a", "1"], "404 Not Found: "),
        (["sample", '{"std": 1}', "--a", "1"], "422 "),
        (["describe", "bernulli"], "no plugin is named 'bernulli'. Did you mean bernoulli?"),
        (["compare", "--a", "1", "--estimator", "pathwise"], "pathwise does not fit bernoulli"),
        (["recommend", "--neuron", "bernouli"], "404 Not Found: "),
        (["recommend", "--a", "1"], "objective and a"),
        (["list", "estimators", "--markdown"], "without --url"),
    ],
)
def test_an_error_of_a_service_is_one_line_too(run: Run, service: str, arguments: list[str], reason: str) -> None:
    ran = run(*arguments, "--url", service)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert reason in ran.err


def test_each_command_takes_a_url_or_says_why_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that write a plugin, serve and show, which have nothing to ask."""
    monkeypatch.setenv("COLUMNS", "250")
    assert "Commands with --url ask a service; the others work on" in run("--help").out
    for command in ("list", "describe", "sample", "compare", "recommend"):
        assert " --url " in run(command, "--help").out
    for command in ("certify", "check", "train", "reproduce toys"):
        assert "There is no --url: " in run(*command.split(), "--help").out


def test_the_api_key_comes_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradest.client

    seen = []

    class Spy(gradest.client.Client):
        def __init__(self, url: str, *, api_key: str | None, start_timeout: float) -> None:
            seen.append(api_key)
            super().__init__(url, retries=0, start_timeout=start_timeout)

    monkeypatch.setattr(gradest.client, "Client", Spy)
    for key in ("hunter2", None):
        if key:
            monkeypatch.setenv("GRADEST_API_KEY", key)
        else:
            monkeypatch.delenv("GRADEST_API_KEY")
        for command in (["sample", "bernoulli", "--a", "1"], ["recommend"]):
            ran = run(*command, "--url", "http://127.0.0.1:1")
            assert ran.code == 1
            assert "Is the service running there?" in ran.err
            assert "hunter2" not in ran.err
    assert seen == ["hunter2", "hunter2", None, None]


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


@pytest.mark.deep
@pytest.mark.timeout(1500)
def test_warm_compiles_every_kernel(tmp_path):
    """Afterwards no estimator on any neuron, in float32 or float64, has anything compiled."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "GRADEST_KERNELS": "cpu"}
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "gradest", "warm", "--json"], env=env, check=True, capture_output=True
        ).stdout
    )
    assert found["folder"].startswith(str(tmp_path))
    program = """
import torch, gradest
from numba.core import event

class Seen(event.Listener):
    names = []
    def on_start(self, e):
        self.names.append(str(e.data["dispatcher"]))
    def on_end(self, e):
        pass

event.register("numba:compile", Seen())
for dtype in (torch.float32, torch.float64):
    for name in gradest.registry.neurons:
        neuron = gradest.neuron(name)
        a = torch.zeros(3, *(2,) * neuron.event_ndim, dtype=dtype, requires_grad=True)
        for estimator in gradest.registry.fitting(neuron).values():
            loss, _ = gradest.expect(lambda h: h.flatten(2).sum(-1), a, neuron, estimator, seed=gradest.Key(torch.arange(3)))
            loss.sum().backward()
            gradest.estimate(lambda h: h.flatten(2).sum(-1), a.detach(), neuron, estimator, draws=3)
assert not Seen.names, Seen.names
"""
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
