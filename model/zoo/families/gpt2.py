"""GPT-2 (Radford et al. 2019): a table of positions, and matrices that files hold as (in, out). Light."""

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
    read_vocab,
    refuse,
    write_vocab,
)
from launchyard.model.zoo.rules import Drop, Layout, Rename, Rule

_DEFAULTS = {
    "n_positions": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = "transformer.h.{i}"


def gpt2_rules(*, transposed: bool, layout: Layout) -> tuple[Rule, ...]:
    """transposed: matrices of blocks are (in, out). layout: of the rows of q, k and v."""
    return (
        Rename("transformer.wte.weight", "embed.weight"),
        Rename("transformer.wpe.weight", "positions.weight"),
        *(
            Rename(f"{_LAYER}.{theirs}.{kind}", ours, layout, transposed=transposed)
            for kind in ("weight", "bias")
            for theirs, ours in (
                ("ln_1", f"blocks.{{i}}.attention_norm.{kind}"),
                ("attn.c_attn", tuple(f"blocks.{{i}}.attention.{part}_proj.{kind}" for part in "qkv")),
                ("attn.c_proj", f"blocks.{{i}}.attention.o_proj.{kind}"),
                ("ln_2", f"blocks.{{i}}.mlp_norm.{kind}"),
                ("mlp.c_fc", f"blocks.{{i}}.mlp.up_proj.{kind}"),
                ("mlp.c_proj", f"blocks.{{i}}.mlp.down_proj.{kind}"),
            )
        ),
        Rename("transformer.ln_f.weight", "norm.weight"),
        Rename("transformer.ln_f.bias", "norm.bias"),
        Rename("lm_head.weight", "lm_head.weight"),
        Drop(f"{_LAYER}.attn.bias"),  # the causal mask, in the first files
        Drop(f"{_LAYER}.attn.masked_bias"),
    )


def _gpt2(dim: int, n_layers: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=dim // n_heads,
        ffn_dim=4 * dim,
        vocab_size=50257,
        padded_vocab_size=50257,
        max_seq_len=1024,
        **_KNOBS,
        activation="gelu_tanh",
        tie_embeddings=True,
    )


_KNOBS: Written = {
    "positions": "learned", "norm": "layernorm", "gated_mlp": False, "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
_PRESETS = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}


def read_gpt2_keys(hf: HFKeys, *, family: str, n_kv_heads: int | None = None) -> ModelConfig:
    """The model behind GPT-2's keys; n_kv_heads: default: as many as heads."""
    refuse(hf, "scale_attn_by_inverse_layer_idx", False)
    refuse(hf, "add_cross_attention", False)
    dim = int(need(hf, "n_embd"))
    heads = int(need(hf, "n_head"))
    return ModelConfig(
        family=family,
        dim=dim,
        n_layers=need(hf, "n_layer"),
        n_heads=heads,
        n_kv_heads=n_kv_heads or heads,
        head_dim=dim // heads,
        ffn_dim=hf.get("n_inner") or 4 * dim,
        max_seq_len=need(hf, "n_positions"),
        norm_eps=need(hf, "layer_norm_epsilon"),
        attention_scale=None if hf["scale_attn_weights"] else 1.0,
        activation=read_activation(hf, "activation_function"),
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_KNOBS,
        **read_vocab(hf),
    )


def write_gpt2_keys(config: ModelConfig) -> Written:
    """The inverse of `read_gpt2_keys`."""
    return {
        "n_embd": config.dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ffn_dim,
        "n_positions": config.max_seq_len,
        "n_ctx": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": HF_ACTIVATIONS.get(config.activation, config.activation),
        "scale_attn_weights": config.attention_scale is None,
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


def _read(hf: HFKeys) -> ModelConfig:
    return read_gpt2_keys(hf, family="gpt2")


_RULES = gpt2_rules(transposed=True, layout="blocks")
_GGUF = Gguf("gpt2", fused_qkv=True)
FAMILIES = (Family("gpt2", "GPT2LMHeadModel", _RULES, _read, write_gpt2_keys, _DEFAULTS, _PRESETS, _GGUF),)
