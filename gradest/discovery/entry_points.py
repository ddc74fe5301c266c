"""Finds plugins: installed distributions with entry points in the groups of gradest, or the one that an argument names."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from gradest.errors import PluginError, UnknownPlugin

__all__ = ["COMMAND_GROUP", "GROUP", "OWN", "PluginSource", "discover", "find", "installed"]

GROUP = "gradest"
"""The entry-point group of neurons, estimators and objectives."""
COMMAND_GROUP = "gradest.commands"
"""The entry-point group of commands."""
OWN = "gradest"
"""The distribution of gradest itself, which loads first, so that no other can take a built-in's name."""


@dataclass(frozen=True)
class PluginSource:
    """A distribution and its entry points. It has none if GRADEST_LOAD_PLUGINS names a distribution that is not installed."""

    distribution: str
    version: str
    entry_points: tuple[EntryPoint, ...]
    folders: tuple[Path, ...] = ()
    """Folders of its modules that are not on sys.path."""

    @property
    def built_in(self) -> bool:
        """Whether this is gradest itself."""
        return _normalised(self.distribution) == OWN


def installed(group: str = GROUP) -> list[PluginSource]:
    """Return the installed distributions with entry points in the group: gradest first, then the others by name."""
    found: dict[tuple[str, str], list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(_owner(point), []).append(point)
    sources = [
        PluginSource(*owner, tuple(sorted(points, key=lambda point: point.name))) for owner, points in found.items()
    ]
    return sorted(sources, key=_rank)


def _owner(point: EntryPoint) -> tuple[str, str]:
    """Return the distribution of an entry point, and its version: "unknown" and "" where a damaged installation lacks them."""
    if point.dist is None:
        return "unknown", ""
    name, version = (point.dist.metadata.get_all(field, [""])[0] for field in ("Name", "Version"))
    return name or "unknown", version


def discover(group: str = GROUP) -> list[PluginSource]:
    """Return the installed distributions with entry points in the group that GRADEST_LOAD_PLUGINS allows."""
    sources = installed(group)
    restriction = os.environ.get("GRADEST_LOAD_PLUGINS")
    if restriction is not None:
        wanted = {_normalised(name) for name in restriction.split(",") if name.strip()}
        anywhere = [*installed(GROUP), *installed(COMMAND_GROUP)]
        missing = wanted - {_normalised(source.distribution) for source in anywhere}
        sources = [source for source in sources if source.built_in or _normalised(source.distribution) in wanted]
        sources += [PluginSource(name, "", ()) for name in missing]
    return sorted(sources, key=_rank)


def find(argument: str) -> PluginSource:
    """Find the plugin that an argument names, without importing it.

    The argument is taken for the first of these that it is: the folder of a project whose pyproject.toml has the entry points,
    installed or not; a .py file; an installed distribution; the folder of a package; an importable module. Raises UnknownPlugin
    if it is none of them, and PluginError for a project without entry points or a file whose module name is already imported.
    """
    path = Path(argument)
    if argument and (path / "pyproject.toml").is_file():
        return _project(path.resolve())
    if path.suffix == ".py" and path.is_file():
        return _file(path.resolve())
    for source in installed():
        if _normalised(source.distribution) == _normalised(argument):
            return source
    if (path / "__init__.py").is_file():
        return _file((path / "__init__.py").resolve())
    if _is_module(argument):
        return PluginSource(argument, "", (_point(argument, argument),))
    raise UnknownPlugin(
        f"{argument!r} is not an installed distribution with plugins, an importable module, a .py file or a project's folder"
    )


def _project(folder: Path) -> PluginSource:
    """Read the entry points of a pyproject.toml, whose modules lie beside it or in src."""
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        points: Mapping[str, str] = project.get("entry-points", {}).get(GROUP, {})
        found = tuple(_point(name, target) for name, target in sorted(points.items()))
    except (ValueError, AttributeError, TypeError) as error:
        raise PluginError(f"{path} cannot be read: {error}") from error
    if not found:
        raise PluginError(
            f'{path} declares no plugins. Add the table [project.entry-points.{GROUP}] with a line name = "module"'
        )
    version = str(project.get("version", ""))
    return PluginSource(str(project.get("name", folder.name)), version, found, (folder, folder / "src"))


def _file(path: Path) -> PluginSource:
    """Name the module of a file by the packages that contain it."""
    folder, names = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(names).removesuffix(".__init__")
    there = getattr(sys.modules.get(module), "__file__", None) or ""
    if module in sys.modules and Path(there).resolve() != path:
        raise PluginError(
            f"{path}: another module is already named {module!r} ({there or 'built in'}); rename the file"
        )
    return PluginSource(module, "", (_point(module, module),), (folder,))


def _point(name: str, target: str) -> EntryPoint:
    return EntryPoint(name, target, GROUP)


def _is_module(name: str) -> bool:
    """Return whether the module, or its top-level package, can be imported."""
    top = name.partition(".")[0]
    try:
        return top.isidentifier() and find_spec(top) is not None
    except ValueError:  # a module without a spec, such as __main__
        return True


def _rank(source: PluginSource) -> tuple[bool, str]:
    return not source.built_in, _normalised(source.distribution)


def _normalised(distribution: str) -> str:
    """Normalise the name as package indexes do."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
