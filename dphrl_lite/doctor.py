"""What this machine can run, and why: packages, device, memory, disk, browser, shipped data. Repairs nothing.

Imports nothing outside the standard library at the top: it has to work exactly where packages are missing.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = {
    "tiny": "python data/make_tiny.py",
    "sql": "python data/make_databases.py",
    "minisql": "python data/make_minisql.py",
}
CORE = "required"  # the group of the packages that no extra asks for

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"

TINY_GB, SMALL_GB, QLORA_GPU_GB, QLORA_DOWNLOAD_GB = 1, 4, 14, 16


@dataclass(frozen=True)
class Package:
    """One line of the package's own metadata: what is asked for, by which extra, and what is installed."""

    name: str
    wanted: str
    group: str
    installed: str | None
    fits: bool

    @property
    def state(self) -> str:
        """One line for the report."""
        if self.installed is None:
            return "MISSING"
        return self.installed if self.fits else f"{self.installed}, but {self.wanted} is needed"


@dataclass(frozen=True)
class Machine:
    """The facts on which the verdicts rest. Sizes are in GiB; None means that it could not be found out."""

    packages: tuple[Package, ...]
    device: str = "cpu"
    device_name: str = ""
    gpu_gb: float = 0.0
    ram_gb: float | None = None
    ram_free_gb: float | None = None
    disk_free_gb: float | None = None
    browser: str | None = None
    data: frozenset[str] = frozenset()

    def lacks(self, *names: str) -> list[str]:
        """Those of `names` that are missing or too old; without names, every required package."""
        return [p.name for p in self.packages if not p.fits and (p.name in names if names else p.group == CORE)]


@dataclass(frozen=True)
class Verdict:
    """Whether one way of using the kit works here, and every reason why not (or the one why)."""

    use: str
    works: bool
    reasons: tuple[str, ...]


# ---------------------------------------------------------------- this machine


def find_browser() -> str | None:
    """The path of a Chromium or Google Chrome, or None."""
    return next(filter(None, map(shutil.which, (*BROWSERS, MAC_CHROME))), None)


def installed_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def group_of(requirement) -> str:
    """The extra that asks for `requirement`, or `CORE`."""
    extras = importlib.metadata.metadata("dphrl-lite").get_all("Provides-Extra") or []
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return CORE
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), "")


def find_packages() -> tuple[Package, ...]:
    """Every package asked for on this system. Raises `PackageNotFoundError` if dphrl-lite itself is not installed."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with transformers: missing only where the installation stopped half way
        from pip._vendor.packaging.requirements import Requirement

    packages = []
    for requirement in map(Requirement, importlib.metadata.requires("dphrl-lite") or []):
        version, group = installed_version(requirement.name), group_of(requirement)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if group:  # empty: a marker rules this system out
            packages.append(Package(requirement.name, str(requirement.specifier), group, version, fits))
    return tuple(packages)


def find_device() -> dict:
    """Where torch would compute: an NVIDIA GPU, Apple's, or the CPU."""
    cores = {"device": "cpu", "device_name": f"{os.cpu_count()} cores"}
    try:
        import torch
    except Exception:  # a broken torch raises OSError on a missing library; the doctor has to go on
        return {**cores, "device_name": f"{cores['device_name']} (torch cannot be imported)"}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return {"device": "cuda", "device_name": card.name, "gpu_gb": card.total_memory / 2**30}
    return {"device": "mps", "device_name": "Apple GPU"} if torch.backends.mps.is_available() else cores


def find_memory() -> dict:
    """Total and free main memory, where psutil can tell."""
    try:
        import psutil
    except ImportError:
        return {}
    memory = psutil.virtual_memory()
    return {"ram_gb": memory.total / 2**30, "ram_free_gb": memory.available / 2**30}


def find_data() -> frozenset[str]:
    """Which of the shipped folders under `data/` are there and not empty."""
    return frozenset(name for name in DATA if any((REPOSITORY / "data" / name).glob("*")))


def this_machine() -> Machine:
    """This machine."""
    return Machine(
        packages=find_packages(),
        disk_free_gb=shutil.disk_usage(Path.cwd()).free / 2**30,
        browser=find_browser(),
        data=find_data(),
        **find_device(),
        **find_memory(),
    )


# ---------------------------------------------------------------- judging


def install_command(group: str) -> str:
    """The command that installs a group of packages, to be given in the clone."""
    extra = "" if group == CORE else f"[{group}]"
    return f'pip install -c constraints.txt -e ".{extra}"'


def lacking(machine: Machine, group: str, *names: str) -> list[str]:
    """The reason for missing packages, with the command that helps; empty if none is missing."""
    missing = machine.lacks(*names)
    return [f"missing or too old: {', '.join(missing)}; {install_command(group)}"] if missing else []


def too_little_memory(machine: Machine, needed: float) -> list[str]:
    """The reason for too little free memory; empty if it is enough or unknown."""
    free = machine.ram_free_gb
    return [] if free is None or free >= needed else [f"{free:.1f} GB of memory free, about {needed} GB needed"]


def verdict(use: str, why_not: list[str], why: str) -> Verdict:
    """The verdict of a use: it works if there is no reason against it."""
    return Verdict(use, not why_not, tuple(why_not) or (why,))


def judge_tiny(machine: Machine) -> Verdict:
    """The notebooks with the shipped model."""
    why_not = lacking(machine, CORE) + lacking(machine, "notebooks", "jupyterlab", "ipywidgets", "anywidget")
    why_not += [f"data/{name} is missing; {DATA[name]}" for name in sorted(DATA.keys() - machine.data)]
    return verdict("notebooks, model tiny", why_not + too_little_memory(machine, TINY_GB), "a CPU and 1 GB are enough")


def judge_small(machine: Machine) -> Verdict:
    """Runs with the 135M model."""
    why_not = lacking(machine, CORE) + too_little_memory(machine, SMALL_GB)
    return verdict("model small (135M)", why_not, f"computes on {machine.device}; downloads about 0.3 GB once")


def judge_qlora(machine: Machine) -> Verdict:
    """Runs with the 7B model in 4 bits."""
    why_not = lacking(machine, CORE) + lacking(machine, "qlora", "bitsandbytes", "peft")
    if machine.device != "cuda":
        why_not.append(f"no CUDA GPU (torch computes on {machine.device}); where there is one: make lab CUDA=1")
    elif machine.gpu_gb < QLORA_GPU_GB:
        why_not.append(f"{machine.device_name} has {machine.gpu_gb:.1f} GB, at least {QLORA_GPU_GB} GB needed")
    return verdict("model qlora-7b", why_not, f"{machine.device_name}; downloads about {QLORA_DOWNLOAD_GB} GB once")


def judge(machine: Machine) -> list[Verdict]:
    """A verdict for every way of using the kit."""
    return [judge_tiny(machine), judge_small(machine), judge_qlora(machine)]


# ---------------------------------------------------------------- telling


def size(gigabytes: float | None) -> str:
    """A size for the report."""
    return "unknown (psutil is missing)" if gigabytes is None else f"{gigabytes:.1f} GB"


def describe_packages(machine: Machine) -> list[str]:
    """The packages, grouped as the metadata groups them."""
    lines = []
    for group in dict.fromkeys(p.group for p in machine.packages):
        lines.append(f"packages, {group}" if group == CORE else f"packages, extra {group}")
        members = [p for p in machine.packages if p.group == group]
        lines += [f"  {p.name:<16} {p.state}" for p in members]
        if not all(p.fits for p in members):
            lines.append(f"  to install them: {install_command(group)}")
    return lines


def describe_machine(machine: Machine) -> list[str]:
    """The machine itself."""
    gpu = f", {size(machine.gpu_gb)}" if machine.gpu_gb else ""
    data = [f"{name} {'present' if name in machine.data else f'MISSING ({DATA[name]})'}" for name in DATA]
    return [
        "machine",
        f"  python   {platform.python_version()} ({sys.executable})",
        f"  system   {platform.platform()}",
        f"  device   {machine.device}: {machine.device_name}{gpu}",
        f"  memory   {size(machine.ram_gb)}, free {size(machine.ram_free_gb)}",
        f"  disk     {size(machine.disk_free_gb)} free here",
        f"  browser  {machine.browser or 'no Chromium or Chrome found: make test skips its browser stage'}",
        f"  data     {', '.join(data)}",
    ]


def describe_verdicts(verdicts: list[Verdict]) -> list[str]:
    """The table of what runs here, each further reason on a line of its own."""
    lines = ["what this machine can run, and why"]
    for verdict in verdicts:
        first, *others = verdict.reasons
        lines.append(f"  {'yes' if verdict.works else 'no':<4} {verdict.use:<22} {first}")
        lines += [f"{'':<29}{reason}" for reason in others]
    return lines


def what_runs() -> str:
    """The last table of the report alone, for the first notebook."""
    return "\n".join(describe_verdicts(judge(this_machine())))


def summary(machine: Machine) -> str:
    """The last line: all is well, or what is missing and the command that installs it."""
    missing = [f"{p.name} ({p.wanted})" for p in machine.packages if p.group == CORE and not p.fits]
    if not missing:
        return "Everything required is installed."
    return f"Missing or too old: {', '.join(missing)}. To install them: {install_command(CORE)}"


def main() -> int:
    """Print the report. Returns 0 if every required package is there, else 1."""
    try:
        machine = this_machine()
    except importlib.metadata.PackageNotFoundError:
        print(f"dphrl-lite is not installed in {sys.executable}. In its clone: {install_command(CORE)}")
        return 1
    parts = [describe_packages(machine), describe_machine(machine), describe_verdicts(judge(machine))]
    print("\n\n".join("\n".join(part) for part in parts))
    print(f"\n{summary(machine)}")
    return 1 if machine.lacks() else 0
