"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with a bias on q, k and v. Presets, config, key rules. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launchyard.model.config import ModelConfig
from launchyard.model.zoo import llama
from launchyard.model.zoo.hf_config import need, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rule

MODEL_TYPE = "qwen2"
RULES: tuple[Rule, ...] = llama.RULES
# Defaults of transformers' Qwen2Config for keys that config.json lacks.
_KV_HEADS = 32
_SLIDING_WINDOW = 4096
_MAX_WINDOW_LAYERS = 28


def _qwen25(
    dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    ffn_dim: int,
    *,
    max_seq_len: int = 131072,
    norm_eps: float = 1e-6,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        family="qwen2",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=151665,  # ids of the tokenizer
        padded_vocab_size=151936 if tied else 152064,
        max_seq_len=max_seq_len,
        rope_theta=1_000_000.0,
        norm_eps=norm_eps,
        qkv_bias=True,
        tie_embeddings=tied,
    )


# The base models; the instruct models of 14b and larger have a norm_eps of 1e-6, and all of them 32768 positions.
PRESETS: dict[str, ModelConfig] = {
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, max_seq_len=32768, tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11008, max_seq_len=32768, tied=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18944),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13824, norm_eps=1e-5),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27648, norm_eps=1e-5),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29568, norm_eps=1e-5),
}


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """ValueError names the key that is missing or has a value we do not support."""
    _refuse_window(hf)
    # Every model has the bias on q, k and v, without a key for it.
    return read_llama_keys(hf, n_kv_heads=_KV_HEADS, family="qwen2", qkv_bias=True)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A knob that the format has no place for is left out; the zoo finds and refuses it."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": MODEL_TYPE,
        "use_sliding_window": False,
        **write_llama_keys(config),
    }


def _refuse_window(hf: Mapping[str, Any]) -> None:
    """ValueError if a layer sees only a window. The default of a key counts, as Qwen2Config has them."""
    window = hf.get("sliding_window", _SLIDING_WINDOW) if hf.get("use_sliding_window") else None
    layers = _sliding_layers(hf)
    if window is not None and layers and window < need(hf, "max_position_embeddings"):
        raise ValueError(
            f"config.json: use_sliding_window gives layers {layers[0]} to {layers[-1]} a sliding window of {window} "
            f"tokens, which is not supported. Up to {window} tokens the model is the same with use_sliding_window=false"
        )


def _sliding_layers(hf: Mapping[str, Any]) -> list[int]:
    types = hf.get("layer_types")
    if types is not None:
        return [layer for layer, kind in enumerate(types) if kind != "full_attention"]
    first = hf.get("max_window_layers")
    return list(range(_MAX_WINDOW_LAYERS if first is None else first, need(hf, "num_hidden_layers")))
