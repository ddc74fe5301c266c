"""Charts, each defined once as vega-lite in a JSON file, which altair and the service's page both draw.

A definition has no data. It names the rows that it draws, as `{"data": {"name": "rows"}}`, and the caller provides them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from gradest.errors import GradestError

__all__ = ["chart", "definition", "write_svg"]


def definition(name: str) -> dict[str, Any]:
    """Return the vega-lite definition in NAME.json, without rows; "config" is the style that all charts share.

    Raises FileNotFoundError if there is none of this name.
    """
    found: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return found


def chart(name: str, rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Return an altair chart of rows, by the definition of that name.

    rows: dicts with the columns that the definition draws; numbers need not be finite.
    title: the title of the chart.

    Needs the extra `gradest[plot]`; raises GradestError without it.
    """
    try:
        import altair  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise GradestError("charts need altair: pip install 'gradest[plot]'") from error
    return altair.Chart.from_dict(_document(name, rows, title))


def write_svg(name: str, rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Write a chart as SVG, with the arguments of `chart`. The folder is made. Unlike altair, this does not check the definition.

    Needs the extra `gradest[plot]`; raises GradestError without it.
    """
    try:
        import vl_convert  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise GradestError("pictures need vl-convert: pip install 'gradest[plot]'") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(vl_convert.vegalite_to_svg(_document(name, rows, title)), encoding="utf-8")


def _document(name: str, rows: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    datasets = {"rows": to_jsonable_python(rows, inf_nan_mode="strings")}
    return {**definition(name), "title": title, "config": definition("config"), "datasets": datasets}
