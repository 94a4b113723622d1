"""SmolLM3 (Bakouch et al. 2025): Llama whose every fourth layer does not turn. Presets, config, key rules. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Sees,
    Written,
    need,
    read_layers,
    read_llama_keys,
    shortest_pattern,
    write_layers,
    write_llama_keys,
)

_DEFAULTS = {
    "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768, "rope_theta": 2_000_000.0,
    "use_sliding_window": False, "sliding_window": None, "no_rope_layers": None, "no_rope_layer_interval": 4,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_PRESETS = {
    "smollm3-3b": ModelConfig(
        family="smollm3",
        dim=2048,
        n_layers=36,
        n_heads=16,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=11008,
        vocab_size=128256,
        padded_vocab_size=128256,
        max_seq_len=65536,
        rope_theta=5_000_000.0,
        rope_layers=(True, True, True, False),
        norm_eps=1e-6,
        tie_embeddings=True,
    ),
}


def _read(hf: HFKeys) -> ModelConfig:
    """A 1 in `no_rope_layers` is a layer that does turn. Those that do not see a window, if one is in use."""
    n_layers = int(need(hf, "num_hidden_layers"))
    interval = need(hf, "no_rope_layer_interval")
    listed = hf.get("no_rope_layers")
    turns = [bool((n + 1) % interval) for n in range(n_layers)] if listed is None else [bool(one) for one in listed]
    if len(turns) != n_layers:
        raise ValueError(f"config.json: no_rope_layers has {len(turns)} entries for {n_layers} layers")
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    derived: list[Sees] = ["full" if window is None or turned else "window" for turned in turns]
    layers = read_layers(hf, derived)
    if window is None and layers != ("full",):
        raise ValueError("config.json: layer_types has layers of a window, but use_sliding_window is false")
    return read_llama_keys(
        hf,
        family="smollm3",
        attention_bias=hf["attention_bias"],
        mlp_bias=hf["mlp_bias"],
        rope_layers=shortest_pattern(turns),
        layers=layers,
        window=None if layers == ("full",) else window,
    )


def _write(config: ModelConfig) -> Written:
    return {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": [int(config.rotates(layer)) for layer in range(config.n_layers)],
        "layer_types": write_layers(config),
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        **write_llama_keys(config),
    }


_GGUF = Gguf("smollm3", in_pairs=True, only={"attention_bias": False, "mlp_bias": False})
FAMILIES = (Family("smollm3", "SmolLM3ForCausalLM", llama.RULES, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
