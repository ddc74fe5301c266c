"""What a sample of the later units costs, against the same lines in eager torch, with and without kernels.

Some of these units have a kernel of their own, others that of a simpler unit, or of their noise. The measure is the CPU time of
one thread, in turns, which other processes change less than the time on the clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import gradest

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

GROUP = 8  # items or classes of a unit


def gumbel(a: Tensor) -> Tensor:
    return a - torch.log(-torch.log(torch.rand_like(a)))


def logistic(a: Tensor) -> Tensor:
    u = torch.rand_like(a)
    return a + torch.log(u) - torch.log1p(-u)


def correlated(a: Tensor) -> Tensor:
    return math.sqrt(0.5) * (torch.randn_like(a[..., :1]) + torch.randn_like(a))


def k_subset(a: Tensor) -> Tensor:
    """The k largest of a + Gumbel noise: another law, of nearly the same work as the least that one could write."""
    return torch.zeros_like(a).scatter(-1, gumbel(a).topk(2).indices, 1)


def noisy_top_k(a: Tensor) -> Tensor:
    largest = (a + torch.randn_like(a)).topk(2)
    return torch.zeros_like(a).scatter(-1, largest.indices, torch.softmax(largest.values, -1))


def tempered_binary_concrete(a: Tensor) -> Tensor:
    return torch.sigmoid(logistic(a[..., 0]) * torch.exp(-a[..., 1]))


def tempered_gumbel_softmax(a: Tensor) -> Tensor:
    return torch.softmax(gumbel(a[..., :-1]) * torch.exp(-a[..., -1:]), -1)


def diagonal_gaussian(a: Tensor) -> Tensor:
    return a[..., 0] + torch.exp(a[..., 1]) * torch.randn_like(a[..., 0])


def logistic_normal(a: Tensor) -> Tensor:
    return torch.softmax(a + torch.randn_like(a), -1)


def invertible_gaussian(a: Tensor) -> Tensor:
    return torch.softmax(torch.nn.functional.pad(a + torch.randn_like(a), (0, 1)), -1)


def sparse_categorical(a: Tensor) -> Tensor:
    """1.5-entmax by sums over the sorted pre-activations, and an inverse distribution function."""
    half = a / 2
    ordered = half.sort(-1, descending=True).values
    count = torch.arange(1, a.shape[-1] + 1)
    mean, square = ordered.cumsum(-1) / count, ordered.square().cumsum(-1) / count
    tau = mean - ((1 - count * (square - mean.square())) / count).clamp(min=0).sqrt()
    last = (tau <= ordered).sum(-1, keepdim=True) - 1
    total = (half - tau.gather(-1, last)).clamp(min=0).square().cumsum(-1)
    place = (total < torch.rand_like(total[..., :1]) * total[..., -1:]).sum(-1)
    return torch.nn.functional.one_hot(place, a.shape[-1]).float()


def stochastic_gate(a: Tensor) -> Tensor:
    return (a + 0.5 + 0.5 * torch.randn_like(a)).clamp(0, 1)


def stochastic_rounding(a: Tensor) -> Tensor:
    below = a.floor()
    return below + (torch.rand_like(a) < a - below)


def plackett_luce(a: Tensor) -> Tensor:
    order = gumbel(a).sort(-1, descending=True).indices
    return (order[..., None] == torch.arange(a.shape[-1])).float()


def correlated_bernoulli(a: Tensor) -> Tensor:
    return (correlated(a) > -torch.special.ndtri(torch.sigmoid(a))).float()


def correlated_binary_concrete(a: Tensor) -> Tensor:
    z = correlated(a)
    return torch.sigmoid((a + torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)) / 0.5)


UNITS: dict[Callable[[Tensor], Tensor], tuple[int, ...]] = {
    k_subset: (GROUP,),
    noisy_top_k: (GROUP,),
    plackett_luce: (GROUP,),
    sparse_categorical: (GROUP,),
    logistic_normal: (GROUP,),
    invertible_gaussian: (GROUP,),
    tempered_gumbel_softmax: (GROUP,),
    tempered_binary_concrete: (2,),
    diagonal_gaussian: (2,),
    stochastic_gate: (),
    stochastic_rounding: (),
    correlated_bernoulli: (GROUP,),
    correlated_binary_concrete: (GROUP,),
}
"""The lines by hand, by the name of the unit, and the trailing dims of its pre-activations."""


def without_kernels(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def plain() -> Tensor:
        before = os.environ.get("GRADEST_KERNELS")
        os.environ["GRADEST_KERNELS"] = "reference"
        try:
            return call()
        finally:
            os.environ.pop("GRADEST_KERNELS")
            if before is not None:
                os.environ["GRADEST_KERNELS"] = before

    return plain


def cpu_milliseconds(contenders: dict[str, Callable[[], Tensor]], rounds: int, turn: float) -> dict[str, list[float]]:
    """CPU milliseconds of a call, by contender, in turns of that many seconds, after one that is not counted."""
    repeat = {}
    for name, call in contenders.items():
        call()
        start = time.process_time()
        call()
        repeat[name] = max(1, round(turn / max(time.process_time() - start, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.process_time()
            for _ in range(repeat[name]):
                call()
            found[name].append(1e3 * (time.process_time() - start) / repeat[name])
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("rows", "columns"), [(64, 200), (256, 2048)])
@pytest.mark.parametrize("by_hand", UNITS, ids=lambda unit: unit.__name__)
def test_units_of_several_entries(bench, by_hand, rows, columns):
    last = UNITS[by_hand]
    neuron, key = gradest.neuron(by_hand.__name__), gradest.Key(1)
    a = torch.randn(rows, columns // math.prod(last), *last, generator=torch.Generator().manual_seed(0))

    def sample() -> Tensor:
        return neuron.sample(key, a, 1)

    assert sample()[0].shape == by_hand(a).shape
    assert torch.equal(sample(), without_kernels(sample)())
    contenders = {"gradest": sample, "eager torch": lambda: by_hand(a), "gradest, reference": without_kernels(sample)}
    found = cpu_milliseconds(contenders, *((5, 0.02) if bench.short else (15, 0.1)))
    bench.compare(f"{neuron.name}, forward, CPU time, {' x '.join(map(str, a.shape))}", found)
