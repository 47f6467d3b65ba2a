"""The tables of docs/results.md that come from data/paths are what data/paths says."""

import importlib.util
from pathlib import Path

import pytest

from dphrl_lite.study import paths

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_of_paths_is_up_to_date(tables):
    page = (DOCS / "results.md").read_text()
    again = tables.renewed(page, *paths.read())
    assert page == again, "run `make tables`, and then read the words beside the tables that changed"


def test_a_table_without_a_place_is_named(tables):
    with pytest.raises(ValueError, match="smaller-step"):
        tables.renewed("# Results\n", *paths.read())
