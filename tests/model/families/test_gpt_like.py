"""Files and configs of the families in gpt_like as they are found: bare models, masks, old keys, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launchyard.model.weights.load import build, open_weights
from launchyard.model.zoo import config_from_hf, preset
from tests.model.families.test_architectures import CPU, theirs_of
from tests.support.architectures.gpt_like import ARCHITECTURES, LONG
from tests.support.tiny_models import random_tokens


@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt"])
@torch.no_grad()
def test_files_of_a_bare_model_lack_the_first_part_of_all_keys(name: str, tmp_path: Path) -> None:
    theirs = theirs_of(name, tmp_path)
    theirs.base_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    prefix = f"{theirs.base_model_prefix}."
    assert not any(key.startswith(prefix) for key in tensors)
    if name == "gpt2":  # as in the first files
        tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(3)}
    save_file(tensors, path)
    config, weights = open_weights(str(tmp_path))
    tokens = random_tokens(config, 1, 12)
    ours = build(config, weights, device=CPU, dtype=None)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx is True.*supported is F"),
        ("gpt2", {"add_cross_attention": True}, r"add_cross_attention is True"),
        ("gpt2", {"n_embd": None}, r"n_embd is missing"),
        ("gpt2", {"n_head": 0}, r"the number of heads is 0"),
        ("falcon-rw", {"num_attention_heads": 71}, r"head_dim"),  # more than hidden_size
        ("opt", {"_remove_final_layer_norm": True}, r"_remove_final_layer_norm is True.*supported is False"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, r"apply_residual_connection_post_layernorm is T"),
        ("mpt", {"attn_config": {"alibi": False}}, r"alibi is False.*supported is True"),
        ("mpt", {"no_bias": False}, r"no_bias is False"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, r"logit_scale is 'inv_sqrt_d_model'.*supported is null"),
        ("falcon-40b", {"parallel_attn": False}, r"parallel_attn is False"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, r"num_ln_in_parallel_attn is 2.*supported is 1"),
        ("phi", {"qk_layernorm": True}, r"qk_layernorm is True"),
        ("phimoe", {"num_experts_per_tok": 3}, r"num_experts_per_tok is 3.*supported is 2"),
        ("phimoe-long", {"rope_parameters": {**LONG, "short_mscale": 1.2, "long_mscale": 1.3}}, r"long_mscale is 1\.3"),
        ("phimoe-long", {"rope_parameters": LONG}, r"short_mscale is missing"),
    ],
)
def test_what_is_not_supported_is_named(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_hf({**ARCHITECTURES[name], **change})


FACTORS = {key: LONG[key] for key in ("short_factor", "long_factor")}


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("phi-grouped", {"rope_theta": 500.0, "partial_rotary_factor": 0.4,
                         "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("phi3-long", {"rope_theta": 5000.0, "rope_scaling": {"type": "su", **FACTORS}}),
        ("phi3-long", {"rope_theta": 5000.0, "rope_scaling": {"type": "yarn", **FACTORS}}),
        ("phi3-partial", {"rope_theta": 5000.0, "partial_rotary_factor": 0.75,
                          "rope_scaling": {"type": "longrope", **FACTORS}}),
        ("falcon", {"rope_theta": 500.0, "hidden_size": None, "n_embed": 48}),
        ("bloom", {"hidden_size": None, "n_embed": 48, "n_layer": None, "num_hidden_layers": 3, "n_head": None,
                   "num_attention_heads": 4}),
        ("phimoe-long", {"rope_theta": 5000.0, "original_max_position_embeddings": 48, "rope_scaling": {
            "type": "longrope", **FACTORS, "short_mscale": 1.3, "long_mscale": 1.3}}),
    ],
)  # fmt: skip
def test_keys_of_transformers_4_mean_the_same(name: str, old: dict[str, Any]) -> None:
    new = ARCHITECTURES[name]
    assert config_from_hf({key: value for key, value in new.items() if key not in NEW} | old) == config_from_hf(new)


NEW = {"rope_parameters"}


RELEASES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
    },
    "gpt-j-6b": {
        "model_type": "gptj", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_embd": 4096,
        "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64,
        "scale_attn_weights": True, "tie_word_embeddings": False, "vocab_size": 50400,
    },
    "bloom-560m": {
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "layer_norm_epsilon": 1e-05,
        "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100,
        "seq_length": 2048, "vocab_size": 250880,
    },
    "opt-125m": {
        "model_type": "opt", "_remove_final_layer_norm": False, "activation_function": "relu",
        "do_layer_norm_before": True, "ffn_dim": 3072, "hidden_size": 768, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 768,
    },
    "mpt-7b": {
        "model_type": "mpt", "attn_config": {
            "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": None,
            "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False, "qk_ln": False,
            "softmax_scale": None,
        },
        "d_model": 4096, "embedding_fraction": 1.0, "expansion_ratio": 4, "learned_pos_emb": True, "logit_scale": None,
        "max_seq_len": 2048, "n_heads": 32, "n_layers": 32, "no_bias": True, "norm_type": "low_precision_layernorm",
        "vocab_size": 50432,
    },
    "falcon-40b": {
        "model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm": False, "bias": False,
        "hidden_size": 8192, "layer_norm_epsilon": 1e-05, "multi_query": True, "new_decoder_architecture": True,
        "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True,
        "vocab_size": 65024,
    },
    "phi-2": {
        "model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 51200,
    },
    "phi-3-mini": {
        "model_type": "phi3", "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASES)
def test_a_preset_is_what_was_released(name: str) -> None:
    """But for the ids of its tokenizer, which config.json does not count."""
    config = preset(name)
    assert config_from_hf(RELEASES[name]) == config.model_copy(update={"vocab_size": config.padded_vocab_size})
