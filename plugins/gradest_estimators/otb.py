"""OTB: a baseline for each token of a sequence, and for each unit of a layer."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.numerics import leading_sum
from gradest_estimators._score import scores
from gradest_estimators.opo import Opo


class Otb(Opo):
    """The score function for a group of K samples, with a baseline for each token that is a weighted mean of the group.

    ĝ = 1/K Σ_k Σ_t (L_kt - B_t)(d log P(h_kt)/da), with B_t = Σ_j W_jt L_jt / Σ_j W_jt and L_kt the cost-to-go at token t.

    For sequences W, `[K, *batch, T]`, is given as features: the energy of a sequence up to and including token t, which is the
    sum of the squared norms of its scores. That of token j in its logits is 1 - 2π_j + Σ_v π_v², with π_j the probability of the
    token and π_v those of the vocabulary (the logit-gradient proxy), so that

        energy = 1 - 2 * log_prob.exp() + logits.softmax(-1).square().sum(-1)      # [K, *batch, T]
        value, state = gradest.score_surrogate(log_prob, loss, "otb", state, features=energy.cumsum(-1))

    with losses of tokens. A loss of the whole sequence is that of its last token. W = 0 leaves padding out of the baseline.

    On a layer of units (`backward`, so in `expect` and `gradest.nn.Expectation`) the units take the place of the tokens: each has
    its own baseline, with its squared score as W. As E[s_i² L] / E[s_i²] is the optimal baseline of unit i, by Corollary 1 of
    Bengio, Léonard and Courville (2013), arXiv 1308.3432, this is its estimate from the group. Where weights are one number a
    sample (`credit`), W is one too, and otb is `opo`.

    What it estimates is said at `opo`, token by token and unit by unit: B contains the sample's own loss, so it is biased, unless
    `leave_one_out` is set.

    Introduced by Li et al. (2026), The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078. The
    formulas of B_t, W and the proxy are those that the documentation of verl gives for it.
    """

    name = "otb"
    summary = "K samples with a weighted mean of the group's losses as baseline for each token or unit"
    reference = "Li et al. 2026, arXiv 2602.07078; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = (
        r"\hat g_i = \frac1K \sum_k (L_k - B_i)\,s_{ki}, \quad B_i = \frac{\sum_j s_{ji}^2 L_j}{\sum_j s_{ji}^2}, \quad "
        r"s_{ki} = \nabla_{a_i} \log P(h_k)"
    )

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k (L_k - B_i) s_ki / K for each unit i, and the state."""
        score = scores(draw)
        energy = score.square()
        unit = score.shape[: score.ndim - draw.neuron.event_ndim + 1]
        if draw.neuron.event_ndim > 1:
            energy = energy.flatten(len(unit)).contiguous().sum(-1)
        loss = feedback.get_loss()[..., None].expand(unit)
        weights, state = self.credit(loss, state, energy)
        return leading_sum(weights[(..., *[None] * (score.ndim - weights.ndim))] * score), state
