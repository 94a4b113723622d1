"""Gemma, OLMo, Cohere and others: tiny configurations, published numbers of parameters, and released configs."""

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
    "olmo2": {**LLAMA, "model_type": "olmo2", "attention_bias": True, "head_dim": 20, "rope_parameters": LLAMA3},
    "olmo3": {
        **LLAMA, "model_type": "olmo3", "num_hidden_layers": 5, "sliding_window": 8, "attention_bias": True,
        "head_dim": 20, "rope_parameters": {"full_attention": YARN, "sliding_attention": LOCAL},
    },
    "nanochat": {
        **LLAMA, "model_type": "nanochat", "attention_bias": True, "head_dim": 20, "final_logit_softcapping": 3.0,
    },
    "nanochat-uncapped": {
        **LLAMA, "model_type": "nanochat", "final_logit_softcapping": None, "rope_parameters": LLAMA3,
        "tie_word_embeddings": True, "num_key_value_heads": 4,
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
        "logit_scale": 0.25, "rope_parameters": LLAMA3, "head_dim": 20,
    },
    "smollm3": {
        **LLAMA, "model_type": "smollm3", "num_hidden_layers": 5, "attention_bias": True, "mlp_bias": True,
        "head_dim": 20,
    },
    "smollm3-window": {
        **LLAMA, "model_type": "smollm3", "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8,
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
        "use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 4, "max_window_layers": 2, "head_dim": 20,
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
    "nanochat-d20": 560_988_160,
    "nanochat-d32": 1_879_048_192,
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

# Keys of config.json as they were released, of transformers 4; without those that no model depends on.
_WIDE_GEMMA2 = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 10000.0}
_LLAMA3_16 = {
    "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
RELEASES: dict[str, dict[str, Any]] = {
    "ernie-4.5-0.3b": {
        "model_type": "ernie4_5", "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 103424,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": None,
        "tie_word_embeddings": True, "use_bias": False,
    },
    "internlm3-8b": {
        "model_type": "internlm3", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 10240,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "bias": False,
        "qkv_bias": False, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 50000000,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "tie_word_embeddings": False, "vocab_size": 128512,
    },
    "gemma-2b": {
        "model_type": "gemma", "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 16384, "head_dim": 256,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "vocab_size": 256000,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000.0,
    },
    "gemma-2-27b": {
        **_WIDE_GEMMA2, "model_type": "gemma2", "hidden_size": 4608, "intermediate_size": 36864, "head_dim": 128,
        "num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16, "vocab_size": 256000,
        "query_pre_attn_scalar": 144, "sliding_window": 4096, "cache_implementation": "hybrid",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "head_dim": 256,
        "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "vocab_size": 262144, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "sliding_window": 512,
        "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "rms_norm_eps": 1e-6,
    },
    "gemma-3-4b": {
        "model_type": "gemma3", "mm_tokens_per_image": 256, "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    },
    "olmo-3-7b": {
        "model_type": "olmo3", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100278, "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6, "rope_theta": 500000, "sliding_window": 4096, "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
    },
    "command-r7b": {
        "model_type": "cohere2", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256000, "max_position_embeddings": 132096,
        "layer_norm_eps": 1e-5, "logit_scale": 0.25, "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096,
        "sliding_window_pattern": 4, "order_of_interleaved_layers": "local_first",
    },
    "smollm3-3b": {
        "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256, "max_position_embeddings": 65536,
        "rope_theta": 5000000.0, "rope_scaling": None, "no_rope_layers": [1, 1, 1, 0] * 9, "rms_norm_eps": 1e-6,
        "use_sliding_window": False, "layer_types": ["full_attention"] * 36,
    },
    "exaone-4-1.2b": {
        "model_type": "exaone4", "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 30,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 102400,
        "max_position_embeddings": 65536, "rope_theta": 1000000, "rope_scaling": _LLAMA3_16, "rms_norm_eps": 1e-5,
        "sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 30,
        "tie_word_embeddings": True,
    },
    "exaone-4-32b": {
        "model_type": "exaone4", "hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 64,
        "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 102400,
        "max_position_embeddings": 131072, "rope_theta": 1000000, "rope_scaling": _LLAMA3_16, "rms_norm_eps": 1e-5,
        "sliding_window": 4096, "sliding_window_pattern": "LLLG",
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 16,
    },
    "minitron-8b": {
        "model_type": "nemotron", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256000,
        "max_position_embeddings": 4096, "norm_eps": 1e-5, "partial_rotary_factor": 0.5, "rope_theta": 10000,
    },
    "stablelm-2-1.6b": {
        "model_type": "stablelm", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352, "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "rope_theta": 10000, "use_qkv_bias": True,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 8192,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "decoder_sparse_step": 1, "max_window_layers": 21,
        "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_experts": 60, "num_experts_per_tok": 4,
        "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "use_sliding_window": False,
    },
    "afm-4.5b": {
        "model_type": "arcee", "hidden_size": 2560, "intermediate_size": 18432, "num_hidden_layers": 36,
        "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 128004,
        "max_position_embeddings": 65536, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "type": "yarn",
        },
    },
}  # fmt: skip
