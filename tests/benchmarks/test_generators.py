"""What a uniform float32 number costs by each generator that was considered for the noise, on one thread.

Each candidate is written as numba compiles it best. It writes the numbers of one row, in the order of their units, into memory
that is there. The first is the kernel that gradest uses. `NUMBA_CPU_NAME=haswell` measures a processor without AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit, uint32, uint64

from gradest.kernels.cpu.noise import _uniform as philox_with_7_rounds

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

BLOCK = 512
inlined = njit(forceinline=True, error_model="numpy")
compiled = njit(nogil=True, error_model="numpy")
BITS, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@inlined
def four_rounds(x0: Any, x1: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << a) | uint32(x1 >> uint32(uint32(32) - a))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << b) | uint32(x1 >> uint32(uint32(32) - b))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << c) | uint32(x1 >> uint32(uint32(32) - c))) ^ x0)
    x0 = uint32(x0 + x1)
    x1 = uint32(uint32(uint32(x1 << d) | uint32(x1 >> uint32(uint32(32) - d))) ^ x0)
    return x0, x1


@inlined
def odd(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return four_rounds(uint32(x0 + k0), uint32(x1 + k1), uint32(13), uint32(15), uint32(26), uint32(6))


@inlined
def even(x0: Any, x1: Any, k0: Any, k1: Any) -> Any:
    return four_rounds(uint32(x0 + k0), uint32(x1 + k1), uint32(17), uint32(29), uint32(16), uint32(24))


@compiled
def threefry(x: Any, y: Any, first: Any, k0: Any, k1: Any) -> None:
    """Write the two words of Threefry-2x32 with 20 rounds; in two loops, which are faster than one here."""
    k2 = uint32(k0 ^ k1 ^ uint32(0x1BD11BDA))
    for i in range(x.size):
        a, b = odd(uint32(first + i), uint32(0), k0, k1)
        x[i], y[i] = even(a, b, k1, uint32(k2 + uint32(1)))
    for i in range(x.size):
        a, b = odd(x[i], y[i], k2, uint32(k0 + uint32(2)))
        a, b = even(a, b, k0, uint32(k1 + uint32(3)))
        a, b = odd(a, b, k1, uint32(k2 + uint32(4)))
        x[i], y[i] = uint32(a + k2), uint32(b + k0 + uint32(5))


@inlined
def philox_round(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    p0, p1 = np.uint64(0xD2511F53) * (c0 & LOW), np.uint64(0xCD9E8D57) * (c2 & LOW)
    return (p1 >> BITS) ^ c1 ^ k0, p1, (p0 >> BITS) ^ c3 ^ k1, p0, k0 + uint64(0x9E3779B9), k1 + uint64(0xBB67AE85)


@compiled
def philox_with_10_rounds(words: Any, first: Any, k0: Any, k1: Any) -> None:
    for i in range(words.size // 2):
        zero, a, b = uint64(0), uint64(k0), uint64(k1)
        c0, c1, c2, c3, a, b = philox_round(uint64(first + i), zero, zero, zero, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        c0, c1, c2, c3, a, b = philox_round(c0, c1, c2, c3, a, b)
        words[2 * i], words[2 * i + 1] = (c0 & LOW) | (c1 << BITS), (c2 & LOW) | (c3 << BITS)


@inlined
def number(word: Any) -> Any:
    return np.float32(np.int32((word >> uint32(8)) | uint32(1))) * np.float32(2.0**-24)


@compiled
def one_word_of_threefry(out: Any, k0: Any, k1: Any) -> None:
    x, y = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    for at in range(0, out.size, BLOCK):
        threefry(x, y, at, k0, k1)
        u = out[at : at + BLOCK]
        for i in range(u.size):
            u[i] = number(x[i])


@compiled
def both_words_of_threefry(out: Any, k0: Any, k1: Any) -> None:
    x, y, words = np.empty(BLOCK // 2, np.uint32), np.empty(BLOCK // 2, np.uint32), np.empty(BLOCK // 2, np.uint64)
    for at in range(0, out.size, BLOCK):
        threefry(x, y, at // 2, k0, k1)
        for i in range(words.size):
            words[i] = uint64(x[i]) | (uint64(y[i]) << BITS)
        u, w = out[at : at + BLOCK], words.view(np.uint32)
        for i in range(u.size):
            u[i] = number(w[i])


@compiled
def four_words_of_philox(out: Any, k0: Any, k1: Any) -> None:
    words = np.empty(BLOCK // 2, np.uint64)
    for at in range(0, out.size, BLOCK):
        philox_with_10_rounds(words, at // 4, k0, k1)
        u, w = out[at : at + BLOCK], words.view(np.uint32)
        for i in range(u.size):
            u[i] = number(w[i])


def contenders(numbers: int) -> dict[str, Callable[[], object]]:
    out = np.empty(numbers, np.float32)
    other, key, none = np.zeros_like(out), (np.uint32(7), np.uint32(9)), np.empty((3, 0), np.uint32)
    draws, drawn = out[None], torch.from_numpy(out)
    return {
        "Philox-4x32, 7 rounds (gradest)": lambda: philox_with_7_rounds(
            none, *key, 1, np.uint32(0), numbers, draws, 0, numbers
        ),
        "Philox-4x32, 10 rounds": lambda: four_words_of_philox(out, *key),
        "Threefry-2x32, 20 rounds, both words": lambda: both_words_of_threefry(out, *key),
        "Threefry-2x32, 20 rounds, one word": lambda: one_word_of_threefry(out, *key),
        "torch.rand (Mersenne Twister)": lambda: torch.rand(numbers, out=drawn),
        "a copy": lambda: np.copyto(out, other),
    }


@pytest.mark.parametrize("numbers", [1 << 16, 1 << 24])
def test_uniform_numbers(bench, numbers, monkeypatch):
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = bench.measure(contenders(numbers))
    finally:
        torch.set_num_threads(threads)
    nanoseconds = {name: [1e6 * x / numbers for x in samples] for name, samples in found.items()}
    bench.compare(f"a uniform float32 number, {numbers:,} of them, one thread", nanoseconds, unit="ns")
