"""The four scenes of the demo. Each computes a few numbers, and says in a sentence or two what they show."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gradest.client import Client
from gradest.discovery.registry import registry
from gradest.estimation.exact import exact
from gradest.estimation.expectation import sample
from gradest.nn.conditional import ConditionalLinear
from gradest_experiments.engine.data import Split
from gradest_experiments.engine.plot import colour_encoding, inline_data
from gradest_experiments.gated.gaters import compare_gaters

__all__ = ["Bar", "Digits", "Scene", "one_unit", "private_loss", "skipped_work", "three_estimators"]


class Bar(NamedTuple):
    """A cell of a table that shows a number as a bar. length: from 0 to 1."""

    length: float


@dataclass(frozen=True, eq=False)
class Digits:
    """Images, and beside them what was made of them, each `[images, pixels]` from 0 to 1."""

    original: Tensor
    shown: Tensor


@dataclass(frozen=True, eq=False)
class Scene:
    """A part of the demo.

    title, text: what it shows, in words. head, rows: a table, whose cells are text or bars. picture: an altair chart. digits:
    images for the page, if the scene has any.
    """

    title: str
    text: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    picture: Any
    digits: Digits | None = None


def one_unit(seed: int, samples: int = 12) -> Scene:
    """Show that the mean loss of a stochastic unit has a slope, and that the loss of its samples has none."""

    def f(h: Tensor) -> Tensor:
        return (h.sum(-1) - 0.2).square()

    def sampled_loss(a: Tensor) -> Tensor:
        """Return the mean loss of the samples at each a, all with the same noise, because each is row 0 of a batch."""
        return torch.stack([f(sample("bernoulli", one[None], samples, seed)).mean() for one in a])

    a, step = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64), 1e-6
    probability = registry.neuron("bernoulli").active_probability(a)[:, 0]
    mean, slope = exact(f, a)
    seen = (sampled_loss(a + step) - sampled_loss(a)) / step
    drawn = [sample("bernoulli", one[None], samples, seed)[:, 0, 0].int().tolist() for one in a]
    rows: list[Sequence[str | Bar]] = [
        [
            f"{float(a[i]):g}",
            f"{float(p):.2f}",
            Bar(float(p)),
            "".join(map(str, drawn[i])),
            f"{float(mean[i]):.3f}",
            f"{float(slope[i, 0]):.3f}",
            f"{float(seen[i]):g}",
        ]
        for i, p in enumerate(probability)
    ]
    fine = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    lines = {"mean loss": exact(f, fine)[0], f"loss of {samples} samples": sampled_loss(fine)}
    points = [
        {"a": float(x), "line": name, "loss": float(y)}
        for name, values in lines.items()
        for x, y in zip(fine, values, strict=True)
    ]
    return Scene(
        "A stochastic unit, and why backpropagation sees nothing",
        [
            "The unit is on (1) with probability sigmoid(a), else off (0); its loss is (h - 0.2)^2.",
            "The mean loss has a slope in a, but the loss of the samples, with their noise held fixed, has none: they jump.",
        ],
        ["a", "P(on)", "", "samples", "mean loss", "its slope", "slope of the samples' loss"],
        rows,
        _lines(points, "a", "loss", [*lines], "pre-activation a", "loss"),
    )


def three_estimators(client: Client, seed: int, draws: int = 5000) -> Scene:
    """Let the service compare three estimators with the exact gradient of a small classifier's loss."""
    a = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2])
    weight = [[2.0, -1.0, 1.0, 0.5, -2.0], [-1.0, 2.0, -0.5, 1.0, 1.5]]
    objective = registry.objective("cross_entropy", weight=weight, labels=0)
    estimators: list[str | dict[str, str]] = [
        {"name": "straight_through", "derivative": "sigmoid"},
        "reinforce",
        "reinforce_centered",
    ]
    found = client.compare(objective, a[None], "bernoulli", estimators, draws=draws, seed=seed)
    assert found.exact is not None
    root, length = a.numel() ** 0.5, float(torch.as_tensor(found.exact).norm())
    noise = [row.variance**0.5 * root / length for row in found.rows]
    wrong = [(row.bias or 0.0) * root / length for row in found.rows]
    rows: list[Sequence[str | Bar]] = [
        [
            row.estimator.partition("(")[0],
            "unbiased" if row.claim == "none" else "biased",
            f"{100 * spread:.0f} %",
            Bar(spread / max(noise)),
            f"{100 * error:.1f} %",
            Bar(error / max(wrong)),
        ]
        for row, spread, error in zip(found.rows, noise, wrong, strict=True)
    ]
    return Scene(
        "Three estimators beside the exact gradient",
        [
            f"Five units under a softmax, asked of a service over HTTP; {draws:,} draws, in % of the exact gradient's length.",
            f"straight_through has {noise[1] / noise[0]:.0f} times less noise than reinforce, but more draws leave its error "
            f"as it is. A baseline makes reinforce_centered {noise[1] / noise[2]:.1f} times less noisy, and right on average.",
        ],
        ["estimator", "claim", "noise of a draw", "", "error of the mean", ""],
        rows,
        found.chart("bias"),
    )


def private_loss(client: Client, split: Split, seed: int, steps: int = 150, bits: int = 12) -> Scene:
    """Train an encoder of digits into bits through the service, which sees neither the decoder nor the pixels."""
    pair = ("bernoulli", {"name": "rloo", "samples": 4})
    x = (split.x > 0.5).float()
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = (
        (0.1 * torch.randn(size, generator=generator)).requires_grad_()
        for size in ((x.shape[1], bits), (bits, x.shape[1]))
    )
    bias = torch.logit(x.mean(0).clamp(0.01, 0.99)).requires_grad_()
    optimiser = torch.optim.Adam([encoder, decoder, bias], lr=0.03)
    curve = []
    for step in range(steps):
        batch = x[torch.randint(len(x), (64,), generator=generator)]
        a = (batch - x.mean(0)) @ encoder
        draw = client.forward(*pair, a.detach(), seed=step)  # ask: at which points is the loss needed?
        pixels = draw.points @ decoder + bias
        loss = functional.binary_cross_entropy_with_logits(pixels, batch.expand_as(pixels), reduction="none").sum(-1)
        answer = client.backward(*pair, a.detach(), draw, loss.detach())  # tell
        optimiser.zero_grad()
        a.backward(answer.gradient / len(batch))  # type: ignore[no-untyped-call]
        loss.mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        curve.append(float(loss.detach().mean()))
    tenth = max(1, steps // 10)
    means = [sum(part) / len(part) for part in (curve[i : i + tenth] for i in range(0, steps, tenth))]
    shown = [0, 1, 2, 4, len(means) - 1] if len(means) > 5 else range(len(means))
    rows: list[Sequence[str | Bar]] = [
        [f"{i * tenth} to {min(steps, (i + 1) * tenth) - 1}", f"{means[i]:.1f}", Bar(means[i] / max(means))]
        for i in shown
    ]
    first = torch.stack([x[split.y == digit][0] for digit in range(10)])
    with torch.no_grad():
        code = (((first - x.mean(0)) @ encoder) > 0).float()
        digits = Digits(first, torch.sigmoid(code @ decoder + bias))
    points = [{"step": step, "line": "loss", "nats": value} for step, value in enumerate(curve)]
    return Scene(
        "A loss that stays on your machine",
        [
            f"An encoder writes a digit's {x.shape[1]} pixels as {bits} random bits, and a decoder reads them back. The service "
            "draws the bits and returns gradients; it is sent one loss for each sample, and neither pixels nor decoder.",
        ],
        ["steps", "nats a digit", ""],
        rows,
        _lines(points, "step", "nats", ["loss"], "step", "nats a digit", zero=True),
        digits,
    )


def skipped_work(seed: int, epochs: int = 25, size: tuple[int, int] = (784, 2000), progress: bool = False) -> Scene:
    """Train networks with gates on digits, and time a layer that skips the units of closed gates."""
    names = {
        "straight_through": "gates, straight_through",
        "stochastic_binary": "gates, reinforce_centered",
        "sigmoid": "no gates",
    }
    with _one_thread():  # more would wait for each other in networks of this size
        results = compare_gaters("digits", epochs, seed, names=names, progress=progress)
        dense, sparse = _time_layer(*size, share=0.1, seed=seed)
    rows: list[Sequence[str | Bar]] = [
        [
            title,
            f"{100 * result.test.error:.1f} %",
            f"{100 * result.test.open_share:.0f} %",
            Bar(result.test.open_share),
        ]
        for title, result in zip(names.values(), results, strict=True)
    ]
    points = [
        {"epoch": epoch, "line": title, "error": 100 * one.valid.error}
        for title, result in zip(names.values(), results, strict=True)
        for epoch, one in enumerate(result.epochs, 1)
    ]
    return Scene(
        "A network whose gates skip work",
        [
            f"The gated network of Bengio et al. (2013) sees the digits {epochs} times; a tenth of its gates are open.",
            "What a closed gate would hide is not computed: with a tenth of the gates open, a layer of "
            f"{size[0]} x {size[1]} units takes {1e3 * sparse:.2f} ms for 32 images on one core, not {1e3 * dense:.2f} ms.",
        ],
        ["network", "test error", "experts that work", ""],
        rows,
        _lines(points, "epoch", "error", [*names.values()], "epoch", "validation error, %", zero=True),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time_layer(inputs: int, units: int, share: float, seed: int, repeats: int = 20) -> tuple[float, float]:
    """Return the seconds that a layer takes for 32 images, with all units computed and with those of closed gates skipped."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, inputs, generator=generator)
    gates = (torch.rand(32, units, generator=generator) < share).float()
    layer = ConditionalLinear(inputs, units)
    seconds = {"dense": float("inf"), "sparse": float("inf")}
    with torch.no_grad():
        for _ in range(repeats):
            for method in ("dense", "sparse"):
                layer.method = method
                began = time.perf_counter()
                layer(x, gates)
                seconds[method] = min(seconds[method], time.perf_counter() - began)
    return seconds["dense"], seconds["sparse"]


def _lines(
    points: Sequence[dict[str, Any]], x: str, y: str, names: Sequence[str], across: str, up: str, zero: bool = False
) -> Any:
    """Draw lines, in the colours of all charts. points: the fields `x`, `y` and "line", which is one of the names."""
    import altair  # noqa: PLC0415  # an extra

    colour = colour_encoding(names, "line")
    return (
        altair.Chart(inline_data(points))
        .mark_line(strokeWidth=2, interpolate="step-after" if x == "a" else "linear")
        .encode(
            x=altair.X(f"{x}:Q", title=across, scale=altair.Scale(nice=False), axis=altair.Axis(grid=False)),
            y=altair.Y(f"{y}:Q", title=up, scale=altair.Scale(zero=zero)),
            color=colour if len(names) > 1 else colour.legend(None),
        )
        .properties(width=460, height=260)
    )
