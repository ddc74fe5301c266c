"""The speed of trained networks beside dense ones."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradest_experiments.blocks.network import BlockNetwork
from gradest_experiments.blocks.training import open_gates

__all__ = ["measure_speed"]

_BATCHES = (1, 32)
_IMAGES = 64  # images that a call passes through the network, batch by batch
_ROUNDS = 7
_TURN = 0.01  # seconds that a network runs in a round, at least


@torch.inference_mode()
def measure_speed(networks: Mapping[str, BlockNetwork], x: Tensor) -> list[dict[str, Any]]:
    """Measure a forward pass on images x, policy included, as a network would be deployed: rows {network, batch, threads, ms}.

    The networks take turns, so that a machine that slows down slows all of them; ms has one number per round. The gates that
    are more likely open than not are open, and the hidden layer chooses its method itself.
    """
    threads, methods = torch.get_num_threads(), {name: network.hidden.method for name, network in networks.items()}
    rows = []
    try:
        for network in networks.values():
            network.eval()
            network.hidden.method = "auto"
        for count in sorted({1, min(2, os.cpu_count() or 1)}):
            torch.set_num_threads(count)
            for batch in _BATCHES:
                parts = torch.split(x[:_IMAGES], batch)
                calls = {name: _pass(network, parts) for name, network in networks.items()}
                found = _take_turns(calls)
                rows += [
                    {
                        "network": name,
                        "batch": batch,
                        "threads": count,
                        "ms": [1e3 * s / len(parts) for s in found[name]],
                    }
                    for name in networks
                ]
    finally:
        torch.set_num_threads(threads)
        for name, network in networks.items():
            network.hidden.method = methods[name]
    return rows


def _pass(network: BlockNetwork, parts: tuple[Tensor, ...]) -> Callable[[], None]:
    def call() -> None:
        for part in parts:
            network(part, open_gates(network, part))

    return call


def _take_turns(calls: Mapping[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the seconds that a call takes, one number per round."""
    repeat = {}
    for name, call in calls.items():
        call()  # compiles kernels and chooses methods
        repeat[name] = math.ceil(_TURN / _seconds(call, 1))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            found[name].append(_seconds(call, repeat[name]) / repeat[name])
    return found


def _seconds(call: Callable[[], None], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - start
