"""The built-in estimators, one file each."""

from gradest import Estimator, hookimpl
from gradest_estimators.enumeration import Enumeration
from gradest_estimators.held_noise import HeldNoise
from gradest_estimators.nvil import Nvil
from gradest_estimators.pathwise import Pathwise
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.rebar import Rebar
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.reinforce_centered import ReinforceCentered
from gradest_estimators.relax import Relax
from gradest_estimators.rloo import Rloo
from gradest_estimators.straight_through import StraightThrough


@hookimpl
def gradest_estimators() -> list[type[Estimator]]:
    """The built-in estimators."""
    return [
        Enumeration,
        HeldNoise,
        Nvil,
        Pathwise,
        PathwiseScore,
        Rebar,
        Reinforce,
        ReinforceAverage,
        ReinforceCentered,
        Relax,
        Rloo,
        StraightThrough,
    ]
