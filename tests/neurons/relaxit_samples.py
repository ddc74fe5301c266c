"""Draws relaxit's distributions and saves the samples: `python relaxit_samples.py FOLDER`, in a process of its own.

relaxit imports Pyro, which replaces some of torch.distributions. folder/inputs.pt has the pre-activations and the draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from relaxit import distributions as relaxit

CORRELATION, TEMPERATURE, STD = 0.7, 0.6, 0.8


def main(folder: Path) -> None:
    given = torch.load(folder / "inputs.pt")
    a, draws, p = given["a"], given["draws"], torch.sigmoid(given["a"])
    one = torch.tensor(1.0)
    matrix = (1 - CORRELATION) * torch.eye(len(a)) + CORRELATION
    torch.manual_seed(3)
    laws = {
        "bernoulli": relaxit.StraightThroughBernoulli(probs=p),
        "stochastic_gate": relaxit.GaussianRelaxedBernoulli(a + 0.5, torch.full_like(a, STD)),
        "logistic_normal": relaxit.LogisticNormalSoftmax(a, torch.full_like(a, STD)),
        "invertible_gaussian": relaxit.InvertibleGaussian(a, torch.full_like(a, STD), one),
        "correlated_binary_concrete": relaxit.CorrelatedRelaxedBernoulli(p, matrix, torch.tensor(TEMPERATURE)),
        "categorical": relaxit.DecoupledStraightThroughGumbelSoftmax(TEMPERATURE, one, logits=a),
    }
    found = {name: law.sample((draws,)) for name, law in laws.items()}
    # its sample() is that of a Bernoulli unit
    found["stochastic_times_smooth"] = relaxit.StochasticTimesSmooth(probs=p).rsample((draws,))
    # its one uniform number serves all entries, so that they depend on each other: each is drawn alone
    gates = (relaxit.HardConcrete(x.exp(), torch.tensor(TEMPERATURE), 1.1 * one, -0.1 * one) for x in a)
    found["hard_concrete"] = torch.cat([gate.sample((draws,)) for gate in gates], -1)
    # these two draw once for each entry of their parameters
    found["top_1"] = relaxit.GumbelSoftmaxTopK(logits=a.expand(draws, -1), K=torch.tensor(1)).sample()
    counts = torch.distributions.Binomial(4, logits=a[0]).log_prob(torch.arange(5.0)).expand(draws, -1)
    relaxed = relaxit.GeneralizedGumbelSoftmax(torch.arange(5.0), logits=counts, tau=torch.tensor(TEMPERATURE))
    found["generalised_gumbel_softmax"] = relaxed.sample_value()[:, None]
    torch.save(found, folder / "samples.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
