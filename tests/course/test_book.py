"""The static book of two small notebooks and a text; tests/browser/test_book.py opens that of the kit's own notebooks."""

import re
from pathlib import Path

import nbformat
import pytest

from dphrl_lite.course import book, install

code, words = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
FIRST = [
    words(
        "# 00 · First\n\n**What you will learn:** to *see* $u^2$.\n\n**Minutes:** 5 · **Next:** [01](01_second.ipynb#end)"
    ),
    code(install.FIRST_CELL, metadata={"tags": ["setup"]}),
    code("steps = 100", metadata={"nbmake": {"mock": {"steps": 2, "place": "runs/quick"}}}),
    code("import sys\nprint('steps', steps)\nprint('noise', file=sys.stderr)"),
    code("import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]), {'title': 'still'})"),
    code("open('made.txt', 'w').write('by the first')"),
]
SECOND = [
    words(
        "# 01 · Second\n\n**What you will learn**\n\n- to draw;\n- to run.\n\n"
        "![dot](images/dot.png) and [the words](words.md), [a solution](solutions/01_second.ipynb)."
    ),
    code("open('made.txt').read()"),
    code(
        "import ipywidgets\nfrom dphrl_lite.widgets import Live\nimport plotly.graph_objects as go\n"
        "slider = ipywidgets.FloatSlider(0.5, description='strength')\n"
        "Live({'s': slider}, lambda s: [go.Figure(go.Scatter(y=[s]), {'title': 'moving'}), '<b>said</b>'])"
    ),
    code("1 / 0", metadata={"tags": ["raises-exception"]}),
]
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000000000500010d0a2db40000000049454e44ae426082"
)


def write(folder: Path, name: str, cells: list) -> None:
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "images").mkdir()
    (folder / "images/dot.png").write_bytes(DOT)
    (folder / "solutions").mkdir()
    write(folder / "solutions", "01_second.ipynb", [words("# no page")])
    (folder / "words.md").write_text("# The words\n\nBack to [the first](00_first.ipynb).\n")
    write(folder, "00_first.ipynb", FIRST)
    write(folder, "01_second.ipynb", SECOND)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pages(folder, cache, tmp_path_factory):
    """The text of each page of the quick edition, by name."""
    out = tmp_path_factory.mktemp("book")
    return {path.stem: path.read_text() for path in book.build(out, quick=True, folder=folder, cache=cache)} | {
        "out": out
    }


def body(page: str) -> str:
    return page[page.index("<body") :]


def test_there_is_a_page_for_each_and_an_index_first(pages):
    assert list(pages) == ["index", "00_first", "01_second", "words", "out"]
    index = body(pages["index"])
    assert '<a href="00_first.html">00 · First</a>' in index and "to <em>see</em> $u^2$." in index
    assert "to draw; to run." in index
    assert '<a href="words.html">The words</a>' in index


def test_no_page_loads_anything_from_elsewhere(pages):
    for name in ("index", "00_first", "01_second", "words"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="([^"]*)"', pages[name])
        assert {url.partition("?")[0] for url in loaded if not url.startswith("data:")} == {
            "plotly.min.js",
            "book.js",
            "mathjax/MathJax.js",
            "book.css",
        }
        assert not re.search(r"cdnjs|unpkg|cdn\.plot", pages[name])


def test_every_link_leads_to_a_file(pages):
    for name in ("index", "00_first", "01_second", "words"):
        for url in re.findall(r'<a [^>]*href="([^"#]+)', body(pages[name])):
            assert (pages["out"] / url).is_file(), f"{name} links to {url}"
    assert 'href="01_second.html#end"' in pages["00_first"]


def test_plotly_and_mathjax_are_written_once(pages):
    assert (pages["out"] / "plotly.min.js").stat().st_size > 1e6
    assert len(pages["01_second"]) < 1e6, "a page holds its own copy of plotly.js"
    assert (pages["out"] / "mathjax/MathJax.js").is_file()


def test_the_first_cell_is_left_out(pages):
    assert "address" not in body(pages["00_first"])


def test_the_quick_edition_shows_the_sizes_it_ran_with_and_says_so(pages):
    page = body(pages["00_first"])
    assert "steps 2" in page
    assert "runs/quick" in page
    assert "Quick edition" in page and "Quick edition" in pages["index"]


def test_standard_error_is_left_out(pages):
    assert "noise" not in re.sub(r'<div class="highlight.*?</div>', "", body(pages["00_first"]), flags=re.S)


def test_notebooks_run_in_one_folder_in_order_and_outside_the_tree(pages, folder):
    assert "by the first" in body(pages["01_second"])
    assert not (folder / "made.txt").exists()


def test_a_figure_is_there_to_be_drawn(pages):
    assert body(pages["00_first"]).count("Plotly.newPlot(") == 1
    assert '"still"' in pages["00_first"]


def test_figures_say_themselves_in_words(pages):
    assert '"alt":"still' in pages["00_first"] and '"alt":"moving' in pages["01_second"]


def test_a_widget_shows_its_figures_and_what_its_controls_say(pages):
    page = body(pages["01_second"])
    assert page.count("Plotly.newPlot(") == 1 and '"moving"' in page
    assert "strength: 0.5" in page and "<b>said</b>" in page
    assert "make lab" in page


def test_a_picture_beside_the_notebook_is_in_the_page(pages):
    assert '<img alt="dot" src="data:image/png;base64,' in pages["01_second"]


def test_pages_lead_to_their_neighbours(pages):
    before, everything, after = re.findall(
        r"<a href=\"(\S+)\.html\">", re.search("<nav.*?</nav>", pages["01_second"])[0]
    )
    assert (before, everything, after) == ("00_first", "index", "words")


@pytest.fixture
def no_kernel(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(book, "NotebookClient", refuse)


def test_what_has_not_changed_is_not_run_again(pages, folder, cache, tmp_path, no_kernel):
    again = book.build(tmp_path / "again", quick=True, folder=folder, cache=cache)
    assert "steps 2" in again[1].read_text()


def test_new_words_need_no_new_run_and_new_code_does(pages, folder, cache, no_kernel):
    def build(cells):
        first = nbformat.v4.new_notebook(cells=cells)
        second = book.read(folder / "01_second.ipynb", quick=True)
        places = book.places({"00_first": first, "01_second": second}, book.current(cache, "-quick"))
        assert places["01_second"].is_dir() or len(cells) > len(old) + 1  # what comes after new code is run again, too
        return book.executed(first, places["00_first"])

    old = [cell for cell in book.read(folder / "00_first.ipynb", quick=True).cells if cell.cell_type == "code"]
    found = build([words("# Other words"), *old])
    assert found.cells[2].outputs[0].text == "steps 2\n"
    with pytest.raises(AssertionError, match="a kernel was started"):
        build([words("# Other words"), *old, code("3")])


def test_what_an_older_package_made_is_removed(tmp_path):
    (tmp_path / "0123-quick/runs").mkdir(parents=True)
    (tmp_path / "0123-full").mkdir()
    assert book.current(tmp_path, "-quick").name == f"{book.logic()}-quick"
    assert [path.name for path in tmp_path.iterdir()] == ["0123-full"]


def test_a_cell_that_fails_is_an_error_that_names_the_notebook(tmp_path):
    write(tmp_path, "02_broken.ipynb", [words("# Broken"), code("1 / 0")])
    with pytest.raises(RuntimeError, match=r"(?s)02_broken.*ZeroDivisionError"):
        book.build(tmp_path / "out", folder=tmp_path, cache=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/**/*.ipynb"))


def test_a_notebook_begins_with_what_those_before_it_left(tmp_path):
    write(tmp_path, "00_leaves.ipynb", [words("# A"), code("open('left', 'a').write('apple')")])
    write(tmp_path, "01_finds.ipynb", [words("# B"), code("print(open('left').read())")])
    where = {"folder": tmp_path, "cache": tmp_path / "cache"}
    assert "apple\n" in book.build(tmp_path / "out", **where)[2].read_text()
    write(tmp_path, "00_leaves.ipynb", [words("# A"), code("open('left', 'a').write('pear')")])
    again = book.build(tmp_path / "out", **where)[2].read_text()
    assert "pear\n" in again and "applepear" not in again


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"description": "alpha", "value": 0.5}, "alpha: 0.5"),
        ({"description": "steps", "value": 0}, "steps: 0"),
        ({"description": "modes", "_options_labels": ["two", "three"], "index": 1}, "modes: three"),
        ({"description": "modes", "_options_labels": ["two"], "index": None}, "[modes]"),
        ({"description": "all", "value": True}, "☑ all"),
        ({"description": "all", "value": False}, "☐ all"),
        ({"description": "Start"}, "[Start]"),
    ],
)
def test_what_a_control_says(state, told):
    assert book.control_text(state) == told


def test_a_progress_bar_leaves_nothing():
    models = {
        "box": {"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_bar", "IPY_MODEL_words"]}},
        "bar": {"model_name": "FloatProgressModel", "state": {"description": "", "value": 3.0}},
        "words": {"model_name": "HTMLModel", "state": {"value": "100 %"}},
    }
    assert book.widget_html(models, "box") == ""


def test_the_kit_s_own_sources_are_its_notebooks_and_texts():
    names = [path.name for path in book.sources()]
    assert names[0] == "00_start_here.ipynb"
    assert {path.name for path in book.NOTEBOOKS.glob("*.ipynb")} <= set(names)
