"""The demo: what its scenes say is true, and what it prints and writes is short and complete."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import gradest
from gradest_experiments.demo import run as demo
from gradest_experiments.demo.scenes import Bar, one_unit, private_loss, skipped_work, three_estimators
from gradest_experiments.engine.data import load

pytest.importorskip("vl_convert")
pytest.importorskip("sklearn")


@pytest.fixture
def local() -> SimpleNamespace:
    """Return what a client computes, computed in this process."""
    return SimpleNamespace(compare=gradest.compare, forward=_forward, backward=_backward)


def _forward(neuron, spec, a, seed):
    draw, _ = gradest.ask(neuron, gradest.estimator(spec), a, seed=seed)
    return draw


def _backward(neuron, spec, a, draw, loss):
    gradient, _ = gradest.tell(gradest.estimator(spec), draw, gradest.Feedback(loss), {})
    return SimpleNamespace(gradient=gradient)


def numbers(scene, name):
    """The numbers in a column of the scene's table."""
    return [float(re.match(r"-?[\d.]+", row[scene.head.index(name)])[0]) for row in scene.rows]


def test_the_samples_of_a_unit_jump_and_their_mean_does_not():
    scene = one_unit(seed=0)
    a = torch.tensor(numbers(scene, "a"), dtype=torch.float64)
    p = torch.sigmoid(a)
    assert numbers(scene, "mean loss") == pytest.approx((0.04 + 0.6 * p).tolist(), abs=6e-4)
    assert numbers(scene, "its slope") == pytest.approx((0.6 * p * (1 - p)).tolist(), abs=6e-4)
    assert numbers(scene, "slope of the samples' loss") == [0] * len(a)
    on = [row[scene.head.index("samples")].count("1") for row in scene.rows]
    assert on == sorted(on)  # with the same noise, a larger a switches units on and none off
    assert on[0] < on[-1]


def test_what_is_said_of_the_three_estimators_is_so(local):
    """With 5,000 draws the mean of an unbiased one is off by its noise / 71, and twice that has a false-alarm rate below 1e-3."""
    scene = three_estimators(local, seed=0)
    assert [row[:2] for row in scene.rows] == [
        ["straight_through", "biased"],
        ["reinforce", "unbiased"],
        ["reinforce_centered", "unbiased"],
    ]
    noise, error = numbers(scene, "noise of a draw"), numbers(scene, "error of the mean")
    assert noise[0] < noise[2] < noise[1]
    assert all(error[i] < 2 * noise[i] / 5000**0.5 for i in (1, 2))
    assert error[0] > 8 * noise[0] / 5000**0.5
    times = [float(x) for x in re.findall(r"([\d.]+) times less", " ".join(scene.text))]
    assert times == pytest.approx([noise[1] / noise[0], noise[1] / noise[2]], abs=0.51)


def test_a_private_loss_falls(local):
    scene = private_loss(local, load("digits").train, seed=0, steps=60)
    nats = numbers(scene, "nats a digit")
    assert nats[-1] < 0.8 * nats[0]
    assert scene.digits.original.shape == scene.digits.shown.shape == (10, 64)
    wrong = ((scene.digits.shown > 0.5) != (scene.digits.original > 0.5)).float().mean()
    assert wrong < 0.2  # of the pixels; the average digit has 0.24


def test_gates_stay_closed():
    threads = torch.get_num_threads()
    scene = skipped_work(seed=0, epochs=2, size=(20, 30))
    assert numbers(scene, "experts that work")[2] == 100
    assert all(share < 25 for share in numbers(scene, "experts that work")[:2])
    assert torch.get_num_threads() == threads


def test_bars_have_the_same_length_in_every_encoding():
    assert demo._draw_bar(Bar(0.0), "#", ".") == "." * demo._BAR
    assert demo._draw_bar(Bar(1.0), "#", ".") == "#" * demo._BAR
    assert demo._draw_bar(Bar(0.5), "#", ".").count("#") == demo._BAR / 2


@pytest.mark.deep
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_command_tells_a_short_story_and_writes_a_page(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    command = [sys.executable, "-m", "gradest", "demo", "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, encoding=encoding, check=True, timeout=600)
    lines = ran.stdout.splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 100
    assert sum(bool(re.match(r"\d\. ", line)) for line in lines) == 4
    assert ("█" in ran.stdout) == (encoding == "utf-8")
    page = (tmp_path / demo.PAGE).read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert not re.search(r"(src|href)=\"(?!#)|https?://|@import", page.partition("<body>")[2])
