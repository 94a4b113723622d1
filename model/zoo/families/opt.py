"""OPT (Zhang et al. 2022): GPT-2's shape with ReLU and a table of positions that begins with two rows of no use. Light.

The 350m model has its norms behind the sums, and a narrow table.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.family import Family
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
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "max_position_embeddings": 2048, "activation_function": "relu", "do_layer_norm_before": True, "enable_bias": True,
    "layer_norm_elementwise_affine": True, "tie_word_embeddings": True,
}  # fmt: skip
_DECODER = "model.decoder"
_LAYER = f"{_DECODER}.layers.{{i}}"
_RULES: tuple[Rule, ...] = (
    Rename(f"{_DECODER}.embed_tokens.weight", "embed.weight"),
    Rename(f"{_DECODER}.embed_positions.weight", "positions.weight"),
    Rename(f"{_DECODER}.project_in.weight", "embed_proj.weight"),
    Rename(f"{_DECODER}.project_out.weight", "head_proj.weight"),
    *(
        Rename(f"{_LAYER}.{theirs}.{kind}", f"blocks.{{i}}.{ours}.{kind}")
        for kind in ("weight", "bias")
        for theirs, ours in (
            ("self_attn_layer_norm", "attention_norm"),
            *((f"self_attn.{part}_proj", f"attention.{part}_proj") for part in "qkv"),
            ("self_attn.out_proj", "attention.o_proj"),
            ("self_attn_layer_norm", "attention_out_norm"),
            ("final_layer_norm", "mlp_norm"),
            ("final_layer_norm", "mlp_out_norm"),
            ("fc1", "mlp.up_proj"),
            ("fc2", "mlp.down_proj"),
        )
    ),
    Rename(f"{_DECODER}.final_layer_norm.weight", "norm.weight"),
    Rename(f"{_DECODER}.final_layer_norm.bias", "norm.bias"),
    Rename("lm_head.weight", "lm_head.weight"),
)
_KNOBS: Written = {
    "family": "opt", "positions": "learned", "learned_offset": 2, "norm": "layernorm", "norm_eps": 1e-5,
    "gated_mlp": False,
}  # fmt: skip


def _opt(dim: int, n_layers: int, n_heads: int, **knobs: object) -> ModelConfig:
    return ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=dim // n_heads,
        ffn_dim=4 * dim,
        vocab_size=50265,  # ids of the tokenizer
        padded_vocab_size=50272,
        max_seq_len=2048,
        activation="relu",
        attention_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
        **_KNOBS,
        **knobs,
    )


_PRESETS = {
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, norm_place="sum", embed_proj_dim=512),
    "opt-1.3b": _opt(2048, 24, 32),
}


def _read(hf: HFKeys) -> ModelConfig:
    dim = int(need(hf, "hidden_size"))
    heads = int(need(hf, "num_attention_heads"))
    refuse(hf, "_remove_final_layer_norm", False)
    narrow = hf.get("word_embed_proj_dim") or dim
    affine = bool(hf["layer_norm_elementwise_affine"])
    return ModelConfig(
        dim=dim,
        n_layers=need(hf, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=need(hf, "ffn_dim"),
        max_seq_len=need(hf, "max_position_embeddings"),
        norm_place="pre" if hf["do_layer_norm_before"] else "sum",
        embed_proj_dim=None if narrow == dim else narrow,
        norm_weight="plain" if affine else "none",
        norm_bias=affine,
        activation=read_activation(hf, "activation_function"),
        attention_bias=hf["enable_bias"],
        mlp_bias=hf["enable_bias"],
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_KNOBS,
        **read_vocab(hf),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "hidden_size": config.dim,
        "word_embed_proj_dim": config.embed_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "activation_function": HF_ACTIVATIONS.get(config.activation, config.activation),
        "do_layer_norm_before": config.norm_place == "pre",
        "enable_bias": config.attention_bias,
        "layer_norm_elementwise_affine": config.norm_weight != "none",
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


FAMILIES = (Family("opt", "OPTForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS),)
