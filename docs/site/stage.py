"""Gathers the source of the site in one folder: the documents of this repository, and the pages that are generated."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from api import MODULES, write_api
from commands import write_commands
from gradest.analysis.pages.plugins import KINDS, write_pages
from http_api import write_http

__all__ = ["ROOT", "documents", "stage"]

ROOT = Path(__file__).resolve().parents[2]
_DOCS = ROOT / "docs"
_KATEX = ROOT / "service/gradest_service/page/vendor"
_ELSEWHERE = {
    "README.md": "start/readme.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "CHANGELOG.md": "reference/changelog.md",
}
"""Documents that are not in docs/, and their places in the site."""

_PYTHON = """\
# Python

Every public name, by module. A plugin imports `gradest.contract`, `gradest.random` and `gradest.errors`, and nothing else of
gradest; the names that most plugins need are also in `gradest` itself.
"""

_CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def documents() -> dict[Path, PurePosixPath]:
    """Return the documents of this repository, and the place of each in the site."""
    own = {path: PurePosixPath(path.relative_to(_DOCS).as_posix()) for path in sorted(_DOCS.rglob("*.md"))}
    return own | {ROOT / name: PurePosixPath(place) for name, place in _ELSEWHERE.items()}


def stage(out: Path) -> None:
    """Write the source of the site into a folder, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    places = documents()
    for source, place in places.items():
        text = _relink(source.read_text(encoding="utf-8"), source, place, places, out)
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    _generate(out / "reference")
    _copy(_pictures(), _DOCS, out)
    _copy((Path(__file__).parent / "static").iterdir(), Path(__file__).parent / "static", out / "_static")
    _copy([_KATEX / "katex.min.js", _KATEX / "katex.min.css", *(_KATEX / "fonts").iterdir()], _KATEX, out / "_static")


def _generate(out: Path) -> None:
    """Write the pages of the reference that follow from the code."""
    write_commands(out / "commands.md")
    write_http(out / "http.md")
    write_pages("gradest", out)
    for kind in KINDS:
        _add_contents(out / kind / "index.md", [path.stem for path in sorted((out / kind).glob("*.md"))])
    modules = write_api(out / "api")
    (out / "api/index.md").write_text(_PYTHON, encoding="utf-8")
    _add_contents(out / "api/index.md", [f"{MODULES[name]} <{name}>" for name in modules], hidden=False)
    _add_contents(
        out / "index.md", ["api/index", *(f"{kind}/index" for kind in KINDS), "commands", "http"], hidden=False
    )


def _add_contents(page: Path, names: Sequence[str], hidden: bool = True) -> None:
    """Append a table of contents to a page."""
    option = ":hidden:" if hidden else ":maxdepth: 1"
    lines = ["", "```{toctree}", option, "", *(name for name in names if name != "index"), "```", ""]
    page.write_text(page.read_text(encoding="utf-8") + "\n".join(lines), encoding="utf-8")


def _pictures() -> Iterable[Path]:
    return (path for suffix in ("svg", "png") for path in _DOCS.rglob(f"*.{suffix}"))


def _copy(files: Iterable[Path], base: Path, out: Path) -> None:
    for path in files:
        target = out / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _relink(text: str, source: Path, place: PurePosixPath, places: dict[Path, PurePosixPath], out: Path) -> str:
    """Return the text with the links that its place in the site requires. Links in code stay as they are."""

    def replace(link: re.Match[str]) -> str:
        path, hash_, anchor = link["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        found = (source.parent / path).resolve()
        if found.is_dir():
            return link["text"]
        if found.exists() and found not in places and not found.is_relative_to(_DOCS):
            _copy([found], ROOT, out / "files")  # the site has a copy that can be downloaded
            target = PurePosixPath("files") / found.relative_to(ROOT).as_posix()
        elif found.exists():
            target = places.get(found) or PurePosixPath(found.relative_to(_DOCS).as_posix())
        else:
            return link[0]  # a page that is generated, or a fault that the build reports
        return f"{link['image']}[{link['text']}]({os.path.relpath(target, place.parent)}{hash_}{anchor})"

    pieces, end = [], 0
    for code in _CODE.finditer(text):
        pieces += [_LINK.sub(replace, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _LINK.sub(replace, text[end:])])
