"""pyproject.toml, constraints.txt, environment.yml and LICENSE say the same."""

import re
import tomllib
from importlib.metadata import distributions, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {name: x for name, x in PROJECT["optional-dependencies"].items() if name != "vllm"}  # another environment's

INSTALLED = {canonicalize_name(found.name) for found in distributions()}


def direct_requirements():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in lines]


def pins():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def conda():
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text())


def conda_pip_lines():
    return next(entry["pip"] for entry in conda()["dependencies"] if isinstance(entry, dict))


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_constraints_pin_every_direct_requirement(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt does not pin {requirement.name}: run make constraints"
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert requirement.specifier.contains(exact.version), f"{pin} in constraints.txt is outside {requirement}"


def test_constraints_hold_only_exact_public_versions():
    """A local version such as 2.x+cpu would shut out the CUDA build, and nvidia pins every machine without one."""
    for name, pin in pins().items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is no exact public version"
        assert not name.startswith("nvidia"), f"{pin} is wanted on CUDA machines only"
        assert name != "dphrl-lite"


def test_every_pin_admits_the_oldest_python_that_is_asked_for():
    """pip takes what is newest for the Python that made the constraints; a student's may be older (Debian 12 has 3.11.2)."""
    oldest = min(re.findall(r"\d+\.\d+", PROJECT["requires-python"])) + ".0"
    asked = {name: metadata(name).get("Requires-Python") for name in pins() if name in INSTALLED}
    assert {n: text for n, text in asked.items() if text and not SpecifierSet(text).contains(oldest)} == {}


def test_conda_takes_the_package_with_every_extra_under_the_constraints():
    lines = conda_pip_lines()
    (editable,) = (line for line in lines if line.startswith("-e "))
    named = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)
    assert named, f"expected '-e .[extras]' in environment.yml, found {editable!r}"
    assert set(named[1].split(",")) == set(EXTRAS)
    assert "-c constraints.txt" in lines


def test_conda_and_make_install_the_same_extras():
    (line,) = re.findall(r"^EXTRAS := (\S+)$", (REPOSITORY / "Makefile").read_text(), flags=re.M)
    assert set(line.split(",")) == set(EXTRAS)


def test_vllm_has_an_environment_of_its_own():
    """What it wants contradicts constraints.txt, so nothing that is installed with them may bring it in."""
    assert "vllm" not in pins()
    assert [Requirement(line).name for line in PROJECT["optional-dependencies"]["vllm"]] == ["vllm"]
    assert "[vllm]" in (REPOSITORY / "docs" / "scale.md").read_text()


def test_conda_python_is_one_supported_version():
    """Binder's repo2docker sets up its own Python unless it finds `python =3.x`; a range would have it changed afterwards."""
    (entry,) = (entry for entry in conda()["dependencies"] if str(entry).startswith("python "))
    version = re.fullmatch(r"python =(3\.\d+)", entry)
    assert version, f"expected 'python =3.x' in environment.yml, found {entry!r}"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version[1])


def test_conda_environment_has_the_name_of_the_project():
    assert conda()["name"] == PROJECT["name"]
    assert conda()["channels"] == ["conda-forge"]


def test_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


def test_readme_named_by_the_metadata_is_there():
    assert (REPOSITORY / PROJECT["readme"]).is_file(), f"pyproject.toml names {PROJECT['readme']}, which is not there"


def test_the_citation_names_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert f"version = {{{PROJECT['version']}}}" in (REPOSITORY / "README.md").read_text()
