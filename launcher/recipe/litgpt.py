"""A model as LitGPT's YAML says it (block_size, n_layer, n_embd …), in our keys. Knows the keys of its Config alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from launchyard.model import zoo
from launchyard.model.config import ModelConfig

_Keys = Mapping[str, Any]
_Value = TypeVar("_Value")
# A section with n_embd and one of these is LitGPT's; GPT-2 and its children share n_embd, n_layer and n_head.
OWN = {
    "block_size", "padding_multiple", "norm_class_name", "mlp_class_name", "rotary_percentage", "n_query_groups",
    "parallel_residual", "shared_attention_norm", "rope_condense_ratio", "head_size", "lm_head_bias",
}  # fmt: skip
_DEFAULTS: _Keys = {
    "name": "", "hf_config": {}, "block_size": 4096, "n_layer": 16, "n_embd": 4096, "vocab_size": 50254,
    "padding_multiple": 512, "padded_vocab_size": None, "norm_class_name": "LayerNorm", "norm_eps": 1e-5,
    "norm_qk": False, "norm_qk_type": "default", "post_attention_norm": False, "post_mlp_norm": False,
    "parallel_residual": True, "shared_attention_norm": False, "n_head": 32, "head_size": None, "n_query_groups": None,
    "attn_bias": False, "attention_scores_scalar": None, "sliding_window_size": None, "sliding_window_indices": None,
    "attention_logit_softcapping": None, "rope_base": 10000, "rotary_percentage": 0.25, "rope_condense_ratio": 1,
    "rope_adjustments": None, "intermediate_size": None, "moe_intermediate_size": None, "bias": True,
    "mlp_class_name": "GptNeoxMLP", "gelu_approximate": "none", "n_expert": 0, "n_expert_per_token": 0,
    "scale_embeddings": False, "lm_head_bias": False, "final_logit_softcapping": None, "norm_1": True, "norm_2": True,
    "rope_local_base_freq": None, "rope_indices": None,
}  # fmt: skip
_NORM_KEYS = ("norm_1", "norm_2", "post_attention_norm", "post_mlp_norm")
_NEOX_WORDS = 50254  # what LitGPT says of a tokenizer that has 23 ids more, runs of spaces
_NEOX_IDS = 50277
# Whose files have a place for the knobs; the first that fits.
_FAMILIES = (
    "gpt_neox", "llama", "qwen2", "qwen3", "phi", "stablelm", "falcon", "gemma", "gemma2", "gemma3_text", "mistral",
    "mixtral", "olmo", "olmo2",
)  # fmt: skip


class LitGPTKeyError(ValueError):
    """A key whose value we have no knob for."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def is_litgpt(section: _Keys) -> bool:
    """True for the model of a recipe that is in LitGPT's keys."""
    return "n_embd" in section and not OWN.isdisjoint(section)


def from_litgpt(section: _Keys) -> ModelConfig:
    """The model of LitGPT's keys, with its defaults for those that are absent; LitGPTKeyError, or ValueError."""
    section = _over_named(section)
    for key in section:
        if key not in _DEFAULTS:
            known = key in ModelConfig.model_fields or key in ("preset", "init_from")
            more = "this model is in LitGPT's keys; use them or ours, not both" if known else "we have no knob for it"
            raise LitGPTKeyError(key, more)
    keys = {**_DEFAULTS, **section}
    knobs = {**_sizes(keys), **_norms(keys), **_attention(keys), **_positions(keys), **_mlp(keys)}
    first = "gpt_neox" if keys["norm_class_name"] == "LayerNorm" else "llama"
    for family in _FAMILIES:
        config = ModelConfig.model_validate({**knobs, "family": family})
        try:
            zoo.config_to_hf(config)
        except (ValueError, KeyError):
            continue
        return config
    return ModelConfig.model_validate({**knobs, "family": first})


def _over_named(section: _Keys) -> _Keys:
    """`model_name`: LitGPT takes what is absent from the model of that name, which for Pythia is its defaults and rows.

    The defaults of other families are not these, so there a name would silently mean another model.
    """
    if "model_name" not in section:
        return section
    named = str(section["model_name"]).rpartition("/")[2].lower()
    known = zoo.preset(named) if named in zoo.presets() else None
    if known is None or known.family != "gpt_neox":
        close = f"write model.preset: {named} and change it" if known else "write model.preset: NAME of `launch models`"
        raise LitGPTKeyError("model_name", f"{close} in our keys")
    mine = {key: value for key, value in section.items() if key != "model_name"}
    if "padding_multiple" not in mine and mine.get("vocab_size", 0) <= known.padded_vocab_size:
        mine.setdefault("padded_vocab_size", known.padded_vocab_size)
    return {"name": section["model_name"], **mine}


def _sizes(keys: _Keys) -> dict[str, object]:
    multiple = keys["padding_multiple"]
    ids = keys["vocab_size"]
    rows = keys["padded_vocab_size"] or -(-ids // multiple) * multiple
    head = keys["head_size"]
    return {
        "dim": keys["n_embd"],
        "n_layers": keys["n_layer"],
        "n_heads": keys["n_head"],
        "n_kv_heads": keys["n_query_groups"] or keys["n_head"],
        **({} if head is None else {"head_dim": head}),
        "max_seq_len": keys["block_size"],
        "vocab_size": min(rows, _NEOX_IDS if ids == _NEOX_WORDS else ids),
        "padded_vocab_size": rows,
        "embed_scale": math.sqrt(keys["n_embd"]) if keys["scale_embeddings"] else None,
        "head_bias": keys["lm_head_bias"],
        "logit_softcap": keys["final_logit_softcapping"],
    }


def _norms(keys: _Keys) -> dict[str, object]:
    kind = _one_of(keys, "norm_class_name", {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"})
    weight = "plain"
    if kind == "rmsnorm" and "Gemma" in keys["name"]:
        weight = "plus_one"
    elif kind == "layernorm" and "OLMo" in keys["name"]:
        weight = "none"
    places: dict[tuple[bool, ...], str] = {
        (True, True, False, False): "pre",
        (True, True, True, True): "sandwich",
        (False, False, True, True): "post",
    }
    place = places.get(tuple(bool(keys[key]) for key in _NORM_KEYS))
    if place is None:
        raise LitGPTKeyError("post_attention_norm", "norms before, behind or around both halves of a block, not of one")
    parallel = bool(keys["parallel_residual"])
    if keys["shared_attention_norm"] and not parallel:
        raise LitGPTKeyError("shared_attention_norm", "it needs parallel_residual: true")
    return {
        "norm": kind,
        "norm_weight": weight,
        "norm_eps": keys["norm_eps"],
        "norm_place": place,
        "parallel_residual": parallel,
        "shared_norm": keys["shared_attention_norm"],
    }


def _attention(keys: _Keys) -> dict[str, object]:
    scalar = keys["attention_scores_scalar"]
    head = keys["head_size"] or keys["n_embd"] / keys["n_head"]
    shape = _one_of(keys, "norm_qk_type", {"default": "head", "olmo2": "width"})
    window = keys["sliding_window_size"]
    seen = keys["sliding_window_indices"]
    if window is not None and seen is not None and len(seen) != keys["n_layer"]:
        raise LitGPTKeyError("sliding_window_indices", f"{len(seen)} values for n_layer {keys['n_layer']}")
    layers = ["window"] if seen is None else ["window" if one else "full" for one in seen]
    return {
        "attention_bias": keys["bias"],
        "qkv_bias": bool(keys["attn_bias"] and not keys["bias"]),
        "attention_scale": None if scalar in (None, head) else scalar**-0.5,
        "attention_softcap": keys["attention_logit_softcapping"],
        "qk_norm": shape if keys["norm_qk"] else None,
        **({} if window is None else {"window": window, "layers": _shortest(layers)}),
    }


def _positions(keys: _Keys) -> dict[str, object]:
    stretch: dict[str, object] | None = None
    if keys["rope_condense_ratio"] != 1:
        stretch = {"kind": "linear", "factor": keys["rope_condense_ratio"]}
    given = keys["rope_adjustments"]
    if given is not None:
        if set(given) not in ({"factor"}, {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}):
            raise LitGPTKeyError("rope_adjustments", "factor alone, or with low_freq_factor, high_freq_factor and "
                                 "original_max_seq_len")  # fmt: skip
        stretch = {"kind": "linear" if len(given) == 1 else "llama3", **given}
    local = keys["rope_local_base_freq"]
    if local is not None and keys["rope_indices"] != keys["sliding_window_indices"]:
        raise LitGPTKeyError("rope_indices", "the layers of the local base must be those that see a window")
    found: dict[str, object] = {"rope_theta": keys["rope_base"], "rope_scaling": stretch, "window_rope_theta": local}
    if keys["rotary_percentage"] == 0:
        return {**found, "positions": "none"}
    return {**found, "rope_fraction": keys["rotary_percentage"]}


def _mlp(keys: _Keys) -> dict[str, object]:
    tanh = _one_of(keys, "gelu_approximate", {"none": "gelu", "tanh": "gelu_tanh"})
    gelu: Callable[[bool], dict[str, object]] = lambda gated: {"activation": tanh, "gated_mlp": gated}  # noqa: E731
    silu = {"activation": "silu", "gated_mlp": True}
    made = {"GptNeoxMLP": gelu(False), "GemmaMLP": gelu(True), "LLaMAMLP": silu, "LLaMAMoE": silu}
    found = _one_of(keys, "mlp_class_name", made)
    width = keys["intermediate_size"]
    if width is None and keys["mlp_class_name"] == "LLaMAMLP":
        raise LitGPTKeyError("intermediate_size", "missing; LLaMAMLP has no default of it")
    width = width or 4 * keys["n_embd"]
    experts = keys["mlp_class_name"] == "LLaMAMoE"
    if bool(keys["n_expert"]) != experts:
        raise LitGPTKeyError("n_expert", "it belongs to mlp_class_name: LLaMAMoE")
    moe = None
    if experts:
        sizes = {"n_experts": keys["n_expert"], "top_k": keys["n_expert_per_token"]}
        moe = {**sizes, "ffn_dim": keys["moe_intermediate_size"] or width, "normalize": True}
    return {**found, "ffn_dim": width, "mlp_bias": keys["bias"], "moe": moe}


def _shortest(layers: list[str]) -> tuple[str, ...]:
    """The shortest pattern that repeats to these layers."""
    for length in range(1, len(layers) + 1):
        if all(layers[n] == layers[n % length] for n in range(len(layers))):
            return tuple(layers[:length])
    return tuple(layers)


def _one_of(keys: _Keys, key: str, values: Mapping[str, _Value]) -> _Value:
    if keys[key] not in values:
        raise LitGPTKeyError(key, f"{keys[key]!r} is not one of {', '.join(values)}")
    return values[keys[key]]
