"""The programs that are run in every way of use: a weight, one stochastic unit, a loss; one program for each kind of call.

    a = x @ weight  ->  h  ->  losses f(h), with a parameter of f's own  ->  the scalar on which backward is called

x is an identity matrix, so the gradient in the weight is the gradient in a, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gradest
from gradest.analysis import bias
from gradest.contract.score_function import ScoreFunction
from gradest.errors import Incompatible
from gradest.estimation.distributed import fresh_key, fresh_path_key
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss

BATCH = 3
PATHS = 2

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An estimator on a neuron, called in one of four ways."""

    call: str
    estimator: gradest.Estimator
    neuron: gradest.Neuron

    @property
    def pair(self) -> str:
        return f"{self.estimator.label()}-{self.neuron.label()}"

    def label(self) -> str:
        return f"{self.call}-{self.pair}"

    def build(self) -> Program:
        """Make the program, always with the same weight."""
        return CALLS[self.call](self)

    @property
    def event(self) -> tuple[int, ...]:
        return bias.measurement_event_shape(self.neuron)

    @property
    def stateful(self) -> bool:
        return bool(self.estimator.init(self.neuron, torch.zeros(1, *self.event)))

    @property
    def needs(self) -> str:
        return "both" if len(self.estimator.needs) == 2 else next(iter(self.estimator.needs))

    @property
    def kind(self) -> tuple[str, str, bool, bool]:
        """What matters to the way of use: the call, what the estimator needs, whether it has a state, and whether K is 1."""
        single = self.estimator.evaluations(self.neuron, self.event) == 1
        return self.call, self.needs, self.stateful, single


def x() -> Tensor:
    return torch.eye(BATCH)


class Program(nn.Module):
    """A weight, a unit and a loss. `body` is what a checkpoint would wrap; `finish` gives the scalar for backward."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.weight = nn.Parameter(torch.empty(BATCH, math.prod(case.event)))
        self.scale = nn.Parameter(torch.empty(()))
        self.wrap: Callable[..., Tensor] = _call
        self.cast: torch.dtype | None = None
        self.rows: Tensor | None = None  # which examples x holds, of a whole batch
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-1.2, 1.4, self.weight.numel()).reshape(self.weight.shape))
            self.scale.fill_(0.7)

    def pre_activations(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).unflatten(-1, self.case.event)
        return a if self.cast is None else a.to(self.cast)

    def f(self, h: Tensor) -> Tensor:
        """A loss that is smooth in h, couples the units, and has a parameter."""
        flat = h.flatten(h.ndim - self.case.neuron.output_ndim)
        tilt = torch.linspace(0.5, 1.0, flat.shape[-1], dtype=h.dtype, device=h.device)
        total = (flat * tilt).sum(-1)
        return (total - 0.4).square() * 0.3 + self.scale * total

    @staticmethod
    def after(h: Tensor) -> Tensor:
        """What a network does behind the unit; its derivative needs h, which a checkpoint draws again."""
        return h + 0.1 * h * h

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def finish(self, out: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.wrap(self.body, x))

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the values, and the estimator's gradient in a, from ask and tell, or from credit and scores."""
        raise NotImplementedError


def _call(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    return function(*arguments)


class _AsksAtAllPoints(Program):
    """What the function `expect` and the layer `Expectation` share: f is theirs to call."""

    def finish(self, out: Tensor) -> Tensor:
        return out.sum()

    def state(self) -> gradest.State:
        raise NotImplementedError

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        estimator, neuron = self.case.estimator, self.case.neuron
        a = self.pre_activations(x)
        key = fresh_key(a, neuron.event_ndim)
        draw, state = gradest.ask(neuron, estimator, a, key, dict(self.state()) or None)
        points = draw.points.to(a.dtype).requires_grad_()
        loss = self.f(points)
        (grad,) = torch.autograd.grad(loss.sum(), points, retain_graph=True)
        needs_grad = "grad" in estimator.needs
        gradient, _ = gradest.tell(estimator, draw, gradest.Feedback(loss, grad if needs_grad else None), state)
        return estimator.value(draw, self.f(points.detach())).sum(), gradient


class Function(_AsksAtAllPoints):
    """`gradest.expect`, its state kept by the caller and, as for a checkpoint, passed in from outside."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.kept: gradest.State | None = None
        self.following: gradest.State | None = None

    def state(self) -> gradest.State:
        return self.kept or {}

    def body(self, x: Tensor) -> Tensor:
        return self._expect(x, self.kept)

    def _expect(self, x: Tensor, state: gradest.State | None) -> Tensor:
        a = self.pre_activations(x)
        value, self.following = gradest.expect(
            self.f, a, self.case.neuron, self.case.estimator, state=state, rows=self.rows
        )
        return value

    def forward(self, x: Tensor) -> Tensor:
        state = self.kept
        out = self.finish(self.wrap(lambda given: self._expect(given, state), x))
        if torch.is_grad_enabled() and self.following is not None:
            self.kept = dict(self.following)
        return out


class ExpectationLayer(_AsksAtAllPoints):
    """`gradest.nn.Expectation`."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.unit = Expectation(case.neuron, case.estimator, evaluation="sample")

    def state(self) -> gradest.State:
        return self.unit.state

    def body(self, x: Tensor) -> Tensor:
        value: Tensor = self.unit(self.f, self.pre_activations(x), rows=self.rows)
        return value


class Layer(Program):
    """`gradest.nn.Stochastic`, told its loss by `broadcast_loss`."""

    paths = 0

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.unit = Stochastic(case.neuron, case.estimator)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.unit(self.pre_activations(x), rows=self.rows))

    def finish(self, out: Tensor) -> Tensor:
        return broadcast_loss(self, self.f(out), "sum")

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        estimator, neuron = self.case.estimator, self.case.neuron
        a = self.pre_activations(x)
        key = fresh_key(a, neuron.event_ndim)
        if self.paths:
            a = a.detach().expand(self.paths, *a.shape)
            key = fresh_path_key(a, neuron.event_ndim, self.paths, False, key.seed)
        draw, state = gradest.ask(neuron, estimator, a, key, dict(self.unit.state) or None)
        h = draw.points[0].to(a.dtype).requires_grad_()
        loss = self.f(self.after(h))
        grad = None
        if "grad" in estimator.needs:
            grad = torch.autograd.grad(loss.sum(), h, retain_graph=True)[0][None]
        gradient, _ = gradest.tell(estimator, draw, gradest.Feedback(loss[None], grad), state)
        value = self.f(self.after(h.detach()))
        return (value.mean(0).sum(), gradient.mean(0)) if self.paths else (value.sum(), gradient)


class Graph(Layer):
    """`gradest.nn.StochasticGraph` with whole-path samples, which are examples to an estimator of one sample."""

    paths = PATHS

    def finish(self, out: Tensor) -> Tensor:
        raise AssertionError("a scope finishes what it began")

    def forward(self, x: Tensor) -> Tensor:
        with StochasticGraph(self, samples=PATHS) as graph:
            graph.add_cost(self.f(self.wrap(self.body, graph.expand(x))))
            return graph.surrogate("sum")

    def by_hand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not _credits_paths(self.case.estimator, self.case.neuron):
            return super().by_hand(x)
        neuron = self.case.neuron
        estimator = self.case.estimator.of_samples(PATHS)  # type: ignore[attr-defined]
        a = self.pre_activations(x)
        wide = a.detach().to(torch.promote_types(a.dtype, torch.float32)).expand(PATHS, *a.shape)
        h = neuron.sample(fresh_path_key(wide, neuron.event_ndim, PATHS, False), wide, 1)[0].to(a.dtype)
        loss = self.f(self.after(h))
        weights, _ = estimator.credit(
            loss.detach().to(torch.promote_types(loss.dtype, wide.dtype)),
            self.unit.state or estimator.init(neuron, wide),
            estimator.features(neuron, h.to(wide.dtype), wide),
        )
        per_path = weights[(..., *[None] * neuron.event_ndim)].to(wide.dtype) * neuron.score(h.to(wide.dtype), wide)  # type: ignore[attr-defined]
        return estimator.combine(loss).sum(), per_path.sum(0)


CALLS: dict[str, type[Program]] = {
    "expect": Function,
    "Expectation": ExpectationLayer,
    "Stochastic": Layer,
    "StochasticGraph": Graph,
}


def _credits_paths(estimator: gradest.Estimator, neuron: gradest.Neuron) -> bool:
    """Whether a layer needs a scope of paths for this estimator."""
    return isinstance(estimator, ScoreFunction) and estimator.evaluations(neuron, (2,) * neuron.event_ndim) > 1


def cases() -> Iterator[Case]:
    """Every pair of the registry, with the examples of its options, in every call that it fits."""
    from gradest.testing import checks

    for estimator, neuron in checks.example_pairs(gradest.registry):
        yield Case("expect", estimator, neuron)
        yield Case("Expectation", estimator, neuron)
        try:
            Stochastic(neuron, estimator)
        except Incompatible:
            continue
        if not _credits_paths(estimator, neuron):
            yield Case("Stochastic", estimator, neuron)
            yield Case("StochasticGraph", estimator, neuron)
        elif "samples" not in estimator.model_fields_set or estimator.evaluations(neuron, (2,)) == PATHS:
            yield Case("StochasticGraph", estimator, neuron)


def gradients(program: nn.Module) -> Gradients:
    """The gradients of all parameters, by name; zeros where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in program.named_parameters()
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed, and afterwards from where the generator was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def step(program: Program, seed: int = 0, given: Tensor | None = None) -> Gradients:
    """The gradients of one training step, in eager code: what every way of use is compared with."""
    program.zero_grad()
    with seeded(seed):
        program(x().to(program.weight) if given is None else given).backward()
    return gradients(program)


def by_hand(program: Program, seed: int = 0) -> Gradients:
    """The gradients of the same step by ask and tell. The state does not move."""
    program.zero_grad()
    with seeded(seed):
        value, gradient = program.by_hand(x().to(program.weight))
    value.backward()
    found = gradients(program)
    found["weight"] = gradient.to(program.cast or program.weight.dtype).to(program.weight.dtype).flatten(1)
    return found
