"""AFM (Arcee AI 2025): Llama with a squared ReLU and no gate. Presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys

_DEFAULTS = {
    "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "attention_bias": False,
    "mlp_bias": False,
}  # fmt: skip
_PRESETS = {
    "afm-4.5b": ModelConfig(
        family="arcee",
        dim=2560,
        n_layers=36,
        n_heads=20,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=18432,
        vocab_size=128004,
        padded_vocab_size=128004,
        max_seq_len=65536,
        rope_scaling=RopeScaling(kind="yarn", factor=20.0, original_max_seq_len=4096, mscale=1.0),
        activation="relu2",
        gated_mlp=False,
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf, family="arcee", gated_mlp=False, attention_bias=hf["attention_bias"], mlp_bias=hf["mlp_bias"]
    )


def _write(config: ModelConfig) -> Written:
    return {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias, **write_llama_keys(config)}


_GGUF = Gguf(
    "arcee",
    in_pairs=True,
    stretches=("linear", "yarn", "llama3"),
    only={"attention_bias": False, "mlp_bias": False},
)
FAMILIES = (Family("arcee", "ArceeForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
