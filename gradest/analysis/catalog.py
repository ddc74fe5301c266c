"""Describe registered plugins as dicts that can be written as JSON; the command line prints them and the service sends them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from gradest.analysis.certificates import load_certificates
from gradest.analysis.markdown import table
from gradest.contract.estimator import Bias, Estimator
from gradest.contract.neuron import Differentiable, Neuron, Scored
from gradest.contract.objective import Objective
from gradest.contract.plugin import Plugin
from gradest.contract.target import Target
from gradest.discovery.faults import contained_in_class, name_of_class, place_of, read_attribute, read_bases
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput, PluginFault, TooManyPoints
from gradest.kernels import explain_backend, record_kernels_used
from gradest.random import Key

__all__ = [
    "describe",
    "describe_estimator",
    "describe_kernels",
    "describe_neuron",
    "describe_objective",
    "describe_plugins",
    "describe_with_certificates",
    "estimators_to_markdown",
]

AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)
Read = TypeVar("Read")

_UNIT_COUNTS = (1, 2, 4, 8, 16, 32)  # the numbers of units for which K is given


class _Inquiry:
    """Asks plugins for the description of one of them. What fails is left out, and kept if it is a fault of that one."""

    def __init__(self, described: type[Plugin]) -> None:
        self._described = described
        self._faults: list[PluginFault] = []

    def faults(self) -> list[str]:
        """Return what is wrong with the plugin that is described, each fault once."""
        return list(dict.fromkeys(str(fault) for fault in self._faults if fault.plugin is self._described))

    def build(self, cls: type[AnyPlugin]) -> AnyPlugin | None:
        """Return an instance with default options."""
        try:
            return registry.build_default(cls)
        except PluginFault as fault:
            self._faults.append(fault)
            return None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the options, or one with their names alone."""
        cls = self._described
        try:
            with contained_in_class(
                cls, lambda: f"the options of {name_of_class(cls)} have no JSON Schema{place_of(cls)}:"
            ):
                schema = cls.model_json_schema()
                json.dumps(schema)
            return schema
        except PluginFault as fault:
            self._faults.append(fault)
            return {
                "type": "object",
                "properties": {option: {} for option in self.read("model_fields", list[str](), list)},
            }

    def read(self, attribute: str, otherwise: Read, convert: Callable[[Any], Read] = lambda found: found) -> Read:
        """Return an attribute of the class, converted, or `otherwise` if its metaclass or what it holds raises."""
        cls = self._described
        try:
            with contained_in_class(cls, f"{name_of_class(cls)}.{attribute} raised"):
                return convert(getattr(cls, attribute))
        except PluginFault as fault:
            self._faults.append(fault)
            return otherwise

    def ask(self, plugin: Plugin, method: str, kind: type, *arguments: Any) -> Any:
        """Return what the method returns, None if it fails or returns something else."""
        try:
            return registry.call(plugin, method, *arguments, kind=kind)
        except PluginFault as fault:
            self._faults.append(fault)
            return None

    def bias(self, estimator: Estimator, neuron: Neuron) -> str:
        """Return the bias that the estimator claims."""
        claim = self.ask(estimator, "bias", Bias, neuron)
        return "unknown" if claim is None else str(claim)

    def evaluations(self, estimator: Estimator, neuron: Neuron) -> dict[str, int | None]:
        """Return K for numbers of units, None if it is not known or enumeration would take too many points."""
        found: dict[str, int | None] = {}
        for units in _UNIT_COUNTS:
            event = (units, *neuron.example_events[0][1:])
            try:
                takes = self.takes(neuron, event)
                found[str(units)] = self.ask(estimator, "evaluations", int, neuron, event) if takes else None
            except TooManyPoints:
                found[str(units)] = None
        return found

    def takes(self, neuron: Neuron, event: tuple[int, ...]) -> bool:
        """Return whether the neuron takes events of this shape."""
        try:
            registry.call(neuron, "output_event", event, kind=tuple)
        except PluginFault as fault:
            if not isinstance(fault.__cause__, InvalidInput):
                self._faults.append(fault)
            return False
        return True


def describe_neuron(cls: type[Neuron]) -> dict[str, Any]:
    """Describe a neuron: its class attributes, the schema of its options, and the names of the estimators that fit it.

    `event_ndim` is the number of dims of an event of its pre-activations, `output_ndim` that of its outputs. The estimators and
    the neuron have their default options. `faults` lists what fails in the code of the neuron, with file and line.
    """
    inquiry = _Inquiry(cls)
    event_ndim = inquiry.read("event_ndim", 1)
    described = {
        **_describe(cls, Neuron, inquiry),
        "event_ndim": event_ndim,
        "output_ndim": event_ndim,
        "example_events": inquiry.read("example_events", list[list[int]](), _to_lists),
        "estimators": [],
    }
    if (neuron := inquiry.build(cls)) is not None:
        output = inquiry.ask(neuron, "output_event", tuple, tuple(neuron.example_events[0]))
        described["output_ndim"] = event_ndim if output is None else len(output)
        for name, estimator_cls in registry.estimators.items():
            estimator = inquiry.build(estimator_cls)
            if estimator is not None and inquiry.ask(estimator, "accepts", int, neuron):
                described["estimators"].append(name)
                inquiry.bias(estimator, neuron)
                inquiry.evaluations(estimator, neuron)
    return {**described, "faults": inquiry.faults()}


def _to_lists(events: Any) -> list[list[int]]:
    return [list(event) for event in events]


def describe_estimator(cls: type[Estimator]) -> dict[str, Any]:
    """Describe an estimator, with default options, on every neuron with default options that it accepts.

    Beside its class attributes and the schema of its options, the dict has the keys

        needs: what the caller must compute, of "loss" and "grad";
        off_support: whether it evaluates the loss at points that are not outputs of the neuron;
        target: the expectation whose gradient it estimates;
        needs_capabilities: the classes of which a neuron must be an instance;
        neurons: the names of the neurons that it accepts;
        bias: the bias that it claims, by neuron;
        evaluations: K by neuron and number of units, None if enumeration would take too many points;
        faults: what fails in its code, with file and line; then the bias is "unknown", and K None.
    """
    inquiry = _Inquiry(cls)
    described = {
        **_describe(cls, Estimator, inquiry),
        "needs": inquiry.read("needs", [], lambda needs: sorted(needs, reverse=True)),
        "off_support": inquiry.read("off_support", False),
        "target": "unknown",
        "needs_capabilities": inquiry.read(
            "capabilities",
            [],
            lambda wanted: [capability.__name__ for capability in wanted if capability is not Neuron],
        ),
        "neurons": [],
        "bias": {},
        "evaluations": {},
    }
    if (estimator := inquiry.build(cls)) is not None:
        described["target"] = str(inquiry.ask(estimator, "target", Target) or "unknown")
        for name, neuron in _fitting_neurons(inquiry, estimator):
            described["neurons"].append(name)
            described["bias"][name] = inquiry.bias(estimator, neuron)
            described["evaluations"][name] = inquiry.evaluations(estimator, neuron)
    return {**described, "faults": inquiry.faults()}


def _fitting_neurons(inquiry: _Inquiry, estimator: Estimator) -> Iterator[tuple[str, Neuron]]:
    for name, cls in registry.neurons.items():
        neuron = inquiry.build(cls)
        if neuron is not None and inquiry.ask(estimator, "accepts", int, neuron):
            yield name, neuron


def describe_kernels() -> dict[str, list[dict[str, Any]]]:
    """Describe which kernels compute each neuron, with default options, on each device of this machine.

    Both passes run on a small tensor, and the kernels that they use are recorded. `forward` and `backward` are then

        "fused" if a kernel of the device computes the pass;
        "noise fused" if such a kernel draws the noise only;
        "torch" if none is used.

    `backward` stands for `weighted_score` or `pullback`; it is None for a neuron that has neither. If the code of a neuron fails,
    `forward` says how.
    """
    devices = [torch.device(kind) for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]
    return {
        "devices": [
            *({"device": device.type, "kernels": explain_backend(device)} for device in devices),
            *([] if len(devices) > 1 else [{"device": "cuda", "kernels": "none, for torch sees no such device"}]),
        ],
        "kernels": [
            {"neuron": name, "device": device.type, **_kernels_used(cls, device)}
            for device in devices
            for name, cls in registry.neurons.items()
        ],
    }


def _kernels_used(cls: type[Neuron], device: torch.device) -> dict[str, str | None]:
    key = Key(0)
    try:
        neuron = registry.build_default(cls)
        a = torch.zeros(1, *neuron.example_events[0], device=device)
        with torch.no_grad():
            with record_kernels_used() as noise:
                registry.call(neuron, "noise", key, a, 1)
            with record_kernels_used() as forward:
                h = registry.call(neuron, "sample", key, a, 1)
            with record_kernels_used() as backward:
                if isinstance(neuron, Scored):
                    registry.call(neuron, "weighted_score", h, a, torch.ones(1, 1, dtype=a.dtype, device=device))
                if isinstance(neuron, Differentiable):
                    registry.call(neuron, "pullback", key, a, h, h)
    except PluginFault as fault:
        return {"forward": str(fault), "backward": None}
    known = isinstance(neuron, Scored | Differentiable)
    return {
        "forward": _summarise_kernels(forward, noise),
        "backward": _summarise_kernels(backward, noise) if known else None,
    }


def _summarise_kernels(used: dict[str, str], noise: dict[str, str]) -> str:
    """Summarise the kernels that a pass used, given those that draw its noise."""
    own = {name for name, module in used.items() if module != "reference"}
    return "torch" if not own else "noise fused" if own <= {"uniform", *noise} else "fused"


def describe_objective(cls: type[Objective]) -> dict[str, Any]:
    """Describe an objective: its class attributes and the schema of its options, and what fails in its code."""
    inquiry = _Inquiry(cls)
    described = {
        **_describe(cls, Objective, inquiry),
        "differentiable": inquiry.read("differentiable", True),
        "pointwise": inquiry.read("pointwise", False),
    }
    return {**described, "faults": inquiry.faults()}


def describe_plugins() -> dict[str, Any]:
    """Describe what each distribution registered, under `plugins`, and what did not load and why, under `failures`."""
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
    """Describe a neuron, an estimator or an objective."""
    if issubclass(cls, Neuron):
        return describe_neuron(cls)
    if issubclass(cls, Estimator):
        return describe_estimator(cls)
    assert issubclass(cls, Objective)
    return describe_objective(cls)


def describe_with_certificates(cls: type[Plugin]) -> dict[str, Any]:
    """Describe a plugin as `describe` does and, for an estimator, add the certificates that its package keeps."""
    if not issubclass(cls, Estimator):
        return describe(cls)
    own = load_certificates(cls)
    of_neurons = [
        one for neuron in registry.neurons.values() for one in load_certificates(cls, neuron) if one not in own
    ]
    return {**describe(cls), "certificates": [certificate.to_dict() for certificate in (*own, *of_neurons)]}


def estimators_to_markdown() -> str:
    """Return a Markdown table with a row for each registered estimator: what it fits, needs, claims and costs."""
    rows = []
    faults: list[str] = []
    for name, cls in registry.estimators.items():
        found = describe_estimator(cls)
        faults += found["faults"]
        needs = ", ".join(found["needs"]) + (", also between outputs" if found["off_support"] else "")
        target = "" if found["target"] == str(Target()) else f", of {found['target']}"
        row = [
            name,
            ", ".join(found["neurons"]),
            needs,
            _by_value(found["bias"]) + target,
            _by_value({name: _cost(counts) for name, counts in found["evaluations"].items()}),
            found["summary"],
            found["reference"],
        ]
        rows.append(row)
    head = ["estimator", "neurons", "needs", "claimed bias", "K", "what it does", "reference"]
    return table(head, rows, align="lllllll") + "".join(f"\n- fails: {fault}" for fault in faults)


def _by_value(by_neuron: dict[str, str]) -> str:
    """Return the value that all neurons share, or else each value with the neurons that have it."""
    values = list(dict.fromkeys(by_neuron.values()))
    if len(values) == 1:
        return values[0]
    return "; ".join(
        f"{value} ({', '.join(name for name in by_neuron if by_neuron[name] == value)})" for value in values
    )


def _cost(counts: dict[str, int | None]) -> str:
    """Return K: one number, or its values for 1 and for 8 units if it depends on the number of units."""
    known = {units: count for units, count in counts.items() if count is not None}
    if len({*known.values()}) == 1:
        return str(next(iter(known.values())))
    sizes = {"1": "1 unit", "8": "8 units"}
    return ", ".join(f"{known[units]} for {size}" for units, size in sizes.items() if units in known)


def _describe(cls: type[Plugin], base: type[Plugin], inquiry: _Inquiry) -> dict[str, Any]:
    parents = [parent for parent in read_bases(cls) if parent not in base.__mro__]
    home = base.__module__.removesuffix(".base")  # the part of the contract for this kind, a module or a package
    return {
        "name": name_of_class(cls),
        "summary": inquiry.read("summary", ""),
        "formula": inquiry.read("formula", ""),
        "reference": inquiry.read("reference", ""),
        "options": inquiry.schema(),
        # The capabilities are the classes of the contract between this class and the base class of its kind.
        "capabilities": sorted(
            parent.__name__ for parent in parents if f"{read_attribute(parent, '__module__')}.".startswith(f"{home}.")
        ),
    }
