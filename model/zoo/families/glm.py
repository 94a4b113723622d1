"""GLM-4 (GLM team 2024) and GLM-4.5 (2025): half of each head rotates; no bias on the output projection. Light.

GLM and GLM-4 rotate neighbours; GLM-4-0414 (`glm4`) has norms behind its sublayers too; `glm4_moe` has DeepSeek's
router.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import deepseek, llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, read_llama_keys, write_llama_keys
from launchyard.model.zoo.rules import Drop, Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1.5625e-7, "attention_bias": True,
    "max_position_embeddings": 131_072, "partial_rotary_factor": 0.5,
}  # fmt: skip
_MOE_DEFAULTS = {
    "num_key_value_heads": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "use_qk_norm": False,
    "max_position_embeddings": 131_072, "partial_rotary_factor": 0.5, "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128, "routed_scaling_factor": 1.0,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True,
}  # fmt: skip
_LAYER = "model.layers.{i}"
_ATTENTION: tuple[Rule, ...] = (
    *(
        Rename(
            f"{_LAYER}.self_attn.{name}_proj.{kind}",
            f"blocks.{{i}}.attention.{name}_proj.{kind}",
            in_pairs=name in ("q", "k"),
        )
        for name in ("q", "k", "v")
        for kind in ("weight", "bias")
    ),
    Rename(f"{_LAYER}.self_attn.o_proj.weight", "blocks.{i}.attention.o_proj.weight"),
)
_COMMON: tuple[Rule, ...] = (
    Rename("model.embed_tokens.weight", "embed.weight"),
    Rename(f"{_LAYER}.input_layernorm.weight", "blocks.{i}.attention_norm.weight"),
    *_ATTENTION,
    Rename(f"{_LAYER}.post_attention_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
    Rename(f"{_LAYER}.mlp.gate_up_proj.weight", ("blocks.{i}.mlp.gate_proj.weight", "blocks.{i}.mlp.up_proj.weight")),
    Rename(f"{_LAYER}.mlp.down_proj.weight", "blocks.{i}.mlp.down_proj.weight"),
    Rename("model.norm.weight", "norm.weight"),
    Rename("lm_head.weight", "lm_head.weight"),
    Drop(f"{_LAYER}.self_attn.rotary_emb.inv_freq"),
)
_GLM4: tuple[Rule, ...] = (
    *_COMMON,
    Rename(f"{_LAYER}.post_self_attn_layernorm.weight", "blocks.{i}.attention_out_norm.weight"),
    Rename(f"{_LAYER}.post_mlp_layernorm.weight", "blocks.{i}.mlp_out_norm.weight"),
)
_MOE: tuple[Rule, ...] = (
    *llama.RULES,
    *deepseek.SHARED_EXPERT_RULES,
    Rename(f"{_LAYER}.self_attn.q_norm.weight", "blocks.{i}.attention.q_norm.weight"),
    Rename(f"{_LAYER}.self_attn.k_norm.weight", "blocks.{i}.attention.k_norm.weight"),
)

_GLM4_9B = ModelConfig(
    family="glm",
    dim=4096,
    n_layers=40,
    n_heads=32,
    n_kv_heads=2,
    head_dim=128,
    ffn_dim=13_696,
    vocab_size=151_343,  # ids of the tokenizer
    padded_vocab_size=151_552,
    max_seq_len=131_072,
    rope_fraction=0.5,
    norm_eps=1.5625e-7,
    qkv_bias=True,
)
_GLM4_9B_0414 = _GLM4_9B.model_copy(
    update={"family": "glm4", "norm_place": "sandwich", "max_seq_len": 32_768, "norm_eps": 1e-5}
)


def _read(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="glm", qkv_bias=hf["attention_bias"])


def _read_glm4(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(hf, family="glm4", qkv_bias=hf["attention_bias"], norm_place="sandwich")


def _write(config: ModelConfig) -> Written:
    return {
        **write_llama_keys(config),
        "attention_bias": config.qkv_bias,
        "partial_rotary_factor": config.rope_fraction,
    }


def _read_moe(hf: HFKeys) -> ModelConfig:
    return read_llama_keys(
        hf,
        family="glm4_moe",
        qkv_bias=hf["attention_bias"],
        qk_norm="head" if hf["use_qk_norm"] else None,
        moe=deepseek.read_biased_experts(hf),
    )


def _write_moe(config: ModelConfig) -> Written:
    return {**_write(config), "use_qk_norm": config.qk_norm is not None, **deepseek.write_experts(config)}


def _gguf(arch: str) -> Gguf:
    return Gguf(arch, in_pairs=True, fused_gate=True, head_dim_follows=arch == "chatglm")


_GGUF_MOE = Gguf("glm4moe", in_pairs=False, parts={"mlp_norm": "post_attention_norm"})
FAMILIES = (
    Family("glm", "GlmForCausalLM", _COMMON, _read, _write, _DEFAULTS, {"glm-4-9b": _GLM4_9B}, _gguf("chatglm")),
    Family(
        "glm4",
        "Glm4ForCausalLM",
        _GLM4,
        _read_glm4,
        _write,
        _DEFAULTS,
        {"glm-4-9b-0414": _GLM4_9B_0414},
        _gguf("glm4"),
    ),
    Family("glm4_moe", "Glm4MoeForCausalLM", _MOE, _read_moe, _write_moe, _MOE_DEFAULTS, gguf=_GGUF_MOE),
)
