"""Seed-OSS (ByteDance Seed 2025): Llama with a bias on q, k and v. Presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys

_DEFAULTS = {
    "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 524288,
    "attention_bias": True, "attention_out_bias": False, "mlp_bias": False,
}  # fmt: skip
_PRESETS = {
    "seed-oss-36b": ModelConfig(
        family="seed_oss",
        dim=5120,
        n_layers=64,
        n_heads=80,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=27648,
        vocab_size=155136,
        padded_vocab_size=155136,
        max_seq_len=524288,
        rope_theta=1e7,
        norm_eps=1e-6,
        qkv_bias=True,
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    before = hf["attention_bias"]
    behind = hf["attention_out_bias"]
    if behind and not before:
        raise ValueError(
            "config.json: attention_out_bias is true and attention_bias false; a bias of the output alone is not "
            "supported"
        )
    return read_llama_keys(
        hf, family="seed_oss", attention_bias=behind, qkv_bias=before and not behind, mlp_bias=hf["mlp_bias"]
    )


def _write(config: ModelConfig) -> Written:
    return {
        "attention_bias": config.attention_bias or config.qkv_bias,
        "attention_out_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        **write_llama_keys(config),
    }


_GGUF = Gguf("seed_oss", parts={"mlp_norm": "post_attention_norm"}, only={"attention_bias": False, "mlp_bias": False})
FAMILIES = (Family("seed_oss", "SeedOssForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
