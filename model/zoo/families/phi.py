"""Phi-1.5 and 2 (Li et al. 2023), Phi-3 and 4 (Abdin et al. 2024), Phi-3.5-MoE: NeoX-like, then Llama-like. Light.

Phi-3 fuses q, k, v and gate, up. The MoE has LayerNorms, biases, and a router that scores its two experts in turn.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.families import llama, mistral
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Written,
    need,
    read_llama_keys,
    read_sliding_window,
    refuse,
    write_llama_keys,
)
from launchyard.model.zoo.rules import Drop, Rename, Rule

_FIRST_DEFAULTS = {
    "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5,
}  # fmt: skip
_DEFAULTS = {
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_MOE_DEFAULTS = {
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "num_key_value_heads": 8,
    "rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 16, "router_jitter_noise": 0.01,
    "attention_bias": False, "lm_head_bias": False,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_FIRST_RULES: tuple[Rule, ...] = (
    Rename("model.embed_tokens.weight", "embed.weight"),
    *(
        Rename(f"{_LAYER}.{theirs}.{kind}", f"blocks.{{i}}.{ours}.{kind}")
        for kind in ("weight", "bias")
        for theirs, ours in (
            ("input_layernorm", "attention_norm"),
            *((f"self_attn.{part}_proj", f"attention.{part}_proj") for part in "qkv"),
            ("self_attn.dense", "attention.o_proj"),
            ("mlp.fc1", "mlp.up_proj"),
            ("mlp.fc2", "mlp.down_proj"),
        )
    ),
    *(
        Rename(f"{theirs}.{kind}", f"{ours}.{kind}")
        for theirs, ours in (("model.final_layernorm", "norm"), ("lm_head", "lm_head"))
        for kind in ("weight", "bias")
    ),
    Drop(f"{_LAYER}.self_attn.rotary_emb.inv_freq"),
)
_ATTENTION = "blocks.{i}.attention"
_MLP = "blocks.{i}.mlp"
_RULES: tuple[Rule, ...] = (
    *(
        rule
        for rule in llama.RULES
        if not any(f".{part}_proj" in rule.theirs for part in ("q", "k", "v", "gate", "up"))
    ),
    Rename(f"{_LAYER}.self_attn.qkv_proj.weight", tuple(f"{_ATTENTION}.{part}_proj.weight" for part in "qkv")),
    Rename(f"{_LAYER}.mlp.gate_up_proj.weight", (f"{_MLP}.gate_proj.weight", f"{_MLP}.up_proj.weight")),
)
_MOE_RULES: tuple[Rule, ...] = (
    *mistral.MOE_RULES,
    *llama.NORM_BIAS_RULES,
    Rename("lm_head.bias", "lm_head.bias"),
)
_FIRST_KNOBS: Written = {
    "family": "phi", "norm": "layernorm", "parallel_residual": True, "shared_norm": True, "gated_mlp": False,
    "attention_bias": True, "mlp_bias": True, "head_bias": True,
}  # fmt: skip
_MOE_KNOBS: Written = {"family": "phimoe", "norm": "layernorm"}


def _phi(dim: int, n_layers: int, n_heads: int, ffn_dim: int, rows: int, **knobs: object) -> ModelConfig:
    base = {
        "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "ffn_dim": ffn_dim,
        "vocab_size": rows, "padded_vocab_size": rows,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_FIRST: Written = {**_FIRST_KNOBS, "vocab_size": 50295, "max_seq_len": 2048, "activation": "gelu_tanh"}
_FIRST_PRESETS = {
    "phi-1.5": _phi(2048, 24, 32, 8192, 51200, **_FIRST, rope_fraction=0.5),
    "phi-2": _phi(2560, 32, 32, 10240, 51200, **_FIRST, rope_fraction=0.4),
}
# Without the stretch of the longer ones: its factors were fitted to their weights, after a training at these lengths.
_PRESETS = {
    "phi-3-mini": _phi(3072, 32, 32, 8192, 32064, family="phi3", max_seq_len=4096, layers=("window",), window=2047),
    "phi-4-mini": _phi(
        3072,
        32,
        24,
        8192,
        200064,
        family="phi3",
        n_kv_heads=8,
        max_seq_len=4096,
        rope_fraction=0.75,
        tie_embeddings=True,
    ),
    "phi-4": _phi(5120, 40, 40, 17920, 100352, family="phi3", n_kv_heads=10, max_seq_len=16384, rope_theta=250_000.0),
}
_MOE_PRESETS = {
    "phi-3.5-moe": _phi(
        dim=4096, n_layers=32, n_heads=32, ffn_dim=6400, rows=32064, n_kv_heads=8, max_seq_len=4096,
        **_MOE_KNOBS, attention_bias=True, head_bias=True,
        moe=MoE(n_experts=16, top_k=2, ffn_dim=6400, score="near_softmax"),
    ),
}  # fmt: skip


def _read_first(hf: HFKeys) -> ModelConfig:
    refuse(hf, "qk_layernorm", False)
    return read_llama_keys(hf, norm_eps=need(hf, "layer_norm_eps"), **_FIRST_KNOBS)


def _write_first(config: ModelConfig) -> Written:
    return write_llama_keys(config, eps_key="layer_norm_eps", fraction_key="partial_rotary_factor")


def _read(hf: HFKeys) -> ModelConfig:
    rope = _rope(hf)
    if rope.get("rope_type", rope.get("type")) == "yarn":  # an old name of it, here alone
        rope["rope_type"] = "longrope"
    if rope:  # the key outside counts, as in transformers
        rope["original_max_position_embeddings"] = hf["original_max_position_embeddings"]
    return read_llama_keys({**hf, "rope_parameters": rope}, family="phi3", **read_sliding_window(hf))


def _write(config: ModelConfig) -> Written:
    scaling = config.rope_scaling
    return {
        **write_llama_keys(config, fraction_key="partial_rotary_factor"),
        "original_max_position_embeddings": (scaling and scaling.original_max_seq_len) or config.max_seq_len,
        "sliding_window": config.window,
    }


def _read_moe(hf: HFKeys) -> ModelConfig:
    """The stretch multiplies cosines by a number of the config rather than by longrope's own."""
    refuse(hf, "num_experts_per_tok", 2)
    rope = _rope(hf)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        refuse(rope, "long_mscale", need(rope, "short_mscale"), why="not short_mscale, and so not supported")
        rope["attention_factor"] = rope["short_mscale"]
    moe = MoE(
        n_experts=need(hf, "num_local_experts"),
        top_k=2,
        ffn_dim=need(hf, "intermediate_size"),
        score="near_softmax",
        nearness=need(hf, "router_jitter_noise"),
    )
    knobs = {**_MOE_KNOBS, "attention_bias": hf["attention_bias"], "head_bias": hf["lm_head_bias"], "moe": moe}
    return read_llama_keys(
        {**hf, "rope_parameters": rope}, norm_eps=need(hf, "rms_norm_eps"), **knobs, **read_sliding_window(hf)
    )


def _write_moe(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    written = write_llama_keys(config)
    if config.rope_scaling is not None:
        gain = config.rope_scaling.attention_factor
        written["rope_scaling"] |= {"short_mscale": gain, "long_mscale": gain}
    return {
        **written,
        "sliding_window": config.window,
        "num_local_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.ffn_dim,
        "router_jitter_noise": config.moe.nearness,
        "attention_bias": config.attention_bias,
        "lm_head_bias": config.head_bias,
    }


def _rope(hf: HFKeys) -> Written:
    return dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})


def _settle_moe(found: HFKeys) -> Written:
    rope = dict(found.get("rope_parameters") or {})
    gain = rope.get("attention_factor", 1.0)
    return {"rope_parameters": {**rope, "short_mscale": gain, "long_mscale": gain}}


_LONG = ("longrope",)
_GGUF_FIRST = Gguf("phi2", head_dim_follows=True, only={"tie_embeddings": False})
_GGUF = Gguf("phi3", fused_qkv=True, fused_gate=True, head_dim_follows=True, stretches=_LONG)
_GGUF_MOE = Gguf(
    "phimoe",
    rms_eps=True,
    head_dim_follows=True,
    stretches=_LONG,
    settle=_settle_moe,
    only={"attention_bias": True, "head_bias": True, "tie_embeddings": False},
)
FAMILIES = (
    Family(
        "phi",
        "PhiForCausalLM",
        _FIRST_RULES,
        _read_first,
        _write_first,
        _FIRST_DEFAULTS,
        _FIRST_PRESETS,
        _GGUF_FIRST,
    ),
    Family("phi3", "Phi3ForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),
    Family("phimoe", "PhimoeForCausalLM", _MOE_RULES, _read_moe, _write_moe, _MOE_DEFAULTS, _MOE_PRESETS, _GGUF_MOE),
)
