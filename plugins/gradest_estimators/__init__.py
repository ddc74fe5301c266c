"""The built-in estimators, one module for each method."""

from gradest import Estimator, hookimpl
from gradest_estimators.arm import Arm
from gradest_estimators.arms import Arms
from gradest_estimators.arsm import Arsm
from gradest_estimators.bitflip import Bitflip
from gradest_estimators.carms import Carms
from gradest_estimators.concrete import Concrete, StraightThroughConcrete
from gradest_estimators.decoupled_straight_through import DecoupledStraightThrough
from gradest_estimators.dense_mixer import DenseMixer
from gradest_estimators.disarm import Disarm
from gradest_estimators.double_cv import DoubleCv
from gradest_estimators.dr_grpo import DrGrpo
from gradest_estimators.eat import Eat
from gradest_estimators.enumeration import Enumeration
from gradest_estimators.evolution import Evolution
from gradest_estimators.gapped_straight_through import GappedStraightThrough
from gradest_estimators.generalised_gumbel_softmax import GeneralisedGumbelSoftmax
from gradest_estimators.grpo import Grpo
from gradest_estimators.gumbel_rao import GumbelRao
from gradest_estimators.gumbel_softmax import GumbelSoftmax
from gradest_estimators.gumbel_top_k import GumbelTopK
from gradest_estimators.held_noise import HeldNoise
from gradest_estimators.imle import Imle
from gradest_estimators.lax import Lax
from gradest_estimators.local_expectation import LocalExpectation
from gradest_estimators.measure_valued import MeasureValued
from gradest_estimators.muprop import Muprop
from gradest_estimators.nvil import Nvil
from gradest_estimators.opo import Opo
from gradest_estimators.otb import Otb
from gradest_estimators.pass_at_k import PassAtK
from gradest_estimators.pathwise import Pathwise
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.rebar import Rebar
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.reinforce_centered import ReinforceCentered
from gradest_estimators.reinmax import ReinMax
from gradest_estimators.relax import Relax, RelaxRebar
from gradest_estimators.rloo import Rloo
from gradest_estimators.rodeo import Rodeo
from gradest_estimators.simple import Simple
from gradest_estimators.slope_annealed_straight_through import SlopeAnnealedStraightThrough
from gradest_estimators.smoothed_perturbation import SmoothedPerturbation
from gradest_estimators.sparse_enumeration import SparseEnumeration
from gradest_estimators.sparse_mixer import SparseMixer
from gradest_estimators.spsa import Spsa
from gradest_estimators.straight_through import StraightThrough
from gradest_estimators.straight_through_gumbel import StraightThroughGumbel
from gradest_estimators.sum_and_sample import SumAndSample
from gradest_estimators.surrogate import Surrogate
from gradest_estimators.ugc import Ugc
from gradest_estimators.unordered_set import UnorderedSet
from gradest_estimators.vimco import Vimco


@hookimpl
def gradest_estimators() -> list[type[Estimator]]:
    """Return the classes of the built-in estimators."""
    return [
        Arm,
        Arms,
        Arsm,
        Bitflip,
        Carms,
        Concrete,
        StraightThroughConcrete,
        DenseMixer,
        DecoupledStraightThrough,
        Disarm,
        DoubleCv,
        DrGrpo,
        Enumeration,
        Evolution,
        Eat,
        GappedStraightThrough,
        GeneralisedGumbelSoftmax,
        Grpo,
        GumbelRao,
        GumbelSoftmax,
        GumbelTopK,
        HeldNoise,
        Imle,
        Lax,
        LocalExpectation,
        MeasureValued,
        Muprop,
        Nvil,
        Opo,
        Otb,
        PassAtK,
        Pathwise,
        PathwiseScore,
        Rebar,
        Reinforce,
        ReinforceAverage,
        ReinforceCentered,
        ReinMax,
        Relax,
        RelaxRebar,
        Rloo,
        Rodeo,
        Simple,
        SlopeAnnealedStraightThrough,
        SmoothedPerturbation,
        SparseEnumeration,
        SparseMixer,
        Spsa,
        StraightThrough,
        StraightThroughGumbel,
        SumAndSample,
        Surrogate,
        Ugc,
        UnorderedSet,
        Vimco,
    ]
