"""Gemma, OLMo, Cohere and other lineages of one laboratory: tiny configurations, and published numbers of parameters."""

from __future__ import annotations

from typing import Any

from tests.support.architectures.llama_like import LLAMA, LLAMA3

YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LOCAL = {"rope_type": "default", "rope_theta": 300.0}
_GEMMA3 = {**LLAMA, "model_type": "gemma3_text", "head_dim": 20, "sliding_window": 8}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma": {**LLAMA, "model_type": "gemma", "head_dim": 20, "attention_bias": True},
    "gemma-untied": {**LLAMA, "model_type": "gemma", "tie_word_embeddings": False, "rope_parameters": LLAMA3},
    "gemma2": {
        **LLAMA, "model_type": "gemma2", "head_dim": 20, "sliding_window": 8, "query_pre_attn_scalar": 30,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention_bias": True,
    },
    "gemma2-uncapped": {
        **LLAMA, "model_type": "gemma2", "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "gemma3": {
        **_GEMMA3, "num_hidden_layers": 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        "query_pre_attn_scalar": 30, "attention_bias": True, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}, "sliding_attention": LOCAL,
        },
    },
    "gemma3-capped": {
        **_GEMMA3, "final_logit_softcapping": 3.0, "num_hidden_layers": 7,
    },
}  # fmt: skip

PARAMETERS: dict[str, int] = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
}
