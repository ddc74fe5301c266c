"""The measurements of `gradest certify`. Each certificate is written as soon as it is measured."""

from __future__ import annotations

import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

from gradest.analysis.certificates import (
    CERTIFICATES_FILE,
    Certificate,
    certify,
    from_json,
    is_current,
    to_json,
    to_markdown,
)
from gradest.cli.display import Bars, print_json
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.faults import name_of_class, read_attribute
from gradest.discovery.registry import registry
from gradest.errors import GradestError, InvalidInput, PluginFault

__all__ = ["write_certificates"]

_TABLE = "certificates.md"


def write_certificates(names: list[str], package: str, out: Path, everything: bool, as_json: bool) -> None:
    """Measure the package's estimators that have no current certificate, and write all certificates.

    names: estimators to measure even so.
    everything: measure all estimators, if none is named.
    out: the folder in which the tables are written, as Markdown.
    as_json: print the certificates.

    Raises InvalidInput for an unknown package or estimator. Raises GradestError, once all others are measured, if a measurement
    contradicts a claim, or the code of a plugin fails.
    """
    failed: dict[str, PluginFault] = {}
    pairs = _pairs(package, failed)
    path = Path(str(files(package).joinpath(CERTIFICATES_FILE)))
    if unknown := set(names) - {estimator.name for estimator, _ in pairs}:
        raise InvalidInput(f"{package} has no registered estimator {', '.join(sorted(unknown))}")
    found = _read(path)
    keys = [(estimator.name, neuron.name) for estimator, neuron in pairs]
    with Bars() as bars:
        for key, (estimator, neuron) in zip(keys, pairs, strict=True):
            asked = estimator.name in names if names else everything
            with registry.containing(failed, f"{estimator.name} on {neuron.name}"):
                if asked or key not in found or not is_current(found[key], estimator, neuron):
                    bars.show("certificates", keys.index(key), len(keys))
                    measured = certify(estimator, neuron, partial(bars.show, f"{estimator.name} on {neuron.name}"))
                    found[key] = measured
                    path.write_text(to_json(found[key] for key in keys if key in found), encoding="utf-8")
                continue
            found.pop(key, None)  # what was measured before is not of the code that fails now
    text = to_json(found[key] for key in keys if key in found)
    path.write_text(text, encoding="utf-8")
    certificates = from_json(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / _TABLE).write_text(to_markdown(certificates), encoding="utf-8")
    if as_json:
        print_json([certificate.to_dict() for certificate in certificates])
    faults = [f"{c.estimator} on {c.neuron}: {fault}" for c in certificates for fault in c.faults]
    faults += [f"{pair}: {fault}" for pair, fault in failed.items()]
    if faults:
        raise GradestError("; ".join(faults))
    print(f"{len(certificates)} certificates written to {path} and {out / _TABLE}; none has a fault", file=sys.stderr)


def _pairs(package: str, failed: dict[str, PluginFault]) -> list[tuple[Estimator, Neuron]]:
    """Return the package's estimators, each with every registered neuron that it fits, all with their default options.

    A pair whose code fails is left out, and its fault added to `failed`.
    """
    classes = [
        cls
        for cls in registry.estimators.values()
        if str(read_attribute(cls, "__module__")).partition(".")[0] == package
    ]
    if not classes:
        raise InvalidInput(
            f"the package {package!r} has no registered estimator; `gradest list plugins` shows what is registered"
        )
    pairs = []
    for cls in classes:
        for neuron_name, neuron_cls in registry.neurons.items():
            with registry.containing(failed, f"{name_of_class(cls)} on {neuron_name}"):
                estimator, neuron = registry.build_default(cls), registry.build_default(neuron_cls)
                if registry.call(estimator, "accepts", neuron):
                    pairs.append((estimator, neuron))
    return pairs


def _read(path: Path) -> dict[tuple[str, str], Certificate]:
    try:
        kept = from_json(path.read_text(encoding="utf-8"))
    except (
        FileNotFoundError,
        ValueError,
        TypeError,
        KeyError,
    ):  # there are none yet, or in another form: all are measured
        return {}
    return {(certificate.estimator, certificate.neuron): certificate for certificate in kept}
