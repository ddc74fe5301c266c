from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from typer.testing import CliRunner

import gradest
from gradest.cli import app
from gradest.contract.law import configurations
from gradest.errors import GradestError, Incompatible, InvalidInput, InvalidOptions
from gradest.random import Key
from gradest_experiments.engine.folder import RunFolder, list_folders
from gradest_experiments.engine.images import Images, binarise, load_images
from gradest_experiments.vae import training
from gradest_experiments.vae.model import Vae, kl_to_uniform
from gradest_experiments.vae.run import list_runs, reproduce_binary_vae
from gradest_experiments.vae.settings import VaeSettings, choose_estimators, default_estimators
from gradest_experiments.vae.training import train_vae
from gradest_experiments.vae.variance import draw_gradients, measure_variance
from tests.experiments.tiny import InterruptedAt

TINY = {
    "latents": 3,
    "hidden": 4,
    "batch": 8,
    "steps": 13,
    "log_every": 4,
    "eval_every": 5,
    "variance_draws": 3,
    "test_samples": 4,
}


def tiny_images():
    """Return images of 12 pixels, of which one is always off and one always on."""
    generator = torch.Generator().manual_seed(0)
    train, valid, test = (torch.randint(0, 256, (n, 12), dtype=torch.uint8, generator=generator) for n in (30, 10, 6))
    for split in (train, valid, test):
        split[:, 0], split[:, 1] = 0, 255
    return Images(train, valid, test)


def tiny_vae(network="nonlinear", kl="sampled"):
    """Return a small autoencoder in float64, whose decoder is far from linear in h, and images."""
    torch.manual_seed(1)
    vae = Vae(torch.rand(12), network, latents=3, hidden=4, kl=kl).double()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2)
        for parameter in vae.encoder.parameters():
            parameter.add_(0.6 * torch.randn_like(parameter))
    return vae, (torch.rand(4, 12, dtype=torch.float64) < 0.4).double()


def exact_elbo(vae, x):
    """Return Σ_h q(h | x) (log p(x, h) - log q(h | x)), `[batch]`, by torch.distributions, and log p(x)."""
    a = vae.encode(x)
    neuron = gradest.neuron("bernoulli")
    points, _ = configurations(neuron, a.detach(), neuron.law(a.detach()), 0, 8)
    log_q = Bernoulli(logits=a).log_prob(points).sum(-1)
    log_joint = Bernoulli(logits=vae.decoder(2 * points - 1)).log_prob(x.expand(8, *x.shape)).sum(-1) - 3 * math.log(2)
    return (log_q.exp() * (log_joint - log_q)).sum(0), log_joint.logsumexp(0)


def learned_state(vae, x, estimator):
    state = None
    for step in range(30):
        _, state = vae.loss(x, vae.encode(x), estimator, Key(5).fold_in(step), state)
    return state


def metrics_of(folder):
    """Return the lines of metrics without the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in RunFolder.read(folder).rows()]


def run_of(estimator="disarm", **options):
    return VaeSettings.build(**{"estimator": {"name": estimator}, **TINY, **options})


CASES = [
    *((spec, "nonlinear", "sampled") for spec in default_estimators(2)),
    ({"name": "rloo", "samples": 3}, "linear", "sampled"),
    ({"name": "double_cv"}, "linear", "analytic"),
    ({"name": "rebar"}, "nonlinear", "analytic"),
    ({"name": "reinmax"}, "nonlinear", "analytic"),
]


@pytest.mark.parametrize(
    ("spec", "network", "kl"), CASES, ids=lambda value: value if isinstance(value, str) else value["name"]
)
def test_the_encoders_gradient_is_that_of_the_enumerated_elbo(spec, network, kl):
    """60 draws of 50 copies of 4 images, with a learned state: unbiased estimators are within 5 standard errors in all 87
    parameters (39 linear): false alarms 6e-6 each, of Student's t of 59 degrees. A wrong sign or a factor of two would be 15
    away at least; a biased estimator is seen to be.
    """
    vae, x = tiny_vae(network, kl)
    estimator = gradest.estimator(spec)
    parameters = list(vae.encoder.parameters())
    elbo, _ = exact_elbo(vae, x)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(-elbo.mean(), parameters)])
    many = x.repeat(50, 1)
    draws = [at for _, at in draw_gradients(vae, many, estimator, Key(0), learned_state(vae, many, estimator), 60)]
    found, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 60**0.5
    away = (found - exact).abs() / error.clamp(min=1e-12)
    assert float((exact.abs() / error.clamp(min=1e-12)).max()) > 30
    if estimator.bias(gradest.neuron("bernoulli")).unbiased:
        assert float(away.max()) < 5
    else:
        assert float(away.max()) > 8


@pytest.mark.parametrize("name", ["rloo", "rebar", "double_cv", "straight_through"])
def test_the_decoder_gets_the_gradient_of_its_samples(name):
    """The mean of 60 draws is the gradient of the enumerated ELBO within 5 standard errors, as above, in 91 parameters."""
    vae, x = tiny_vae()
    estimator, parameters, many = gradest.estimator(name), list(vae.decoder.parameters()), x.repeat(50, 1)
    elbo, _ = exact_elbo(vae, x)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(-elbo.mean(), parameters)])
    draws = []
    for draw in range(60):
        loss, _ = vae.loss(many, vae.encode(many), estimator, Key(draw))
        draws.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss.mean(), parameters)]))
    found, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 60**0.5
    assert float((exact.abs() / error).max()) > 30
    assert float(((found - exact).abs() / error).max()) < 5


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_straight_through_has_the_entropys_gradient_without_noise(kl):
    """If the decoder ignores h, the loss has only the entropy of q."""
    vae, x = tiny_vae(kl=kl)
    with torch.no_grad():
        vae.decoder[0].weight.zero_()
    a = vae.encode(x)
    (expected,) = torch.autograd.grad(kl_to_uniform(a).sum(), a, retain_graph=True)
    loss, _ = vae.loss(x, a, gradest.estimator("straight_through", derivative="sigmoid"), Key(0))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), a)[0], expected)


def test_the_divergence_is_that_of_torch():
    a = torch.tensor([[0.3, -2.0, 40.0], [0.0, -1e4, 7.0]])
    prior = Bernoulli(probs=torch.full((2, 3), 0.5, dtype=torch.float64))
    expected = kl_divergence(Bernoulli(logits=a.double().clamp(-30, 30)), prior).sum(-1)
    torch.testing.assert_close(kl_to_uniform(a), expected.float())


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_categorical_latents_have_the_enumerated_elbo(kl):
    """By the estimator that enumerates, the loss is -ELBO, here by torch.distributions, and so are its gradients."""
    torch.manual_seed(1)
    vae = Vae(torch.rand(12), "relu", latents=2, kl=kl, classes=3).double()
    x = torch.rand(4, 12, dtype=torch.float64)
    a = vae.encode(x)
    assert a.shape == (4, 2, 3)
    points = torch.cartesian_prod(torch.arange(3), torch.arange(3))[:, None].expand(-1, 4, -1)
    log_q = Categorical(logits=a).log_prob(points).sum(-1)
    decoded = vae.decoder(one_hot(points, 3).double().flatten(-2))
    log_joint = -binary_cross_entropy_with_logits(decoded, x.expand(9, -1, -1), reduction="none").sum(
        -1
    ) - 2 * math.log(3)
    elbo = (log_q.exp() * (log_joint - log_q)).sum(0)
    loss, _ = vae.loss(x, a, gradest.estimator("enumeration"), Key(0))
    torch.testing.assert_close(loss, -elbo)
    parameters = list(vae.parameters())
    wanted, found = (torch.autograd.grad(value.sum(), parameters, retain_graph=True) for value in (-elbo, loss))
    torch.testing.assert_close(found, wanted)
    bounds = vae.bound(x.repeat_interleave(4000, 0), Key(3), 1).reshape(4, 4000)
    assert bool(((bounds.mean(1) - elbo).abs() < 5 * bounds.std(1) / 4000**0.5).all())  # false alarms 6e-7


def test_bounds_are_between_the_elbo_and_the_log_likelihood():
    """Over 4000 copies the bound of 1 sample has the ELBO as its mean, and that of 2 is above it by 5 standard errors."""
    vae, x = tiny_vae()
    with torch.no_grad():
        elbo, evidence = exact_elbo(vae, x)
    many = x.repeat_interleave(4000, 0)
    one, two = (vae.bound(many, Key(3), samples).reshape(4, 4000) for samples in (1, 2))
    error = one.std(1) / 4000**0.5
    assert bool(((one.mean(1) - elbo).abs() < 5 * error).all())
    assert bool((two.mean(1) > elbo + 5 * error).all())
    torch.testing.assert_close(vae.elbo(many, Key(3)), one.flatten())
    found = vae.bound(x, Key(4), 20_000)
    torch.testing.assert_close(found, evidence, atol=0.05, rtol=0)
    assert bool((evidence - elbo > 0.2).any())


def test_training_starts_at_the_mean_image():
    images = tiny_images()
    vae = Vae(images.mean(), "nonlinear")
    assert [tuple(layer.weight.shape) for layer in vae.encoder[::2]] == [(200, 12), (200, 200), (200, 200)]
    assert [tuple(layer.weight.shape) for layer in vae.decoder[::2]] == [(200, 200), (200, 200), (12, 200)]
    assert {layer.negative_slope for layer in vae.encoder[1::2]} == {0.3}
    assert [len(Vae(images.mean(), "linear").get_submodule(name)) for name in ("encoder", "decoder")] == [1, 1]
    torch.testing.assert_close(vae.encode(images.mean()[None]), torch.zeros(1, 200))
    torch.testing.assert_close(vae.decoder[-1].bias.sigmoid(), images.mean().clamp(1e-3, 1 - 1e-3))


def test_binarised_pixels_have_the_mean_of_the_bytes():
    """The mean is met within 5 standard errors of 10,000 images; each chunk has the noise of its rows."""
    pixels = torch.tensor([[0, 1, 51, 128, 254, 255]], dtype=torch.uint8).expand(10_000, -1)
    x = binarise(pixels, Key(1))
    mean = pixels[0].double() / 255
    assert bool(((x.double().mean(0) - mean).abs() <= 5 * (mean * (1 - mean) / 10_000).sqrt()).all())
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(binarise(pixels[:4], Key(1, rows=torch.arange(7, 11))), x[7:11], rtol=0, atol=0)


def test_variance_is_that_of_the_draws():
    vae, x = tiny_vae()
    arguments = (vae, x, gradest.estimator("rloo"), Key(2), None, 7)
    at, parameters = (torch.stack(part) for part in zip(*draw_gradients(*arguments), strict=True))
    expected = {"parameters": float(parameters.var(0).mean()), "logits": float(at.var(0).mean())}
    assert measure_variance(*arguments) == pytest.approx(expected)
    assert measure_variance(vae, x, gradest.estimator("enumeration"), Key(2), None, 3)["logits"] < 1e-30


def test_a_run_writes_what_it_is_and_what_it_measured(tmp_path):
    run, images, steps = run_of(), tiny_images(), []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train_vae(run, images, tmp_path, steps.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert steps == list(range(14))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["experiment"] == "binary-vae"
    assert record["settings"] == run.model_dump()
    assert record["versions"]["torch"] == torch.__version__
    rows = RunFolder.read(tmp_path).rows()
    assert [(row["kind"], row["step"]) for row in rows] == [
        *((kind, 0) for kind in ("valid", "variance")),
        ("train", 4),
        *((kind, 5) for kind in ("valid", "variance")),
        ("train", 8),
        *((kind, 10) for kind in ("valid", "variance")),
        ("train", 12),
        *((kind, 13) for kind in ("train", "valid", "variance", "final", "test")),
    ]
    assert record["results"] == {"evaluations": 2, "test": rows[-1]["bound"]}
    assert all(-12 * math.log(2) - 60 < row["elbo"] < 0 for row in rows if row["kind"] in ("train", "valid"))
    seconds = [row["seconds"] for row in rows if row["kind"] == "train"]
    assert 0 < seconds[0] < seconds[-1]
    train_vae(run, images, tmp_path, lambda step: None)
    assert RunFolder.read(tmp_path).rows() == rows


def test_training_learns(tmp_path):
    # with a seed whose weights begin far from what is best
    run = run_of("rloo", steps=150, eval_every=150, learning_rate=0.02, seed=1)
    train_vae(run, tiny_images(), tmp_path)
    first, last = [row["elbo"] for row in RunFolder.read(tmp_path).rows() if row["kind"] == "valid"]
    assert last > first + 0.3


def test_estimators_see_the_same_images_and_start_alike(tmp_path, monkeypatch):
    seen = {}
    for name in ("rloo", "double_cv"):
        for seed in (0, 1):
            looked = seen[name, seed] = []
            monkeypatch.setattr(training, "binarise", lambda *given, to=looked: to.append(binarise(*given)) or to[-1])
            train_vae(run_of(name, seed=seed, steps=6), tiny_images(), tmp_path / f"{name}{seed}")
    first, other, seeded = ([x.tolist() for x in seen[which]] for which in (("rloo", 0), ("double_cv", 0), ("rloo", 1)))
    assert first == other != seeded
    # six steps; validation and the batch of the variance at steps 0, 5 and 6; test; and all training images
    assert len(first) == 14
    assert len({str(x) for x in first}) == 6 + 1 + 1 + 1 + 1
    lines = [metrics_of(tmp_path / folder)[0] for folder in ("rloo0", "double_cv0", "rloo1")]
    assert lines[0] == lines[1] != lines[2]


def test_each_epoch_has_its_own_order_and_each_step_its_own_noise(tmp_path, monkeypatch):
    """An epoch is two steps of 8 images, which differ only in shade, by at most 15 of 255."""
    train = (120 + torch.arange(16, dtype=torch.uint8))[:, None].expand(16, 12)
    asked, given = [], []

    def look(pixels, key):
        asked.append(pixels[:, 0].tolist())
        given.append(binarise(torch.full_like(pixels, 128), key))
        return given[-1]

    monkeypatch.setattr(training, "binarise", look)
    options = {"steps": 6, "eval_every": 6}
    train_vae(run_of(**options), Images(train, train[:2], train[:2]), tmp_path)
    steps = slice(2, 8)  # after validation and the batch of the variance
    epochs = [[*first, *second] for first, second in zip(asked[steps][::2], asked[steps][1::2], strict=True)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(120, 136)]] * 3
    assert len({str(epoch) for epoch in epochs}) == 3
    assert len({str(x.tolist()) for x in given[steps]}) == 6


@pytest.mark.parametrize("name", ["disarm", "rodeo"])
@pytest.mark.parametrize("at", [7, 5, 13])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, name, at):
    run, images = run_of(name), tiny_images()
    train_vae(run, images, tmp_path / "whole")
    steps = InterruptedAt(at)
    with pytest.raises(KeyboardInterrupt):
        train_vae(run, images, tmp_path / "cut", steps)
    assert steps[-1] == at
    assert "test" not in RunFolder.read(tmp_path / "cut").results
    train_vae(run, images, tmp_path / "cut", steps.append)
    assert steps == [*range(at + 1), *range(at, 14)]
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    whole, cut = (torch.load(tmp_path / folder / "checkpoint.pt") for folder in ("whole", "cut"))
    for key in whole["vae"]:
        assert torch.equal(whole["vae"][key], cut["vae"][key])


@pytest.mark.parametrize("name", ["disarm", "double_cv"])
def test_a_run_with_more_steps_has_the_numbers_of_one_that_had_them_from_the_start(tmp_path, name):
    """The last line after 13 steps is of one step, and the last validation is an extra one: a longer run has neither."""
    images = tiny_images()
    train_vae(run_of(name, steps=29), images, tmp_path / "whole")
    for steps in (13, 29):
        train_vae(run_of(name, steps=steps), images, tmp_path / "grown")
    assert metrics_of(tmp_path / "grown") == metrics_of(tmp_path / "whole")
    found = [RunFolder.read(tmp_path / which) for which in ("grown", "whole")]
    assert found[0].results == found[1].results
    assert found[0].settings == found[1].settings


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.experiments.test_vae import run_of, tiny_images, train_vae
train_vae(run_of("double_cv"), tiny_images(), Path(sys.argv[1]), lambda step: step == 9 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.deep
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """A run killed at step 9 has written the line of step 8 after the checkpoint of step 5; it must not be there twice."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut"], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [row["step"] for row in RunFolder.read(tmp_path / "cut").rows()][-1] == 8
    for folder in ("cut", "whole"):
        train_vae(run_of("double_cv"), tiny_images(), tmp_path / folder)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")


def test_other_settings_are_refused(tmp_path):
    train_vae(run_of(), tiny_images(), tmp_path)
    with pytest.raises(InvalidInput, match=r"other settings: batch 8 \(now 9\), steps 13 \(now 12\)"):
        train_vae(run_of(steps=12, batch=9), tiny_images(), tmp_path)
    with pytest.raises(InvalidInput, match="a batch of 31 is more than the 30 training images"):
        train_vae(run_of(batch=31), tiny_images(), tmp_path / "new")
    with pytest.raises(InvalidOptions, match="steps: Input should be greater"):
        run_of(steps=0)


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(GradestError, match=r"disarm, seed 0: training diverged in step \d+: .*; lower learning_rate"):
        reproduce_binary_vae(tmp_path, [run_of(learning_rate=1e30)], tiny_images())
    with pytest.raises(GradestError) as raised:
        train_vae(run_of(learning_rate=1e30), tiny_images(), tmp_path / "alone")
    assert not isinstance(raised.value, InvalidInput)  # by which a benchmark would take the images to be at fault


def test_samples_go_to_those_that_take_them():
    chosen = choose_estimators([{"name": name} for name in ("rloo", "rebar", "arms", "reinmax")], samples=3)
    assert [gradest.estimator(spec).label() for spec in chosen] == [
        "rloo(samples=3)",
        "rebar",
        "arms(samples=3)",
        "reinmax(samples=3)",
    ]
    assert choose_estimators([{"name": "rloo"}, {"name": "rloo", "samples": 4}], 2) == [
        {"name": "rloo"},
        {"name": "rloo", "samples": 4},
    ]
    with pytest.raises(Incompatible, match=r"vimco estimates .* this experiment trains on the mean loss"):
        choose_estimators([{"name": "vimco"}], 2)
    with pytest.raises(InvalidInput, match="rloo is named twice"):
        choose_estimators([{"name": "rloo"}, {"name": "rloo"}], 2)


def test_runs_are_listed():
    assert default_estimators(3)[1]["name"] == "arms"
    with pytest.raises(InvalidInput, match="no network is named 'liner'; there are: linear, nonlinear"):
        list_runs(networks=["liner"])
    runs = list_runs(seeds=2, quick=True, kl="analytic")
    assert len({run.folder() for run in runs}) == len(runs) == 2 * 2 * 8
    assert {(run.steps, run.kl) for run in runs} == {(500, "analytic")}
    assert list_runs([{"name": "arm"}], ["linear"], steps=5)[0].folder() == "linear/arm/seed-0"


@pytest.mark.slow
def test_the_report_has_the_runs_that_are_complete(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    runs = list_runs([{"name": "disarm"}, {"name": "reinmax"}], seeds=2, **TINY)
    report = reproduce_binary_vae(tmp_path, runs, tiny_images())
    text = report.read_text()
    for network in ("linear", "nonlinear"):
        assert (tmp_path / f"{network}.svg").read_text().startswith("<svg")
        assert (tmp_path / f"{network}.png").read_bytes().startswith(b"\x89PNG")
        assert f"## {network}\n\n![ELBO and variance]({network}.svg)" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| disarm")]
    assert [row[:3] for row in rows] == [["| disarm", "2", "2"]] * 2
    tests = [RunFolder.read(tmp_path / f"linear/disarm/seed-{seed}").rows()[-1]["bound"] for seed in (0, 1)]
    mean, error = sum(tests) / 2, abs(tests[0] - tests[1]) / 2
    assert rows[0][5] == f"{mean:.2f} ± {error:.2f}"
    assert "cannot be compared" not in text
    other = list_runs([{"name": "rloo"}], ["linear"], **{**TINY, "steps": 3})
    with pytest.raises(KeyboardInterrupt):
        train_vae(runs[0].model_copy(update={"seed": 9}), tiny_images(), tmp_path / "linear/disarm/seed-9", interrupt)
    reproduce_binary_vae(tmp_path, other, tiny_images())
    text = report.read_text()
    assert "The runs differ in steps" in text
    assert "| disarm | 2 | 2 |" in text


def interrupt(step):
    os.kill(os.getpid(), signal.SIGINT)


def write_mnist(folder, learn, test):
    for name, count in (("train", learn), ("t10k", test)):
        images = bytes(i * 37 % 256 for i in range(count * 4))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", count, 2, 2) + images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + bytes(count))


def test_images_are_the_bytes_of_the_files(tmp_path):
    write_mnist(tmp_path, 12, 3)
    images = load_images(tmp_path)
    assert [len(split) for split in (images.train, images.valid, images.test)] == [10, 2, 3]
    assert images.train.flatten().tolist() == [i * 37 % 256 for i in range(40)]
    torch.testing.assert_close(images.mean(), images.train.double().mean(0).float() / 255)


def test_the_command_line_reproduces(tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    write_mnist(tmp_path, 132, 4)
    words = ["reproduce", "binary-vae", "--data-dir", tmp_path, "--out", tmp_path / "out", "--quick", "--steps", "3"]
    words += ["--estimators", "arm", "--estimators", "straight_through", "--network", "linear", "--samples", "4"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out/report.md")
    folders = [path.relative_to(tmp_path / "out").as_posix() for path in list_folders(tmp_path)]
    assert folders == ["linear/arm-samples-4/seed-0", "linear/straight_through-samples-4/seed-0"]
