"""The static book: every notebook executed, as web pages that work without Python and without a connection (`make book`).

Here: executing and keeping what came out, figures and widgets as plain HTML, the index. Not here: Markdown, code and tables
(nbconvert), TeX (MathJax, from the package jupyter_server_mathjax), plots (plotly.js). Each lies in the book once.

    python -m dphrl_lite.course.book --out book            # --quick: at the sizes of the tests, for a look at the pages
"""

import argparse
import hashlib
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jupyter_server_mathjax
import nbformat
import plotly.io as pio
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from plotly.offline import get_plotlyjs

from dphrl_lite.engine.checkpoint import write_whole
from dphrl_lite.figures import page

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"
CACHE = REPOSITORY / "build" / "book"
FIGURE, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
KEPT = "executed.ipynb"
STATE = "application/vnd.jupyter.widget-state+json"
QUICK = (
    "> **Quick edition**, made to look at the pages: its runs are a few steps long, and what the text says of their numbers "
    "is not true here."
)
LIVE = (
    "The controls say where the widget starts. They move in JupyterLab: <code>make lab</code>, or another place that "
    "the README names."
)

LOADED = """
{% block html_head_js_requirejs %}<script src="plotly.min.js"></script><script src="book.js"></script>{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}
<script type="text/x-mathjax-config">
MathJax.Hub.Config({
  tex2jax: { inlineMath: [["$", "$"]], displayMath: [["$$", "$$"]], processEscapes: true },
  "HTML-CSS": {
    availableFonts: [], preferredFont: null, imageFont: null, webFont: "STIX-Web",
    // its own, about:blank, is an error in the console of a page from file://
    styles: { "@font-face": { "font-family": "MathJax_Blank", "src": "local('none')" } },
  },
  messageStyle: "none",
});
</script>
<script src="mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"></script>
{% endblock %}
{% block html_head_css %}<link rel="stylesheet" href="book.css">{% endblock %}
"""
TEMPLATE = f"""
{{% extends 'lab/index.html.j2' %}}
{LOADED}
{{% block body_header %}}{{{{ super() }}}}{{{{ resources.navigation }}}}{{% endblock %}}
{{% block body_footer %}}{{{{ resources.navigation }}}}{{{{ super() }}}}{{% endblock %}}
"""
STYLE = """
main { max-width: 1080px; margin: 0 auto; padding: 0 12px 40px; }
.book-navigation { display: flex; justify-content: space-between; gap: 24px; padding: 14px 0; font: 14px sans-serif; }
.book-navigation a { color: #0B5394; }
.book-live { font: 14px sans-serif; color: #333; background: #EEF3F8; padding: 6px 12px; }
.book-control { display: inline-block; margin: 2px 18px 2px 0; }
.jp-RenderedHTMLCommon table { margin-left: 0; }
.jp-RenderedMarkdown th { text-align: left !important; }
.jp-OutputPrompt, .jp-InputPrompt { display: none; }
.MJX_Assistive_MathML * { font-family: serif !important; } /* read aloud, not shown: no font of MathJax is asked for */
@media (max-width: 700px) { .jp-Notebook { padding: 0; } }
"""


def sources(folder: Path = NOTEBOOKS) -> list[Path]:
    """What becomes a page: the numbered notebooks in order, then texts such as the glossary."""
    return [*sorted(folder.glob("[0-9][0-9]_*.ipynb")), *sorted(folder.glob("*.md"))]


def read(path: Path, quick: bool = False) -> nbformat.NotebookNode:
    """The notebook at `path` without its first cell, which installs; a text as a notebook of one cell.

    `quick` sets the sizes that tests set (metadata `nbmake.mock`) at the end of their cells, so that a reader sees them.
    """
    if path.suffix == ".md":
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if "setup" not in cell.metadata.get("tags", ())]
    for cell in notebook.cells if quick else ():
        for name, value in cell.metadata.get("nbmake", {}).get("mock", {}).items():
            cell.source += f"\n{name} = {value!r}  # quick edition"
    return notebook


# ---------------------------------------------------------------- executing


def digest(*parts: bytes) -> str:
    """A short name for contents: the same parts, the same name."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]


def logic() -> str:
    """A `digest` of all that outputs depend on beside the notebooks: the package without what only shows, the data, versions."""
    files = [
        REPOSITORY / "constraints.txt",
        *(REPOSITORY / "dphrl_lite").rglob("*.py"),
        *(f for f in (REPOSITORY / "data").rglob("*") if f.is_file()),
    ]
    shows = {Path(__file__).resolve().with_name(name) for name in ("book.py", "slides.py", "handout.py")}
    return digest(*(path.read_bytes() for path in sorted(files) if path not in shows))


def places(books: dict[str, nbformat.NotebookNode], cache: Path) -> dict[str, Path]:
    """A folder below `cache` for each notebook, by its code and that of all before it; what others left there is removed."""
    code, found = [], {}
    for name, notebook in books.items():
        code += [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        found[name] = cache / f"{name}-{digest(json.dumps(code).encode())}"
    for old in set(cache.glob("*")) - set(found.values()):
        shutil.rmtree(old)
    return found


def current(cache: Path, edition: str) -> Path:
    """The folder below `cache` for what the present package and data make; what earlier ones made is removed."""
    present = cache / f"{logic()}{edition}"
    for old in cache.glob(f"*{edition}"):
        if old != present:
            shutil.rmtree(old)
    return present


def executed(notebook: nbformat.NotebookNode, place: Path, before: Path | None = None) -> nbformat.NotebookNode:
    """`notebook` with the outputs of its code, run in the folder `place`, or as an earlier call kept them there.

    Args:
        notebook: what `read` gives.
        place: a folder for this code after that of the notebooks before it (`places`).
        before: theirs: its run begins with what they left.

    Raises:
        RuntimeError: a cell fails, unless it is tagged raises-exception; what ran before it is lost, other notebooks are not.
    """
    code, kept = any(cell.cell_type == "code" for cell in notebook.cells), place / KEPT
    if not kept.is_file() and code:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if before:
            shutil.copytree(before, place, ignore=shutil.ignore_patterns(KEPT), dirs_exist_ok=True)
        ran = nbformat.from_dict(notebook)
        client = NotebookClient(ran, timeout=None, kernel_name="python3", resources={"metadata": {"path": f"{place}"}})
        try:
            client.execute()
        except Exception as error:
            raise RuntimeError(
                f"{place.name}: a cell failed, so that no page was made. Run it in JupyterLab.\n{error}"
            ) from error
        write_whole(kept, lambda path: nbformat.write(ran, path))
    fresh = nbformat.read(kept, 4) if code else notebook
    for cell, ran_cell in zip(*([c for c in n.cells if c.cell_type == "code"] for n in (notebook, fresh)), strict=True):
        cell.outputs = ran_cell.outputs  # the text may have changed since
    notebook.metadata = fresh.metadata
    return notebook


# ---------------------------------------------------------------- pages


def figure_html(figure: dict) -> str:
    """A plotly figure, as a dict with data and layout, drawn by the page's one plotly.js; its words and buttons by `page`."""
    shown = page.described({"data": figure.get("data", []), "layout": figure.get("layout", {})})
    config = {**page.CONFIG, "responsive": True}
    return pio.to_html(shown, config=config, include_plotlyjs=False, full_html=False, validate=False)


def widget_html(models: dict, name: str) -> str:
    """The widget called `name` as it was kept in `models`: its figures, its texts, and what its controls say."""
    model, state = models[name]["model_name"], models[name]["state"]
    children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", ())]
    if any(models[child]["model_name"] == "FloatProgressModel" for child in children):
        return ""  # a progress bar has nothing to say when all is done
    if children:
        return "".join(widget_html(models, child) for child in children)
    if "figure" in state:
        return figure_html(state["figure"])
    if model == "HTMLModel":
        return f"<div>{state['value']}</div>"
    return f'<span class="book-control">{html.escape(control_text(state))}</span>' if "description" in state else ""


def control_text(state: dict) -> str:
    """What one control says: its label and its value, or its label alone for a button."""
    value = state.get("value", "")
    if "_options_labels" in state:
        value = state["_options_labels"][state["index"]] if state["index"] is not None else ""
    if isinstance(value, bool):
        return f"{'☑' if value else '☐'} {state['description']}"
    value = f"{value:g}" if isinstance(value, float) else str(value or "") if value != 0 else "0"
    return f"{state['description']}: {value}" if value else f"[{state['description']}]"


def plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`notebook`, in place, with figures and widgets as HTML, and without what was written to standard error."""
    models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        cell.outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if FIGURE in data:
                output.data = {"text/html": figure_html(data[FIGURE])}
            elif WIDGET in data:
                shown = widget_html(models, data[WIDGET]["model_id"])
                live = f'<p class="book-live">{LIVE}</p>' if "book-control" in shown else ""
                output.data = {"text/html": live + shown}
        if cell.cell_type == "markdown":
            del cell["outputs"]
    return notebook


def title(notebook: nbformat.NotebookNode) -> str:
    """The first heading."""
    return re.search(r"^# (.+)$", notebook.cells[0].source, flags=re.M)[1].replace("`", "")


def relinked(text: str, folder: Path, out: Path) -> str:
    """`text`, Markdown, whose links lead to pages of the book or, for other files, out of it to those beside the notebooks."""
    pages = {path.name: f"{path.stem}.html" for path in sources(folder)}

    def new(link: re.Match) -> str:
        words, target, anchor = link.groups("")
        return f"{words}({pages.get(target) or os.path.relpath(folder / target, out)}{anchor})"

    return re.sub(r"(?<!!)(\[[^\]]*\])\((?!\w+:|#|/)([^)#\s]+)(#[^)]*)?\)", new, text)


def index(books: dict[str, nbformat.NotebookNode], quick: bool) -> nbformat.NotebookNode:
    """The first page: what this is, and what each page is about, in the words of the notebooks."""
    rows = ["| page | minutes | what you will learn |", "|---|---|---|"]
    for name, notebook in books.items():
        head = notebook.cells[0].source
        minutes = re.search(r"Minutes:\*\* (\d+)", head)
        learn = re.search(r"will learn:?\*\*:?\s+((?:.+\n?)+)", head)  # a paragraph, or a list
        goals = " ".join(line.removeprefix("- ") for line in learn[1].splitlines()) if learn else ""
        rows.append(f"| [{title(notebook)}]({name}) | {minutes[1] if minutes else ''} | {goals} |")
    words = (
        "# Diversity-Preserving Hybrid RL: the notebooks as a book",
        "Every page is a notebook of the kit `dphrl_lite` with all it computes, run from top to bottom. Figures can be zoomed, "
        "and their curves switched in the legend. Nothing here needs Python or a connection. To change something and run it "
        "again, open the notebooks: `make lab` in the kit's folder.",
        *([QUICK] if quick else []),
        "\n".join(rows),
    )
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\n\n".join(words))])


def navigation(titles: dict[str, str], name: str) -> str:
    """Links from the page `name` to the page before, the index and the page after, as HTML; `titles` by name, in order."""
    names = ["index", *titles]
    i = names.index(name)
    before, after = (
        (f"← {titles[names[i - 1]]}" if i > 1 else ""),
        (f"{titles[names[i + 1]]} →" if names[i + 1 :] else ""),
    )
    words = ((names[i - 1], before), ("index", "all pages"), (names[(i + 1) % len(names)], after))
    links = (f'<a href="{to}.html">{html.escape(text)}</a>' if text else "<span></span>" for to, text in words)
    return f'<nav class="book-navigation" aria-label="pages">{"".join(links)}</nav>'


def write_page(notebook: nbformat.NotebookNode, name: str, folder: Path, out: Path, navigation: str = "") -> None:
    """Write `notebook`, whose outputs are HTML already, to `out`/`name`.html; images beside the notebooks go into the page."""
    notebook.metadata["title"] = title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, folder, out)
    exporter = HTMLExporter(raw_template=TEMPLATE, embed_images=True)
    resources = {"metadata": {"name": name, "path": f"{folder}"}, "navigation": navigation}
    text, _ = exporter.from_notebook_node(notebook, resources)
    (out / f"{name}.html").write_text(text, encoding="utf-8")


def ran(
    quick: bool = False, folder: Path = NOTEBOOKS, cache: Path | None = None, last: str = ""
) -> dict[str, nbformat.NotebookNode]:
    """The notebooks and texts of `folder` by name, with all that they show as HTML; those after the notebook `last` not run.

    Outputs are kept in `cache`: what has not changed since is not run again. Raises as `build`.
    """
    books, before = {path.stem: read(path, quick) for path in sources(folder)}, None
    wanted = places(books, current(cache or CACHE, "-quick" if quick else "-full"))
    for i, (name, place) in enumerate(wanted.items(), 1):
        print(f"[{i}/{len(books)}] {name}", flush=True)
        books[name] = plain(executed(books[name], place, before))
        before = place if place.is_dir() else before
        if name == last:
            break
    return books


def build(out: Path, quick: bool = False, folder: Path = NOTEBOOKS, cache: Path | None = None) -> list[Path]:
    """Make the book of the notebooks in `folder` and return its pages; what is in `out` already is replaced page by page.

    Outputs are kept in `cache`, so that a second call runs only what has changed since: a notebook whose code changed and
    those after it, or all when the package, the data or versions did.

    Raises:
        RuntimeError: a cell of a notebook fails. Notebooks before it are kept and not run again.
    """
    paths, books = sources(folder), ran(quick, folder, cache)
    out.mkdir(parents=True, exist_ok=True)
    write_library(out)
    titles = {name: title(notebook) for name, notebook in books.items()}
    write_page(index({path.name: books[path.stem] for path in paths}, quick), "index", folder, out)
    for name, notebook in books.items():
        if quick:
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(QUICK))
        write_page(notebook, name, folder, out, navigation(titles, name))
    return [out / "index.html", *(out / f"{name}.html" for name in books)]


def write_library(out: Path) -> None:
    """Write what all pages share: plotly.js, MathJax without what no page asks for, the style."""
    for name, text in {"plotly.min.js": get_plotlyjs(), "book.js": page.SCRIPT, "book.css": STYLE}.items():
        (out / name).write_text(text, encoding="utf-8")
    mathjax = Path(jupyter_server_mathjax.__file__).parent / "static"
    skipped = shutil.ignore_patterns("localization", "a11y")
    shutil.copytree(mathjax, out / "mathjax", ignore=skipped, dirs_exist_ok=True)


def command(build: Callable[[Path, bool], Sequence[Path]], words: str, folder: str) -> None:
    """The command of an edition: `build` with a folder, `folder` of the kit if none is given, and whether at small sizes."""
    parser = argparse.ArgumentParser(description=words.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / folder)
    parser.add_argument("--quick", action="store_true", help="runs of a few steps, as in the tests")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    pages = build(arguments.out.resolve(), arguments.quick)
    print(f"{len(pages)} pages; open {pages[0]}")


if __name__ == "__main__":
    command(build, __doc__, "book")
