"""The errors that gradest raises. Each message says what is wrong and what to do about it."""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "GradestError",
    "GradestWarning",
    "Incompatible",
    "Inexact",
    "InvalidInput",
    "InvalidOptions",
    "MissingLoss",
    "NotDifferentiable",
    "PluginError",
    "PluginFault",
    "ServiceError",
    "ToldAlready",
    "TooManyPoints",
    "UnknownPlugin",
]


class GradestError(Exception):
    """Base of every error that gradest raises on purpose."""


class GradestWarning(UserWarning):
    """Category of every warning that gradest gives."""


class Cancelled(BaseException):
    """Nobody waits for the result any more: raised by a callback, or by a service, to end a computation.

    It derives from BaseException, and is never taken for the fault of a plugin, whose code happened to run.
    """


class UnknownPlugin(GradestError, LookupError):
    """No plugin of this name is registered. The message lists names that are close to it."""


class InvalidOptions(GradestError, ValueError):
    """A plugin does not accept the given options."""


class Incompatible(GradestError, ValueError):
    """The estimator cannot be used with the neuron. The message gives the reason and lists estimators that can."""


class InvalidInput(GradestError, ValueError):
    """A tensor or a number has a wrong shape, type or value."""


class TooManyPoints(InvalidInput):
    """An enumeration would need more points than its limit."""


class Inexact(InvalidInput):
    """A quadrature does not reach the accuracy that was asked for. The message states its error."""


class NotDifferentiable(InvalidInput):
    """dL/dh is needed, by an estimator or by an exact gradient, but the loss does not have it at these points."""


class MissingLoss(GradestError, RuntimeError):
    """The estimator of a layer needs the loss, and the loss was not told before backward, or before the layer's uses died."""


class ToldAlready(GradestError, RuntimeError):
    """`broadcast_loss` was called a second time for one forward pass, whose uses have been told their loss."""


class PluginError(GradestError):
    """A plugin could not be loaded or registered."""


class PluginFault(GradestError, RuntimeError):
    """A plugin broke its contract, or raised an error. The message names the plugin and the method.

    `plugin` is the class at fault, if it is known.
    """

    def __init__(self, message: str, plugin: type | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin


class ServiceError(GradestError):
    """The service answered with an error, or not at all.

    `status`, `title`, `detail` and `request_id` are those of its answer; without one, `status` is 0.
    """

    def __init__(self, status: int, title: str, detail: str = "", request_id: str | None = None) -> None:
        heading = f"{status} {title}" if status else title
        super().__init__(f"{heading}: {detail}" if detail else heading)
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id
