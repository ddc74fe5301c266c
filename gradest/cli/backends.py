"""Who answers the commands that take --url: this process, or a service."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

import gradest
from gradest.analysis.catalog import describe, describe_plugins, describe_with_certificates
from gradest.analysis.results import Comparison, Recommendation

__all__ = ["KINDS", "Sampled", "find_backend"]

KINDS = ("neuron", "estimator", "objective")
API_KEY = "GRADEST_API_KEY"

Spec = Mapping[str, Any]


class Sampled(NamedTuple):
    """Samples, with what is known of the neuron that gave them."""

    spec: Spec
    label: str
    h: Tensor
    columns: Mapping[str, Tensor]


class Backend(ABC):
    """Has the plugins and computes with them: a library, this one or a client, which has the same functions."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @abstractmethod
    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        """What is registered, by kind, the distributions, and what did not load."""

    @abstractmethod
    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        """The description of one plugin, and its own words."""

    @abstractmethod
    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Sampled:
        """Independent outputs."""

    def compare(self, objective: Spec, **case: Any) -> Comparison:
        """`gradest.compare`: estimators side by side."""
        found: Comparison = self._library.compare(**self._loss(objective), **case)
        return found

    def recommend(self, objective: Spec | None, **case: Any) -> Recommendation:
        """`gradest.recommend`: estimators for a case, best first."""
        loss = {} if objective is None else self._loss(objective)
        found: Recommendation = self._library.recommend(**loss, **case)
        return found

    @abstractmethod
    def _loss(self, objective: Spec) -> dict[str, Any]:
        """The argument by which the library is told the loss."""


class LocalBackend(Backend):
    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        tables = {f"{kind}s": getattr(gradest.registry, f"{kind}s") for kind in KINDS}
        return {name: [describe(cls) for cls in table.values()] for name, table in tables.items()} | describe_plugins()

    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        cls = getattr(gradest.registry, f"{kind}s")[name]
        return describe_with_certificates(cls), inspect.getdoc(cls) or ""

    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Sampled:
        unit = gradest.neuron(neuron)
        h = gradest.sample(unit, a, samples, seed)
        columns = {"a": a, "E[h]": unit.mean(a), "P(h > 0)": unit.active_probability(a)}
        return Sampled(unit.spec(), unit.label(), h, columns)

    def _loss(self, objective: Spec) -> dict[str, Any]:
        return {"f": gradest.objective(objective)}


class RemoteBackend(Backend):
    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        tables = {f"{kind}s": getattr(self._library, f"{kind}s")() for kind in KINDS}
        return {**{name: list(table.values()) for name, table in tables.items()}, **self._library.plugins()}

    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        return getattr(self._library, kind)(name), ""

    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Sampled:
        h = self._library.sample(neuron, a, samples, seed)
        options = ", ".join(f"{key}={value}" for key, value in neuron.items() if key != "name")
        return Sampled(neuron, f"{neuron['name']}({options})" if options else neuron["name"], h, {"a": a})

    def _loss(self, objective: Spec) -> dict[str, Any]:
        return {"objective": objective}


@contextmanager
def find_backend(url: str | None) -> Iterator[Backend]:
    """The service at `url`, with the API key that the environment has, or this process if that is None."""
    if url is None:
        yield LocalBackend(gradest)
        return
    from gradest.client import Client

    with Client(url, api_key=os.environ.get(API_KEY)) as client:
        yield RemoteBackend(client)
