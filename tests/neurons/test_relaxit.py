"""The units that relaxit has too, against its samples, which come from another process. Needs gradest[bench].

Each statistic, an entry or a product of two, has a Kolmogorov-Smirnov test of two times 20,000 draws with a false alarm of 1e-6
at most; there are about 50 of them. A difference of .04 in the distribution function is seen with certainty.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

import gradest
from gradest.random import Key

pytestmark = pytest.mark.skipif(find_spec("relaxit") is None, reason="needs gradest[bench]")

A, DRAWS = torch.tensor([0.7, -1.2, 0.3]), 20_000
CORRELATION, TEMPERATURE, STD = 0.7, 0.6, 0.8  # those of the script
SCRIPT = Path(__file__).with_name("relaxit_samples.py")
OPTIONS = {
    "bernoulli": {},
    "stochastic_times_smooth": {},
    "stochastic_gate": {"std": STD},
    "logistic_normal": {"std": STD},
    "invertible_gaussian": {"std": STD},
    "correlated_binary_concrete": {"correlation": CORRELATION, "temperature": TEMPERATURE},
    "categorical": {},
    "hard_concrete": {"temperature": TEMPERATURE, "lower": -0.1, "upper": 1.1},
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("relaxit")
    torch.save({"a": A, "draws": DRAWS}, folder / "inputs.pt")
    subprocess.run([sys.executable, SCRIPT, folder], check=True, timeout=120)
    return torch.load(folder / "samples.pt")


def least_p_value(ours: Tensor, theirs: Tensor) -> float:
    """Of all entries, and of all products of two; atoms may differ in the last digits."""
    assert ours.shape == theirs.shape
    ours, theirs, entries = ours.round(decimals=4), theirs.round(decimals=4), ours.shape[-1]
    columns = [(ours[:, i], theirs[:, i]) for i in range(entries)]
    columns += [
        (ours[:, i] * ours[:, j], theirs[:, i] * theirs[:, j]) for i in range(entries) for j in range(i + 1, entries)
    ]
    return min(stats.ks_2samp(x.numpy(), y.numpy(), method="asymp").pvalue for x, y in columns)


def ours(name: str, a: Tensor = A, **options: float) -> Tensor:
    neuron = gradest.neuron(name, **{**OPTIONS[name], **options})
    event = a[None] if neuron.event_ndim == 2 else a
    h = neuron.sample(Key(5), event[None], DRAWS)
    return h.reshape(DRAWS, -1)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_samples_have_one_law(name, samples):
    assert least_p_value(ours(name), samples[name]) > 1e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_another_law_is_seen(name, samples):
    assert least_p_value(ours(name, A + torch.tensor([0.0, 0.4, 0.0])), samples[name]) < 1e-6


def test_another_correlation_is_seen(samples):
    assert (
        least_p_value(ours("correlated_binary_concrete", correlation=0.4), samples["correlated_binary_concrete"]) < 1e-6
    )


def test_the_relaxed_count_is_that_of_the_estimator(samples):
    estimator = gradest.estimator("generalised_gumbel_softmax", temperature=TEMPERATURE, samples=DRAWS)
    neuron, a = gradest.neuron("binomial", trials=4), A[:1]
    draw = estimator.forward(neuron, a[None], Key(5), {})
    assert least_p_value(draw.points[:, 0], samples["generalised_gumbel_softmax"]) > 1e-6


def test_where_relaxit_is_wrong(samples):
    """Its top k takes the probabilities for logits, so k_subset is not held against it: of k = 1, the shares show that."""
    shares = samples["top_1"].mean(0)
    neuron = gradest.neuron("k_subset", k=1)
    right = neuron.mean(A[None])[0]
    assert float((shares - right).abs().max()) > 0.1
    torch.testing.assert_close(shares, torch.softmax(torch.softmax(A, -1), -1), atol=0.02, rtol=0)
