"""Adapters in PEFT's folders: peft is the judge of what they mean, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from launchyard.model.weights.source import read_config
from launchyard.model.zoo.families.gpt2 import FAMILIES as GPT2
from tests.support.tiny_models import llama, neox, random_model, random_tokens, weights_of

peft = pytest.importorskip("peft", reason="peft is not installed")
GPT2_TINY = GPT2[0].presets["gpt2"].model_copy(
    update={"dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 12, "ffn_dim": 96, "vocab_size": 131,
            "padded_vocab_size": 131, "max_seq_len": 64}
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft
TIED = llama(tie_embeddings=True)
# config of the base, and what peft is told
ADAPTERS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "llama": (llama(), {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "all-linear, rank-stabilised": (llama(), {"target_modules": "all-linear", "use_rslora": True}),
    "dora": (llama(), {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "regex": (llama(), {"target_modules": r".*layers\.[01]\..*(q|up)_proj"}),
    "some layers": (llama(), {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]}),
    "excluded": (llama(), {"target_modules": ["k_proj", "o_proj"], "exclude_modules": r".*\.2\..*"}),
    "patterns": (
        llama(),
        {
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"k_proj": 3},
        },
    ),
    "whole modules": (llama(), {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": (
        llama(attention_bias=True, mlp_bias=True),
        {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"},
    ),
    "biases of updates": (
        llama(attention_bias=True, mlp_bias=True),
        {"target_modules": ["q_proj", "down_proj"], "lora_bias": True},
    ),
    "table": (llama(), {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied table": (TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": (TIED, {"target_modules": ["lm_head", "q_proj"]}),
    "tied table, whole": (TIED, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "kept tied": (TIED, {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "kept tied, whole": (
        TIED,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "gpt2": (GPT2_TINY, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2, dora": (GPT2_TINY, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "neox": (neox(), {"target_modules": ["query_key_value", "dense_4h_to_h"]}),
    "neox, dora": (neox(), {"target_modules": ["query_key_value"], "use_dora": True}),
}


def write_base(config: ModelConfig, folder: Path) -> Path:
    save_hf(weights_of(random_model(config, std=0.2)), config, str(folder))
    return folder


def write_adapter(base: Path, folder: Path, **options: Any) -> Any:
    """peft's model, with an adapter of random numbers that it wrote into `folder`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    adapted.save_pretrained(folder)
    return adapted.eval()


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_with_an_adapter_is_what_peft_makes_of_both(tmp_path: Path, name: str) -> None:
    config, options = ADAPTERS[name]
    base = write_base(config, tmp_path / "base")
    theirs = write_adapter(base, tmp_path / "adapter", **options)
    tokens = random_tokens(config, 2, 20)
    ours = load(f"{base}+{tmp_path / 'adapter'}", device="cpu")
    torch.testing.assert_close(logits(ours.transformer, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)
    assert (
        logits(ours.transformer, tokens) - logits(load(str(base), device="cpu").transformer, tokens)
    ).abs().max() > 0.01
    assert read_config(str(tmp_path / "adapter")) == ours.config


def test_an_adapter_in_a_pickle_is_read_without_running_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = write_base(llama(), tmp_path / "base")
    theirs = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    tokens = random_tokens(llama(), 1, 9)
    ours = load(str(tmp_path / "adapter"), device="cpu")
    torch.testing.assert_close(logits(ours.transformer, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "an unknown key": ({"use_qalora": True}, "use_qalora: true: not supported"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "another start": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base"),
    "another rank": ({"r": 8}, r"has shape \[4, 48\]; the base and the adapter's config make it \[8, 48\]"),
    "a target without tensors": (
        {"target_modules": ["q_proj", "up_proj"]},
        "up_proj, of which its file has no",
    ),
    "no magnitudes": ({"use_dora": True}, "use_dora is True, and .* has no magnitude"),
    "a base that is gone": ({"base_model_name_or_path": "/nowhere/at/all"}, "--base"),
    "no base": ({"base_model_name_or_path": None}, "names no base"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    write_adapter(write_base(llama(), folder / "base"), folder / "adapter", target_modules=["q_proj"])
    return folder / "adapter"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(adapter: Path, name: str) -> None:
    changes, message = REFUSED[name]
    path = adapter / "adapter_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(str(adapter), device="cpu")
    finally:
        path.write_text(before)


def test_another_base_is_refused_by_a_shape(adapter: Path, tmp_path: Path) -> None:
    wide = write_base(llama(dim=64, n_heads=4), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"shape \[4, 48\].*\[4, 64\].*--base"):
        load(f"{wide}+{adapter}", device="cpu")
    fewer = write_base(llama(n_layers=2), tmp_path / "fewer")
    with pytest.raises(ValueError, match="2 layers, has none"):
        load(f"{fewer}+{adapter}", device="cpu")
