"""Table and head are one tensor if the files say so, whatever config.json says; transformers is the judge."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.weights.gguf import GGUFWeights
from launchyard.model.weights.gguf_export import save_gguf
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, load
from launchyard.model.weights.source import read_config
from launchyard.model.weights.tie import table_keys
from tests.support.tiny_models import CONFIGS, random_model, random_tokens, weights_of

TIED = [name for name, config in CONFIGS.items() if config.tie_embeddings]


def tied_folder(name: str, folder: Path, head: str, *, max_file_bytes: int = 10**9) -> dict[str, Tensor]:
    """A folder of a tied model whose files hold another head, the same once more, or the head in place of the table."""
    config = CONFIGS[name]
    weights = weights_of(random_model(config))
    table = weights["embed.weight"]
    other = table * 0.5 if head == "other" else table.clone()
    if head == "late":
        other[-1, -1] += 1.0
    save_hf({**weights, "lm_head.weight": other}, untied(name), str(folder), max_file_bytes=max_file_bytes)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    if head == "alone":
        tensors = load_file(folder / "model.safetensors")
        del tensors[table_keys(config)[0]]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {**weights, "lm_head.weight": other}


def untied(name: str) -> ModelConfig:
    return CONFIGS[name].model_copy(update={"tie_embeddings": False})


@pytest.mark.parametrize("max_file_bytes", [10**9, 20_000], ids=["one file", "several"])
@pytest.mark.parametrize("head", ["other", "late", "same"])
@pytest.mark.parametrize("name", TIED)
def test_a_head_that_differs_from_the_table_is_kept(
    name: str, head: str, max_file_bytes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = tied_folder(name, tmp_path, head, max_file_bytes=max_file_bytes)
    with caplog.at_level(logging.WARNING):
        weights = HFWeights(str(tmp_path))
    assert weights.config == read_config(str(tmp_path)) == (CONFIGS[name] if head == "same" else untied(name))
    assert ("two that differ" in caplog.text) == (head != "same")
    assert all(torch.equal(weights.get(key), stored[key]) for key in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("head", ["other", "late", "same"])
def test_tables_and_heads_of_bin_files_are_compared_too(head: str, tmp_path: Path) -> None:
    stored = tied_folder(TIED[0], tmp_path, head)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    weights = HFWeights(str(tmp_path))
    assert weights.config == read_config(str(tmp_path)) == (CONFIGS[TIED[0]] if head == "same" else untied(TIED[0]))
    assert all(torch.equal(weights.get(key), stored[key]) for key in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", TIED)
def test_a_head_alone_is_the_table(name: str, tmp_path: Path) -> None:
    stored = tied_folder(name, tmp_path, "alone")
    weights = HFWeights(str(tmp_path))
    assert weights.config == CONFIGS[name]
    assert torch.equal(weights.get("embed.weight"), stored["lm_head.weight"])
    model = build(weights.config, weights, device=torch.device("cpu"), dtype=None)
    assert model.lm_head.weight is model.embed.weight


def test_a_head_that_config_json_asks_for_and_nobody_saved_is_missing(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    save_hf(weights_of(random_model(config)), config, str(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        HFWeights(str(tmp_path))


@pytest.mark.parametrize("head", ["other", "same", "alone"])
@pytest.mark.parametrize("name", TIED)
def test_logits_are_those_of_transformers(name: str, head: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tied_folder(name, tmp_path, head)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32).eval()
    tokens = random_tokens(CONFIGS[name], 1, 9)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert torch.allclose(load(str(tmp_path)).transformer(tokens), expected, atol=1e-4)


@pytest.mark.parametrize("head", ["other", "late", "same"])
def test_a_gguf_file_with_its_table_twice_is_tied(head: str, tmp_path: Path) -> None:
    stored = tied_folder("llama-one-kv-tied", tmp_path / "hf", head)
    save_hf(stored, untied("llama-one-kv-tied"), str(tmp_path / "untied"))
    source = HFWeights(str(tmp_path / "untied"))
    save_gguf(source, source.config, str(tmp_path / "m.gguf"), dtype="F32")
    found = GGUFWeights(str(tmp_path / "m.gguf"))
    assert found.config.tie_embeddings == (head == "same")
    assert all(torch.equal(found.get(key), stored[key]) for key in found.keys())  # noqa: SIM118
