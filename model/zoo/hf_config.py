"""Reading Hugging Face's config.json, whichever version of transformers wrote it. Light; knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from launchyard.model.config import ModelConfig, RopeScaling

Activation = Literal["gelu", "gelu_tanh", "silu"]
# Their names of activations that we have. The four tanh forms differ only in how they are computed.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
HF_ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
# Our key for the number of real rows of the vocabulary; transformers keeps the key and ignores it.
UNPADDED = "unpadded_vocab_size"


def need(hf: Mapping[str, Any], key: str) -> Any:
    """A value that must be there; ValueError names the key."""
    if hf.get(key) is None:
        raise ValueError(f"config.json: {key} is missing")
    return hf[key]


def read_activation(hf: Mapping[str, Any]) -> Activation:
    name = need(hf, "hidden_act")
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act is {name!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_llama_keys(hf: Mapping[str, Any], *, n_kv_heads: int | None = None, **knobs: str | bool) -> ModelConfig:
    """The model behind the keys that Llama introduced and later families keep; `knobs` are those of the family.

    `n_kv_heads` is the family's default where the key is missing; None: as many as heads. ValueError names a key that
    is missing or has a value that is not supported.
    """
    dim = int(need(hf, "hidden_size"))
    heads = int(need(hf, "num_attention_heads"))
    found = {
        "dim": dim,
        "n_layers": need(hf, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": hf.get("num_key_value_heads", n_kv_heads) or heads,
        "head_dim": hf.get("head_dim") or dim // heads,
        "ffn_dim": need(hf, "intermediate_size"),
        "max_seq_len": need(hf, "max_position_embeddings"),
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "activation": read_activation(hf),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        **read_vocab(hf),
        **read_rope(hf, theta_key="rope_theta", fraction_key="partial_rotary_factor", fraction=1.0),
        **knobs,
    }
    return ModelConfig(**found)


def write_llama_keys(config: ModelConfig) -> dict[str, object]:
    """The inverse of `read_llama_keys`."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "rope_theta": config.rope_theta,
        "rope_scaling": write_scaling(config),
        "rms_norm_eps": config.norm_eps,
        "hidden_act": HF_ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
    }


def read_vocab(hf: Mapping[str, Any]) -> dict[str, int]:
    """Their vocab_size counts the rows that the table has."""
    rows = int(need(hf, "vocab_size"))
    return {"vocab_size": int(hf.get(UNPADDED) or rows), "padded_vocab_size": rows}


def write_vocab(config: ModelConfig) -> dict[str, int]:
    written = {"vocab_size": config.padded_vocab_size}
    return written if config.vocab_size == config.padded_vocab_size else written | {UNPADDED: config.vocab_size}


def read_rope(hf: Mapping[str, Any], *, theta_key: str, fraction_key: str, fraction: float) -> dict[str, Any]:
    """The rotary knobs. transformers 5 writes `rope_parameters`; 4 wrote `rope_scaling` and keys of the family."""
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json: rope_type is {kind!r}; supported are default and llama3")
    theta = rope.get("rope_theta", hf.get(theta_key, hf.get("rope_theta")))
    share = rope.get("partial_rotary_factor", hf.get(fraction_key))
    return {
        "rope_theta": 10_000.0 if theta is None else theta,
        "rope_fraction": fraction if share is None else share,
        "rope_scaling": _read_scaling(rope, hf) if kind == "llama3" else None,
    }


def write_scaling(config: ModelConfig) -> dict[str, object] | None:
    """`rope_scaling` in the form that transformers 4 and 5 both read."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }


def _read_scaling(rope: Mapping[str, Any], hf: Mapping[str, Any]) -> RopeScaling:
    original = rope.get("original_max_position_embeddings", hf.get("max_position_embeddings"))
    return RopeScaling(
        factor=need(rope, "factor"),
        low_freq_factor=need(rope, "low_freq_factor"),
        high_freq_factor=need(rope, "high_freq_factor"),
        original_max_seq_len=need({"original_max_position_embeddings": original}, "original_max_position_embeddings"),
    )
