"""nanochat (Karpathy 2025): norms without weights, also behind the table and of rotated heads; a squared ReLU without a
gate, capped logits, and heads that turn the other way round. Presets, config, key rules. Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_LAYER = "model.layers.{i}"
_RULES: tuple[Rule, ...] = (
    *(
        Rename(
            f"{_LAYER}.self_attn.{part}_proj.{kind}",
            f"blocks.{{i}}.attention.{part}_proj.{kind}",
            backwards=part in "qk",
        )
        for part in "qkvo"
        for kind in ("weight", "bias")
    ),
    Rename(f"{_LAYER}.mlp.fc1.weight", "blocks.{i}.mlp.up_proj.weight"),
    Rename(f"{_LAYER}.mlp.fc2.weight", "blocks.{i}.mlp.down_proj.weight"),
    *(rule for rule in llama.RULES if rule.theirs in ("model.embed_tokens.weight", "lm_head.weight")),
)
_DEFAULTS = {
    "hidden_act": "relu2", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "attention_bias": False,
    "final_logit_softcapping": 15.0,
}  # fmt: skip
_KNOBS: Written = {
    "family": "nanochat", "norm_weight": "none", "qk_norm": "unit", "gated_mlp": False, "embed_norm": True,
}  # fmt: skip


def _nanochat(n_layers: int) -> ModelConfig:
    dim = 64 * n_layers
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=dim // 128,
        n_kv_heads=dim // 128,
        head_dim=128,
        ffn_dim=4 * dim,
        vocab_size=65536,
        padded_vocab_size=65536,
        max_seq_len=2048,
        norm_eps=1e-6,
        activation="relu2",
        logit_softcap=15.0,
        **_KNOBS,
    )


_PRESETS = {"nanochat-d20": _nanochat(20), "nanochat-d32": _nanochat(32)}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf, attention_bias=hf["attention_bias"], logit_softcap=hf["final_logit_softcapping"], **_KNOBS
    )


def _write(config: ModelConfig) -> Written:
    return {
        "attention_bias": config.attention_bias,
        "final_logit_softcapping": config.logit_softcap,
        **write_llama_keys(config),
    }


FAMILIES = (Family("nanochat", "NanoChatForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS),)
