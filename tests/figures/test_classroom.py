"""The figure of a class, from what thirty students have pasted."""

import re
from pathlib import Path

from dphrl_lite import figures
from dphrl_lite.course import check

LINES = [
    f"Notebook 06: {9 - n % 4} of 9 right, open: {' '.join(map(str, range(9, 9 - n % 4, -1)))}." for n in range(30)
]
LINES += ["Notebook 01: 5 of 5 right."]
VOTES = ["vote: dph-js"] * 18 + ["> Vote: DPH-F"] * 12


def test_thirty_lines_and_votes_are_drawn():
    figure = figures.class_progress(check.collected("\n".join(LINES + VOTES)))
    stuck, votes = figure.data
    assert dict(zip(stuck.y, stuck.customdata, strict=True)) == {"06-7": 7, "06-8": 14, "06-9": 22}
    assert max(stuck.x) == 22 / 30
    assert dict(zip(votes.y, votes.x, strict=True)) == {"dph-js": 18, "dph-f": 12}
    assert figure.layout.title.text.startswith("31 lines, 9 of them")


def test_without_votes_or_without_lines_there_is_a_figure_too():
    assert len(figures.class_progress(check.collected("\n".join(LINES))).data) == 1
    assert figures.class_progress(check.collected("nothing")).layout.title.text.startswith("0 lines")
    assert len(figures.class_progress(check.collected("\n".join(VOTES))).data) == 2


def test_the_cell_of_the_teaching_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/teaching.md").read_text()
    (cell,) = re.findall(r"```python\n(.*?check\.collected.*?)```", page, flags=re.S)
    (tmp_path / "lines.txt").write_text("\n".join(LINES + VOTES))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(cell, scope)
    assert len(scope["table"]) == 61
