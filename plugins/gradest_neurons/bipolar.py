"""The bipolar neuron, a stochastic sign unit."""

from gradest.contract.neuron import LogisticBinary


class Bipolar(LogisticBinary):
    """A binary unit that is 1 with probability σ(a) and -1 otherwise.

    h = 1 if z < σ(a) else -1, with z uniform on (0, 1), so P(h = 1) = σ(a) and E[h] = 2σ(a) - 1. At fixed noise h is
    constant in a almost everywhere: dh/da = 0. What the Bernoulli unit says of the precision of rare outputs holds here too.

    Used by Raiko, Berglund, Alain and Dinh (2014), Techniques for Learning Binary Stochastic Feedforward Neural
    Networks, arXiv 1406.2989.
    """

    name = "bipolar"
    summary = "binary unit, 1 with probability σ(a), otherwise -1"
    reference = "Raiko, Berglund, Alain, Dinh 2014, arXiv 1406.2989"
    formula = r"h = 2 \cdot \mathbf 1[z < \sigma(a)] - 1, \quad z \sim U(0, 1)"

    low = -1.0
    high = 1.0
