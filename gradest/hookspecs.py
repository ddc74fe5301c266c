"""The three hooks of a gradest plugin. Writing one takes ten lines:

    # my_plugin.py
    import gradest
    from gradest.estimator import Bias, MonteCarlo
    from gradest.kernels.reference import leading_mean
    from gradest.neuron import Binary

    class Damped(MonteCarlo):
        name, summary = "damped", "half of straight-through"
        needs, capabilities = frozenset({"grad"}), (Binary,)

        def bias(self, neuron):
            return Bias.BIASED

        def backward(self, draw, feedback, state):
            return 0.5 * leading_mean(feedback.get_grad()), state

    @gradest.hookimpl
    def gradest_estimators():
        return [Damped]

    # pyproject.toml
    [project.entry-points.gradest]
    my_plugin = "my_plugin"

Install the distribution beside gradest, and `gradest list`, `gradest.estimator("damped")`, the HTTP service and the
conformance kit have it. In a notebook `gradest.registry.register(Damped)` does the same without a distribution.

A hook module may state the contract it was written for as `GRADEST_PLUGIN_API = 1`; another number than
`gradest.PLUGIN_API` keeps it from loading, with a failure that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gradest.estimator import Estimator
    from gradest.neuron import Neuron
    from gradest.objective import Objective

__all__ = ["PLUGIN_API", "gradest_estimators", "gradest_neurons", "gradest_objectives", "hookimpl", "hookspec"]

PLUGIN_API = 1
"""The version of the plugin contract."""

hookspec = pluggy.HookspecMarker("gradest")
hookimpl = pluggy.HookimplMarker("gradest")


@hookspec
def gradest_neurons() -> list[type[Neuron]]:  # type: ignore[empty-body]  # a specification has no body
    """The plugin's neurons: subclasses of `gradest.Neuron`."""


@hookspec
def gradest_estimators() -> list[type[Estimator]]:  # type: ignore[empty-body]
    """The plugin's estimators: subclasses of `gradest.Estimator`."""


@hookspec
def gradest_objectives() -> list[type[Objective]]:  # type: ignore[empty-body]
    """The plugin's objectives: subclasses of `gradest.Objective`."""
