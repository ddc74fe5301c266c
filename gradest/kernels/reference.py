"""The reference kernels: plain torch operations whose result at one place never depends on its neighbours.

torch evaluates the tail of a tensor, and every non-contiguous one, with other instructions than its bulk. For `torch.sigmoid`,
`torch.logit`, `softplus` and sums over a leading dimension the two differ in the last bit, so the same row gives other bits
alone than in a batch. `exp`, `log`, `log1p`, `expm1`, `logsigmoid`, `erfinv` and sums over a contiguous last dimension do
not (tests/kernels/test_kernels.py holds that), and the functions here are made of those alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from gradest.kernels import portable

__all__ = [
    "FEW",
    "Word",
    "all_finite",
    "antithetic_score",
    "as_tensors",
    "cast",
    "concrete_backward",
    "gated_backward",
    "leading_mean",
    "leading_sum",
    "leave_one_out",
    "leave_one_out_score",
    "logistic_backward",
    "logistic_score",
    "logit",
    "moments",
    "normal_cdf",
    "rectified_backward",
    "sigmoid",
    "signed_word",
    "softmax_backward",
    "softplus",
    "surrogate_backward",
    "threefry",
    "uniform",
    "uniform_from_words",
    "widen",
]

FEW = 8
"""Up to so many terms `leading_sum` adds one to the other from the first on, as the kernels do."""

Word = Tensor | int
"""What tells rows apart: int32 tensors `[rows]` of words, or an int: the one word of all, or how many rows count up from 0."""

_NARROW = (torch.float16, torch.bfloat16)
_TERMS = 1 << 14
_MASK32 = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def widen(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, in which all arithmetic on them is done; wider types as they are."""
    return x.float() if x.dtype in _NARROW else x


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), which takes torch its time even where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


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
    """Sum over the first dimension: of a few terms one after the other, of more as a sum over a contiguous last dimension.

    The order of additions is then fixed. 2^14 terms at a time: torch adds up 2^15 or more of a single row by as many parts as
    it has threads. The sum of one term is that term, not a copy.
    """
    if 1 <= x.shape[0] <= FEW:
        return reduce(add, x.unbind())
    if x.shape[0] > _TERMS:
        x = torch.stack([leading_sum(part) for part in torch.split(x, _TERMS)])
    return x.movedim(0, -1).contiguous().sum(-1)


def leading_mean(x: Tensor) -> Tensor:
    """Mean over the first dimension, added up as in `leading_sum`."""
    return x[0] if x.shape[0] == 1 else leading_sum(x) / x.shape[0]


def all_finite(x: Tensor) -> bool:
    """Whether no entry is infinite or not a number. It may be False for finite entries near the largest ones of the format.

    A sum is finite only if all that is added is, and takes a tenth of the time of looking at each.
    """
    return math.isfinite(x.sum(dtype=torch.float32 if x.dtype in _NARROW else None))


def moments(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of all rows of parts `[n, ...]`, and the sum of squared distances from it, in float64.

    Rows are added one after the other, so how they are cut into parts leaves no trace.
    """
    rows = [row.double() for part in parts for row in part.unbind()]
    mean = reduce(add, rows) / len(rows)
    return mean, reduce(add, ((row - mean) * (row - mean) for row in rows))


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """Σ_k weights_k d log P(h_k)/da of units with P(high) = σ(a): h `[K, *a.shape]`, weights `[K, *batch]`, one event dim.

    The score is σ(-a) where h is high, else -σ(a).
    """
    p, q = _both_sigmoids(a)
    return leading_sum(weights[..., None] * torch.where(h == high, q, -p))


def leave_one_out(loss: Tensor) -> Tensor:
    """(L_k - mean L) / (K - 1), of losses `[K, *batch]`: what is left of each when the mean of the others is taken off, by K."""
    return (loss - leading_mean(loss)) / (len(loss) - 1)


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """`logistic_score` with the weights that `leave_one_out` makes of losses `[K, *batch]`, K > 1."""
    return logistic_score(a, h, leave_one_out(loss), high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """(1/2n) Σ_k (L_k - L~_k)(b_k - b~_k) σ(|a|), with one event dim.

    L and b are of the first half of the losses `[2n, *batch]` and of h `[2n, *a.shape]`, b where it is high; L~ and b~ of the
    second half.
    """
    at, at_mirror = loss.chunk(2)
    weights = (at - at_mirror) / len(h)
    first, second = (h == high).to(a.dtype).chunk(2)
    return leading_sum(weights[..., None] * (first - second)) * portable.sigmoid(a.abs())


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """grad · height σ(x) σ(-x), x = slope · a, elementwise."""
    p, q = _both_sigmoids(slope * a)
    return grad * (height * (p * q))


def surrogate_backward(a: Tensor, grad: Tensor, shape: int, slope: float, height: float) -> Tensor:
    """grad · height d(x), x = slope · a, elementwise; d(x) is ½ / (1 + |x|)² for shape 0, ½ / (1 + (πx/2)²) for 1,
    max(0, 1 - |x|) for 2, ½ · 1[|x| <= 1] for 3."""
    x = slope * a
    if shape == 0:
        y = 1 + x.abs()
        d = 0.5 / (y * y)
    elif shape == 1:
        y = 0.5 * math.pi * x
        d = 0.5 / (1 + y * y)
    elif shape == 2:
        d = (1 - x.abs()).clamp(min=0)
    else:
        d = 0.5 * (x.abs() <= 1).to(x.dtype)
    return grad * (height * d)


def concrete_backward(x: Tensor, grad: Tensor, height: float, lower: float, width: float) -> Tensor:
    """grad · height σ(x) σ(-x) where lower + width σ(x) is between 0 and 1, else 0."""
    p, q = _both_sigmoids(x)
    h = lower + width * p
    return torch.where((h <= 0) | (h >= 1), 0, grad * (height * (p * q)))


def gated_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """grad · h σ(-a) / 2 where h > 0, else 0; h and grad `[draws, *a.shape]`."""
    _, q = _both_sigmoids(a)
    return torch.where(h > 0, grad * (0.5 * h * q), 0)


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """grad where h > 0, else 0."""
    return torch.where(h > 0, grad, 0)


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """h (grad - hᵀ grad) per_temperature over the last dim."""
    # from the largest class's on, so that a saturated unit subtracts small numbers
    grad = grad - grad.gather(-1, h.argmax(-1, keepdim=True))
    return h * (grad - portable.last_sum(h * grad)[..., None]) * per_temperature


def _both_sigmoids(x: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and σ(-x), the second as e^-x σ(x)."""
    e = portable.exp(-x)
    p = 1 / (e + 1)
    return p, e * p


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


def as_tensors(
    seed: tuple[Word, Word], rows: Word, device: torch.device | str = "cpu"
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The words of the seed and of the rows, `[rows]` each."""
    if isinstance(rows, int):
        rows = torch.arange(rows, dtype=torch.int32, device=device)
    first, second = (torch.full_like(rows, signed_word(word)) if isinstance(word, int) else word for word in seed)
    return (first, second), rows


def uniform(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, units: int, dtype: torch.dtype) -> Tensor:
    """Uniform numbers `[draws, rows, units]`, from the two words of the seed and the row numbers.

    A row's key is Threefry(seed, (row, stream)); a number's word is Threefry(key, (unit, draw)).
    """
    seed, rows = as_tensors(seed, rows)
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
