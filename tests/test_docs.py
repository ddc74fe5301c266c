"""The generated documents are current."""

from pathlib import Path

from gradest.analysis import catalog

ROOT = Path(__file__).parents[1]


def test_the_table_of_estimators_is_current():
    text = (ROOT / "ESTIMATORS.md").read_text()
    assert text.endswith(catalog.estimators_to_markdown() + "\n"), (
        "write it again: gradest list estimators --markdown, under the head of ESTIMATORS.md"
    )
