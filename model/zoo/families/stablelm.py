"""StableLM 3B and 2 (Bellagente et al. 2024): layer norms, a quarter of each head turns; the largest has one norm for
attention and MLP side by side, and one for each head. Presets, config, key rules. Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25, "use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    *llama.NORM_BIAS_RULES,
    *(  # a tensor for each head
        Rename(f"{_LAYER}.self_attn.{part}_layernorm.norms.{{e}}.weight", f"blocks.{{i}}.attention.{part}_norm.weight")
        for part in "qk"
    ),
)


def _stablelm(dim: int, n_layers: int, ffn_dim: int, vocab_size: int, **knobs: object) -> ModelConfig:
    base: Written = {
        "family": "stablelm", "dim": dim, "n_layers": n_layers, "n_heads": 32, "ffn_dim": ffn_dim,
        "vocab_size": vocab_size, "padded_vocab_size": vocab_size, "max_seq_len": 4096, "rope_fraction": 0.25,
        "norm": "layernorm",
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_PRESETS = {
    "stablelm-3b": _stablelm(2560, 32, 6912, 50277, padded_vocab_size=50304),  # ids of the tokenizer
    "stablelm-2-1.6b": _stablelm(2048, 24, 5632, 100352, qkv_bias=True),
    "stablelm-2-12b": _stablelm(
        5120, 40, 13824, 100352, n_kv_heads=8, qk_norm="each", parallel_residual=True, shared_norm=True
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    parallel = hf["use_parallel_residual"]
    return read_llama_keys(
        hf,
        family="stablelm",
        norm="layernorm",
        norm_eps=need(hf, "layer_norm_eps"),
        qkv_bias=hf["use_qkv_bias"],
        qk_norm="each" if hf["qk_layernorm"] else None,
        parallel_residual=parallel,
        shared_norm=parallel,
    )


def _write(config: ModelConfig) -> Written:
    """Its class of transformers derives head_dim, whatever config.json says."""
    written = write_llama_keys(config, eps_key="layer_norm_eps", fraction_key="partial_rotary_factor")
    del written["head_dim"]
    return {
        "use_qkv_bias": config.qkv_bias,
        "qk_layernorm": config.qk_norm == "each",
        "use_parallel_residual": config.parallel_residual,
        **written,
    }


def _settle(found: HFKeys) -> Written:
    """llama.cpp tells one norm of a layer from two by the tensors; so does the key that goes with it."""
    return {"use_parallel_residual": bool(found.get("use_parallel_residual"))}


def _more_keys(config: ModelConfig) -> Written:
    return {"use_parallel_residual": config.parallel_residual}


_GGUF = Gguf("stablelm", settle=_settle, more_keys=_more_keys, only={"tie_embeddings": False})
FAMILIES = (Family("stablelm", "StableLmForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
