"""A real JupyterLab in a real Chromium: the server, the page, and what the tests ask of them. Holds no test."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# a folder of other notebooks may stand in while the shipped ones are being written
NOTEBOOKS = Path(os.environ.get("DPHRL_NOTEBOOKS", REPOSITORY / "notebooks"))
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
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
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **private}


def lab_command(port: int, token: str, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"),
        "--LabApp.expose_app_in_browser=True",  # window.jupyterapp: the tests give commands by name, not by pixel
        # no question about news over the first page, and no look for a newer release
        *("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
    ]


def wait_until_answering(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    pytest.fail(f"JupyterLab did not answer within {START_SECONDS} s; the end of its log:\n{tail}", pytrace=False)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks, so that no run writes outputs into the tree."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed: pip install -e '.[notebooks]'")
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
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
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        unavailable(f"no browser on PATH: looked for {', '.join(CHROMIUM_NAMES)}. Install Chromium or Google Chrome.")
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
        page.on("console", lambda message: self.note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda request: self.note_request(request.url))
        page.on("websocket", lambda socket: self.note_request(socket.url))

    def note(self, text: str) -> None:
        self.errors.append(text)

    def note_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def page(browser, lab, watch):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    watch.attach(tab)
    yield tab
    context.close()
