"""What the site asks of Sphinx beside its own extensions: formulas by KaTeX, docstrings in Markdown, and strict checks."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_MOST_SECONDS = 120  # of a page that runs code


def setup(app: Sphinx) -> dict[str, Any]:
    """Add them to an application of Sphinx."""
    app.add_html_math_renderer("katex", (_write_inline_maths, None), (_write_maths, None))
    app.connect("config-inited", _set_static_path)
    app.connect("env-check-consistency", _check_times)
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
