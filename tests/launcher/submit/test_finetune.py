"""What a method, a model and rows change in the recipe of finetuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard import finetune
from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.runs.start_from import shape_of
from launchyard.launcher.submit.finetune import METHODS, finetune_keys, finetune_recipe
from tests.support.tiny_models import llama, random_model, weights_of, write_checkpoint


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


def test_a_run_with_prompts_is_no_start(tmp_path: Path) -> None:
    config = llama()
    base = {"adapter": {"kind": "llama-adapter"}}
    write_checkpoint(tmp_path / "run", config, weights_of(random_model(config)), base=base)
    loaded = load_recipe("finetune/lora", {"model.init_from": str(tmp_path / "run")})
    with pytest.raises(RecipeErrors, match=r"model\.init_from: .* trained prompts \(llama-adapter\)"):
        shape_of(loaded)
