"""Charts, each defined once as vega-lite in a JSON file, for altair here and for the service's page.

A definition names the rows it takes, as `{"data": {"name": "rows"}}`, and whoever shows it brings them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from pydantic_core import to_jsonable_python

from gradest.errors import GradestError

__all__ = ["chart", "definition"]


def definition(name: str) -> dict[str, Any]:
    """The chart of this name in vega-lite, without rows."""
    found: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return found


def chart(name: str, rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """An altair chart of these rows.

    rows may hold numbers that are not finite. Needs the extra `gradest[plot]`.
    """
    try:
        import altair  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise GradestError("charts need altair: pip install 'gradest[plot]'") from error
    datasets = {"rows": to_jsonable_python(rows, inf_nan_mode="strings")}
    whole = {**definition(name), "title": title, "config": definition("config"), "datasets": datasets}
    return altair.Chart.from_dict(whole)
