"""Arrays that are no torch tensors: what is sent and returned, without torch where it is not installed."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gradest
from gradest.client import arrays
from gradest.errors import InvalidInput

TENSOR = torch.tensor([[0.5, -1.0, 2.0], [-0.25, 0.125, 0.0]])
GUIDE = Path(__file__).parents[2] / "docs/guides/clients.md"
ESTIMATOR = {"name": "reinforce_average", "samples": 2}


class Foreign:
    """An array of a library that follows the array API standard, as JAX does: it has a namespace, a device and `astype`."""

    device = "somewhere"

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers)
        self.shape = self.numbers.shape

    def __array__(self, dtype=None, copy=None):
        return self.numbers

    def __array_namespace__(self):
        return self

    def asarray(self, numbers, device):
        assert device == self.device
        return Foreign(numbers)

    def astype(self, dtype):
        return Foreign(self.numbers.astype(dtype))


class Exchanged:
    """An array that can be read by DLPack alone."""

    def __init__(self, numbers):
        self.shape, self.__dlpack__, self.__dlpack_device__ = (
            numbers.shape,
            numbers.__dlpack__,
            numbers.__dlpack_device__,
        )


def reversed_bytes(numbers):
    return numbers.astype(">f4")


def with_strides(numbers):
    return np.asfortranarray(np.repeat(numbers, 2, -1))[..., ::2]


KINDS = {"numpy": (np.asarray, np.ndarray), "foreign": (Foreign, Foreign), "dlpack": (Exchanged, np.ndarray)}
KINDS |= {"big-endian": (reversed_bytes, np.ndarray), "strided": (with_strides, np.ndarray)}


def plain(value):
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@pytest.fixture(params=["safetensors", "json"])
def remote(url, request):
    with gradest.Client(url, transport=request.param) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_in_arrays_out_with_the_bits_of_tensors(remote, kind):
    make, returned = KINDS[kind]

    def check(call):
        """The same call with arrays and with tensors."""
        ours, theirs = call(make(TENSOR.numpy()), make), call(TENSOR, torch.from_numpy)
        assert len(ours) == len(theirs)
        for array, tensor in zip(ours, theirs, strict=True):
            assert isinstance(array, returned)
            assert plain(array).dtype == plain(tensor).dtype
            np.testing.assert_array_equal(plain(array), plain(tensor))

    def both_halves(a, make):
        state, found = None, []
        for seed in (1, 2):
            draw = remote.forward("bernoulli", ESTIMATOR, a, seed, state)
            loss = make(plain(draw.points).sum(-1) ** 2)
            step = remote.backward("bernoulli", ESTIMATOR, a, draw, loss, state=state)
            state = step.state
            found += [draw.points, draw.weights, step.gradient, step.value, *state.values()]
        return found

    def slopes(a, make):
        draw = remote.forward("noisy_rectifier", "pathwise", a, 3)
        points = plain(draw.points)
        return [
            remote.backward("noisy_rectifier", "pathwise", a, draw, make(points.sum(-1)), make(points * 2)).gradient
        ]

    check(lambda a, make: [remote.sample("noisy_rectifier", a, 3, 7), remote.sample("bernoulli", a, 3, 7)])
    check(lambda a, make: list(vars(remote.mean("noisy_rectifier", a)).values()))
    check(both_halves)
    check(slopes)
    target = np.array([0.1, 0.2, 0.3], np.float32)
    check(lambda a, make: remote.estimate({"name": "quadratic", "target": make(target)}, a, draws=5, seed=1).exact)
    check(lambda a, make: [remote.compare("quadratic", a, estimators=["rloo"], draws=5, seed=1).exact])
    lengths = np.array([[3, 2, 300], [1, 2, 5]])
    check(lambda a, make: [remote.credit("opo", a, features=make(lengths))[0]])


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [2, 0])
def test_every_dtype(remote, dtype, size):
    tensor = TENSOR[:size].to(getattr(torch, dtype))
    array = arrays.builder_like(np.zeros(1)).from_list(tensor.float().tolist(), dtype, tensor.shape)
    found, wanted = (remote.sample("noisy_rectifier", a, 3, 7) for a in (array, tensor))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype("float64"), wanted.double().numpy())


@pytest.mark.parametrize("integer", ["bool", "uint8", "int32", "int64"])
def test_losses_that_are_whole_numbers(remote, integer):
    draw = remote.forward("bernoulli", "rloo", TENSOR.numpy(), 3)
    loss = np.array([[1, 0], [0, 1]])
    found, wanted = (
        remote.backward("bernoulli", "rloo", TENSOR.numpy(), draw, given)
        for given in (loss.astype(integer), torch.from_numpy(loss).to(getattr(torch, integer)))
    )
    assert found.value.dtype == wanted.value.dtype
    np.testing.assert_array_equal(found.gradient, wanted.gradient)


def test_bfloat16_needs_a_package_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InvalidInput, match="pip install ml_dtypes"):
        arrays.builder_like(np.zeros(1)).from_list([1.0], "bfloat16", [1])


def test_a_seed_of_none_is_numpy_s(remote):
    def draw():
        return remote.sample("noisy_rectifier", TENSOR.numpy())

    np.random.seed(0)
    first = draw()
    assert (draw() != first).any()
    np.random.seed(0)
    np.testing.assert_array_equal(draw(), first)
    np.testing.assert_array_equal(*(remote.sample("bernoulli", TENSOR.numpy(), 2, seed) for seed in (5, np.int64(5))))


class Traced:
    """What jax.jit gives a function: an array without values."""

    shape = (1,)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("traced array\nand many more lines")


@pytest.mark.parametrize(
    ("a", "message"),
    [
        ([[1.0]], r"not list; numpy\.asarray\(a, 'float32'\) makes"),
        (np.zeros(3, int), r"not int64; \.astype\('float32'\) converts an array"),
        (torch.zeros(3, dtype=torch.int32), r"not int32; \.float\(\) converts a tensor"),
        (np.float32(1), "not float32"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), r"array\.filled"),
        (Traced(), r"Traced cannot be read .*: traced array\. An array inside jax\.jit"),
    ],
)
def test_what_is_refused(remote, a, message):
    with pytest.raises(InvalidInput, match=message):
        remote.sample("bernoulli", a)


def test_an_option_that_is_no_json_is_refused(remote):
    with pytest.raises(InvalidInput, match=r"^a request cannot hold object, which is neither JSON nor an array"):
        remote.sample({"name": "bernoulli", "width": object()}, TENSOR)


def test_an_option_may_be_a_number_of_numpy(remote):
    found, wanted = (
        remote.sample({"name": "noisy_rectifier", "distribution": "gaussian", "std": std}, TENSOR, 2, seed=1)
        for std in (np.float32(2), 2.0)
    )
    assert torch.equal(found, wanted)


def test_expect_is_torch_s(remote):
    with pytest.raises(InvalidInput, match=r"call forward, evaluate the loss .* and call backward"):
        remote.expect(lambda h: h.sum(-1), TENSOR.numpy())


WITHOUT_TORCH = """
import asyncio, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names and root not in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import gradest
from gradest.client import AsyncClient, Client, RemoteDraw
from gradest.errors import InvalidInput, ServiceError
assert "numpy" not in sys.modules
import numpy as np

a = np.array([[0.5, -1.0, 2.0]], np.float32)
for transport in ("safetensors", "json"):
    with Client(sys.argv[1], transport=transport) as client:
        draw = client.forward("bernoulli", "disarm", a)
        step = client.backward("bernoulli", "disarm", a, draw, (draw.points.sum(-1) - 2) ** 2)
        assert step.gradient.shape == a.shape
        client.sample("bernoulli", a), client.mean("bernoulli", a), client.neurons()
        client.estimate("quadratic", a, draws=3), client.compare("quadratic", a, estimators=["rloo"], draws=3)
        client.recommend("noisy_rectifier", objective="quadratic", a=a, draws=3, evaluations=2)
        client.credit("rloo", a.T)
        try:
            client.sample("bernoull", a)
        except ServiceError as error:
            print(error)
        try:
            client.expect(lambda h: h.sum(-1), a)
        except InvalidInput as error:
            print(error)

async def main():
    async with AsyncClient(sys.argv[1]) as client:
        return await client.sample("bernoulli", a, 2, seed=1)

print(asyncio.run(main()).shape)
"""


def modules_of(*distributions):
    """The modules that pip installs for these distributions, with those that they require."""
    todo, found = {*distributions}, set()
    while todo:
        found.add(name := todo.pop())
        needs = map(Requirement, metadata.requires(name) or ())
        todo |= {need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})} - found
    names = {canonicalize_name(name) for name in found}
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if names & {canonicalize_name(owner) for owner in owners}
    ]


def test_torch_need_not_be_installed(url):
    """Nor anything else but what the guide installs: other imports fail."""
    (line,) = re.findall(r"^pip install (httpx .*)$", GUIDE.read_text(), re.MULTILINE)
    modules = ["gradest", *modules_of(*line.split())]
    assert "pydantic_core" in modules
    assert "torch" not in modules
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, url, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Did you mean bernoulli") == 2
    assert done.stdout.count("expect differentiates by torch") == 2
    assert done.stdout.endswith("(2, 1, 3)\n")


def test_torch_is_not_imported_where_it_is_installed_and_not_used(url):
    script = (
        f"import sys, numpy, gradest; gradest.Client({url!r}).sample('bernoulli', numpy.zeros((1, 2), 'f4'), 3); "
        "print({'torch', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr
