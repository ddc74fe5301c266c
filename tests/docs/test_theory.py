"""The page of theory reaches every neuron and estimator of the registry."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import gradest
from gradest.analysis.pages.plugins import KINDS

THEORY = Path(__file__).parents[2] / "docs/explanation/theory.md"
SHARED = Counter(name for kind in KINDS for name in getattr(gradest.registry, kind))
"""How many plugins bear a name. The site makes a link of `name` if it is one."""


def linked(text: str) -> set[tuple[str, str]]:
    """Return the kinds and names to whose pages the prose leads: by `name`, or by a link where two plugins share a name."""
    prose = re.sub(r"^```.*?^```$|^#[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    explicit = re.findall(r"\{doc\}`\w+ <\.\./reference/(\w+)/(\w+)>`", prose)
    names = {name for name in re.findall(r"`(\w+)`", prose) if SHARED[name] == 1}
    return {*explicit, *((kind, name) for kind in KINDS for name in getattr(gradest.registry, kind) if name in names)}


@pytest.mark.parametrize("kind", ["neurons", "estimators"])
def test_every_built_in_plugin_is_linked_from_the_theory(kind: str) -> None:
    built_in = {
        name for name, cls in getattr(gradest.registry, kind).items() if cls.__module__.startswith(f"gradest_{kind}.")
    }
    assert len(built_in) >= 30
    lacking = built_in - {name for of, name in linked(THEORY.read_text()) if of == kind}
    assert not lacking, f"docs/explanation/theory.md has no link to {sorted(lacking)}"


def test_links_in_code_and_of_shared_names_do_not_count() -> None:
    assert linked("`rloo` and\n```{code-cell} python\n`arm`\n```\n# `arms`\n") == {("estimators", "rloo")}
    assert SHARED["gumbel_softmax"] == 2
    assert linked("`gumbel_softmax`") == set()
    assert linked("{doc}`gumbel_softmax <../reference/neurons/gumbel_softmax>`") == {("neurons", "gumbel_softmax")}
