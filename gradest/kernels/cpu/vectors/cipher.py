"""Philox-4x32 for vector units, in LLVM code: eight counters at a time, whose words are written in the order of the counters.

numba's own loop over counters takes half as long again: LLVM makes products of 64 bits of the shifts that join two words, and
moves every word across the vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gradest.kernels.cpu.compilation.compiler import Decorator
from gradest.kernels.cpu.compilation.processors import has_wide_vectors
from gradest.kernels.reference.noise import MULTIPLIERS, ROUNDS, WEYL

__all__ = ["LANES", "encrypt_column", "encrypt_row"]

LANES = 8
"""How many counters are encrypted at a time."""

_intrinsic: Decorator = intrinsic
_NUMBER, _WORD = ir.IntType(64), ir.IntType(32)
_LOW = 0xFFFFFFFF

# A word is the lower half of a lane of 64 bits, whose upper half may hold anything: the vector unit multiplies words in place.
# The lanes of a vector of n hold the counters 0, n / 2, 1, n / 2 + 1, ... When pairs of words are interleaved, which is cheap
# among neighbours, those of the counters 0 to n / 2 - 1 make one vector, and the others the next.


class _Lanes:
    """The operations on vectors of words, one for each of `width` counters."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder, self.width = builder, width
        self.order = [lane // 2 + lane % 2 * (width // 2) for lane in range(width)]

    def constant(self, *values: int) -> Any:
        return ir.Constant(ir.VectorType(_NUMBER, self.width), [*values] * (self.width // len(values)))

    def same(self, number: Any) -> Any:
        """Return the number in all lanes."""
        first = self.builder.insert_element(self.constant(0), number, ir.Constant(_WORD, 0))
        return self.shuffled(first, first, [0] * self.width)

    def shuffled(self, one: Any, other: Any, places: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_WORD, len(places)), places)
        return self.builder.shuffle_vector(one, other, mask)

    def counted(self, number: Any) -> Any:
        """Return the numbers that count up from this one, in the order of the lanes."""
        return self.builder.add(self.same(number), self.constant(*self.order))

    def loaded(self, pointer: Any) -> Any:
        """Return the words at the address, in the order of the lanes."""
        words = ir.VectorType(_WORD, self.width)
        given = self.builder.load(self.builder.bitcast(pointer, words.as_pointer()), align=4)
        return self.builder.zext(self.shuffled(given, given, self.order), ir.VectorType(_NUMBER, self.width))

    def product(self, word: Any, by: int) -> Any:
        return self.builder.mul(self.builder.and_(word, self.constant(_LOW)), self.constant(by))

    def upper(self, number: Any) -> Any:
        return self.builder.lshr(number, self.constant(32))

    def exclusive(self, *words: Any) -> Any:
        first, second, third = words
        return self.builder.xor(self.builder.xor(first, second), third)

    def encrypted(self, counter: list[Any], key: list[Any]) -> list[Any]:
        """Return the four words of each counter."""
        (c0, c1, c2, c3), (k0, k1) = counter, key
        for turn in range(ROUNDS):
            p0, p1 = self.product(c0, MULTIPLIERS[0]), self.product(c2, MULTIPLIERS[1])
            first = self.builder.add(k0, self.constant(turn * WEYL[0] & _LOW))
            second = self.builder.add(k1, self.constant(turn * WEYL[1] & _LOW))
            c0, c1, c2, c3 = (
                self.exclusive(self.upper(p1), c1, first),
                p1,
                self.exclusive(self.upper(p0), c3, second),
                p0,
            )
        return [c0, c1, c2, c3]

    def pairs(self, one: Any, other: Any) -> Any:
        """Return lanes that hold a word of `one` and then one of `other`."""
        words = ir.VectorType(_WORD, 2 * self.width)
        places = [lane - lane % 2 + lane % 2 * 2 * self.width for lane in range(2 * self.width)]
        joined = self.shuffled(self.builder.bitcast(one, words), self.builder.bitcast(other, words), places)
        return self.builder.bitcast(joined, ir.VectorType(_NUMBER, self.width))

    def store(self, words: list[Any], pointer: Any) -> None:
        """Write the words of all counters to the address, those of a counter side by side, in the order of the counters."""
        begin, end = self.pairs(*words[:2]), self.pairs(*words[2:])
        for half in range(2):
            places = [lane - lane % 2 + half + lane % 2 * self.width for lane in range(self.width)]
            at = self.builder.gep(pointer, [ir.Constant(_NUMBER, half * self.width)])
            vector = self.shuffled(begin, end, places)
            self.builder.store(vector, self.builder.bitcast(at, vector.type.as_pointer()), align=8)


def _encrypt(context: Any, builder: Any, kinds: Any, values: Any, counts_up: bool) -> Any:
    """Write the words of `LANES` counters; an array has one word for each, and a number is that of all."""
    width = LANES if has_wide_vectors(context.codegen().magic_tuple()) else LANES // 2
    lanes = _Lanes(builder, width)
    pointers = [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else None
        for kind, value in zip(kinds, values, strict=True)
    ]
    for begin in range(0, LANES, width):
        at = builder.add(values[1], ir.Constant(_NUMBER, begin))
        given = [
            lanes.same(value) if pointer is None else lanes.loaded(builder.gep(pointer, [at]))
            for pointer, value in zip(pointers[2:], values[2:], strict=True)
        ]
        if counts_up:
            given[0] = lanes.counted(builder.add(values[2], at))
        to = builder.gep(pointers[0], [builder.mul(at, ir.Constant(_NUMBER, 2))])
        lanes.store(lanes.encrypted(given[:4], given[4:]), to)
    return context.get_dummy_value()


@_intrinsic
def encrypt_row(typing: Any, words: Any, at: Any, c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Write the words of the counters (c0 + at, c1, c2, c3) to (c0 + at + `LANES` - 1, ...) from words[2 * at] on.

    words: contiguous uint64, two for each counter. The others are int64 or uint64.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _encrypt(context, builder, signature.args, values, counts_up=True)

    return types.void(words, at, c0, c1, c2, c3, k0, k1), generate


@_intrinsic
def encrypt_column(typing: Any, words: Any, at: Any, c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Write the words of the counters (c0, c1, c2[i], c3) under the keys (k0[i], k1[i]), for `LANES` i from `at` on.

    c2, k0, k1: contiguous arrays of uint32. The other arguments are those of `encrypt_row`.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _encrypt(context, builder, signature.args, values, counts_up=False)

    return types.void(words, at, c0, c1, c2, c3, k0, k1), generate
