"""The documents: generated ones are current, links lead somewhere, and the citation file is valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradest
from gradest.analysis import catalog

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "gradest", "plugins", "service", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def links(path: Path) -> list[str]:
    """The targets of all links and images that do not name another site."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """The names by which links reach the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in links(path):
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), f"{path.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(found), f"{path.name} links to {target}, which is no heading"


def test_the_links_are_found() -> None:
    """The test of links would pass if `links` or `anchors` found nothing."""
    assert "docs/reference/words.md" in links(ROOT / "README.md")
    assert "#binary-vae" in links(ROOT / "docs/results/reproduction.md")
    assert "the-table-of-bengio-et-al-2013" in anchors(ROOT / "docs/results/reproduction.md")


def pages(path: Path) -> list[str]:
    """The pages in the tables of contents of a page of the site."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for tree in trees for line in tree.split("\n\n")[-1].splitlines()]
    return [f"{line.rpartition('<')[2].rstrip('>')}.md" for line in lines]


def test_every_document_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        found = {path.parent / target.partition("#")[0] for path in new for target in [*links(path), *pages(path)]}
        new = {path.resolve() for path in found if path.suffix == ".md" and path.is_file()} - reached
    assert {*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"} <= reached
    assert ROOT / "docs/tutorials/invent.md" in reached  # of a table of contents


def test_the_readme_takes_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_image_is_shown() -> None:
    shown = {(path.parent / target).resolve() for path in DOCUMENTS for target in links(path)}
    assert {*(ROOT / "docs/results/images").iterdir()} <= shown


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    for line in ("cff-version: 1.2.0", f"version: {gradest.__version__}", "    doi: 10.48550/arXiv.1308.3432"):
        assert f"\n{line}\n" in f"\n{text}"


def test_the_table_of_estimators_is_current() -> None:
    text = (ROOT / "docs/results/estimators.md").read_text()
    assert text.endswith(catalog.estimators_to_markdown() + "\n"), (
        "replace the table in docs/results/estimators.md by the output of `gradest list estimators --markdown`"
    )
