"""`launch keys`: every key that a recipe takes is listed once, and every word near one leads to it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from launchyard.errors import UserError
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.cli.recipe.keys import list_all
from launchyard.launcher.recipe.aliases import RECIPE_VOCABULARY
from launchyard.launcher.recipe.hints import leaf_keys
from launchyard.launcher.recipe.keys import list_keys, section_names
from launchyard.training.recipe import Recipe
from tests.test_house import run_python


def keys(*words: str) -> Result:
    return CliRunner().invoke(list_all, words, standalone_mode=False, catch_exceptions=False)


def listed(*words: str) -> list[str]:
    return [facts["key"] for facts in json.loads(keys(*words, "--json").output)]


@pytest.mark.parametrize(("words", "schema"), [((), Recipe), (("--cluster",), Cluster)])
def test_every_key_is_listed_once_with_its_meaning(words: tuple[str, ...], schema: type[Recipe]) -> None:
    own = list(leaf_keys(schema.model_json_schema()))
    assert [key for key in listed(*words) if key != "extends"] == own
    told = json.loads(keys(*words, "--json").output)
    assert all(facts["meaning"] and facts["values"] and facts["schema_version"] for facts in told)


def test_the_list_is_that_of_its_sections() -> None:
    schema = Recipe.model_json_schema()
    inside = [key for name in section_names(schema) if "." not in name for key in listed(name)]
    assert sorted([*inside, *(key for key in listed() if "." not in key)]) == sorted(listed())
    assert all(listed(facts.key) == [facts.key] for facts in list_keys(schema))


def test_a_part_of_a_name_finds_all_that_have_it() -> None:
    assert listed("lr") == [key for key in listed() if "lr" in key]


def test_every_other_name_of_a_key_leads_to_it() -> None:
    known = set(listed())
    for theirs, ours in RECIPE_VOCABULARY.moved.items():
        if any(theirs in key for key in known):
            continue
        with pytest.raises(UserError, match=f"did you mean {ours.replace('.', '[.]')}"):
            keys(theirs)
    with pytest.raises(UserError, match=r"optimiser: no key of a recipe; did you mean optimizer\?"):
        keys("optimiser")
    with pytest.raises(UserError, match="sections: resources, model"):
        keys("xyzzy")


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchyard.launcher.cli.recipe.keys._WIDTH", width)
    lines = keys().output.splitlines()
    words = max(len(word) for line in lines for word in line.split())
    assert max(map(len, lines)) <= max(width, words + 2)
    assert {key for key in listed() if any(line.startswith(key) for line in lines)} == set(listed())


def test_it_loads_no_schema_and_no_torch() -> None:
    code = (
        "import sys\nfrom launchyard.launcher.cli.main import main\ntry:\n    main(['keys'])\nexcept SystemExit:\n    "
    )
    said = run_python(f"{code}print('pydantic' in sys.modules, 'torch' in sys.modules)")
    assert said.splitlines()[-1] == "False False"
