"""Falcon (Almazrouei et al. 2023) in its three forms: 7b, the larger and newer ones, and RefinedWeb's (rw). Light.

7b: one key head, attention and MLP behind one norm. 40b, 180b and 11b: groups of heads, behind two norms or one. rw:
one after the other, with biases and distances (ALiBi) in bf16.
"""

from __future__ import annotations

from collections.abc import Callable

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
    refuse,
    write_rope,
    write_vocab,
)
from launchyard.model.zoo.rules import Drop, Rename, Rule

_DEFAULTS = {
    "max_position_embeddings": 2048, "activation": "gelu", "layer_norm_epsilon": 1e-5, "alibi": False,
    "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": False,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = "transformer.h.{i}"


def _has_two_parallel_norms(config: ModelConfig) -> bool:
    return config.parallel_residual and not config.shared_norm


def _has_first_norm(config: ModelConfig) -> bool:
    return not _has_two_parallel_norms(config)


_NORMS: tuple[tuple[str, str, Callable[[ModelConfig], bool]], ...] = (
    ("input_layernorm", "attention_norm", _has_first_norm),
    ("post_attention_layernorm", "mlp_norm", _has_first_norm),
    ("ln_attn", "attention_norm", _has_two_parallel_norms),
    ("ln_mlp", "mlp_norm", _has_two_parallel_norms),
)
_RULES: tuple[Rule, ...] = (
    Rename("transformer.word_embeddings.weight", "embed.weight"),
    *(
        rule
        for kind in ("weight", "bias")
        for rule in (
            *(
                Rename(f"{_LAYER}.{theirs}.{kind}", f"blocks.{{i}}.{ours}.{kind}", when=when)
                for theirs, ours, when in _NORMS
            ),
            Rename(  # head by head and one key head are the ends of group by group
                f"{_LAYER}.self_attention.query_key_value.{kind}",
                tuple(f"blocks.{{i}}.attention.{part}_proj.{kind}" for part in "qkv"),
                "groups",
            ),
            Rename(f"{_LAYER}.self_attention.dense.{kind}", f"blocks.{{i}}.attention.o_proj.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_h_to_4h.{kind}", f"blocks.{{i}}.mlp.up_proj.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_4h_to_h.{kind}", f"blocks.{{i}}.mlp.down_proj.{kind}"),
            Rename(f"transformer.ln_f.{kind}", f"norm.{kind}"),
        )
    ),
    Rename("lm_head.weight", "lm_head.weight"),
    Drop(f"{_LAYER}.self_attention.rotary_emb.inv_freq"),
)


def _falcon(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, *, shared_norm: bool) -> ModelConfig:
    return ModelConfig(
        family="falcon",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=64,
        ffn_dim=4 * dim,
        vocab_size=65024,
        padded_vocab_size=65024,
        max_seq_len=2048,
        norm="layernorm",
        activation="gelu",
        gated_mlp=False,
        parallel_residual=True,
        shared_norm=shared_norm,
        tie_embeddings=True,
    )


_PRESETS = {
    "falcon-7b": _falcon(4544, 32, 71, 1, shared_norm=True),
    "falcon-40b": _falcon(8192, 60, 128, 8, shared_norm=False),
}


def _read(hf: HFKeys) -> ModelConfig:
    dim = int(hf.get("n_embed") or need(hf, "hidden_size"))
    heads = int(need(hf, "num_attention_heads"))
    return ModelConfig(
        family="falcon",
        dim=dim,
        n_layers=need(hf, "num_hidden_layers"),
        n_heads=heads,
        head_dim=dim // heads,
        ffn_dim=hf.get("ffn_hidden_size") or 4 * dim,
        max_seq_len=need(hf, "max_position_embeddings"),
        norm="layernorm",
        norm_eps=need(hf, "layer_norm_epsilon"),
        activation=read_activation(hf, "activation"),
        gated_mlp=False,
        attention_bias=hf["bias"],
        mlp_bias=hf["bias"],
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_read_form(hf, heads),
        **_read_positions(hf, dim / heads),
        **read_vocab(hf),
    )


def _read_form(hf: HFKeys, heads: int) -> Written:
    """Key heads and norms; some keys count in one form alone."""
    if hf["new_decoder_architecture"]:
        refuse(hf, "parallel_attn", True)
        refuse(hf, "num_ln_in_parallel_attn", 1, 2)
        one = hf.get("num_ln_in_parallel_attn") == 1
        return {"n_kv_heads": hf.get("num_kv_heads") or heads, "parallel_residual": True, "shared_norm": one}
    parallel = hf["parallel_attn"]
    if parallel:
        refuse(hf, "num_ln_in_parallel_attn", 1)
    if not hf["multi_query"]:
        refuse(hf, "num_kv_heads", heads, 1)  # not a number of heads here: the rows of q, k and v are as many
    return {
        "n_kv_heads": 1 if hf["multi_query"] else heads,
        "parallel_residual": parallel,
        "shared_norm": parallel,
    }


def _read_positions(hf: HFKeys, head_size: float) -> Written:
    if hf["alibi"]:  # they are added to the products before these are scaled
        return {"positions": "alibi", "alibi_scale": head_size**-0.5, "alibi_bf16": True}
    return read_rope(hf)


def _write(config: ModelConfig) -> Written:
    new = _has_two_parallel_norms(config) or config.n_kv_heads not in (1, config.n_heads)
    form: Written = {"num_kv_heads": config.n_kv_heads, "multi_query": config.n_kv_heads == 1}
    if new:
        form["num_ln_in_parallel_attn"] = 1 if config.shared_norm else 2
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "ffn_hidden_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation": HF_ACTIVATIONS.get(config.activation, config.activation),
        "bias": config.attention_bias,
        "alibi": config.positions == "alibi",
        "new_decoder_architecture": new,
        "parallel_attn": config.parallel_residual,
        "tie_word_embeddings": config.tie_embeddings,
        **form,
        **write_rope(config),
        **write_vocab(config),
    }


def _settle(found: HFKeys) -> Written:
    """The newer form has key heads of any number; with two norms its own tensor for one of them."""
    heads = need(found, "num_attention_heads")
    keys = found.get("num_kv_heads") or heads
    two_norms = found["two_norms"]
    return {
        "multi_query": keys == 1,
        "new_decoder_architecture": two_norms or keys not in (1, heads),
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
    }


def _more_keys(config: ModelConfig) -> Written:
    return {"tensor_data_layout": "jploski"}  # q, k and v one after the other


_GGUF = Gguf(
    "falcon",
    fused_qkv=True,
    two_norm_parts={"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
    settle=_settle,
    more_keys=_more_keys,
    only={"positions": "rope", "parallel_residual": True, "attention_bias": False},
)
FAMILIES = (Family("falcon", "FalconForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
