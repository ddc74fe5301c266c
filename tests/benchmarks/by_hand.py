"""Estimators written by hand in torch, with the loss f: forward and backward, as a user would write them without gradest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Loss], object]


def carry(a: Tensor, value: Tensor, gradient: Tensor) -> None:
    (value + ((a - a.detach()) * gradient).sum(-1)).mean().backward()


def reinforce(a: Tensor, f: Loss) -> None:
    p = torch.sigmoid(a.detach())
    h = (torch.rand_like(p) < p).float()
    loss = f(h)
    carry(a, loss, loss[..., None] * (h - p))


def rloo(a: Tensor, f: Loss) -> None:
    p = torch.sigmoid(a.detach())
    h = (torch.rand(2, *a.shape) < p).float()
    loss = f(h)
    mean = loss.mean(0)
    carry(a, mean, ((loss - mean)[..., None] * (h - p)).sum(0))


def disarm(a: Tensor, f: Loss) -> None:
    p, u = torch.sigmoid(a.detach()), torch.rand_like(a)
    h = torch.stack([u < p, 1 - u < p]).float()
    loss = f(h)
    carry(a, loss.mean(0), 0.5 * (loss[0] - loss[1])[..., None] * (h[0] - h[1]) * torch.sigmoid(a.detach().abs()))


def straight_through(a: Tensor, f: Loss) -> None:
    p = torch.sigmoid(a.detach())
    h = (torch.rand_like(p) < p).float()
    f(h + a - a.detach()).mean().backward()


def gumbel_softmax(a: Tensor, f: Loss) -> None:
    f(torch.nn.functional.gumbel_softmax(a, tau=0.5)).mean().backward()


def pathwise(a: Tensor, f: Loss) -> None:
    f(a + torch.randn_like(a)).mean().backward()


PAIRS: dict[tuple[str, str], Step] = {
    ("bernoulli", "reinforce"): reinforce,
    ("bernoulli", "rloo"): rloo,
    ("bernoulli", "disarm"): disarm,
    ("bernoulli", "straight_through"): straight_through,
    ("categorical", "gumbel_softmax"): gumbel_softmax,
    ("gaussian", "pathwise"): pathwise,
}
