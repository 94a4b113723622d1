"""LightGPT's NoPE GPT: no positions at all (Kazemnejad et al. 2023), no biases, an MLP without a gate. Light.

transformers has no class of it: the keys of its config.json and of its tensors are ours, in the style of Llama's, and
an exported folder carries the class, for those who trust_remote_code.
"""

from __future__ import annotations

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.hf_config import HF_ACTIVATIONS, HFKeys, Written, read_llama_keys, refuse, write_vocab

_CLASS = "NoPEGPTForCausalLM"
_CODE = "modeling_nope_gpt"
_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": True}


def _nope(vocab_size: int, dim: int, n_heads: int, n_layers: int) -> ModelConfig:
    return ModelConfig(
        family="nope_gpt",
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=dim // n_heads,
        ffn_dim=4 * dim,  # 1 and 2 times are common too
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size,
        max_seq_len=1024,  # any other does as well
        positions="none",
        norm_eps=1e-6,
        gated_mlp=False,
        tie_embeddings=True,
    )


_PRESETS = {
    "nope-gpt-small": _nope(50257, 1024, 16, 24),
    "nope-gpt-medium": _nope(50257, 2048, 32, 32),
    "nope-gpt-large": _nope(100275, 4096, 64, 32),
    "nope-gpt-xl": _nope(100275, 4096, 64, 64),
    "nope-gpt-xxl": _nope(200017, 8192, 128, 64),
    "nope-gpt-xxxl": _nope(200017, 8192, 128, 128),
}


def _read(hf: HFKeys) -> ModelConfig:
    refuse(hf, "num_key_value_heads", hf.get("num_attention_heads"))
    return read_llama_keys(hf, family="nope_gpt", positions="none", gated_mlp=False)


def _write(config: ModelConfig) -> Written:
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": HF_ACTIVATIONS.get(config.activation, config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        **write_vocab(config),
        "auto_map": {"AutoConfig": f"{_CODE}.NoPEGPTConfig", "AutoModelForCausalLM": f"{_CODE}.{_CLASS}"},
    }


FAMILIES = (
    Family(
        "nope_gpt",
        _CLASS,
        llama.RULES,
        _read,
        _write,
        defaults=_DEFAULTS,
        presets=_PRESETS,
        hf_code=f"{_CODE}.py",
    ),
)
