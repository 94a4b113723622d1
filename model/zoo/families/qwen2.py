"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with a bias on q, k and v. Presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Sees,
    Written,
    need,
    read_layers,
    read_llama_keys,
    write_layers,
    write_llama_keys,
)

_DEFAULTS: Written = {
    "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28,
    "hidden_act": "silu",
}  # fmt: skip


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
_PRESETS = {
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, max_seq_len=32768, tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11008, max_seq_len=32768, tied=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18944),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13824, norm_eps=1e-5),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27648, norm_eps=1e-5),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29568, norm_eps=1e-5),
}
# Made from Qwen2.5-Math-1.5B, whose frequencies it has, with a head of its own.
_PRESETS["r1-distill-qwen-1.5b"] = _PRESETS["qwen2.5-1.5b"].model_copy(
    update={"tie_embeddings": False, "rope_theta": 10_000.0}
)


def _read(hf: HFKeys) -> ModelConfig:
    # Every model has the bias on q, k and v, without a key for it.
    return read_llama_keys(hf, family="qwen2", qkv_bias=True, **read_window(hf))


def _write(config: ModelConfig) -> Written:
    return {**write_window(config), **write_llama_keys(config)}


def read_window(hf: HFKeys) -> Written:
    """The window of the layers from `max_window_layers` on, if it is in use and hides anything."""
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    n_layers = int(need(hf, "num_hidden_layers"))
    first = hf.get("max_window_layers")
    first = int(_DEFAULTS["max_window_layers"] if first is None else first)
    derived: list[Sees] = ["window" if layer >= first else "full" for layer in range(n_layers)]
    layers = read_layers(hf, derived)
    if window is None or window >= need(hf, "max_position_embeddings") or set(layers) == {"full"}:
        return {}
    return {"layers": layers, "window": window}


def write_window(config: ModelConfig) -> Written:
    if config.window is None:
        return {"use_sliding_window": False}
    types = write_layers(config)
    full = [n for n, kind in enumerate(types) if kind == "full_attention"]
    return {
        "use_sliding_window": True,
        "sliding_window": config.window,
        "max_window_layers": max(full, default=-1) + 1,
        "layer_types": types,
    }


FAMILIES = (
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        llama.RULES,
        _read,
        _write,
        _DEFAULTS,
        _PRESETS,
        Gguf("qwen2", head_dim_follows=True),
    ),
)
