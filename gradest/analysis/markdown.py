"""Tables in Markdown, and what they say of a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["table", "type_in_words"]

_RULES = {"l": "---", "r": "---:"}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], align: str) -> str:
    """Return a Markdown table, in lines without a line break after the last.

    head: the title of each column.
    rows: the cells of each row, which are written as `str` has them.
    align: a letter for each column, "l" for left or "r" for right.
    """
    lines = [head, [_RULES[letter] for letter in align], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Return the type that a JSON Schema states, in words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(type_in_words(part) for part in schema["anyOf"])
    kind = schema.get("type", "any")
    return " | ".join(kind) if isinstance(kind, list) else str(kind)
