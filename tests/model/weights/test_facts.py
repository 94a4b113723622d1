"""`model_facts` tells what a folder says of itself, without its tensors, and every contradiction in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launchyard.model.cost import n_params
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.facts import model_facts, parameters_by_part
from launchyard.model.weights.gguf_export import save_gguf
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import presets
from tests.support.tiny_models import byte_tokenizer, edit_json, llama, random_model, weights_of, write_checkpoint

CONFIG = llama(vocab_size=300, padded_vocab_size=384, tie_embeddings=True)
N_IDS = 295  # of the byte tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    companions = {
        **companions_beside(byte_tokenizer(tmp_path / "t/tokenizer.json")),
        "generation_config.json": b'{"eos_token_id": [0], "bos_token_id": 5}',
        "chat_template.jinja": b"\n{{ messages }}<|endoftext|>",
        "LICENSE": b"\n  Free to use\nand so on",
    }
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "m"), companions=companions)
    return tmp_path / "m"


def test_the_parts_of_every_preset_are_the_whole() -> None:
    for name, config in presets().items():
        parts = parameters_by_part(config)
        assert sum(parts.values()) == n_params(config), name
        assert ("experts" in parts) == (config.moe is not None), name
        assert ("head" in parts) == (not config.tie_embeddings), name


def test_facts_of_a_folder(folder: Path) -> None:
    facts = model_facts(str(folder))
    assert facts.contradictions == []
    assert (facts.family, facts.hf_class, facts.kind) == ("llama", "LlamaForCausalLM", "hf")
    assert (facts.rows, facts.tokenizer_ids, facts.bos, facts.pad) == (384, N_IDS, 5, None)
    assert facts.ends == {
        0: {"token": "<|endoftext|>", "said_by": ["generation_config.json", "config.json", "tokenizer_config.json"]}
    }
    assert facts.templates == {"default": {"file": "chat_template.jinja", "begins": "{{ messages }}<|endoftext|>"}}
    assert facts.licences == {"LICENSE": "Free to use"}
    assert facts.dtypes == {"F32": {"tensors": len(weights_of(random_model(CONFIG))), "bytes": facts.n_bytes}}
    assert facts.n_bytes == 4 * facts.n_params == 4 * facts.n_params_active


def test_facts_of_a_checkpoint_and_its_run_are_those_of_the_model(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "run/tokenizer/tokenizer.json")
    write_checkpoint(tmp_path / "run/checkpoints/step-00000005", CONFIG, weights_of(random_model(CONFIG)), step=5)
    facts = model_facts(str(tmp_path / "run"))
    assert facts == model_facts(str(tmp_path / "run/checkpoints/step-00000005"))
    assert (facts.kind, facts.rows, facts.tokenizer_ids, list(facts.ends)) == ("checkpoint", 384, N_IDS, [0])
    assert facts.n_bytes == 4 * n_params(CONFIG)
    assert facts.contradictions == []


def _config(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **keys)


def _rules(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "generation_config.json", **keys)


def _settings(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **keys)


def _template(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)
        edit_json(folder / "tokenizer_config.json", chat_template=text)

    return write


def _with_turn_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({"id": 301, "content": "<|im_end|>", "special": True})
    path.write_text(json.dumps(tokenizer))
    _template("{{ messages }}<|im_end|>")(folder)


def _other_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors")


def _in_bf16(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}, folder / "model.safetensors")


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "rope_theta": 5000.0}
CONTRADICTIONS = {
    "element type": (_in_bf16, "config.json says float32, the weights are BF16"),
    "tie": (_other_head, "config.json ties head and table, but model.embed_tokens.weight and lm_head.weight are"),
    "end ids": (_config(eos_token_id=7), "eos: generation_config.json says 0; config.json says 7; tokenizer"),
    "pad ids": (_settings(pad_token="!"), None),
    "begin ids": (_config(bos_token_id=6), "bos: generation_config.json says 5; config.json says 6"),
    "an id of no token": (_rules(eos_token_id=[0, 350]), "generation_config.json: eos_token_id 350 is the id of no"),
    "two templates": (_settings(chat_template="{{ other }}"), "the chat template default of tokenizer_config.json is"),
    "end of turn": (_with_turn_token, "the chat template default ends turns with <|im_end|>, which ends no text"),
    "fewer rows": (_config(vocab_size=200, unpadded_vocab_size=None), "tokenizer.json gives "),
    "shape": (_config(intermediate_size=90), "model.layers.0.mlp.down_proj.weight has shape [48, 80]; config.json"),
    "layers": (_config(num_hidden_layers=4), "the tensors do not fit a llama model with 4 layers: missing"),
    "length": (_config(rope_parameters=YARN, rope_scaling=YARN), "the rope scaling reaches 32 tokens, the context"),
    "limit": (_settings(model_max_length=4096), "tokenizer_config.json: model_max_length is 4,096, the context length"),
    "no limit": (_settings(model_max_length=10**30), None),
    "one of several ends": (_rules(eos_token_id=[0, 5]), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_found(name: str, folder: Path) -> None:
    contradict, said = CONTRADICTIONS[name]
    contradict(folder)
    found = model_facts(str(folder)).contradictions
    assert any(line.startswith(said) for line in found) if said else not found, found


def test_quantised_weights_are_named_and_not_compared(folder: Path) -> None:
    _in_bf16(folder)
    _config(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    try:
        facts = model_facts(str(folder))
    except ValueError as error:  # a method that is refused is refused by its name
        assert "gptq" in str(error)
    else:
        assert (facts.quantisation, facts.contradictions) == ("gptq", [])


def test_facts_of_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "m.gguf")
    save_gguf(HFWeights(str(folder)), HFWeights(str(folder)).config, path, dtype="Q8_0")
    facts = model_facts(path)
    expected = model_facts(str(folder))
    assert (facts.kind, facts.model, facts.contradictions) == ("gguf", path, [])
    assert (facts.family, facts.parameters, facts.rows) == (expected.family, expected.parameters, expected.rows)
    assert facts.dtypes.keys() >= {"F32"}
    assert facts.n_bytes <= expected.n_bytes
