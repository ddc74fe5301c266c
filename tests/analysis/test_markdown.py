"""Tables in Markdown."""

from gradest.analysis.markdown import table


def test_a_table_has_a_line_for_the_titles_the_alignment_and_each_row() -> None:
    assert table(["name", "K"], [["rloo", 2], ["arm", 1.5]], align="lr") == (
        "| name | K |\n| --- | ---: |\n| rloo | 2 |\n| arm | 1.5 |"
    )


def test_a_table_without_rows_is_its_head() -> None:
    assert table(["name"], [], align="l") == "| name |\n| --- |"
