"""Qwen1.5-MoE (Qwen Team 2024) and Qwen2-57B-A14B (Yang et al. 2024): Qwen2 with experts, one of which is always on,
behind a gate of its own. Presets, config, key rules. Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
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

_DEFAULTS = {
    "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 32768, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60, "norm_topk_prob": False,
    "mlp_only_layers": None, "qkv_bias": True,
}  # fmt: skip
_MLP = "model.layers.{i}.mlp"
_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    *EXPERT_RULES,
    *(
        Rename(f"{_MLP}.shared_expert.{name}_proj.weight", f"blocks.{{i}}.mlp.shared.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ),
    Rename(f"{_MLP}.shared_expert_gate.weight", "blocks.{i}.mlp.shared_gate.weight"),
)


def _moe(
    dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, max_seq_len: int, experts: MoE, theta: float
) -> ModelConfig:
    return ModelConfig(
        family="qwen2_moe",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=128,
        ffn_dim=ffn_dim,
        vocab_size=151646,  # ids of the tokenizer
        padded_vocab_size=151936,
        max_seq_len=max_seq_len,
        rope_theta=theta,
        norm_eps=1e-6,
        qkv_bias=True,
        moe=experts,
    )


_SMALL = MoE(n_experts=60, top_k=4, ffn_dim=1408, shared_ffn_dim=5632, shared_gate=True)
_LARGE = MoE(n_experts=64, top_k=8, ffn_dim=2560, shared_ffn_dim=20480, shared_gate=True)
_PRESETS = {
    "qwen1.5-moe-a2.7b": _moe(2048, 24, 16, 16, 5632, 8192, _SMALL, 1e6),
    "qwen2-57b-a14b": _moe(3584, 28, 28, 4, 18944, 131072, _LARGE, 1e6),
}


def _read(hf: HFKeys) -> ModelConfig:
    moe = MoE(
        n_experts=hf.get("num_local_experts") or need(hf, "num_experts"),
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=need(hf, "moe_intermediate_size"),
        normalize=hf["norm_topk_prob"],
        shared_ffn_dim=need(hf, "shared_expert_intermediate_size"),
        shared_gate=True,
        every=need(hf, "decoder_sparse_step"),
        dense_layers=tuple(hf["mlp_only_layers"] or ()),
    )
    return read_llama_keys(hf, family="qwen2_moe", qkv_bias=hf["qkv_bias"], moe=moe, **_read_window(hf))


def _read_window(hf: HFKeys) -> Written:
    """Unlike in Qwen2 every other layer below `max_window_layers` sees the window, where `layer_types` is silent."""
    window = hf.get("sliding_window") if hf["use_sliding_window"] else None
    first_full = hf["max_window_layers"]
    derived: list[Sees] = [
        "full" if n % 2 or n >= first_full else "window" for n in range(need(hf, "num_hidden_layers"))
    ]
    layers = read_layers(hf, derived)
    if window is None or window >= need(hf, "max_position_embeddings") or layers == ("full",):
        return {}
    return {"layers": layers, "window": window}


def _write(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    windows = {"sliding_window": config.window, "layer_types": write_layers(config)} if config.window else {}
    return {
        **write_llama_keys(config),
        "qkv_bias": config.qkv_bias,
        "use_sliding_window": config.window is not None,
        **windows,
        "num_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "moe_intermediate_size": config.moe.ffn_dim,
        "shared_expert_intermediate_size": config.moe.shared_ffn_dim,
        "norm_topk_prob": config.moe.normalize,
        "decoder_sparse_step": config.moe.every,
        "mlp_only_layers": list(config.moe.dense_layers),
    }


def _settle(found: HFKeys) -> Written:
    return {"norm_topk_prob": False}  # as llama.cpp has it for all


_GGUF = Gguf("qwen2moe", head_dim_follows=True, settle=_settle, only={"tie_embeddings": False})
FAMILIES = (Family("qwen2_moe", "Qwen2MoeForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
