"""The sizes of a model as keys of a GGUF file, and as those of config.json again. Light; reads and writes no file.

What a file does not say is as the family has it: a config that is another one has no form there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from launchyard.model.config import ModelConfig, MoE, RopeScaling
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import UNPADDED, HFKeys, Written, need

FREQUENCIES = "rope_freqs.weight"  # llama3's stretch, pair by pair
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
STRETCH_TENSORS = (FREQUENCIES, LONG_FACTORS, SHORT_FACTORS)

# After the architecture's name -> keys of config.json, by all the names that families have for one thing.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers", "n_layer", "n_layers"),
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.scale": ("attention_multiplier",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logit_scale",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "interleave_moe_layer_step": ("interleave_moe_layer_step",),
    "vocab_size": ("vocab_size",),
    UNPADDED: (UNPADDED,),
}
_QUERY_BIASES = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias", "blk.0.attn_q_a.bias", "blk.0.attn_kv_a_mqa.bias")
# Keys of config.json that are true of a file with one of these tensors.
_TOLD_BY_TENSORS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": _QUERY_BIASES,
    "qkv_bias": _QUERY_BIASES,
    "use_qkv_bias": _QUERY_BIASES,
    "use_bias": _QUERY_BIASES,
    "bias": _QUERY_BIASES,
    "attention_out_bias": ("blk.0.attn_output.bias",),
    "mlp_bias": ("blk.0.ffn_down.bias",),
    "lm_head_bias": ("output.bias",),
    "use_qk_norm": ("blk.0.attn_q_norm.weight",),
    "qk_layernorm": ("blk.0.attn_q_norm.weight",),
    "two_norms": ("blk.0.attn_norm_2.weight",),
}


def hf_keys(metadata: HFKeys, facts: Gguf, names: frozenset[str], read: Callable[[str], Sequence[float]]) -> Written:
    """The keys of config.json behind a file's; ValueError names one that is missing or not supported.

    read: gives the numbers of one of its small tensors.
    """
    found: Written = {"tie_word_embeddings": "output.weight" not in names}
    found |= {key: any(name in names for name in told) for key, told in _TOLD_BY_TENSORS.items()}
    for theirs, ours in _KEYS.items():
        value = metadata.get(f"{facts.arch}.{theirs}")
        if value is not None:
            found |= dict.fromkeys(ours, _alike(f"{facts.arch}.{theirs}", value))
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in found and tokens is not None:
        found["vocab_size"] = len(tokens)
    found |= _windows(metadata, facts, found)
    found |= _latent(metadata, facts, found)
    found |= _rope(metadata, facts, found, names, read)
    return {**found, **facts.settle(found)}


def _alike(key: str, value: object) -> object:
    """A number that a file may give layer by layer; ValueError if the layers differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{key} differs from layer to layer ({value[:4]} …), which is not supported")
    return value[0]


def _windows(metadata: HFKeys, facts: Gguf, found: HFKeys) -> Written:
    """The layers that see a window: a list, or a number n, whose multiples see everything."""
    if not found.get("sliding_window"):
        return {"sliding_window": None} if "sliding_window" in found else {}
    pattern = metadata.get(f"{facts.arch}.attention.sliding_window_pattern")
    if pattern is None:
        return {"use_sliding_window": True}
    n_layers = need(found, "num_hidden_layers")
    sees = [bool((n + 1) % pattern) for n in range(n_layers)] if isinstance(pattern, int) else pattern
    kinds = ["sliding_attention" if one else "full_attention" for one in sees]
    return {"use_sliding_window": True, "layer_types": kinds}


def _latent(metadata: HFKeys, facts: Gguf, found: HFKeys) -> Written:
    """Sizes of a latent attention. Older files have them under the names of all others."""
    if "kv_lora_rank" not in found:
        return {}
    turned = need(metadata, f"{facts.arch}.rope.dimension_count")
    heads = {
        name: metadata.get(f"{facts.arch}.attention.{name}_length_mla")
        or need(metadata, f"{facts.arch}.attention.{name}_length")
        for name in ("key", "value")
    }
    return {
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": heads["key"] - turned,
        "v_head_dim": heads["value"],
        "q_lora_rank": found.get("q_lora_rank"),
        "head_dim": heads["key"],
    }


def _rope(
    metadata: HFKeys, facts: Gguf, found: HFKeys, names: frozenset[str], read: Callable[[str], Sequence[float]]
) -> Written:
    """The keys of rotation as transformers 5 has them."""
    base = metadata.get(f"{facts.arch}.rope.freq_base")
    rope: Written = {"rope_type": "default"} if base is None else {"rope_type": "default", "rope_theta": base}
    more: Written = {}
    turned = metadata.get(f"{facts.arch}.rope.dimension_count")
    if turned is not None and "kv_lora_rank" not in found:
        head = found.get("head_dim") or need(found, "hidden_size") // need(found, "num_attention_heads")
        rope["partial_rotary_factor"] = turned / head
    rope |= _stretch(metadata, facts, found, names, read, theta=base or 10_000.0)
    if "original_max_position_embeddings" in rope:
        more["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    local = metadata.get(f"{facts.arch}.rope.freq_base_swa")
    if local is not None:
        swa = {"rope_type": "default", "rope_theta": local}
        return {**more, "rope_parameters": {"full_attention": rope, "sliding_attention": swa}}
    return {**more, "rope_parameters": rope} if len(rope) > 1 else more


def _stretch(
    metadata: HFKeys,
    facts: Gguf,
    found: HFKeys,
    names: frozenset[str],
    read: Callable[[str], Sequence[float]],
    *,
    theta: float,
) -> Written:
    def value(key: str) -> float | None:
        got = metadata.get(f"{facts.arch}.rope.scaling.{key}")
        return None if got is None else got

    if FREQUENCIES in names:
        return _llama3_stretch(read(FREQUENCIES), theta)
    original = value("original_context_length")
    stretch: Written = {} if original is None else {"original_max_position_embeddings": original}
    kind = metadata.get(f"{facts.arch}.rope.scaling.type")
    if LONG_FACTORS in names:
        stretch |= {"rope_type": "longrope", "long_factor": list(read(LONG_FACTORS))}
        stretch["short_factor"] = list(read(SHORT_FACTORS))
        factor = need(found, "max_position_embeddings") / (original or found["max_position_embeddings"])
        gain = value("attn_factor")
        if gain is not None and original is not None and not math.isclose(gain, _gain(factor, original), rel_tol=1e-6):
            stretch["attention_factor"] = gain
    elif kind in ("linear", "yarn"):
        stretch |= {"rope_type": kind, "factor": value("factor")}
        optional = {
            "beta_fast": value("yarn_beta_fast"),
            "beta_slow": value("yarn_beta_slow"),
            "attention_factor": value("yarn_attn_factor"),
        }
        stretch |= {key: one for key, one in optional.items() if one is not None}
        log_mul = value("yarn_log_multiplier")
        if log_mul is not None:
            stretch |= dict.fromkeys(("mscale", "mscale_all_dim"), round(log_mul * 10, 6))
    elif kind not in (None, "none"):
        raise ValueError(f"{facts.arch}.rope.scaling.type is {kind!r}, which is not supported")
    return stretch


def _gain(factor: float, original: float) -> float:
    """What longrope multiplies cosines by."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def llama3_factors(config: ModelConfig) -> list[float]:
    """The divisors of the frequencies of such a stretch."""
    scaling = config.rope_scaling
    assert scaling is not None
    low = scaling.low_freq_factor
    high = scaling.high_freq_factor
    original = scaling.original_max_seq_len
    assert low is not None and high is not None and original is not None
    return _llama3(config.rope_theta, config.rope_dim // 2, scaling.factor, original, low=low, high=high)


def _llama3(theta: float, pairs: int, factor: float, original: int, *, low: float, high: float) -> list[float]:
    factors = []
    for pair in range(pairs):
        turns = original / (2 * math.pi * theta ** (pair / pairs))
        keep = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / (keep + (1 - keep) / factor))
    return factors


def _llama3_stretch(factors: Sequence[float], theta: float) -> Written:
    """The stretch behind the divisors, which are all that a file has of it; low and high are those of every release."""
    factor = round(max(factors), 4)
    if factor <= 1:
        return {}
    lengths = [8192, *(2**power for power in range(4, 24))]
    for pair, one in enumerate(factors):  # between the two bounds a divisor says the old length
        if 1.0001 < one < factor * 0.9999:
            keep = (1 / one - 1 / factor) / (1 - 1 / factor)
            lengths.insert(0, round((1 + 3 * keep) * 2 * math.pi * theta ** (pair / len(factors))))
    for original in lengths:
        made = _llama3(theta, len(factors), factor, original, low=1.0, high=4.0)
        if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(made, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise ValueError(f"{FREQUENCIES} are not those of Llama 3's stretch, which alone is supported")


def gguf_keys(config: ModelConfig, facts: Gguf) -> Written:
    """The keys of a file, but for those of the tokenizer; the inverse of `hf_keys`."""
    arch = facts.arch
    eps = "rms_" if config.norm == "rmsnorm" or facts.rms_eps else ""
    keys: Written = {
        "block_count": config.n_layers,
        "context_length": config.max_seq_len,
        "embedding_length": config.dim,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.layer_norm_{eps}epsilon": config.norm_eps,
        "vocab_size": config.padded_vocab_size,
        **({UNPADDED: config.vocab_size} if config.vocab_size != config.padded_vocab_size else {}),
        **_present("attention.clamp_kqv", config.qkv_clip),
        **_present("attn_logit_softcapping", config.attention_softcap),
        **_present("final_logit_softcapping", config.logit_softcap),
        **_window_keys(config),
        **_latent_keys(config),
        **(_rope_keys(config) if config.positions == "rope" else {}),
        **(_expert_keys(config.moe) if config.moe is not None else {}),
        **facts.more_keys(config),
    }
    return {f"{arch}.{key}": value for key, value in keys.items()}


def _present(key: str, value: object) -> Written:
    return {} if value is None else {key: value}


def _window_keys(config: ModelConfig) -> Written:
    if config.window is None or "window" not in config.layers:
        return {}
    keys: Written = {"attention.sliding_window": config.window}
    if set(config.layers) != {"window"}:
        sees = [config.sees(layer) == "window" for layer in range(config.n_layers)]
        keys["attention.sliding_window_pattern"] = sees
    return keys


def _latent_keys(config: ModelConfig) -> Written:
    """One key head for all queries, of the vector and the rotated part, as readers compute it."""
    sizes = config.latent_attention
    if sizes is None:
        return {}
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": sizes.kv_rank + sizes.rope_dim,
        "attention.value_length": sizes.kv_rank,
        "attention.key_length_mla": sizes.nope_dim + sizes.rope_dim,
        "attention.value_length_mla": sizes.v_dim,
        "attention.kv_lora_rank": sizes.kv_rank,
        **_present("attention.q_lora_rank", sizes.q_rank),
    }


def _rope_keys(config: ModelConfig) -> Written:
    return {
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.rope_dim,
        **_present("rope.freq_base_swa", config.window_rope_theta),
        **(_stretch_keys(config, config.rope_scaling) if config.rope_scaling is not None else {}),
    }


def _stretch_keys(config: ModelConfig, scaling: RopeScaling) -> Written:
    prefix = "rope.scaling"
    original = _present(f"{prefix}.original_context_length", scaling.original_max_seq_len)
    if scaling.kind == "longrope":
        assert scaling.original_max_seq_len is not None
        gain = scaling.attention_factor or _gain(scaling.factor, scaling.original_max_seq_len)
        return {f"{prefix}.type": "longrope", f"{prefix}.attn_factor": gain, **original}
    if scaling.kind == "llama3":
        return {}
    keys: Written = {f"{prefix}.type": scaling.kind, f"{prefix}.factor": scaling.factor}
    if scaling.kind == "yarn":
        all_dim = scaling.mscale_all_dim
        keys |= {
            **original,
            f"{prefix}.yarn_beta_fast": scaling.beta_fast,
            f"{prefix}.yarn_beta_slow": scaling.beta_slow,
            **_present(f"{prefix}.yarn_attn_factor", scaling.attention_factor),
            **_present(f"{prefix}.yarn_log_multiplier", None if all_dim is None else all_dim / 10),
        }
    return keys


# llama.cpp's numbers of the functions that make a router's outputs scores.
_GATES = {"softmax": 1, "near_softmax": 1, "sigmoid": 2}
_SOFTMAX_OF_CHOSEN = 3


def _expert_keys(moe: MoE) -> Written:
    gate = _SOFTMAX_OF_CHOSEN if moe.score_after_choice else _GATES[moe.score]
    return {
        "expert_count": moe.n_experts,
        "expert_used_count": moe.top_k,
        "expert_feed_forward_length": moe.ffn_dim,
        "expert_gating_func": gate,
        "expert_weights_norm": moe.normalize,
        "expert_weights_scale": moe.scale,
        "leading_dense_block_count": moe.first_layer,
        **({"expert_shared_feed_forward_length": moe.shared_ffn_dim} if moe.shared_ffn_dim else {}),
        **({"expert_group_count": moe.n_groups, "expert_group_used_count": moe.top_groups} if moe.n_groups > 1 else {}),
        "expert_shared_count": moe.shared_ffn_dim // moe.ffn_dim,
    }


def stretch_tensors(config: ModelConfig) -> dict[str, list[float]]:
    """Small tensors of a file that hold a stretch of the frequencies: its name -> numbers, to be stored in fp32."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind == "llama3":
        return {FREQUENCIES: llama3_factors(config)}
    if scaling.kind == "longrope":
        return {LONG_FACTORS: list(scaling.long_factor), SHORT_FACTORS: list(scaling.short_factor)}
    return {}
