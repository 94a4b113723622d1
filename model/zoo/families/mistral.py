"""Mistral (Jiang et al. 2023) and Mixtral (Jiang et al. 2024): Llama with a window, and with experts. Light."""

from __future__ import annotations

from dataclasses import replace

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, read_sliding_window, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, "hidden_act": "silu"}
_MOE_DEFAULTS = {
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2,
    "hidden_act": "silu", "rope_theta": 1e6,
}  # fmt: skip
_EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}"
MOE_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    Rename("model.layers.{i}.block_sparse_moe.gate.weight", "blocks.{i}.mlp.router.weight"),
    Rename(f"{_EXPERT}.w1.weight", "blocks.{i}.mlp.experts.gate_proj.weight"),
    Rename(f"{_EXPERT}.w3.weight", "blocks.{i}.mlp.experts.up_proj.weight"),
    Rename(f"{_EXPERT}.w2.weight", "blocks.{i}.mlp.experts.down_proj.weight"),
)


def _mistral(vocab_size: int, **knobs: object) -> ModelConfig:
    base = {
        "family": "mistral", "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128,
        "ffn_dim": 14336, "vocab_size": vocab_size, "padded_vocab_size": vocab_size, "max_seq_len": 32768,
        "rope_theta": 1e6, "norm_eps": 1e-5,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_PRESETS = {
    "mistral-7b-v0.1": _mistral(32000, rope_theta=1e4, layers=("window",), window=4096),
    "mistral-7b-v0.3": _mistral(32768),
    "mistral-nemo-12b": _mistral(131072, dim=5120, n_layers=40, max_seq_len=131072),
}
_MOE_PRESETS = {
    "mixtral-8x7b": _mistral(32000, family="mixtral", moe=MoE(n_experts=8, top_k=2, ffn_dim=14336, normalize=True)),
}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="mistral", **read_sliding_window(hf))


def _write(config: ModelConfig) -> Written:
    return {"sliding_window": config.window, **write_llama_keys(config)}


def _read_moe(hf: HFKeys) -> ModelConfig:
    moe = MoE(
        n_experts=need(hf, "num_local_experts"),
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=need(hf, "intermediate_size"),
        normalize=True,
    )
    return read_llama_keys(hf, family="mixtral", moe=moe, **read_sliding_window(hf))


def _write_moe(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    return {
        **_write(config),
        "num_local_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.ffn_dim,
    }


_GGUF = replace(llama.GGUF_FACTS, fits=lambda metadata: not metadata.get("llama.expert_count"))
_GGUF_MOE = replace(llama.GGUF_FACTS, fits=lambda metadata: bool(metadata.get("llama.expert_count")))
FAMILIES = (
    Family("mistral", "MistralForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),
    Family("mixtral", "MixtralForCausalLM", MOE_RULES, _read_moe, _write_moe, _MOE_DEFAULTS, _MOE_PRESETS, _GGUF_MOE),
)
