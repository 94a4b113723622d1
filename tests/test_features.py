"""The table of features is whole: each number once, with commands, keys and tests that there are."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launchyard.launcher.recipe.keys import list_keys, section_names
from launchyard.training.recipe import Recipe
from tests.test_docs import commands_in

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "features.md"
N_FEATURES = 110
# Rows of which a part is not there, or is not tested as it should be. May only shrink.
STILL_OPEN = frozenset[int]()


@dataclass(frozen=True)
class Feature:
    number: int
    what: str
    here: str
    tests: tuple[str, ...]


def features() -> Iterator[Feature]:
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0].isdecimal():
            number, what, here, *shown = cells
            yield Feature(int(number), what, here, tuple(re.findall(r"`([^`]+)`", " ".join(shown))))


ROWS = tuple(features())


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """Names of the tests that pytest collects of a file."""
    body = ast.parse((ROOT / path).read_text()).body
    functions = (node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_each_number_is_there_once_and_in_order() -> None:
    assert [row.number for row in ROWS] == list(range(1, N_FEATURES + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_what_shows_it_exists(row: Feature) -> None:
    assert row.what
    assert row.here
    assert row.tests or row.number in STILL_OPEN, "no test shows it"
    for test in row.tests:
        path, _, name = test.partition("::")
        assert path.startswith("tests/") and name in names_in(path), test


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_its_keys_are_keys_of_a_recipe(row: Feature) -> None:
    schema = Recipe.model_json_schema()
    sections = section_names(schema)
    keys = {facts.key for facts in list_keys(schema)} | set(sections)
    for word in re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", row.here))):
        section, dot, _ = word.partition(".")
        if dot and section in sections and not word.endswith((".json", ".yaml")):
            assert word in keys, f"a recipe has no key {word}"


def test_what_is_not_there_yet_is_on_the_list() -> None:
    assert {row.number for row in ROWS if "not yet" in row.here} <= STILL_OPEN


def test_its_commands_are_looked_at() -> None:
    """That they exist is asked of every page of the docs; here, that options by themselves do."""
    assert len(commands_in(PAGE)) > 50
    reference = (ROOT / "docs/reference/cli.md").read_text()
    for row in ROWS:
        for option in re.findall(r"`(--[\w-]+)", row.here):
            assert option in reference, f"no command has {option}"
