"""Command R (Cohere, 2024) and Command R7B and A (Cohere et al. 2025): one norm before attention and MLP side by side.

Heads turn pair by pair, and the logits are scaled; the second kind has layers that see a window, and only those turn.
Presets, config, key rules. Light.
"""

from __future__ import annotations

from dataclasses import replace

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
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

_COMMON = {
    "hidden_act": "silu", "attention_bias": False, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625, "tie_word_embeddings": True,
}  # fmt: skip
_DEFAULTS = {**_COMMON, "use_qk_norm": False, "rope_theta": 500_000.0}
_DEFAULTS_2 = {**_COMMON, "sliding_window": 4096}
_LAYER = "model.layers.{i}"
_RULES: tuple[Rule, ...] = (
    *(
        replace(rule, in_pairs=True)
        if isinstance(rule, Rename) and ("q_proj" in rule.theirs or "k_proj" in rule.theirs)
        else rule
        for rule in llama.RULES
    ),
    *(
        Rename(f"{_LAYER}.self_attn.{part}_norm.weight", f"blocks.{{i}}.attention.{part}_norm.weight", in_pairs=True)
        for part in "qk"
    ),
)


def _cohere(dim: int, n_layers: int, n_heads: int, ffn_dim: int, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "cohere", "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "ffn_dim": ffn_dim,
        "vocab_size": 256000, "padded_vocab_size": 256000, "max_seq_len": 131072, "norm": "layernorm",
        "norm_bias": False, "parallel_residual": True, "shared_norm": True, "tie_embeddings": True,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_PRESETS = {"command-r": _cohere(8192, 40, 64, 22528, rope_theta=8e6, logit_scale=0.0625)}
_PRESETS_2 = {
    "command-r7b": _cohere(
        4096, 32, 32, 14336, family="cohere2", n_kv_heads=8, max_seq_len=132096, rope_theta=5e4, logit_scale=0.25,
        layers=(*("window",) * 3, "full"), rope_layers=(True, True, True, False), window=4096,
    ),
}  # fmt: skip


def _read(hf: HFKeys) -> ModelConfig:
    return _read_common(hf, family="cohere", qk_norm="each" if hf["use_qk_norm"] else None)


def _write(config: ModelConfig) -> Written:
    return {"use_qk_norm": config.qk_norm == "each", **_write_common(config)}


def _read_2(hf: HFKeys) -> ModelConfig:
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 4
    derived: list[Sees] = ["window" if (n + 1) % pattern else "full" for n in range(need(hf, "num_hidden_layers"))]
    layers = read_layers(hf, derived)
    return _read_common(
        hf,
        family="cohere2",
        layers=layers,
        window=hf["sliding_window"],
        rope_layers=tuple(sees == "window" for sees in layers),
    )


def _write_2(config: ModelConfig) -> Written:
    return {**_write_common(config), "layer_types": write_layers(config), "sliding_window": config.window}


def _read_common(hf: HFKeys, **knobs: object) -> ModelConfig:
    scale = hf["logit_scale"]
    return read_llama_keys(
        hf,
        norm="layernorm",
        norm_bias=False,
        norm_eps=need(hf, "layer_norm_eps"),
        parallel_residual=True,
        shared_norm=True,
        attention_bias=hf["attention_bias"],
        logit_scale=None if scale == 1 else scale,
        **knobs,
    )


def _write_common(config: ModelConfig) -> Written:
    return {
        "attention_bias": config.attention_bias,
        "logit_scale": 1.0 if config.logit_scale is None else config.logit_scale,
        **write_llama_keys(config, eps_key="layer_norm_eps"),
    }


def _more_keys(config: ModelConfig) -> Written:
    return {"logit_scale": 1.0 if config.logit_scale is None else config.logit_scale, "rope.scaling.type": "none"}


def _lack_of_norms(config: ModelConfig) -> str | None:
    """llama.cpp tells by the number of layers whether queries and keys have norms."""
    if (config.qk_norm is not None) == (config.n_layers >= _LAYERS_WITH_NORMS):
        return None
    return f"qk_norm is {config.qk_norm!r}; with it a model has {_LAYERS_WITH_NORMS} layers or more, without it fewer"


_LAYERS_WITH_NORMS = 64
_ONLY = {"attention_bias": False, "tie_embeddings": True, "rope_scaling": None}
_GGUF = Gguf("command-r", in_pairs=True, head_dim_follows=True, more_keys=_more_keys, only=_ONLY, lack=_lack_of_norms)
_GGUF_2 = Gguf("cohere2", in_pairs=True, reads_window=True, head_dim_follows=True, more_keys=_more_keys, only=_ONLY)
FAMILIES = (
    Family("cohere", "CohereForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),
    Family("cohere2", "Cohere2ForCausalLM", _RULES, _read_2, _write_2, _DEFAULTS_2, _PRESETS_2, _GGUF_2),
)
