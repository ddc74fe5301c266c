"""The pages of plugins that `gradest docs` writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradest
from gradest.analysis.pages.examples import example_of
from gradest.analysis.pages.plugins import KINDS, write_pages
from gradest.analysis.pages.prose import cell, to_markdown
from gradest.errors import InvalidInput

PLUGINS = [cls for kind in KINDS for cls in getattr(gradest.registry, kind).values()]
MODULE = '''
import torch
import gradest


class Coin(gradest.LogisticBinary):
    """A coin that shows 0 or 1.

    P(h = 1) = σ(2 a_i), for `[*batch, units]` of *any* size.
    """

    name, summary, formula = "coin_of_a_test", "heads or tails", r"P(h = 1) = \\sigma(2a)"

    def probability(self, a):
        """Return σ(2a)."""
        return torch.sigmoid(2 * a)


class Shy(gradest.ScoreFunction):
    """Half of REINFORCE."""

    name, summary = "shy_of_a_test", "half of the score function"

    def bias(self, neuron):
        """Return that it is biased."""
        return gradest.Bias.BIASED

    def credit(self, loss, state, features=None):
        """Return half of the losses."""
        return loss / 2 / len(loss), state
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a neuron and an estimator, which are registered."""
    name = "coins_of_a_test"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    for cls in (module.Coin, module.Shy):
        gradest.registry.register(cls)
    yield name
    for cls in (module.Coin, module.Shy):
        gradest.registry.unregister(cls)
    del sys.modules[name]


def test_a_third_party_gets_pages_of_its_own_plugins_alone(package: str, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    out = tmp_path / "pages"
    written = write_pages(package, out)
    assert {path.relative_to(out).as_posix() for path in written} == {
        "neurons/coin_of_a_test.md",
        "neurons/index.md",
        "estimators/shy_of_a_test.md",
        "estimators/index.md",
    }
    page = (out / "neurons/coin_of_a_test.md").read_text()
    for text in ("$$\nP(h = 1) = \\sigma(2a)\n$$", "`[*batch, units]`", "a\\_i", "\\*any\\*", "class Coin(gradest"):
        assert text in page
    assert "| [`shy_of_a_test`](../estimators/shy_of_a_test.md) | loss | biased |" in page
    assert "| `rloo` | loss | none |" in page  # whose page is not written here
    assert "\n## Options\n" in page  # which the service's page links to
    assert (
        "| [`coin_of_a_test`](../neurons/coin_of_a_test.md) | biased | 1 |"
        in (out / "estimators/shy_of_a_test.md").read_text()
    )
    for path in written:
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert (path.parent / target).is_file(), f"{path.name} links to {target}"


def test_a_package_without_plugins_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="json"):
        write_pages("json", tmp_path)


@pytest.mark.parametrize("cls", PLUGINS, ids=lambda cls: f"{cls.__module__.partition('.')[0]}.{cls.name}")
def test_the_example_of_a_plugin_runs(cls: type[gradest.Plugin]) -> None:
    program = example_of(cls)
    assert f'"{cls.name}"' in program
    exec(compile(program, cls.name, "exec"), {})


def test_docstrings_become_markdown() -> None:
    docstring = """Return a_i * b for `a_i`.

        The factor is <b>, in $.
        b: the factor, of
            two lines.
        Returns: nothing that b names.

        Precision: a word in front of a colon
        is no name.

        option: what it does.

            code(*here)

        >>> 1 + 1
        2
        """
    assert to_markdown(docstring, {"b"}).split("\n\n") == [
        "Return a\\_i \\* b for `a_i`.",
        "The factor is \\<b\\>, in \\$.",
        "- `b`: the factor, of\n  two lines.",
        "Returns: nothing that b names.",
        "Precision: a word in front of a colon\nis no name.",
        "- `option`: what it does.",
        "```python\ncode(*here)\n```",
        "```pycon\n>>> 1 + 1\n2\n```",
    ]


def test_cells_stay_in_their_row() -> None:
    assert cell("|a|\n≤ 1, a_b, `c`") == "\\|a\\| ≤ 1, a\\_b, `c`"
