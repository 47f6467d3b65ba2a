"""The solutions edition of the notebooks, made from the notebooks themselves. Knows nothing of what is right: `check` does.

The one source of an exercise is a cell of a student's notebook: its text is the placeholder and ends with a call of
`check.answer`; its metadata hold `exercise`, the name, and `solution`, the text that takes the placeholder's place.

    python -m dphrl_lite.course.solutions        # writes notebooks/solutions/
"""

import copy
import re
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
ASKED, REQUIRED = "check.answer(", "check.require("
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)]+)\)")  # to a file beside the notebook


def exercises(notebook) -> list:
    """The cells that ask for an answer."""
    return [cell for cell in notebook.cells if "exercise" in cell.metadata]


def solved(notebook, name: str):
    """A copy of a student's `notebook` whose exercises are solved, and in which an answer that is not right is an error.

    Raises:
        ValueError: an exercise's last line does not check the answer, or it has no solution.
    """
    notebook = copy.deepcopy(notebook)
    for cell in exercises(notebook):
        exercise, check = cell.metadata["exercise"], cell.source.splitlines()[-1]
        if not check.startswith(f'{ASKED}"{exercise}", ') or not cell.metadata.get("solution"):
            raise ValueError(
                f'exercise {exercise} of {name}: expected a last line {ASKED}"{exercise}", ...) and the metadata "solution"; '
                f"the last line is {check!r}."
            )
        solution = cell.metadata.pop("solution").rstrip()
        last = re.findall(r"^\S.*", solution, flags=re.M)[-1]
        gap = "\n\n\n" if last.startswith(("def ", "class ")) else "\n"
        cell.source = solution + gap + check.replace(ASKED, REQUIRED)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(_relinked, cell.source)
    notebook.cells[
        0
    ].source += (
        f"\n\n*Solutions edition, made from [{name}](../{name}) by `make solutions`. Try the exercises there first.*"
    )
    return notebook


def _relinked(link: re.Match) -> str:
    target = link[1].split("#")[0]
    has_solutions = target.endswith(".ipynb") and exercises(nbformat.read(NOTEBOOKS / target, 4))
    return link[0] if has_solutions else f"](../{link[1]})"


def editions() -> dict[str, str]:
    """File name -> text of the solutions edition, of each notebook that has exercises."""
    books = {path.name: nbformat.read(path, 4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    return {name: nbformat.writes(solved(book, name)) + "\n" for name, book in books.items() if exercises(book)}


def write(folder: Path = NOTEBOOKS / "solutions") -> None:
    """Write every edition, and remove those whose notebook is gone."""
    folder.mkdir(exist_ok=True)
    texts = editions()
    for stale in {path.name for path in folder.glob("*.ipynb")} - set(texts):
        (folder / stale).unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
