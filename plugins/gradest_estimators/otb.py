"""OTB: a baseline for each token of a sequence."""

from __future__ import annotations

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

    Token by token this is `opo`, which says what it estimates: B contains the sample's own loss, so it is biased, unless
    `leave_one_out` is set. On a layer, all units of a sample share its weight, and W is the squared norm of their score together:
    there it is the same as `opo`. The baseline of each unit by itself is that of `reinforce_centered`.

    Introduced by Li et al. (2026), The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078. The
    formulas of B_t, W and the proxy are those that the documentation of verl gives for it.
    """

    name = "otb"
    summary = "K samples with a weighted mean of the group's losses as baseline for each token"
    reference = "Li et al. 2026, arXiv 2602.07078; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = (
        r"\hat g = \frac1K \sum_k \sum_t (L_{kt} - B_t)\,\nabla \log P(h_{kt}), \quad "
        r"B_t = \frac{\sum_j W_{jt} L_{jt}}{\sum_j W_{jt}}"
    )
