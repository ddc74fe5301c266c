"""The stochastic binary neuron."""

from gradest.contract.neuron import LogisticBinary


class Bernoulli(LogisticBinary):
    """h = 1[z < σ(a)], z uniform on (0, 1): P(h = 1) = E[h] = σ(a), dh/da = 0.

    Bengio, Léonard and Courville 2013 (arXiv 1308.3432) print h = 1[z > σ(a)], under which P(h = 1) would be 1 - σ(a), while
    their proofs use P(h = 1) = σ(a). This is the neuron of the proofs.
    """

    name = "bernoulli"
    summary = "binary unit, 1 with probability σ(a)"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = \mathbf 1[z < \sigma(a)], \quad z \sim U(0, 1)"
