"""Students' copies: git sees nothing of a class, an update loses nothing that a student wrote, and renewing puts it aside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dphrl_lite.course import copies

ROOT = Path(__file__).resolve().parents[2]
NAME = "00_start_here.ipynb"


@pytest.fixture
def folders(tmp_path):
    source = tmp_path / "notebooks"
    (source / "solutions").mkdir(parents=True)
    for name in ("00_a.ipynb", "01_b.ipynb", "solutions/01_b.ipynb", "glossary.md"):
        (source / name).write_text(f"first edition of {name}")
    (source / "runs/hybrid").mkdir(parents=True)
    (source / "runs/hybrid/log.jsonl").write_text("a run")
    return source, tmp_path / "my_notebooks"


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != copies.ORIGINS)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_everything_but_runs_is_copied_once(folders):
    source, mine = folders
    assert copies.update(source, mine) == []
    assert set(contents(mine)) == {"00_a.ipynb", "01_b.ipynb", "solutions/01_b.ipynb", "glossary.md"}
    (mine / "00_a.ipynb").write_text("my own")
    (mine / "01_b.ipynb").unlink()
    assert copies.update(source, mine) == []
    assert contents(mine)["00_a.ipynb"] == "my own"
    assert contents(mine)["01_b.ipynb"] == "first edition of 01_b.ipynb"


def test_a_new_edition_replaces_what_nobody_touched_and_nothing_else(folders):
    source, mine = folders
    copies.update(source, mine)
    (mine / "00_a.ipynb").write_text("my own")
    (mine / "notes.md").write_text("my notes")
    for name in ("00_a.ipynb", "01_b.ipynb"):
        (source / name).write_text(f"second edition of {name}")
    for _ in range(2):
        assert copies.update(source, mine) == ["00_a.ipynb"]
    assert contents(mine)["00_a.ipynb"] == "my own"
    assert contents(mine)["notes.md"] == "my notes"
    assert contents(mine)["01_b.ipynb"] == "second edition of 01_b.ipynb"


def test_renewing_puts_aside_what_was_touched(folders):
    source, mine = folders
    copies.update(source, mine)
    (mine / "00_a.ipynb").write_text("my own")
    (mine / "01_b.ipynb").write_text("mine, too")
    (source / "00_a.ipynb").write_text("second edition")
    assert copies.renew(source, mine, now="monday") == ["my_notebooks/earlier/monday/00_a.ipynb"]
    assert contents(mine)["00_a.ipynb"] == "second edition"
    assert contents(mine)["earlier/monday/00_a.ipynb"] == "my own"
    assert contents(mine)["01_b.ipynb"] == "mine, too", "it has no newer edition"
    assert copies.renew(source, mine, now="tuesday") == []
    assert copies.renew(source, mine, "01", now="tuesday") == ["my_notebooks/earlier/tuesday/01_b.ipynb"]
    assert contents(mine)["01_b.ipynb"] == "first edition of 01_b.ipynb"
    with pytest.raises(ValueError, match="such as 06"):
        copies.renew(source, mine, "17")


def git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def prepare(repository: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dphrl_lite.course.copies", *arguments]
    command += ["--source", f"{repository / 'notebooks'}", "--copies", f"{repository / 'my_notebooks'}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}"})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def clones(tmp_path):
    """The teacher's repository and a student's clone of it."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    (teacher / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / ".gitignore", teacher)
    shutil.copy(ROOT / "notebooks" / NAME, teacher / "notebooks")
    git(teacher, "init", "-q", "-b", "main")
    git(teacher, "add", ".")
    git(teacher, "commit", "-qm", "first")
    git(tmp_path, "clone", "-q", f"{teacher}", f"{student}")
    return teacher, student


def run_and_answer(path: Path) -> str:
    """What JupyterLab's autosave leaves when a student ran a notebook, changed a cell and trained."""
    book = json.loads(path.read_text())
    for i, cell in enumerate(c for c in book["cells"] if c["cell_type"] == "code"):
        cell["execution_count"] = i
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["an output\n"]}]
    book["cells"][-1]["source"] = ["my answer"]
    path.write_text(json.dumps(book))
    (path.parent / "runs/hybrid").mkdir(parents=True, exist_ok=True)
    (path.parent / "runs/hybrid/log.jsonl").write_text("a run")
    return path.read_text()


def test_git_sees_nothing_of_a_class_and_an_update_keeps_a_students_work(clones):
    teacher, student = clones
    prepare(student)
    mine = student / "my_notebooks" / NAME
    work = run_and_answer(mine)
    assert git(student, "status", "--porcelain") == ""

    tracked = teacher / "notebooks" / NAME
    tracked.write_text(tracked.read_text().replace("Start here", "Begin here"))
    git(teacher, "commit", "-qam", "second")
    git(student, "pull", "-q")
    assert "make renew" in prepare(student)
    assert mine.read_text() == work
    assert "yours is now my_notebooks/earlier/" in prepare(student, "--renew")
    assert mine.read_text() == tracked.read_text()
    (kept,) = (student / "my_notebooks/earlier").rglob(NAME)
    assert kept.read_text() == work
    assert git(student, "status", "--porcelain") == ""
