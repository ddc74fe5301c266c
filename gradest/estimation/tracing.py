"""What `score_surrogate` needs while torch.compile traces it. Importing this module imports the compiler, in several seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from gradest.contract.plugin import Plugin

__all__ = ["TRACED", "derivatives", "once", "trace"]


class Traced:
    """Holds, as attributes, the plugins that compiled code has looked up.

    torch.compile reads and guards the attributes of an object as it traces, but cannot look into the registry.
    """


TRACED = Traced()
"""What `trace` has found."""


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def trace(find: Callable[..., Plugin], *arguments: Any) -> str:
    """Call `find` while the code is traced, and return the name of the attribute of TRACED that holds the plugin it found."""
    plugin = find(*arguments)
    name = f"_{id(type(plugin))}_{plugin.model_dump_json().encode().hex()}"
    setattr(TRACED, name, plugin)
    return name


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def derivatives() -> int:
    """Return how many derivatives of torch.func are being taken, one inside the other."""
    levels = retrieve_all_functorch_interpreters()
    return sum(level.key() in (TransformType.Grad, TransformType.Jvp) for level in levels)


@torch.library.custom_op("gradest::gradient_once", mutates_args=())
def once(gradient: Tensor, log_prob: Tensor, loss: Tensor) -> Tensor:
    """Return the gradient, which depends on the other arguments in a way that cannot be differentiated.

    torch.compile keeps all arguments of an operator for the backward pass, and refuses to differentiate that pass again.
    """
    return gradient.clone()


@once.register_fake
def _(gradient: Tensor, log_prob: Tensor, loss: Tensor) -> Tensor:
    return torch.empty_like(gradient)
