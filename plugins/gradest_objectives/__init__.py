"""The built-in objectives, one module for each."""

from gradest import Objective, hookimpl
from gradest_objectives.cross_entropy import CrossEntropy
from gradest_objectives.linear import Linear
from gradest_objectives.load_balance import LoadBalance
from gradest_objectives.polynomial import Polynomial
from gradest_objectives.quadratic import Quadratic


@hookimpl
def gradest_objectives() -> list[type[Objective]]:
    """Return the classes of the built-in objectives."""
    return [CrossEntropy, Linear, LoadBalance, Polynomial, Quadratic]
