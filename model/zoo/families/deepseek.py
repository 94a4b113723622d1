"""DeepSeek-V2 (2024) and V3 (2024, with R1): keys and values out of a short vector, and many small experts. Light.

V3's router chooses by sigmoid scores plus a bias of each expert. Its layers behind the last, which predict several
tokens at once, are dropped.
"""

from __future__ import annotations

from launchyard.model.config import LatentAttention, ModelConfig, MoE, RopeScaling
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import HFKeys, Written, need, read_llama_keys, refuse, write_llama_keys
from launchyard.model.zoo.rules import Drop, Rename, Rule

_COMMON_DEFAULTS = {
    "hidden_act": "silu", "attention_bias": False, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
_V2_DEFAULTS = {
    **_COMMON_DEFAULTS, "max_position_embeddings": 2048, "first_k_dense_replace": 0, "n_routed_experts": 64,
    "n_shared_experts": 2, "routed_scaling_factor": 1.0, "topk_method": "greedy", "moe_intermediate_size": 1407,
}  # fmt: skip
_V3_DEFAULTS = {
    **_COMMON_DEFAULTS, "max_position_embeddings": 4096, "first_k_dense_replace": 3, "n_routed_experts": 256,
    "n_shared_experts": 1, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "moe_intermediate_size": 2048,
}  # fmt: skip
_LAYER = "model.layers.{i}"
SHARED_EXPERT_RULES: tuple[Rule, ...] = (
    Rename(f"{_LAYER}.mlp.gate.weight", "blocks.{i}.mlp.router.weight"),
    Rename(f"{_LAYER}.mlp.gate.e_score_correction_bias", "blocks.{i}.mlp.choice_bias"),
    *(
        Rename(f"{_LAYER}.mlp.{theirs}.{name}_proj.weight", f"blocks.{{i}}.mlp.{ours}.{name}_proj.weight")
        for theirs, ours in (("experts.{e}", "experts"), ("shared_experts", "shared"))
        for name in ("gate", "up", "down")
    ),
    Drop(f"{_LAYER}.", behind_last=True),
)
_LATENT: tuple[Rule, ...] = tuple(
    Rename(f"{_LAYER}.self_attn.{theirs}.{kind}", f"blocks.{{i}}.attention.{ours}.{kind}", in_pairs=in_pairs)
    for theirs, ours, in_pairs in (
        ("q_proj", "q_proj", True),
        ("q_a_proj", "q_a_proj", False),
        ("q_a_layernorm", "q_a_norm", False),
        ("q_b_proj", "q_b_proj", True),
        ("kv_a_proj_with_mqa", "kv_a_proj", True),
        ("kv_a_layernorm", "kv_a_norm", False),
        ("kv_b_proj", "kv_b_proj", False),
        ("o_proj", "o_proj", False),
    )
    for kind in ("weight", "bias")
)
_RULES: tuple[Rule, ...] = (
    *(rule for rule in llama.RULES if "_proj" not in rule.theirs or ".mlp." in rule.theirs),
    *_LATENT,
    *SHARED_EXPERT_RULES,
)


def _deepseek(family: str, mscale: float, sizes: LatentAttention, moe: MoE, **knobs: object) -> ModelConfig:
    base = {
        "family": family, "max_seq_len": 163_840, "norm_eps": 1e-6, "latent_attention": sizes, "moe": moe,
        "head_dim": sizes.nope_dim + sizes.rope_dim,
        "rope_scaling": RopeScaling(
            kind="yarn", factor=40.0, original_max_seq_len=4096, mscale=mscale, mscale_all_dim=mscale
        ),
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_V2_LITE = _deepseek(
    "deepseek_v2",
    0.707,
    LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    MoE(n_experts=64, top_k=6, ffn_dim=1408, wide_router=True, shared_ffn_dim=2 * 1408, first_layer=1),
    dim=2048,
    n_layers=27,
    n_heads=16,
    ffn_dim=10_944,
    vocab_size=102_400,
    padded_vocab_size=102_400,
)
_V3 = _deepseek(
    "deepseek_v3",
    1.0,
    LatentAttention(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    MoE(
        n_experts=256,
        top_k=8,
        ffn_dim=2048,
        score="sigmoid",
        wide_router=True,
        normalize=True,
        scale=2.5,
        choice_bias=True,
        n_groups=8,
        top_groups=4,
        group_score="top2",
        shared_ffn_dim=2048,
        first_layer=3,
    ),
    dim=7168,
    n_layers=61,
    n_heads=128,
    ffn_dim=18_432,
    vocab_size=128_815,  # ids of the tokenizer
    padded_vocab_size=129_280,
)


def _read_v2(hf: HFKeys) -> ModelConfig:
    refuse(hf, "scoring_func", "softmax")
    refuse(hf, "topk_method", "greedy", "group_limited_greedy")
    refuse(hf, "norm_topk_prob", False, why="ignored by transformers")
    refuse(hf, "mlp_bias", False)
    return _read(hf, "deepseek_v2", _moe(hf, limited=hf["topk_method"] == "group_limited_greedy"))


def _read_v3(hf: HFKeys) -> ModelConfig:
    refuse(hf, "rope_interleave", True)
    return _read(hf, "deepseek_v3", read_biased_experts(hf))


def _read(hf: HFKeys, family: str, moe: MoE) -> ModelConfig:
    sizes = LatentAttention(
        q_rank=hf["q_lora_rank"],
        kv_rank=need(hf, "kv_lora_rank"),
        nope_dim=need(hf, "qk_nope_head_dim"),
        rope_dim=need(hf, "qk_rope_head_dim"),
        v_dim=need(hf, "v_head_dim"),
    )
    return read_llama_keys(
        hf,
        family=family,
        n_kv_heads=need(hf, "num_attention_heads"),
        head_dim=sizes.nope_dim + sizes.rope_dim,
        attention_bias=hf["attention_bias"],
        latent_attention=sizes,
        moe=moe,
    )


def read_biased_experts(hf: HFKeys) -> MoE:
    """Experts chosen by sigmoid scores and a bias."""
    refuse(hf, "scoring_func", "sigmoid")
    refuse(hf, "topk_method", "noaux_tc")
    return _moe(
        hf, limited=True, score="sigmoid", normalize=need(hf, "norm_topk_prob"), choice_bias=True, group_score="top2"
    )


def _moe(hf: HFKeys, *, limited: bool, **knobs: object) -> MoE:
    """limited: to the experts of a few groups."""
    refuse(hf, "moe_layer_freq", 1)
    width = int(need(hf, "moe_intermediate_size"))
    groups = {"n_groups": hf.get("n_group") or 1, "top_groups": hf.get("topk_group") or 1} if limited else {}
    return MoE(
        n_experts=hf.get("num_local_experts") or need(hf, "n_routed_experts"),
        top_k=need(hf, "num_experts_per_tok"),
        ffn_dim=width,
        wide_router=True,
        scale=need(hf, "routed_scaling_factor"),
        shared_ffn_dim=width * int(need(hf, "n_shared_experts")),
        first_layer=need(hf, "first_k_dense_replace"),
        **groups,
        **knobs,
    )


def _write(config: ModelConfig) -> Written:
    """`head_dim` is that of the rotated part in transformers, which derives its rotations from it."""
    sizes = config.latent_attention
    assert sizes is not None and config.moe is not None
    return {
        **write_llama_keys(config),
        "head_dim": sizes.rope_dim,
        "attention_bias": config.attention_bias,
        "q_lora_rank": sizes.q_rank,
        "kv_lora_rank": sizes.kv_rank,
        "qk_nope_head_dim": sizes.nope_dim,
        "qk_rope_head_dim": sizes.rope_dim,
        "v_head_dim": sizes.v_dim,
        **write_experts(config),
    }


def _write_v2(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    limited = config.moe.n_groups > 1
    method = "group_limited_greedy" if limited else "greedy"
    return {**_write(config), "topk_method": method, "scoring_func": "softmax"}


def write_experts(config: ModelConfig) -> Written:
    """The keys of experts, with none of the layers behind the last."""
    moe = config.moe
    assert moe is not None
    return {
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.ffn_dim,
        "n_shared_experts": moe.shared_ffn_dim // moe.ffn_dim,
        "routed_scaling_factor": moe.scale,
        "first_k_dense_replace": moe.first_layer,
        "norm_topk_prob": moe.normalize,
        "n_group": moe.n_groups,
        "topk_group": moe.top_groups,
        "num_nextn_predict_layers": 0,
    }


def _is_v2(metadata: HFKeys) -> bool:
    return metadata.get("deepseek2.expert_gating_func") != 2  # a sigmoid


def _settle_v2(found: HFKeys) -> Written:
    limited = (found.get("n_group") or 1) > 1
    return {"norm_topk_prob": False, "topk_method": "group_limited_greedy" if limited else "greedy"}


def _settle_v3(found: HFKeys) -> Written:
    return {
        "n_group": found.get("n_group", 1),
        "topk_group": found.get("topk_group", 1),
        "norm_topk_prob": bool(found.get("norm_topk_prob")),
    }


def _lack_of_queries(config: ModelConfig) -> str | None:
    """llama.cpp tells by the number of layers whether queries have a narrow projection before the wide one."""
    assert config.latent_attention is not None
    lite = config.n_layers in _LAYERS_OF_LITE
    if (config.latent_attention.q_rank is None) == lite:
        return None
    layers = " or ".join(map(str, _LAYERS_OF_LITE))
    return (
        f"latent_attention.q_rank is {config.latent_attention.q_rank}; models of {layers} layers have none, others one"
    )


_LAYERS_OF_LITE = (26, 27)
_ONLY = {"attention_bias": False}
_GGUF_V2 = Gguf("deepseek2", in_pairs=True, settle=_settle_v2, only=_ONLY, fits=_is_v2, lack=_lack_of_queries)
_GGUF_V3 = Gguf("deepseek2", in_pairs=True, settle=_settle_v3, only=_ONLY, lack=_lack_of_queries)
FAMILIES = (
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        _RULES,
        _read_v2,
        _write_v2,
        _V2_DEFAULTS,
        {"deepseek-v2-lite": _V2_LITE},
        _GGUF_V2,
    ),
    Family(
        "deepseek_v3", "DeepseekV3ForCausalLM", _RULES, _read_v3, _write, _V3_DEFAULTS, {"deepseek-v3": _V3}, _GGUF_V3
    ),
)
