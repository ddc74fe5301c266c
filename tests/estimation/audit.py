"""The audit of gradients: every pair of an estimator and a neuron, with all example options, on eight kinds of loss.

A gradient is measured as users take it, by `expect` and backward, on a batch that repeats two rows of pre-activations many times.
It is compared with that of `audit_truth`, a sum over all outputs.

Run `python -m tests.estimation.audit` to audit all pairs and to write docs/results/audit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

import gradest
from gradest.analysis.markdown import table
from gradest.testing import checks
from tests.estimation.audit_truth import KINKED, LOSSES, ROWS, AuditLoss, exact, pre_activations

Z_BOUND = 5.5
"""The largest |z| of a promised gradient that is put down to chance. The whole audit has about 24,000 coordinates of promised
gradients, so with other seeds it would fail in one of 1,100 runs."""
LEAST_SIGNAL = 12.0
"""How many standard errors the largest coordinate of a gradient should have: a wrong sign then shows as 24, a wrong factor of two
as 6 or 12."""
ROUNDING = 3e-5
"""The difference, as a share of the largest coordinate, that float32 and the grids account for; it counts as a standard error."""

DOCUMENT = Path(__file__).parents[2] / "docs/results/audit.md"
_WARM_UP = 8  # small steps that an estimator with a state takes first, so that it is no longer the initial one
_FIRST_COPIES, _MOST_COPIES = 1 << 12, 1 << 21
_COSTLY = 32  # times the work of an ordinary unit; such a neuron begins with fewer copies
_POINTS_AT_ONCE = 1 << 20  # rows of points in one call


@dataclass(frozen=True, eq=False)
class Finding:
    """One gradient of one pair, compared with the exact one. of: "a", or "parameters" for those of the loss."""

    neuron: str
    estimator: str
    loss: str
    of: str
    promised: bool
    """Whether the estimator's claim promises no bias on this loss."""
    copies: int
    coordinates: int
    z: float
    """The largest |difference| over coordinates, in standard errors."""
    signal: float
    """The largest |exact gradient|, in its standard errors."""
    relative_bias: float
    """The largest |difference|, as a share of the largest |exact gradient|."""

    def __str__(self) -> str:
        return (
            f"{self.estimator} on {self.neuron}, {self.loss} loss, gradient in {self.of}: z = {self.z:.1f}, off by"
            f" {self.relative_bias:.1%} of a gradient of {self.signal:.0f} standard errors ({self.copies} copies)"
        )


class Sums:
    """Sums of gradients over copies of the rows, and of their squares, about the exact gradient."""

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.copies = truth, 0
        self.first, self.second = torch.zeros_like(truth), torch.zeros_like(truth)

    def add(self, gradients: Tensor) -> None:
        gaps = gradients.double().reshape(-1, *self.truth.shape) - self.truth
        self.copies += len(gaps)
        self.first += gaps.sum(0)
        self.second += gaps.square().sum(0)

    @property
    def gap(self) -> Tensor:
        return self.first / self.copies

    @property
    def standard_error(self) -> Tensor:
        """Standard errors, with a share for rounding."""
        variance = (self.second / self.copies - self.gap.square()).clamp(min=0) / (self.copies - 1)
        return (variance + (ROUNDING * self.truth.abs().max()).square()).sqrt()

    @property
    def signal(self) -> float:
        return float((self.truth.abs() / self.standard_error).max()) if bool(self.truth.any()) else math.inf


def _gradients(
    loss: AuditLoss, neuron: gradest.Neuron, estimator: gradest.Estimator, copies: int, seed: int, state: gradest.State
) -> tuple[list[Tensor], gradest.State]:
    """Gradients as a training step gives them, of so many copies of the rows, and the next state."""
    rows = pre_activations(neuron)
    a = rows.repeat(copies, *[1] * (rows.ndim - 1)).requires_grad_()
    parameters = tuple(given.expand(len(a), *given.shape).clone().requires_grad_() for given in loss.parameters)
    value, state = gradest.expect(lambda h: loss.at(neuron, h, parameters), a, neuron, estimator, seed, state)
    value.sum().backward()
    return [given.new_zeros(given.shape) if given.grad is None else given.grad for given in (a, *parameters)], state


def measure(
    name: str, loss: AuditLoss, truth: list[Tensor], neuron: gradest.Neuron, estimator: gradest.Estimator, seed: int
) -> Iterator[Finding]:
    """Yield the findings for one loss: the gradient in a, and that in the parameters of the loss if it has some.

    An estimator with a state goes on from step to step, as in training. Where the claim promises no bias, steps follow until
    the gradient in a has LEAST_SIGNAL standard errors, or up to a number of copies.
    """
    claim = estimator.bias(neuron)
    promised = claim.order >= loss.degree and not (claim.continuous and loss.jumps)
    event = tuple(pre_activations(neuron).shape[1:])
    at_once = _POINTS_AT_ONCE // (ROWS * estimator.evaluations(neuron, event))
    state = estimator.init(neuron, pre_activations(neuron))
    for step in range(_WARM_UP if state else 0):
        _, state = _gradients(loss, neuron, estimator, 64, 1000 * seed + step, state)
    sums = [Sums(of) for of in truth]
    wanted, step = _FIRST_COPIES // (4 if _is_costly(neuron) else 1), _WARM_UP
    while sums[0].copies < wanted:
        found, state = _gradients(
            loss, neuron, estimator, min(at_once, wanted - sums[0].copies), 1000 * seed + step, state
        )
        for total, gradients in zip(sums, found, strict=True):
            total.add(gradients.flatten(1))
        step += 1
        if promised and sums[0].copies >= wanted and sums[0].signal < LEAST_SIGNAL:
            wanted = min(_MOST_COPIES, math.ceil(1.1 * sums[0].copies * (LEAST_SIGNAL / sums[0].signal) ** 2))
    for of, total in zip(("a", *["parameters"] * len(loss.parameters)), sums, strict=True):
        yield Finding(
            neuron=neuron.label(),
            estimator=estimator.label(),
            loss=name,
            of=of,
            promised=promised,
            copies=total.copies,
            coordinates=total.truth.numel(),
            z=float((total.gap.abs() / total.standard_error).max()),
            signal=total.signal,
            relative_bias=float(total.gap.abs().max() / total.truth.abs().max()) if bool(total.truth.any()) else 0.0,
        )


def audit(
    neuron: gradest.Neuron, estimators: Sequence[gradest.Estimator], names: Sequence[str] | None = None
) -> Iterator[Finding]:
    """Yield the findings for a neuron, with each estimator on each of the losses with these names, or all that suit it."""
    truths: dict[tuple[str, bool, str], list[Tensor]] = {}
    for estimator in estimators:
        claim, target = estimator.bias(neuron), estimator.target()
        for name in losses_for(neuron) if names is None else names:
            smooth = claim.continuous or not claim.unbiased
            coarse = isinstance(neuron, gradest.Continuous) and neuron.output_ndim > 1  # a grid that resolves no jump
            loss = KINKED if LOSSES[name].jumps and (smooth or coarse) else LOSSES[name]
            key = (name, smooth or coarse, str(target))
            if key not in truths:
                truths[key] = exact(neuron, loss, target)
            yield from measure(name, loss, truths[key], neuron, estimator, 17 + list(LOSSES).index(name))


def losses_for(neuron: gradest.Neuron) -> tuple[str, ...]:
    """Return the names of the losses on which a neuron is audited: all, but for a costly one none that takes many draws."""
    return tuple(name for name in LOSSES if name != "offset" or not _is_costly(neuron))


def _is_costly(neuron: gradest.Neuron) -> bool:
    event = tuple(pre_activations(neuron).shape[1:])
    return neuron.draw_size(event) >= _COSTLY * math.prod(event)


def pairs() -> dict[str, tuple[gradest.Neuron, list[gradest.Estimator]]]:
    """Every neuron with each of its example options, by label, and the estimators that fit it, with each of theirs."""
    found: dict[str, tuple[gradest.Neuron, list[gradest.Estimator]]] = {}
    for estimator, neuron in checks.example_pairs(gradest.registry):
        found.setdefault(neuron.label(), (neuron, []))[1].append(estimator)
    return found


_HEAD = """# Audit of the gradients

Every estimator on every neuron that it accepts, both with all of their example options, on eight losses that differ
in kind: {gradients} gradients, of which {promised} are promised to be without bias, as `gradest.expect` and
backward give them. Each is the mean over as many draws as give the largest coordinate of the exact gradient
{signal:.0f} standard errors, and is compared with a sum over all outputs that shares no code with the library.
Estimators with a state have moved it for some steps first.

The largest difference of a promised gradient is {worst:.1f} standard errors, over {coordinates} coordinates; chance
alone would be expected to give {chance:.1f}. A wrong sign or a wrong factor of two would show as more than 5.5, the
bound of the test.

The loss "rows" weights the rows of the batch differently and jumps; where a claim is for continuous losses alone,
or there is none, or the grid of a group of continuous units resolves no jump, a loss with kinks takes its place.
"offset" lies above 1,000, "parity" joins all units, and
"network" has parameters of its own, whose gradients are compared too. A neuron of which a draw takes the work of more
than {costly} ordinary ones leaves "offset" out, which needs the most draws.

This page is written by `python -m tests.estimation.audit`; `make test-deep` holds the promises.

## What is promised

The largest difference in standard errors, over all estimators that promise no bias on the loss.

"""

_BIASED = """

## What is not promised

The largest difference as a share of the largest coordinate of the exact gradient, over all neurons and options for
which the estimator promises nothing on this loss.

"""


def _largest(
    findings: Iterable[Finding], rows: Sequence[str], row_of: str, value: str, show: Callable[[float], str]
) -> str:
    """A table of the largest values, by loss."""
    found: dict[tuple[str, str], float] = {}
    for finding in findings:
        key = getattr(finding, row_of).partition("(")[0], finding.loss
        found[key] = max(found.get(key, 0.0), getattr(finding, value))
    lines = [[f"`{row}`", *(show(found[row, loss]) if (row, loss) in found else "" for loss in LOSSES)] for row in rows]
    return table([row_of, *LOSSES], lines, "l" + "r" * len(LOSSES))


def _as_share(value: float) -> str:
    return f"{value:.0%}" if value < 10 else "> 999%"


def document(findings: Sequence[Finding]) -> str:
    """Return the document of these findings."""
    promised = [finding for finding in findings if finding.promised]
    others = [finding for finding in findings if not finding.promised]
    coordinates = sum(finding.coordinates for finding in promised)
    chance = -torch.special.ndtri(torch.tensor(0.5 * (1 - 0.5 ** (1 / coordinates)), dtype=torch.float64)).item()
    head = _HEAD.format(
        gradients=len(findings),
        promised=len(promised),
        signal=LEAST_SIGNAL,
        costly=_COSTLY,
        worst=max(finding.z for finding in promised),
        coordinates=coordinates,
        chance=chance,
    )
    names = [
        list(dict.fromkeys(name.partition("(")[0] for name in of))
        for of in ([finding.neuron for finding in promised], sorted(finding.estimator for finding in others))
    ]
    return (
        head
        + _largest(promised, names[0], "neuron", "z", "{:.1f}".format)
        + _BIASED
        + _largest(others, names[1], "estimator", "relative_bias", _as_share)
        + "\n"
    )


def main() -> None:
    """Audit all pairs, and write the document."""
    findings = [finding for pair in track(pairs().values(), "audit") for finding in audit(*pair)]
    DOCUMENT.write_text(document(findings))


if __name__ == "__main__":
    main()
