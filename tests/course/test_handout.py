"""The handout: a page that loads nothing, and a PDF of one page where there is a browser to print it."""

import re

import pytest

from dphrl_lite.course import handout


def test_the_page_holds_its_tables_and_loads_nothing():
    page = handout.page()
    assert page.count("<table>") == 2 and "Diversity-Preserving Hybrid RL" in page
    assert not re.search(r"(?:src|href)=|@import|url\(", page)
    assert "¶" not in page


def test_it_prints_to_one_page_of_paper(tmp_path):
    written = handout.build(tmp_path)
    if len(written) == 1:
        pytest.skip("no Chromium or Google Chrome here")
    assert handout.page_count(written[1]) == 1
    assert re.search(rb"/MediaBox\s*\[0 0 59[45]\S* 84[12]", written[1].read_bytes()), "no A4"


def test_a_longer_text_takes_more_pages_and_is_counted(tmp_path):
    source = tmp_path / "long.md"
    source.write_text("# Long\n\n" + "A paragraph.\n\n" * 200)
    written = handout.build(tmp_path, source)
    if len(written) == 1:
        pytest.skip("no Chromium or Google Chrome here")
    assert handout.page_count(written[1]) > 1


def test_without_a_browser_there_is_the_page_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(handout, "find_browser", lambda: None)
    assert [path.name for path in handout.build(tmp_path)] == ["handout.html"]
