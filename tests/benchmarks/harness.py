"""How benchmarks measure, and what they keep: the fixture `bench` is a Bench."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from .peers import Peer

Contender = Callable[[], object] | Peer
Samples = Mapping[Any, Sequence[float]]


class Bench:
    """Measures, prints, and gathers what was found, as rows and curves.

    short: fewer rounds and shorter turns. Benchmarks take smaller sizes by it.
    """

    def __init__(self, short: bool) -> None:
        self.short = short
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []

    def measure(
        self, contenders: Mapping[Any, Contender], rounds: int = 15, turn: float = 0.1
    ) -> dict[Any, list[float]]:
        """Milliseconds a call, by contender, `rounds` of each (a third if short).

        The contenders take turns, A, B, A, B, so that a machine that slows down slows all of them. A turn is as many calls as
        take `turn` seconds (a quarter if short), up to a factor of two, after one that is not counted.
        """
        rounds, turn = (max(3, rounds // 3), turn / 4) if self.short else (rounds, turn)
        repeat = dict.fromkeys(contenders, 1)
        for name, call in contenders.items():
            seconds(call, 1)  # kernels compile, peers start
            while seconds(call, repeat[name]) < turn / 2:
                repeat[name] *= 2
        gc.collect()
        gc.freeze()  # else collections would walk through all that pytest holds
        found: dict[Any, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, call in contenders.items():
                seconds(call, 1)
                found[name].append(1e3 * seconds(call, repeat[name]) / repeat[name])
        return found

    def least(self, contenders: Mapping[Any, Callable[[], object]], rounds: int = 120) -> dict[Any, float]:
        """Milliseconds of CPU time a call, by contender: the least of `rounds` short turns of each (a third if short).

        A machine that others use takes time from all turns but the quietest.
        """
        for call in contenders.values():
            cpu_seconds(call, 50)  # kernels compile
        gc.collect()
        gc.freeze()
        found = dict.fromkeys(contenders, math.inf)
        for _ in range(rounds // 3 if self.short else rounds):
            for name, call in contenders.items():
                cpu_seconds(call, 3)  # the caches hold what the others used
                found[name] = min(found[name], 1e3 * cpu_seconds(call, 30) / 30)
        return found

    def least_in_turns(self, contenders: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
        """Milliseconds of CPU time a call, by contender: the least of `rounds` single calls (a third if short).

        Between two calls torch multiplies matrices, as it does in training, and puts other numbers into the caches.
        """
        other, found = torch.randn(256, 512), dict.fromkeys(contenders, math.inf)
        for call in contenders.values():
            cpu_seconds(call, 3)  # kernels compile
        for _ in range(max(5, rounds // 3) if self.short else rounds):
            for name, call in contenders.items():
                torch.relu(other @ other.T)
                found[name] = min(found[name], 1e3 * cpu_seconds(call, 1))
        return {name: [least] for name, least in found.items()}

    def compare(
        self,
        title: str,
        samples: Samples,
        unit: str = "ms",
        more_is_better: bool = False,
        at_least: Mapping[str, float] | None = None,
    ) -> None:
        """Keeps what was measured of each contender, and how many times as good as the others the first of them is.

        samples: of each contender as many, one a round; ratios are taken round by round.
        at_least: the ratios that were asked for, by the name of the other.
        """
        at_least = at_least or {}
        ours = next(iter(samples.values()))
        for name, theirs in samples.items():
            ratio = [x / y if more_is_better else y / x for x, y in zip(ours, theirs, strict=True)]
            self._keep(
                title, name, unit, theirs, ratio if theirs is not ours else None, {"at_least": at_least.get(name)}
            )
        assert at_least.keys() <= samples.keys()

    def grow(
        self,
        title: str,
        axis: str,
        samples: Samples,
        unit: str = "ms",
        overhead: bool = True,
        at_most: float | None = None,
    ) -> None:
        """Keeps the curve of the medians against the sizes that are the keys of `samples`, and its slope, round by round.

        overhead: whether the value at the least size stands for what does not grow, and is subtracted first.
        at_most: the slope that was asked for.
        """
        sizes = list(samples)
        self.curves.append(
            {"title": title, "axis": axis, "unit": unit}
            | {"points": [[size, statistics.median(samples[size])] for size in sizes]}
        )
        slopes = [slope(sizes, values, overhead) for values in zip(*samples.values(), strict=True)]
        self._keep(title, f"slope in {axis}", "", slopes, None, {"at_most": at_most})

    def bound(self, title: str, name: str, unit: str, samples: Sequence[float], at_most: float | None = None) -> None:
        """Keeps a number that stands for itself, and the most that it was asked to be."""
        self._keep(title, name, unit, samples, None, {"at_most": at_most})

    def _keep(
        self,
        title: str,
        name: str,
        unit: str,
        samples: Sequence[float],
        ratio: Sequence[float] | None,
        asked: dict[str, float | None],
    ) -> None:
        row = {"title": title, "name": name, "unit": unit, "quartiles": quartiles(samples)}
        row |= {"ratio": quartiles(ratio) if ratio else None, "asked": None if None in asked.values() else asked}
        if not self.rows or self.rows[-1]["title"] != title:
            print(f"\n{title}")
        low, middle, high = row["quartiles"]
        times = f"{row['ratio'][1]:8.2f}x" if ratio else ""
        print(f"  {name:50} {middle:10.4g} {unit:10} {f'({low:.4g} to {high:.4g})':24} {times}")
        self.rows.append(row)

    def results(self, command: str) -> dict[str, Any]:
        """All that was found, and on what."""
        return {
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            "short": self.short,
            "machine": machine(),
            "versions": versions(),
            "rows": self.rows,
            "curves": self.curves,
        }


def seconds(call: Contender, repeat: int) -> float:
    """What `repeat` calls take."""
    if isinstance(call, Peer):
        return call.seconds(repeat)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - start


def cpu_seconds(call: Callable[[], object], repeat: int) -> float:
    """The CPU time that `repeat` calls take."""
    start = time.process_time()
    for _ in range(repeat):
        call()
    return time.process_time() - start


def quartiles(samples: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper one."""
    return [*samples] * 3 if len(samples) == 1 else statistics.quantiles(samples, n=4, method="inclusive")


def slope(sizes: Sequence[float], values: Sequence[float], overhead: bool = True) -> float:
    """The exponent s of value = c·sizeˢ, by least squares on logarithms; with an overhead, of value - values[0] = c·sizeˢ.

    Then only values above 4·values[0] count, and the last two in any case.
    """
    fixed = values[0] if overhead else 0.0
    last = len(sizes) - 2
    above = [
        (math.log(size), math.log(max(value - fixed, 1e-9 * value)))
        for place, (size, value) in enumerate(zip(sizes, values, strict=True))
        if value > 4 * fixed or place >= last
    ]
    return statistics.linear_regression(*zip(*above, strict=True)).slope


def machine() -> dict[str, Any]:
    """The processor, its cores, the operating system and the threads that torch was given."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Of Python, gradest, what it needs, and the peers: the extra `bench`."""
    needed = [Requirement(line) for line in metadata.requires("gradest") or []]
    names = ["gradest", *(each.name for each in needed if not each.marker or "bench" in str(each.marker))]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
