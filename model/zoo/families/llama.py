"""Llama (Touvron et al. 2023; Grattafiori et al. 2024) and families of its shape: presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys
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


_DEFAULTS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def _llama(dim: int, n_layers: int, n_heads: int, ffn_dim: int, **knobs: object) -> ModelConfig:
    base = {
        "family": "llama", "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "head_dim": dim // n_heads,
        "ffn_dim": ffn_dim, "vocab_size": 32_000, "padded_vocab_size": knobs.get("vocab_size", 32_000),
        "max_seq_len": 2048,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


def _llama1(dim: int, n_layers: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    return _llama(dim, n_layers, n_heads, ffn_dim, norm_eps=1e-6)


def _llama2(dim: int, n_layers: int, n_heads: int, ffn_dim: int, *, n_kv_heads: int | None = None) -> ModelConfig:
    return _llama(dim, n_layers, n_heads, ffn_dim, n_kv_heads=n_kv_heads or n_heads, max_seq_len=4096)


def _codellama(dim: int, n_layers: int, n_heads: int, ffn_dim: int, vocab_size: int, n_kv_heads: int) -> ModelConfig:
    more = {"vocab_size": vocab_size, "n_kv_heads": n_kv_heads, "max_seq_len": 16_384, "rope_theta": 1_000_000.0}
    return _llama(dim, n_layers, n_heads, ffn_dim, **more)


def _llama3(dim: int, n_layers: int, n_heads: int, ffn_dim: int, **knobs: object) -> ModelConfig:
    more = {"vocab_size": 128_256, "n_kv_heads": 8, "max_seq_len": 8192, "rope_theta": 500_000.0, **knobs}
    return _llama(dim, n_layers, n_heads, ffn_dim, **more)


def _llama31(
    dim: int, n_layers: int, n_heads: int, ffn_dim: int, *, factor: float = 8.0, **knobs: object
) -> ModelConfig:
    stretch = RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
    return _llama3(dim, n_layers, n_heads, ffn_dim, max_seq_len=131_072, rope_scaling=stretch, **knobs)


def _smollm2(dim: int, n_layers: int, n_heads: int, ffn_dim: int, n_kv_heads: int, theta: float) -> ModelConfig:
    more = {"vocab_size": 49_152, "max_seq_len": 8192, "tie_embeddings": True}
    return _llama(dim, n_layers, n_heads, ffn_dim, n_kv_heads=n_kv_heads, rope_theta=theta, **more)


_PRESETS = {
    "llama-7b": _llama1(4096, 32, 32, 11_008),
    "llama-13b": _llama1(5120, 40, 40, 13_824),
    "llama-30b": _llama1(6656, 60, 52, 17_920),
    "llama-65b": _llama1(8192, 80, 64, 22_016),
    "llama-2-7b": _llama2(4096, 32, 32, 11_008),
    "llama-2-13b": _llama2(5120, 40, 40, 13_824),
    "llama-2-70b": _llama2(8192, 80, 64, 28_672, n_kv_heads=8),
    "codellama-7b": _codellama(4096, 32, 32, 11_008, 32_016, 32),
    "codellama-34b": _codellama(8192, 48, 64, 22_016, 32_000, 8),
    "llama-3-8b": _llama3(4096, 32, 32, 14_336),
    "llama-3-70b": _llama3(8192, 80, 64, 28_672),
    "llama-3.1-8b": _llama31(4096, 32, 32, 14_336),
    "llama-3.1-70b": _llama31(8192, 80, 64, 28_672),
    "llama-3.1-405b": _llama31(16_384, 126, 128, 53_248),
    "llama-3.2-1b": _llama31(2048, 16, 32, 8192, factor=32.0, tie_embeddings=True),
    "llama-3.2-3b": _llama31(3072, 28, 24, 8192, factor=32.0, tie_embeddings=True),
    "tinyllama-1.1b": _llama(2048, 22, 32, 5632, n_kv_heads=4),
    "smollm2-135m": _smollm2(576, 30, 9, 1536, 3, 100_000.0),
    "smollm2-360m": _smollm2(960, 32, 15, 2560, 5, 100_000.0),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 8192, 32, 130_000.0),
}

# Its code also runs Mistral and Mixtral.
GGUF_FACTS = Gguf(
    "llama",
    in_pairs=True,
    stretches=("linear", "yarn", "llama3", "longrope"),
    fits=lambda metadata: not (metadata.get("llama.expert_count") or metadata.get("llama.attention.sliding_window")),
)


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="llama", attention_bias=hf["attention_bias"], mlp_bias=hf["mlp_bias"])


def _write(config: ModelConfig) -> Written:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias, **write_llama_keys(config)}


FAMILIES = (Family("llama", "LlamaForCausalLM", RULES, _read, _write, _DEFAULTS, _PRESETS, GGUF_FACTS),)
