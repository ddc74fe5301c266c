"""Vectors of 512 bits: where kernels have them, that numba's other functions do not, and that the bits do not depend on them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numba
import pytest
from llvmlite import binding

from gradest.kernels.cpu.compilation import processors

WITH = "+avx2,+avx512f,+avx512vl"


@pytest.mark.parametrize(
    ("processor", "features", "wide"),
    [
        ("emeraldrapids", WITH, True),
        ("icelake-server", WITH, True),
        ("skylake-avx512", WITH, False),
        ("znver4", WITH, False),
        ("skylake-avx512", f"{WITH},-prefer-256-bit", True),
        ("emeraldrapids", f"{WITH},+prefer-256-bit", False),
        ("emeraldrapids", "+avx2,-avx512f", False),
        ("generic", "", False),
    ],
)
def test_where_vectors_are_wide(processor: str, features: str, wide: bool) -> None:
    assert processors.has_wide_vectors(("x86_64-unknown-linux-gnu", processor, features)) == wide


def test_kernels_alone_have_wide_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(x: float) -> float:
        return 2 * x

    def code(**options: Any) -> str:
        function = numba.njit(**options)(twice)
        function(1.0)
        return str(function.inspect_llvm(function.signatures[0]))

    wide = '"prefer-vector-width"="512"'
    for known in (True, False):
        monkeypatch.setattr(processors, "has_wide_vectors", lambda target, known=known: known)
        assert (wide in code(pipeline_class=processors.KernelCompiler)) == known
        assert wide not in code()


PROGRAM = """
import hashlib, torch, gradest
from gradest.kernels import cpu
found, a = hashlib.sha256(), 3 * torch.randn(7, 205, generator=torch.Generator().manual_seed(0))
for dtype in (torch.float32, torch.float64):
    for x in (a.to(dtype), a.T.to(dtype)[:, :5].contiguous()):
        for name in ("bernoulli", "noisy_rectifier", "stochastic_times_smooth", "noisy_sigmoid", "gaussian"):
            neuron, key = gradest.neuron(name), gradest.Key(1)
            h = neuron.sample(key, x, 2)
            found.update(h.numpy().tobytes() + neuron.pullback(key, x, h, h).numpy().tobytes())
print(found.hexdigest())
"""


@pytest.mark.deep
@pytest.mark.skipif(not binding.get_host_cpu_features().get("avx2"), reason="needs a processor with AVX2")
def test_the_bits_do_not_depend_on_the_vectors(tmp_path: Any) -> None:
    """In the reference, and compiled for this processor, for vectors of 256 bits, and without AVX-512."""
    features, name = binding.get_host_cpu_features(), binding.get_host_cpu_name()
    narrow = dict(features) | {"prefer-256-bit": True}
    old = {feature: has and not feature.startswith("avx512") for feature, has in features.items()}
    found = set()
    for kernels, given in (("reference", features), ("cpu", features), ("cpu", narrow), ("cpu", old)):
        flat = ",".join(f"{'+' if has else '-'}{feature}" for feature, has in given.items())
        cpu = {"NUMBA_CPU_NAME": name if given is not old else "haswell", "NUMBA_CPU_FEATURES": flat}
        environment = {**os.environ, **cpu, "GRADEST_KERNELS": kernels, "NUMBA_CACHE_DIR": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1
