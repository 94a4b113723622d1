"""A vocabulary of another size: old rows stay to the bit, a new one is the mean of those of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, open_weights, resized
from launchyard.training.build import build_model
from launchyard.training.recipe import Recipe
from tests.support.tiny_models import llama, random_model, random_tokens, weights_of

CPU = torch.device("cpu")
TABLES = ("embed.weight", "lm_head.weight")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_rows", [200, 64, 131])
@torch.no_grad()
def test_old_rows_stay_and_new_ones_are_their_mean(tmp_path: Path, n_rows: int, tied: bool) -> None:
    theirs = llama(tie_embeddings=tied)
    model = random_model(theirs)
    save_hf(weights_of(model), theirs, str(tmp_path))
    config, weights = open_weights(str(tmp_path))
    ours = config.model_copy(update={"vocab_size": n_rows, "padded_vocab_size": n_rows})
    new = resized(weights, config, ours)
    for key, shape in parameter_shapes(ours).items():
        found, old = new.get(key), weights.get(key)
        assert found.shape == shape and found.dtype == new.dtype(key)
        kept = min(len(found), len(old))
        for rows in (range(3, len(found) - 1), range(len(found) - 1, len(found)), range(3, 3)):
            assert torch.equal(dict(new.rows({key: rows}))[key], found[rows.start : rows.stop])
        assert torch.equal(found[:kept], old[:kept])
        if len(found) > len(old):
            assert key in TABLES
            torch.testing.assert_close(found[kept:], old.mean(0).expand_as(found[kept:]))
    tokens = random_tokens(theirs.model_copy(update={"vocab_size": 60}), 2, 9)
    resized_model = build(ours, new, device=CPU, dtype=None)
    assert tied == (resized_model.get_parameter("embed.weight") is resized_model.get_parameter("lm_head.weight"))
    logits = resized_model(tokens)
    common = min(n_rows, 131)
    torch.testing.assert_close(logits[..., :common], model(tokens)[..., :common])


def test_a_run_starts_with_the_rows(tmp_path: Path) -> None:
    theirs = llama(family="llama")
    save_hf(weights_of(random_model(theirs)), theirs, str(tmp_path))
    model = {**theirs.model_dump(exclude_none=True), "vocab_size": 200, "padded_vocab_size": 256}
    recipe = Recipe.model_validate(
        {"name": "x", "model": {**model, "init_from": str(tmp_path)}, "data": {"source": "x"},
         "train": {"max_steps": 1, "device": "cpu"}}
    )  # fmt: skip
    weights = weights_of(build_model(ModelConfig.model_validate(model), recipe, world_size=1, device=CPU))
    assert torch.equal(weights["embed.weight"][:131], open_weights(str(tmp_path))[1].get("embed.weight"))
    assert weights["embed.weight"].shape == weights["lm_head.weight"].shape == (256, theirs.dim)
    assert weights["lm_head.weight"][131:].std(0).max() == 0


def test_rows_that_stand_for_no_token_do_not_count(tmp_path: Path) -> None:
    theirs = llama(vocab_size=100)
    grown = ModelConfig.model_validate({**theirs.model_dump(), "vocab_size": 140, "padded_vocab_size": 140})
    save_hf(weights_of(random_model(theirs)), theirs, str(tmp_path))
    weights = open_weights(str(tmp_path))[1]
    old, new = weights.get("embed.weight"), resized(weights, theirs, grown).get("embed.weight")
    assert torch.equal(new[:131], old)
    torch.testing.assert_close(new[131:], old[:100].mean(0).expand(9, -1))
