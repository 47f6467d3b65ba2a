"""The first cell of every notebook: the same everywhere, silent where the kit is, and what it does where it is not."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from dphrl_lite.course import install

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").rglob("*.ipynb"))
CELL = TransformerManager().transform_cell(install.FIRST_CELL)


class Shell(dict):
    """IPython's namespace and, as far as the cell needs it, IPython: keeps what it is told to run, variables put in."""

    def __init__(self):
        super().__init__(get_ipython=lambda: self)
        self.told = []

    def system(self, command):
        self.told.append(command.format(**self))

    def run_line_magic(self, magic, line):
        self.told.append(f"%{magic} {line.format(**self)}")


def run_cell(address=""):
    shell = Shell()
    exec(CELL.replace('address = ""', f"address = {str(address)!r}"), shell)
    return shell.told


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """A kernel that lacks the kit, in an empty folder."""
    present = importlib.util.find_spec
    lacking = ("dphrl_lite", "math_verify", "anywidget")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else present(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_kit(folder):
    (folder / "dphrl_lite/course").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    shutil.copy(install.__file__, folder / "dphrl_lite/course")
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_notebook_has_it_after_its_title(path):
    cell = nbformat.read(path, 4).cells[1]
    assert cell.source == install.FIRST_CELL.rstrip("\n"), (
        "python -m dphrl_lite.course.install NOTEBOOK... puts it right"
    )
    assert "setup" in cell.metadata.tags


def test_it_is_as_short_as_any_cell():
    assert len(install.FIRST_CELL.splitlines()) <= 15


def test_where_the_kit_is_it_says_and_runs_nothing(capsys):
    assert run_cell() == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("below", [".", "notebooks", "notebooks/solutions"])
def test_it_finds_the_kit_in_this_folder_and_above(missing, monkeypatch, below):
    kit = make_kit(missing / "some kit")
    (kit / below).mkdir(exist_ok=True)
    monkeypatch.chdir(kit / below)
    (told,) = run_cell()
    assert told.startswith("%run ")
    assert Path(told.removeprefix("%run ").strip('"')).samefile(kit / "dphrl_lite/course/install.py")


def test_the_address_may_be_a_folder(missing, tmp_path_factory):
    kit = make_kit(tmp_path_factory.mktemp("drive") / "kit")
    assert run_cell(kit) == [f'%run "{kit}/dphrl_lite/course/install.py"']


def test_alone_it_asks_for_the_address(missing):
    with pytest.raises(AssertionError, match="git address or its folder"):
        run_cell()


def test_alone_with_an_address_it_clones(missing):
    address = "https://example.org/kit.git"
    assert run_cell(address) == [
        f'git clone -q --depth 1 "{address}" "dphrl-lite"',
        '%run "dphrl-lite/dphrl_lite/course/install.py"',
    ]


def test_a_clone_made_earlier_is_used_again(missing):
    make_kit(missing / "dphrl-lite")
    assert run_cell("https://example.org/kit.git") == ['%run "dphrl-lite/dphrl_lite/course/install.py"']


def test_it_can_be_put_into_a_notebook_and_renewed(tmp_path):
    title = nbformat.v4.new_markdown_cell("# A title")
    path = tmp_path / "10_mine.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[title, nbformat.v4.new_code_cell("1 + 1")]), path)
    for _ in range(2):
        install.put_first_cell(path)
        assert [cell.source for cell in nbformat.read(path, 4).cells] == [
            "# A title",
            install.FIRST_CELL.rstrip("\n"),
            "1 + 1",
        ]


@pytest.mark.parametrize("torch_there", [True, False])
def test_a_torch_that_is_there_stays_as_it_is(monkeypatch, torch_there):
    monkeypatch.setattr(install, "find_spec", lambda name: torch_there)
    command = install.pip_command(Path("/kit"))
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-2:] == ["-e", "/kit[notebooks,qlora,trl]"]
    assert (str(Path("/kit/constraints.txt")) in command) is not torch_there
    assert not {"-U", "--upgrade"} & set(command)


@pytest.fixture
def pip(monkeypatch):
    """pip's answer, in place of pip."""
    answer = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: answer)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return answer


def test_afterwards_the_kit_is_importable_and_its_notebooks_are_the_working_folder(pip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kit = make_kit(tmp_path / "kit")
    install.install(kit)
    assert str(kit) in sys.path
    assert Path.cwd() == kit / "notebooks"


def test_pips_own_words_are_told(pip, tmp_path):
    pip.returncode, pip.stderr = 1, "ERROR: No matching distribution found for torch"
    with pytest.raises(RuntimeError, match="No matching distribution found for torch"):
        install.install(tmp_path)


def test_what_is_installed_and_not_found_asks_for_a_restart(pip, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="restart the kernel"):
        install.install(tmp_path)
