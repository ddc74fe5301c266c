"""The sigmoid belief network: the loss of a path, gradients, training and resumption on small synthetic images."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch.distributions import Bernoulli
from typer.testing import CliRunner

from gradest.cli import app
from gradest.errors import GradestError, Incompatible, InvalidInput, InvalidOptions
from gradest.nn import StochasticGraph
from gradest_experiments.belief.network import BeliefNetwork, multi_sample_bound
from gradest_experiments.belief.run import to_rows
from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.belief.training import BeliefRun, train_belief
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.images import Images
from tests.experiments.tiny import InterruptedAt
from tests.selection import deep

TINY = {"units": 3, "samples": 4, "epochs": 3, "batch": 8, "valid_samples": 6}
ESTIMATORS = ["vimco", "rloo", "nvil", "reinforce_centered"]
OTHERS = [("vimco", 8), ("nvil", 5), *itertools.product(["rloo", "reinforce_centered"], [5, 8])]
QUICK = ["nvil", *deep("vimco", "rloo", "reinforce_centered")]


def tiny_images():
    """Return images of 12 pixels in two halves that go together, of which one is always off and one always on."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for n in (40, 10, 6):
        halves = torch.rand(n, 2, 1, generator=generator) < 0.5
        pixels = torch.where(halves, 230, 25).expand(n, 2, 6).reshape(n, 12).to(torch.uint8)
        pixels[:, 0], pixels[:, 1] = 0, 255
        splits.append(pixels)
    return Images(*splits)


def run_of(estimator="vimco", **options):
    return BeliefSettings.build(**{"estimator": {"name": estimator}, **TINY, **options})


def small_network(estimator="rloo", layers=2, units=2):
    """Return a network of few units in float64, which is far from its symmetric start, and images of 5 pixels."""
    torch.manual_seed(1)
    made = BeliefSettings(estimator={"name": estimator}, layers=layers, units=units)
    network = BeliefNetwork(torch.rand(5), [made.build_layer() for _ in range(layers)], units).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.8 * torch.randn_like(parameter))
    return network, (torch.rand(3, 5, dtype=torch.float64) < 0.4).double()


def log_probabilities(network, x, path):
    """Return log q(h | x) and log p(x, h) by torch.distributions, for the samples of each layer, `[..., units]`."""
    seen = [x - network.mean, *(2 * h - 1 for h in path)]
    log_q = sum(
        Bernoulli(logits=linear(below)).log_prob(h).sum(-1)
        for linear, below, h in zip(network.inference, seen, path, strict=False)
    )
    log_p = Bernoulli(logits=network.prior).log_prob(path[-1]).sum(-1)
    for linear, above, below in zip(network.generation, seen[1:], [x, *path[:-1]], strict=True):
        log_p = log_p + Bernoulli(logits=linear(above)).log_prob(below.expand(*above.shape[:-1], -1)).sum(-1)
    return log_q, log_p


def exact(network, x):
    """Return the ELBO and log p(x), `[batch]`, by enumeration of all paths of two layers of two units."""
    elbo, joint = 0, []
    for values in itertools.product([0.0, 1.0], repeat=4):
        h = torch.tensor(values, dtype=torch.float64).expand(len(x), 4)
        log_q, log_p = log_probabilities(network, x, [h[:, :2], h[:, 2:]])
        elbo = elbo + log_q.exp() * (log_p - log_q)
        joint.append(log_p)
    return elbo, torch.stack(joint).logsumexp(0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_costs_add_up_to_the_loss_of_a_path(layers):
    network, x = small_network(layers=layers)
    path = []
    for layer in network.layers:
        layer.register_forward_hook(lambda layer, given, h: path.append(h.detach()) or path[-1])
    with StochasticGraph(network, samples=4) as graph:
        costs = list(network.costs(x, graph.expand))
        graph.discard()
    assert [tuple(cost.shape) for cost in costs] == [(4, 3)] * layers
    assert [tuple(h.shape) for h in path] == [(4, 3, 2)] * layers
    log_q, log_p = log_probabilities(network, x, path)
    torch.testing.assert_close(sum(costs), log_q - log_p, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad(loss.sum(), network.parameters()) for loss in (sum(costs), log_q - log_p))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("estimator", ["nvil", *deep("rloo", "reinforce_centered")])
def test_the_gradient_is_that_of_the_enumerated_elbo(estimator):
    """The mean of 60 draws of 200 copies of 3 images is within 5 standard errors in all 33 parameters: false alarms 6e-6 each, of
    Student's t of 59 degrees. The largest is 30 away from 0, so a wrong sign or a factor of two would be seen.
    """
    network, x = small_network(estimator)
    parameters = list(network.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-exact(network, x)[0].mean(), parameters)])
    many, draws = x.repeat(200, 1), []
    for step in range(70):
        with StochasticGraph(network, samples=3) as graph:
            for cost in network.costs(many, graph.expand):
                graph.add_cost(cost)
            gradient = torch.autograd.grad(graph.surrogate(), parameters)
        if step >= 10:  # until the estimator's state has settled
            draws.append(torch.cat([g.flatten() for g in gradient]))
    found, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 60**0.5
    assert float((expected.abs() / error).max()) > 30
    assert float(((found - expected).abs() / error).max()) < 5


def test_bounds_are_between_the_elbo_and_the_log_likelihood():
    """Over 4000 copies the bound of 1 sample has the ELBO as its mean, and that of 4 is above it, both by 5 standard errors."""
    network, x = small_network()
    network.eval()
    with torch.no_grad():
        elbo, evidence = exact(network, x)
    many = x.repeat_interleave(4000, 0)
    one, four = (network.bound(many, samples).reshape(3, 4000) for samples in (1, 4))
    error = one.std(1) / 4000**0.5
    assert bool(((one.mean(1) - elbo).abs() < 5 * error).all())
    assert bool((four.mean(1) > elbo + 5 * error).all())
    torch.testing.assert_close(network.bound(x, 100_000), evidence, atol=0.1, rtol=0)
    assert bool((evidence - elbo > 0.3).all())
    loss = torch.tensor([[1.0], [3.0]])
    assert float(multi_sample_bound(loss)) == pytest.approx(math.log((math.exp(-1) + math.exp(-3)) / 2))


@pytest.mark.parametrize("name", QUICK)
def test_training_learns(tmp_path, name):
    settings = run_of(name, epochs=40, learning_rate=0.03)
    torch.manual_seed(3)
    before, steps = torch.get_rng_state(), []
    found = train_belief(settings, tiny_images(), tmp_path, steps.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert steps == list(range(201))
    first, *_, last = [row["bound"] for row in found.rows("valid")]
    assert last > first + 1
    assert found.results == {"valid": last}
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["experiment"] == "sigmoid-belief-network"
    assert record["settings"] == settings.model_dump()
    train = found.rows("train")
    assert [(row["epoch"], row["step"]) for row in train] == [(n, 5 * n) for n in range(1, 41)]
    assert all(row["elbo"] < row["bound"] < 0 for row in train)
    assert to_rows(found)[-1][:4] == ["40", *(f"{x:.2f}" for x in (train[-1]["elbo"], train[-1]["bound"], last))]


def metrics_of(folder):
    """Return the lines of metrics without the seconds."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in RunFolder.read(folder).rows()]


@pytest.mark.parametrize(("name", "at"), [("vimco", 5), ("nvil", 8), *deep(*OTHERS)])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, name, at):
    train_belief(run_of(name), tiny_images(), tmp_path / "whole")
    steps = InterruptedAt(at)
    with pytest.raises(KeyboardInterrupt):
        train_belief(run_of(name), tiny_images(), tmp_path / "cut", steps)
    assert steps[-1] == at
    torch.rand(3)  # whatever happened between the two
    train_belief(run_of(name), tiny_images(), tmp_path / "cut", steps.append)
    assert steps == [*range(at + 1), *range(at, 16)]
    check_equal(tmp_path / "cut", tmp_path / "whole")


def test_a_run_with_more_epochs_has_the_numbers_of_one_that_had_them_from_the_start(tmp_path):
    train_belief(run_of("nvil"), tiny_images(), tmp_path / "whole")
    for epochs in (2, 3, 3):
        train_belief(run_of("nvil", epochs=epochs), tiny_images(), tmp_path / "grown")
    check_equal(tmp_path / "grown", tmp_path / "whole")


def check_equal(one, other):
    assert metrics_of(one) == metrics_of(other)
    assert RunFolder.read(one).results == RunFolder.read(other).results
    first, second = (torch.load(folder / "checkpoint.pt")["network"] for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_estimators_start_alike_and_see_the_same_images(monkeypatch):
    runs = [BeliefRun(run_of(name, seed=seed), tiny_images()) for name, seed in (("rloo", 0), ("nvil", 0), ("rloo", 1))]
    seen = []
    for run in runs:
        monkeypatch.setattr(run.network, "costs", lambda x, expand: seen.append(x) or iter(()))
        with pytest.raises(GradestError):
            run.advance()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    weights = [torch.cat([value.flatten() for value in run.network.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(Incompatible, match="disarm"):
        train_belief(run_of("disarm"), tiny_images(), tmp_path)
    with pytest.raises(InvalidInput, match=r"credits 2 samples .* there are 4"):
        train_belief(
            run_of(estimator="rloo").model_copy(update={"estimator": {"name": "rloo", "samples": 2}}),
            tiny_images(),
            tmp_path,
        )
    with pytest.raises(InvalidInput, match="a batch of 41 is more than the 40 training images"):
        train_belief(run_of(batch=41), tiny_images(), tmp_path)
    with pytest.raises(InvalidOptions, match="layers: Input should be greater"):
        run_of(layers=0)
    assert not list(tmp_path.iterdir())
    assert BeliefSettings() == BeliefSettings(estimator="vimco") == BeliefSettings(estimator={"name": "vimco"})


def test_divergence_is_an_error(tmp_path):
    with pytest.raises(GradestError, match=r"training diverged in step 2: .*; lower learning_rate"):
        train_belief(run_of(learning_rate=1e38), tiny_images(), tmp_path)


def test_the_command_line_trains(tmp_path):
    from tests.experiments.test_vae import write_mnist

    write_mnist(tmp_path, 132, 4)
    words = [
        "train",
        "belief",
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--estimator",
        "vimco:baseline=arithmetic",
    ]
    words += ["--units", "3", "--epochs", "2", "--valid-samples", "4"]
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    run = RunFolder.read(tmp_path / "out/vimco-baseline-arithmetic/seed-0")
    assert run.settings["estimator"] == {"name": "vimco", "baseline": "arithmetic"}
    for row in to_rows(run):
        assert all(cell in done.stdout for cell in row)
