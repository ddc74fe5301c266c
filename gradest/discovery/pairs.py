"""Pair: a neuron and an estimator that fits it, with what follows from the two and the shape of an event alone.

All methods of plugins are pure, and their options do not change. So what a call has to know of the two of them is asked for once,
and found again by one lookup: whether they fit, what the estimator needs, how many points it asks for.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Discrete, Neuron, Scored, event_shape, output_shape
from gradest.discovery.registry import registry

__all__ = ["Form", "Pair", "pair_of"]

_MOST_PAIRS = 64  # that one estimator remembers
_MOST_FORMS = 64  # that one pair remembers


@dataclass(frozen=True, slots=True)
class Form:
    """The shapes of a draw at pre-activations of one shape.

    evaluations: K. points: `[K, *batch, *event']`. losses: `[K, *batch]`, which the weights of the draw have, or `[K]`.
    """

    evaluations: int
    points: torch.Size
    losses: torch.Size
    weights: torch.Size


class Pair:
    """What follows from a neuron and an estimator. `pair_of` makes and finds it.

    needs_loss, needs_grad: what the estimator needs of f. stateless: whether it has no state.
    looks_at_scores: whether the neuron is to look at the outputs whose scores the estimator uses.
    on_support: whether every point is an output of the neuron, which may have the probability 0.

    A pair keeps neither of them alive: the estimator may live as long as the process, and a neuron may hold large tensors.
    """

    __slots__ = (
        "_estimator",
        "_forms",
        "_neuron",
        "looks_at_scores",
        "needs_grad",
        "needs_loss",
        "on_support",
        "output_ndim",
        "stateless",
    )

    def __init__(self, neuron: Neuron, estimator: Estimator) -> None:
        self._neuron, self._estimator = weakref.ref(neuron), weakref.ref(estimator)
        self.needs_loss, self.needs_grad = "loss" in estimator.needs, "grad" in estimator.needs
        self.stateless = type(estimator).init is Estimator.init
        self.looks_at_scores = (
            isinstance(neuron, Scored)
            and type(neuron).check_scores is not Scored.check_scores
            and self.needs_loss
            and any(issubclass(kind, Scored) for kind in estimator.capabilities)
        )
        self.on_support = isinstance(neuron, Discrete) and not estimator.off_support
        self.output_ndim = neuron.output_ndim
        self._forms: dict[torch.Size, Form] = {}

    @property
    def neuron(self) -> Neuron:
        """The neuron. The pair does not keep it alive; whoever uses the pair does."""
        neuron = self._neuron()
        assert neuron is not None
        return neuron

    @property
    def estimator(self) -> Estimator:
        """The estimator. The pair does not keep it alive; whoever uses the pair does."""
        estimator = self._estimator()
        assert estimator is not None
        return estimator

    def is_of(self, neuron: Neuron) -> bool:
        """Tell whether the pair is that of this very neuron."""
        return self._neuron() is neuron

    def form(self, a: Tensor) -> Form:
        """Return the shapes of a draw at `a`."""
        shape = a.shape
        found = self._forms.get(shape)
        if found is None:
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            found = self._forms[shape] = self._form(a)
        return found

    def _form(self, a: Tensor) -> Form:
        evaluations = self.estimator.evaluations(self.neuron, event_shape(self.neuron, a))
        batch = a.shape[: a.ndim - self.neuron.event_ndim]
        points = torch.Size((evaluations, *output_shape(self.neuron, a)))
        return Form(evaluations, points, torch.Size((evaluations, *batch)), torch.Size((evaluations,)))


def pair_of(neuron: Neuron, estimator: Estimator) -> Pair:
    """Return the pair of the two. The estimator remembers it. Raises Incompatible if they do not fit each other."""
    pairs = getattr(estimator, "_gradest_pairs", None)
    if pairs is None:
        pairs = {}
        object.__setattr__(estimator, "_gradest_pairs", pairs)
    found: Pair | None = pairs.get(id(neuron))
    if found is None or not found.is_of(neuron):  # another neuron had the number, and is gone
        registry.check_fit(neuron, estimator)
        if len(pairs) >= _MOST_PAIRS:
            pairs.clear()
        found = pairs[id(neuron)] = Pair(neuron, estimator)
    return found
