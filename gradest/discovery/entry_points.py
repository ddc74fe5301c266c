"""Where plugins are: the installed distributions with entry points in the groups of gradest, or what an argument names."""

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

__all__ = ["COMMANDS", "GROUP", "PluginSource", "discover", "find", "installed"]

GROUP = "gradest"
"""The entry-point group of neurons, estimators and objectives."""
COMMANDS = "gradest.commands"
"""The entry-point group of commands."""
_OWN = "gradest"  # the distribution that comes first, so that a stranger cannot take a built-in's name


@dataclass(frozen=True)
class PluginSource:
    """A distribution and its entry points by name; none where GRADEST_LOAD_PLUGINS names what is not installed."""

    distribution: str
    version: str
    entry_points: tuple[EntryPoint, ...]
    folders: tuple[Path, ...] = ()
    """Where its modules are, if not where Python looks by itself."""

    @property
    def built_in(self) -> bool:
        """Whether it is gradest itself."""
        return _normalised(self.distribution) == _OWN


def installed(group: str = GROUP) -> list[PluginSource]:
    """The distributions with entry points in the group, gradest first and then by name."""
    found: dict[tuple[str, str], list[EntryPoint]] = {}
    for point in entry_points(group=group):
        # a damaged installation may lack its name, its version, or both
        owner = ((point.dist.name or "unknown"), (point.dist.version or "")) if point.dist else ("unknown", "")
        found.setdefault(owner, []).append(point)
    sources = [
        PluginSource(*owner, tuple(sorted(points, key=lambda point: point.name))) for owner, points in found.items()
    ]
    return sorted(sources, key=_rank)


def discover(group: str = GROUP) -> list[PluginSource]:
    """The installed distributions with entry points in the group, restricted by GRADEST_LOAD_PLUGINS."""
    sources = installed(group)
    restriction = os.environ.get("GRADEST_LOAD_PLUGINS")
    if restriction is not None:
        wanted = {_normalised(name) for name in restriction.split(",") if name.strip()}
        anywhere = [*installed(GROUP), *installed(COMMANDS)]
        missing = wanted - {_normalised(source.distribution) for source in anywhere}
        sources = [source for source in sources if source.built_in or _normalised(source.distribution) in wanted]
        sources += [PluginSource(name, "", ()) for name in missing]
    return sorted(sources, key=_rank)


def find(argument: str) -> PluginSource:
    """The plugin that an argument names, nothing of it imported yet.

    It is, in this order: the folder of a project, whose pyproject.toml has the entry points, installed or not; a .py file; an
    installed distribution; the folder of a package; an importable module. Raises UnknownPlugin if it is none of them, and
    PluginError for a project without entry points or a file whose module name is taken.
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
        f"{argument!r} is no installed distribution with plugins, no importable module, no .py file, and no folder of a project"
    )


def _project(folder: Path) -> PluginSource:
    """What a pyproject.toml says; modules lie beside it or under src."""
    path = folder / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        points: Mapping[str, str] = project.get("entry-points", {}).get(GROUP, {})
        found = tuple(_point(name, target) for name, target in sorted(points.items()))
    except (ValueError, AttributeError, TypeError) as error:
        raise PluginError(f"{path} cannot be read: {error}") from error
    if not found:
        raise PluginError(f'{path} has no entry points of plugins: [project.entry-points.{GROUP}] name = "module"')
    version = str(project.get("version", ""))
    return PluginSource(str(project.get("name", folder.name)), version, found, (folder, folder / "src"))


def _file(path: Path) -> PluginSource:
    """A module by its file, with the packages that it is in."""
    folder, names = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    module = ".".join(names).removesuffix(".__init__")
    there = getattr(sys.modules.get(module), "__file__", None) or ""
    if module in sys.modules and Path(there).resolve() != path:
        raise PluginError(
            f"{path}: another module is named {module!r} ({there or 'built in'}); give the file another name"
        )
    return PluginSource(module, "", (_point(module, module),), (folder,))


def _point(name: str, target: str) -> EntryPoint:
    return EntryPoint(name, target, GROUP)


def _is_module(name: str) -> bool:
    """Whether the module, or the package that it would be in, is importable."""
    top = name.partition(".")[0]
    try:
        return top.isidentifier() and find_spec(top) is not None
    except ValueError:  # of a module that is no file, such as __main__
        return True


def _rank(source: PluginSource) -> tuple[bool, str]:
    return not source.built_in, _normalised(source.distribution)


def _normalised(distribution: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
