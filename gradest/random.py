"""Counter-based noise: a pure function of (seed, row, unit, draw, stream), never of the batch around it.

The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2,
3"). A seed and a (row, stream) pair give a row's own 64-bit key; that key and a (unit, draw) pair give the two 32-bit words
of one uniform number. So a row's noise is the same alone or in any batch, on any device and in any process, and backward
can regenerate what forward drew instead of storing it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from gradest.errors import InvalidInput
from gradest.kernels import fused, select, transformed
from gradest.kernels.reference.noise import Word, as_tensors, signed_word, threefry
from gradest.kernels.stable import cast, widen

__all__ = ["MAX_SEED", "Key", "fresh_seed", "threefry2x32"]

MAX_SEED = 1 << 53
"""Seeds are below this: the largest range of integers that every JSON client keeps exact."""

_Words = tuple[Tensor | int, Tensor | int]
_MASK32 = 0xFFFFFFFF
_FOLD = _MASK32  # the stream number that `fold_in` keeps to itself


def _to_word(value: int | Tensor) -> Tensor:
    """An integer, or a tensor of integers, as int32 bit patterns."""
    if isinstance(value, Tensor):
        if value.dtype == torch.int32:
            return value
        if value.dtype == torch.uint32:
            return value.view(torch.int32)
        value = value.to(torch.int64) & _MASK32
        return torch.where(value > 0x7FFFFFFF, value - (1 << 32), value).to(torch.int32)
    return torch.tensor(signed_word(value), dtype=torch.int32)


def _unsigned(word: Tensor) -> Tensor:
    return word.to(torch.int64) & _MASK32


@overload
def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]: ...
@overload
def threefry2x32(key: _Words, counter: tuple[Tensor, Tensor | int]) -> tuple[Tensor, Tensor]: ...
@overload
def threefry2x32(key: tuple[Tensor, Tensor | int], counter: _Words) -> tuple[Tensor, Tensor]: ...
def threefry2x32(key: _Words, counter: _Words) -> tuple[Tensor, Tensor] | tuple[int, int]:
    """Threefry-2x32 with 20 rounds: two 32-bit words of key and two of counter to two random words.

    Words are ints, or integer tensors that broadcast together (int64 holding 0 <= word < 2**32, or int32 or uint32 bit
    patterns). All ints give ints; any tensor gives int64 tensors of unsigned words.

    >>> [hex(word) for word in threefry2x32((0, 0), (0, 0))]
    ['0x6b200159', '0x99ba4efe']
    """
    for word in (*key, *counter):
        if isinstance(word, Tensor) and (word.is_floating_point() or word.is_complex()):
            raise InvalidInput(f"threefry2x32 takes integers, not a tensor of {word.dtype}")
    devices = [word.device for word in (*key, *counter) if isinstance(word, Tensor)]
    words = [_to_word(word) for word in (*key, *counter)]
    x0, x1 = threefry((words[0], words[1]), (words[2], words[3]))
    if not devices:
        return int(_unsigned(x0)), int(_unsigned(x1))
    return _unsigned(x0), _unsigned(x1)


def fresh_seed() -> int:
    """A seed from torch's global generator, so that `torch.manual_seed` rules what follows."""
    return int(fresh_seed_tensor())


def fresh_seed_tensor() -> Tensor:
    """The same as a tensor. Inside torch.func.vmap its `randomness` says whether all have one, or each its own."""
    return torch.randint(0, MAX_SEED, ())


def check_seed(seed: int) -> int:
    """The seed itself; raises InvalidInput unless it is an integer with 0 <= seed < 2**53."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise InvalidInput(f"a seed is an integer with 0 <= seed < 2**53, not {seed!r}")
    return seed


@dataclass(frozen=True, eq=False)
class Key:
    """The source of one call's noise.

    seed: an integer, 0 <= seed < 2**53, or an int64 tensor of them that broadcasts to the batch (each row its own).
    rows: the row numbers, an int64 tensor that broadcasts to the batch; by default rows count up from 0 in the caller's own
        tensor. A batcher that joins requests, or a process that holds a part of a batch, passes the numbers they had there.
    stream: tells apart the independent noises that one draw needs; 0 is what `Neuron.noise` uses.
    shared: whether each process of torch.distributed draws its part of one batch by this key; an estimator's state is then that
        of the joined batch, in all of them.
    """

    seed: int | Tensor
    rows: Tensor | None = None
    stream: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Tensor):
            check_seed(self.seed)
        if not 0 <= self.stream < _FOLD:
            raise InvalidInput(f"a stream is an integer with 0 <= stream < 2**32 - 1, not {self.stream}")

    def with_stream(self, stream: int) -> Key:
        """The same seed and rows with another, independent noise."""
        return replace(self, stream=stream)

    def fold_in(self, data: int | Tensor) -> Key:
        """A key for the `data`-th repetition: its seed is 53 bits of Threefry(seed, data). A tensor gives a key a repetition."""
        x0, x1 = threefry(self._seed_words(), (_to_word(data), _to_word(_FOLD)))
        seed = (_unsigned(x0) << 21) | (_unsigned(x1) >> 11)
        keep_int = not isinstance(self.seed, Tensor) and not isinstance(data, Tensor)
        return replace(self, seed=int(seed) if keep_int else seed)

    def uniform_like(self, a: Tensor, draws: int, event_ndim: int = 1) -> Tensor:
        """Uniform noise `[draws, *a.shape]` for pre-activations `a` `[*batch, *event]`; see `uniform`."""
        split = a.ndim - event_ndim
        return self.uniform(a.shape[:split], a.shape[split:], draws, dtype=a.dtype, device=a.device)

    def uniform(
        self,
        batch_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        draws: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Independent numbers uniform on the open interval (0, 1), shape `[draws, *batch, *event]`.

        See `gradest.kernels.reference.noise.uniform_from_words` for the bits. float16 and bfloat16 cannot hold an open interval
        (1 - 2**-24 rounds to 1), so for them the noise is float32.
        """
        device = torch.device(device)
        noise: Tensor = select("uniform", device)(
            *self._words(batch_shape, device), draws, math.prod(event_shape), torch.promote_types(dtype, torch.float32)
        )
        return noise.reshape(draws, *batch_shape, *event_shape)

    def fused(
        self,
        kernel: str,
        a: Tensor,
        draws: int,
        event_ndim: int,
        *options: float | Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor | None:
        """What the kernel of this name draws for `a` `[*batch, *event]` at this key's uniform noise, `[points, *a.shape]`.

        dtype: what a kernel that can writes in place of the dtype of `a`.
        None where this device has no such kernel, where autograd would want to see inside it, and for a subclass whose
        numbers come from elsewhere.
        """
        draw = fused(kernel, a.device)
        if draw is None or type(self).uniform is not Key.uniform:
            return None
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (a, *options)):
            return None
        split = a.ndim - event_ndim
        flat = a if split == a.ndim - 1 == 1 else a.reshape(math.prod(a.shape[:split]), math.prod(a.shape[split:]))
        written = {} if dtype is None else {"dtype": dtype}
        h: Tensor = draw(*self._words(a.shape[:split], a.device), draws, widen(flat), *options, **written)
        h = cast(h, dtype or a.dtype)
        return h if flat is a else h.reshape(len(h), *a.shape)

    def _words(self, batch_shape: tuple[int, ...], device: torch.device) -> tuple[tuple[Word, Word], Word, int]:
        """What says which noise it is, as `gradest.kernels.reference.uniform` takes it: of the seed, of the rows, the stream."""

        def flat(value: Tensor | int) -> Word:
            return value if isinstance(value, int) else _to_word(value).to(device).expand(batch_shape).reshape(-1)

        seed = flat(self.seed), flat(self.seed >> 32)
        rows = math.prod(batch_shape) if self.rows is None else flat(self.rows)
        if device.type == "cpu":
            return seed, rows, self.stream
        return *as_tensors(seed, rows, device), self.stream

    def _seed_words(self) -> tuple[Tensor, Tensor]:
        return _to_word(self.seed), _to_word(self.seed >> 32)


def to_key(seed: int | Key | None) -> Key:
    """Return the key of a seed: a Key as it is, and for None the key of a new seed. Raises InvalidInput for a bad seed."""
    if isinstance(seed, Key):
        return seed
    if seed is None:
        return Key(fresh_seed_tensor() if transformed() else fresh_seed())
    return Key(check_seed(seed))
