"""The JSON codec by itself: bits survive it, and what JSON cannot say is said beside it."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradest_service.codec import JSON, decode_state, decode_tensor
from gradest_service.problems import Problem
from gradest_service.schemas import SampleAnswer
from gradest_service.settings import Settings

SETTINGS = Settings()
FLOATS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("d", struct.pack("Q", bits))[0])


def encode(tensor):
    return json.loads(JSON.encode(SampleAnswer(h=tensor, seed=0)))


@given(st.lists(FLOATS.filter(lambda x: x - x == 0), max_size=20))
def test_every_finite_double_survives(numbers):
    wanted = torch.tensor(numbers, dtype=torch.float64)
    body = JSON.encode(SampleAnswer(h=wanted, seed=0))
    found = decode_tensor("h", JSON.decode(body)["h"], torch.float64, SETTINGS)
    assert torch.equal(found.view(torch.int64), wanted.view(torch.int64))
    assert json.loads(body)["h"] == numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_survive(dtype):
    bits = torch.randint(-(2**15), 2**15, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    wanted = bits.view(torch.float32 if dtype == torch.float32 else dtype)
    wanted = wanted[torch.isfinite(wanted)]
    found = decode_tensor("h", JSON.decode(JSON.encode(SampleAnswer(h=wanted, seed=0)))["h"], dtype, SETTINGS)
    assert torch.equal(found, wanted)


def test_non_finite_numbers_are_strings():
    found = encode(torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]))
    assert found["h"] == ["NaN", "Infinity", "-Infinity", 0.0]


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0), (2, 0, 5), (1, 2, 3)])
def test_shape_and_dtype_are_told(shape):
    found = encode(torch.zeros(shape, dtype=torch.bfloat16))
    assert found["tensors"] == {"h": {"shape": list(shape), "dtype": "bfloat16"}}
    again = decode_tensor("h", found["h"], torch.bfloat16, SETTINGS, shape)
    assert again.shape == shape


def test_no_order_of_strides_changes_what_is_written():
    x = torch.arange(6.0).reshape(2, 3)
    assert encode(x.T)["h"] == [[0, 3], [1, 4], [2, 5]]


def test_a_tensor_that_is_decoded_already_is_checked_alike():
    x = torch.tensor([1.0, torch.nan])
    with pytest.raises(Problem, match=r"a\[1\]"):
        decode_tensor("a", x, torch.float32, SETTINGS)
    with pytest.raises(Problem, match="elements"):
        decode_tensor("a", torch.zeros(65537), torch.float32, SETTINGS)
    assert torch.equal(decode_tensor("a", x[:1], torch.float64, SETTINGS), torch.ones(1, dtype=torch.float64))


def test_state_takes_the_types_of_the_first_step():
    like = {
        "steps": torch.zeros((), dtype=torch.int64),
        "seen": torch.zeros(2, dtype=torch.bool),
        "mean": torch.zeros(0, 3),
    }
    state = {"steps": torch.tensor(2**60 + 1), "seen": torch.tensor([True, False]), "mean": torch.zeros(0, 3)}
    written = json.loads(JSON.encode({"state": state}))["state"]
    found = decode_state(written, like, SETTINGS)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with pytest.raises(Problem, match="whole number"):
        decode_state({**written, "steps": 1.5}, like, SETTINGS)
    with pytest.raises(Problem, match="cannot"):
        decode_state({**written, "steps": 10**30}, like, SETTINGS)
