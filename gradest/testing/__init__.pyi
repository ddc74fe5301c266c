from .checks import ESTIMATOR_CHECKS as ESTIMATOR_CHECKS
from .checks import NEURON_CHECKS as NEURON_CHECKS
from .checks import OBJECTIVE_CHECKS as OBJECTIVE_CHECKS
from .checks import BiasRecord as BiasRecord
from .checks import measure_bias as measure_bias
from .checks import neurons as neurons
from .checks import objectives as objectives
from .checks import pairs as pairs
