"""Commands with --url: a service answers as this process does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.results import Run


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
