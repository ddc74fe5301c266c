from .checks import ESTIMATOR_CHECKS as ESTIMATOR_CHECKS
from .checks import NEURON_CHECKS as NEURON_CHECKS
from .checks import OBJECTIVE_CHECKS as OBJECTIVE_CHECKS
from .checks import BiasRecord as BiasRecord
from .checks import example_neurons as example_neurons
from .checks import example_objectives as example_objectives
from .checks import example_pairs as example_pairs
from .checks import measure_bias as measure_bias
