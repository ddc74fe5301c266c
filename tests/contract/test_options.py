"""Options are numbers, except where a plugin declares a tensor: nothing that could be trained is frozen without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gradest
from gradest.contract.plugin import Plugin
from gradest.errors import InvalidOptions

KINDS = {"neuron": gradest.registry.neurons, "estimator": gradest.registry.estimators}


def scalar_options() -> list[tuple[type[Plugin], str, Any]]:
    """Every option of the neurons and estimators whose default is a number, with that."""
    return [
        (cls, name, field.default)
        for table in KINDS.values()
        for cls in table.values()
        for name, field in cls.model_fields.items()
        if isinstance(field.default, (int, float))
    ]


@pytest.mark.parametrize(("cls", "name", "default"), scalar_options())
def test_a_tensor_for_a_number_is_refused(cls: type[Plugin], name: str, default: float) -> None:
    """Each was converted, so that a parameter was never trained, and a tensor changed in place had no effect."""
    for tensor in (torch.tensor(default), nn.Parameter(torch.tensor(float(default)))):
        with pytest.raises(InvalidOptions, match=name):
            cls.build(**{name: tensor})
    assert getattr(cls.build(**{name: default}), name) == default


def test_the_error_says_what_to_do() -> None:
    given = nn.Parameter(torch.tensor(0.5))
    for spec in ({"name": "binary_concrete", "temperature": given}, "binary_concrete"):
        with pytest.raises(InvalidOptions, match=r"layer\.set_options\(temperature=\.\.\.\).*pre-activation"):
            gradest.neuron(spec, **({} if isinstance(spec, dict) else {"temperature": given}))


def test_tensors_inside_containers_are_refused_too() -> None:
    class Many(gradest.Objective):
        name, summary = "test_many", "levels"
        levels: tuple[float, ...] = (0.0, 1.0)

        def __call__(self, points: torch.Tensor) -> torch.Tensor:
            return points.sum(-1)

    assert Many.build(levels=[0, 2]).levels == (0.0, 2.0)
    with pytest.raises(InvalidOptions, match="levels cannot be a tensor"):
        Many.build(levels=[torch.tensor(0.0), torch.tensor(2.0)])


def test_an_option_that_is_declared_as_a_tensor_keeps_its_gradient() -> None:
    target = nn.Parameter(torch.tensor([0.4, 0.5]))
    objective = gradest.objective("quadratic", target=target)
    objective(torch.ones(1, 2)).sum().backward()
    assert target.grad is not None
    assert float(target.grad.abs().min()) > 0
