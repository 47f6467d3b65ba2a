"""Every link of README, docs and notebooks leads somewhere: a file that is there, a heading that is there."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "notebooks", ROOT / "notebooks/solutions", ROOT / "data/paper")
PAGES = sorted(path for folder in FOLDERS for kind in ("*.md", "*.ipynb") for path in folder.glob(kind))
LINK = re.compile(r"\]\((?!https?://|mailto:|attachment:)([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return FENCE.sub("", path.read_text())
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


def anchors(path: Path) -> set[str]:
    """The headings' anchors as GitHub (lower case, dashes) and JupyterLab (as written, dashes) make them."""
    headings = re.findall(r"^#+ (.+?)\s*$", text_of(path), re.MULTILINE)
    plain = [re.sub(r"[`*]", "", heading) for heading in headings]
    github = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in plain}
    return github | {heading.replace(" ", "-") for heading in plain}


def broken(path: Path) -> list[str]:
    lost = []
    for link in LINK.findall(text_of(path)):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix in (".md", ".ipynb") and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.relative_to(ROOT)}")
def test_links_lead_somewhere(path):
    assert broken(path) == []


def test_a_lost_file_and_a_lost_heading_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `title`, here\n[a](other.md) [b](#a-title-here) [c](#nowhere) [d](https://example.org/x)\n")
    assert broken(page) == ["other.md", "#nowhere"]
