"""Granite 3 (IBM 2024), dense and with experts: Llama with multipliers of embeddings, branches and logits. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0, "max_position_embeddings": 2048,
}  # fmt: skip
_MOE_DEFAULTS = {**_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}
_MOE = "model.layers.{i}.block_sparse_moe"
_MOE_RULES: tuple[Rule, ...] = (
    *llama.RULES,
    Rename(f"{_MOE}.router.layer.weight", "blocks.{i}.mlp.router.weight"),
    Rename(
        f"{_MOE}.input_linear.weight",
        ("blocks.{i}.mlp.experts.gate_proj.weight", "blocks.{i}.mlp.experts.up_proj.weight"),
    ),
    Rename(f"{_MOE}.output_linear.weight", "blocks.{i}.mlp.experts.down_proj.weight"),
)


def _granite33(dim: int, head_dim: int, ffn_dim: int, *, attention_scale: float, logits_scaling: float) -> ModelConfig:
    return ModelConfig(
        family="granite",
        dim=dim,
        n_layers=40,
        n_heads=32,
        n_kv_heads=8,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=49_159,
        padded_vocab_size=49_159,
        max_seq_len=131_072,
        rope_theta=10_000_000.0,
        norm_eps=1e-5,
        attention_scale=attention_scale,
        embed_scale=12.0,
        residual_scale=0.22,
        logit_scale=1 / logits_scaling,
        tie_embeddings=True,
    )


_PRESETS = {
    "granite-3.3-2b": _granite33(2048, 64, 8192, attention_scale=0.015625, logits_scaling=8.0),
    "granite-3.3-8b": _granite33(4096, 128, 12_800, attention_scale=0.0078125, logits_scaling=16.0),
}


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf, family="granite", attention_bias=hf["attention_bias"], mlp_bias=hf["mlp_bias"], **_read_multipliers(hf)
    )


def _write(config: ModelConfig) -> Written:
    return {
        **write_llama_keys(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "embedding_multiplier": 1.0 if config.embed_scale is None else config.embed_scale,
        "attention_multiplier": config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        "residual_multiplier": 1.0 if config.residual_scale is None else config.residual_scale,
        "logits_scaling": 1.0 if config.logit_scale is None else 1 / config.logit_scale,
    }


def _read_multipliers(hf: HFKeys) -> dict[str, float | None]:
    """One is no multiplier, but for that of the attention, whose default is another in every other family."""
    logits = float(hf["logits_scaling"])
    return {
        "embed_scale": _unless_one(hf["embedding_multiplier"]),
        "attention_scale": float(hf["attention_multiplier"]),
        "residual_scale": _unless_one(hf["residual_multiplier"]),
        "logit_scale": None if logits == 1.0 else 1 / logits,
    }


def _unless_one(value: float) -> float | None:
    return None if value == 1.0 else float(value)


def _read_moe(hf: HFKeys) -> ModelConfig:
    moe = MoE(
        n_experts=need(hf, "num_local_experts"),
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=need(hf, "intermediate_size"),
        score_after_choice=True,
    )
    return read_llama_keys(
        hf, family="granitemoe", attention_bias=hf["attention_bias"], moe=moe, **_read_multipliers(hf)
    )


def _write_moe(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    return {
        **_write(config),
        "num_local_experts": config.moe.n_experts,
        "num_experts_per_tok": config.moe.top_k,
        "intermediate_size": config.moe.ffn_dim,
    }


def _settle(found: HFKeys) -> Written:
    return {"logits_scaling": found.get("logit_scale", 1.0)}


def _more_keys(config: ModelConfig) -> Written:
    written = _write(config)
    return {
        "attention.scale": written["attention_multiplier"],
        "embedding_scale": written["embedding_multiplier"],
        "residual_scale": written["residual_multiplier"],
        "logit_scale": written["logits_scaling"],
    }


def _gguf(arch: str) -> Gguf:
    stretches = ("linear", "yarn", "llama3", "longrope")
    return Gguf(arch, in_pairs=True, stretches=stretches, settle=_settle, more_keys=_more_keys)


FAMILIES = (
    Family("granite", "GraniteForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _gguf("granite")),
    Family(
        "granitemoe",
        "GraniteMoeForCausalLM",
        _MOE_RULES,
        _read_moe,
        _write_moe,
        _MOE_DEFAULTS,
        gguf=_gguf("granitemoe"),
    ),
)
