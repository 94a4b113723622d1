"""Llama (Touvron et al. 2023; Grattafiori et al. 2024) and families of its shape: presets, config, key rules. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Drop, Rename, Rule

_LAYER = "model.layers.{i}"
RULES: tuple[Rule, ...] = (
    Rename("model.embed_tokens.weight", "embed.weight"),
    Rename(f"{_LAYER}.input_layernorm.weight", "blocks.{i}.attention_norm.weight"),
    Rename(f"{_LAYER}.post_attention_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
    *(
        Rename(f"{_LAYER}.{theirs}.{name}_proj.{kind}", f"blocks.{{i}}.{ours}.{name}_proj.{kind}")
        for theirs, ours, names in (
            ("self_attn", "attention", ("q", "k", "v", "o")),
            ("mlp", "mlp", ("gate", "up", "down")),
        )
        for name in names
        for kind in ("weight", "bias")
    ),
    Rename("model.norm.weight", "norm.weight"),
    Rename("lm_head.weight", "lm_head.weight"),
    Drop(f"{_LAYER}.self_attn.rotary_emb.inv_freq"),  # in files of transformers before 4.31
)
# Of families of its shape whose norms have biases.
NORM_BIAS_RULES: tuple[Rule, ...] = (
    Rename(f"{_LAYER}.input_layernorm.bias", "blocks.{i}.attention_norm.bias"),
    Rename(f"{_LAYER}.post_attention_layernorm.bias", "blocks.{i}.mlp_norm.bias"),
    Rename("model.norm.bias", "norm.bias"),
)


def _llama3(dim: int, n_layers: int, *, head_dim: int, ffn_dim: int, factor: float, tied: bool) -> ModelConfig:
    return ModelConfig(
        family="llama",
        dim=dim,
        n_layers=n_layers,
        n_heads=32,
        n_kv_heads=8,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=128256,
        padded_vocab_size=128256,
        max_seq_len=131072,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192),
        norm_eps=1e-5,
        tie_embeddings=tied,
    )


_PRESETS = {
    "llama-3.2-1b": _llama3(2048, 16, head_dim=64, ffn_dim=8192, factor=32.0, tied=True),
    "llama-3.1-8b": _llama3(4096, 32, head_dim=128, ffn_dim=14336, factor=8.0, tied=False),
}


def _read(hf: Mapping[str, Any]) -> ModelConfig:
    return read_llama_keys(
        hf, family="llama", attention_bias=hf.get("attention_bias", False), mlp_bias=hf.get("mlp_bias", False)
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias, **write_llama_keys(config)}


FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        RULES,
        _read,
        _write,
        {"hidden_act": "silu"},
        _PRESETS,
        Gguf("llama", in_pairs=True),
    ),
)
