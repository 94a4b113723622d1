"""Reading and writing config.json, whichever version of transformers wrote it. Light; knows no family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from launchyard.model.config import ModelConfig, RopeScaling

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2"]
Sees = Literal["full", "window", "chunk"]
Kind = TypeVar("Kind")
HFKeys = Mapping[str, Any]  # of a config.json
Written = dict[str, Any]  # some of them
# Their names of activations that we have. The tanh forms differ only in how they are computed.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
HF_ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
SEES: dict[str, Sees] = {"full_attention": "full", "sliding_attention": "window", "chunked_attention": "chunk"}
HF_SEES = {ours: theirs for theirs, ours in SEES.items()}
# Our key for the number of real rows of the vocabulary; transformers keeps the key and ignores it.
UNPADDED = "unpadded_vocab_size"
# Their keys of a stretch, and ours.
_SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}


def need(hf: HFKeys, key: str) -> Any:
    """A value that must be there; ValueError names the key."""
    if hf.get(key) is None:
        raise ValueError(f"config.json: {key} is missing")
    return hf[key]


def refuse(hf: HFKeys, key: str, *allowed: object, why: str = "not supported") -> None:
    """ValueError if a key has another value than these; one that is missing is fine."""
    if hf.get(key) is not None and hf[key] not in allowed:
        shown = " or ".join(repr(value) for value in allowed if value is not None) or "null"
        raise ValueError(f"config.json: {key} is {hf[key]!r}, which is {why}; supported is {shown}")


def read_activation(hf: HFKeys, key: str = "hidden_act") -> Activation:
    name = need(hf, key)
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json: {key} is {name!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_llama_keys(hf: HFKeys, **knobs: object) -> ModelConfig:
    """The model behind the keys that Llama introduced and later families keep; `knobs` are those of the family.

    ValueError names a key that is missing or has a value that is not supported.
    """
    dim = int(need(hf, "hidden_size"))
    heads = int(need(hf, "num_attention_heads"))
    found = {
        "dim": dim,
        "n_layers": need(hf, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or dim // heads,
        "ffn_dim": need(hf, "intermediate_size"),
        "max_seq_len": need(hf, "max_position_embeddings"),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
        **read_vocab(hf),
    }
    if "norm_eps" not in knobs:
        found["norm_eps"] = hf.get("rms_norm_eps", 1e-6)
    if "activation" not in knobs:
        found["activation"] = read_activation(hf)
    if knobs.get("positions", "rope") == "rope":
        found |= read_rope(hf)
    return ModelConfig.model_validate({**found, **knobs})


def write_llama_keys(
    config: ModelConfig,
    *,
    eps_key: str = "rms_norm_eps",
    activation_key: str = "hidden_act",
    fraction_key: str | None = None,
) -> Written:
    """The inverse of `read_llama_keys`; fraction_key: as in `write_rope`."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        eps_key: config.norm_eps,
        activation_key: HF_ACTIVATIONS.get(config.activation, config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config, fraction_key=fraction_key),
        **write_vocab(config),
    }


def read_vocab(hf: HFKeys) -> dict[str, int]:
    """Their vocab_size counts the rows that the table has."""
    rows = int(need(hf, "vocab_size"))
    return {"vocab_size": int(hf.get(UNPADDED) or rows), "padded_vocab_size": rows}


def write_vocab(config: ModelConfig) -> dict[str, int]:
    written = {"vocab_size": config.padded_vocab_size}
    return written if config.vocab_size == config.padded_vocab_size else written | {UNPADDED: config.vocab_size}


def read_layers(hf: HFKeys, derived: Sequence[Sees]) -> tuple[Sees, ...]:
    """What each layer sees, as its shortest pattern: `layer_types`, else `derived` from the family's older keys."""
    types = hf.get("layer_types")
    if types is None:
        return shortest_pattern(derived)
    unknown = sorted({kind for kind in types if kind not in SEES})
    if unknown:
        raise ValueError(f"config.json: layer_types has {', '.join(unknown)}; supported are {', '.join(SEES)}")
    if len(types) != int(need(hf, "num_hidden_layers")):
        raise ValueError(f"config.json: layer_types has {len(types)} entries for {hf['num_hidden_layers']} layers")
    return shortest_pattern([SEES[kind] for kind in types])


def read_sliding_window(hf: HFKeys) -> Written:
    """Every layer sees the window of `sliding_window`, if it hides anything."""
    window = hf.get("sliding_window")
    if window is None or window >= need(hf, "max_position_embeddings"):
        return {}
    return {"layers": ("window",), "window": window}


def write_layers(config: ModelConfig) -> list[str]:
    """`layer_types`, one for each layer."""
    return [HF_SEES[config.sees(layer)] for layer in range(config.n_layers)]


def shortest_pattern(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The shortest beginning that gives the whole when it is repeated."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[n % length] for n, kind in enumerate(kinds)):
            return tuple(kinds[:length])
    return tuple(kinds)


def read_rope(
    hf: HFKeys,
    *,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
    fraction: float = 1.0,
) -> Written:
    """The rotary knobs. transformers 5 writes `rope_parameters`; 4 wrote `rope_scaling` and keys of the family.

    `fraction` is the family's, where no key says it.
    """
    given = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    local = given.get("sliding_attention")
    rope = dict(given.get("full_attention") or {}) if "full_attention" in given else given
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", hf.get(theta_key, hf.get("rope_theta")))
    share = rope.get("partial_rotary_factor", hf.get(fraction_key))
    return {
        "rope_theta": 10_000.0 if theta is None else theta,
        "rope_fraction": fraction if share is None else share,
        "rope_scaling": None if kind in ("default", None) else _read_scaling(kind, rope, hf),
        **_window_theta(local, hf, rope),
    }


def write_rope(config: ModelConfig, *, theta_key: str = "rope_theta", fraction_key: str | None = None) -> Written:
    """The rotary keys in the form that transformers 4 and 5 both read. fraction_key: of a family that has one."""
    written: Written = {theta_key: config.rope_theta, "rope_scaling": write_scaling(config)}
    if fraction_key is not None:
        written[fraction_key] = config.rope_fraction
    if config.window_rope_theta is not None:
        scaling = written["rope_scaling"] or {"rope_type": "default"}
        written["rope_local_base_freq"] = config.window_rope_theta
        written["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.window_rope_theta},
        }
    return written


def write_scaling(config: ModelConfig) -> Written | None:
    """`rope_scaling` in the form that transformers 4 and 5 both read."""
    scaling = config.rope_scaling
    if scaling is None:
        return None
    defaults = {key: field.default for key, field in RopeScaling.model_fields.items()}
    written: Written = {"rope_type": scaling.kind}
    for theirs, ours in _SCALING_KEYS.items():
        value = getattr(scaling, ours)
        if value != defaults[ours] or ours == "factor":
            written[theirs] = list(value) if isinstance(value, tuple) else value
    return written


def _window_theta(local: object, hf: HFKeys, rope: HFKeys) -> Written:
    if isinstance(local, dict):
        if local.get("rope_type", "default") != "default":
            if {**local} == {**rope}:
                return {}
            raise ValueError(
                f"config.json: rope_parameters stretches sliding_attention by {local['rope_type']!r}, which is not "
                "supported; supported is default"
            )
        return {"window_rope_theta": local.get("rope_theta", 10_000.0)}
    theta = hf.get("rope_local_base_freq")
    return {} if theta is None else {"window_rope_theta": theta}


def _read_scaling(kind: str, rope: HFKeys, hf: HFKeys) -> RopeScaling:
    supported = ("linear", "dynamic", "llama3", "yarn", "longrope", "su")
    if kind not in supported:
        raise ValueError(f"config.json: rope_type is {kind!r}; supported are default, {', '.join(supported[:-1])}")
    kind = "longrope" if kind == "su" else kind  # its first name, in Phi-3
    found = {ours: rope[theirs] for theirs, ours in _SCALING_KEYS.items() if rope.get(theirs) is not None}
    longest = need(hf, "max_position_embeddings")
    original = rope.get("original_max_position_embeddings") or hf.get("original_max_position_embeddings")
    if kind != "linear":
        found["original_max_seq_len"] = longest if original is None else original
    if kind == "longrope" and "factor" not in found:
        found["factor"] = longest / found["original_max_seq_len"]
    for key in ("factor", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor"):
        if key in _NEEDED[kind]:
            need(rope, key)
    return RopeScaling.model_validate({"kind": kind, **found})


_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
