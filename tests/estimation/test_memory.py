"""What many points cost in memory: the tensor that holds them, once. Measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import math, sys
import torch
import gradest

neuron, estimator, *event = sys.argv[1:]
neuron, estimator, event = gradest.neuron(neuron), gradest.estimator(estimator), tuple(map(int, event))

def kilobytes(field):
    # getrusage would tell of the process that started this one as well
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

def run(batch, event, dtype, way):
    a = torch.linspace(-2, 2, batch * math.prod(event)).reshape(batch, *event).to(dtype)
    weight = torch.ones(math.prod(event), dtype=dtype)
    f = lambda h: h.flatten(-len(event)) @ weight
    if way == "estimate":
        gradest.estimate(f, a, neuron, estimator, draws=2, seed=1)
    elif way == "expect":
        gradest.expect(f, a.requires_grad_(), neuron, estimator, seed=1)[0].sum().backward()
    else:
        draw = estimator.forward(neuron, a, gradest.Key(1), {})
        estimator.backward(draw, gradest.Feedback(f(draw.points)), {})

ways = [(torch.float32, "tell"), (torch.float32, "expect"), (torch.float32, "estimate"), (torch.bfloat16, "estimate")]
for way in ways:
    run(2, (3, *event[1:]), *way)
before = kilobytes("VmRSS")
for way in ways:
    run(64, event, *way)
points = estimator.evaluations(neuron, event) * 64 * math.prod(event) * 4
print(points, (kilobytes("VmHWM") - before) * 1024)
"""


def measure(*arguments, script=SCRIPT):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(("bernoulli", "local_expectation", 1000), marks=pytest.mark.deep),
        pytest.param(("bernoulli", "smoothed_perturbation", 1000), marks=pytest.mark.deep),
        ("categorical", "measure_valued", 300, 4),
        pytest.param(("categorical", "sum_and_sample", 900, 4), marks=pytest.mark.deep),
    ],
    ids=lambda case: case[1],
)
def test_the_points_are_held_once(case):
    """By forward and backward, expect and estimate, at a batch of 64; estimate hands them out in bfloat16 in chunks."""
    points, used = measure(*case)
    assert points > 200 << 20
    assert 0.9 * points < used < 1.25 * points + (16 << 20)


def test_the_mean_of_a_relaxed_unit_needs_a_few_nodes_at_a_time():
    """1,024 nodes of 256 KB each would be 256 MB."""
    script = SCRIPT.partition("neuron, estimator")[0] + SCRIPT[SCRIPT.index("def kilobytes") : SCRIPT.index("def run")]
    script += """
neuron = gradest.neuron("gumbel_softmax")
neuron.mean(torch.zeros(2, 1, 8))
before = kilobytes("VmRSS")
a = torch.zeros(1024, 8, 8)
with torch.no_grad():
    neuron.mean(a)
print(a.numel() * 4, (kilobytes("VmHWM") - before) * 1024)
"""
    size, used = measure(script=script)
    assert size < used < 256 * size


DRAWS = SCRIPT[: SCRIPT.index("neuron, estimator")] + SCRIPT[SCRIPT.index("def kilobytes") : SCRIPT.index("def run")]
DRAWS += """
a, weight = torch.linspace(-2, 2, 64 * 200).reshape(64, 200), torch.linspace(-1, 1, 200)

def run(draws):
    gradest.estimate(lambda h: (h @ weight - 1) ** 2, a, "bernoulli", "reinforce", draws=draws, seed=1)
    return kilobytes("VmHWM") * 1024

run(2)
print(kilobytes("VmRSS") * 1024, *(run(int(n)) for n in sys.argv[1:]))
"""


@pytest.mark.slow
def test_many_draws_take_no_more_memory_than_some():
    """A thousand draws and eight thousand; had they been kept, eight thousand would be 400 MB and more."""
    start, few, many = measure(1000, 8000, script=DRAWS)
    assert many - start < 200 << 20
    assert many - few < 16 << 20
