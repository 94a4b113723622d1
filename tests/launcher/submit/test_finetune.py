"""What a method, a model and rows change in the recipe of finetuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard import finetune
from launchyard.errors import UserError
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.finetune import METHODS, finetune_keys, finetune_recipe


@pytest.mark.parametrize("method", METHODS)
def test_keys_given_win_over_those_of_a_method(method: str) -> None:
    changes = {"train.max_steps": 7, "optimizer.lr": 1e-5, "name": "mine"}
    recipe = load_recipe(finetune_recipe(method), finetune_keys("/base", ["/mine.jsonl"], changes)).recipe
    assert (recipe.model.init_from, recipe.data.source) == ("/base", "/mine.jsonl")
    assert (recipe.train.max_steps, recipe.train.max_epochs, recipe.optimizer.lr) == (7, None, 1e-5)
    assert recipe.name == "mine"


def test_from_python_mistakes_are_named_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'lo-ra': no such method; choose from lora, qlora, dora, adapter"):
        finetune("/base", "mine.jsonl", method="lo-ra")
    with pytest.raises(UserError, match=r"/no/such/base"):
        finetune("/no/such/base", "mine.jsonl")
    assert not list(tmp_path.iterdir())
