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
    "olmo": {**LLAMA, "model_type": "olmo", "clip_qkv": 0.8, "attention_bias": True, "head_dim": 20},
    "olmo-tied": {**LLAMA, "model_type": "olmo", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "olmo2": {**LLAMA, "model_type": "olmo2", "attention_bias": True, "rope_parameters": LLAMA3},
    "olmo3": {
        **LLAMA, "model_type": "olmo3", "num_hidden_layers": 5, "sliding_window": 8, "attention_bias": True,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": LOCAL},
    },
    "olmo3-unstretched": {**LLAMA, "model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 8},
    "olmoe": {
        **LLAMA, "model_type": "olmoe", "clip_qkv": 0.8, "attention_bias": True, "num_experts": 6,
        "num_experts_per_tok": 2, "norm_topk_prob": True, "intermediate_size": 24,
    },
    "olmoe-plain": {
        **LLAMA, "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3, "tie_word_embeddings": True,
    },
    "cohere": {**LLAMA, "model_type": "cohere", "use_qk_norm": True, "attention_bias": True, "head_dim": 20},
    "cohere-untied": {**LLAMA, "model_type": "cohere", "logit_scale": 1.0, "tie_word_embeddings": False},
    "cohere2": {
        **LLAMA, "model_type": "cohere2", "num_hidden_layers": 5, "sliding_window": 8, "attention_bias": True,
        "logit_scale": 0.25, "rope_parameters": LLAMA3,
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
    "olmo-1b": 1_176_764_416,
    "olmo-7b": 6_888_095_744,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-3-7b": 7_298_011_136,
    "olmoe-1b-7b": 6_919_161_856,
    "command-r": 34_980_831_232,
    "command-r7b": 8_028_033_024,
}
