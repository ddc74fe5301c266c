"""The memory of samples: what is lent, used again and changed in place."""

import torch

import gradest
import gradest.nn


def test_samples_can_be_differentiated():
    neuron, a = gradest.neuron("noisy_rectifier"), torch.zeros(50, requires_grad=True)
    h = neuron.sample(gradest.Key(1), a, 1)
    assert torch.equal(h, neuron.sample(gradest.Key(1), a.detach(), 1))
    (slope,) = torch.autograd.grad(h.sum(), a)
    assert torch.equal(slope, (h[0] > 0).float())


def test_memory_is_used_again_only_once_its_tensor_is_gone():
    key, shape = gradest.Key(1), (1 << 19,)
    first, second = key.uniform((1,), shape), gradest.Key(2).uniform((1,), shape)
    kept, addresses = first.clone(), {first.data_ptr(), second.data_ptr()}
    part = second[0, 0, 5:9]
    wanted = part.clone()
    del second
    third = gradest.Key(3).uniform((1,), shape)
    assert third.data_ptr() not in addresses
    assert torch.equal(first, kept)
    assert torch.equal(part, wanted)
    del part
    fourth, fifth = (gradest.Key(2).uniform((1,), shape) for _ in range(2))
    assert fourth.data_ptr() in addresses - {first.data_ptr()}
    assert fourth.data_ptr() != fifth.data_ptr()


def test_a_layer_may_be_changed_in_place():
    for neuron, estimator in (("noisy_rectifier", "pathwise"), ("bernoulli", "straight_through")):
        layer = gradest.nn.Stochastic(neuron, estimator)
        a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        gradients = []
        for change in (lambda h: h + 3, lambda h: h.add_(3)):
            torch.manual_seed(1)
            (gradient,) = torch.autograd.grad(change(layer(a)).square().sum(), a)
            gradients.append(gradient)
        assert torch.equal(*gradients)
        assert bool(gradients[0].any())


def test_what_emits_its_argument_does_not_lend_it():
    class Identity(type(gradest.neuron("sigmoid"))):
        def forward(self, a, noise):
            return a.expand(len(noise), *a.shape)

    a = torch.ones(3, 2, requires_grad=True)
    gradest.nn.Stochastic(Identity(), "pathwise")(a).mul_(2)
    assert torch.equal(a, torch.ones(3, 2))


def test_a_draw_holds_no_noise_and_gives_it_again():
    neuron, estimator = gradest.neuron("noisy_rectifier"), gradest.estimator("held_noise", samples=3)
    a = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    draw = estimator.forward(neuron, a, gradest.Key(1), {})
    assert not draw.saved
    assert torch.equal(neuron.forward(a, draw.noise()), draw.points)


def test_memory_is_aligned_as_torch_aligns():
    for units in (1, 3, 1000, 1 << 20):
        assert gradest.Key(1).uniform((1,), (units,)).data_ptr() % 64 == 0
