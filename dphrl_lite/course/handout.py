"""The one-page handout, `docs/handout.md`, as a web page and as a PDF of one A4 page (`make handout`).

python -m dphrl_lite.course.handout --out handout      # handout.html and, where there is a Chromium or Chrome, handout.pdf
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from nbconvert.filters import markdown2html

from dphrl_lite.doctor import find_browser

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "docs" / "handout.md"
SECONDS = 120
STYLE = """
@page { size: A4; margin: 14mm 16mm; }
body { font: 11pt/1.4 Georgia, "Liberation Serif", "DejaVu Serif", serif; color: #111; max-width: 178mm; margin: 0 auto; }
h1 { font-size: 17pt; margin: 0 0 6pt; color: #0B5394; }
p, ul { margin: 5pt 0; }
ul { padding-left: 14pt; }
table { border-collapse: collapse; margin: 6pt 0; font-size: 9.8pt; width: 100%; }
th, td { text-align: left; padding: 1.8pt 6pt; border-bottom: .5pt solid #999; }
th { border-bottom: 1pt solid #111; }
code { font: 9pt "DejaVu Sans Mono", monospace; }
@media screen { body { padding: 20px; } }
"""


def page(source: Path = SOURCE) -> str:
    """The Markdown file `source` as an HTML page that loads nothing."""
    text = source.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, flags=re.M)[1]
    words = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{words}</body></html>\n'


def print_pdf(html: Path, pdf: Path, browser: str) -> None:
    """Print the page `html` to `pdf`; `browser` is a Chromium or Google Chrome.

    Raises:
        RuntimeError: the browser did not write it; with what it said last.
    """
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={profile}",
        ]
        command = [browser, *options, f"--print-to-pdf={pdf}", html.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode or not pdf.is_file():
        raise RuntimeError(f"{browser} printed no {pdf.name}; it said: {done.stderr[-500:]}")


def page_count(pdf: Path) -> int:
    """How many pages a PDF has that Chromium has printed."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))


def build(out: Path, source: Path = SOURCE) -> list[Path]:
    """Write the handout to the folder `out`; returns the page and, where there is a browser to print it, the PDF."""
    out.mkdir(parents=True, exist_ok=True)
    html, pdf, browser = out / "handout.html", out / "handout.pdf", find_browser()
    html.write_text(page(source), encoding="utf-8")
    if not browser:
        return [html]
    pdf.unlink(missing_ok=True)
    print_pdf(html, pdf, browser)
    return [html, pdf]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "handout")
    written = build(parser.parse_args().out.resolve())
    print("\n".join(map(str, written)))
    if len(written) == 1:
        print("No PDF: there is no Chromium or Google Chrome here. Open the page in a browser and print it.")


if __name__ == "__main__":
    main()
