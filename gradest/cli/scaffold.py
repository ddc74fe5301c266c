"""The files that `gradest new-plugin` writes.

They are made from those in gradest/templates/plugin, in which `$name` and `$package` stand for the distribution and its module.
"""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

from gradest.errors import InvalidInput

__all__ = ["write_plugin"]

_TEMPLATES = Path(__file__).parents[1] / "templates" / "plugin"
_SUFFIX = ".template"
_PACKAGE = "package"  # the folder that gets the name of the module
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 40
_OWN_FOLDERS = ("test", "tests")


def write_plugin(name: str, directory: Path) -> Path:
    """Write the package into a new folder `name` of the directory, and return that folder.

    Raises InvalidInput, and writes nothing, if the name cannot be that of a distribution and, with _ for -, of a module, or if
    the folder or the module exists already.
    """
    package, folder = _package(name), directory / name
    if folder.exists() or folder.is_symlink():
        raise InvalidInput(
            f"{folder} exists already, and nothing in it was changed; choose another name or another --directory"
        )
    if not directory.is_dir():
        raise InvalidInput(f"{directory} is not a folder")
    files = {path.relative_to(_TEMPLATES): path for path in sorted(_TEMPLATES.rglob(f"*{_SUFFIX}"))}
    for place, path in files.items():
        parts = [package if part == _PACKAGE else part.removesuffix(_SUFFIX) for part in place.parts]
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(path.read_text(encoding="utf-8")).substitute(name=name, package=package)
        target.write_text(text, encoding="utf-8")
    return folder


def _package(name: str) -> str:
    """Return the name of the module of the distribution. Raises InvalidInput if it cannot be one."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise InvalidInput(
            f"{name!r} cannot be the name of a plugin. A name has at most {_LONGEST} characters and consists of lower-case words"
            " joined by - or _, the first of which starts with a letter, such as my-plugin"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package):
        raise InvalidInput(f"{package!r} is a keyword of Python; choose another name")
    # a folder without __init__.py has a spec too, but without an origin
    spec = find_spec(package)
    if package in _OWN_FOLDERS or (spec is not None and spec.origin is not None):
        raise InvalidInput(f"a module {package!r} exists already, and the plugin's would hide it; choose another name")
    return package
