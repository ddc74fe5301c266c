"""What the charts of all reports have in common."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradest.analysis.charts import definition
from gradest.errors import GradestError
from gradest_experiments.engine.checkpoint import write_atomically

__all__ = [
    "PALETTE",
    "check_plots",
    "colour_encoding",
    "inline_data",
    "line_encodings",
    "themed",
    "write_chart",
    "write_png",
    "write_svg",
]

PALETTE: tuple[str, ...] = tuple(definition("config")["range"]["category"])
_GREYS = ("#111111", "#6b6b6b", "#a0a0a0", "#c4c4c4")


def check_plots() -> None:
    """Raise GradestError, which says what to install, unless plots can be written."""
    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    if missing:
        raise GradestError(f"plots need {' and '.join(missing)}: pip install 'gradest[plot]'")


def inline_data(rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as data of an altair chart, stored in the chart itself."""
    import altair  # noqa: PLC0415  # an extra

    return altair.InlineData(values=list(rows))


def colour_encoding(names: Sequence[str], field: str = "estimator", shades: Sequence[str] | None = None) -> Any:
    """Return an encoding that gives each name a colour of its own: the one of `shades`, or one of the palette."""
    return _colour(names, shades or [PALETTE[place % len(PALETTE)] for place in range(len(names))], field, "circle")


def line_encodings(names: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return encodings of lines: a colour for each name, dashed where colours repeat, and a dashed grey for each reference."""
    import altair  # noqa: PLC0415  # an extra

    domain = [*names, *references]
    shades = [PALETTE[place % len(PALETTE)] for place in range(len(names))]
    shades += [_GREYS[place % len(_GREYS)] for place in range(len(references))]
    own = definition("error")["encoding"]["strokeDash"]["scale"]["range"]
    dashes = [own[place % len(own)] for place in range(len(names))] + [[6, 4]] * len(references)
    dash = altair.StrokeDash("estimator:N").scale(domain=domain, range=dashes).legend(None)
    return {"color": _colour(domain, shades, "estimator", "stroke"), "strokeDash": dash}


def _colour(domain: Sequence[str], shades: Sequence[str], field: str, symbol: str) -> Any:
    import altair  # noqa: PLC0415  # an extra

    legend = altair.Legend(labelLimit=0, symbolType=symbol, symbolStrokeWidth=3, symbolSize=160, title=None)
    return altair.Color(f"{field}:N").scale(domain=list(domain), range=list(shades)).legend(legend)


def themed(chart: Any) -> Any:
    """Return the chart with the theme that all charts have."""
    return chart.configure(**definition("config"))


def write_chart(chart: Any, folder: Path, name: str) -> None:
    """Write NAME.svg and NAME.png into the folder."""
    write_svg(chart, folder, name)
    write_png(chart, folder, name)


def write_svg(chart: Any, folder: Path, name: str) -> None:
    """Write NAME.svg into the folder."""
    write_atomically(folder / f"{name}.svg", lambda new: themed(chart).save(new, format="svg"))


def write_png(chart: Any, folder: Path, name: str) -> None:
    """Write NAME.png into the folder."""
    write_atomically(folder / f"{name}.png", lambda new: themed(chart).save(new, format="png", scale_factor=2))
