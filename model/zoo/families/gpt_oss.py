"""gpt-oss (Agarwal et al. 2025): attention sinks, every other layer with a window, and biased experts. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Written,
    need,
    read_layers,
    read_llama_keys,
    refuse,
    write_layers,
    write_llama_keys,
    write_scaling,
)
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "rms_norm_eps": 1e-5, "num_local_experts": 128,
    "num_experts_per_tok": 4, "attention_bias": True, "rope_theta": 150_000.0, "hidden_act": "silu",
    "max_position_embeddings": 131_072,
}  # fmt: skip
# Of the class, where the config has no stretch of its own; null stands for it too.
_STRETCH = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_MLP = "model.layers.{i}.mlp"
_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    Rename("model.layers.{i}.self_attn.sinks", "blocks.{i}.attention.sinks"),
    *(
        rule
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
        for rule in (
            Rename(f"{_MLP}.router.{kind}", f"blocks.{{i}}.mlp.router.{kind}"),
            Rename(
                f"{_MLP}.experts.gate_up_proj{suffix}",
                tuple(f"blocks.{{i}}.mlp.experts.{name}_proj.{kind}" for name in ("gate", "up")),
                "turns",
                transposed=True,
            ),
            Rename(f"{_MLP}.experts.down_proj{suffix}", f"blocks.{{i}}.mlp.experts.down_proj.{kind}", transposed=True),
        )
    ),
)


def _gpt_oss(n_layers: int, n_experts: int) -> ModelConfig:
    return ModelConfig(
        family="gpt_oss",
        dim=2880,
        n_layers=n_layers,
        n_heads=64,
        n_kv_heads=8,
        head_dim=64,
        ffn_dim=2880,
        vocab_size=200_019,  # ids of the tokenizer, o200k with its special tokens
        padded_vocab_size=201_088,
        max_seq_len=131_072,
        layers=("window", "full"),
        window=128,
        rope_theta=150_000.0,
        rope_scaling=RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=4096, truncate=False),
        norm_eps=1e-5,
        attention_bias=True,
        attention_sinks=True,
        activation="clamped_swish",
        moe=_experts(n_experts, 4, 2880),
    )


def _experts(count: int, top_k: int, width: int) -> MoE:
    return MoE(n_experts=count, top_k=top_k, ffn_dim=width, score_after_choice=True, bias=True)


_PRESETS = {"gpt-oss-20b": _gpt_oss(24, 32), "gpt-oss-120b": _gpt_oss(36, 128)}


def _read(hf: HFKeys) -> ModelConfig:
    refuse(hf, "swiglu_alpha", 1.702)
    refuse(hf, "swiglu_limit", 7.0)
    n_layers = int(need(hf, "num_hidden_layers"))
    layers = read_layers(hf, ["full" if layer % 2 else "window" for layer in range(n_layers)])
    sees: Written = {}
    if set(layers) != {"full"} and need(hf, "sliding_window") < need(hf, "max_position_embeddings"):
        sees = {"layers": layers, "window": hf["sliding_window"]}
    if not (hf.get("rope_parameters") or hf.get("rope_scaling")):
        hf = {**hf, "rope_parameters": _STRETCH}
    return read_llama_keys(
        hf,
        family="gpt_oss",
        attention_bias=hf["attention_bias"],
        attention_sinks=True,
        activation="clamped_swish",
        moe=_experts(need(hf, "num_local_experts"), need(hf, "num_experts_per_tok"), need(hf, "intermediate_size")),
        **sees,
    )


def _write(config: ModelConfig) -> Written:
    """The rotation is written as transformers 5 has it too: a stretch of null is yarn there."""
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    scaling = write_scaling(config) or {"rope_type": "default"}
    return {
        **write_llama_keys(config),
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        "layer_types": write_layers(config),
        "sliding_window": config.window or config.max_seq_len,  # the class needs one
        "attention_bias": config.attention_bias,
        "num_local_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.ffn_dim,
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
    }


def _settle(found: HFKeys) -> Written:
    rope = {"rope_type": "default", **(found.get("rope_parameters") or {})}
    return {"rope_parameters": {**rope, "truncate": False} if rope["rope_type"] == "yarn" else rope}


def _more_keys(config: ModelConfig) -> Written:
    return {"attention.sliding_window": config.window or config.max_seq_len}  # the reader needs one


_GGUF = Gguf(
    "gpt-oss",
    reads_window=True,
    parts={"mlp_norm": "post_attention_norm"},
    settle=_settle,
    more_keys=_more_keys,
    only={"attention_bias": True, "tie_embeddings": False},
)
FAMILIES = (Family("gpt_oss", "GptOssForCausalLM", _RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
