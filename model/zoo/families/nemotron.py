"""Nemotron-4 (Parmar et al. 2024) and Minitron (Muralidharan et al. 2024): squared ReLU, norms that multiply by 1 + w
and add a bias, half of each head turns. Presets, config, key rules. Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, write_llama_keys

_DEFAULTS = {
    "hidden_act": "relu2", "max_position_embeddings": 4096, "norm_eps": 1e-5, "partial_rotary_factor": 0.5,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def _nemotron(dim: int, n_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig(
        family="nemotron",
        dim=dim,
        n_layers=32,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=128,
        ffn_dim=ffn_dim,
        vocab_size=256000,
        padded_vocab_size=256000,
        max_seq_len=4096,
        rope_fraction=0.5,
        norm="layernorm",
        norm_weight="plus_one",
        norm_bias=True,
        activation="relu2",
        gated_mlp=False,
    )


_PRESETS = {"nemotron-mini-4b": _nemotron(3072, 24, 9216), "minitron-8b": _nemotron(4096, 48, 16384)}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf,
        family="nemotron",
        norm="layernorm",
        norm_weight="plus_one",
        norm_bias=True,
        norm_eps=need(hf, "norm_eps"),
        gated_mlp=False,
        attention_bias=hf["attention_bias"],
        mlp_bias=hf["mlp_bias"],
    )


def _write(config: ModelConfig) -> Written:
    return {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        **write_llama_keys(config, eps_key="norm_eps", fraction_key="partial_rotary_factor"),
    }


_RULES = (*llama.RULES, *llama.NORM_BIAS_RULES)
_GGUF = Gguf("nemotron", plus_one=True, head_dim_follows=True, only={"tie_embeddings": False})
FAMILIES = (Family("nemotron", "NemotronForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
