"""What many points cost in memory: the tensor that holds them, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Measure = Callable[..., list[int]]


@pytest.fixture(scope="module")
def measure() -> Iterator[Measure]:
    """Measures what `tests.estimation.memory` has functions for: measure("draws", 1000, 8000)."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-m", "tests.estimation.memory"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has none of the threads that its parent had started
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip

        def ask(name: str, *arguments: object) -> list[int]:
            print(json.dumps([name, arguments]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, process.stderr.read()
            return json.loads(answer)

        yield ask
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(("bernoulli", "local_expectation", 1000), marks=pytest.mark.deep),
        pytest.param(("bernoulli", "smoothed_perturbation", 1000), marks=pytest.mark.deep),
        ("categorical", "measure_valued", 150, 4),
        pytest.param(("categorical", "sum_and_sample", 900, 4), marks=pytest.mark.deep),
    ],
    ids=lambda case: case[1],
)
def test_the_points_are_held_once(measure: Measure, case: tuple[object, ...]) -> None:
    """By forward and backward, expect and estimate, at a batch of 64; estimate hands them out in bfloat16 in chunks."""
    points, used = measure("points", *case)
    assert points > 64 << 20
    assert 0.9 * points < used < 1.25 * points + (16 << 20)


def test_the_mean_of_a_relaxed_unit_needs_a_few_nodes_at_a_time(measure: Measure) -> None:
    """1,024 nodes of 256 KB each would be 256 MB."""
    size, used = measure("mean")
    assert size < used < 256 * size


@pytest.mark.slow
def test_many_draws_take_no_more_memory_than_some(measure: Measure) -> None:
    """A thousand draws and eight thousand; had they been kept, eight thousand would be 400 MB and more."""
    start, few, many = measure("draws", 1000, 8000)
    assert many - start < 200 << 20
    assert many - few < 16 << 20
