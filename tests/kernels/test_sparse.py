"""The kernels of maps to the simplex with most entries 0 have the bits of the reference, with ties and at any size."""

import pytest
import torch

from gradest.kernels import cpu, reference

SHAPES = [(5, 3), (7, 1), (3, 40, 10), (20, 300), (3, 2100), (0, 4)]


def numbers(dtype):
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for scale in (0.0, 0.01, 1.0, 6.0, 1e4):
            x = (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
            yield from (x, x.round(), x.mT.contiguous().mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 5, 32, 33])
def test_the_softmax_of_the_largest(k, dtype):
    for x in numbers(dtype):
        if k <= x.shape[-1]:
            assert torch.equal(cpu.top_softmax(x, k), reference.top_softmax(x, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("squared", [True, False])
def test_the_entmax(squared, dtype):
    for given in numbers(dtype):
        x = torch.cat([given, torch.full_like(given[..., :1], -torch.inf)], -1)  # a class that is masked
        p = cpu.entmax(x, squared, False)
        assert torch.equal(p, reference.entmax(x, squared, False))
        assert torch.equal(cpu.entmax(x, squared, True), reference.entmax(x, squared, True))
        torch.testing.assert_close(p.double().sum(-1), torch.ones(x.shape[:-1], dtype=torch.float64), atol=1e-5, rtol=0)
