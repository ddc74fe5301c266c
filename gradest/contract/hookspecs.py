"""The guide for authors of plugins, and the three hooks. Writing a plugin takes ten lines:

    # my_plugin.py
    import gradest
    from gradest.contract.estimator import Bias, MonteCarlo
    from gradest.kernels.reference import leading_mean
    from gradest.contract.neuron import Binary

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
conformance kit have it. In a notebook `gradest.registry.register(Damped)` does the same without a distribution, and
`gradest.registry.unregister(Damped)` takes it back.

Start and check
---------------
`gradest new-plugin my-plugin` writes a package to start from: a neuron, an estimator with a state, their tests, a CI file. It
passes its tests as it is written.

`gradest check my-plugin` runs the conformance kit on all that a plugin brings. It takes an installed distribution, a module, a
.py file or a project's folder. Estimators are tried on every neuron that they accept, built-in or the plugin's own; its neurons
also under the built-in estimators. What is wrong is said in words; the exit code is 1 then. `--fast` leaves out the measurement
of bias, `--json` is for scripts. `pytest --gradest-plugin my-plugin` runs the same checks as tests, which `-k` and `-n` know how
to treat. `gradest.testing` has the checks as functions, `gradest.conformance` runs them on a plugin.

Hooks
-----
A module, or any object, that an entry point of the group `gradest` names implements one or more of

    gradest_neurons()       subclasses of Neuron       gradest/neuron.py has the contract
    gradest_estimators()    subclasses of Estimator    gradest/estimator.py
    gradest_objectives()    subclasses of Objective    gradest/objective.py

each marked with `@gradest.hookimpl`, each returning a list of classes. The classes are built with the options that a user gives;
they are frozen pydantic models whose fields are the options, and all but an objective's need defaults. `gradest describe`, the
flags of the command line and the service's schemas follow from the fields. `examples`, a tuple of sets of options, says which
instances the kit checks; give one for each branch that an option takes.

A distribution is let in whole or not at all. What did not load, and why, is in `gradest.registry.failures`, in `gradest list` and
at /v1/plugins of the service. The module may state the contract it was written for as `GRADEST_PLUGIN_API = 1`; another number
than `gradest.PLUGIN_API` keeps it from loading, with a failure that says so.

Names
-----
`name` is lower_snake_case and unique among the neurons, the estimators or the objectives of all that is installed; the built-in
ones come first, then distributions by name, and whoever comes second with a name is not loaded. A prefix of your own keeps you
clear of others. `summary` is a line for tables, `reference` authors, year and arXiv id.

What an estimator states
------------------------
needs: {"loss"}, {"grad"} or both: what the caller must bring back from the points.
capabilities: what a neuron must be, such as `Discrete` or `LogisticBinary`. What they do not express goes into `accepts`.
bias(neuron): a claim, which the kit holds against exact enumeration, both ways. `Bias.NONE` must match on every loss,
    `Bias.exact_to_order(n)` on polynomials of degree n, and what is claimed to be biased must be seen to differ. `gradest certify
    --package my_plugin` measures it with care, and writes certificates.json into the package, where `gradest describe` and
    `gradest recommend` find it.
off_support: True if the loss is asked for elsewhere than at outputs of the neuron, as at a relaxed output or at the mean.
target(): what is estimated, if it is not E[L]: `Target(n)` for the bound of n samples, against which the kit then measures.
evaluations(neuron, event_shape): K, how many points a step asks for.

`MonteCarlo` has all but `needs`, `bias` and `backward` for an estimator that asks at independent samples. Three rules hold
throughout, and most of what the kit finds breaks one of them:

- Noise comes from the key (`neuron.noise(key, a, n)`, `key.with_stream(1)` for more), never from torch's generator.
- State goes in and comes out; no argument is changed. A baseline is used first and moved afterwards.
- A row's result has the same bits in any batch. Only the next state may gather over rows. `gradest.kernels.reference` has a
  sigmoid, a softplus and sums of which this is true; of torch's own sigmoid it is not.

Environment
-----------
GRADEST_LOAD_PLUGINS: a list of distributions, with commas; third-party plugins not in it are not imported (empty: none are).
GRADEST_STRICT_PLUGINS: 1 raises PluginError for the first plugin that does not load, instead of going on without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gradest.contract.estimator import Estimator
    from gradest.contract.neuron import Neuron
    from gradest.contract.objective import Objective

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
