"""A stranger's neurons with kernels of their own, which the kit compares with the definition, and faults that it finds."""

import math
import warnings

import pytest
import torch

import gradest
from gradest.contract.numerics import sigmoid
from gradest.errors import PluginError
from gradest.random import Key, philox4x32
from gradest.testing import checks


class Coin(gradest.LogisticBinary):
    """A binary unit whose `sample` compares the integers of the generator with a threshold, without a tensor of noise."""

    name, summary = "acme_coin", "binary unit with a kernel of its own"

    def sample(self, key, a, draws):
        if a.dtype != torch.float32 or (a.requires_grad and torch.is_grad_enabled()):
            return super().sample(key, a, draws)
        units, key = a.shape[-1], self.key_for(key, a.device)
        word0, word1, row = (word[:, None] for word in key.row_words(a.shape[:-1], a.device))
        counter = torch.arange((units + 3) // 4, device=a.device)
        draw = torch.arange(draws, device=a.device)[:, None, None]
        words = self.generate((word0, word1), (counter, draw, row, key.stream))
        x = torch.stack(torch.broadcast_tensors(*words), -1).flatten(-2)[..., :units]
        # (x >> 8 | 1) 2^-24 < p, in integers
        level = torch.ceil(sigmoid(a).double() * 2**24).to(torch.int64).reshape(-1, units)
        return ((x >> 8) | 1).lt(level).to(a.dtype).reshape(draws, *a.shape)

    def key_for(self, key, device):
        return key

    def generate(self, key, counter):
        return philox4x32(key, counter)


class ForgetsStream(Coin):
    name = "acme_forgets_stream"

    def key_for(self, key, device):
        return Key(key.seed, key.rows)


class ForgetsRows(Coin):
    name = "acme_forgets_rows"

    def key_for(self, key, device):
        return Key(key.seed, stream=key.stream)


class OneSeed(Coin):
    name = "acme_one_seed"

    def key_for(self, key, device):
        seed = int(key.seed.flatten()[0]) if isinstance(key.seed, torch.Tensor) else key.seed
        return Key(seed, key.rows, key.stream)


class SwapsCounter(Coin):
    name = "acme_swaps_counter"

    def generate(self, key, counter):
        return philox4x32(key, (counter[1], counter[0], *counter[2:]))


class ManyDraws(Coin):
    """Right for one draw, wrong from the second on."""

    name = "acme_many_draws"

    def generate(self, key, counter):
        return philox4x32(key, (counter[0], counter[1] * 2, *counter[2:]))


class Shift(gradest.Reparameterised):
    """A unit a + u, two pre-activations each of which the second scales u, with a sample of one pass."""

    name, summary = "acme_shift", "uniform unit with location and scale"
    event_ndim = 2
    example_events = ((3, 2),)

    def output_event(self, event):
        if event[-1] != 2:
            raise gradest.errors.InvalidInput(
                f"a unit has a location and a scale, so the last dim is 2, not {event[-1]}"
            )
        return event[:-1]

    def noise(self, key, a, draws):
        return key.uniform_like(a[..., 0], draws, 1)

    def forward(self, a, noise):
        return (a[..., 0] + sigmoid(a[..., 1]) * noise).to(a.dtype)

    def backward(self, a, noise, grad_h):
        p = sigmoid(a[..., 1])
        return torch.stack([grad_h, grad_h * noise * p * (1 - p)], -1).to(a.dtype)

    def pullback(self, key, a, h, grad_h):
        u = (h - a[..., 0]) / sigmoid(a[..., 1])  # from h, without drawing the noise again
        return self.backward(a, u, grad_h)

    def mean(self, a):
        return (a[..., 0] + 0.5 * sigmoid(a[..., 1])).to(a.dtype)

    def active_probability(self, a):
        return (1 + a[..., 0] / sigmoid(a[..., 1])).clamp(0, 1).to(a.dtype)

    def law(self, a):
        raise NotImplementedError


class CutOff(Shift):
    name = "acme_cut_off"

    def sample(self, key, a, draws):
        return super().sample(key, a.detach(), draws)


class WrongPullback(Shift):
    name = "acme_wrong_pullback"

    def pullback(self, key, a, h, grad_h):
        return 2 * super().pullback(key, a, h, grad_h)


class WrongScore(Coin):
    name = "acme_wrong_score"

    def weighted_score(self, h, a, weights):
        return super().weighted_score(h, a, weights.flip(0))


class WrongPairs(Coin):
    name = "acme_wrong_pairs"

    def antithetic(self, key, a, pairs):
        return super().antithetic(key.with_stream(key.stream + 1), a, pairs)


@pytest.mark.parametrize("check", checks.NEURON_CHECKS, ids=lambda check: check.__name__)
def test_the_kit_passes_a_fused_sample(check):
    check(Coin())


def test_a_shortcut_of_a_unit_that_moves_is_compared_too():
    checks.neuron_samples_are_forward(Shift())
    checks.neuron_kernels_agree(Shift())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ForgetsStream, r"sample differs from forward .*float32 on cpu, batch \[\], 2 draws, for a key with stream 5"),
        (ForgetsRows, r"sample differs from forward .*for a key with row numbers\)"),
        (OneSeed, r"sample differs from forward .*for a key with a seed for each row and stream 1"),
        (SwapsCounter, r"sample differs from forward"),
        (ManyDraws, r"sample differs from forward .* 3 draws\)"),
        (CutOff, r"sample is not differentiable in a, though forward is: return super\(\)\.sample"),
        (WrongPullback, r"pullback and what it is a shortcut for, torch.float32 on cpu, differ by up to"),
        (WrongScore, r"weighted_score and what it is a shortcut for"),
        (WrongPairs, r"antithetic and what it is a shortcut for"),
    ],
)
def test_the_kit_finds_a_kernel_that_is_wrong(wrong, message):
    def compare():
        checks.neuron_samples_are_forward(wrong())
        checks.neuron_kernels_agree(wrong())

    with pytest.raises(AssertionError, match=message):
        compare()


def test_the_library_uses_the_kernel_of_one_s_own(monkeypatch):
    a = torch.linspace(-2, 2, 12).reshape(4, 3)
    wanted, calls = gradest.sample("bernoulli", a, 5, seed=7), []
    generate = Coin.generate
    monkeypatch.setattr(Coin, "generate", lambda *given: calls.append(1) or generate(*given))
    assert torch.equal(gradest.sample(Coin(), a, 5, seed=7), wanted)
    assert len(calls) == 1
    whole = gradest.ask(Coin(), "reinforce", a, 3)[0].points
    alone = gradest.ask(Coin(), "reinforce", a[2:], Key(3, torch.tensor([2, 3])))[0].points
    assert torch.equal(whole[:, 2:], alone)


def test_a_device_that_the_machine_lacks_is_said():
    class Elsewhere(Coin):
        name = "acme_elsewhere"
        kernel_devices = ("xpu",)

    with pytest.warns(UserWarning, match=r"acme_elsewhere\.sample was not compared with forward on xpu: "):
        checks.neuron_samples_are_forward(Elsewhere())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.neuron_samples_are_forward(Coin())


@pytest.mark.gpu
@pytest.mark.parametrize("cls", [Coin, ForgetsStream])
def test_a_stated_device_is_compared(cls):
    class OnCuda(cls):
        name = f"{cls.name}_on_cuda"
        kernel_devices = ("cuda",)

        def key_for(self, key, device):
            return (cls if device.type == "cuda" else Coin).key_for(self, key, device)

    if cls is Coin:
        checks.neuron_samples_are_forward(OnCuda())
    else:
        with pytest.raises(AssertionError, match="float32 on cuda"):
            checks.neuron_samples_are_forward(OnCuda())


@pytest.mark.parametrize("devices", ["cuda", ("gpu",), ("cuda:0",), (3,), ["cuda"]])
def test_devices_are_types_of_devices(devices):
    wrong = type("Wrong", (Coin,), {"name": "acme_wrong", "kernel_devices": devices, "__module__": __name__})
    with pytest.raises(PluginError, match="`kernel_devices` must be a tuple of types of devices"):
        gradest.registry.register(wrong)


def test_the_generator_is_that_of_the_guide():
    """The share of ones of the kernel is the probability that the unit states."""
    h = gradest.sample(Coin(), torch.full((20000, 1), 0.4), 1, seed=1)
    p = 1 / (1 + math.exp(-0.4))
    assert abs(float(h.mean()) - p) < 5 * math.sqrt(p * (1 - p) / 20000)
