"""Pages in Markdown of the neurons, estimators and objectives of a package."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradest.analysis.catalog import describe
from gradest.analysis.certificates import Certificate, load_certificates, package_of
from gradest.analysis.markdown import table, type_in_words
from gradest.analysis.pages.examples import example_of
from gradest.analysis.pages.pictures import draw_certificates, draw_law
from gradest.analysis.pages.prose import cell, escape, to_markdown
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput, PluginFault

__all__ = ["KINDS", "classes_of", "write_pages"]

KINDS = ("neurons", "estimators", "objectives")
"""The folders of the pages, and the kinds of plugins."""

_UNITS = ("1", "2", "8", "32")  # for which K is given


def classes_of(package: str) -> dict[str, dict[str, type[Plugin]]]:
    """Return the registered classes of a package by kind and name.

    package: a package or a module, a distribution, or "gradest" for all built-in ones.

    Raises InvalidInput if it has none.
    """
    infos = [info for info in registry.plugins if info.distribution == package]
    found: dict[str, dict[str, type[Plugin]]] = {}
    for kind in KINDS:
        known = {name for info in infos for name in getattr(info, kind)}
        every: Mapping[str, type[Plugin]] = getattr(registry, kind)
        found[kind] = {name: cls for name, cls in every.items() if name in known or package_of(cls) == package}
    if not any(found.values()):
        raise InvalidInput(
            f"the package {package!r} has no registered neuron, estimator or objective; `gradest list plugins` shows what is "
            "registered"
        )
    return found


def write_pages(package: str, out: Path) -> list[Path]:
    """Write a page for each neuron, estimator and objective of a package, an index, and their pictures. Returns the pages.

    The pages are Markdown with formulas between dollar signs, which GitHub, Sphinx with MyST, MkDocs and Jupyter show.

    package: as for `classes_of`. out: the folder, with a folder in it for each kind.

    Raises InvalidInput for a package without plugins, and GradestError if the extra `gradest[plot]` is not installed.
    """
    classes = classes_of(package)
    written = []
    for kind, found in classes.items():
        if not found:
            continue
        for name, cls in found.items():
            written.append(out / kind / f"{name}.md")
            _write(written[-1], _Page(kind, name, cls, classes, out).text())
        written.append(out / kind / "index.md")
        _write(written[-1], _index(kind, found))
    return written


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _index(kind: str, classes: Mapping[str, type[Plugin]]) -> str:
    rows = [[f"[`{name}`]({name}.md)", cell(cls.summary), cell(cls.reference)] for name, cls in classes.items()]
    return f"# {kind.capitalize()}\n\n{table(['name', 'what it does', 'reference'], rows, 'lll')}\n"


@dataclass(frozen=True)
class _Page:
    """One page."""

    kind: str
    name: str
    cls: type[Plugin]
    classes: Mapping[str, Mapping[str, type[Plugin]]]
    out: Path

    @cached_property
    def described(self) -> dict[str, Any]:
        return describe(self.cls)

    def text(self) -> str:
        """Return the page."""
        return "\n\n".join(part.strip("\n") for part in self.parts() if part) + "\n"

    def parts(self) -> Iterator[str]:
        yield f"# {self.name}"
        yield escape(_sentence(self.cls.summary))
        if self.cls.formula:
            yield f"$$\n{self.cls.formula}\n$$"
        yield to_markdown(self.cls.__doc__ or "", self.cls.model_fields)
        if self.described["faults"]:
            yield "## Faults\n\n" + "\n".join(f"- {escape(fault)}" for fault in self.described["faults"])
        yield self.law()
        yield "## At a glance\n\n" + table(["", ""], self.facts(), "ll")
        yield self.options()
        yield "## Example\n\n" + f"```python\n{example_of(self.cls)}```"
        yield self.pairs()
        yield self.certificates()
        yield self.source()

    def law(self) -> str:
        """A picture of the outputs of a neuron."""
        if not issubclass(self.cls, Neuron):
            return ""
        try:
            draw_law(registry.build_default(self.cls), self.picture)
        except PluginFault:
            return ""
        return (
            f"## Law\n\n![Samples and mean of the first output against the first pre-activation]({self.picture_link})"
        )

    @property
    def picture(self) -> Path:
        return self.out / "images" / f"{self.kind}-{self.name}.svg"

    @property
    def picture_link(self) -> str:
        return f"../images/{self.kind}-{self.name}.svg"

    def facts(self) -> Iterator[list[str]]:
        found = self.described
        yield ["reference", cell(found["reference"]) or "none"]
        if issubclass(self.cls, Neuron):
            yield ["pre-activations", f"`[*batch, {', '.join(_dims(found['event_ndim']))}]`"]
            event = found["example_events"][0]
            yield ["an example event", f"{tuple(event)}, with outputs of {found['output_ndim']} dims"]
        if issubclass(self.cls, Estimator):
            needs = {"loss": "the loss L(h)", "grad": "its derivative dL/dh"}
            yield ["needs", " and ".join(needs.get(need, need) for need in found["needs"])]
            yield ["points", "outputs of the neuron" + (", and others" if found["off_support"] else "")]
            yield ["estimates the gradient of", cell(found["target"])]
            yield ["fits neurons that are", ", ".join(f"`{name}`" for name in found["needs_capabilities"]) or "any"]
        if found["capabilities"]:
            yield ["capabilities", ", ".join(f"`{name}`" for name in found["capabilities"])]
        if "differentiable" in found:
            yield ["differentiable", "yes" if found["differentiable"] else "no"]
            yield ["called", "once for each point" if found["pointwise"] else "once with all points"]
        yield ["defined in", f"`{self.cls.__module__}.{self.cls.__qualname__}`"]

    def options(self) -> str:
        schema = self.described["options"]
        required = schema.get("required", [])
        rows = [
            [f"`{name}`", _default(name in required, one), cell(type_in_words(one)), cell(one.get("description", ""))]
            for name, one in schema.get("properties", {}).items()
        ]
        rows += [
            [f"`{name}`", "", "in Python alone", cell(text)] for name, text in schema.get("x-python-only", {}).items()
        ]
        shown = table(["option", "default", "type", "meaning"], rows, "llll") if rows else "It has none."
        return f"## Options\n\n{shown}"

    def link(self, kind: str, name: str) -> str:
        """Return a name, as a link if its page is written too."""
        if name not in self.classes.get(kind, {}):
            return f"`{name}`"
        return f"[`{name}`]({os.path.relpath(f'{kind}/{name}.md', self.kind)})"

    def pairs(self) -> str:
        """What it can be used with."""
        found = self.described
        if issubclass(self.cls, Neuron):
            rows = [self.of_estimator(name) for name in found["estimators"]]
            head = ["estimator", "needs", "claimed bias", "what it does"]
            return "## Estimators that fit\n\n" + (table(head, rows, "llll") if rows else "None is registered.")
        if issubclass(self.cls, Estimator):
            rows = [
                [self.link("neurons", name), found["bias"][name], *(_number(counts.get(units)) for units in _UNITS)]
                for name, counts in found["evaluations"].items()
            ]
            head = ["neuron", "claimed bias", *(f"K, {units} unit{'s' * (units != '1')}" for units in _UNITS)]
            shown = table(head, rows, "ll" + "r" * len(_UNITS)) if rows else "None is registered."
            return "## Neurons that fit\n\nK is the number of points at which one draw evaluates the loss.\n\n" + shown
        return ""

    def of_estimator(self, name: str) -> list[str]:
        estimator, neuron = registry.build_default(registry.estimators[name]), registry.build_default(self.cls)
        try:
            claim = str(registry.call(estimator, "bias", neuron))
        except PluginFault:
            claim = "unknown"
        needs = ", ".join(sorted(estimator.needs, reverse=True))
        return [self.link("estimators", name), needs, claim, cell(estimator.summary)]

    def certificates(self) -> str:
        """The measurements: a picture, and for an estimator a table."""
        if issubclass(self.cls, Estimator):
            own = load_certificates(self.cls)
            others = (load_certificates(self.cls, neuron) for neuron in registry.neurons.values())
            found = [*own, *(one for group in others for one in group if one not in own)]
            labelled = [(_of_neuron(one), one) for one in found]
        elif issubclass(self.cls, Neuron):
            groups = (load_certificates(cls, self.cls) for cls in registry.estimators.values())
            labelled = [(one.labels[0], one) for group in groups for one in group if not one.neuron_options]
        else:
            return ""
        if not labelled:
            return "## Certificate\n\nNothing has been measured; `gradest certify` does it."
        path = self.picture.with_name(f"{self.kind}-{self.name}-certificate.svg")
        draw_certificates(labelled, f"{self.name}: measured bias and signal", path)
        return "\n\n".join(
            ["## Certificate", _CERTIFICATE, f"![Measured bias and signal](../images/{path.name})", _measured(labelled)]
        )

    def source(self) -> str:
        try:
            code = inspect.getsource(self.cls)
        except (OSError, TypeError):
            return ""
        return f"## Source\n\n```python\n{code.rstrip()}\n```"


_CERTIFICATE = """\
Each dot is the mean of many draws beside the exact gradient, on one of four losses at moderate or saturated logits; the line
reaches 5 standard errors to both sides. A bias is seen where it does not reach 0. The right half shows how much signal one
evaluation of the loss buys; what has no noise is left out. Options are the defaults unless a label has others."""


def _measured(labelled: list[tuple[str, Certificate]]) -> str:
    """The largest bias in standard errors, and the smallest cosine, of each certificate."""
    rows = []
    for label, one in labelled:
        largest = max(one.records, key=lambda record: record.bias_in_se)
        cosine = min(record.cosine for record in one.records)
        verdict = "; ".join(one.faults) or ("as claimed")
        rows.append(
            [cell(label), one.claim, str(one.evaluations), f"{largest.bias_in_se:.1f}", f"{cosine:.2f}", cell(verdict)]
        )
    head = ["", "claim", "K", "largest bias, in standard errors", "least cosine", "verdict"]
    return table(head, rows, "llrrrl")


def _of_neuron(one: Certificate) -> str:
    own = ", ".join(f"{name}={value}" for name, value in one.options.items())
    return f"{one.labels[1]}, with {own}" if own else one.labels[1]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


def _dims(count: int) -> list[str]:
    return ["units", "n"][:count] + ["…"] * (count - 2)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _default(required: bool, option: Mapping[str, Any]) -> str:
    return "required" if required else f"`{option.get('default')}`"
