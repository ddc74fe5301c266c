"""The registered score-function estimators, and losses of four samples of two examples."""

import math

import torch

import gradest
from gradest.contract.score_function import ScoreFunction

LOSS = torch.tensor([[0.3, -2.0], [1.1, 0.4], [-0.7, 0.4], [2.5, 3.0]], dtype=torch.float64)
LENGTH = torch.tensor([[1.0, 3.0], [2.0, 0.0], [5.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
INPUTS = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.4]], dtype=torch.float64)


def bound(loss):
    return -torch.logsumexp(-loss, 0) + math.log(len(loss))


def score_functions():
    """The registered score-function estimators with each of their examples."""
    classes = [cls for cls in gradest.registry.estimators.values() if issubclass(cls, ScoreFunction)]
    return [cls.build(**options) for cls in classes for options in cls.examples]


def unbiased_score_functions():
    """Those of them that claim no bias, whatever their target."""
    return [built for built in score_functions() if built.bias(gradest.neuron("categorical")).unbiased]
