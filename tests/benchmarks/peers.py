"""The problem on which gradients are compared, and how other libraries solve it, each in a process of its own.

storchastic replaces methods of torch.Tensor when it is imported, and Pyro some of torch.distributions: timed beside them in one
process, everybody would pay for that. This file is what such a process runs, and what talks to it.

The problem: 64 x 200 Bernoulli units with logits `a`; the mean over the batch of Σ_i (h_i - 0.2)²; K = 2 points.

The problem of several layers: the sigmoid belief network 784-200-200 of `gradest train belief` on 100 images, with K = 5
whole-path samples, each with the mean of the other four as its baseline. All libraries run the code of one network, in which each
has its own stochastic layers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradest_experiments.belief.network import BeliefNetwork

BATCH, UNITS, TARGET = 64, 200, 0.2
PIXELS, IMAGES, PATHS = 784, 100, 5
Gradient = Callable[[], Tensor]


def logits() -> Tensor:
    """`a`, [64, 200]; the same in every process."""
    return torch.randn(BATCH, UNITS, generator=torch.Generator().manual_seed(0))


def loss(h: Tensor) -> Tensor:
    """Of points [..., 64, 200]: [..., 64]."""
    return ((h - TARGET) ** 2).sum(-1)


def exact() -> Tensor:
    """The gradient g of the expected loss, [64, 200]."""
    p = torch.sigmoid(logits())
    return p * (1 - p) * (1 - 2 * TARGET) / BATCH


def slopes(gradient: Gradient, truth: Tensor, calls: int) -> list[float]:
    """⟨ĝ, g⟩ / ⟨g, g⟩ of each call, with g the true gradient: 1 on average for an unbiased ĝ."""
    return [float((gradient() * truth).sum() / truth.square().sum()) for _ in range(calls)]


def belief_network(layers: list[nn.Module]) -> tuple[BeliefNetwork, Tensor]:
    """A network of two layers of 200 units, and images; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.rand(PIXELS, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BeliefNetwork(mean, layers, UNITS)
    return network, (torch.rand(IMAGES, PIXELS, generator=generator) < mean).float()


def inference_gradient(network: BeliefNetwork) -> Tensor:
    """The gradient that the stochastic layers estimate, as one vector."""
    return torch.cat([weight.grad.flatten() for weight in network.inference.parameters()])


class SampleByHand(nn.Module):
    """A stochastic layer of Bernoulli units in plain torch, which keeps a sample's score Σ_i a_i (h_i - p_i)."""

    def forward(self, a: Tensor) -> Tensor:
        p = torch.sigmoid(a.detach())
        h = (torch.rand_like(p) < p).float()
        self.score = (a * (h - p)).sum(-1)
        return h


def belief_by_hand() -> Gradient:
    """The leave-one-out estimator over whole paths, with the cost-to-go of each layer."""
    layers = [SampleByHand(), SampleByHand()]
    network, x = belief_network(layers)

    def gradient() -> Tensor:
        network.zero_grad()
        first, second = network.costs(x, lambda a: a.expand(PATHS, *a.shape))
        total = (first + second).mean()
        for layer, credit in zip(layers, (first + second, second), strict=True):
            weight = (credit - credit.mean(0)).detach() / (PATHS - 1)
            total = total + (weight * layer.score).sum(0).mean()
        total.backward()
        return inference_gradient(network)

    return gradient


def belief_direction() -> Tensor:
    """A direction in which gradients of the network are compared: the average of 100 by hand; the same in every process."""
    gradient = belief_by_hand()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return torch.stack([gradient() for _ in range(100)]).mean(0)


def storchastic_belief() -> Gradient:
    """The score function in both layers.

    `batch_average` is the leave-one-out baseline of the first layer. The second draws one sample in each of the five paths, of
    which `batch_average` has no mean, so its baseline takes the same mean over the paths of the first.
    """
    import storch
    from storch.method import ScoreFunction
    from storch.method.baseline import Baseline

    class OtherPaths(Baseline):
        def compute_baseline(self, tensor, costs):
            return (storch.sum(costs.detach(), "first") - costs.detach()) / (PATHS - 1)

    class Layer(nn.Module):
        def __init__(self, method: nn.Module) -> None:
            super().__init__()
            self.method = method

        def forward(self, a: Tensor) -> Tensor:
            return self.method(torch.distributions.Bernoulli(logits=a))

    first = ScoreFunction("first", n_samples=PATHS, baseline_factory="batch_average")
    second = ScoreFunction("second", n_samples=1, baseline_factory=lambda tensor, cost: OtherPaths())
    network, x = belief_network([Layer(first), Layer(second)])

    def gradient() -> Tensor:
        network.zero_grad()
        rows = storch.denote_independent(x, 0, "batch")  # over which it averages
        for level, cost in enumerate(network.costs(rows, lambda a: a)):
            storch.add_cost(cost, f"cost of layer {level}")
        storch.backward()
        return inference_gradient(network)

    return gradient


def storchastic_rloo() -> Gradient:
    """The score function with the mean of the other sample as its baseline."""
    import storch
    from storch.method import ScoreFunction

    return _storchastic(storch, ScoreFunction("z", n_samples=2, baseline_factory="batch_average"))


def storchastic_arm() -> Gradient:
    """ARM, one antithetic pair. storchastic has a DisARM too, which raises an error when it is used."""
    import storch
    from storch.method import ARM

    return _storchastic(storch, ARM("z", n_samples=1))


def _storchastic(storch, method) -> Gradient:
    given = logits()

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        rows = storch.denote_independent(a, 0, "batch")  # whose costs it averages
        h = method(torch.distributions.Bernoulli(logits=rows))
        storch.add_cost(loss(h), "loss")
        storch.backward()
        return a.grad

    return gradient


def pyro_reinforce() -> Gradient:
    """TraceGraph_ELBO with two particles at once.

    The model draws from the guide's law, with its parameters held: then the bound is -E[f], and so is each sample's cost.
    """
    import pyro
    from pyro.distributions import Bernoulli
    from pyro.infer import TraceGraph_ELBO

    given = logits()
    objective = TraceGraph_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)

    def guide(a: Tensor) -> None:
        with pyro.plate("batch", BATCH):
            pyro.sample("h", Bernoulli(logits=a).to_event(1))

    def model(a: Tensor) -> None:
        with pyro.plate("batch", BATCH):
            h = pyro.sample("h", Bernoulli(logits=a.detach()).to_event(1))
            pyro.factor("loss", -loss(h) / BATCH)

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        objective.loss_and_grads(model, guide, a)
        return a.grad

    return gradient


class Peer:
    """One of the functions above, in a process with as many torch threads as this one."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def seconds(self, repeat: int) -> float:
        """What `repeat` gradients take there."""
        return self._ask("seconds", repeat)

    def slopes(self, calls: int) -> list[float]:
        """What the function of that name gives there."""
        return self._ask("slopes", calls)

    def _ask(self, what: str, count: int):
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main(name: str, threads: str) -> None:
    """Answers lines `seconds COUNT` and `slopes COUNT` with JSON, a line each."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    truth = belief_direction() if "belief" in name else exact()
    gradient = globals()[name]()
    for line in sys.stdin:
        what, count = line.split()
        if what == "slopes":
            answer: object = slopes(gradient, truth, int(count))
        else:
            start = time.perf_counter()
            for _ in range(int(count)):
                gradient()
            answer = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
