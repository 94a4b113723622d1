"""Families that took GPT-2's shape or left it for their own: tiny configurations, published numbers of parameters."""

from __future__ import annotations

from typing import Any

from tests.support.architectures.llama_like import COMMON, LLAMA

IDS = {"vocab_size": 99, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
GPT2 = {**IDS, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "model_type": "gpt2", "n_inner": 80, "layer_norm_epsilon": 1e-3},
    "gpt2-unscaled": {
        **GPT2, "model_type": "gpt2", "scale_attn_weights": False, "tie_word_embeddings": False,
        "activation_function": "relu",
    },
    "gpt-bigcode": {**GPT2, "model_type": "gpt_bigcode", "n_inner": 80},
    "gpt-bigcode-multi-head": {**GPT2, "model_type": "gpt_bigcode", "multi_query": False, "scale_attn_weights": False},
    "starcoder2": {**LLAMA, "model_type": "starcoder2", "sliding_window": 8, "norm_epsilon": 1e-3},
    "starcoder2-plain": {**LLAMA, "model_type": "starcoder2", "use_bias": False, "tie_word_embeddings": False},
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "starcoder2-3b": 3_030_371_328,
    "starcoder2-7b": 7_173_923_840,
    "starcoder2-15b": 15_655_899_136,
}
