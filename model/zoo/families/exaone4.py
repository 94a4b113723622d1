"""EXAONE 4 (LG AI Research 2025): norms behind attention and MLP, and of each head; where layers see a window, only
those turn. Presets, config, key rules. Light.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.zoo.families.olmo import RULES_2
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Sees,
    Written,
    need,
    read_layers,
    read_llama_keys,
    write_layers,
    write_llama_keys,
)

_DEFAULTS = {
    "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "sliding_window": 4096, "sliding_window_pattern": 4,
}  # fmt: skip


def _exaone(dim: int, n_layers: int, n_heads: int, ffn_dim: int, max_seq_len: int, **knobs: object) -> ModelConfig:
    scaling = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
    base: Written = {
        "family": "exaone4", "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": 8, "ffn_dim": ffn_dim,
        "vocab_size": 102400, "padded_vocab_size": 102400, "max_seq_len": max_seq_len, "norm_place": "post",
        "norm_eps": 1e-5, "qk_norm": "head", "rope_theta": 1e6, "rope_scaling": scaling,
    }  # fmt: skip
    return ModelConfig.model_validate({**base, **knobs})


_PRESETS = {
    "exaone-4-1.2b": _exaone(2048, 30, 32, 4096, 65536, tie_embeddings=True),
    "exaone-4-32b": _exaone(
        5120, 64, 40, 27392, 131072, layers=(*("window",) * 3, "full"), rope_layers=(True, True, True, False),
        window=4096,
    ),
}  # fmt: skip


def _read(hf: HFKeys) -> ModelConfig:
    window = hf["sliding_window"]
    layers: tuple[Sees, ...] = ("full",) if window is None else read_layers(hf, _derived(hf))
    return read_llama_keys(
        hf,
        family="exaone4",
        norm_place="post",
        qk_norm="head",
        layers=layers,
        window=window,
        rope_layers=tuple(window is None or sees == "window" for sees in layers),
    )


def _derived(hf: HFKeys) -> list[Sees]:
    """Of a number n: every n-th layer sees everything. Of letters: those of an L see a window; never the last one."""
    pattern = need(hf, "sliding_window_pattern")
    n_layers = int(need(hf, "num_hidden_layers"))
    if isinstance(pattern, int):
        return ["window" if (n + 1) % pattern else "full" for n in range(n_layers)]
    local = [pattern[n % len(pattern)] == "L" and n != n_layers - 1 for n in range(n_layers)]
    return ["window" if one else "full" for one in local]


def _write(config: ModelConfig) -> Written:
    return {"layer_types": write_layers(config), "sliding_window": config.window, **write_llama_keys(config)}


def _settle(found: HFKeys) -> Written:
    return {"sliding_window": found.get("sliding_window")}


_GGUF = Gguf(
    "exaone4", reads_window=True, head_dim_follows=True, stretches=("linear", "yarn", "llama3"), settle=_settle
)
FAMILIES = (Family("exaone4", "Exaone4ForCausalLM", RULES_2, _read, _write, _DEFAULTS, _PRESETS, _GGUF),)
