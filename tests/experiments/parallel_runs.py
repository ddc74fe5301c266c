"""Small runs of every kind that one process makes as two do: `torchrun ... -m tests.experiments.parallel_runs FOLDER RUN...`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from gradest.estimation.distributed import fresh_key, rank
from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.belief.training import train_belief
from gradest_experiments.engine.distributed import processes
from gradest_experiments.engine.images import Images
from gradest_experiments.gated import training
from gradest_experiments.gated.settings import GatedSettings
from gradest_experiments.vae.settings import VaeSettings
from gradest_experiments.vae.training import train_vae

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gradest_experiments.gated.training import GatedNetwork

BATCHES = 14
"""How many minibatches the gated network has in its one epoch; the last is of one image."""


@contextmanager
def listening() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The gates and the noise of every minibatch on which the objective is computed meanwhile."""
    gates: list[Tensor] = []
    noise: list[Tensor] = []
    objective = training.GatedNetwork.objective

    def listen(network: GatedNetwork, x: Tensor, y: Tensor, of: Tensor) -> Tensor:
        state = torch.get_rng_state()
        seed = torch.randint(0, 2**53, ())
        torch.set_rng_state(state)
        a = network.pre_activations(x)
        key = fresh_key(a, 1, int(seed))
        noise.append(network.neuron.noise(key, a, 1)[0].detach())
        handle = network.unit.register_forward_hook(lambda unit, given, h: gates.append(h.detach().clone()))
        found = objective(network, x, y, of)
        handle.remove()
        return found

    with patch.object(training.GatedNetwork, "objective", listen):
        yield gates, noise


def run_gates(out: Path, estimator: str, experts: str) -> None:
    """Train the gated network for an epoch, and save what its gates were."""
    settings = GatedSettings.build(
        data="digits", epochs=1, hidden=8, gates=20, batch=92, estimator=estimator, experts=experts
    )
    with listening() as (gates, noise):
        training.train(settings, out=out)
    torch.save({"gates": gates, "noise": noise}, out / f"seen{rank()}.pt")


def tiny_images() -> Images:
    """Images of twelve random pixels."""
    generator = torch.Generator().manual_seed(0)
    return Images(*(torch.randint(0, 256, (n, 12), dtype=torch.uint8, generator=generator) for n in (70, 10, 6)))


def run_belief(out: Path, estimator: str) -> None:
    """Train a belief network for two epochs."""
    settings = BeliefSettings.build(
        estimator={"name": estimator}, units=5, samples=3, epochs=2, batch=7, learning_rate=0.01, valid_samples=4
    )
    train_belief(settings, tiny_images(), out)


def run_vae(out: Path, estimator: str) -> None:
    """Train a variational autoencoder for twelve steps."""
    settings = VaeSettings.build(
        estimator={"name": estimator}, latents=5, hidden=6, batch=7, steps=12, log_every=1, eval_every=12,
        learning_rate=0.01, variance_draws=3, test_samples=4,
    )  # fmt: skip
    train_vae(settings, tiny_images(), out)


def make_runs(folder: Path, runs: tuple[str, ...]) -> None:
    """Make each run, such as "gates-straight_through-dense", in a folder of its own."""
    for run in runs:
        kind, *options = run.split("-")
        {"gates": run_gates, "vae": run_vae, "belief": run_belief}[kind](folder / run, *options)


def main(folder: str, *runs: str) -> None:
    """Make the runs as one of several processes."""
    torch.set_num_threads(1)
    with processes():
        make_runs(Path(folder), runs)
    threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads


if __name__ == "__main__":
    main(*sys.argv[1:])
