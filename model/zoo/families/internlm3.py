"""InternLM 3 (Shanghai AI Lab 2025): Llama, with other keys for its biases. Presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys

_DEFAULTS = {
    "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
_PRESETS = {
    "internlm3-8b": ModelConfig(
        family="internlm3",
        dim=4096,
        n_layers=48,
        n_heads=32,
        n_kv_heads=2,
        head_dim=128,
        ffn_dim=10_240,
        vocab_size=128_512,
        padded_vocab_size=128_512,
        max_seq_len=32_768,
        rope_theta=50_000_000.0,
        rope_scaling=RopeScaling(kind="dynamic", factor=6.0, original_max_seq_len=32_768),
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    """The biases are `qkv_bias` and `bias` in the releases, `attention_bias` and `mlp_bias` as transformers saves."""
    knobs = {
        "attention_bias": hf.get("qkv_bias", hf.get("attention_bias", False)),
        "mlp_bias": hf.get("bias", hf.get("mlp_bias", False)),
    }
    if knobs["attention_bias"] != knobs["mlp_bias"]:
        raise ValueError(
            f"config.json: qkv_bias is {knobs['attention_bias']} and bias is {knobs['mlp_bias']}; transformers' class "
            "has one for both"
        )
    return read_llama_keys(hf, family="internlm3", **knobs)


def _write(config: ModelConfig) -> Written:
    return {**write_llama_keys(config), "qkv_bias": config.attention_bias, "bias": config.mlp_bias}


FAMILIES = (Family("internlm3", "LlamaForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, llama.GGUF_FACTS),)
