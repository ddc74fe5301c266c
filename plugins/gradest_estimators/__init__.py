"""The built-in estimators, one file each."""

from gradest import Estimator, hookimpl
from gradest_estimators.arsm import Arsm
from gradest_estimators.enumeration import Enumeration
from gradest_estimators.gumbel_rao import GumbelRao
from gradest_estimators.held_noise import HeldNoise
from gradest_estimators.measure_valued import MeasureValued
from gradest_estimators.pathwise import Pathwise
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.reinforce_centered import ReinforceCentered
from gradest_estimators.reinmax import ReinMax
from gradest_estimators.rloo import Rloo
from gradest_estimators.straight_through import StraightThrough
from gradest_estimators.straight_through_gumbel import StraightThroughGumbel
from gradest_estimators.sum_and_sample import SumAndSample
from gradest_estimators.unordered_set import UnorderedSet


@hookimpl
def gradest_estimators() -> list[type[Estimator]]:
    """The built-in estimators."""
    return [
        Arsm,
        Enumeration,
        GumbelRao,
        HeldNoise,
        MeasureValued,
        Pathwise,
        PathwiseScore,
        ReinMax,
        Reinforce,
        ReinforceAverage,
        ReinforceCentered,
        Rloo,
        StraightThrough,
        StraightThroughGumbel,
        SumAndSample,
        UnorderedSet,
    ]
