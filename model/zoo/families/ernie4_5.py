"""ERNIE 4.5 (Baidu 2025), the dense one: Llama that rotates neighbours. Presets, config, key rules. Light."""

from __future__ import annotations

from dataclasses import replace

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "use_bias": False,
}  # fmt: skip
_ROTATED = tuple(f"blocks.{{i}}.attention.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias"))
_RULES: tuple[Rule, ...] = tuple(
    replace(rule, in_pairs=True) if isinstance(rule, Rename) and rule.ours in _ROTATED else rule for rule in llama.RULES
)
_PRESETS = {
    "ernie-4.5-0.3b": ModelConfig(
        family="ernie4_5",
        dim=1024,
        n_layers=18,
        n_heads=16,
        n_kv_heads=2,
        head_dim=128,
        ffn_dim=3072,
        vocab_size=103_424,
        padded_vocab_size=103_424,
        max_seq_len=131_072,
        rope_theta=500_000.0,
        tie_embeddings=True,
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="ernie4_5", attention_bias=hf["use_bias"], mlp_bias=hf["use_bias"])


def _write(config: ModelConfig) -> Written:
    return {**write_llama_keys(config), "use_bias": config.attention_bias}


_GGUF = Gguf("ernie4_5", in_pairs=True, only={"attention_bias": False, "mlp_bias": False})
FAMILIES = (Family("ernie4_5", "Ernie4_5ForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
