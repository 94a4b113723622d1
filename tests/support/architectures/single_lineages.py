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
    "smollm3": {
        **LLAMA, "model_type": "smollm3", "num_hidden_layers": 5, "attention_bias": True, "mlp_bias": True,
        "head_dim": 20,
    },
    "smollm3-window": {
        **LLAMA, "model_type": "smollm3", "no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    "exaone4": {**LLAMA, "model_type": "exaone4", "num_hidden_layers": 5, "sliding_window": 8, "head_dim": 20},
    "exaone4-full": {
        **LLAMA, "model_type": "exaone4", "sliding_window": None, "layer_types": ["full_attention"] * 3,
        "tie_word_embeddings": True, "rope_parameters": LLAMA3,
    },
    "nemotron": {**LLAMA, "model_type": "nemotron", "attention_bias": True, "mlp_bias": True, "head_dim": 20},
    "nemotron-plain": {**LLAMA, "model_type": "nemotron", "rope_parameters": {
        "rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0,
    }},
    "qwen2-moe": {
        **LLAMA, "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "tie_word_embeddings": True,
    },
    "qwen2-moe-window": {
        **LLAMA, "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2, "norm_topk_prob": True, "qkv_bias": False,
        "use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 4, "max_window_layers": 2,
    },
    "stablelm": {**LLAMA, "model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "stablelm-parallel": {
        **LLAMA, "model_type": "stablelm", "hidden_size": 64, "use_parallel_residual": True, "qk_layernorm": True,
    },
    "stablelm-serial-heads": {
        **LLAMA, "model_type": "stablelm", "hidden_size": 64, "qk_layernorm": True, "tie_word_embeddings": True,
    },
    "seed-oss": {**LLAMA, "model_type": "seed_oss", "head_dim": 20, "mlp_bias": True},
    "seed-oss-biased": {**LLAMA, "model_type": "seed_oss", "head_dim": 12, "attention_out_bias": True},
    "seed-oss-plain": {
        **LLAMA, "model_type": "seed_oss", "head_dim": 12, "attention_bias": False, "tie_word_embeddings": True,
    },
    "arcee": {
        **LLAMA, "model_type": "arcee", "attention_bias": True, "mlp_bias": True, "head_dim": 20,
        "rope_parameters": YARN,
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
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-7b": 7_298_011_136,
    "olmoe-1b-7b": 6_919_161_856,
    "command-r": 34_980_831_232,
    "command-r7b": 8_028_033_024,
    "smollm3-3b": 3_075_098_624,
    "exaone-4-1.2b": 1_279_391_488,
    "exaone-4-32b": 32_003_216_384,
    "nemotron-mini-4b": 4_190_509_056,
    "minitron-8b": 8_271_699_968,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "stablelm-3b": 2_795_443_200,
    "stablelm-2-1.6b": 1_644_515_328,
    "stablelm-2-12b": 12_143_185_920,
    "seed-oss-36b": 36_151_104_512,
    "afm-4.5b": 4_619_184_640,
}
