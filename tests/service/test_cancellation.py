"""Work of which nobody waits for the result stops at the next operation of torch, also inside a backward pass."""

import pytest
import torch

from gradest.errors import Cancelled
from gradest_service.run import cancellation
from gradest_service.run.cancellation import abandoned_when, interruptible


def chain(a, steps):
    for _ in range(steps):
        a = torch.sin(a)
    return a.sum()


class Looks:
    """Counts how often somebody looks, and says from some time on that nobody waits."""

    def __init__(self, until=10**9):
        self.count, self.until = 0, until

    def __call__(self):
        self.count += 1
        return self.count > self.until


@pytest.fixture
def no_pause(monkeypatch):
    """Each operation is looked at, however short the time since the last look."""
    monkeypatch.setattr(cancellation, "_LOOK_SECONDS", 0.0)


@pytest.mark.parametrize("keep", [False, True])
def test_a_backward_pass_is_looked_into_at_each_node(keep, no_pause):
    a = torch.ones(3, requires_grad=True)
    value = chain(a, 50)
    looks = Looks()
    with abandoned_when(looks), interruptible(brief=False):
        (found,) = torch.autograd.grad(value, a, create_graph=keep)
    assert looks.count > 50
    (wanted,) = torch.autograd.grad(chain(a, 50), a)
    assert torch.equal(found, wanted)


def test_it_ends_within_a_backward_pass_and_leaves_no_hook(no_pause):
    a = torch.ones(3, requires_grad=True)
    value = chain(a, 50)
    looks = Looks(until=20)
    with pytest.raises(Cancelled), abandoned_when(looks), interruptible(brief=False):
        torch.autograd.grad([value], [a], retain_graph=True)
    assert looks.count == 21
    with abandoned_when(looks):
        torch.autograd.grad(value, a)  # which nobody looks into
    assert looks.count == 21


def test_after_a_look_there_is_none_for_a_while(monkeypatch):
    monkeypatch.setattr(cancellation, "_LOOK_SECONDS", 3600.0)
    looks = Looks()
    with abandoned_when(looks), interruptible(brief=False):
        chain(torch.ones(3), 50)
    assert looks.count == 2  # at the start, and at the first operation


def test_what_is_known_to_end_soon_is_not_looked_into():
    a = torch.ones(3, requires_grad=True)
    value, looks = chain(a, 50), Looks()
    with abandoned_when(looks), interruptible(brief=True):
        torch.autograd.grad(value, a)
    assert looks.count == 1
