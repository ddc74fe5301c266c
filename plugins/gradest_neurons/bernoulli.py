"""The Bernoulli neuron, a stochastic binary unit."""

from gradest.contract.neuron import LogisticBinary


class Bernoulli(LogisticBinary):
    """A binary unit that is 1 with probability σ(a) and 0 otherwise.

    h = 1[z < σ(a)] with z uniform on (0, 1), so P(h = 1) = E[h] = σ(a). At fixed noise h is constant in a almost
    everywhere: dh/da = 0.

    This is the neuron of the proofs in Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients
    Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432. The paper prints h = 1[z > σ(a)], under
    which P(h = 1) would be 1 - σ(a), but its proofs use P(h = 1) = σ(a).
    """

    name = "bernoulli"
    summary = "binary unit, 1 with probability σ(a)"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = \mathbf 1[z < \sigma(a)], \quad z \sim U(0, 1)"
