"""The measurements of `gradest certify`. Each certificate is written as soon as it is measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from gradest.analysis.certificates import (
    Certificate,
    certificates_path,
    certify,
    from_json,
    is_current,
    load_certificates,
    package_of,
    to_json,
    to_markdown,
)
from gradest.cli.display import Bars, print_json
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.discovery.faults import contained_in_class, name_of_class, read_attribute
from gradest.discovery.registry import AnyPlugin, registry
from gradest.errors import GradestError, InvalidInput, PluginFault

__all__ = ["write_certificates"]

_TABLE = "certificates.md"
_Key = tuple[str, str]
_Options = Mapping[str, Any]


def write_certificates(
    names: list[str], package: str, out: Path, everything: bool, as_json: bool, examples: bool | None = None
) -> None:
    """Measure the package's estimators that have no current certificate, and write all certificates.

    Its neurons are measured too, under the estimators of others.

    package: a package, a module, or a distribution with one of these.
    names: estimators to measure even so.
    everything: measure all estimators, if none is named.
    out: the folder in which the tables are written, as Markdown.
    as_json: print the certificates.
    examples: whether the package's plugins are measured with each of their `examples` of options too. By default they are, unless
        they are gradest's own, whose examples have the conformance kit run on them with every change.

    Raises InvalidInput for an unknown package or estimator. Raises GradestError, once all others are measured, if a measurement
    contradicts a claim, or the code of a plugin fails.
    """
    failed: dict[str, PluginFault] = {}
    package = _import_name(package)
    pairs = _pairs(package, failed, examples)
    path = certificates_path(package)
    if unknown := set(names) - {estimator.name for estimator, _ in pairs.values()}:
        raise InvalidInput(f"{package} has no registered estimator {', '.join(sorted(unknown))}")
    found = _read(path)
    with Bars() as bars:
        for done, (key, (estimator, neuron)) in enumerate(pairs.items()):
            asked = estimator.name in names if names else everything
            pair = " on ".join(key)
            with registry.containing(failed, pair):
                if asked or key not in found or not is_current(found[key], estimator, neuron):
                    bars.show("certificates", done, len(pairs))
                    found[key] = certify(estimator, neuron, partial(bars.show, pair))
                    path.write_text(to_json(found[key] for key in pairs if key in found), encoding="utf-8")
                continue
            found.pop(key, None)  # what was measured before is not of the code that fails now
    text = to_json(found[key] for key in pairs if key in found)
    path.write_text(text, encoding="utf-8")
    certificates = from_json(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / _TABLE).write_text(to_markdown(certificates), encoding="utf-8")
    if as_json:
        print_json([certificate.to_dict() for certificate in certificates])
    faults = [f"{' on '.join(c.labels)}: {fault}" for c in certificates for fault in c.faults]
    faults += [f"{pair}: {fault}" for pair, fault in failed.items()]
    if faults:
        raise GradestError("; ".join(faults))
    print(f"{len(certificates)} certificates written to {path} and {out / _TABLE}; none has a fault", file=sys.stderr)


def _import_name(package: str) -> str:
    """Return the package or module itself, or for the name of a distribution the package or module of its classes.

    Raises InvalidInput if those of a distribution lie in several.
    """
    packages = {
        info.distribution: {package_of(cls) for table in info.tables()[:2] for cls in table.values()}
        for info in registry.plugins
    }
    found = packages.get(package, set())
    if not found or package in set().union(*packages.values()):
        return package
    if len(found) > 1:
        raise InvalidInput(f"the plugins of {package} lie in several packages: name one of {', '.join(sorted(found))}")
    return found.pop()


def _pairs(package: str, failed: dict[str, PluginFault], examples: bool | None) -> dict[_Key, tuple[Estimator, Neuron]]:
    """Return what is to be measured, by the labels of estimator and neuron.

    These are the package's estimators, each with every registered neuron that it fits, and all estimators with the package's
    neurons. One of both has its default options. Pairs of another package's estimator that has a certificate there are left out,
    and so are pairs whose code fails, with their fault added to `failed`.
    """
    estimators, neurons = (
        {name: package_of(cls) == package for name, cls in table.items()}
        for table in (registry.estimators, registry.neurons)
    )
    if not any((*estimators.values(), *neurons.values())):
        raise InvalidInput(
            f"the package {package!r} has no registered estimator or neuron; `gradest list plugins` shows what is registered"
        )
    pairs: dict[_Key, tuple[Estimator, Neuron]] = {}
    for (name, own), (neuron_name, neuron_own) in product(estimators.items(), neurons.items()):
        if not (own or neuron_own):
            continue
        with registry.containing(failed, f"{name} on {neuron_name}"):
            cls, neuron_cls = registry.estimators[name], registry.neurons[neuron_name]
            known = set() if own else {found.labels for found in load_certificates(cls)}
            choices = [
                ({}, {}),
                *((options, {}) for options in _examples(cls, own, examples)),
                *(({}, options) for options in _examples(neuron_cls, neuron_own, examples)),
            ]
            for options, neuron_options in choices:
                estimator, neuron = _build(cls, options), _build(neuron_cls, neuron_options)
                if estimator.modules() or neuron.modules():
                    continue  # a certificate names options in JSON
                key = registry.label(estimator), registry.label(neuron)
                if key not in known and registry.call(estimator, "accepts", neuron):
                    pairs[key] = estimator, neuron
    return pairs


def _examples(cls: type[Plugin], own: bool, examples: bool | None) -> tuple[_Options, ...]:
    """Return the examples of options with which the class is measured beside the defaults."""
    if not own or examples is False or (examples is None and registry.is_built_in(cls)):
        return ()
    return tuple(read_attribute(cls, "examples"))


def _build(cls: type[AnyPlugin], options: _Options) -> AnyPlugin:
    if not options:
        return registry.build_default(cls)
    with contained_in_class(cls, f"{name_of_class(cls)} cannot be built with its example {dict(options)}:"):
        return cls.build(**options)


def _read(path: Path) -> dict[_Key, Certificate]:
    try:
        kept = from_json(path.read_text(encoding="utf-8"))
    except (
        FileNotFoundError,
        ValueError,
        TypeError,
        KeyError,
    ):  # there are none yet, or in another form: all are measured
        return {}
    return {certificate.labels: certificate for certificate in kept}
