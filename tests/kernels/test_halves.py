"""Numbers of 16 bits that kernels read and write themselves: the bits of torch's conversion, for every number."""

import numpy as np
import pytest
import torch

from gradest.kernels.cpu import halves

HALVES = [torch.bfloat16, torch.float16]
ALL = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)


def by_instruction(dtype):
    """The conversions that this processor uses, with arrays in place of addresses."""
    kind = halves.format_of(dtype)

    def widen(bits, x):
        halves._widen(bits.ctypes.data, kind, x)

    def narrow(x, bits):
        halves._narrow(x, kind, bits.ctypes.data)

    return widen, narrow


def by_integers(dtype):
    """Those for processors without instructions for float16."""
    return (
        lambda bits, x: halves._widen_float16(bits, x.view(np.uint32)),
        lambda x, bits: halves._narrow_to_float16(x.view(np.uint32), bits),
    )


def edges(wide):
    """Every number of 16 bits, the middle to the next one, the neighbours of both in float32, and numbers of any bits."""
    bits = wide.view(np.int32).astype(np.int64)
    steps = [bits + step + near for step in (0, 0x800, 0x1000, 0x8000) for near in (-1, 0, 1)]
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18)
    return (np.concatenate([*steps, anything]) & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("dtype", "conversions"), [*((dtype, by_instruction) for dtype in HALVES), (torch.float16, by_integers)]
)
def test_conversions_have_the_bits_of_torch(dtype, conversions):
    widen, narrow = conversions(dtype)
    wanted = ALL.view(dtype).float().numpy()
    found = np.empty_like(wanted)
    widen(ALL.numpy().view(np.uint16), found)
    assert ((found.view(np.int32) == wanted.view(np.int32)) | (np.isnan(found) & np.isnan(wanted))).all()
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    given = edges(wanted)
    bits = np.empty(given.shape, np.uint16)
    narrow(given, bits)
    narrowed, rounded = torch.from_numpy(bits.view(np.int16)).view(dtype), torch.from_numpy(given.copy()).to(dtype)
    same = (narrowed.view(torch.int16) == rounded.view(torch.int16)) | (narrowed.isnan() & rounded.isnan())
    assert bool(same.all())
