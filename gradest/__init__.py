"""Gradients of expected losses through neurons whose output is random.

A stochastic neuron turns a pre-activation a and a noise z into an output h = f(a, z). A network that contains such neurons has
no single loss; it has an expectation

    E(a) = E_z[ L(f(a, z)) ],

and training needs its gradient dE/da. Backpropagation gives that gradient only where h moves smoothly with a at fixed noise. A
binary unit does not move at all, then jumps, and backpropagation says 0. An estimator is a rule that gets an estimate of dE/da
from a few evaluations of L, or of L and dL/dh, at well chosen points. Two are enough to see the kinds there are:

    reinforce          L(h) · (h - p)      for a binary h with P(h = 1) = p = σ(a): unbiased for every L, noisy
    straight_through   L'(h) · 1           as if h were a itself: one smooth signal, biased, and it often trains better

Everything in gradest is a plugin with one interface:

    a neuron      forward(a, noise) -> h             backward(a, noise, dL/dh) -> dL/da at fixed noise
    an estimator  forward(neuron, a, key, state)     says at which points it wants L: it asks
                  backward(draw, feedback, state)    turns the answers into the gradient, and the next state: it is told
    an objective  a loss L with a name

The ask/tell pair is the whole of it. `expect` wraps it for autograd, `estimate` averages it, `compare` measures its bias and its
variance against `exact`, `gradest.nn` puts it in layers, and the HTTP service sends it to programs that keep their loss to
themselves. Noise is a pure function of (seed, row, unit, draw): backward regenerates what forward drew, and a row's result never
depends on the batch around it.

    >>> import torch, gradest
    >>> a = torch.zeros(3)
    >>> gradest.sample("bernoulli", a, samples=2, seed=7).shape
    torch.Size([2, 3])
"""

from typing import TYPE_CHECKING

from gradest._lazy import attach

if TYPE_CHECKING:
    from gradest.client import AsyncClient, Client
    from gradest.comparison import Comparison, compare
    from gradest.errors import GradestError
    from gradest.estimator import Bias, Draw, Estimator, Feedback, MonteCarlo, State, Target
    from gradest.executors import RayExecutor
    from gradest.expectation import Estimate, estimate, exact, expect, sample
    from gradest.hookspecs import PLUGIN_API, hookimpl
    from gradest.neuron import (
        Binary,
        Differentiable,
        Discrete,
        LogisticBinary,
        Neuron,
        Relaxable,
        Reparameterised,
        Scored,
        SoftmaxOneHot,
        Step,
    )
    from gradest.objective import Objective, Separable
    from gradest.plugin import Plugin, TensorOption
    from gradest.random import Key
    from gradest.recommendation import Recommendation, recommend
    from gradest.registry import Registry

    registry: Registry
    neuron = Registry().neuron
    estimator = Registry().estimator
    objective = Registry().objective

__all__ = [
    "PLUGIN_API",
    "AsyncClient",
    "Bias",
    "Binary",
    "Client",
    "Comparison",
    "Differentiable",
    "Discrete",
    "Draw",
    "Estimate",
    "Estimator",
    "Feedback",
    "GradestError",
    "Key",
    "LogisticBinary",
    "MonteCarlo",
    "Neuron",
    "Objective",
    "Plugin",
    "RayExecutor",
    "Recommendation",
    "Relaxable",
    "Reparameterised",
    "Scored",
    "Separable",
    "SoftmaxOneHot",
    "State",
    "Step",
    "Target",
    "TensorOption",
    "compare",
    "estimate",
    "estimator",
    "exact",
    "expect",
    "hookimpl",
    "neuron",
    "objective",
    "recommend",
    "registry",
    "sample",
]

_HOMES = {
    "gradest.client": ["AsyncClient", "Client"],
    "gradest.comparison": ["Comparison", "compare"],
    "gradest.errors": ["GradestError"],
    "gradest.estimator": ["Bias", "Draw", "Estimator", "Feedback", "MonteCarlo", "State", "Target"],
    "gradest.executors": ["RayExecutor"],
    "gradest.expectation": ["Estimate", "estimate", "exact", "expect", "sample"],
    "gradest.hookspecs": ["PLUGIN_API", "hookimpl"],
    "gradest.neuron": [
        *["Binary", "Differentiable", "Discrete", "LogisticBinary", "Neuron"],
        *["Relaxable", "Reparameterised", "Scored", "SoftmaxOneHot", "Step"],
    ],
    "gradest.objective": ["Objective", "Separable"],
    "gradest.plugin": ["Plugin", "TensorOption"],
    "gradest.random": ["Key"],
    "gradest.recommendation": ["Recommendation", "recommend"],
    "gradest.registry": ["registry"],
}
_LOOKUPS = {kind: f"gradest.registry:registry.{kind}" for kind in ("neuron", "estimator", "objective")}

attach(__name__, {name: f"{home}:{name}" for home, names in _HOMES.items() for name in names} | _LOOKUPS)
