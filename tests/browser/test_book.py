"""The static book of the kit's own notebooks, opened from the disk as a reader without Python does: figures drawn, TeX set."""

import pytest

from dphrl_lite.course import book

UNSAID = """() => [...document.querySelectorAll(".plotly-graph-div")]
  .filter(figure => !figure.querySelector(".main-svg[role=img][aria-label]")).map(figure => figure.id)"""
TYPESET = "() => window.MathJax?.isReady && new Promise(done => MathJax.Hub.Queue(() => done(true)))"
UNDRAWN = """() => [...document.querySelectorAll(".plotly-graph-div")]
  .filter(figure => !figure.querySelector(".main-svg")?.getBoundingClientRect().width).map(figure => figure.id)"""
NOT_TYPESET = """() => [...document.querySelectorAll("script[type^='math/tex']")]
  .filter(tex => !tex.previousElementSibling?.querySelector(".math > span")).map(tex => tex.textContent)"""
TEX_ERRORS = "() => [...document.querySelectorAll('.MathJax_Error, .merror, .noError')].map(node => node.textContent)"
# a dollar sign and a command beside it, in the words of a page, is TeX that nobody set
RAW_TEX = """() => [...document.querySelectorAll(".jp-RenderedMarkdown")].flatMap(
  text => text.innerText.match(/\\$[^$]*\\\\[a-z]+[^$]*\\$/g) ?? [])"""

pytestmark = pytest.mark.xdist_group("book")  # `edition` is made once, by one process


@pytest.fixture(scope="session")
def edition(browser, tmp_path_factory):  # no pages where nobody can look at them
    """The quick edition; what stage 4 of `make test` or `make book QUICK=1` has run already is not run again."""
    out = tmp_path_factory.mktemp("book")
    return {path.stem: path for path in book.build(out, quick=True)}


@pytest.fixture
def reader(browser):
    """A page that keeps what goes wrong: errors, and every address it asks for."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page, page.wrong, page.asked = context.new_page(), [], []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    context.close()


@pytest.mark.parametrize("name", ["index", *(path.stem for path in book.sources())])
def test_a_page_draws_its_figures_and_sets_its_tex_without_a_connection(reader, edition, name):
    reader.goto(edition[name].as_uri())
    reader.wait_for_function(TYPESET, timeout=60_000)
    reader.wait_for_function(f"() => ({UNDRAWN})().length === 0", timeout=60_000)
    reader.wait_for_function(f"() => ({UNSAID})().length === 0", timeout=60_000)
    assert reader.evaluate(NOT_TYPESET) == []
    assert reader.evaluate(TEX_ERRORS) == []
    assert reader.evaluate(RAW_TEX) == []
    assert reader.wrong == [], "errors in the browser's console"
    beside = edition[name].parent.as_uri()
    assert [url for url in reader.asked if not url.startswith((beside, "data:", "blob:"))] == []
    if name == "01_divergence_geometry":  # what the tests above look for is there to be found
        assert reader.locator(".plotly-graph-div .main-svg").count() and reader.locator(".MathJax").count()


def test_a_reader_walks_from_the_index_through_every_page(browser, edition):
    reader = browser.new_page(java_script_enabled=False)  # figures and TeX are looked at above
    reader.goto(edition["index"].as_uri())
    reader.locator("table a").first.click()
    for name in list(edition)[1:]:
        assert reader.url == edition[name].as_uri()
        following = reader.locator("nav a").last
        if name != list(edition)[-1]:
            following.click()
    reader.close()
