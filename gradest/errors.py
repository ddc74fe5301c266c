"""The errors gradest raises. Each says what was wrong and what to do about it."""

from __future__ import annotations

__all__ = [
    "GradestError",
    "Incompatible",
    "InvalidInput",
    "InvalidOptions",
    "MissingLoss",
    "PluginError",
    "PluginFault",
    "ServiceError",
    "TooManyPoints",
    "UnknownPlugin",
]


class GradestError(Exception):
    """Base of every error that gradest raises on purpose."""


class UnknownPlugin(GradestError, LookupError):
    """No plugin of that name is registered; the message lists near matches."""


class InvalidOptions(GradestError, ValueError):
    """A plugin was given options that its schema refuses."""


class Incompatible(GradestError, ValueError):
    """The estimator does not fit the neuron; the message says why and names estimators that do."""


class InvalidInput(GradestError, ValueError):
    """A tensor or a number has the wrong shape, type or value."""


class TooManyPoints(InvalidInput):
    """An enumeration would need more points than the stated limit."""


class MissingLoss(GradestError, RuntimeError):
    """A layer's estimator needs the loss, and backward ran before it was broadcast."""


class PluginError(GradestError):
    """A plugin could not be loaded or registered."""


class PluginFault(GradestError, RuntimeError):
    """A plugin broke its contract; the message names it and the method."""


class ServiceError(GradestError):
    """The service answered with an error: `status`, `title`, `detail` and `request_id` as it sent them."""

    def __init__(self, status: int, title: str, detail: str = "", request_id: str | None = None) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id
