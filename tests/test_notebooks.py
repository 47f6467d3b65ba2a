"""What every notebook has to have: a head that says what, how long and where next; short cells that define no logic; links
that lead somewhere. That notebooks run is seen elsewhere (the quick book, nbmake, browser); exercises: tests/check."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOKS = {path.name: nbformat.read(path, 4) for path in PATHS}
NAMES = list(BOOKS)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")
MINUTES = re.compile(r"\*\*Minutes:\*\* (\d+)")
ROW = re.compile(r"^\| \[?(\d\d) [^|]*\| (\d+) \|", re.MULTILINE)  # of the tables of notebooks


def prose(name: str) -> str:
    return "\n\n".join(cell.source for cell in BOOKS[name].cells if cell.cell_type == "markdown")


def head(name: str) -> str:
    """The Markdown before the first cell that a reader runs."""
    cells = BOOKS[name].cells
    own = next(i for i, cell in enumerate(cells) if cell.cell_type == "code" and cell.id != "first-cell")
    return "\n\n".join(cell.source for cell in cells[:own] if cell.cell_type == "markdown")


def test_they_are_numbered_without_a_gap():
    assert [name[:2] for name in NAMES] == [f"{i:02d}" for i in range(10)]


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_what_is_learnt_how_long_it_takes_and_where_it_goes(name):
    number, words = int(name[:2]), head(name)
    assert words.startswith(f"# {name[:2]} · ")
    assert "**What you will learn" in words
    assert MINUTES.search(words)
    assert "](glossary.md)" in words
    if number > 0:
        assert f"**Before:** [{number - 1:02d} " in words
        assert "**So far:**" in words
    if number < 9:
        assert f"**Next:** [{number + 1:02d} " in words


@pytest.mark.parametrize("name", NAMES)
def test_the_end_says_what_to_take_away_and_links_on(name):
    number, words = int(name[:2]), prose(name)
    ending = words[words.index("## What to take away") :]
    if number < 9:
        assert f"({NAMES[number + 1]})" in ending
    if number > 0:
        assert f"({NAMES[number - 1]})" in ending


@pytest.mark.parametrize("name", NAMES)
def test_code_cells_are_short_and_define_no_logic(name):
    for cell in BOOKS[name].cells:
        if cell.cell_type != "code":
            continue
        assert len(cell.source.splitlines()) <= 15, cell.source
        solution = cell.metadata.get("solution", "")
        assert len(solution.splitlines()) <= 15, solution
        if "exercise" in cell.metadata:  # there the student writes functions
            continue
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        defined = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert not defined, f"{defined[0].name} belongs into the package"


TEXTS = [*PATHS, *(ROOT / "notebooks").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_every_table_has_its_head(path):  # an empty line in the middle cuts a table in two, and the rest is raw text
    words = prose(path.name) if path.suffix == ".ipynb" else path.read_text()
    for table in re.findall(r"(?:^\|.*\n?)+", words, flags=re.M):
        assert re.fullmatch(r"\|[-| :]+\|", table.splitlines()[1]), table


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_links_lead_to_files_that_are_there(path):
    words = prose(path.name) if path.suffix == ".ipynb" else re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    broken = [link[0] for link in LINK.findall(words) if not (path.parent / link[0]).exists()]
    assert broken == []


@pytest.mark.parametrize("table", ["README.md", "notebooks/00_start_here.ipynb"])
def test_the_tables_of_notebooks_tell_the_minutes_that_the_notebooks_tell(table):
    words = prose("00_start_here.ipynb") if table.endswith(".ipynb") else (ROOT / table).read_text()
    told = {name[:2]: MINUTES.search(head(name))[1] for name in NAMES}
    assert dict(ROW.findall(words)) == told


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in ("06", "08")])
def test_figures_stand_in_one_column_where_a_window_is_narrow(name):  # `widgets.Plot` does that
    for cell in BOOKS[name].cells:
        assert cell.cell_type != "code" or not re.search(r"^figures\.", cell.source, flags=re.M), cell.source
