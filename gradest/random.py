"""Counter-based noise: a pure function of (seed, row, unit, draw, stream), never of the batch around it.

The generator is Philox-4x32 with 7 rounds (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). It
encrypts the counter (unit // 4, draw, row, stream) under the seed to four 32-bit words, one for each of four units. So a row has
the same noise alone or in any batch, on any device and in any process, and backward can generate again what forward drew instead
of storing it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from gradest.errors import Incompatible, InvalidInput
from gradest.kernels import fused, portable, recorded, select, transformed, untransformed
from gradest.kernels.reference.noise import ROUNDS, Word, as_tensors, philox, signed_word
from gradest.kernels.stable import NARROW_DTYPES, cast, widen
from gradest.seeds import MAX_SEED, check_seed

__all__ = ["MAX_SEED", "VERSION", "Key", "check_words", "fresh_seed", "philox4x32"]

VERSION = 2
"""The version of the noise, as a function of (seed, row, unit, draw, stream). The numbers of a version never change.

Version 1, before the first release, was Threefry-2x32 with 20 rounds, of whose two words float32 used one.
"""

_Words = tuple[Tensor | int, Tensor | int]
_Counter = tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]
_MASK32 = 0xFFFFFFFF
_FOLD = _MASK32  # the stream number that is reserved for `fold_in`
_WORD_BITS = 32  # of rows, units, draws and streams, each of which is one word of a counter
_SEED_BITS = 53
_MOST_COUNTED = 1 << _WORD_BITS
_CPU = torch.device("cpu")


def _to_word(value: int | Tensor) -> Tensor:
    """Return an integer, or a tensor of integers, as int32 bit patterns."""
    if isinstance(value, Tensor):
        if value.dtype == torch.int32:
            return value
        if value.dtype == torch.uint32:
            return value.view(torch.int32)
        value = value.to(torch.int64) & _MASK32
        return torch.where(value > 0x7FFFFFFF, value - (1 << 32), value).to(torch.int32)
    return torch.tensor(signed_word(value), dtype=torch.int32, device="cpu")


def _upper_word(seed: int | Tensor) -> int | Tensor:
    return (seed.to(torch.int64) if isinstance(seed, Tensor) else seed) >> 32


def _unsigned(word: Tensor) -> Tensor:
    return word.to(torch.int64) & _MASK32


@overload
def philox4x32(
    key: tuple[int, int], counter: tuple[int, int, int, int], rounds: int = ROUNDS
) -> tuple[int, int, int, int]: ...
@overload
def philox4x32(
    key: tuple[Tensor, Tensor | int], counter: _Counter, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
@overload
def philox4x32(
    key: _Words, counter: tuple[Tensor, Tensor | int, Tensor | int, Tensor | int], rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def philox4x32(
    key: _Words, counter: _Counter, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor] | tuple[int, int, int, int]:
    """Compute Philox-4x32: two 32-bit words of key and four of counter give four random words.

    Words are ints, or integer tensors that broadcast together (int64 holding 0 <= word < 2**32, or int32 or uint32 bit
    patterns). All ints give ints; any tensor gives int64 tensors of unsigned words. Raises InvalidInput for any other word, and
    for `rounds` that are no integer of at least 1.

    >>> from gradest.random import philox4x32
    >>> [hex(word) for word in philox4x32((0, 0), (0, 0, 0, 0))]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    for word in (*key, *counter):
        if not isinstance(word, Tensor) or word.dtype not in (torch.int32, torch.uint32):
            _check_integers("a word of philox4x32", word, _WORD_BITS)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InvalidInput(f"rounds must be an integer of at least 1, not {rounds!r}")
    k0, k1, c0, c1, c2, c3 = (_unsigned(_to_word(word)) for word in (*key, *counter))
    words = philox((k0, k1), (c0, c1, c2, c3), rounds)
    if any(isinstance(word, Tensor) for word in (*key, *counter)):
        return words
    w0, w1, w2, w3 = (int(word) for word in words)
    return w0, w1, w2, w3


def fresh_seed() -> int:
    """Draw a seed from torch's global generator, so that `torch.manual_seed` makes results reproducible.

    Raises Incompatible where torch.jit.trace or make_fx would record the seed as a constant.

    >>> import gradest
    >>> 0 <= gradest.random.fresh_seed() <= gradest.random.MAX_SEED
    True
    """
    if recorded():
        raise Incompatible(
            "torch.jit.trace and make_fx record a seed as a constant, so that the recorded program would draw the same noise in "
            "each call. Use torch.compile or torch.export; or in evaluation the mean or the threshold of a layer; or give a seed"
        )
    seed: int = fresh_seed_tensor().item()  # type: ignore[assignment]
    return seed


def fresh_seed_tensor() -> Tensor:
    """Draw a seed as a tensor. Inside torch.func.vmap, `randomness` decides whether all examples share it."""
    return torch.randint(0, MAX_SEED, (), device=_CPU)


def _check_integers(name: str, value: object, bits: int, hint: str = "") -> None:
    """Raise InvalidInput unless `value` is an integer, or a tensor of integers, of at most so many bits and not negative.

    Values of a CUDA tensor are checked on the device, which the host does not wait for: as for an index out of range, a wrong one
    is a device-side assertion. Values cannot be read while torch.compile traces.
    """
    wanted = f"{name} must be an integer with 0 <= n < 2**{bits}{hint}"
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int) or value >> bits:
            raise InvalidInput(f"{wanted}, not {value!r}")
        return
    if value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
        raise InvalidInput(f"{wanted}, or a tensor of such integers, not a tensor of {value.dtype}")
    if torch.compiler.is_compiling() or value.is_meta:
        return
    value = untransformed(value)
    # too large a number of 64 bits without a sign becomes a negative one
    value = value.view(torch.int64) if value.dtype == torch.uint64 else value.to(torch.int64)
    outside = value >> bits != 0  # the shift keeps the sign
    if value.device.type == "cuda":
        torch._assert_async(~outside.any(), f"{wanted}, or a tensor of such integers")
    elif bool(outside.any()):
        raise InvalidInput(f"{wanted}, but the tensor holds {int(value[outside][0])}")


def check_words(name: str, value: Tensor) -> None:
    """Raise InvalidInput unless the values of a tensor are integers with 0 <= n < 2**32."""
    _check_integers(name, value, _WORD_BITS)


def _check_stream(stream: int) -> None:
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream < _FOLD:
        raise InvalidInput(f"a stream must be an integer with 0 <= stream < 2**32 - 1, not {stream!r}")


def _check_counts(*counts: int) -> None:
    """Raise InvalidInput unless a word can count so many rows, units or draws."""
    if max(counts) > _MOST_COUNTED:
        raise InvalidInput(
            f"one call draws noise for at most 2**32 rows, units and draws, not {max(counts)}; divide the call"
        )


@dataclass(frozen=True, eq=False)
class Key:
    """The source of one call's noise.

    seed: an integer, 0 <= seed < 2**53, or an int64 tensor of such integers that broadcasts to the batch, one for each row.
    rows: the row numbers, an int64 tensor that broadcasts to the batch; by default rows count up from 0 in the caller's own
        tensor. A batcher that joins requests, or a process that holds a part of a batch, passes the original row numbers.
    stream: distinguishes the independent noises that one draw needs; `Neuron.noise` uses stream 0.
    shared: whether each process of torch.distributed uses this key for its part of one batch. The estimator's state is then
        computed from the joined batch, in every process.

    Row numbers are integers with 0 <= row < 2**32. Raises InvalidInput for a seed, rows or a stream outside of their ranges, as
    their noise would be that of others.

    >>> import torch, gradest
    >>> whole = gradest.sample("bernoulli", torch.zeros(4, 2), seed=gradest.Key(7))
    >>> part = gradest.sample("bernoulli", torch.zeros(2, 2), seed=gradest.Key(7, rows=torch.tensor([2, 3])))
    >>> bool((whole[:, 2:] == part).all())  # a row has its noise wherever it is computed
    True
    """

    seed: int | Tensor
    rows: Tensor | None = None
    stream: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.seed, Tensor):
            _check_integers("a seed", self.seed, _SEED_BITS)
        else:
            check_seed(self.seed)
        if self.rows is not None:
            if not isinstance(self.rows, Tensor):
                raise InvalidInput(f"rows must be a tensor of integers, not {type(self.rows).__name__}")
            _check_integers("a row", self.rows, _WORD_BITS)
        _check_stream(self.stream)

    def with_stream(self, stream: int) -> Key:
        """Return a key of the same seed and rows whose noise is independent of this key's."""
        _check_stream(stream)
        return self._changed(stream=stream)

    def fold_in(self, data: int | Tensor) -> Key:
        """Return a key for the `data`-th repetition, whose seed is 53 bits of Philox(seed, (data, 0, 0, 2**32 - 1)).

        A tensor `data` gives a key with one seed for each repetition. Raises InvalidInput unless 0 <= data < 2**32.
        """
        _check_integers(
            "data", data, _WORD_BITS, " (fold a larger number in as two, key.fold_in(n >> 32).fold_in(n & 0xFFFFFFFF))"
        )
        k0, k1 = self._seed_words()
        zero = torch.zeros_like(k0)
        x0, x1, _, _ = philox((k0, k1), (_unsigned(_to_word(data)), zero, zero, zero + _FOLD))
        seed = (x0 << 21) | (x1 >> 11)
        keep_int = not isinstance(self.seed, Tensor) and not isinstance(data, Tensor)
        return self._changed(seed=int(seed) if keep_int else seed)

    def uniform_like(self, a: Tensor, draws: int, event_ndim: int = 1) -> Tensor:
        """Return uniform noise `[draws, *a.shape]` for pre-activations `a` `[*batch, *event]`; see `uniform`."""
        split = a.ndim - event_ndim
        return self.uniform(a.shape[:split], a.shape[split:], draws, dtype=a.dtype, device=a.device)

    def normal_like(self, a: Tensor, draws: int, event_ndim: int = 1) -> Tensor:
        """Return standard normal noise `[draws, *a.shape]`, the quantiles of `uniform_like`, in one pass if there is a kernel."""
        z = self.fused("normal", torch.zeros_like(widen(a.detach())), draws, event_ndim, 1.0, 0)
        return portable.ndtri(self.uniform_like(a, draws, event_ndim)) if z is None else z

    def uniform(
        self,
        batch_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        draws: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return independent numbers, uniform on the open interval (0, 1), of shape `[draws, *batch, *event]`.

        `gradest.kernels.reference.noise.uniform_from_words` says how words become numbers. float16 and bfloat16 have no numbers
        close enough to 1 (1 - 2**-24 rounds to 1), so for them the noise is float32.
        """
        device, units = torch.device(device), math.prod(event_shape)
        words = self._words(batch_shape, device, draws, units)
        noise: Tensor = select("uniform", device)(*words, draws, units, torch.promote_types(dtype, torch.float32))
        return noise.reshape(draws, *batch_shape, *event_shape)

    def fused(
        self,
        kernel: str,
        a: Tensor,
        draws: int,
        event_ndim: int,
        *options: float | Tensor | None,
        dtype: torch.dtype | None = None,
        event: tuple[int, ...] | None = None,
    ) -> Tensor | None:
        """Run a fused kernel: draw uniform noise for `a` `[*batch, *event]` and compute outputs `[points, *a.shape]` in one pass.

        kernel: its name, such as those in `gradest.kernels.cpu`. options: further arguments of the kernel, in its order.
        A kernel takes `a` and tensors among the options in float32 at least, unless it is marked by `takes_halves`.
        dtype: of the outputs, for a kernel that can write another dtype than that of `a`.
        event: that of the outputs, for a kernel that writes another than that of `a`.
        Returns None if this device has no such kernel, or none yet because it is being compiled, if autograd has to record the
        computation, or for a subclass that overrides `uniform`; the caller then computes from `uniform_like`.
        """
        device, shape = a.device, a.shape
        draw = fused(kernel, device)
        if draw is None or type(self).uniform is not Key.uniform:
            return None
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (a, *options)):
            return None
        split = len(shape) - event_ndim
        batch, flat = shape[:split], a
        if not split == event_ndim == 1:
            flat = a.reshape(batch.numel(), shape[split:].numel())
        if flat.dtype in NARROW_DTYPES and not getattr(draw, "takes_halves", False):
            flat, options = widen(flat), tuple(widen(x) if isinstance(x, Tensor) else x for x in options)
        given = *self._words(batch, device, draws, flat.shape[1]), draws, flat, *options
        drawn: Tensor | None = draw(*given) if dtype is None else draw(*given, dtype=dtype)
        if drawn is None:
            return None
        if event is None and flat is a:
            return drawn
        return cast(drawn, dtype or a.dtype).reshape(drawn.shape[0], *(shape if event is None else (*batch, *event)))

    def row_words(
        self, batch_shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return 32-bit words for each row, int32 tensors `[rows]`: the two of its seed, and its number.

        They are what a fused kernel of your own needs, with `stream`. Units are numbered within the flattened event. The word x
        of a unit in a draw is word unit % 4 of Philox((word0, word1), (unit // 4, draw, row, stream)), with 7 rounds. A float32
        number is ((x >> 8) | 1) · 2**-24, shifted as unsigned. A float64 number is (((x << 21) | (y >> 11)) | 1) · 2**-53, where
        y is the word that unit // 4 + 2**31 gives in place of unit // 4. A kernel that computes these has the bits of `uniform`,
        as the conformance kit checks of a neuron that overrides `sample`.
        """
        (first, second), rows = as_tensors(*self._words(batch_shape, torch.device(device))[:2], device)
        return first, second, rows

    def _words(
        self, batch_shape: tuple[int, ...], device: torch.device, draws: int = 1, units: int = 1
    ) -> tuple[tuple[Word, Word], Word, int]:
        """Return the words of the seed, the words of the rows, and the stream, in the form that kernels take."""
        if torch._C._get_tracing_state() is not None:
            raise Incompatible("torch.jit.trace cannot record noise; use torch.compile or torch.export")
        count, first = math.prod(batch_shape), self.seed
        _check_counts(count, draws, units)
        seed: tuple[Word, Word]
        if isinstance(first, int):
            seed = first, first >> 32
        else:
            seed = _one_each_row(first, batch_shape, device), _one_each_row(_upper_word(first), batch_shape, device)
        rows = count if self.rows is None else _one_each_row(self.rows, batch_shape, device)
        if device == _CPU:
            return seed, rows, self.stream
        return *as_tensors(seed, rows, device), self.stream

    def _changed(self, **fields: object) -> Key:
        """Return a key with other values of these fields, which are known to be valid, as the others are."""
        key = object.__new__(type(self))
        key.__dict__.update(self.__dict__, **fields)
        return key

    def _seed_words(self) -> tuple[Tensor, Tensor]:
        return _unsigned(_to_word(self.seed)), _unsigned(_to_word(_upper_word(self.seed)))


def _one_each_row(value: Tensor | int, batch_shape: tuple[int, ...], device: torch.device) -> Word:
    """Return a word for each row, `[rows]`."""
    if isinstance(value, int):
        return value
    try:
        return _to_word(value).to(device).expand(batch_shape).reshape(-1)
    except RuntimeError as error:
        raise InvalidInput(
            f"the seeds and rows of a key must broadcast to the batch {list(batch_shape)}, but one has shape "
            f"{list(value.shape)}"
        ) from error


def plain_key(seed: int) -> Key:
    """Return Key(seed) of a seed that is known to be valid, in a third of the time."""
    key = object.__new__(Key)
    key.__dict__.update(seed=seed, rows=None, stream=0, shared=False)
    return key


def to_key(seed: int | Key | None) -> Key:
    """Return the key of a seed: a Key as it is, and for None the key of a new seed. Raises InvalidInput for a bad seed."""
    if isinstance(seed, Key):
        return seed
    if seed is None:
        return Key(fresh_seed_tensor()) if transformed() else plain_key(fresh_seed())
    return plain_key(check_seed(seed))
