"""The built-in neurons, one module for each."""

from gradest import Neuron, hookimpl
from gradest_neurons.argmax import Argmax
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.binary_concrete import BinaryConcrete
from gradest_neurons.binomial import Binomial
from gradest_neurons.bipolar import Bipolar
from gradest_neurons.categorical import Categorical
from gradest_neurons.correlated_bernoulli import CorrelatedBernoulli
from gradest_neurons.correlated_binary_concrete import CorrelatedBinaryConcrete
from gradest_neurons.diagonal_gaussian import DiagonalGaussian
from gradest_neurons.gaussian import Gaussian
from gradest_neurons.gumbel_softmax import GumbelSoftmax
from gradest_neurons.hard_concrete import HardConcrete
from gradest_neurons.heaviside import Heaviside
from gradest_neurons.invertible_gaussian import InvertibleGaussian
from gradest_neurons.k_subset import KSubset
from gradest_neurons.logistic_normal import LogisticNormal
from gradest_neurons.noisy_rectifier import NoisyRectifier
from gradest_neurons.noisy_sigmoid import NoisySigmoid
from gradest_neurons.noisy_top_k import NoisyTopK
from gradest_neurons.plackett_luce import PlackettLuce
from gradest_neurons.poisson import Poisson
from gradest_neurons.rectifier import Rectifier
from gradest_neurons.sigmoid import Sigmoid
from gradest_neurons.sign import Sign
from gradest_neurons.sparse_categorical import SparseCategorical
from gradest_neurons.stochastic_gate import StochasticGate
from gradest_neurons.stochastic_rounding import StochasticRounding
from gradest_neurons.stochastic_times_smooth import StochasticTimesSmooth
from gradest_neurons.tempered_binary_concrete import TemperedBinaryConcrete
from gradest_neurons.tempered_gumbel_softmax import TemperedGumbelSoftmax


@hookimpl
def gradest_neurons() -> list[type[Neuron]]:
    """Return the classes of the built-in neurons."""
    return [
        Argmax,
        Bernoulli,
        BinaryConcrete,
        Binomial,
        Bipolar,
        Categorical,
        CorrelatedBernoulli,
        CorrelatedBinaryConcrete,
        DiagonalGaussian,
        Gaussian,
        GumbelSoftmax,
        HardConcrete,
        Heaviside,
        InvertibleGaussian,
        KSubset,
        LogisticNormal,
        NoisyRectifier,
        NoisySigmoid,
        NoisyTopK,
        PlackettLuce,
        Poisson,
        Rectifier,
        Sigmoid,
        Sign,
        SparseCategorical,
        StochasticGate,
        StochasticRounding,
        StochasticTimesSmooth,
        TemperedBinaryConcrete,
        TemperedGumbelSoftmax,
    ]
