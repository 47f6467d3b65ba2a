"""Installs the kit into the kernel that runs this file, as `FIRST_CELL`, the first cell of every notebook, has it done.

That is for a kernel without the kit; standard library only. Not here: environments for every day (`make lab`, conda).

    python -m dphrl_lite.course.install NOTEBOOK...     # puts the first cell into notebooks
"""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

FIRST_CELL = """\
# Installs the kit where it is missing (Colab, VS Code with another kernel). Where it is installed, nothing happens.
address = ""  # of your copy of the kit: for git clone, or a folder (on Colab: in your mounted Drive)

from importlib.util import find_spec
from pathlib import Path

if not all(map(find_spec, ("dphrl_lite", "math_verify", "anywidget"))):
    places = (Path(address), Path("dphrl-lite"), Path.cwd(), *Path.cwd().parents)
    kit = next((p for p in places if (p / "dphrl_lite/course/install.py").is_file()), Path("dphrl-lite"))
    if not kit.is_dir():
        assert address, "The kit is not here: write its git address or its folder between the quotes above, run again."
        !git clone -q --depth 1 "{address}" "{kit}"
    %run "{kit}/dphrl_lite/course/install.py"
import dphrl_lite  # before all else: it settles how many threads numpy and torch take
"""
NEEDED = ("math_verify", "anywidget")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip_command(kit: Path) -> list[str]:
    """What installs `kit` here: beside a torch that is there (Colab's stays as it is), else in the tested versions.

    Without torch the CPU build is taken: on Linux the default index would send gigabytes of CUDA.
    """
    pins = [] if find_spec("torch") else ["-c", f"{kit / 'constraints.txt'}", "--extra-index-url", CPU_INDEX]
    return [sys.executable, "-m", "pip", "install", "-q", *pins, "-e", f"{kit}[notebooks,qlora,trl]"]


def install(kit: Path) -> None:
    """Install `kit`, make it importable in this very process, and change into its folder of notebooks.

    Raises RuntimeError with pip's own words when pip fails, and when what it installed is still not to be found.
    """
    print(f"Installing the kit from {kit}: a minute or several, once.")
    command = pip_command(kit)
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        raise RuntimeError(
            f"pip could not install the kit:\n{pip.stderr[-2000:]}\nThe command was: {' '.join(command)}"
        )
    sys.path.append(f"{kit}")  # what an editable installation leaves in site-packages is read when Python starts
    importlib.invalidate_caches()
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        raise RuntimeError(
            f"Installed, but {', '.join(missing)} cannot be found: restart the kernel, run this cell again."
        )
    os.chdir(kit / "notebooks")


def put_first_cell(path: Path) -> None:
    """Write `FIRST_CELL` behind the title of the notebook at `path`, in place of an older one."""
    import nbformat  # not standard library: for authors, who have it

    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != "first-cell"]
    metadata = {"jupyter": {"source_hidden": True}, "tags": ["setup"]}
    cell = nbformat.v4.new_code_cell(FIRST_CELL.rstrip("\n"), id="first-cell", metadata=metadata)
    notebook.cells.insert(1, cell)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for notebook in sys.argv[1:]:
        put_first_cell(Path(notebook))
    if len(sys.argv) == 1:
        install(Path(__file__).resolve().parents[2])
