"""Qwen3 (Yang et al. 2025), dense and with experts: queries and keys are normed head by head. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.families.qwen2 import read_window, write_window
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "use_sliding_window": False,
    "max_window_layers": 28, "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip
_MOE_DEFAULTS = {
    **_DEFAULTS, "num_key_value_heads": 4, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
    "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": False, "mlp_only_layers": None,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    Rename(f"{_LAYER}.self_attn.q_norm.weight", "blocks.{i}.attention.q_norm.weight"),
    Rename(f"{_LAYER}.self_attn.k_norm.weight", "blocks.{i}.attention.k_norm.weight"),
)
EXPERT_RULES: tuple[Rule, ...] = (
    Rename(f"{_LAYER}.mlp.gate.weight", "blocks.{i}.mlp.router.weight"),
    *(
        Rename(f"{_LAYER}.mlp.experts.{{e}}.{name}_proj.weight", f"blocks.{{i}}.mlp.experts.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ),
)


def _qwen3(
    dim: int, n_layers: int, n_heads: int, ffn_dim: int, *, n_kv_heads: int = 8, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=128,
        ffn_dim=ffn_dim,
        vocab_size=151669,  # ids of the tokenizer
        padded_vocab_size=151936,
        max_seq_len=32768,
        rope_theta=1_000_000.0,
        norm_eps=1e-6,
        qk_norm="head",
        tie_embeddings=tied,
    )


def _moe(dim: int, n_layers: int, n_heads: int, ffn_dim: int, expert_dim: int) -> ModelConfig:
    base = _qwen3(dim, n_layers, n_heads, ffn_dim, n_kv_heads=4)
    moe = MoE(n_experts=128, top_k=8, ffn_dim=expert_dim, normalize=True)
    return base.model_copy(update={"family": "qwen3_moe", "moe": moe})


_PRESETS = {
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600),
}
_MOE_PRESETS = {
    "qwen3-30b-a3b": _moe(2048, 48, 32, 6144, 768),
    "qwen3-235b-a22b": _moe(4096, 94, 64, 12288, 1536),
}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="qwen3", qk_norm="head", attention_bias=hf["attention_bias"], **read_window(hf))


def _write(config: ModelConfig) -> Written:
    return {"attention_bias": config.attention_bias, **write_window(config), **write_llama_keys(config)}


def _read_moe(hf: HFKeys) -> ModelConfig:
    """transformers 5 writes the number of experts under Mixtral's key."""
    experts = hf.get("num_local_experts") or need(hf, "num_experts")
    moe = MoE(
        n_experts=experts,
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=need(hf, "moe_intermediate_size"),
        normalize=hf["norm_topk_prob"],
        every=hf["decoder_sparse_step"],
        dense_layers=tuple(hf.get("mlp_only_layers") or ()),
    )
    return read_llama_keys(
        hf, family="qwen3_moe", qk_norm="head", attention_bias=hf["attention_bias"], moe=moe, **read_window(hf)
    )


def _write_moe(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    return {
        **_write(config),
        "num_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "moe_intermediate_size": config.moe.ffn_dim,
        "norm_topk_prob": config.moe.normalize,
        "decoder_sparse_step": config.moe.every,
        "mlp_only_layers": list(config.moe.dense_layers),
    }


def _settle(found: HFKeys) -> Written:
    return {"norm_topk_prob": True}  # as llama.cpp has it for all


_GGUF = Gguf("qwen3", only={"attention_bias": False})
_GGUF_MOE = Gguf("qwen3moe", settle=_settle, only={"attention_bias": False})
FAMILIES = (
    Family("qwen3", "Qwen3ForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        (*_RULES, *EXPERT_RULES),
        _read_moe,
        _write_moe,
        _MOE_DEFAULTS,
        _MOE_PRESETS,
        _GGUF_MOE,
    ),
)
