"""A model with a layer of binary units in the middle, compiled: what the benchmark of compiled layers and its processes run.

As a program, `python -m tests.benchmarks.compiled LAYER`, it prints the CPU seconds, its own and those of the compilers that it
starts, of its first call forward and backward.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradest.nn import Stochastic, broadcast_loss

PIXELS, CLASSES = 784, 10
Step = Callable[[nn.Module], object]


class ByHand(nn.Module):
    """Straight-through binary units in the operators of torch."""

    def forward(self, a: Tensor) -> Tensor:
        p = torch.sigmoid(a.detach())
        h = (torch.rand_like(p) < p).to(a.dtype)
        return h + a - a.detach()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "straight-through by hand": ByHand,
    "straight_through": lambda: Stochastic("bernoulli", "straight_through"),
    "reinforce": lambda: Stochastic("bernoulli", "reinforce"),
}


def model_and_step(layer: str, images: int, units: int) -> tuple[nn.Module, Step]:
    """A model PIXELS-units-CLASSES with this layer, and a step of training that it or its compiled form can take."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(PIXELS, units), LAYERS[layer](), nn.Linear(units, CLASSES))
    x, y = torch.randn(images, PIXELS), torch.randint(CLASSES, (images,))

    def step(form: nn.Module) -> None:
        model.zero_grad()
        loss = nn.functional.cross_entropy(form(x), y, reduction="none")
        (broadcast_loss(model, loss) if layer == "reinforce" else loss.mean()).backward()

    return model, step


def _cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        torch.set_num_threads(1)
        model, step = model_and_step(sys.argv[1], 100, 200)
        begun = _cpu_seconds()
        step(torch.compile(model))
        print(_cpu_seconds() - begun)
