"""What the site asks of Sphinx beside its own extensions: formulas by KaTeX, docstrings in Markdown, and strict checks."""

from __future__ import annotations

import inspect
from collections import Counter
from importlib import import_module
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

from api import MODULES, home_of, public_names
from gradest.analysis.pages.plugins import KINDS

_LOG = logging.getLogger(__name__)
_MOST_SECONDS = 600  # of a page that runs code: five times what one may take on two idle cores


def setup(app: Sphinx) -> dict[str, Any]:
    """Add them to an application of Sphinx."""
    app.add_html_math_renderer("katex", (_write_inline_maths, None), (_write_maths, None))
    app.connect("config-inited", _set_static_path)
    app.connect("env-check-consistency", _check_times)
    app.connect("env-check-consistency", _check_names)
    app.connect("doctree-resolved", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write_inline_maths(writer: Any, node: nodes.math) -> None:
    writer.body.append(writer.starttag(node, "span", "", CLASS="math"))
    writer.body.append(writer.encode(node.astext()) + "</span>")
    raise nodes.SkipNode


def _write_maths(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", "", CLASS="math"))
    writer.body.append(writer.encode(node.astext()) + "</div>")
    raise nodes.SkipNode


def _set_static_path(app: Sphinx, config: Any) -> None:
    config.html_static_path = [str(app.srcdir / "_static")]  # by default they would be beside conf.py


def _check_times(app: Sphinx, env: Any) -> None:
    """Warn of a page whose code takes too long for a reader to run."""
    for name in env.found_docs:
        found = NbMetadataCollector.get_exec_data(env, name)
        if found and (found.get("runtime") or 0) > _MOST_SECONDS:
            _LOG.warning("%s ran for %.0f s, of %d that a page may take", name, found["runtime"], _MOST_SECONDS)


def _check_names(app: Sphinx, env: Any) -> None:
    """Warn of a public name that the reference lacks."""
    documented = env.domains["py"].objects
    for module in MODULES:
        for name in public_names(module):
            homes = {f"{module}.{name}", f"{home_of(module, name)}.{name}"}
            if not homes & set(documented) and not inspect.ismodule(getattr(import_module(module), name)):
                _LOG.warning("the reference lacks %s.%s", module, name)


def _link_names(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Make a link of `code` that is a public name or the name of a plugin, outside of headings and links."""
    places = _places(app)
    for literal in list(tree.findall(nodes.literal)):
        target = places.get(literal.astext().removesuffix("()"))
        if (
            target is None
            or target[0] == page
            or _is_inside(literal, (nodes.reference, nodes.title, addnodes.desc_signature))
        ):
            continue
        name, anchor = target
        link = nodes.reference("", "", internal=True, refuri=f"{app.builder.get_relative_uri(page, name)}{anchor}")
        literal.replace_self(link)
        link.append(literal)


def _is_inside(node: nodes.Node, kinds: tuple[type[nodes.Node], ...]) -> bool:
    parent = node.parent
    while parent is not None and not isinstance(parent, kinds):
        parent = parent.parent
    return parent is not None


def _places(app: Sphinx) -> dict[str, tuple[str, str]]:
    """Return the page and the anchor of each name: full names, classes by their own, and plugins that no other shares."""
    found = getattr(app, "_places_of_names", None)
    if found is None:
        found = {}
        for full, entry in app.env.domains["py"].objects.items():
            place = (entry.docname, f"#{entry.node_id}")
            found[full] = place
            parts = full.split(".")
            last = next((at for at, part in enumerate(parts) if part[:1].isupper()), None)
            if last is not None:
                found.setdefault(".".join(parts[last:]), place)
        pages = [name for name in app.env.found_docs if name.startswith(tuple(f"reference/{kind}/" for kind in KINDS))]
        counts = Counter(name.rpartition("/")[2] for name in pages)
        for name in pages:
            short = name.rpartition("/")[2]
            if counts[short] == 1:
                found.setdefault(short, (name, ""))
        app._places_of_names = found  # type: ignore[attr-defined]
    return found
