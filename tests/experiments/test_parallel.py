"""Runs of two processes, against the same runs of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradest_experiments.folder import RunFolder
from gradest_experiments.training import train

ROOT = Path(__file__).parents[2]

GATES = """
import os, sys, torch
from contextlib import nullcontext
from pathlib import Path
import gradest.nn
from gradest_experiments.settings import Settings
from gradest_experiments import training
from gradest.estimation.distributed import rank
from gradest_experiments.engine.distributed import processes

torch.set_num_threads(1)
seen, noise = [], []
out = Path(sys.argv[1])
objective = training.GatedNetwork.objective

def listen(network, x, y, of):
    state = torch.get_rng_state()
    seed = torch.randint(0, 2**53, ())
    torch.set_rng_state(state)
    a = network.pre_activations(x)
    key = gradest.nn._key(a, 1, int(seed))
    noise.append(network.neuron.noise(key, a, 1)[0].detach())
    handle = network.unit.register_forward_hook(lambda unit, given, h: seen.append(h.detach().clone()))
    found = objective(network, x, y, of)
    handle.remove()
    return found

training.GatedNetwork.objective = listen
settings = Settings.build(data="digits", epochs=1, hidden=8, gates=20, batch=92, estimator=sys.argv[2], experts=sys.argv[3])
with processes() if "RANK" in os.environ else nullcontext():
    result = training.train(settings, out=out)
    torch.save({"gates": seen, "noise": noise}, out / f"seen{rank()}.pt")
"""

VAE = """
import os, sys, torch
from contextlib import nullcontext
from pathlib import Path
from gradest_experiments.vae.images import Images
from gradest_experiments.vae.settings import VaeSettings
from gradest_experiments.vae.training import train_vae
from gradest_experiments.engine.distributed import processes

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = Images(*(torch.randint(0, 256, (n, 12), dtype=torch.uint8, generator=generator) for n in (70, 10, 6)))
settings = VaeSettings.build(
    estimator={"name": sys.argv[2]}, latents=5, hidden=6, batch=7, steps=12, log_every=1, eval_every=12,
    learning_rate=0.01, variance_draws=3, test_samples=4,
)
with processes() if "RANK" in os.environ else nullcontext():
    train_vae(settings, images, Path(sys.argv[1]))
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads
"""


def launch(words: list[str], processes: int | None = None) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes else []), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done


def epochs(folder: RunFolder) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "kind"} for row in folder.rows("epoch")]


def dealt(parts: list[torch.Tensor]) -> torch.Tensor:
    """The joined batch of which the parts were dealt out in turn."""
    joined = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for place, part in enumerate(parts):
        joined[place :: len(parts)] = part
    return joined


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "experts"), [("straight_through", "dense"), ("reinforce_average", "sparse"), ("rloo", "dense")]
)
def test_two_processes_draw_the_gates_of_one_and_learn_the_same(tmp_path, estimator, experts):
    """Noise and gates are equal bit for bit in all 14 minibatches, the last of which is of one image, so that the second
    process has none of it. Weights differ by the order in which gradients are added up: by less than 1e-5, where a factor of
    two in any gradient, or a part left out, makes 1e-2.
    """
    script = tmp_path / "train.py"
    script.write_text(GATES)
    launch([str(script), str(tmp_path / "one"), estimator, experts])
    launch([str(script), str(tmp_path / "two"), estimator, experts], 2)
    one = torch.load(tmp_path / "one/seen0.pt")
    two = [torch.load(tmp_path / f"two/seen{rank}.pt") for rank in (0, 1)]
    assert len(one["noise"]) == 14
    for name in ("noise", "gates"):
        if name == "gates" and estimator == "rloo":
            continue  # several points, which an Expectation layer gives to the loss
        for whole, *parts in zip(one[name], two[0][name], two[1][name], strict=True):
            assert torch.equal(dealt(parts), whole)
    weights = [torch.load(tmp_path / which / "model.pt") for which in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5)
    found = [RunFolder.read(tmp_path / which) for which in ("one", "two")]
    assert found[0].settings == found[1].settings
    assert found[0].results["test"]["error"] == found[1].results["test"]["error"]
    assert found[0].results["computed"] == pytest.approx(found[1].results["computed"], abs=1e-9)
    for mine, theirs in zip(*map(epochs, found), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_one_process_ends_what_torchrun_began(small, tmp_path):
    words = ["-m", "gradest_experiments", "train", "--gates", "20", "--hidden", "8", "--epochs", "1"]
    shown = launch([*words, "--out", str(tmp_path / "two")], 2).stdout
    assert shown.count("bernoulli + straight_through") == 1
    for which in ("one", "two"):
        train(small(epochs=2), out=tmp_path / which, resume=True)
    one, two = (epochs(RunFolder.read(tmp_path / which)) for which in ("one", "two"))
    assert len(one) == len(two) == 2
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["disarm", "double_cv", "relax_rebar"])
def test_a_vae_of_two_processes_is_that_of_one(tmp_path, estimator):
    """Batches of 7, of which the second process has 3. The loss of each of 12 steps differs by the order in which gradients are
    added up alone: by less than 1e-4 of it, where noise or images of another row, a gradient not added up, or an estimator's
    state of one process alone makes 1e-3 and more. Afterwards no thread of the process group is left, for the interpreter's end
    might abort.
    """
    script = tmp_path / "train.py"
    script.write_text(VAE)
    launch([str(script), str(tmp_path / "one"), estimator])
    launch([str(script), str(tmp_path / "two"), estimator], 2)
    one, two = (RunFolder.read(tmp_path / which) for which in ("one", "two"))
    elbos = [[row["elbo"] for row in folder.rows("train")] for folder in (one, two)]
    assert len(elbos[0]) == 12
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-4)
    assert two.results == pytest.approx(one.results, rel=1e-3)
    states = [folder.load() for folder in (one, two)]
    for name, value in states[0]["vae"].items():
        torch.testing.assert_close(states[1]["vae"][name], value, atol=1e-3, rtol=1e-3)
    for name, value in (states[0]["memory"] or {}).items():
        torch.testing.assert_close(states[1]["memory"][name], value, atol=1e-4, rtol=1e-3)
