"""The stochastic sign neuron."""

from gradest.contract.neuron import LogisticBinary


class Bipolar(LogisticBinary):
    """h = 1 if z < σ(a) else -1, z uniform on (0, 1): P(h = 1) = σ(a), E[h] = 2σ(a) - 1, dh/da = 0."""

    name = "bipolar"
    summary = "binary unit, 1 with probability σ(a), else -1"
    reference = "Raiko, Berglund, Alain, Dinh 2014, arXiv 1406.2989"
    formula = r"h = 2 \cdot \mathbf 1[z < \sigma(a)] - 1, \quad z \sim U(0, 1)"

    low = -1.0
    high = 1.0
