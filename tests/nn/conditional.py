"""A conditional layer with its input and gates, and the dense layer that it is compared with."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from gradest.nn import ConditionalLinear

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def problem(batch, inputs, units, block, dtype=torch.float32, share=0.4, seed=0, **options):
    """A layer, inputs, and gates of which some are 0; the weights of the layer follow from the seed."""
    torch.manual_seed(seed)
    layer = ConditionalLinear(inputs, units, block_size=block, method="sparse", dtype=dtype, **options)
    x = torch.randn(batch, inputs, dtype=dtype, requires_grad=True)
    gates = (torch.rand(batch, units // block) < share) * torch.randn(batch, units // block)
    return layer, x, gates.to(dtype)


def dense(layer, x, gates):
    """The sum in float64 that the layer stands for, as a function that autograd differentiates."""
    bias = None if layer.bias is None else layer.bias.double()
    return gates.double().repeat_interleave(layer.block_size, -1) * linear(x.double(), layer.weight.double(), bias)


def output_gradient(out):
    """Of numbers that every dtype has."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)


def differentiate(out, inputs):
    return torch.autograd.grad(out, inputs, output_gradient(out))


def run(layer, x, gates):
    x = x.detach().requires_grad_()
    out = layer(x, gates)
    return (out.detach(), *differentiate(out, (x, layer.weight, layer.bias)))
