"""Slides of five notebooks for who teaches, with figures that can be zoomed, without Python or network (`make slides`).

Here: what becomes a slide, and how a slide is filled. Not here: running the notebooks, and figures as HTML (`book`, whose
kept outputs are used); turning cells into pages (nbconvert); the show itself (reveal.js 6.0.2, MIT, from npm, in `reveal`).

A slide begins at every heading, at every figure, table or text that code leaves, at every "What to look for", and where more
than `WORDS` words would stand on one. A cell's `slideshow` metadata, as JupyterLab sets it, goes before that.

    python -m dphrl_lite.course.slides --out slides        # --quick: at the sizes of the tests, for a look at the slides
"""

import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

from dphrl_lite.course import book

SHOWN = ("00", "01", "03", "06", "08")
REVEAL = Path(__file__).parent / "reveal"
WORDS = 110
FIGURE = "plotly-graph-div"
LOOK = "**What to look for"

TEMPLATE = f"""
{{% extends 'reveal/index.html.j2' %}}
{{% block html_head_js_jquery %}}{{% endblock %}}
{book.LOADED.replace("book.css", "slides.css")}
{{% block footer_js %}}<script src="reveal.js"></script><script src="slides.js"></script>{{% endblock %}}
"""
STYLE = """
body { background: white; }
.reveal { color: #222; }
.reveal .slides { text-align: left; }
.reveal .slides section { --jp-content-font-size1: var(--size, 26px); --jp-code-font-size: 16px; }
.reveal .slides section section { height: 100%; overflow: hidden auto; padding: 8px 16px; box-sizing: border-box; }
.reveal .jp-Cell { padding: 0; }
.reveal .jp-RenderedHTMLCommon { line-height: 1.35; padding-right: 0; }
.reveal .jp-RenderedHTMLCommon :is(h1, h2, h3) { margin: 0 0 14px; color: #0B5394; }
.reveal .jp-RenderedHTMLCommon h1 { font-size: 44px; }
.reveal .jp-RenderedHTMLCommon h2 { font-size: 36px; }
.reveal .jp-RenderedHTMLCommon h3 { font-size: 24px; }
.reveal .jp-RenderedHTMLCommon table { margin-left: 0; font-size: .85em; }
.reveal .jp-RenderedMarkdown th { text-align: left !important; }
.reveal .jp-OutputArea-output pre { font-size: 18px; }
.reveal .slide-number { right: auto; left: 8px; background: none; color: #333; }
.book-live { font: 15px sans-serif; color: #333; }
.book-control { display: inline-block; margin: 2px 18px 2px 0; font: 15px sans-serif; }
.jp-OutputPrompt, .jp-InputPrompt { display: none; }
.MJX_Assistive_MathML * { font-family: serif !important; }
"""
# A slide is filled when it is shown: a figure that was drawn out of sight has no width, TeX no size. Words shrink until they
# fit, figures take what height the words leave.
SCRIPT = """
const room = 700, larger = 1.25;  // figures are drawn smaller and enlarged, so that their words can be read from afar
const fill = (slide) => {
  const plots = [...slide.querySelectorAll(".js-plotly-plot")];
  const high = () => Math.max(...[...slide.children].map((part) => part.offsetTop + part.offsetHeight));
  for (const plot of plots) plot.style.height = plot.parentElement.style.height = "0";
  for (let size = plots.length ? 24 : 32; size >= 15; size--) {
    slide.style.setProperty("--size", `${size}px`);
    if (high() <= room) break;
  }
  const least = plots.length > 1 ? 520 : 280;  // several figures: the slide scrolls
  const height = Math.max(least, (room - high()) / Math.max(1, plots.length));
  return Promise.all(plots.map((plot) => {
    const width = plot.parentElement.clientWidth / larger;
    Object.assign(plot.parentElement.style, { height: `${height}px`, overflow: "hidden" });
    Object.assign(plot.style, { height: `${height / larger}px`, width: `${width}px`,
                                transform: `scale(${larger})`, transformOrigin: "0 0" });
    return Plotly.relayout(plot, { height: height / larger, width });
  }));
};
const show = () => {
  const slide = Reveal.getCurrentSlide();
  if (!slide) return;
  const done = () => fill(slide).then(() => { slide.dataset.filled = "yes"; });
  if (slide.dataset.filled) return;
  slide.dataset.filled = "no";
  if (slide.querySelector("script[type^='math/tex']")) MathJax.Hub.Queue(["Rerender", MathJax.Hub, slide], done);
  else done();
};
Reveal.on("ready", () => MathJax.Hub.Queue(show));
Reveal.on("slidechanged", () => MathJax.Hub.Queue(show));
Reveal.initialize({
  width: 1280, height: 720, margin: 0.03, center: false, hash: true, slideNumber: "c/t", transition: "none", controls: true,
});
"""


# ---------------------------------------------------------------- what becomes a slide


def pieces(text: str) -> list[str]:
    """Markdown, cut before headings and "What to look for", and between paragraphs where more than `WORDS` words would stand.

    What is cut off for its length gets its heading again.
    """
    parts = re.split(rf"^(?=#{{1,3}} |{re.escape(LOOK)})", text, flags=re.M)
    return [piece for part in parts if part.strip() for piece in _short(part.strip())]


def _short(part: str) -> list[str]:
    part = re.sub(r"^\*\*Minutes:\*\*.*$", "", part, flags=re.M)
    head = re.match(r"#.*", part)
    heading = f"{head[0]}\n\n" if head else ""
    found, units = [""], []
    for paragraph in re.split(r"\n\n+", part.removeprefix(heading.strip()).strip()):
        if units and (units[-1].endswith(":") or len(units[-1].split()) < 12):  # announces what follows
            units[-1] += f"\n\n{paragraph}"
        else:
            units.append(paragraph)
    for paragraph in units:
        if found[-1] and len(f"{found[-1]} {paragraph}".split()) > WORDS:
            found.append("")
        found[-1] = f"{found[-1]}\n\n{paragraph}".strip()
    return [(heading + piece).strip() for piece in found if heading or piece]


def is_left_out(cell: nbformat.NotebookNode) -> bool:
    """Whether a code cell has nothing for an audience: an exercise's dots, a count of answers, or nothing to be seen."""
    seen = any(output.get("data", {}).get("text/html", "...") for output in cell.outputs)  # a finished bar is empty
    return "exercise" in cell.metadata or "check.progress" in cell.source or not seen


def deck(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The slides of `notebook`, whose outputs are HTML already: cells with the `slideshow` metadata that nbconvert reads."""
    cells, section, begun = [], "", ""
    for cell in notebook.cells:
        own = cell.metadata.get("slideshow", {}).get("slide_type")
        if own == "skip" or (cell.cell_type == "code" and is_left_out(cell)):
            continue
        if cell.cell_type == "code":
            cells += _shown(cell, section, own or ("subslide" if begun == section else "slide"))
            begun = section
            continue
        for i, piece in enumerate(pieces(cell.source)):
            head = re.fullmatch(r"(#+) (.+?)(\n.*)?", piece, flags=re.S)
            section = head[2] if head and len(head[1]) < 3 else section
            if head and not head[3]:  # nothing but a heading: it stands over what follows
                continue
            again = "" if head else f"### {section}\n\n"
            kind = (own if i == 0 else None) or ("subslide" if begun == section else "slide")
            cells.append(_cell(nbformat.v4.new_markdown_cell(again + piece), kind))
            begun = section
    return nbformat.v4.new_notebook(cells=cells, metadata={**notebook.metadata, "title": book.title(notebook)})


def _shown(cell, section: str, kind: str) -> list[nbformat.NotebookNode]:
    """A code cell under its section's name: what it leaves, and its code where that is no figure."""
    cell.metadata.pop("slideshow", None)
    if any(FIGURE in output.get("data", {}).get("text/html", "") for output in cell.outputs):
        cell.metadata["transient"] = {"remove_source": True}
    return [_cell(nbformat.v4.new_markdown_cell(f"### {section}"), kind), _cell(cell, "-")]


def _cell(cell, kind: str) -> nbformat.NotebookNode:
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def relinked(text: str, decks: dict[str, str]) -> str:
    """`text`, Markdown, whose links lead to the other slides; of those that lead elsewhere in the kit the words stay."""

    def new(link: re.Match) -> str:
        words, target = link.groups()
        return f"[{words}]({decks[target]})" if target in decks else words

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#\s]*)(?:#[^)]*)?\)", new, text)


# ---------------------------------------------------------------- pages


def write_deck(slides: nbformat.NotebookNode, name: str, decks: dict[str, str], folder: Path, out: Path) -> Path:
    """Write the slides that `deck` gives to `out`/`name`.html; images beside the notebooks go into the page."""
    for cell in slides.cells:
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, decks)
    exporter = SlidesExporter(
        raw_template=TEMPLATE, embed_images=True, reveal_url_prefix=".", exclude_input_prompt=True
    )
    text, _ = exporter.from_notebook_node(slides, {"metadata": {"name": name, "path": f"{folder}"}})
    text = re.sub(r'<link href="\./dist/theme/[^>]*>', "", text)  # `STYLE` is the theme
    path = out / f"{name}.html"
    path.write_text(text.replace("./dist/reveal.css", "reveal.css"), encoding="utf-8")
    return path


def build(
    out: Path,
    quick: bool = False,
    folder: Path = book.NOTEBOOKS,
    cache: Path | None = None,
    shown: tuple[str, ...] = SHOWN,
) -> list[Path]:
    """Make the slides of the notebooks whose names begin as `shown` says, and a first page; returns the pages.

    Raises:
        RuntimeError: a cell of a notebook fails. Notebooks before it are kept and not run again.
    """
    names = [path.stem for path in book.sources(folder) if path.suffix == ".ipynb" and path.stem.startswith(shown)]
    books = book.ran(quick, folder, cache, last=names[-1])
    out.mkdir(parents=True, exist_ok=True)
    write_library(out)
    decks = {f"{name}.ipynb": f"{name}.html" for name in names}
    pages = [write_deck(deck(books[name]), name, decks, folder, out) for name in names]
    rows = "\n".join(f"- [{book.title(books[name])}]({name}.ipynb)" for name in names)
    words = "→ next section · ↓ within it · Esc: all slides · figures can be zoomed, curves switched in the legend"
    head = f"# Slides\n\n{rows}\n\n{words}" + (f"\n\n{book.QUICK.removeprefix('> ')}" if quick else "")
    first = deck(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(head)]))
    return [write_deck(first, "index", decks, folder, out), *pages]


def write_library(out: Path) -> None:
    """Write what all slides share: the book's library, reveal.js and its licence, the style and the script of the show."""
    book.write_library(out)
    (out / "book.css").unlink()
    for path in REVEAL.iterdir():
        shutil.copy(path, out / path.name.replace("LICENSE", "reveal.LICENSE"))
    (out / "slides.css").write_text(STYLE, encoding="utf-8")
    (out / "slides.js").write_text(SCRIPT, encoding="utf-8")


if __name__ == "__main__":
    book.command(build, __doc__, "slides")
