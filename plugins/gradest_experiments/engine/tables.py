"""Tables of results in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradest.analysis.markdown import table

__all__ = ["format_cell", "markdown_table"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in which columns of numbers are aligned to the right and None is a dash."""
    numeric = [
        all(row[column] is None or isinstance(row[column], int | float) for row in rows) for column in range(len(head))
    ]
    cells = ([format_cell(cell) for cell in row] for row in rows)
    return table(head, cells, "".join("r" if right else "l" for right in numeric))


def format_cell(cell: Any) -> str:
    """Return the text of a cell; floats have three significant digits."""
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
