"""The categorical neuron."""

from gradest.contract.neuron import SoftmaxOneHot


class Categorical(SoftmaxOneHot):
    """h one-hot over the last dim, P(h_c = 1) = E[h_c] = softmax(a)_c, dh/da = 0; a is `[*batch, units, classes]`.

    Drawn by the Gumbel-max trick: the class where a_c - log(-log z_c) is largest, z uniform on (0, 1) for each class.
    """

    name = "categorical"
    summary = "one of several classes, one-hot, with probabilities softmax(a)"
    reference = "Gumbel 1954; Maddison, Tarlow, Minka 2014, arXiv 1411.0030"
    formula = r"P(h = e_c) = \mathrm{softmax}(a)_c"
