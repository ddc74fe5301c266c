"""Docstrings as blocks: paragraphs, lists of named things, code and headings. `to_markdown` writes them as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import Literal

__all__ = ["Block", "cell", "escape", "split_blocks", "to_markdown"]

_INDENT = 4  # of code, and of the lines that continue an item
_ITEM = re.compile(r"(?P<names>[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): +(?P<text>\S.*)")
_SPECIAL = re.compile(r"([\\*_<>$\[\]{}~])")


@dataclass(frozen=True)
class Block:
    """A part of a docstring.

    kind: what it is. lines: its text; of an "item", what is said of `names`.
    """

    kind: Literal["paragraph", "bullets", "item", "code", "heading"]
    lines: tuple[str, ...]
    names: tuple[str, ...] = ()


def split_blocks(docstring: str, names: Collection[str] = ()) -> Iterator[Block]:
    """Yield the blocks of a docstring.

    names: the arguments or fields that it may describe, each in lines that start with `name: `. At the start of a paragraph
        other words in lower case are taken for names too.
    """
    lines = cleandoc(docstring).splitlines()
    at, in_text = 0, False
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at, in_text = at + 1, False
            continue
        if at + 1 < len(lines) and re.fullmatch(r"-{3,}|={3,}", lines[at + 1]):
            yield Block("heading", (line,))
            at, in_text = at + 2, False
            continue
        item = _ITEM.fullmatch(line)
        if item and (set(item["names"].split(", ")) <= set(names) or (not in_text and _stands_alone(lines, at))):
            end = _end_of(lines, at + 1, _is_indented)
            rest = tuple(text.strip() for text in lines[at + 1 : end])
            yield Block("item", (item["text"], *rest), tuple(item["names"].split(", ")))
            at = end
            continue
        if line.startswith(">>>"):
            end = _end_of(lines, at, lambda text: bool(text.strip()))
            yield Block("code", tuple(lines[at:end]))
            at, in_text = end, False
            continue
        if _is_indented(line):
            end = _end_of(lines, at, _is_indented, over_gaps=True)
            yield Block("code", tuple(text[_INDENT:] for text in lines[at:end]))
            at, in_text = end, False
            continue
        bullet = line.startswith("- ")
        end = at + 1
        while end < len(lines) and not _starts_block(lines, end, names, bullet):
            end += 1
        yield Block("bullets" if bullet else "paragraph", tuple(lines[at:end]))
        at, in_text = end, True


def to_markdown(docstring: str, names: Collection[str] = ()) -> str:
    """Return a docstring as Markdown. Names in it that Markdown would take for markup are escaped, outside of backticks."""
    parts: list[str] = []
    previous = ""
    for block in split_blocks(docstring, names):
        parts.append("\n" if block.kind == previous == "item" else "\n\n")
        parts.append(_WRITERS[block.kind](block))
        previous = block.kind
    return "".join(parts).strip()


def escape(text: str) -> str:
    """Return text in which Markdown finds no markup but `code`."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(piece if place % 2 else _SPECIAL.sub(r"\\\1", piece) for place, piece in enumerate(pieces))


def cell(text: str) -> str:
    """Return text for a cell of a table, in one line."""
    return " ".join(escape(text).replace("|", "\\|").split())


def _stands_alone(lines: list[str], at: int) -> bool:
    """Return whether a line that starts like an item, with a name in lower case, does not go on as a paragraph does."""
    after = lines[at + 1] if at + 1 < len(lines) else ""
    return lines[at][0].islower() and (not after.strip() or _is_indented(after) or bool(_ITEM.fullmatch(after)))


def _is_indented(line: str) -> bool:
    return line.startswith(" " * _INDENT)


def _end_of(lines: list[str], start: int, belongs: Callable[[str], bool], over_gaps: bool = False) -> int:
    """Return the place after the last of the lines that belong together; `over_gaps` skips empty lines between them."""
    end = at = start
    while at < len(lines) and (belongs(lines[at]) or (over_gaps and not lines[at].strip())):
        at += 1
        if lines[at - 1].strip():
            end = at
    return end


def _starts_block(lines: list[str], at: int, names: Collection[str], bullet: bool) -> bool:
    line = lines[at]
    if not line.strip() or line.startswith(">>>") or (line.startswith("- ") and not bullet):
        return True
    if _is_indented(line) and not bullet:
        return True
    item = _ITEM.fullmatch(line)
    return bool(item and set(item["names"].split(", ")) <= set(names))


def _write_item(block: Block) -> str:
    named = ", ".join(f"`{name}`" for name in block.names)
    return f"- {named}: " + "\n  ".join(escape("\n".join(block.lines)).splitlines())


def _write_code(block: Block) -> str:
    language = "pycon" if block.lines[0].startswith(">>>") else "text" if not _is_python(block.lines) else "python"
    return "\n".join([f"```{language}", *block.lines, "```"])


def _is_python(lines: tuple[str, ...]) -> bool:
    try:
        compile("\n".join(lines), "docstring", "exec")
    except SyntaxError:
        return False
    return True


def _write_text(block: Block) -> str:
    return escape("\n".join(block.lines))


_WRITERS: dict[str, Callable[[Block], str]] = {
    "paragraph": _write_text,
    "bullets": _write_text,
    "item": _write_item,
    "code": _write_code,
    "heading": lambda block: f"## {block.lines[0]}",
}
