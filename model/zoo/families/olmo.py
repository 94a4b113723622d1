"""OLMo (Groeneveld et al. 2024), OLMo 2 (OLMo et al. 2024), OLMo 3 (2025) and OLMoE (Muennighoff et al. 2024).

OLMo's norms have no weights. From 2 on norms stand behind attention and MLP, and one norm is over all heads of the
queries, one over those of the keys; 3 has layers that see a window, which are not stretched. OLMoE's norms are Llama's.
Presets, config, key rules. Light.
"""

from __future__ import annotations

from dataclasses import replace

from launchyard.model.config import ModelConfig, MoE, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.families.qwen3 import EXPERT_RULES
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
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {"hidden_act": "silu", "attention_bias": False, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
_DEFAULTS_1 = {**_DEFAULTS, "clip_qkv": None}
_DEFAULTS_3 = {**_DEFAULTS, "sliding_window": 4096, "rope_theta": 500_000.0}
_DEFAULTS_MOE = {
    **_DEFAULTS_1, "max_position_embeddings": 4096, "num_experts_per_tok": 8, "num_experts": 64,
    "norm_topk_prob": False,
}  # fmt: skip
_EPS = 1e-5  # of OLMo 1, whose config.json has no place for it
_LAYER = "model.layers.{i}"
_QK_RULES: tuple[Rule, ...] = (
    Rename(f"{_LAYER}.self_attn.q_norm.weight", "blocks.{i}.attention.q_norm.weight"),
    Rename(f"{_LAYER}.self_attn.k_norm.weight", "blocks.{i}.attention.k_norm.weight"),
)
RULES_2: tuple[Rule, ...] = (
    *llama.RULES,
    *_QK_RULES,
    Rename(f"{_LAYER}.post_attention_layernorm.weight", "blocks.{i}.attention_out_norm.weight"),
    Rename(f"{_LAYER}.post_feedforward_layernorm.weight", "blocks.{i}.mlp_out_norm.weight"),
)


def _olmo(dim: int, n_layers: int, n_heads: int, ffn_dim: int, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "olmo", "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "ffn_dim": ffn_dim,
        "vocab_size": 50280, "padded_vocab_size": 50304, "max_seq_len": 2048, "norm": "layernorm",
        "norm_weight": "none", "norm_eps": _EPS,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


def _olmo2(*sizes: int, rows: int = 100352, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "olmo2", "vocab_size": 100278, "padded_vocab_size": rows, "max_seq_len": 4096,
        "norm": "rmsnorm", "norm_weight": "plain", "norm_place": "post", "norm_eps": 1e-6, "qk_norm": "width",
        "rope_theta": 500_000.0,
    }  # fmt: skip
    return _olmo(*sizes, **{**base, **knobs})


_PRESETS = {"olmo-1b": _olmo(2048, 16, 16, 8192, tie_embeddings=True), "olmo-7b": _olmo(4096, 32, 32, 11008)}
_PRESETS_2 = {
    "olmo-2-1b": _olmo2(2048, 16, 16, 8192),
    "olmo-2-7b": _olmo2(4096, 32, 32, 11008),
    "olmo-2-13b": _olmo2(5120, 40, 40, 13824),
    "olmo-2-32b": _olmo2(5120, 64, 40, 27648, n_kv_heads=8),
}
_PRESETS_3 = {
    "olmo-3-7b": _olmo2(
        4096, 32, 32, 11008, family="olmo3", rows=100278, max_seq_len=65536, window=4096,
        layers=(*("window",) * 3, "full"), window_rope_theta=500_000.0,
        rope_scaling=RopeScaling(
            kind="yarn", factor=8.0, original_max_seq_len=8192, attention_factor=1.2079441541679836
        ),
    ),
}  # fmt: skip
_PRESETS_MOE = {
    "olmoe-1b-7b": _olmo(
        2048, 16, 16, 1024, family="olmoe", max_seq_len=4096, norm="rmsnorm", norm_weight="plain", qk_norm="width",
        moe=MoE(n_experts=64, top_k=8, ffn_dim=1024),
    ),
}  # fmt: skip


def _read(hf: HFKeys) -> ModelConfig:
    return _read_common(hf, family="olmo", norm="layernorm", norm_weight="none", norm_eps=_EPS, qkv_clip=hf["clip_qkv"])


def _write(config: ModelConfig) -> Written:
    return {"clip_qkv": config.qkv_clip, **_write_common(config)}


def _read_2(hf: HFKeys) -> ModelConfig:
    return _read_common(hf, family="olmo2", norm_place="post", qk_norm="width")


def _read_3(hf: HFKeys) -> ModelConfig:
    """In files of transformers 4 one base counts for all layers, and a stretch for those that see everything."""
    derived: list[Sees] = ["window" if (n + 1) % 4 else "full" for n in range(need(hf, "num_hidden_layers"))]
    local = {} if "full_attention" in (hf.get("rope_parameters") or {}) else {"rope_local_base_freq": hf["rope_theta"]}
    return _read_common(
        {**hf, **local},
        family="olmo3",
        norm_place="post",
        qk_norm="width",
        layers=read_layers(hf, derived),
        window=hf["sliding_window"],
    )


def _write_3(config: ModelConfig) -> Written:
    return {**_write_common(config), "layer_types": write_layers(config), "sliding_window": config.window}


def _read_moe(hf: HFKeys) -> ModelConfig:
    moe = MoE(
        n_experts=need(hf, "num_experts"),
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=need(hf, "intermediate_size"),
        normalize=hf["norm_topk_prob"],
    )
    return _read_common(hf, family="olmoe", qk_norm="width", qkv_clip=hf["clip_qkv"], moe=moe)


def _write_moe(config: ModelConfig) -> Written:
    """transformers 5 has norms of hidden_size elements, whatever head_dim is: it is not written, so it must follow."""
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    written = _write(config)
    del written["head_dim"]
    return {
        **written,
        "num_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.ffn_dim,
        "norm_topk_prob": config.moe.normalize,
    }


def _read_common(hf: HFKeys, **knobs: object) -> ModelConfig:
    return read_llama_keys(hf, attention_bias=hf["attention_bias"], **knobs)


def _write_common(config: ModelConfig) -> Written:
    return {"attention_bias": config.attention_bias, **write_llama_keys(config)}


def _lack_of_groups(config: ModelConfig) -> str | None:
    if config.n_kv_heads == config.n_heads:
        return None
    return f"n_kv_heads is {config.n_kv_heads}, it can only be n_heads"


_ONLY = {"attention_bias": False}
_GGUF = Gguf("olmo", in_pairs=True, head_dim_follows=True, only=_ONLY)
_ONLY_2 = {**_ONLY, "tie_embeddings": False}
_GGUF_3 = Gguf("olmo2", reads_window=True, head_dim_follows=True, only=_ONLY_2)
_GGUF_2 = replace(_GGUF_3, fits=lambda metadata: not metadata.get("olmo2.attention.sliding_window"))
FAMILIES = (
    Family("olmo", "OlmoForCausalLM", llama.RULES, _read, _write, _DEFAULTS_1, _PRESETS, _GGUF),
    Family("olmo2", "Olmo2ForCausalLM", RULES_2, _read_2, _write_common, _DEFAULTS, _PRESETS_2, _GGUF_2),
    Family("olmo3", "Olmo3ForCausalLM", RULES_2, _read_3, _write_3, _DEFAULTS_3, _PRESETS_3, _GGUF_3),
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        (*llama.RULES, *_QK_RULES, *EXPERT_RULES),
        _read_moe,
        _write_moe,
        _DEFAULTS_MOE,
        _PRESETS_MOE,
        Gguf("olmoe", head_dim_follows=True, only={**_ONLY_2, "qkv_clip": None}, lack=_lack_of_groups),
    ),
)
