"""The codecs by themselves: bits survive them, and nothing malformed gets through."""

import json
import math
import struct

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gradest.client.wire import MAX_HEADER, Malformed, join_tensors, pack, split_tensors, unpack
from gradest_service.bodies.codec import JSON, SAFETENSORS, answer_codec
from gradest_service.bodies.schemas import EstimateAnswer, Exact, SampleAnswer
from gradest_service.bodies.tensors import check_options, decode_floats, decode_state, decode_tensor
from gradest_service.problems import Problem
from gradest_service.settings import Settings

SETTINGS = Settings()
FLOATS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("d", struct.pack("Q", bits))[0])


def encode(tensor):
    return json.loads(JSON.encode(SampleAnswer(h=tensor, seed=0)))


@given(st.lists(FLOATS.filter(lambda x: x - x == 0), max_size=20))
def test_every_finite_double_survives(numbers):
    wanted = torch.tensor(numbers, dtype=torch.float64)
    body = JSON.encode(SampleAnswer(h=wanted, seed=0))
    found = decode_tensor("h", JSON.decode(body, SETTINGS)["h"], torch.float64, SETTINGS)
    assert torch.equal(found.view(torch.int64), wanted.view(torch.int64))
    assert json.loads(body)["h"] == numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_survive(dtype):
    bits = torch.randint(-(2**15), 2**15, (4000,), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    wanted = bits.view(torch.float32 if dtype == torch.float32 else dtype)
    wanted = wanted[torch.isfinite(wanted)]
    found = decode_tensor("h", JSON.decode(JSON.encode(SampleAnswer(h=wanted, seed=0)), SETTINGS)["h"], dtype, SETTINGS)
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
    with pytest.raises(Problem, match="4194304 elements"):
        decode_tensor("a", torch.zeros(1).expand(2**22 + 1), torch.float32, SETTINGS)
    with pytest.raises(Problem, match="safetensors"):
        decode_tensor("a", [0.0] * 65537, torch.float32, SETTINGS)
    with pytest.raises(Problem, match="floating point, not int64"):
        decode_tensor("loss", torch.tensor([1]), torch.float32, SETTINGS)
    assert torch.equal(decode_tensor("a", x[:1], torch.float64, SETTINGS), torch.ones(1, dtype=torch.float64))


def test_state_takes_the_types_of_the_first_step():
    like = {
        "steps": torch.zeros((), dtype=torch.int64),
        "seen": torch.zeros(2, dtype=torch.bool),
        "mean": torch.zeros(0, 3),
    }
    state = {"steps": torch.tensor(2**60 + 1), "seen": torch.tensor([True, False]), "mean": torch.zeros(0, 3)}
    written = json.loads(JSON.encode({"state": state}))["state"]
    found = decode_state("nvil", written, like, SETTINGS)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with pytest.raises(Problem, match="whole number"):
        decode_state("nvil", {**written, "steps": 1.5}, like, SETTINGS)
    with pytest.raises(Problem, match="cannot"):
        decode_state("nvil", {**written, "steps": 10**30}, like, SETTINGS)


# --- safetensors ---

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw):
    """Any bits, of any dtype, in any shape, contiguous or not."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    whole = draw(st.binary(min_size=math.prod(shape) * dtype.itemsize, max_size=math.prod(shape) * dtype.itemsize))
    if not whole:
        return torch.zeros(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(whole), dtype=torch.uint8)
    flat = flat.ne(0) if dtype == torch.bool else flat.view(dtype)
    return flat.reshape(shape[::-1]).permute(list(range(len(shape)))[::-1])


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def body_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@given(st.dictionaries(NAMES, tensors(), max_size=4), st.dictionaries(NAMES, st.text(), max_size=2))
def test_every_tensor_survives(given_tensors, metadata):
    body = pack(given_tensors, metadata)
    found, told = unpack(bytearray(body))
    assert told == metadata
    assert {name: bits(tensor) for name, tensor in found.items()} == {n: bits(x) for n, x in given_tensors.items()}
    theirs = safetensors.torch.load(body)
    assert {name: bits(tensor) for name, tensor in theirs.items()} == {n: bits(x) for n, x in given_tensors.items()}


@given(st.dictionaries(NAMES, tensors(), max_size=4))
def test_what_the_package_writes_is_read(given_tensors):
    body = safetensors.torch.save({name: tensor.contiguous() for name, tensor in given_tensors.items()}, {"k": "v"})
    found, metadata = unpack(body)
    assert metadata == {"k": "v"}
    assert {name: bits(tensor) for name, tensor in found.items()} == {n: bits(x) for n, x in given_tensors.items()}


def test_tensors_are_views_of_the_body_and_aligned():
    body = bytearray(pack({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.uint8), "c": torch.ones(1).double()}, {}))
    found, _ = unpack(body)
    place = body.index(torch.ones(1).double().numpy().tobytes())
    assert place % 8 == 0
    body[place : place + 8] = bytes(8)
    assert found["c"].item() == 0
    odd = body_of({"b": entry("U8", [1], 0, 1), "a": entry("F32", [1], 1, 5)}, b"x" + torch.ones(1).numpy().tobytes())
    aligned = unpack(odd)[0]["a"]
    assert aligned.item() == 1
    assert aligned.data_ptr() % 4 == 0


def test_tensors_may_share_memory():
    x = torch.arange(4.0)
    found, _ = unpack(pack({"a": x, "b": x, "c": x[1:], "d": x[:1].expand(3)}, {}))
    assert (found["b"].tolist(), found["c"].tolist(), found["d"].tolist()) == ([0, 1, 2, 3], [1, 2, 3], [0, 0, 0])


def test_a_dtype_without_a_code_is_not_sent():
    with pytest.raises(ValueError, match="complex64 cannot be sent"):
        pack({"a": torch.zeros(1, dtype=torch.complex64)}, {})


def entry(dtype, shape, begin, end, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


MALFORMED = {
    "empty": b"",
    "no header": b"\x02\0\0",
    "truncated header": body_of({})[:-1],
    "length beyond the body": (1 << 63).to_bytes(8, "little") + b"{}",
    "header too long": body_of(b"{}" + b" " * MAX_HEADER),
    "not JSON": body_of(b"{'a'}"),
    "not UTF-8": body_of(b'{"\xff": 1}'),
    "leading space": body_of(b" {}"),
    "not an object": body_of([]),
    "not a number": body_of(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 0]}}'),
    "nested too deep": body_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a number too long": body_of(b'{"a": ' + b"1" * 5000 + b"}"),
    "metadata of numbers": body_of({"__metadata__": {"request": 1}}),
    "metadata no object": body_of({"__metadata__": "request"}),
    "truncated data": body_of({"a": entry("F32", [2], 0, 8)}, b"1234567"),
    "data left over": body_of({"a": entry("F32", [1], 0, 4)}, b"12345"),
    "overlap": body_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456"),
    "the same place twice": body_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"1234"),
    "gap": body_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"),
    "backwards": body_of({"a": entry("F32", [0], 4, 0)}),
    "negative offsets": body_of({"a": entry("U8", [1], -1, 0)}),
    "offsets too small": body_of({"a": entry("F32", [2], 0, 4)}, b"1234"),
    "offsets too large": body_of({"a": entry("F32", [1], 0, 8)}, b"12345678"),
    "offsets of three": body_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"1"),
    "offsets of text": body_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": "01"}}, b"1"),
    "unknown dtype": body_of({"a": entry("hunter2", [1], 0, 4)}, b"1234"),
    "dtype no text": body_of({"a": entry([], [1], 0, 4)}, b"1234"),
    "shape no list": body_of({"a": entry("U8", 1, 0, 1)}, b"1"),
    "negative shape": body_of({"a": entry("U8", [-1, -1], 0, 1)}, b"1"),
    "shape of booleans": body_of({"a": entry("U8", [True], 0, 1)}, b"1"),
    "shape of fractions": body_of({"a": entry("U8", [1.0], 0, 1)}, b"1"),
    "a size too large": body_of({"a": entry("U8", [0, 1 << 63], 0, 0)}),
    "a shape too large": body_of({"a": entry("U8", [0, 1 << 62, 1 << 62], 0, 0)}),
    "too many dims": body_of({"a": entry("U8", [1] * 65, 0, 1)}, b"1"),
    "more keys": body_of({"a": entry("U8", [1], 0, 1, more=1)}, b"1"),
    "a key less": body_of({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "no entry": body_of({"a": None}),
    "a name twice": body_of(
        b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},'
        b' "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
        b"1",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(name):
    with pytest.raises(Malformed) as refusal:
        unpack(MALFORMED[name])
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(Problem) as problem:
        SAFETENSORS.decode(bytearray(MALFORMED[name]), SETTINGS)
    assert problem.value.status == 400
    assert len(problem.value.detail) < 300


@pytest.mark.parametrize("name", ["offsets too small", "offsets too large", "backwards"])
def test_malformed_offsets_are_named_as_the_cause(name):
    with pytest.raises(Malformed, match="not as far apart as its dtype and shape say"):
        unpack(MALFORMED[name])


GOOD = pack({"a": torch.arange(3.0), "state.b": torch.tensor([True])}, {"request": '{"neuron": "bernoulli"}'})


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3), st.integers(0, len(GOOD)))
@example([], len(GOOD))
def test_no_mutation_is_read_otherwise_than_the_package_reads_it(changes, length):
    body = bytearray(GOOD[:length])
    for place, byte in changes:
        if place < length:
            body[place] = byte
    try:
        found, _ = unpack(body)
    except Malformed:
        assert body != GOOD
        return
    theirs = safetensors.torch.load(bytes(body))
    assert {name: bits(tensor.byte() if tensor.dtype == torch.bool else tensor) for name, tensor in found.items()} == {
        name: bits(tensor.byte().ne(0).byte() if tensor.dtype == torch.bool else tensor)
        for name, tensor in theirs.items()
    }


@given(st.binary(max_size=60))
def test_no_bytes_make_another_error(data):
    for body in (data, body_of(data), body_of({"a": entry("U8", [len(data)], 0, len(data))}, data)):
        try:
            unpack(body)
        except Malformed:
            continue


def test_a_bool_is_0_or_1():
    assert unpack(body_of({"a": entry("BOOL", [3], 0, 3)}, b"\x00\x01\x07"))[0]["a"].byte().tolist() == [0, 1, 1]


def test_fields_go_where_their_names_say():
    x, y, z, w = (torch.tensor(float(number)) for number in range(4))
    fields = {
        "neuron": "bernoulli",
        "a": x,
        "state": {"inner.weight": y},
        "objective": {"name": "quadratic", "target": z},
        "estimators": ["rloo", {"name": "straight_through", "slope": w}],
        "seed": None,
    }
    rest, taken = split_tensors(fields)
    assert taken == {"a": x, "state.inner.weight": y, "objective.target": z, "estimators.1.slope": w}
    assert json.loads(json.dumps(rest)) == {
        "neuron": "bernoulli",
        "state": {},
        "objective": {"name": "quadratic"},
        "estimators": ["rloo", {"name": "straight_through"}],
        "seed": None,
    }
    assert fields["objective"] == {"name": "quadratic", "target": z}
    assert join_tensors(rest, taken) == fields


def test_a_plugin_by_its_name_takes_tensors_as_options():
    x = torch.zeros(2)
    fields = {"objective": "quadratic", "estimators": ["rloo"], "state": None}
    found = join_tensors(fields, {"objective.target": x, "estimators.0.slope": x, "state.total": x})
    assert found["objective"] == {"name": "quadratic", "target": x}
    assert found["estimators"] == [{"name": "rloo", "slope": x}]
    assert found["state"] == {"total": x}


@pytest.mark.parametrize(
    "name",
    [
        "seed",
        "seed.x",
        "objective.target",
        "objective.",
        "estimators.1.x",
        "estimators.x.x",
        "estimators.0",
        "estimators.²",
    ],
)
def test_a_tensor_without_a_place(name):
    body = pack({name: torch.zeros(1)}, {"request": '{"seed": 1, "objective": {"target": 1}, "estimators": ["rloo"]}'})
    with pytest.raises(Problem) as problem:
        SAFETENSORS.decode(bytearray(body), SETTINGS)
    assert problem.value.status == 400


@pytest.mark.parametrize(("text", "status"), [(None, 400), ("", 400), ("{", 400), ("[]", 422), ("1", 422)])
def test_the_other_fields_are_a_json_object(text, status):
    body = pack({"a": torch.zeros(1)}, {} if text is None else {"request": text})
    with pytest.raises(Problem, match="request") as problem:
        SAFETENSORS.decode(bytearray(body), SETTINGS)
    assert problem.value.status == status


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_an_answer_has_the_same_fields_in_both_forms(dtype):
    x = torch.tensor([[1.5, torch.nan], [torch.inf, -0.0]], dtype=dtype)
    answer = EstimateAnswer(
        loss=x[0], gradient=x.T, variance=x, standard_error=x, draws=1, evaluations=2, seconds=0.5, seed=3,
        state={"total": x[0, 0]}, exact=Exact(loss=x[0], gradient=x),
    )  # fmt: skip
    found, metadata = unpack(SAFETENSORS.encode(answer))
    assert metadata.keys() == {"response"}
    assert bits(found["gradient"]) == bits(x.T)
    rest = json.loads(metadata["response"])
    as_json = json.loads(JSON.encode(answer))
    described = as_json.pop("tensors")
    assert join_tensors(rest, found).keys() == as_json.keys()
    assert described == {
        name: {"shape": list(tensor.shape), "dtype": str(dtype).removeprefix("torch.")}
        for name, tensor in found.items()
    }
    none = EstimateAnswer.model_construct(**{**dict(answer), "exact": None, "state": {}})
    assert json.loads(unpack(SAFETENSORS.encode(none))[1]["response"])["exact"] is None


def test_pre_activations_are_read_in_their_own_type_unless_another_is_asked_for():
    for dtype in DTYPES[:4]:
        assert decode_floats("a", torch.zeros(2, dtype=dtype), None, None, SETTINGS).dtype == dtype
    assert decode_floats("a", torch.zeros(2), "bfloat16", [2], SETTINGS).dtype == torch.bfloat16
    assert decode_floats("a", [0, 1], None, None, SETTINGS).dtype == torch.float32
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(Problem, match="float32, float64, bfloat16, float16"):
            decode_floats("a", wrong, None, None, SETTINGS)
        with pytest.raises(Problem, match="floating point"):
            decode_floats("a", wrong, "float32", None, SETTINGS)


def test_tensors_among_options_are_checked():
    check_options("objective", {"name": "x", "target": torch.zeros(70_000)}, SETTINGS)
    with pytest.raises(Problem, match=r"objective\[1\] is not a finite number"):
        check_options("objective", {"name": "x", "target": torch.tensor([0, torch.nan])}, SETTINGS)
    with pytest.raises(Problem, match="4194304"):
        check_options("objective", {"name": "x", "target": torch.zeros(1).expand(2**22 + 1)}, SETTINGS)


@pytest.mark.parametrize(
    ("accept", "codec"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("text/html", JSON),
        ("application/json, application/vnd.safetensors", JSON),
        ("application/vnd.safetensors", SAFETENSORS),
        ("Application/VND.safetensors;q=0.9, application/json;q=0.8", SAFETENSORS),
        ("application/vnd.safetensors, */*", SAFETENSORS),
        ("application/vnd.safetensors, application/json;q=0.5", SAFETENSORS),
        ("application/vnd.safetensors;q=0.5, */*", JSON),
        ("application/vnd.safetensors;q=0", JSON),
    ],
)
def test_an_answer_is_json_unless_safetensors_are_preferred(accept, codec):
    assert answer_codec(accept) is codec


def test_half_of_a_surrogate_pair_in_the_metadata(http, refused):
    """The header is JSON, which may escape what is no character."""
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"request":"\\ud800"}}'
    body = len(head).to_bytes(8, "little") + head + bytes(4)
    answer = http.post("/v1/sample", content=body, headers={"Content-Type": "application/vnd.safetensors"})
    assert "surrogate" in refused(answer, 400)["detail"]
