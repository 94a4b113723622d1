"""BLOOM (Scao et al. 2022): distances instead of positions (ALiBi), and a norm behind the embedding table. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_vocab, refuse, write_vocab
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {"layer_norm_epsilon": 1e-5, "seq_length": 2048, "tie_word_embeddings": True}
_LAYER = "transformer.h.{i}"
_RULES: tuple[Rule, ...] = (
    Rename("transformer.word_embeddings.weight", "embed.weight"),
    *(
        rule
        for kind in ("weight", "bias")
        for rule in (
            Rename(f"transformer.word_embeddings_layernorm.{kind}", f"embed_norm.{kind}"),
            Rename(f"{_LAYER}.input_layernorm.{kind}", f"blocks.{{i}}.attention_norm.{kind}"),
            Rename(
                f"{_LAYER}.self_attention.query_key_value.{kind}",
                tuple(f"blocks.{{i}}.attention.{part}_proj.{kind}" for part in "qkv"),
                "heads",
            ),
            Rename(f"{_LAYER}.self_attention.dense.{kind}", f"blocks.{{i}}.attention.o_proj.{kind}"),
            Rename(f"{_LAYER}.post_attention_layernorm.{kind}", f"blocks.{{i}}.mlp_norm.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_h_to_4h.{kind}", f"blocks.{{i}}.mlp.up_proj.{kind}"),
            Rename(f"{_LAYER}.mlp.dense_4h_to_h.{kind}", f"blocks.{{i}}.mlp.down_proj.{kind}"),
            Rename(f"transformer.ln_f.{kind}", f"norm.{kind}"),
        )
    ),
    Rename("lm_head.weight", "lm_head.weight"),
)
_KNOBS: Written = {
    "family": "bloom", "positions": "alibi", "norm": "layernorm", "embed_norm": True, "activation": "gelu_tanh",
    "gated_mlp": False, "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
_PRESETS = {
    "bloom-560m": ModelConfig(
        dim=1024,
        n_layers=24,
        n_heads=16,
        n_kv_heads=16,
        head_dim=64,
        ffn_dim=4096,
        vocab_size=250680,  # ids of the tokenizer
        padded_vocab_size=250880,
        max_seq_len=2048,
        tie_embeddings=True,
        **_KNOBS,
    )
}


def _read(hf: HFKeys) -> ModelConfig:
    """The length is that of the training, a key that transformers keeps and ignores."""
    refuse(hf, "apply_residual_connection_post_layernorm", False)
    dim = int(hf.get("n_embed") or need(hf, "hidden_size"))
    heads = int(hf.get("num_attention_heads") or need(hf, "n_head"))
    return ModelConfig(
        dim=dim,
        n_layers=hf.get("num_hidden_layers") or need(hf, "n_layer"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        max_seq_len=need(hf, "seq_length"),
        norm_eps=need(hf, "layer_norm_epsilon"),
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_KNOBS,
        **read_vocab(hf),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "hidden_size": config.dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "seq_length": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


_GGUF = Gguf("bloom", fused_qkv=True)
FAMILIES = (Family("bloom", "BloomForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
