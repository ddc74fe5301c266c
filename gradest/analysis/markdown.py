"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["table"]

_RULES = {"l": "---", "r": "---:"}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], align: str) -> str:
    """Return a Markdown table, in lines without a line break after the last.

    head: the title of each column.
    rows: the cells of each row, which are written as `str` has them.
    align: a letter for each column, "l" for left or "r" for right.
    """
    lines = [head, [_RULES[letter] for letter in align], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
