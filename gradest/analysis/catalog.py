"""Descriptions of what is registered, in plain data: the command line prints them and the service sends them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from gradest.analysis.certificates import load_certificates
from gradest.contract.estimator import Estimator, Target
from gradest.contract.neuron import Differentiable, Neuron, Scored
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import registry
from gradest.errors import TooManyPoints
from gradest.kernels import record, why
from gradest.random import Key

__all__ = [
    "describe",
    "describe_estimator",
    "describe_fully",
    "describe_kernels",
    "describe_neuron",
    "describe_objective",
    "describe_plugins",
    "estimators_to_markdown",
]

_UNITS = (1, 2, 4, 8, 16, 32)  # the event sizes for which evaluations are told
_CLASSES = 3  # the size of the further event dims there, of neurons that have some


def describe_neuron(cls: type[Neuron]) -> dict[str, Any]:
    """The neuron, and the estimators that fit it with default options."""
    return {**_describe(cls, Neuron), "event_ndim": cls.event_ndim, "estimators": list(registry.fitting(cls()))}


def describe_estimator(cls: type[Estimator]) -> dict[str, Any]:
    """The estimator with default options on every neuron with default options that it accepts.

    bias: its claim, by neuron. target: what it estimates, with the gradient of that. evaluations: K by neuron and number of
    units, None where it would be too many.
    """
    estimator = cls()
    neurons = {name: neuron() for name, neuron in registry.neurons.items()}
    fitting = {name: neuron for name, neuron in neurons.items() if estimator.accepts(neuron)}
    return {
        **_describe(cls, Estimator),
        "needs": sorted(cls.needs, reverse=True),
        "off_support": cls.off_support,
        "target": str(estimator.target()),
        "needs_capabilities": [capability.__name__ for capability in cls.capabilities if capability is not Neuron],
        "neurons": list(fitting),
        "bias": {name: str(estimator.bias(neuron)) for name, neuron in fitting.items()},
        "evaluations": {name: _evaluations(estimator, neuron) for name, neuron in fitting.items()},
    }


def describe_kernels() -> dict[str, list[dict[str, Any]]]:
    """What computes each neuron with default options on each device: found by drawing, and going back, on a small tensor.

    forward and backward: "fused", in a kernel of the device's own; "noise fused", where the noise alone comes from one; or
    "torch". Backward is `weighted_score` or `pullback`, None for a neuron that has neither.
    """
    devices = [torch.device(kind) for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]
    return {
        "devices": [
            *({"device": device.type, "kernels": why(device)} for device in devices),
            *([] if len(devices) > 1 else [{"device": "cuda", "kernels": "none, for torch sees no such device"}]),
        ],
        "kernels": [
            {"neuron": name, "device": device.type, **_kernels(cls(), device)}
            for device in devices
            for name, cls in registry.neurons.items()
        ],
    }


def _kernels(neuron: Neuron, device: torch.device) -> dict[str, str | None]:
    key, a = Key(0), torch.zeros(1, *(2,) * neuron.event_ndim, device=device)
    with torch.no_grad():
        with record() as forward:
            h = neuron.sample(key, a, 1)
        with record() as backward:
            if isinstance(neuron, Scored):
                neuron.weighted_score(h, a, h.new_ones(1, 1))
            if isinstance(neuron, Differentiable):
                neuron.pullback(key, a, h, h)
    known = isinstance(neuron, Scored | Differentiable)
    return {"forward": _kind(forward), "backward": _kind(backward) if known else None}


def _kind(taken: dict[str, str]) -> str:
    own = [name for name, module in taken.items() if module != "reference"]
    return "torch" if not own else "noise fused" if own == ["uniform"] else "fused"


def describe_objective(cls: type[Objective]) -> dict[str, Any]:
    """The objective."""
    return _describe(cls, Objective)


def describe_plugins() -> dict[str, Any]:
    """What each distribution registered, and what did not load, with the reason."""
    plugins = [
        {
            "distribution": info.distribution,
            "version": info.version,
            "neurons": list(info.neurons),
            "estimators": list(info.estimators),
            "objectives": list(info.objectives),
        }
        for info in registry.plugins
    ]
    return {"plugins": plugins, "failures": [asdict(failure) for failure in registry.failures]}


def describe(cls: type[Plugin]) -> dict[str, Any]:
    """The description of a class of any kind."""
    if issubclass(cls, Neuron):
        return describe_neuron(cls)
    if issubclass(cls, Estimator):
        return describe_estimator(cls)
    assert issubclass(cls, Objective)
    return describe_objective(cls)


def describe_fully(cls: type[Plugin]) -> dict[str, Any]:
    """The description and, of an estimator, the certificates that its package keeps: what was measured of bias and variance."""
    if not issubclass(cls, Estimator):
        return describe(cls)
    return {**describe(cls), "certificates": [certificate.to_dict() for certificate in load_certificates(cls)]}


def estimators_to_markdown() -> str:
    """Every registered estimator in a row of a Markdown table: what it is for, needs, claims and costs."""
    lines = [
        "| estimator | neurons | needs | claimed bias | K | what it does | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cls in registry.estimators.values():
        found = describe_estimator(cls)
        needs = ", ".join(found["needs"]) + (", off the outputs too" if found["off_support"] else "")
        target = "" if cls().target() == Target() else f", of {found['target']}"
        cells = [
            cls.name,
            ", ".join(found["neurons"]),
            needs,
            _by_value(found["bias"]) + target,
            _by_value({name: _cost(counts) for name, counts in found["evaluations"].items()}),
            cls.summary,
            cls.reference,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_value(by_neuron: dict[str, str]) -> str:
    """The one value that all have, or each with those that have it."""
    values = list(dict.fromkeys(by_neuron.values()))
    if len(values) == 1:
        return values[0]
    return "; ".join(
        f"{value} ({', '.join(name for name in by_neuron if by_neuron[name] == value)})" for value in values
    )


def _cost(counts: dict[str, int | None]) -> str:
    """K, which may go with the number of units."""
    known = {units: count for units, count in counts.items() if count is not None}
    if len({*known.values()}) == 1:
        return str(next(iter(known.values())))
    return ", ".join(f"{known[units]} for {units}" for units in ("1", "8") if units in known)


def _describe(cls: type[Plugin], base: type[Plugin]) -> dict[str, Any]:
    parents = [parent for parent in cls.__mro__ if parent not in base.__mro__]
    return {
        "name": cls.name,
        "summary": cls.summary,
        "formula": cls.formula,
        "reference": cls.reference,
        "options": cls.model_json_schema(),
        # the contract's own classes between this one and the base of its kind
        "capabilities": sorted(parent.__name__ for parent in parents if parent.__module__ == base.__module__),
    }


def _evaluations(estimator: Estimator, neuron: Neuron) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for units in _UNITS:
        try:
            found[str(units)] = estimator.evaluations(neuron, (units, *[_CLASSES] * (neuron.event_ndim - 1)))
        except TooManyPoints:
            found[str(units)] = None
    return found
