"""What answers the commands that take --url: the library in this process, or a service."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import gradest
from gradest.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from gradest.analysis.results import Comparison, Recommendation

__all__ = ["KINDS", "Backend", "LocalBackend", "RemoteBackend", "Samples", "find_backend"]

KINDS = ("neuron", "estimator", "objective")
"""The kinds of plugins."""

_API_KEY = "GRADEST_API_KEY"

Spec = Mapping[str, Any]


class Samples(NamedTuple):
    """Samples of a neuron, with its spec, its label, and per-unit quantities by name, tensors of the shape of `a`."""

    spec: Spec
    label: str
    h: Tensor
    columns: Mapping[str, Tensor]


class Backend(ABC):
    """Knows the plugins and computes with them. It wraps the library or a client, whose functions have the same names."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @abstractmethod
    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        """Return the descriptions of all plugins by kind, the distributions, and the failures."""

    @abstractmethod
    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        """Return the description of one plugin, and the docstring of its class if it is known."""

    @abstractmethod
    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Samples:
        """Draw independent outputs of a neuron."""

    def compare(self, objective: Spec, **case: Any) -> Comparison:
        """Compare estimators on an objective, as `gradest.compare` does."""
        comparison: Comparison = self._library.compare(**self._loss(objective), **case)
        return comparison

    def recommend(self, objective: Spec | None, **case: Any) -> Recommendation:
        """Rank the estimators for a case, as `gradest.recommend` does."""
        loss = {} if objective is None else self._loss(objective)
        recommendation: Recommendation = self._library.recommend(**loss, **case)
        return recommendation

    @abstractmethod
    def _loss(self, objective: Spec) -> dict[str, Any]:
        """Return the keyword argument by which the library or the client takes a loss."""


class LocalBackend(Backend):
    """The library in this process."""

    def __init__(self) -> None:
        super().__init__(gradest)

    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the registry of this process has."""
        from gradest.analysis.catalog import describe, describe_plugins

        tables = {f"{kind}s": getattr(gradest.registry, f"{kind}s") for kind in KINDS}
        return {name: [describe(cls) for cls in table.values()] for name, table in tables.items()} | describe_plugins()

    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        """Return the description of a class in the registry, and its docstring."""
        import inspect

        from gradest.analysis.catalog import describe_with_certificates
        from gradest.discovery.faults import read_attribute, read_bases

        cls = getattr(gradest.registry, f"{kind}s")[name]
        documents = (
            read_attribute(base, "__doc__") for base in read_bases(cls)
        )  # a metaclass may raise at cls.__doc__
        text = next((text for text in documents if isinstance(text, str)), "")
        return describe_with_certificates(cls), inspect.cleandoc(text)

    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Samples:
        """Draw the outputs, and compute their expectations."""
        unit = gradest.neuron(neuron)
        h = gradest.sample(unit, a, samples, seed)
        columns = {"a": a, "E[h]": unit.mean(a), "P(h > 0)": unit.active_probability(a)}
        return Samples(unit.spec(), unit.label(), h, columns)

    def _loss(self, objective: Spec) -> dict[str, Any]:
        return {"f": gradest.objective(objective)}


class RemoteBackend(Backend):
    """A service, asked by a client."""

    def catalog(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the service has loaded."""
        tables = {f"{kind}s": getattr(self._library, f"{kind}s")() for kind in KINDS}
        return {**{name: list(table.values()) for name, table in tables.items()}, **self._library.plugins()}

    def describe(self, kind: str, name: str) -> tuple[dict[str, Any], str]:
        """Return the service's description of a plugin, which has no docstring."""
        return getattr(self._library, kind)(name), ""

    def sample(self, neuron: Spec, a: Tensor, samples: int, seed: int) -> Samples:
        """Let the service draw the outputs. The neuron may be unknown in this process, so its expectations are not computed."""
        h = self._library.sample(neuron, a, samples, seed)
        options = ", ".join(f"{key}={value}" for key, value in neuron.items() if key != "name")
        return Samples(neuron, f"{neuron['name']}({options})" if options else neuron["name"], h, {"a": a})

    def _loss(self, objective: Spec) -> dict[str, Any]:
        return {"objective": objective}


@contextmanager
def find_backend(url: str | None, plugins: Sequence[str] | None = None) -> Iterator[Backend]:
    """Give the backend for --url: the service there, with the API key in GRADEST_API_KEY, or this process for None.

    plugins: those of --plugin. Raises InvalidInput if there are any for a service, which runs only what its owner installed.
    """
    if url is not None and plugins:
        raise InvalidInput(
            "--plugin registers a plugin in this process, and --url asks another: omit one of them, or install the plugin where "
            "the service runs"
        )
    if url is None:
        yield LocalBackend()
        return
    from gradest.client import Client

    with Client(url, api_key=os.environ.get(_API_KEY), start_timeout=0) as client:
        yield RemoteBackend(client)
