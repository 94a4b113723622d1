"""SantaCoder and StarCoder (Li et al. 2023): GPT-2 with one key head; StarCoder2 (Lozhkov et al. 2024): Llama's keys.

Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.families.gpt2 import gpt2_rules, read_gpt2_keys, write_gpt2_keys
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, read_sliding_window, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_FIRST_DEFAULTS = {
    "n_positions": 1024, "activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True, "multi_query": True, "tie_word_embeddings": True,
}  # fmt: skip
_DEFAULTS = {
    "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "sliding_window": None,
    "max_position_embeddings": 4096, "use_bias": True, "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_RULES: tuple[Rule, ...] = (
    *(rule for rule in llama.RULES if ".mlp." not in rule.theirs),
    *llama.NORM_BIAS_RULES,
    *(
        Rename(f"{_LAYER}.mlp.{theirs}.{kind}", f"blocks.{{i}}.mlp.{ours}.{kind}")
        for theirs, ours in (("c_fc", "up_proj"), ("c_proj", "down_proj"))
        for kind in ("weight", "bias")
    ),
)


def _starcoder(dim: int, n_layers: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt_bigcode",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=1,
        head_dim=dim // n_heads,
        ffn_dim=4 * dim,
        vocab_size=49152,
        padded_vocab_size=49152,
        max_seq_len=8192,
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        attention_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    )


def _starcoder2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, ffn_dim: int, theta: float) -> ModelConfig:
    return ModelConfig(
        family="starcoder2",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=49152,
        padded_vocab_size=49152,
        max_seq_len=16384,
        layers=("window",),
        window=4096,
        rope_theta=theta,
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        attention_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    )


_FIRST_PRESETS = {
    "starcoderbase-1b": _starcoder(2048, 24, 16),
    "starcoder-15b": _starcoder(6144, 40, 48),
}
_PRESETS = {
    "starcoder2-3b": _starcoder2(3072, 30, 24, 2, 12288, 999_999.442),
    "starcoder2-7b": _starcoder2(4608, 32, 36, 4, 18432, 1_000_000.0),
    "starcoder2-15b": _starcoder2(6144, 40, 48, 4, 24576, 100_000.0),
}


def _read_first(hf: HFKeys) -> ModelConfig:
    return read_gpt2_keys(hf, family="gpt_bigcode", n_kv_heads=1 if hf["multi_query"] else None)


def _write_first(config: ModelConfig) -> Written:
    return {"multi_query": config.n_kv_heads == 1, **write_gpt2_keys(config)}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf,
        family="starcoder2",
        norm="layernorm",
        norm_eps=need(hf, "norm_epsilon"),
        gated_mlp=False,
        attention_bias=hf["use_bias"],
        mlp_bias=hf["use_bias"],
        **read_sliding_window(hf),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "sliding_window": config.window,
        "use_bias": config.attention_bias,
        **write_llama_keys(config, eps_key="norm_epsilon"),
    }


def _settle(found: HFKeys) -> Written:
    return {"multi_query": found.get("num_key_value_heads") == 1}


FAMILIES = (
    Family(
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        gpt2_rules(transposed=False, layout="groups"),
        _read_first,
        _write_first,
        _FIRST_DEFAULTS,
        _FIRST_PRESETS,
        Gguf("starcoder", fused_qkv=True, settle=_settle),
    ),
    Family(
        "starcoder2",
        "Starcoder2ForCausalLM",
        _RULES,
        _read,
        _write,
        _DEFAULTS,
        _PRESETS,
        Gguf("starcoder2", head_dim_follows=True, only={"attention_bias": True}),
    ),
)
