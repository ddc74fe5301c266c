"""The tables of `gradest demo --full`: the registry, samples, and many estimators beside the exact gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn import functional

from gradest.analysis.catalog import describe
from gradest.analysis.results import Comparison
from gradest.client import Client
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.discovery.registry import registry
from gradest_experiments.engine.data import Split

__all__ = ["WIDTH", "show"]

WIDTH = 160
"""The columns that the tables need."""

# the four units of Bengio et al. (2013), and two that choose items
_NEURONS = ("bernoulli", "noisy_rectifier", "stochastic_times_smooth", "noisy_sigmoid", "categorical", "k_subset")
# numbers of units whose exact gradient is fast: 2^8 or 3^8 configurations of binary or categorical ones, else 97^2 nodes
_FINITE_UNITS, _OTHER_UNITS = 8, 2
_CLASSES = 3  # the classes of a categorical unit
_FEW_NODES = 200  # of the law of a unit, with which the exact gradient of two units takes no more than a second
_IMAGES, _DRAWS, _SAMPLES = 4, 1000, 2000


def show(console: Console, client: Client, digits: Split, seed: int) -> None:
    """Print the tables: the registered plugins, and samples and comparisons that the service makes."""
    console.rule("The registered plugins")
    for table in _registered():
        console.print(table)
    console.rule(f"Samples over HTTP, from {client.url}, of units whose inputs are digits")
    console.print(_samples(client, digits, seed))
    console.rule("Gradients of the cross entropy of a readout of digits, beside the exact ones")
    for comparison in _comparisons(client, digits, seed):
        console.print(_comparison_table(comparison))


def _registered() -> Iterator[Table]:
    for kind, classes in (
        ("neurons", registry.neurons),
        ("estimators", registry.estimators),
        ("objectives", registry.objectives),
    ):
        table = Table(title=kind, title_justify="left")
        for column in ("name", "summary", "estimators that fit" if kind == "neurons" else "reference"):
            table.add_column(column)
        for name, cls in classes.items():
            last = ", ".join(describe(cls)["estimators"]) if kind == "neurons" else cls.reference
            table.add_row(name, cls.summary, last)
        yield table
    for failure in registry.failures:
        yield Table(title=f"did not load: {failure}")


def _neurons() -> Iterator[Neuron]:
    for name in _NEURONS:
        yield registry.neuron(name)


def _look(split: Split, neuron: Neuron, units: int, seed: int) -> Tensor:
    """Return pre-activations `[images, *event]`: random projections of the images, with mean 0 and variance 1."""
    event = (units, *neuron.example_events[0][1:])
    views = torch.randn(split.x.shape[1], math.prod(event), generator=torch.Generator().manual_seed(seed))
    a = split.x @ views
    return ((a - a.mean(0)) / a.std(0)).reshape(-1, *event)


def _samples(client: Client, split: Split, seed: int) -> Table:
    table = Table(title=f"{_SAMPLES} samples on each of {_IMAGES} digits", title_justify="left")
    for column in ("neuron", "E[h]", "mean of samples", "P(h > 0)", "share above 0", "first samples, digit 0"):
        table.add_column(Text(column))  # as a string, "E[h]" would be read as markup
    for neuron in _neurons():
        a = _look(split, neuron, 1, seed)[:_IMAGES]
        h = client.sample(neuron, a, _SAMPLES, seed)
        cells = (neuron.mean(a).mean(), h.mean(), neuron.active_probability(a).mean(), (h > 0).float().mean())
        table.add_row(
            neuron.name, *(f"{float(cell):.4f}" for cell in cells), " ".join(f"{x:.2f}" for x in h[:6, 0].flatten()[:6])
        )
    return table


def _comparisons(client: Client, split: Split, seed: int) -> Iterator[Comparison]:
    for neuron in _neurons():
        a, objective = _readout(neuron, split, seed)
        yield client.compare(objective, a, neuron, draws=_DRAWS, seed=seed)


def _readout(neuron: Neuron, split: Split, seed: int) -> tuple[Tensor, Objective]:
    """Return pre-activations of a few digits, and the cross entropy of a softmax readout fitted to E[h] of all digits."""
    atoms = neuron.law(torch.zeros(1, *neuron.example_events[0][1:]))[0].shape[0]
    units = _FINITE_UNITS if atoms <= _CLASSES else _OTHER_UNITS if atoms <= _FEW_NODES else 1
    a = _look(split, neuron, units, seed)
    features = neuron.mean(a).flatten(1)
    classes = int(split.y.max()) + 1
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60)

    def loss() -> float:
        optimiser.zero_grad()
        value = (
            functional.cross_entropy(functional.linear(features, weight, bias), split.y) + 1e-3 * weight.square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    readout = {
        "weight": weight.detach().reshape(classes, *neuron.output_event(tuple(a.shape[1:]))),
        "bias": bias.detach(),
        "labels": split.y[:_IMAGES],
    }
    return a[:_IMAGES], registry.objective("cross_entropy", **readout)


def _comparison_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.neuron}, {comparison.draws} draws", title_justify="left")
    for column in ("estimator", "claimed bias", "evaluations", "bias", "bias / SE", "variance of one draw", "cosine"):
        table.add_column(column, justify="left" if column in ("estimator", "claimed bias") else "right")
    for row in comparison.rows:
        figures = (row.bias, row.bias_in_se, row.variance, row.cosine)
        table.add_row(
            row.estimator, row.claim, str(row.evaluations), *("-" if x is None else f"{x:.3g}" for x in figures)
        )
    return table
