"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["format_cell", "markdown_table"]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in which columns of numbers are aligned to the right and None is a dash."""
    numeric = [
        all(row[column] is None or isinstance(row[column], int | float) for row in rows) for column in range(len(head))
    ]
    lines = [head, ["---:" if right else "---" for right in numeric], *([format_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(cell: Any) -> str:
    """Return the text of a cell; floats have three significant digits."""
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
