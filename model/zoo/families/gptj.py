"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side, part of each head rotates neighbours. Light."""

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
    write_vocab,
)
from launchyard.model.zoo.rules import Drop, Rename, Rule

_DEFAULTS = {
    "n_positions": 2048, "rotary_dim": 64, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
_LAYER = "transformer.h.{i}"
_RULES: tuple[Rule, ...] = (
    Rename("transformer.wte.weight", "embed.weight"),
    *(
        Rename(
            f"{_LAYER}.attn.{theirs}_proj.weight",
            f"blocks.{{i}}.attention.{ours}_proj.weight",
            in_pairs=ours in ("q", "k"),
        )
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
    ),
    *(
        Rename(f"{theirs}.{kind}", f"{ours}.{kind}")
        for theirs, ours in (
            (f"{_LAYER}.ln_1", "blocks.{i}.attention_norm"),
            (f"{_LAYER}.mlp.fc_in", "blocks.{i}.mlp.up_proj"),
            (f"{_LAYER}.mlp.fc_out", "blocks.{i}.mlp.down_proj"),
            ("transformer.ln_f", "norm"),
            ("lm_head", "lm_head"),
        )
        for kind in ("weight", "bias")
    ),
    Drop(f"{_LAYER}.attn.bias"),  # the causal mask, in the first files
    Drop(f"{_LAYER}.attn.masked_bias"),
)
_KNOBS: Written = {
    "family": "gptj", "norm": "layernorm", "parallel_residual": True, "shared_norm": True, "gated_mlp": False,
    "mlp_bias": True, "head_bias": True,
}  # fmt: skip
_PRESETS = {
    "gpt-j-6b": ModelConfig(
        dim=4096,
        n_layers=28,
        n_heads=16,
        n_kv_heads=16,
        head_dim=256,
        ffn_dim=16_384,
        vocab_size=50_400,
        padded_vocab_size=50_400,
        max_seq_len=2048,
        rope_fraction=0.25,
        activation="gelu_tanh",
        **_KNOBS,
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    dim = int(need(hf, "n_embd"))
    heads = int(need(hf, "n_head"))
    return ModelConfig(
        dim=dim,
        n_layers=need(hf, "n_layer"),
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=hf.get("n_inner") or 4 * dim,
        max_seq_len=need(hf, "n_positions"),
        rope_fraction=need(hf, "rotary_dim") / (dim // heads),
        norm_eps=need(hf, "layer_norm_epsilon"),
        activation=read_activation(hf, "activation_function"),
        tie_embeddings=need(hf, "tie_word_embeddings"),
        **_KNOBS,
        **read_vocab(hf),
    )


def _write(config: ModelConfig) -> Written:
    return {
        "n_embd": config.dim,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ffn_dim,
        "n_positions": config.max_seq_len,
        "rotary_dim": config.rope_dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": HF_ACTIVATIONS.get(config.activation, config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


FAMILIES = (Family("gptj", "GPTJForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS),)
