"""The Gumbel-softmax estimator."""

from __future__ import annotations

from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators.concrete import Concrete


class GumbelSoftmax(Concrete):
    """The pathwise gradient of the loss at a softmax relaxation s of the one-hot unit.

    ĝ = L'(s) · ds/da, with s = softmax((a + G)/τ), where G is the Gumbel noise that gives h, so s is largest where h is
    1. L is evaluated at s as well, so it must be defined inside the simplex.

    Unbiased for the gradient of E[L(s)], the relaxed objective, but biased for that of E[L(h)], as is the value.

    Introduced by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144, and
    by Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables,
    arXiv 1611.00712.
    """

    name = "gumbel_softmax"
    summary = "loss and gradient at a softmax relaxation of the one-hot unit"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144; Maddison, Mnih, Teh 2017, arXiv 1611.00712"
    formula = r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \mathrm{softmax}\!\left(\frac{a + G}{\tau}\right)"
    capabilities = (SoftmaxOneHot,)
