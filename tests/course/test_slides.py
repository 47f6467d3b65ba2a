"""Slides: where a notebook is cut, and one small deck that is built and, where there is a browser, shown without a network."""

import re

import nbformat
import pytest

from dphrl_lite.course import slides
from dphrl_lite.doctor import find_browser

code, words = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
CELLS = [
    words(
        "# 00 · First\n\n**What you will learn:** $u^2$.\n\n**Next:** [01](01_second.ipynb), [terms](glossary.md)"
        "\n\n## One\n\nText."
    ),
    code("x = 1"),
    code("import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]), {'title': 'still'})"),
    words("**What to look for:** it rises.\n\n### Exercise\n\nHow much?"),
    code("answer = ...\nprint(answer)", metadata={"exercise": "00-1"}),
    code("print('said')"),
    words("Between us.", metadata={"slideshow": {"slide_type": "skip"}}),
]
SECOND = [words("# 01 · Second\n\nBack to [00](00_first.ipynb).")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for name, cells in {"00_first": CELLS, "01_second": SECOND, "02_third": [words("# 02\n\nNo slide.")]}.items():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return slides.build(folder / "out", folder=folder, cache=folder / "cache", shown=("00", "01"))


def test_there_is_a_deck_for_each_of_the_shown_and_a_first_page(made):
    assert [path.name for path in made] == ["index.html", "00_first.html", "01_second.html"]
    assert 'href="00_first.html"' in made[0].read_text()


def test_nothing_is_loaded_from_elsewhere(made):
    for path in made:
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="([^"]*)"', path.read_text())
        beside = {url.partition("?")[0] for url in loaded if not url.startswith("data:")}
        assert beside == {
            *("plotly.min.js", "book.js", "mathjax/MathJax.js", "reveal.js", "reveal.css", "slides.js", "slides.css")
        }
        assert all((path.parent / url).is_file() for url in beside)
        assert not re.search(r"cdnjs|unpkg|cdn\.plot", path.read_text())


def test_links_lead_to_other_slides_or_become_words(made):
    page = made[1].read_text()
    assert 'href="01_second.html"' in page and "glossary" not in page and "terms" in page


def test_a_slide_begins_at_headings_at_outputs_and_at_what_to_look_for():
    notebook = nbformat.v4.new_notebook(cells=nbformat.from_dict(CELLS))
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": '<div class="plotly-graph-div"></div>'})
    ]
    notebook.cells[5].outputs = [nbformat.v4.new_output("stream", text="said\n")]
    found = slides.deck(notebook).cells
    told = [(cell.metadata.slideshow.slide_type, cell.source.split("\n")[0]) for cell in found]
    assert told == [
        ("slide", "# 00 · First"),
        ("slide", "## One"),
        ("subslide", "### One"),
        ("-", "import plotly.graph_objects as go"),
        ("subslide", "### One"),
        ("subslide", "### Exercise"),
        ("subslide", "### One"),
        ("-", "print('said')"),
    ]
    assert found[3].metadata.transient.remove_source and "transient" not in found[7].metadata


def test_a_heading_alone_stands_over_the_figure_that_follows():
    shown = code("1", outputs=[nbformat.v4.new_output("stream", text="1\n")])
    cells = slides.deck(nbformat.v4.new_notebook(cells=[words("# A\n\nText.\n\n## B"), shown])).cells
    assert [(cell.metadata.slideshow.slide_type, cell.source) for cell in cells] == [
        *(("slide", "# A\n\nText."), ("slide", "### B"), ("-", "1"))
    ]


def test_long_prose_is_cut_between_paragraphs_under_the_same_heading():
    paragraph = "word " * (slides.WORDS - 30)
    assert [piece[:6] for piece in slides.pieces(f"## Long\n\n{paragraph}\n\n{paragraph}")] == ["## Lon"] * 2
    listed = f"{paragraph}\n\nHere is what follows from all this, in the order of what it costs, cheap first:\n\n- {paragraph}"
    assert [piece.startswith("Here") for piece in slides.pieces(listed)] == [False, True]
    assert len(slides.pieces(f"**What to look for**\n\n{paragraph * 2}")) == 1


def test_the_show_opens_without_a_network_draws_its_figure_and_sets_its_tex(made):
    if not find_browser():
        pytest.skip("no Chromium or Google Chrome here")
    from playwright.sync_api import sync_playwright

    asked, wrong = [], []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(made[1].as_uri())
        page.wait_for_selector("section.present section.present[data-filled=yes] .MathJax", timeout=60_000)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.wait_for_selector("section.present section.present[data-filled=yes] .main-svg", timeout=60_000)
        figure, drawn = (
            page.locator(f"section.present section.present {part}").first.bounding_box()
            for part in (".plotly-graph-div", ".main-svg")
        )
        chromium.close()
    assert figure["width"] > 1000 and 400 < figure["height"] < 760
    assert figure["height"] == pytest.approx(drawn["height"], abs=2), "the figure is cut off"
    beside = made[1].parent.as_uri()
    assert [url for url in asked if not url.startswith((beside, "data:", "blob:"))] == [] and wrong == []
