"""The built-in estimators, one file each."""

from gradest import Estimator, hookimpl
from gradest_estimators.arm import Arm
from gradest_estimators.arms import Arms
from gradest_estimators.bitflip import Bitflip
from gradest_estimators.concrete import Concrete, StraightThroughConcrete
from gradest_estimators.disarm import Disarm
from gradest_estimators.double_cv import DoubleCv
from gradest_estimators.enumeration import Enumeration
from gradest_estimators.held_noise import HeldNoise
from gradest_estimators.local_expectation import LocalExpectation
from gradest_estimators.muprop import Muprop
from gradest_estimators.pathwise import Pathwise
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.reinforce_centered import ReinforceCentered
from gradest_estimators.reinmax import Reinmax
from gradest_estimators.rloo import Rloo
from gradest_estimators.smoothed_perturbation import SmoothedPerturbation
from gradest_estimators.straight_through import StraightThrough
from gradest_estimators.surrogate import Surrogate
from gradest_estimators.ugc import Ugc


@hookimpl
def gradest_estimators() -> list[type[Estimator]]:
    """The built-in estimators."""
    return [
        Arm,
        Arms,
        Bitflip,
        Concrete,
        StraightThroughConcrete,
        Disarm,
        DoubleCv,
        Enumeration,
        HeldNoise,
        LocalExpectation,
        Muprop,
        Pathwise,
        PathwiseScore,
        Reinforce,
        ReinforceAverage,
        ReinforceCentered,
        Reinmax,
        Rloo,
        SmoothedPerturbation,
        StraightThrough,
        Surrogate,
        Ugc,
    ]
