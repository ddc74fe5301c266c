"""The checks of the conformance kit: what every neuron, estimator and objective must do, built-in or not.

    import gradest
    import pytest
    from gradest import testing

    @pytest.mark.parametrize("check", testing.ESTIMATOR_CHECKS, ids=lambda check: check.__name__)
    def test_my_estimator(check):
        check(MyEstimator(), gradest.neuron("bernoulli"))

A check is a function that returns None, or raises AssertionError with a diagnosis of what is wrong. `NEURON_CHECKS` take a
neuron, `ESTIMATOR_CHECKS` an estimator and a neuron that it accepts, `OBJECTIVE_CHECKS` an objective.

Statistical checks use fixed seeds, so for unchanged code they always pass or always fail. For a correct implementation and a new
seed, each number that is compared would fail with probability below 6e-7 (five standard errors). `measure_bias` draws until a
wrong sign or a factor of two would show as a difference of at least ten standard errors.

The checks are in modules by the question that they answer: `shapes`, `purity`, `robustness`, `laws`, `gradients` and
`objectives`. `gradest.testing.suite` runs all of them on everything that a plugin provides, for `gradest check` and
`pytest --gradest-plugin`.
"""

from __future__ import annotations

from collections.abc import Callable

from gradest.analysis.bias import BiasRecord, measure_bias
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Objective
from gradest.discovery.registry import Registry
from gradest.testing.gradients import estimator_bias_is_as_claimed, estimator_fits_layers
from gradest.testing.laws import (
    neuron_derivatives_agree,
    neuron_exact_agrees,
    neuron_law_agrees,
    neuron_units_are_independent,
)
from gradest.testing.objectives import objective_expectation_agrees, objective_shapes_and_values
from gradest.testing.purity import (
    estimator_is_pure,
    estimator_regenerates,
    estimator_rows_are_independent,
    estimator_uses_the_key,
    neuron_is_pure,
    neuron_kernels_agree,
    neuron_rows_are_independent,
    neuron_samples_are_forward,
)
from gradest.testing.robustness import (
    estimator_cost_is_as_stated,
    estimator_state_stays_finite,
    estimator_survives_saturation,
    neuron_costs_are_as_stated,
    neuron_survives_saturation,
)
from gradest.testing.shapes import estimator_keeps_dtypes, estimator_shapes_and_dtypes, neuron_shapes_and_dtypes

__all__ = [
    "ESTIMATOR_CHECKS",
    "NEURON_CHECKS",
    "OBJECTIVE_CHECKS",
    "BiasRecord",
    "estimator_bias_is_as_claimed",
    "estimator_cost_is_as_stated",
    "estimator_fits_layers",
    "estimator_is_pure",
    "estimator_keeps_dtypes",
    "estimator_regenerates",
    "estimator_rows_are_independent",
    "estimator_shapes_and_dtypes",
    "estimator_state_stays_finite",
    "estimator_survives_saturation",
    "estimator_uses_the_key",
    "example_neurons",
    "example_objectives",
    "example_pairs",
    "measure_bias",
    "neuron_costs_are_as_stated",
    "neuron_derivatives_agree",
    "neuron_exact_agrees",
    "neuron_is_pure",
    "neuron_kernels_agree",
    "neuron_law_agrees",
    "neuron_rows_are_independent",
    "neuron_samples_are_forward",
    "neuron_shapes_and_dtypes",
    "neuron_survives_saturation",
    "neuron_units_are_independent",
    "objective_expectation_agrees",
    "objective_shapes_and_values",
]


def example_neurons(registry: Registry) -> list[Neuron]:
    """Build every registered neuron with each of the option sets in its `examples`.

    >>> import gradest
    >>> len(gradest.testing.example_neurons(gradest.registry)) >= len(gradest.registry.neurons)
    True
    """
    return [cls.build(**options) for cls in registry.neurons.values() for options in cls.examples]


def example_pairs(registry: Registry) -> list[tuple[Estimator, Neuron]]:
    """Pair every registered estimator with every neuron that it accepts, both built with each of their `examples`."""
    built = [cls.build(**options) for cls in registry.estimators.values() for options in cls.examples]
    return [
        (estimator, neuron) for estimator in built for neuron in example_neurons(registry) if estimator.accepts(neuron)
    ]


def example_objectives(registry: Registry) -> list[Objective]:
    """Build every registered objective with each of the option sets in its `examples`."""
    return [cls.build(**options) for cls in registry.objectives.values() for options in cls.examples]


NEURON_CHECKS: tuple[Callable[[Neuron], None], ...] = (
    neuron_shapes_and_dtypes,
    neuron_is_pure,
    neuron_samples_are_forward,
    neuron_kernels_agree,
    neuron_rows_are_independent,
    neuron_survives_saturation,
    neuron_costs_are_as_stated,
    neuron_law_agrees,
    neuron_exact_agrees,
    neuron_units_are_independent,
    neuron_derivatives_agree,
)
"""The checks of a neuron: functions that raise AssertionError, with an explanation, where it breaks the contract."""
ESTIMATOR_CHECKS: tuple[Callable[[Estimator, Neuron], None], ...] = (
    estimator_shapes_and_dtypes,
    estimator_is_pure,
    estimator_keeps_dtypes,
    estimator_state_stays_finite,
    estimator_regenerates,
    estimator_uses_the_key,
    estimator_rows_are_independent,
    estimator_survives_saturation,
    estimator_cost_is_as_stated,
    estimator_fits_layers,
    estimator_bias_is_as_claimed,
)
"""The checks of an estimator on a neuron that it accepts."""
OBJECTIVE_CHECKS: tuple[Callable[[Objective], None], ...] = (
    objective_shapes_and_values,
    objective_expectation_agrees,
)
"""The checks of an objective."""
