"""A real JupyterLab in a real Chromium: the server, the page, and what the tests ask of them. Holds no test.

Run with DPHRL_SCREENSHOTS=<folder> to keep pictures, with DPHRL_NOTEBOOKS=<folder> to open other notebooks.
"""

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dphrl_lite.doctor import BROWSERS, find_browser

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = Path(os.environ.get("DPHRL_NOTEBOOKS", REPOSITORY / "notebooks"))
# the last four keep the browser from asking its maker for updates: the tests count every request that leaves the machine
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
START_SECONDS = 90
RUN_SECONDS = 600


def unavailable(reason: str):
    """Skip, or fail where the environment demands the browser (continuous integration does)."""
    if os.environ.get("DPHRL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason} DPHRL_REQUIRE_BROWSER=1 forbids skipping the browser tests.", pytrace=False)
    pytest.skip(reason)


@dataclass
class Lab:
    """A running JupyterLab: its address, its token, and the folder that it serves."""

    url: str
    token: str
    folder: Path

    def address(self, notebook: str) -> str:
        """Where the browser finds `notebook`; `reset` opens it alone, without the tabs of an earlier test."""
        return f"{self.url}/lab/tree/{notebook}?token={self.token}&reset"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def private_environment(folder: Path) -> dict[str, str]:
    """The environment of the server: the user's own Jupyter settings, workspaces and kernels are neither read nor changed."""
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    lab = ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    private = {name: str(folder / name.lower()) for name in folders + lab}
    settings = Path(private["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)  # no question about news over the figures, no look for a newer release
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **private}


def lab_command(port: int, token: str, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"),
        "--LabApp.expose_app_in_browser=True",  # window.jupyterapp: the tests give commands by name, not by pixel
    ]


def wait_until_answering(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
            return
        except OSError:  # URLError is one
            time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    pytest.fail(f"JupyterLab did not answer within {START_SECONDS} s; the end of its log:\n{tail}", pytrace=False)


def shorten(path: Path) -> None:
    """Give the cells of a copied notebook the small sizes that `pytest --nbmake` gives them: after the cell, its mocks."""
    book = json.loads(path.read_text())
    for cell in book["cells"]:
        mocks = cell["metadata"].get("nbmake", {}).get("mock", {})
        source = "".join(cell["source"]) + "".join(f"\n{name} = {value!r}" for name, value in mocks.items())
        cell["source"] = source
    path.write_text(json.dumps(book))


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks, so that no run writes outputs into the tree."""
    if importlib.util.find_spec("jupyterlab") is None:
        unavailable("jupyterlab is not installed: pip install -e '.[notebooks]'.")
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
    for path in folder.glob("*.ipynb"):
        shorten(path)
    port, token, log = free_port(), secrets.token_hex(16), home / "jupyterlab.log"
    running = Lab(f"http://127.0.0.1:{port}", token, folder)
    with log.open("w") as sink:
        server = subprocess.Popen(
            lab_command(port, token, folder), cwd=folder, env=private_environment(home), stdout=sink, stderr=sink
        )
    try:
        wait_until_answering(running, server, log)
        yield running
    finally:
        server.terminate()  # JupyterLab ends its kernels on SIGTERM
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, headless; playwright brings no browser of its own here."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed: pip install -e '.[dev]'.")
    path = find_browser()
    if path is None:
        unavailable(f"no browser on PATH: looked for {', '.join(BROWSERS)}. Install Chromium or Google Chrome.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@dataclass
class Watch:
    """What a page did on the side: errors in its console, and requests to other machines."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def attach(self, page) -> None:
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.note_request(request.url))
        page.on("websocket", lambda websocket: self.note_request(websocket.url))

    def note_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)


IDLE = """() => {
  const panel = window.jupyterapp?.shell.currentWidget, session = panel?.context?.sessionContext;
  return !!(panel?.context.isReady && session?.isReady && session.session?.kernel?.status === "idle");
}"""
RUN_ALL = """() => {
  window.ranAll = false;
  window.jupyterapp.commands.execute("notebook:run-all-cells").finally(() => { window.ranAll = true; });
}"""
# the model, not the page: JupyterLab takes cells that are out of sight out of the page
CODE_CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === "code")
  .map(cell => ({ source: cell.model.sharedModel.getSource(), count: cell.model.executionCount,
                  tags: cell.model.getMetadata("tags") ?? [], outputs: cell.model.outputs.toJSON() }))"""
SCROLL_TO = """async (index) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = index;
  await notebook.scrollToItem(index, "start");
  return notebook.widgets.length;
}"""
END_KERNEL = "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext.shutdown()"
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .map(cell => cell.model.type === "code" ? cell.model.outputs.toJSON() : [])"""
# ipywidgets' Output shows a traceback inside the widget, where the notebook's model does not see it
BAD_OUTPUTS = """() => ["stderr", "error"]
  .flatMap(kind => [...document.querySelectorAll(`[data-mime-type="application/vnd.jupyter.${kind}"]`)])
  .map(node => node.textContent)"""


@dataclass
class NotebookPage:
    """A notebook in JupyterLab, and what a reader does with it."""

    page: object
    lab: Lab
    watch: Watch
    patience: float = 30.0  # seconds that a figure may take to be drawn

    def open(self, name: str) -> None:
        self.page.goto(self.lab.address(name))
        self.page.wait_for_function(IDLE, timeout=RUN_SECONDS * 1000)

    def run_all(self) -> None:
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("() => window.ranAll", timeout=RUN_SECONDS * 1000)
        self.page.wait_for_function(IDLE, timeout=RUN_SECONDS * 1000)

    def cells_not_run(self) -> list[str]:
        return [cell["source"] for cell in self.page.evaluate(CODE_CELLS) if cell["source"] and not cell["count"]]

    def cell_errors(self) -> list[str]:
        """Tracebacks and standard error in the cells' outputs; cells tagged raises-exception fail on purpose."""
        cells = [cell for cell in self.page.evaluate(CODE_CELLS) if "raises-exception" not in cell["tags"]]
        outputs = [output for cell in cells for output in cell["outputs"]]
        return [str(output) for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]

    def widget_errors(self) -> list[str]:
        """Tracebacks and standard error among the outputs that are in sight, those inside widgets included."""
        return self.page.evaluate(BAD_OUTPUTS)

    def outputs(self) -> list[list[dict]]:
        """The outputs of every cell; none for those that are prose."""
        return self.page.evaluate(OUTPUTS)

    def go_to(self, index: int):
        """Bring a cell into the page; returns it as a playwright locator."""
        self.page.evaluate(SCROLL_TO, index)
        cell = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")
        cell.wait_for()
        return cell

    def scroll_to(self, selector: str):
        """Go down the notebook until something matches `selector`; returns it as a playwright locator."""
        found, index, length = self.page.locator(selector), 0, 1
        while index < length:
            length = self.page.evaluate(SCROLL_TO, index)
            self.page.wait_for_timeout(300)  # the cell enters the page, its widgets draw themselves
            if found.count():
                found.first.scroll_into_view_if_needed()
                return found.first
            index += 1
        pytest.fail(f"nothing in the notebook's {length} cells matches {selector!r}", pytrace=False)

    def picture(self, name: str, part=None) -> None:
        """Keep a screenshot of the page, or of one `part` of it, in the folder DPHRL_SCREENSHOTS, if that is set."""
        if os.environ.get("DPHRL_SCREENSHOTS"):
            (part or self.page).screenshot(path=Path(os.environ["DPHRL_SCREENSHOTS"]) / f"{name}.png")


# anywidget gives a widget two seconds to start, which a busy machine exceeds; how fast it is, is not tested here
PATIENT = "AbortSignal.timeout = ((timeout) => (ms) => timeout.call(AbortSignal, 30 * ms))(AbortSignal.timeout)"


@pytest.fixture
def notebook(browser, lab):
    """A fresh page, watched from its first request on."""
    context, watch = browser.new_context(viewport={"width": 1400, "height": 1000}), Watch()
    context.add_init_script(PATIENT)
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch.attach(page)
    yield NotebookPage(page, lab, watch)
    if page.url.startswith(lab.url):
        page.evaluate(END_KERNEL)  # each holds half a gigabyte
    context.close()
