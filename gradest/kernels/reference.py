"""The reference kernels: plain torch operations whose result at one place never depends on its neighbours.

torch evaluates the tail of a tensor, and every non-contiguous one, with other instructions than its bulk. For `torch.sigmoid`,
`torch.logit`, `softplus` and sums over a leading dimension the two differ in the last bit, so the same row gives other bits
alone than in a batch. `exp`, `log`, `log1p`, `expm1`, `logsigmoid`, `erfinv` and sums over a contiguous last dimension do
not (tests/test_kernels.py holds that), and the functions here are made of those alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "leading_mean",
    "leading_sum",
    "logit",
    "normal_cdf",
    "sigmoid",
    "signed_word",
    "softplus",
    "threefry",
    "uniform",
    "uniform_from_words",
    "widen",
]

_TERMS = 1 << 14
_MASK32 = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, in which all arithmetic on them is done; wider types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sigmoid(x: Tensor) -> Tensor:
    """σ(x) = 1 / (1 + exp(-x)), to a few units in the last place. σ(-x) is the accurate 1 - σ(x).

    x is clamped from below where exp(-x) would overflow, so that value and derivative stay finite at any x.
    """
    x = widen(x)
    return (1 + torch.exp(-x.clamp_min(-80.0 if x.dtype == torch.float32 else -700.0))).reciprocal()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), accurate in both tails and differentiable at 0."""
    return -torch.nn.functional.logsigmoid(-widen(x))


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x), of full relative accuracy in the lower tail, where `torch.special.ndtr` gives 0 from x = -9 on."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * widen(x))


def logit(u: Tensor) -> Tensor:
    """log(u / (1 - u)) for u in the open unit interval."""
    return torch.log(u) - torch.log1p(-u)


def leading_sum(x: Tensor) -> Tensor:
    """Sum over the first dimension, as a sum over a contiguous last one: the order of additions is then fixed.

    2^14 terms at a time: torch adds up 2^15 or more of a single row by as many parts as it has threads.
    """
    if x.shape[0] == 1:
        return x[0]
    if x.shape[0] > _TERMS:
        x = torch.stack([leading_sum(part) for part in torch.split(x, _TERMS)])
    return x.movedim(0, -1).contiguous().sum(-1)


def leading_mean(x: Tensor) -> Tensor:
    """Mean over the first dimension, added up as in `leading_sum`."""
    return x[0] if x.shape[0] == 1 else leading_sum(x) / x.shape[0]


def _rotate_left(x: Tensor, by: int) -> Tensor:
    # >> on a signed word copies the sign bit, hence the mask
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))


def signed_word(value: int) -> int:
    """A 32-bit pattern as the signed integer torch stores it as."""
    value &= _MASK32
    return value - (1 << 32) if value >> 31 else value


def threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Threefry-2x32, 20 rounds (Salmon et al. 2011), on int32 tensors that hold 32-bit patterns and broadcast together."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ signed_word(0x1BD11BDA))
    x0 = counter[0] + schedule[0]
    x1 = counter[1] + schedule[1]
    for block in range(5):
        for by in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, by) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + (schedule[(block + 2) % 3] + (block + 1))
    return x0, x1


def uniform(
    seed: tuple[Tensor, Tensor], rows: Tensor, stream: int, draws: int, units: int, dtype: torch.dtype
) -> Tensor:
    """Uniform numbers `[draws, rows, units]`, from int32 words `[rows]` of the seed and of the row numbers.

    A row's key is Threefry(seed, (row, stream)); a number's word is Threefry(key, (unit, draw)).
    """
    word = torch.tensor(signed_word(stream), dtype=torch.int32, device=rows.device)
    key0, key1 = (key[:, None] for key in threefry(seed, (rows, word)))
    unit = torch.arange(units, dtype=torch.int32, device=rows.device)
    draw = torch.arange(draws, dtype=torch.int32, device=rows.device)[:, None, None]
    return uniform_from_words(*threefry((key0, key1), (unit, draw)), dtype)


def uniform_from_words(x0: Tensor, x1: Tensor, dtype: torch.dtype) -> Tensor:
    """Two random int32 words to a uniform number in the open interval (0, 1).

    float32 takes the upper 24 bits of x0, float64 53 bits of both. The lowest bit kept is always set, so that numbers are odd
    multiples of 2**-24 or 2**-53: exactly representable, never 0 or 1, and 1 - u is exact and as likely as u.
    """
    if dtype == torch.float64:
        upper, lower = x0.to(torch.int64) & _MASK32, (x1 >> 11) & 0x1FFFFF
        return (((upper << 21) | lower) | 1).to(torch.float64) * 2.0**-53
    return (((x0 >> 8) & 0xFFFFFF) | 1).to(torch.float32) * 2.0**-24
