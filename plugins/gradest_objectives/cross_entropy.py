"""The cross entropy of a softmax readout."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.objective import Objective
from gradest.contract.plugin import TensorOption
from gradest.errors import InvalidInput


class CrossEntropy(Objective):
    """The cross entropy, in nats, of a linear readout with a softmax: L(h) = -log softmax(W h + b)[y].

    The dimensions of `weight` after the first are those of an event: units, or units and their classes. The expectation
    has no closed form; enumeration gives it for few units.
    """

    name = "cross_entropy"
    summary = "cross entropy of a softmax readout"
    formula = r"L(h) = -\log \mathrm{softmax}(W h + b)_y"

    examples = (
        {"weight": [[0.5, -1.0], [1.0, 0.3], [-0.7, 0.2]], "labels": 1},
        {"weight": [[0.5, -1.0], [1.0, 0.3]], "labels": 0, "bias": [0.1, -0.2]},
        {"weight": [[[0.5, -1.0, 0.2], [1.0, 0.3, 0.0]], [[-0.7, 0.2, 0.1], [0.1, 0.4, 0.9]]], "labels": 1},
    )

    weight: TensorOption = Field(description="readout weights W, [classes, *event]")
    labels: TensorOption = Field(description="classes y, integers in [0, classes), broadcast against [*batch]")
    bias: TensorOption | None = Field(None, description="readout bias b, [classes]; no bias if omitted")

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.weight.ndim not in (2, 3) or not self.weight.shape[0]:
            raise ValueError(
                "weight must have the shape [classes, units] or [classes, units, classes of a unit], not "
                f"{list(self.weight.shape)}"
            )
        classes = self.weight.shape[0]
        if self.bias is not None and self.bias.shape != (classes,):
            raise ValueError(f"bias must have the shape [classes] = [{classes}], not {list(self.bias.shape)}")
        labels = self.labels
        if labels.is_floating_point() and not bool((labels == labels.round()).all()):
            raise ValueError("labels must be integers")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be integers in [0, {classes})")
        return self

    @property
    def event_ndim(self) -> int:
        """Return the number of dimensions of an event."""
        return self.weight.ndim - 1

    def __call__(self, points: Tensor) -> Tensor:
        """Return the cross entropy at each point, `[K, *batch]`."""
        weight = self.weight.to(points)
        event, given = weight.shape[1:], points.shape[1 - weight.ndim :]
        if given != event:
            sizes = ["×".join(map(str, shape)) for shape in (event, given)]
            raise InvalidInput(f"weight is for {sizes[0]} units, but the points have {sizes[1]}")
        points, weight = points.flatten(1 - weight.ndim), weight.flatten(1)
        # one class at a time, because a matrix product adds in an order that depends on the batch
        logits = torch.stack([(points * row).sum(-1) for row in weight], -1)
        if self.bias is not None:
            logits = logits + self.bias.to(points)
        labels = self.labels.to(points.device, torch.int64)
        try:
            labels = labels.expand(points.shape[1:-1])
        except RuntimeError as error:
            raise InvalidInput(
                f"labels of shape {list(labels.shape)} do not broadcast against the batch shape {list(points.shape[1:-1])}"
            ) from error
        picked = torch.log_softmax(logits, -1).gather(-1, labels.expand(points.shape[:-1])[..., None])
        return -picked[..., 0]
