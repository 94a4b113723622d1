"""GPT-NeoX (Black et al. 2022) and the Pythia suite (Biderman et al. 2023): presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HF_ACTIVATIONS,
    HFKeys,
    Written,
    need,
    read_activation,
    read_rope,
    read_vocab,
    write_rope,
    write_vocab,
)
from launchyard.model.zoo.rules import Drop, Rename, Rule

_DEFAULTS = {"hidden_act": "gelu"}
_LAYER = "gpt_neox.layers.{i}"
_QKV = "attention.query_key_value"
_RULES: tuple[Rule, ...] = (
    Rename("gpt_neox.embed_in.weight", "embed.weight"),
    *(
        rule
        for kind in ("weight", "bias")
        for rule in (
            Rename(f"{_LAYER}.input_layernorm.{kind}", f"blocks.{{i}}.attention_norm.{kind}"),
            Rename(f"{_LAYER}.{_QKV}.{kind}", tuple(f"blocks.{{i}}.attention.{p}_proj.{kind}" for p in "qkv"), "heads"),
            Rename(f"{_LAYER}.attention.dense.{kind}", f"blocks.{{i}}.attention.o_proj.{kind}"),
            Rename(f"{_LAYER}.post_attention_layernorm.{kind}", f"blocks.{{i}}.mlp_norm.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_h_to_4h.{kind}", f"blocks.{{i}}.mlp.up_proj.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_4h_to_h.{kind}", f"blocks.{{i}}.mlp.down_proj.{kind}"),
            Rename(f"gpt_neox.final_layer_norm.{kind}", f"norm.{kind}"),
        )
    ),
    Rename("embed_out.weight", "lm_head.weight"),
    Drop(f"{_LAYER}.attention.bias"),  # the causal mask, in files of transformers before 4.30
    Drop(f"{_LAYER}.attention.masked_bias"),
    Drop(f"{_LAYER}.attention.rotary_emb.inv_freq"),
)


def _pythia(dim: int, n_layers: int, n_heads: int, *, padded_vocab_size: int = 50304) -> ModelConfig:
    return ModelConfig(
        family="gpt_neox",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=dim // n_heads,
        ffn_dim=4 * dim,
        vocab_size=50277,  # ids of the tokenizer: runs of spaces lie behind its 50,254 words
        padded_vocab_size=padded_vocab_size,
        max_seq_len=2048,
        rope_fraction=0.25,
        norm="layernorm",
        activation="gelu",
        gated_mlp=False,
        parallel_residual=True,
        attention_bias=True,
        mlp_bias=True,
    )


# Table 1 of the Pythia paper; 14m and 31m were added to the suite later. The padding followed the tensor parallelism.
_PRESETS = {
    "pythia-14m": _pythia(128, 6, 4),
    "pythia-31m": _pythia(256, 6, 8),
    "pythia-70m": _pythia(512, 6, 8),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
    "pythia-1.4b": _pythia(2048, 24, 16),
    "pythia-2.8b": _pythia(2560, 32, 32),
    "pythia-6.9b": _pythia(4096, 32, 32, padded_vocab_size=50432),
    "pythia-12b": _pythia(5120, 36, 40, padded_vocab_size=50688),
}


def _read(hf: HFKeys) -> ModelConfig:
    dim = int(need(hf, "hidden_size"))
    heads = int(need(hf, "num_attention_heads"))
    return ModelConfig(
        family="gpt_neox",
        dim=dim,
        n_layers=need(hf, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=need(hf, "intermediate_size"),
        max_seq_len=need(hf, "max_position_embeddings"),
        norm="layernorm",
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        activation=read_activation(hf),
        gated_mlp=False,
        parallel_residual=hf.get("use_parallel_residual", True),
        attention_bias=hf.get("attention_bias", True),
        mlp_bias=True,
        tie_embeddings=hf.get("tie_word_embeddings", False),
        **read_vocab(hf),
        **read_rope(hf, theta_key="rotary_emb_base", fraction_key="rotary_pct", fraction=0.25),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        **write_rope(config, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
        "layer_norm_eps": config.norm_eps,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


def _more_keys(config: ModelConfig) -> Written:
    return {"use_parallel_residual": config.parallel_residual}


_GGUF = Gguf("gptneox", fused_qkv=True, more_keys=_more_keys, only={"attention_bias": True, "tie_embeddings": False})
FAMILIES = (Family("gpt_neox", "GPTNeoXForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
