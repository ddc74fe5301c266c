"""The leaderboard in a browser: the kept results, sorted and filtered, and the card of an estimator."""

import pytest

from gradest.analysis.leaderboard import kept_results, read_boards, standings

pytestmark = pytest.mark.browser

BOARDS = read_boards(kept_results())


def test_the_leaderboard_ranks_and_filters(visit):
    page = visit("#/leaderboard")
    page.get_by_role("heading", name="Leaderboard").wait_for()
    assert page.locator("section h2").all_inner_texts() == [f"{one.problem.key}: {one.problem.title}" for one in BOARDS]
    board = BOARDS[0]
    section = page.locator("section").first
    names = section.locator("tbody th")
    assert names.all_inner_texts() == [row.entry.label for row in standings(board)]
    assert f"Tuned: {board.problem.tuned}" in section.inner_text()
    section.get_by_role("button", name="seconds").click()
    by_seconds = sorted(standings(board), key=lambda row: row.seconds)
    assert names.all_inner_texts() == [row.entry.label for row in by_seconds]
    section.locator("canvas").wait_for()  # of the curves
    page.get_by_label("unbiased only").check()
    assert {*names.all_inner_texts()} == {
        row.entry.label for row in standings(board) if row.entry.claim.startswith("none")
    }
    page.get_by_label("estimator", exact=True).fill("RLO")
    assert names.all_inner_texts() == ["rloo"]
    page.get_by_label("problem", exact=True).select_option(BOARDS[-1].problem.key)
    assert page.locator("section:visible h2").count() == 1
    assert "leaderboard?" in page.url
    page.reload()
    page.locator("section:visible tbody th").first.wait_for()
    assert page.locator("section:visible tbody th").all_inner_texts() == ["rloo"]
    page.get_by_label("estimator", exact=True).fill("nobody")
    page.get_by_text("No estimator with results matches.").wait_for()


def test_an_estimator_has_a_card_to_which_a_link_leads(visit):
    page = visit("#/leaderboard")
    page.get_by_role("link", name="rloo", exact=True).first.click()
    page.get_by_role("heading", name="rloo").wait_for()
    assert page.url.endswith("#/leaderboard/rloo")
    rows = page.locator("tbody tr").all_inner_texts()
    found = {one.problem.key: len(standings(one)) for one in BOARDS if "rloo" in one.entries}
    assert len(rows) == len(found)
    assert all(
        any(row.startswith(f"{key}\t") and f" of {count}" in row for row in rows) for key, count in found.items()
    )
    assert "From gradest 0.1.0; needs loss." in page.locator("main").inner_text()
    page.goto(page.url.replace("rloo", "nobody"))
    page.get_by_text("There are no results of an estimator with this name.").wait_for()
