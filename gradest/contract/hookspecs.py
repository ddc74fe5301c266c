"""The guide for authors of plugins, and the three hooks that a plugin implements.

A plugin takes ten lines:

    # my_plugin.py
    import gradest
    from gradest.contract.numerics import leading_mean

    class Damped(gradest.MonteCarlo):
        name, summary = "damped", "half of straight-through"
        needs, capabilities = frozenset({"grad"}), (gradest.Binary,)

        def bias(self, neuron):
            return gradest.Bias.BIASED

        def backward(self, draw, feedback, state):
            return 0.5 * leading_mean(feedback.get_grad()), state

    @gradest.hookimpl
    def gradest_estimators():
        return [Damped]

    # pyproject.toml
    [project.entry-points.gradest]
    my_plugin = "my_plugin"

Install the distribution beside gradest. Then `gradest list`, `gradest.estimator("damped")`, the HTTP service and the
conformance kit have the plugin. In a notebook `gradest.registry.register(Damped)` does the same without a distribution, and
`gradest.registry.unregister(Damped)` removes it again. A cell that runs again replaces its earlier definition of the class.

What to import
--------------
A plugin imports `gradest.contract.*`, `gradest.random` and `gradest.errors`, and no other module of gradest. The names that most
plugins need are also in `gradest` itself, such as `gradest.Neuron`, `gradest.Bias` and `gradest.Key`.

    gradest.contract.neuron       Neuron, and its capabilities such as Discrete, Scored, Subset, Reparameterised and Density
    gradest.contract.estimator    Estimator, MonteCarlo, Draw, Feedback, Bias, Cost
    gradest.contract.target       Target, what is estimated if not E[L], and MaxOfSamples, Risk, ConditionalValueAtRisk
    gradest.contract.score_function    ScoreFunction, for weights of the scores that follow from the losses of K samples
    gradest.contract.objective    Objective, Separable
    gradest.contract.plugin       Plugin, the base class of all three, and TensorOption
    gradest.contract.modules      ModuleOption, and what an estimator does with a torch.nn.Module
    gradest.contract.law          all joint outcomes of an event, with their probabilities
    gradest.contract.numerics     arithmetic whose result for a row does not depend on the batch: leading_sum, leading_mean,
                                  sigmoid, softplus, logit, sinh_cosh, normal_cdf, quadrature, and the
                                  kernels
    gradest.random                Key, the source of all noise
    gradest.errors                the exceptions, such as InvalidInput for input that the caller must correct

Start and check
---------------
`gradest new-plugin my-plugin` writes a package to start from: a neuron, an estimator with a state, their tests and a CI file. Its
tests pass as written.

`gradest check my-plugin` runs the conformance kit on everything that a plugin registers. It takes an installed distribution, a
module, a .py file or the folder of a project. Each estimator is tried on every neuron that it accepts, built in or the plugin's
own, and each neuron of the plugin also with the built-in estimators. Each failure is explained in words, and the exit code is
then 1. `--fast` omits the measurement of bias; `--json` is for scripts. `pytest --gradest-plugin my-plugin` runs the same checks
as tests, with which `-k` and `-n` work as usual. `gradest.testing` has the checks as functions, and `gradest.testing.suite` runs
them on a whole plugin.

Hooks
-----
An entry point of the group `gradest` names a module or another object, which implements one or more of these hooks:

    gradest_neurons()       returns subclasses of Neuron       see gradest/contract/neuron/ for the contract
    gradest_estimators()    returns subclasses of Estimator    see gradest/contract/estimator.py
    gradest_objectives()    returns subclasses of Objective    see gradest/contract/objective.py

Mark each with `@gradest.hookimpl`; each returns a list of classes. gradest builds the classes with the options that a user
gives. They are frozen pydantic models whose fields are the options, and every option needs a default, except those of objectives.
`gradest describe`, the flags of the command line and the schemas of the service follow from the fields. The class attribute
`examples`, a tuple of sets of options, says which instances the kit checks; include one for each branch that an option selects.

An option may be a torch.nn.Module, such as a control variate of the user's own, if its type is `gradest.ModuleOption`. Python
code alone can give it: the schemas of the service leave it out and list it under x-python-only with the reason, which `gradest
describe` shows, and a request with it is refused. An estimator keeps the module's tensors in its state, by `module_state`, calls
it with them, by `call_module`, and learns them there, so that layers save and copy them. The module itself stays as it was. That
a row has the same bits in any batch is then up to the module; the matrix products of torch do not promise it, so use other
operations in those of `examples`. A neuron takes a module that is not to be trained, an objective any.

If one class of a distribution is rejected, none of the distribution is loaded. `gradest.registry.failures`, `gradest list` and
the route /v1/plugins of the service show what was not loaded, and why. The module may state the version of the contract that it
was written for, as `GRADEST_PLUGIN_API = 2`. gradest supports a range of versions, from `gradest.OLDEST_PLUGIN_API` to
`gradest.PLUGIN_API`, the present one. A module written for another is not loaded, and the failure names the range.

Commands
--------
A distribution can also add commands to the command line, as gradest adds `serve` and `train`: an entry point of the group
`gradest.commands`, such as `fit = "my_plugin.cli:fit"`, makes `gradest fit` call that object, a `typer.Typer`, a click command or
a function of (arguments, prog_name). `gradest --help` reads its line from the first line of the docstring, without an import, so
keep slow imports inside functions. `gradest/cli/plugins.py` has the rules, and what happens to a command that does not load.

Names
-----
`name` is lower_snake_case and must be unique among all installed neurons, estimators or objectives. If two plugins use the same
name, the one that loads first keeps it, and the other distribution is not loaded. Built-in plugins load first, then
distributions in alphabetical order. A prefix of your own avoids such conflicts. `summary` is one line for tables; `reference`
gives authors, year and arXiv id.

What a neuron states
--------------------
event_ndim: how many trailing dims of the pre-activations are one event, 1 for units, 2 for units of several numbers each.
output_event(event): the event of the outputs, if it is not that of the pre-activations. A unit of a mean and a log std maps
    (units, 2) to (units,); one that draws a permutation matrix from n scores maps (units, n) to (units, n, n). Outputs, the mean,
    the values of the law and dL/dh have that shape, scores and gradients that of the pre-activations. Its first dim counts units,
    which are independent: `exact` multiplies their probabilities. It raises InvalidInput for a shape that the neuron cannot take.
example_events: shapes of events on which the kit tries the neuron, if it does not take those of 2 units, with 3 and 2 as their
    further dims.
check(a): raises InvalidInput for values that the neuron cannot take, such as a scale that overflows.
atoms(event): how many outputs `law` lists for a unit. It is asked first, so that a sum over 2^30 outputs is refused before memory
    is taken. A `Discrete` neuron with a `support` has it from there; one whose outputs are many overrides it.
quadrature(a, level), of a `Continuous` neuron, and truncated_law(a, level), of a `Discrete` one with infinitely many outputs: the
    law at levels, each of which reaches further into the tails, so that `exact` sees what a level leaves out.
draw_size(event): how many elements it takes to draw one output, if that is more than the event or the output has.
mean_cost(event, batch): what `mean` and `active_probability` take, if that is more than to draw one output: nodes, or tables.
law_size(a): how many elements the values of `law` have. It follows from `atoms(event)`; override it where `a` decides.
kernel_devices: the types of devices for which it has a kernel of its own; see below.
capabilities: the classes that it derives from, such as `Discrete`. `Binary` and `SoftmaxOneHot` are for outputs of the shape of
    `a`.

What an estimator states
------------------------
needs: {"loss"}, {"grad"} or both: what the caller must return for each point.
capabilities: the classes that a neuron must be an instance of, such as `Discrete` or `LogisticBinary`. Override `accepts` for
    conditions that classes cannot express.
bias(neuron): a claim, which the kit tests in both directions against exact enumeration. An estimator that claims `Bias.NONE` must
    match the exact gradient on every loss, one that claims `Bias.NONE_IF_CONTINUOUS` on every loss that is continuous and
    differentiable almost everywhere (pathwise terms need that, because dL/dh does not show jumps), one that claims
    `Bias.exact_to_order(n)` on polynomials of degree n, and one that claims to be biased must differ measurably. `gradest
    certify --package my_plugin` measures the bias with more draws, for the default options and each of `examples`, also of
    other estimators on the package's neurons. It writes certificates.json into the package, or my_plugin.certificates.json beside
    a single module, where `gradest describe` and `gradest recommend` find it.
off_support: True if the estimator needs the loss at points that the neuron never emits, such as a relaxed output or the mean.
linear: False if `backward` is not linear in dL/dh. A `gradest.nn.Stochastic` then refuses the estimator, because autograd hands a
    layer dL/dh scaled and summed; the kit checks it.
target(): what is estimated, if it is not E[L]; see below. `exact`, `compare` and the kit then measure against that.
evaluations(neuron, event_shape): K, the number of points of one draw.
cost(neuron, event, batch): what a draw holds and computes beside the loss, stated before it runs, in elements of points. By
    default that of the K points. An estimator with inner samples, a network, or all pairs of its samples adds them. The kit
    measures both and compares, with the factors that `gradest.contract.estimator.Cost` states.

What an objective states
------------------------
differentiable: False if autograd has no dL/dh, or not all of it, as for a loss that rounds. Estimators that need dL/dh then
    refuse it, and `compare` and `recommend` leave those out and show the reason.
pointwise: True if `__call__` takes one point, `[*event']`, and returns one number, as a simulator does. gradest then calls it
    once for each of the K points of each row, and of each draw.
expectation(neuron, a): E[L(h)] in closed form, if there is one.

Losses may be wider than the pre-activations, float64 beside float32: take their differences before you convert them, and keep
averages of them in float64. Losses and derivatives are finite, unless the caller allowed infinite ones.

`MonteCarlo` implements everything except `needs`, `bias` and `backward` for an estimator whose points are independent samples.
`ScoreFunction` implements everything except `credit` for one that weights the scores of independent samples by a function of
their losses; it then also serves whole-path samples in `gradest.nn.StochasticGraph`, and `gradest.score_surrogate`. A layer
tells an estimator that needs the loss and dL/dh at a single point one after the other, so its gradient must be a term in the
loss plus a term that is linear in dL/dh.

Most of what the kit finds breaks one of three rules, which hold for every method:

- Noise comes from the key (`neuron.noise(key, a, n)`, and `key.with_stream(1)` for more), never from torch's generator.
- State is passed in and returned; no argument is changed. A baseline is used before it is updated.
- The result for a row has the same bits in any batch; only the next state may combine rows. The sigmoid, the softplus and the
  sums of `gradest.contract.numerics` satisfy this. torch's own sigmoid and sums do not.

A target of your own
--------------------
An estimator of something else than E[L] returns it as its `target()`. `Target(n)` is the bound of n samples, `MaxOfSamples(k)`
the largest reward of k of them (pass@k), `Risk(aversion)` the entropic risk log E[exp(β L)] / β, and
`ConditionalValueAtRisk(level)` the mean of the largest losses. A target of your own is a frozen dataclass:

    @dataclasses.dataclass(frozen=True)
    class ExponentialLoss(gradest.Target):             # E[exp L]
        def combine(self, loss):                       # losses of n samples, [n, ...] to [...]; samples is 1 by default
            return loss.exp().mean(0)

    @dataclasses.dataclass(frozen=True)
    class LogExponentialLoss(ExponentialLoss):         # log E[exp L]
        def outer(self, value, probability):           # values of combine with their probabilities, [S, ...] to [...]
            return (probability * value).sum(0).log()

    gradest.exact(f, a, "bernoulli", LogExponentialLoss())

The estimator's `value` estimates the target too, and so does `combine` of a `ScoreFunction`. The kit checks that, and the
gradient, against enumeration. `compare` and `recommend` choose only estimators of E[L]; `compare` takes another by its name.

A fused kernel of your own
--------------------------
A neuron may override `sample` with a kernel that draws and computes in one pass. `key.row_words(batch, device)` gives the kernel
the words from which a row's numbers follow, and its docstring the arithmetic; `gradest.random.philox4x32` is the generator.

    class Fast(Coin):
        kernel_devices = ("cuda",)

        def sample(self, key, a, draws):
            if a.device.type != "cuda" or a.dtype != torch.float32 or (a.requires_grad and torch.is_grad_enabled()):
                return super().sample(key, a, draws)
            word0, word1, row = key.row_words(a.shape[:-1], a.device)
            return my_kernel(word0, word1, row, key.stream, a, draws)

The neuron's `forward` and `noise` stay the definition, from which other devices and dtypes compute. The kit compares every bit on
the CPU and on each of `kernel_devices` that the machine has, for all dtypes, batches, numbers of draws and kinds of keys. It
warns of a device that it could not try. `antithetic`, `pullback`, `weighted_score` and `leave_one_out_score` may be overridden in
the same way; the last three may round differently.

Environment
-----------
GRADEST_LOAD_PLUGINS: a comma-separated list of distributions. Third-party plugins that are not in it are not imported; an empty
    value excludes all of them.
GRADEST_STRICT_PLUGINS: 1 raises PluginError for the first plugin that does not load, instead of continuing without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from gradest.contract.estimator import Estimator
    from gradest.contract.neuron import Neuron
    from gradest.contract.objective import Objective

__all__ = [
    "OLDEST_PLUGIN_API",
    "PLUGIN_API",
    "gradest_estimators",
    "gradest_neurons",
    "gradest_objectives",
    "hookimpl",
    "hookspec",
]

PLUGIN_API = 2
"""The version of the plugin contract."""

OLDEST_PLUGIN_API = 2
"""The oldest version of the contract for which a plugin may be written and still be loaded."""

hookspec = pluggy.HookspecMarker("gradest")
"""Marks a hook that gradest calls."""

hookimpl = pluggy.HookimplMarker("gradest")
"""Marks a plugin's implementation of a hook, as a decorator."""


@hookspec
def gradest_neurons() -> list[type[Neuron]]:  # type: ignore[empty-body]  # a specification has no body
    """The plugin's neurons: subclasses of `gradest.Neuron`."""


@hookspec
def gradest_estimators() -> list[type[Estimator]]:  # type: ignore[empty-body]
    """The plugin's estimators: subclasses of `gradest.Estimator`."""


@hookspec
def gradest_objectives() -> list[type[Objective]]:  # type: ignore[empty-body]
    """The plugin's objectives: subclasses of `gradest.Objective`."""
