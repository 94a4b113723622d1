"""Every architecture against transformers: logits, keys, config; and the cache against none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from launchyard.model.cost import n_params
from launchyard.model.network.kv_cache import Cache
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, open_weights
from launchyard.model.zoo import config_from_hf, config_to_hf
from tests.support.architectures import ARCHITECTURES, each_architecture
from tests.support.tiny_models import random_tokens

CPU = torch.device("cpu")
LENGTH = 40  # past every window


def theirs_of(name: str, folder: Path) -> Any:
    """A random model of transformers, saved into a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in (*model.parameters(), *model.buffers()):  # of buffers, those that are saved count
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return open_theirs(folder)


def open_theirs(folder: Path) -> Any:
    """transformers' model of a folder; nothing may be missing or left over."""
    from transformers import AutoModelForCausalLM

    # transformers 5 adds Falcon's distances twice in its eager attention.
    kernel = "sdpa" if json.loads((folder / "config.json").read_text()).get("alibi") else "eager"
    model, said = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto", attn_implementation=kernel
    )
    assert not any(said.values()), said
    return model.eval()


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@each_architecture
@torch.no_grad()
def test_logits_are_those_of_transformers_there_and_back(name: str, tmp_path: Path) -> None:
    theirs = theirs_of(name, tmp_path / "theirs")
    config, weights = open_weights(str(tmp_path / "theirs"))
    ours = build(config, weights, device=CPU, dtype=None)
    tokens = random_tokens(config, 2, LENGTH)
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
    assert config_from_hf(config_to_hf(config)) == config
    assert n_params(config) == sum({id(p): p.numel() for p in ours.parameters()}.values())
    save_hf(weights, config, str(tmp_path / "ours"))
    first, second = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    again = open_theirs(tmp_path / "ours")
    torch.testing.assert_close(again(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [type(theirs).__name__]


@each_architecture
@torch.no_grad()
def test_the_cache_changes_nothing(name: str, tmp_path: Path) -> None:
    """However the tokens are cut into pieces, and for rows of unequal length."""
    theirs_of(name, tmp_path)
    config, weights = open_weights(str(tmp_path))
    model = build(config, weights, device=CPU, dtype=None)
    tokens = random_tokens(config, 3, LENGTH)
    whole = model(tokens)
    for cuts in ([7, 1, 1, 5, 1, 9, 16], [1] * 12 + [28], [25, 1, 1, 13]):
        cache = Cache(config, batch_size=3, length=LENGTH, dtype=torch.float32, device=CPU)
        cached = torch.cat([model(piece, cache=cache) for piece in tokens.split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(cached, whole, atol=1e-4, rtol=1e-4)
    lengths = [9, 1, 22]
    cache = Cache(config, batch_size=3, length=LENGTH, dtype=torch.float32, device=CPU)
    cache.expect(lengths)
    model(tokens[:, : max(lengths)], cache=cache)
    for step in range(5):
        new = torch.stack([tokens[row, length + step] for row, length in enumerate(lengths)])[:, None]
        together = model(new, cache=cache)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(together[row, -1], whole[row, length + step], atol=1e-4, rtol=1e-4)


def test_a_bias_of_the_choice_of_experts_keeps_its_digits(tmp_path: Path) -> None:
    theirs_of("deepseek-v3", tmp_path / "theirs")
    config, weights = open_weights(str(tmp_path / "theirs"))
    name = "blocks.1.mlp.choice_bias"
    assert torch.equal(build(config, weights, device=CPU, dtype=torch.bfloat16).get_parameter(name), weights.get(name))
    save_hf(weights, config, str(tmp_path / "ours"), dtype=torch.bfloat16)
    again = open_weights(str(tmp_path / "ours"))[1]
    assert again.get("embed.weight").dtype == torch.bfloat16 and torch.equal(again.get(name), weights.get(name))
