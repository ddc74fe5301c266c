"""How fast a trained network is beside dense ones."""

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
_IMAGES = 64  # that calls take in turn
_ROUNDS, _TURN = 7, 0.01  # seconds


@torch.inference_mode()
def measure_speed(networks: Mapping[str, BlockNetwork], x: Tensor) -> list[dict[str, Any]]:
    """Rows {network, batch, threads, ms}: a forward pass, policy included, as it is deployed, of images x.

    The networks take turns, so that a machine that slows down slows all of them; ms is one number a round. Gates are those that
    are more likely open than not, and the hidden layer chooses its method by itself.
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
    """Seconds a call, one number a round."""
    repeat = {}
    for name, call in calls.items():
        call()  # kernels compile, and methods are chosen
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
