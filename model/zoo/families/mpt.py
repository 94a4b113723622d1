"""MPT (MosaicML 2023): distances instead of positions (ALiBi), no bias anywhere, and bounds of q, k and v. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_vocab, refuse, write_vocab
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {"max_seq_len": 2048, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
_LAYER = "transformer.blocks.{i}"
_RULES: tuple[Rule, ...] = (
    Rename("transformer.wte.weight", "embed.weight"),
    Rename(f"{_LAYER}.norm_1.weight", "blocks.{i}.attention_norm.weight"),
    Rename(f"{_LAYER}.attn.Wqkv.weight", tuple(f"blocks.{{i}}.attention.{part}_proj.weight" for part in "qkv")),
    Rename(f"{_LAYER}.attn.out_proj.weight", "blocks.{i}.attention.o_proj.weight"),
    Rename(f"{_LAYER}.norm_2.weight", "blocks.{i}.mlp_norm.weight"),
    Rename(f"{_LAYER}.ffn.up_proj.weight", "blocks.{i}.mlp.up_proj.weight"),
    Rename(f"{_LAYER}.ffn.down_proj.weight", "blocks.{i}.mlp.down_proj.weight"),
    Rename("transformer.norm_f.weight", "norm.weight"),
    Rename("lm_head.weight", "lm_head.weight"),
)
_KNOBS: Written = {
    "family": "mpt", "positions": "alibi", "norm": "layernorm", "norm_bias": False, "activation": "gelu",
    "gated_mlp": False,
}  # fmt: skip
_PRESETS = {
    "mpt-7b": ModelConfig(
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        ffn_dim=16384,
        vocab_size=50277,  # ids of the tokenizer
        padded_vocab_size=50432,
        max_seq_len=2048,
        tie_embeddings=True,
        **_KNOBS,
    )
}


def _read(hf: HFKeys) -> ModelConfig:
    """Refused is what transformers' class ignores in silence: it has one kind of model, whatever these keys say."""
    attention: HFKeys = hf.get("attn_config") or {}
    refuse(hf, "expansion_ratio", 4)
    refuse(hf, "no_bias", True)
    refuse(hf, "logit_scale", None)
    refuse(hf, "norm_type", "low_precision_layernorm", "layernorm")
    refuse(attention, "attn_type", "multihead_attention")
    refuse(attention, "qk_ln", False)
    refuse(attention, "prefix_lm", False)
    refuse(attention, "alibi", True)
    refuse(attention, "alibi_bias_max", 8)
    dim = int(need(hf, "d_model"))
    heads = int(need(hf, "n_heads"))
    return ModelConfig(
        dim=dim,
        n_layers=need(hf, "n_layers"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        max_seq_len=need(hf, "max_seq_len"),
        norm_eps=need(hf, "layer_norm_epsilon"),
        qkv_clip=attention.get("clip_qkv") or None,
        attention_scale=attention.get("softmax_scale"),
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_KNOBS,
        **read_vocab(hf),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "d_model": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "expansion_ratio": 4,
        "max_seq_len": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "learned_pos_emb": False,
        "no_bias": True,
        "attn_config": {"alibi": True, "clip_qkv": config.qkv_clip, "softmax_scale": config.attention_scale},
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


def _settle(found: HFKeys) -> Written:
    return {"attn_config": {"clip_qkv": found.get("clip_qkv")}}


def _more_keys(config: ModelConfig) -> Written:
    return {"attention.max_alibi_bias": 8.0}


_GGUF = Gguf("mpt", fused_qkv=True, settle=_settle, more_keys=_more_keys)
FAMILIES = (Family("mpt", "MptForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
