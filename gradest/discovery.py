"""Which installed distributions offer plugins: those with entry points in the group `gradest`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

__all__ = ["GROUP", "Source", "discover", "normalised"]

GROUP = "gradest"
_OWN = "gradest"  # the distribution that comes first, so that a stranger cannot take a built-in's name


@dataclass(frozen=True)
class Source:
    """A distribution and its entry points by name; none where GRADEST_LOAD_PLUGINS names what is not installed."""

    distribution: str
    version: str
    entry_points: tuple[EntryPoint, ...]


def discover(restriction: str | None = None) -> list[Source]:
    """The distributions with plugins, gradest first and then by name.

    restriction: what GRADEST_LOAD_PLUGINS says if it is None: names, separated by commas, of the third parties that are let in.
    """
    found: dict[tuple[str, str], list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        # a damaged installation may lack its name, its version, or both
        owner = ((point.dist.name or "unknown"), (point.dist.version or "")) if point.dist else ("unknown", "")
        found.setdefault(owner, []).append(point)
    sources = [Source(*owner, tuple(sorted(points, key=lambda point: point.name))) for owner, points in found.items()]
    if restriction is None:
        restriction = os.environ.get("GRADEST_LOAD_PLUGINS")
    if restriction is not None:
        wanted = {normalised(name) for name in restriction.split(",") if name.strip()}
        missing = wanted - {normalised(source.distribution) for source in sources}
        sources = [source for source in sources if normalised(source.distribution) in wanted | {_OWN}]
        sources += [Source(name, "", ()) for name in missing]
    return sorted(sources, key=_rank)


def _rank(source: Source) -> tuple[bool, str]:
    name = normalised(source.distribution)
    return name != _OWN, name


def normalised(distribution: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
