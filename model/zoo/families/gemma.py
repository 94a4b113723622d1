"""Gemma 1, 2 and 3 (Gemma Team 2024, 2024, 2025): norms multiply by 1 + w, the head is the embedding table.

2 and 3 have norms on both sides of each part and layers that see a window; 2 bounds scores and logits, 3 norms queries
and keys and turns the layers of a window by a base of their own. Presets, config, key rules. Light.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Sees,
    Written,
    need,
    read_activation,
    read_layers,
    read_llama_keys,
    refuse,
    write_layers,
    write_llama_keys,
)
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "attention_bias": False,
}  # fmt: skip
_DEFAULTS_2 = {
    "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}  # fmt: skip
_DEFAULTS_3 = {
    **_DEFAULTS_2, "vocab_size": 262208, "max_position_embeddings": 131072, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_size": 2304,
    "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_RULES_2: tuple[Rule, ...] = (
    *(rule for rule in llama.RULES if "post_attention_layernorm" not in rule.theirs),
    Rename(f"{_LAYER}.post_attention_layernorm.weight", "blocks.{i}.attention_out_norm.weight"),
    Rename(f"{_LAYER}.pre_feedforward_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
    Rename(f"{_LAYER}.post_feedforward_layernorm.weight", "blocks.{i}.mlp_out_norm.weight"),
)
_RULES_3: tuple[Rule, ...] = (
    *_RULES_2,
    Rename(f"{_LAYER}.self_attn.q_norm.weight", "blocks.{i}.attention.q_norm.weight"),
    Rename(f"{_LAYER}.self_attn.k_norm.weight", "blocks.{i}.attention.k_norm.weight"),
)


def _gemma(
    dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, *, vocab_size: int = 256000, **knobs: object
) -> ModelConfig:
    base = {
        "family": "gemma", "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads,
        "head_dim": 256, "ffn_dim": ffn_dim, "vocab_size": vocab_size, "padded_vocab_size": vocab_size,
        "max_seq_len": 8192, "norm_weight": "plus_one", "norm_eps": 1e-6, "activation": "gelu_tanh",
        "embed_scale": math.sqrt(dim), "tie_embeddings": True,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


def _gemma2(*sizes: int, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "gemma2", "norm_place": "sandwich", "layers": ("window", "full"), "window": 4096,
        "attention_softcap": 50.0, "logit_softcap": 30.0,
    }  # fmt: skip
    return _gemma(*sizes, **{**base, **knobs})


def _gemma3(*sizes: int, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "gemma3_text", "norm_place": "sandwich", "layers": (*("window",) * 5, "full"), "window": 1024,
        "qk_norm": "head", "vocab_size": 262208, "max_seq_len": 131072, "rope_theta": 1e6, "window_rope_theta": 1e4,
    }  # fmt: skip
    return _gemma(*sizes, **{**base, **knobs})


_PRESETS = {"gemma-2b": _gemma(2048, 18, 8, 1, 16384), "gemma-7b": _gemma(3072, 28, 16, 16, 24576)}
_PRESETS_2 = {
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 9216),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 14336),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 36864, head_dim=128, attention_scale=144**-0.5),
}
_SMALL = {"vocab_size": 262144, "window": 512, "max_seq_len": 32768}
_LONG = {"rope_scaling": RopeScaling(kind="linear", factor=8.0)}
_PRESETS_3 = {  # from 4b on, the part for text
    "gemma-3-270m": _gemma3(640, 18, 4, 1, 2048, **_SMALL),
    "gemma-3-1b": _gemma3(1152, 26, 4, 1, 6912, **_SMALL),
    "gemma-3-4b": _gemma3(2560, 34, 8, 4, 10240, **_LONG),
    "gemma-3-12b": _gemma3(3840, 48, 16, 8, 15360, **_LONG),
    "gemma-3-27b": _gemma3(5376, 62, 32, 16, 21504, head_dim=128, attention_scale=168**-0.5, **_LONG),
}


def _read(hf: HFKeys) -> ModelConfig:
    """Of two keys of the activation the newer counts; "gelu" means its tanh form here."""
    refuse(hf, "use_bidirectional_attention", False, why="of an encoder")
    found = read_activation({"act": hf.get("hidden_activation") or need(hf, "hidden_act")}, "act")
    return _read_common(hf, family="gemma", activation="gelu_tanh" if found == "gelu" else found)


def _write(config: ModelConfig) -> Written:
    return {"attention_bias": config.attention_bias, **write_llama_keys(config)}


def _read_2(hf: HFKeys) -> ModelConfig:
    return _read_newer(hf, family="gemma2", pattern=2)


def _read_3(hf: HFKeys) -> ModelConfig:
    refuse(hf, "attn_logit_softcapping", why="ignored by transformers in Gemma 3")
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    return _read_newer(hf, family="gemma3_text", pattern=pattern, qk_norm="head")


def _read_newer(hf: HFKeys, *, pattern: int, **knobs: object) -> ModelConfig:
    """Every layer whose number is a multiple of `pattern` sees everything, where `layer_types` does not say it."""
    refuse(hf, "use_bidirectional_attention", False, why="of an encoder")
    derived: list[Sees] = ["window" if (n + 1) % pattern else "full" for n in range(need(hf, "num_hidden_layers"))]
    scalar = need(hf, "query_pre_attn_scalar")
    return _read_common(
        hf,
        activation=read_activation(hf, "hidden_activation"),
        norm_place="sandwich",
        layers=read_layers(hf, derived),
        window=hf["sliding_window"],
        attention_scale=None if scalar == need(hf, "head_dim") else scalar**-0.5,
        attention_softcap=hf["attn_logit_softcapping"],
        logit_softcap=hf["final_logit_softcapping"],
        **knobs,
    )


def _write_newer(config: ModelConfig) -> Written:
    scale = config.attention_scale
    return {
        **write_llama_keys(config, activation_key="hidden_activation"),
        "attention_bias": config.attention_bias,
        "layer_types": write_layers(config),
        "sliding_window": config.window,
        "query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def _read_common(hf: HFKeys, **knobs: object) -> ModelConfig:
    return read_llama_keys(
        hf,
        norm_weight="plus_one",
        attention_bias=hf["attention_bias"],
        embed_scale=math.sqrt(need(hf, "hidden_size")),
        **knobs,
    )


def _settle(layers_of_27b: int) -> Callable[[HFKeys], Written]:
    """llama.cpp tells the 27B, whose queries are scaled in another way, by its number of layers."""

    def settle(found: HFKeys) -> Written:
        of_27b = need(found, "num_hidden_layers") == layers_of_27b
        width = need(found, "hidden_size") // need(found, "num_attention_heads")
        return {"query_pre_attn_scalar": width if of_27b else need(found, "head_dim")}

    return settle


_ONLY = {"attention_bias": False, "tie_embeddings": True}
_GGUF = Gguf("gemma", plus_one=True, only=_ONLY)
_GGUF_2 = Gguf("gemma2", plus_one=True, reads_window=True, settle=_settle(46), only=_ONLY)
_GGUF_3 = Gguf("gemma3", plus_one=True, reads_window=True, settle=_settle(62), only={"attention_bias": False})
FAMILIES = (
    Family("gemma", "GemmaForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),
    Family("gemma2", "Gemma2ForCausalLM", _RULES_2, _read_2, _write_newer, _DEFAULTS_2, _PRESETS_2, _GGUF_2),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _RULES_3,
        _read_3,
        _write_newer,
        _DEFAULTS_3,
        _PRESETS_3,
        _GGUF_3,
        inside=("gemma3",),
    ),
)
