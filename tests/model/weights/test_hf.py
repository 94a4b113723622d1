"""Hugging Face folders: transformers is the judge of what they mean, and the round trip is bit-exact."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import build, open_weights
from launchyard.model.zoo import config_from_hf, config_to_hf
from launchyard.storage.errors import CorruptError
from tests.support.tiny_models import (
    CONFIGS,
    byte_tokenizer,
    edit_json,
    llama,
    neox,
    random_model,
    random_tokens,
    weights_of,
)

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
CPU = torch.device("cpu")


def open_theirs(folder: Path) -> Any:
    """transformers' model of a folder; nothing may be missing or left over."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(said.values()), said
    return model.eval()


def their_tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


# -- what a folder means ---------------------------------------------------------------------------------------------
@each_config
def test_what_we_save_is_the_same_model_in_transformers(config: ModelConfig, tmp_path: Path) -> None:
    ours = random_model(config)
    save_hf(weights_of(ours), config, str(tmp_path))
    tokens = random_tokens(config, 2, 33)
    torch.testing.assert_close(logits(ours, tokens), logits(open_theirs(tmp_path), tokens), atol=1e-5, rtol=1e-5)


@each_config
def test_what_transformers_saves_is_the_same_model_here(config: ModelConfig, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_to_hf(config))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    found, weights = open_weights(str(tmp_path))
    assert found == config
    tokens = random_tokens(config, 2, 33)
    ours = logits(build(found, weights, device=CPU, dtype=None), tokens)
    torch.testing.assert_close(ours, logits(theirs, tokens), atol=1e-5, rtol=1e-5)


# -- round trip ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("max_file_bytes", [10**9, 20_000])
@each_config
def test_theirs_to_ours_to_theirs_is_bit_exact(config: ModelConfig, max_file_bytes: int, tmp_path: Path) -> None:
    save_hf(weights_of(random_model(config)), config, str(tmp_path / "a"), max_file_bytes=max_file_bytes)
    weights = HFWeights(str(tmp_path / "a"))
    save_hf(weights, weights.config, str(tmp_path / "b"))  # into one file
    first, second = their_tensors(tmp_path / "a"), their_tensors(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())
    several = len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert several == (tmp_path / "a/model.safetensors.index.json").exists() == (max_file_bytes == 20_000)


@each_config
def test_weights_come_back_as_they_went(config: ModelConfig, tmp_path: Path) -> None:
    went = weights_of(random_model(config))
    save_hf(went, config, str(tmp_path))
    weights = HFWeights(str(tmp_path))
    assert weights.config == config
    assert set(weights.keys()) == went.keys() == parameter_shapes(config).keys()
    for key, tensor in went.items():
        assert weights.shape(key) == tensor.shape
        assert torch.equal(weights.get(key), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_element_type_can_be_changed(dtype: torch.dtype, tmp_path: Path) -> None:
    config = llama()
    went = weights_of(random_model(config))
    save_hf(went, config, str(tmp_path), dtype=dtype)
    assert all(tensor.dtype == dtype for tensor in their_tensors(tmp_path).values())
    assert torch.equal(HFWeights(str(tmp_path)).get("norm.weight"), went["norm.weight"].to(dtype))
    assert open_theirs(tmp_path).dtype == dtype


def test_a_tied_head_is_written_once_and_a_copy_of_it_is_accepted(tmp_path: Path) -> None:
    config = llama(tie_embeddings=True)
    model = random_model(config)
    save_hf(model.state_dict(), config, str(tmp_path))  # the state dict names it twice
    tensors = their_tensors(tmp_path)
    assert "lm_head.weight" not in tensors
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    again = build(config, HFWeights(str(tmp_path)), device=CPU, dtype=None)
    assert again.lm_head.weight is again.embed.weight
    tokens = random_tokens(config, 1, 9)
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_old_tables_and_masks_are_left_out(tmp_path: Path) -> None:
    config = neox()
    save_hf(weights_of(random_model(config)), config, str(tmp_path))
    old = {
        f"gpt_neox.layers.{layer}.attention.{name}": torch.zeros(4)
        for layer, name in itertools.product(range(3), ("bias", "masked_bias", "rotary_emb.inv_freq"))
    }
    save_file({**their_tensors(tmp_path), **old}, tmp_path / "model.safetensors")
    assert set(HFWeights(str(tmp_path)).keys()) == parameter_shapes(config).keys()


def test_a_model_that_is_there_is_replaced(tmp_path: Path) -> None:
    save_hf(weights_of(random_model(neox())), neox(), str(tmp_path), max_file_bytes=20_000)
    (tmp_path / "notes.txt").write_text("mine")
    save_hf(weights_of(random_model(llama())), llama(), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    open_theirs(tmp_path)


def test_a_url_serves_as_well_as_a_folder(tmp_path: Path) -> None:
    config, url = neox(), f"memory://hf-{tmp_path.name}"
    went = weights_of(random_model(config))
    companions = companions_beside(byte_tokenizer(tmp_path / "tokenizer.json"))
    save_hf(went, config, url, max_file_bytes=20_000, companions=companions)
    found, weights = open_weights(url)
    assert found == config
    assert all(torch.equal(weights.get(key), tensor) for key, tensor in went.items())


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError])
def test_an_export_that_is_cut_short_leaves_nothing(trouble: type[BaseException], tmp_path: Path) -> None:
    config = neox()
    went = weights_of(random_model(config))
    save_hf(went, config, str(tmp_path), max_file_bytes=20_000)

    class Broken(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            if key == "blocks.2.mlp.up_proj.weight" and not (tmp_path / "config.json").exists():
                assert list(tmp_path.glob("*.safetensors")), "some are written by now"
                raise trouble
            return super().__getitem__(key)

    with pytest.raises(trouble):
        save_hf(Broken(went), config, str(tmp_path), max_file_bytes=20_000)
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = byte_tokenizer(tmp_path / "t/tokenizer.json")
    (tmp_path / "t/tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}')
    save_hf(weights_of(random_model(neox())), neox(), str(tmp_path / "m"), companions=companions_beside(path))
    written = json.loads((tmp_path / "m/tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["chat_template"] == "x"
    assert written["model_max_length"] == 64
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs.eos_token == "<|endoftext|>"
    assert theirs.decode(theirs("the end, 你好")["input_ids"]) == "the end, 你好"
    assert json.loads((tmp_path / "m/config.json").read_text())["eos_token_id"] == theirs.eos_token_id


# -- what is refused -------------------------------------------------------------------------------------------------
def saved(tmp_path: Path, config: ModelConfig, **options: Any) -> Path:
    save_hf(weights_of(random_model(config)), config, str(tmp_path), **options)
    return tmp_path


def rewrite(folder: Path, *, without: str = "", **more: Tensor) -> None:
    tensors = {key: value for key, value in their_tensors(folder).items() if key != without}
    save_file(tensors | more, folder / "model.safetensors")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    rewrite(saved(tmp_path, neox()), without="gpt_neox.layers.1.mlp.dense_4h_to_h.bias")
    with pytest.raises(ValueError, match=r"missing gpt_neox\.layers\.1\.mlp\.dense_4h_to_h\.bias"):
        HFWeights(str(tmp_path))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    rewrite(saved(tmp_path, llama()), **{"model.layers.0.self_attn.q_norm.weight": torch.ones(4)})
    with pytest.raises(ValueError, match=r"unknown model\.layers\.0\.self_attn\.q_norm\.weight"):
        HFWeights(str(tmp_path))


def test_a_bias_that_the_config_denies_is_unknown(tmp_path: Path) -> None:
    edit_json(saved(tmp_path, llama(attention_bias=True)) / "config.json", attention_bias=False)
    with pytest.raises(ValueError, match=r"unknown .*_proj\.bias"):
        HFWeights(str(tmp_path))


def test_a_layer_too_many_is_unknown(tmp_path: Path) -> None:
    edit_json(saved(tmp_path, llama()) / "config.json", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"unknown model\.layers\.2\."):
        HFWeights(str(tmp_path))


def test_another_shape_is_named(tmp_path: Path) -> None:
    rewrite(saved(tmp_path, llama()), **{"model.norm.weight": torch.ones(7)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[7\]; config\.json makes it \[48\]"):
        HFWeights(str(tmp_path))


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, llama(), max_file_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../other.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"only safetensors files beside it"):
        HFWeights(str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "cut", "cut to nothing", "header"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, llama(), max_file_bytes=20_000)
    path = sorted(folder.glob("*.safetensors"))[1]
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[:-1], "cut to nothing": b"", "header": raw[:8] + b"x" * 40 + raw[48:]}[damage])
    with pytest.raises(CorruptError, match=path.name):
        HFWeights(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm.bias": None}, "norm.bias"),
        ({"blocks.9.mlp_norm.bias": torch.ones(48)}, "blocks.9.mlp_norm.bias is no parameter"),
        ({"norm.bias": torch.ones(3)}, r"norm.bias has shape \[3\]; the config makes it \[48\]"),
        ({"blocks.1.attention.k_proj.bias": None}, "blocks.1.attention.k_proj.bias"),
    ],
)
def test_what_does_not_fit_is_not_saved(change: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    weights = {key: value for key, value in (weights_of(random_model(neox())) | change).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        save_hf(weights, neox(), str(tmp_path))
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (neox(gated_mlp=True), "gated_mlp is True"),
        (neox(n_kv_heads=2), "n_kv_heads is 2"),
        (llama(parallel_residual=True), "parallel_residual is True"),
        (llama(rope_fraction=0.5), "rope_fraction is 0.5"),
        (llama(qkv_bias=True), "qkv_bias is True"),
    ],
)
def test_a_model_without_a_hugging_face_form_says_why(config: ModelConfig, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        save_hf(weights_of(random_model(config)), config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@each_config
def test_configs_invert(config: ModelConfig) -> None:
    assert config_from_hf(config_to_hf(config)) == config
