"""Weights to start from, on several ranks: each takes its own rows, and together they are the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf
from launchyard.training.recipe import Recipe
from tests.support.architectures import ARCHITECTURES
from tests.support.ranks import run_ranks
from tests.support.tiny_models import llama, neox, random_model, weights_of

EXPERTS = config_from_hf(ARCHITECTURES["gpt-oss"])


def fill(folders: list[str]) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    from launchyard.training.build import build_model

    dist.init_process_group("gloo")
    for folder in folders:
        weights = HFWeights(folder)
        given = {"name": "n", "model": {"init_from": folder}, "data": {}, "train": {"max_steps": 1, "device": "cpu"}}
        recipe = Recipe.model_validate(given)
        model = build_model(weights.config, recipe, world_size=dist.get_world_size(), device=torch.device("cpu"))
        for name, parameter in model.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            assert torch.equal(whole, weights.get(name)), name


@pytest.mark.slow
def test_ranks_have_the_weights_of_the_folder_between_them(tmp_path: Path) -> None:
    folders = []
    configs: list[ModelConfig] = [llama(), neox(), EXPERTS]
    for number, config in enumerate(configs):
        folders.append(str(tmp_path / str(number)))
        save_hf(weights_of(random_model(config)), config, folders[-1])
    run_ranks(2, fill, folders)
